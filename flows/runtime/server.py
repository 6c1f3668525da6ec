"""A temporary Prefect server, used when no server is configured; it ends with this process, however that ends.

Prefect would start one too, but only when the flow is called, and after importing all of the server into this process.
This one starts in a process of its own while the models load, and has a random password, which keeps the other users of
this machine out. With `PREFECT_API_URL` set, or a profile that names a
server, nothing is started.
"""

import atexit
import base64
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import prefect
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from flows.runtime import child

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
        self.auth_string = f"distilflow:{secrets.token_urlsafe()}"
        env = {**TEMPORARY_SERVER_ENV, **os.environ, "PREFECT_SERVER_API_AUTH_STRING": self.auth_string}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  without a name: nothing is left of it
        self.process = child.start("uvicorn", *words, garbage_thread=True, env=env, stdout=self._log, stderr=self._log)
        atexit.register(self.stop)

    def wait(self) -> str:
        """Wait until the server answers, and return its URL.

        Raises:
            RuntimeError: If it does not come up.
        """
        deadline = time.monotonic() + SERVER_START_TIMEOUT_S
        while self.process.poll() is None and time.monotonic() < deadline:
            if self._status("") == 401 and self._status(self.auth_string) == 200:
                return self.url  # with any other password it would be somebody else's
            time.sleep(0.05)
        self._log.seek(0)
        tail = self._log.read().decode(errors="replace")[-2000:]
        raise RuntimeError(f"Prefect's temporary server did not start; it said:\n{tail}")

    def _status(self, auth_string: str) -> int | None:
        """Return the HTTP status of a request with this password; `None` if nobody answers."""
        credentials = base64.b64encode(auth_string.encode()).decode()
        request = Request(f"{self.url}/admin/version", headers={"Authorization": f"Basic {credentials}"})
        try:
            with build_opener(ProxyHandler({})).open(request, timeout=5) as reply:
                return reply.status
        except HTTPError as error:
            return error.code
        except OSError:
            return None

    def stop(self) -> None:
        """Terminate the process."""
        self._port_holder.close()
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()


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
        server = _temporary_server()
        url, auth_string = server.wait(), server.auth_string
        environment = {"PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": auth_string}  # of the processes started here
        with (
            temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: auth_string}),
            _environment(environment),
        ):
            yield


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ |= variables
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ |= {} if value is None else {name: value}
