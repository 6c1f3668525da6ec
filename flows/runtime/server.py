"""A temporary Prefect server, used when no server is configured; it ends with this process.

Prefect would start one too, but only when the flow is called, and after importing all of the server into this process.
This one starts in a process of its own while the models load. With `PREFECT_API_URL` set, or a profile that names a
server, nothing is started.
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

SERVER_START_TIMEOUT_S = 180.0
"""The first server on a machine migrates its database."""

TEMPORARY_SERVER_ENV = {
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
"""Services a server for one run needs: it records events in large batches, schedules nothing and has no UI."""


def server_command(module: str, *words: str) -> list[str]:
    """Return the command that runs a module, such as `prefect`, as a server that collects its garbage in a thread."""
    collect = Path(__file__).with_name("garbage.py")
    code = f"""
import runpy
runpy.run_path({str(collect)!r})["collect_in_a_thread"]()
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""
    return [sys.executable, "-c", code, *words]


def reserve_port() -> tuple[int, socket.socket]:
    """Return a free port of this machine, and a socket that keeps it so until it is closed.

    A server needs seconds until it listens, in which other sockets may be given a port that only was free.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the server, which asks for this port, gets it
    holder.bind(("127.0.0.1", 0))
    port = holder.getsockname()[1]
    if sys.platform != "linux":  # elsewhere the server would not get it
        holder.close()
    return port, holder


class _Server:
    """A server process, starting or running."""

    def __init__(self) -> None:
        port, self._port_holder = reserve_port()
        self.url = f"http://127.0.0.1:{port}/api"
        words = ["--app-dir", str(prefect.__module_path__.parent), "--factory", "prefect.server.api.server:create_app"]
        words += ["--host", "127.0.0.1", "--port", f"{port}", "--log-level", "error"]
        log, path = tempfile.mkstemp(prefix="prefect-server-", suffix=".log")
        self.log = Path(path)
        try:
            self.process = subprocess.Popen(
                server_command("uvicorn", *words),
                env={**TEMPORARY_SERVER_ENV, **os.environ},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        finally:
            os.close(log)
        atexit.register(self.stop)

    def wait(self) -> str:
        """Wait until the server answers, and return its URL.

        Raises:
            RuntimeError: If it does not come up.
        """
        opener, deadline = build_opener(ProxyHandler({})), time.monotonic() + SERVER_START_TIMEOUT_S
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                with opener.open(f"{self.url}/health", timeout=5):
                    return self.url
            except (URLError, OSError):
                time.sleep(0.05)
        tail = self.log.read_text()[-2000:]
        raise RuntimeError(f"Prefect's temporary server did not start; it said:\n{tail}")

    def stop(self) -> None:
        """Terminate the process and remove its log."""
        self._port_holder.close()
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.unlink(missing_ok=True)


@cache
def _temporary_server() -> _Server:
    return _Server()


def boot() -> None:
    """Start a temporary server in the background if none is configured."""
    if not PREFECT_API_URL.value():
        _temporary_server()


def is_temporary() -> bool:
    """Return whether the current server is the temporary one, which has no UI."""
    return bool(_temporary_server.cache_info().currsize) and PREFECT_API_URL.value() == _temporary_server().url


@contextmanager
def available() -> Iterator[None]:
    """Use the configured server, or the temporary one, within the block."""
    if PREFECT_API_URL.value():
        yield
    else:
        with temporary_settings({PREFECT_API_URL: _temporary_server().wait()}):
            yield
