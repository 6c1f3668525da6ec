"""`python -m deployments serve`: one command up, one Ctrl-C down."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from prefect.deployments import run_deployment
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.local.processes import SHUTDOWN_TIMEOUT_S
from tests.support.ports import reserve_port
from tests.support.processes import kill_processes_of, processes_of
from tests.support.waiting import wait_until


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_one_command_brings_all_of_it_up_and_one_ctrl_c_down(tmp_path: Path, wire: Any) -> None:
    port = reserve_port()
    home, log = tmp_path / "prefect", tmp_path / "log"
    own = {"PREFECT_HOME": str(home), "PREFECT_WORKER_QUERY_SECONDS": "2"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "deployments", "serve", "--port", str(port)],
            cwd=tmp_path,
            env=os.environ | own | {"OPENAI_API_KEY": "k"},
            stdout=output,
            stderr=output,
        )
    try:
        goes_up_and_down(process, port, tmp_path, wire)
    finally:
        kill_processes_of(home)
        process.wait()


def goes_up_and_down(process: "subprocess.Popen[bytes]", port: int, tmp_path: Path, wire: Any) -> None:
    home, log = tmp_path / "prefect", tmp_path / "log"
    wait_until(lambda: "Ctrl-C" in log.read_text() or process.poll() is not None, 200)
    assert f"http://127.0.0.1:{port} is where to start runs" in log.read_text()
    asked = httpx.get(f"http://127.0.0.1:{port}/ui-settings", trust_env=False).json()["api_url"]
    assert asked == f"http://127.0.0.1:{port}/api", "what the UI asks"

    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}):
        wire.answer = lambda request: wire.Reply(delay=60)
        slow = {"llm": f"OpenAILLM model=m base_url={wire.url}", "output": str(tmp_path / "slow")}
        run_deployment("text-generation/local", parameters=slow, timeout=0)
        wait_until(lambda: wire.in_flight > 0, 120)
        assert len(processes_of(home)) >= 5, "the command, the server, two workers and the run"

        run: Any = run_deployment("text-generation/hosted", parameters={"limit": 3}, timeout=200, poll_interval=0.2)
        assert run.state.is_completed(), log.read_text()  # and its process is about to end when the Ctrl-C comes
    process.send_signal(signal.SIGINT)
    assert process.wait(4 * SHUTDOWN_TIMEOUT_S) == 0
    assert not processes_of(home), log.read_text()
    assert pq.read_table(tmp_path / "outputs/hosted/text_generation/default").num_rows == 3
    states = sqlite3.connect(home / "prefect.db").execute("select state_name from flow_run").fetchall()
    assert sorted(states) == [("Completed",), ("Crashed",)], "no run is said to be running that is not"
