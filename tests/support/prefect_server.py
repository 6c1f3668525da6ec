"""A Prefect server in a process of its own, with all its services."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Self

import httpx

from tests.support.waiting import PROCESS_LOGS, wait_until

ROOT = Path(__file__).parents[2]


class PrefectServer:
    """A server of Prefect with all its services, which can be stopped and started."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.home, self.log = f"http://127.0.0.1:{self.port}/api", home, home / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        PROCESS_LOGS[self.url] = self.log
        services = {"PREFECT_SERVER_SERVICES_REPOSSESSOR_LOOP_SECONDS": "2", "PREFECT_HOME": str(self.home)}
        services |= {"PREFECT_UI_URL": self.url.removesuffix("/api")}
        with self.log.open("ab") as log:
            self.process = process = subprocess.Popen(
                [sys.executable, "-m", "prefect", "server", "start", "--port", str(self.port)],
                cwd=ROOT,
                env=os.environ | services,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(lambda: self.answers() or process.poll() is not None, 120)
        assert self.answers(), f"the server did not start: {self.log.read_text()[-2000:]}"

    def stop(self) -> None:
        PROCESS_LOGS.pop(self.url, None)
        if self.process:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health").is_success
        except httpx.HTTPError:
            return False
