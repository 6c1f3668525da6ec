"""A Prefect server for those who have none: started beside the work, gone with the process.

Prefect would start one too, but only when the flow is called, and after importing all of the server into this process.
Ours boots in a process of its own while the models load. With `PREFECT_API_URL` set, or a profile that names a server,
nothing is started.
"""

import atexit
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import prefect
from prefect.settings import PREFECT_API_URL, temporary_settings

PATIENCE = 180.0
"""Seconds a server may take to boot: the first one makes its database."""

QUIET = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT_LOGGING_LEVEL": "ERROR",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "0",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "0",
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "0",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "0",
    "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_ENABLED": "0",
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_ENABLED": "0",
    "PREFECT_SERVER_SERVICES_FOREMAN_ENABLED": "0",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "0",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "500",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "100",
}
"""A server for one run schedules nothing and shows nothing; it records, in large strokes."""


class _Server:
    """A booting or running server process."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}/api"
        self.log = tempfile.NamedTemporaryFile(prefix="prefect-server-", suffix=".log", delete=False)  # noqa: SIM115
        port = self.url.rsplit(":", 1)[1].removesuffix("/api")
        command = [sys.executable, "-m", "uvicorn", "--app-dir", str(prefect.__module_path__.parent), "--factory"]
        command += [
            "prefect.server.api.server:create_app",
            "--host",
            "127.0.0.1",
            "--port",
            port,
            "--log-level",
            "error",
        ]
        self.process = subprocess.Popen(
            command, env={**QUIET, **os.environ}, stdout=self.log, stderr=self.log, start_new_session=True
        )
        atexit.register(self.stop)

    def wait(self) -> str:
        """The server's URL, once it answers.

        Raises:
            RuntimeError: If it does not come up.
        """
        opener, deadline = build_opener(ProxyHandler({})), time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                with opener.open(f"{self.url}/health", timeout=5):
                    return self.url
            except (URLError, OSError):
                time.sleep(0.05)
        tail = Path(self.log.name).read_text()[-2000:]
        raise RuntimeError(f"Prefect's temporary server did not start; it said:\n{tail}")

    def stop(self) -> None:
        """End the process and remove its log."""
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        Path(self.log.name).unlink(missing_ok=True)


@cache
def _temporary() -> _Server:
    return _Server()


def boot() -> None:
    """Begin to start a temporary server, if none is configured; returns at once."""
    if not PREFECT_API_URL.value():
        _temporary()


def is_temporary() -> bool:
    """Whether the server in force is the temporary one, which shows nothing."""
    return bool(_temporary.cache_info().currsize) and PREFECT_API_URL.value() == _temporary().url


@contextmanager
def available() -> Iterator[None]:
    """Run what is inside against the configured server, or against the temporary one."""
    if PREFECT_API_URL.value():
        yield
    else:
        with temporary_settings({PREFECT_API_URL: _temporary().wait()}):
            yield
