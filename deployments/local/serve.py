"""`python -m deployments serve`: server, deployments and workers on one machine, until Ctrl-C."""

import argparse
import tempfile
import time
from pathlib import Path
from typing import IO, Any
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

from prefect.settings import PREFECT_API_URL, temporary_settings
from rich.console import Console

from deployments.errors import ConfigurationError
from deployments.local import worker
from deployments.local.processes import POLL_S, Processes
from deployments.reconcile.api import Api, connect
from deployments.reconcile.apply import apply
from deployments.reconcile.files import SHIPPED, Folder, entries

SERVER_START_TIMEOUT_S = 180.0
"""For a server to become healthy; the first start creates its database."""

SERVER_SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "500",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TRIGGERS_READ_BATCH_SIZE": "100",
}
"""Large batches: many concurrent task runs would otherwise make a server on SQLite reject clients."""


def main(words: list[str]) -> int:
    """Start a server if none runs, apply the files, start the workers, and wait for Ctrl-C.

    Returns:
        Exit status: 0 after Ctrl-C, 1 when a process ended by itself.
    """
    options = parser().parse_args(words)
    folder, out = Folder(options.folder), Console(soft_wrap=True, highlight=False)
    url = PREFECT_API_URL.value() or f"http://127.0.0.1:{options.port}/api"
    ui = url.removesuffix("/api")
    with tempfile.TemporaryFile() as log, temporary_settings({PREFECT_API_URL: url}):
        try:
            with Processes() as processes:
                if not is_healthy(url):
                    out.print(f"server at {ui}")
                    start_server(processes, url, log)
                with connect() as api:
                    apply(api, folder, out=out)
                    for each in workers(api, folder):
                        out.print(worker.describe(each))
                        each.start(processes, url)
                out.print(f"[bold]{ui}[/] is where to start runs and watch them; Ctrl-C ends what began here")
                out.print(f"{processes.wait()} ended")
                return 1
        except KeyboardInterrupt:
            out.print("ended")
            return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m deployments serve`."""
    parser = argparse.ArgumentParser(
        prog="python -m deployments serve",
        description="A Prefect server if none runs, a worker for every pool, and all deployments, until Ctrl-C. The "
        "server is the one `PREFECT_API_URL` names, else one of this machine that nobody else can reach.",
    )
    parser.add_argument("--port", type=int, default=4200, help="of the server, where no API is configured")
    parser.add_argument(
        "--from", dest="folder", type=Path, default=SHIPPED, metavar="FOLDER", help="the files; the shipped ones if not"
    )
    return parser


def workers(api: Api, folder: Folder) -> list[worker.Worker]:
    """Return the workers of every process pool."""
    path = folder.file("pools")
    pools = [each["name"] for each in entries(path, "pools") if each["type"] == "process"] if path else []
    return [each for pool in pools for each in worker.workers_of(api, pool)]


def start_server(processes: Processes, url: str, log: IO[Any]) -> None:
    """Start a server at this address and wait until it is healthy.

    Raises:
        ConfigurationError: If the address is another machine's, or the server does not start.
    """
    address = urlsplit(url)
    if address.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise ConfigurationError(
            f"Prefect's API at `{url}` does not answer, and only this machine's could be started here."
        )
    words = ["--host", address.hostname, "--port", str(address.port or 4200)]
    env = SERVER_SETTINGS | {"PREFECT_UI_URL": url.removesuffix("/api")}  # in messages of automations
    env |= {"PREFECT_SERVER_UI_API_URL": url}  # the UI would use port 4200 whatever the server's is
    process = processes.prefect("server", "server", "start", *words, env=env, output=log, garbage_thread=True)
    deadline = time.monotonic() + SERVER_START_TIMEOUT_S
    while not is_healthy(url):
        if process.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            raise ConfigurationError(f"The server did not start; it said:\n{log.read().decode()[-2000:].strip()}")
        time.sleep(POLL_S)


def is_healthy(url: str) -> bool:
    """Return whether a Prefect server answers at this address."""
    try:
        with build_opener(ProxyHandler({})).open(f"{url}/health", timeout=5) as reply:
            return reply.read() == b"true"
    except (URLError, OSError):
        return False
