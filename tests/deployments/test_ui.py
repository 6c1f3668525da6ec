"""A run without a line of Python: from a form in a browser, a schedule, a shell and the REST API, on real workers."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.__main__ import main
from deployments.reconcile.files import SHIPPED
from llms import OpenAILLM, demo
from tests.support import browser
from tests.support.files import replace_in_file
from tests.support.prefect_server import PrefectServer, ask_server
from tests.support.waiting import PROCESS_LOGS, skip_or_fail, wait_until

RUN_TIMEOUT_S = 300
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.slow,
]  # the first test waits for the server, the deployments and the workers too
QUESTIONS = [{"instruction": "What's the capital of Spain?"}, {"instruction": "And where is that?"}]


class Team:
    """A server with its UI, all deployments, and a worker of processes for each pool."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        self.server = PrefectServer(folder / "prefect")
        self.workers: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PREFECT_SERVER_UI_API_URL", self.server.url)  # the page would ask port 4200
            self.server.start()
        self.run("deployments")
        PROCESS_LOGS["workers"] = self.log
        for pool in ("api", "gpu"):
            words = ["prefect", "worker", "start", "--pool", pool, "--install-policy", "never"]
            with self.log.open("ab") as log:
                self.workers.append(subprocess.Popen(self.command(*words), **self.place(), stdout=log, stderr=log))

    def stop(self) -> None:
        PROCESS_LOGS.pop("workers", None)
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            try:
                worker.wait(60)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        self.server.stop()

    def run(self, *words: str) -> None:
        """A command in a shell of its own, which succeeds."""
        done = subprocess.run(
            self.command(*words), **self.place(), capture_output=True, text=True, timeout=RUN_TIMEOUT_S
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", *words]

    def place(self) -> dict[str, Any]:
        own = {"PREFECT_API_URL": self.server.url, "PREFECT_WORKER_QUERY_SECONDS": "2"}
        return {"cwd": self.folder, "env": os.environ | own | {"OPENAI_API_KEY": "key-of-the-worker"}}

    def ask(self, path: str, body: Any = None) -> Any:
        """What the REST API says."""
        method = "GET" if body is None else "POST"
        reply = ask_server(method, f"{self.server.url}/{path}", body)
        assert reply.is_success, reply.text
        return reply.json()

    def deployment(self, name: str) -> str:
        return self.ask(f"deployments/name/{name}")["id"]

    def runs(self, name: str) -> list[dict[str, Any]]:
        """The runs of a deployment, the oldest first."""
        body = {"deployments": {"id": {"any_": [self.deployment(name)]}}, "sort": "EXPECTED_START_TIME_ASC"}
        return self.ask("flow_runs/filter", body)

    def finished(self, run: dict[str, Any]) -> dict[str, Any]:
        """A run, once a worker has completed it."""
        ended = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        wait_until(lambda: self.ask(f"flow_runs/{run['id']}")["state_type"] in ended, RUN_TIMEOUT_S)
        run = self.ask(f"flow_runs/{run['id']}")
        assert run["state_type"] == "COMPLETED", f"{run['state']['message']}\n{self.log.read_text()[-4000:]}"
        return run

    def rows(self, output: str) -> list[dict[str, Any]]:
        """The dataset on disk."""
        return pq.read_table(self.folder / output / "default").to_pylist()


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    team = Team(tmp_path_factory.mktemp("team"))
    try:
        team.start()
        yield team
    finally:
        team.stop()


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go: the folder `SCREENSHOTS` names."""
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def page(team: Team) -> Iterator[browser.Page]:
    if missing := browser.missing():
        skip_or_fail(missing)
    page = browser.Page(team.server.url.removesuffix("/api") + "/v2")
    yield page
    page.close()


def test_from_a_form_in_a_browser(team: Team, page: browser.Page, wire: Any, screenshots: Path) -> None:
    page.open("blocks/catalog/openai-llm/create")
    page.write("Name", "prod")
    page.write("Model", "gpt-5")
    page.write("Base Url", wire.url)
    page.write("Api Key", "key-of-the-form")
    page.write("Temperature", "0.5")
    page.shot(screenshots / "block.png")
    page.submit("Save")
    page.reads("gpt-5")
    with temporary_settings({PREFECT_API_URL: team.server.url}):
        saved = OpenAILLM.load("prod")
    assert (saved.model, saved.base_url, saved.generation_kwargs) == ("gpt-5", wire.url, {"temperature": 0.5})
    assert "key-of-the-form" not in page.text()

    page.open(f"blocks/block/{saved._block_document_id}/edit")
    page.holds("Model", "gpt-5")
    page.write("Seed", "7")
    page.submit("Save")
    with temporary_settings({PREFECT_API_URL: team.server.url}):
        wait_until(lambda: OpenAILLM.load("prod").generation_kwargs == {"temperature": 0.5, "seed": 7}, RUN_TIMEOUT_S)
        saved = OpenAILLM.load("prod")
    assert saved.api_key and saved.api_key.get_secret_value() == "key-of-the-form", "its mask is not saved over it"

    page.open(f"deployments/deployment/{team.deployment('text-generation/hosted')}/run")
    page.press("Data", "tab")
    page.press("File, folder, glob or Hub dataset", "tab")
    page.write("data", json.dumps(QUESTIONS))
    page.press("OpenAILLM", "tab")
    page.press("Select a block...")
    page.press("prod", "option")
    page.write("Max New Tokens", "50")
    page.reads("Parameters")
    page.shot(screenshots / "run.png")
    page.submit()
    run = team.finished(team.runs("text-generation/hosted")[0])
    assert run["parameters"]["llm"] == {"$ref": {"block_document_id": str(saved._block_document_id)}}
    assert [row["instruction"] for row in team.rows("outputs/hosted/text_generation")] == [
        row["instruction"] for row in QUESTIONS
    ]
    assert {request.headers["authorization"] for request in wire.requests} == {"Bearer key-of-the-form"}
    for request in wire.requests:
        assert request.body.items() >= {"temperature": 0.5, "seed": 7, "max_completion_tokens": 50}.items()

    page.open(f"runs/flow-run/{run['id']}")
    page.reads("Completed")
    if made := team.ask("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}}):
        page.open(f"runs/flow-run/{run['id']}?tab=Artifacts")
        page.reads(made[0]["key"])
    page.shot(screenshots / "finished.png")


def test_by_a_schedule_in_a_file(team: Team, wire: Any, tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("*.py", "__pycache__")
    folder = Path(shutil.copytree(SHIPPED, tmp_path / "deployments", ignore=ignored))
    once = (datetime.now(UTC) + timedelta(seconds=30)).strftime("%Y%m%dT%H%M%SZ")
    given = json.dumps({"llm": f"OpenAILLM model=m base_url={wire.url}", "limit": "3", "output": "scheduled"})
    soon = f'rrule: "DTSTART:{once}\\nRRULE:FREQ=DAILY;COUNT=1", active: true, parameters: {given}'
    replace_in_file(folder / "text_generation.yaml", 'cron: "0 3 * * *", timezone: UTC, active: false', soon)
    with temporary_settings({PREFECT_API_URL: team.server.url}):
        assert main(["--from", str(folder), "text_generation"]) == 0
        wait_until(lambda: any(run["auto_scheduled"] for run in team.runs("text-generation/hosted")), RUN_TIMEOUT_S)
        [scheduled] = [run for run in team.runs("text-generation/hosted") if run["auto_scheduled"]]
        run = team.finished(scheduled)
        assert main(["text_generation"]) == 0
    assert run["parameters"]["limit"] == 3, "the file said it in quotes"
    assert len(team.rows("scheduled")) == 3


def test_from_a_shell(team: Team, wire: Any) -> None:
    given = {"llm": f"OpenAILLM model=m base_url={wire.url}", "limit": "2", "output": "shell"}
    words = [word for name, value in given.items() for word in ("--param", f"{name}={value}")]
    team.run("prefect", "deployment", "run", "text-generation/hosted", *words, "--watch", "--watch-timeout", "170")
    assert len(team.rows("shell")) == 2


def test_by_rest(team: Team, wire: Any) -> None:
    model = {"block_type_slug": "openai-llm", "model": "m", "base_url": wire.url, "timeout": "30"}
    given = {"llm": model, "data": QUESTIONS, "output": "rest"}
    run = team.ask(f"deployments/{team.deployment('text-generation/hosted')}/create_flow_run", {"parameters": given})
    team.finished(run)
    assert [row["generation"] for row in team.rows("rest")] == ["Madrid."] * 2


def test_a_local_engine_on_the_gpu_pool(team: Team) -> None:
    demo_model = f"LlamaCppLLM model_path={demo.GGUF} n_ctx=1024"
    given = {"limit": 2, "output": "local"} | ({"llm": demo_model} if find_spec("llama_cpp") else {})
    run = team.ask(
        f"deployments/{team.deployment('structured-generation/local')}/create_flow_run", {"parameters": given}
    )
    assert team.finished(run)["work_pool_name"] == "gpu"
    assert all(json.loads(row["generation"])["profession"] for row in team.rows("local"))
