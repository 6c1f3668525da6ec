"""Prefect servers in processes of their own, on copies of one empty database."""

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

import httpx
from filelock import FileLock
from prefect.utilities.asyncutils import run_coro_as_sync

from flows.runtime import child
from tests.support.ports import reserve_port
from tests.support.waiting import PROCESS_LOGS, log_ends, wait_until

ROOT = Path(__file__).parents[2]
DRAIN_TIMEOUT_S = 20.0
REPLY_TIMEOUT_S, READ_AGAIN_AFTER_S = 300.0, 60.0
RUNNING: dict[str, subprocess.Popen[bytes]] = {}
"""The servers that run just now, by URL."""


def ask_server(method: str, url: str, body: Any = None, **options: Any) -> httpx.Response:
    """Ask a server, again while its SQLite is busy; what only reads is asked again when no reply comes, too."""
    reads = method == "GET" or url.endswith("/filter")
    deadline = time.monotonic() + REPLY_TIMEOUT_S
    while True:
        try:
            timeout = READ_AGAIN_AFTER_S if reads else REPLY_TIMEOUT_S
            reply = httpx.request(method, url, json=body, timeout=timeout, **options)
            if reply.status_code != 503 or time.monotonic() > deadline:
                return reply
        except httpx.ReadTimeout:
            for server, process in RUNNING.items():
                if url.startswith(server):
                    os.killpg(process.pid, signal.SIGUSR1)  # it writes to its log what it is at
            if not reads or time.monotonic() > deadline:
                raise AssertionError(f"no reply from {url}\n{log_ends(10_000)}") from None
        time.sleep(0.2)


def copy_empty_database(file: Path) -> None:
    """Copy an empty database of Prefect to a file; it is made once per test run, as its migrations take seconds."""
    template = Path(os.environ["TEST_RUN_HOME"]) / "prefect.db"
    with FileLock(template.with_suffix(".lock")):
        if not template.exists():
            made = template.with_name("made.db")
            address = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{made}"}
            words = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
            subprocess.run(words, env=os.environ | address, check=True, capture_output=True)
            with closing(sqlite3.connect(made)) as database:
                database.execute("VACUUM INTO ?", [str(template)])
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(template, file)


@contextmanager
def harness(folder: Path) -> Iterator[None]:
    """Prefect's own test harness, a server without its services, with its database in a folder."""
    from prefect.testing import utilities  # imports the server, for seconds

    copy_empty_database(folder / "prefect-test.db")
    with (
        patch.object(utilities, "mkdtemp", lambda: str(folder)),
        patch.object(utilities, "_find_available_port", reserve_port),
        patch.object(utilities, "run_coro_as_sync", _run_for_a_while),
        utilities.prefect_test_harness(120),
    ):
        yield


def _run_for_a_while(drain: Coroutine[Any, Any, None]) -> None:
    """Run what sends the last logs and events; now and then one of Prefect's services never ends."""

    async def run() -> None:
        done, _ = await asyncio.wait([asyncio.ensure_future(drain)], timeout=DRAIN_TIMEOUT_S)
        for task in done:
            task.result()

    run_coro_as_sync(run())


class PrefectServer:
    """A server of Prefect with all its services, which can be stopped and started."""

    def __init__(self, home: Path) -> None:
        self.port = reserve_port()
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
        if not (database := self.home / "prefect.db").exists():
            copy_empty_database(database)
        PROCESS_LOGS[self.url] = self.log
        services = {"PREFECT_SERVER_SERVICES_REPOSSESSOR_LOOP_SECONDS": "2", "PREFECT_HOME": str(self.home)}
        services |= {"PREFECT_UI_URL": self.url.removesuffix("/api")}
        with self.log.open("ab") as log:
            words = ["server", "start", "--port", str(self.port)]
            options = {"cwd": ROOT, "env": os.environ | services, "stdout": log, "stderr": log}
            self.process = process = child.start("prefect", *words, garbage_thread=True, **options)
        RUNNING[self.url] = process
        wait_until(lambda: self.answers() or process.poll() is not None, 120)
        assert self.answers(), f"the server did not start: {self.log.read_text()[-2000:]}"

    def stop(self) -> None:
        PROCESS_LOGS.pop(self.url, None)
        RUNNING.pop(self.url, None)
        if self.process:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health").is_success
        except httpx.HTTPError:
            return False
