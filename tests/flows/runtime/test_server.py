"""The temporary server: where it listens, whom it answers, and how it ends."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from flows.runtime import server
from tests.support.prefect_server import copy_empty_database
from tests.support.processes import kill_processes_of, processes_of
from tests.support.waiting import wait_until

SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]


@pytest.fixture
def temporary() -> Iterator[server._Server]:
    temporary = server._Server()
    yield temporary
    temporary.stop()


@pytest.mark.slow
def test_only_who_has_the_password_is_answered(temporary: server._Server) -> None:
    url = temporary.wait()
    for auth, status in ((None, 401), (("distilflow", "guess"), 401), (tuple(temporary.auth_string.split(":")), 200)):
        reply = httpx.post(f"{url}/flow_runs/filter", json={}, auth=auth, trust_env=False)
        assert reply.status_code == status, auth
    if sys.platform == "linux":  # where every user of a machine reads the command lines of all processes
        assert temporary.auth_string not in Path(f"/proc/{temporary.process.pid}/cmdline").read_text()


class Stranger(BaseHTTPRequestHandler):
    """A server that takes any password."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


def test_a_stranger_at_its_port_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPServer(("127.0.0.1", 0), Stranger) as stranger:
        Thread(target=stranger.serve_forever, daemon=True).start()
        monkeypatch.setattr(server, "reserve_port", lambda: (stranger.server_port, socket.socket()))
        temporary = server._Server()
        try:
            with pytest.raises(RuntimeError, match="did not start"):
                temporary.wait()
        finally:
            temporary.stop()
            stranger.shutdown()


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked for in /proc")
@pytest.mark.slow
def test_a_run_leaves_no_process_whichever_way_it_ends(tmp_path: Path, wire: Any) -> None:
    wire.answer = lambda request: wire.Reply(delay=600)
    words = ["-m", "flows.text_generation", "--llm", f"OpenAILLM model=m base_url={wire.url}", "--limit", "1"]
    homes = {number: tmp_path / number.name for number in SIGNALS}
    runs: dict[signal.Signals, subprocess.Popen[bytes]] = {}
    try:
        for number, home in homes.items():
            copy_empty_database(home / "prefect.db")
            (home / "tmp").mkdir()
            env = {"PREFECT_HOME": str(home), "DISTILFLOW_HOME": str(home), "TMPDIR": str(home / "tmp")}
            env |= {"OPENAI_API_KEY": "k"}
            runs[number] = subprocess.Popen([sys.executable, *words, "--output", "out"], cwd=home, env=os.environ | env)
        wait_until(lambda: wire.in_flight == len(runs))
        for number, run in runs.items():
            assert len(processes_of(homes[number])) == 2, "the run and its server"
            run.send_signal(number)
            assert run.wait(120) != 0
        wait_until(lambda: not any(processes_of(home) for home in homes.values()))
        assert not [*homes[signal.SIGKILL].glob("tmp/*")]
    finally:
        for home in homes.values():
            kill_processes_of(home)


@pytest.mark.skipif(sys.platform != "linux", reason="a port is kept for a server on Linux only")
def test_a_port_is_kept_for_the_server_that_will_listen_there():
    port, holder = server.reserve_port()
    with holder, socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    port, holder = server.reserve_port()
    with holder, HTTPServer(("127.0.0.1", port), BaseHTTPRequestHandler), socket.create_connection(("127.0.0.1", port)):
        assert holder.getsockname()[1] == port
