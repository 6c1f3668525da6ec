"""Several workers, one server: what they share, who takes over, and the parts that a team's server is made of."""

import base64
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
import yaml
from prefect.deployments import run_deployment
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.__main__ import main
from deployments.local import serve
from deployments.local.processes import SHUTDOWN_TIMEOUT_S
from deployments.reconcile.files import SHIPPED
from flows import Pipeline
from flows.preview.approval import SAMPLE_ROWS
from flows.runtime.child import descendants
from llms import OpenAILLM, store
from tasks import LoadDataFromDicts, TextGeneration
from tests.support.ports import reserve_port
from tests.support.prefect_server import PrefectServer, ask_server
from tests.support.rates import assert_rate
from tests.support.waiting import PROCESS_LOGS, skip_or_fail, wait_until
from tests.support.wire import Request, Wire

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]  # the first test waits for the server and the workers too
RATE = 2.0
"""Requests a second that all runs together may make: 120 a minute."""
SPAN_S = 30.0
ROWS = 1500
"""Of a run that is not to end before the test does."""


class Worker:
    """`python -m deployments worker api`, one run at a time, in a folder of its own."""

    def __init__(self, url: str, folder: Path) -> None:
        folder.mkdir()
        self.name, PROCESS_LOGS[folder.name] = folder.name, folder / "log"
        with PROCESS_LOGS[self.name].open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "deployments", "worker", "api", "--limit", "1"],
                cwd=folder,
                env=os.environ | {"PREFECT_API_URL": url, "PREFECT_WORKER_QUERY_SECONDS": "2"},
                stdout=log,
                stderr=log,
            )

    @property
    def pids(self) -> list[int]:
        """Its processes: the command, Prefect's worker, and those of the runs."""
        return [self.process.pid, *descendants(self.process.pid)]

    def kill(self) -> None:
        """`kill -9`, of all that it started too."""
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Ctrl-C, if it still runs."""
        PROCESS_LOGS.pop(self.name, None)
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(2 * SHUTDOWN_TIMEOUT_S + 30)
            except subprocess.TimeoutExpired:
                self.kill()


@dataclass
class Team:
    """A server, a provider, and two workers that share a disk."""

    url: str
    wire: Wire
    workers: list[Worker]
    store: Path
    asked: list[tuple[float, str]] = field(default_factory=list)

    def answer(self, request: Request) -> Any:
        """An answer that tells what was asked."""
        prompt = request.body["messages"][-1]["content"]
        self.asked.append((time.time(), prompt))
        return Wire.Reply(Wire.completion(f"re: {prompt}"), delay=0.3)

    def prompts(self, run: str) -> list[str]:
        """What a run has asked so far."""
        return [prompt for _, prompt in self.asked if prompt.startswith(run)]

    def start(self, run: str, folder: Path, rows: int = ROWS, **more: Any) -> UUID:
        """Start a run, as the form in the UI does."""
        parameters = {
            "llm": {"$ref": {"block_document_slug": "openai-llm/team"}},
            "data": [{"instruction": f"{run} {number}"} for number in range(rows)],
            "output": str(folder / run),
        } | more
        return run_deployment("text-generation/team", parameters=parameters, timeout=0, flow_run_name=run).id  # type: ignore[union-attr]

    def asking(self, run: str, folder: Path) -> UUID:
        """Start a run that asks first, and wait until it does and its process is gone."""
        id = self.start(run, folder, rows=3 * SAMPLE_ROWS, approve=True)
        self.becomes(id, "PAUSED")
        wait_until(lambda: all(len(worker.pids) <= 2 for worker in self.workers))
        return id

    def api(self, path: str, method: str = "POST", **body: Any) -> Any:
        """What the server says."""
        reply = ask_server(method, f"{self.url}/{path}", body or None)
        reply.raise_for_status()
        return reply.json() if reply.content else None

    def run(self, id: UUID) -> dict[str, Any]:
        return self.api(f"flow_runs/{id}", "GET")

    def becomes(self, id: UUID, *states: str, seconds: float = 90) -> None:
        """Wait for a run to be in one of these states."""
        wait_until(lambda: self.run(id)["state_type"] in states, seconds)

    def worker_of(self, id: UUID) -> Worker:
        """Who runs it."""
        pid = int(self.run(id)["infrastructure_pid"].rpartition(":")[2])
        return next(worker for worker in self.workers if pid in worker.pids)


@pytest.fixture(scope="module")
def team(prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    base = tmp_path_factory.mktemp("team")
    wire = Wire()
    threading.Thread(target=wire.serve_forever, args=(0.02,), daemon=True).start()
    files = Path(
        shutil.copytree(SHIPPED, base / "files", ignore=shutil.ignore_patterns("*.py", "*.yaml", "automations"))
    )
    shutil.copy(SHIPPED / "pools.yaml", files)
    own = {"name": "team", "entrypoint": "flows.text_generation.text_generation", "work_pool": {"name": "api"}}
    limit = {"name": "account", "limit": RATE, "slot_decay_per_second": RATE}
    (files / "text_generation.yaml").write_text(yaml.safe_dump({"deployments": [own]}))
    (files / "limits.yaml").write_text(yaml.safe_dump({"limits": [limit]}))
    with ExitStack() as end:
        end.callback(wire.hang_up)
        server = end.enter_context(PrefectServer(base / "prefect"))
        end.enter_context(temporary_settings({PREFECT_API_URL: server.url}))
        patch = end.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("DISTILFLOW_HOME", str(base / "store"))
        assert main(["pools", "limits", "text_generation", "--from", str(files)]) == 0
        OpenAILLM(model="m", base_url=wire.url, api_key="k", shared_limit="account").save("team")  # type: ignore[arg-type]
        team = Team(server.url, wire, [], base / "store" / "answers.db")
        wire.answer = team.answer
        for name in ("one", "other"):
            team.workers.append(Worker(server.url, base / name))
            end.callback(team.workers[-1].stop)
        yield team


@pytest.fixture(scope="module")
def runs(team: Team, tmp_path_factory: pytest.TempPathFactory) -> dict[str, UUID]:
    """Two runs at once, a worker for each."""
    folder = tmp_path_factory.mktemp("outputs")
    return {name: team.start(name, folder) for name in ("first", "second")}


def test_two_runs_on_two_workers_share_a_rate(team: Team, runs: dict[str, UUID]) -> None:
    wait_until(lambda: all(map(team.prompts, runs)), 120)
    assert team.worker_of(runs["first"]) is not team.worker_of(runs["second"])
    began = team.asked[-1][0] + 3
    wait_until(lambda: team.asked[-1][0] > began + SPAN_S, 120)
    assert_rate([at for at, _ in team.asked], RATE, RATE, began, began + SPAN_S)
    shares = Counter(prompt.split()[0] for at, prompt in team.asked if began <= at < began + SPAN_S)
    assert min(shares[run] for run in runs) > 0


def test_a_cancelled_run_asks_no_more_and_the_other_goes_on(team: Team, runs: dict[str, UUID]) -> None:
    team.api(f"flow_runs/{runs['first']}/set_state", state={"type": "CANCELLING"})
    team.becomes(runs["first"], "CANCELLED")
    asked, others = len(team.prompts("first")), len(team.prompts("second"))
    assert asked < ROWS
    wait_until(lambda: len(team.prompts("second")) > others + 10)
    assert len(team.prompts("first")) == asked
    assert team.run(runs["second"])["state_type"] == "RUNNING"


def test_what_a_killed_worker_had_done_is_not_asked_again(team: Team, runs: dict[str, UUID]) -> None:
    """Another worker takes the run over, once it is known to be lost and retried."""
    run = runs["second"]
    team.worker_of(run).kill()
    wait_until(lambda: wire_is_quiet(team.wire))
    asked = team.prompts("second")
    with closing(sqlite3.connect(team.store)) as store:
        answered = {text.removeprefix("re: ") for (text,) in store.execute("SELECT text FROM answers")} & set(asked)
    assert 0 < len(answered) < ROWS and len(asked) == len(set(asked))
    team.api("v2/concurrency_limits/account", "PATCH", limit=200, slot_decay_per_second=200)
    lost = {"type": "CRASHED", "message": "as the automation `distilflow lost run` says"}
    team.api(f"flow_runs/{run}/set_state", state=lost)
    again = {"type": "SCHEDULED", "message": "as `prefect flow-run retry` says"}
    team.api(f"flow_runs/{run}/set_state", state=again, force=True)
    team.becomes(run, "COMPLETED", "FAILED", seconds=240)
    assert team.run(run)["state_type"] == "COMPLETED"
    every = {f"second {number}" for number in range(ROWS)}
    assert sorted(team.prompts("second")[len(asked) :]) == sorted(every - answered)


def wire_is_quiet(wire: Wire) -> bool:
    """Whether nothing is asked any more, nor comes of what was under way."""
    before = len(wire.requests)
    time.sleep(1)
    return not wire.in_flight and len(wire.requests) == before


def test_a_run_that_waits_for_its_approval_keeps_no_worker(team: Team, tmp_path: Path) -> None:
    """It is suspended: its process ends, and begins again with the answer, without asking anything twice."""
    run = team.asking("approved", tmp_path)
    assert sorted(team.prompts("approved")) == sorted(f"approved {number}" for number in range(SAMPLE_ROWS))
    assert team.run(run)["state"]["name"] == "Suspended"
    answer = {"decision": "run", "max_tokens_total": 100_000}
    assert team.api(f"flow_runs/{run}/resume", run_input=answer)["status"] == "ACCEPT"
    team.becomes(run, "COMPLETED", "FAILED")
    assert team.run(run)["state_type"] == "COMPLETED"
    assert sorted(team.prompts("approved")) == sorted(f"approved {number}" for number in range(3 * SAMPLE_ROWS))

    run = team.asking("declined", tmp_path)
    assert team.api(f"flow_runs/{run}/resume", run_input={"decision": "stop"})["status"] == "ACCEPT"
    team.becomes(run, "CANCELLED", "FAILED", "COMPLETED")
    assert "declined" in team.run(run)["state"]["message"] and len(team.prompts("declined")) == SAMPLE_ROWS


COMPOSE = yaml.safe_load((SHIPPED / "images" / "compose.yaml").read_text())["services"]
POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
REDIS = shutil.which("redis-server")
ON_DEBIAN = "needs `apt-get install postgresql redis-server` and `pip install 'distilflow[team]'`"


def setting(text: str, values: dict[str, str]) -> str:
    """A value of the Compose file with its variables, and the names of its services, filled in."""
    text = re.sub(r"\$\{(\w+)(?::-([^}]*)|:\?[^}]*)?\}", lambda match: values.get(match[1], match[2] or ""), text)
    for name, address in values.items():
        text = text.replace(f"//{name}", f"//{address}").replace(f"@{name}", f"@{address}")
    return text


@dataclass
class Parts:
    """PostgreSQL, Redis, and the parts of Prefect's server as the Compose file has them."""

    folder: Path
    values: dict[str, str]
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def environment(self, service: str) -> dict[str, str]:
        own = COMPOSE[service]["environment"].items()
        return os.environ | {name: setting(value, self.values) for name, value in own}

    def start(self, words: list[str], **options: Any) -> None:
        path = PROCESS_LOGS[f"part {' '.join(words[:4])}"] = self.folder / f"{len(self.processes)}.log"
        with path.open("wb") as log:
            self.processes.append(
                subprocess.Popen(words, cwd=self.folder, stdout=log, stderr=log, start_new_session=True, **options)
            )

    def stop(self) -> None:
        for process in reversed(self.processes):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
                try:
                    process.wait(2 * SHUTDOWN_TIMEOUT_S + 30)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        for name in [name for name in PROCESS_LOGS if name.startswith("part ")]:
            del PROCESS_LOGS[name]

    def ask(self, path: str, auth: tuple[str, str] | None) -> int:
        try:
            return httpx.get(f"http://{self.values['server:4200']}/api/{path}", auth=auth, timeout=30).status_code
        except httpx.TransportError:
            return 0


@pytest.fixture
def parts() -> Iterator[Parts]:
    if not (POSTGRES and REDIS and find_spec("prefect_redis")):
        skip_or_fail(ON_DEBIAN)
    ports = [reserve_port() for _ in range(3)]
    postgres, redis, server = (f"127.0.0.1:{port}" for port in ports)
    key = base64.urlsafe_b64encode(os.urandom(32)).decode()
    values = {"AUTH": "admin:of-the-test", "ENCRYPTION_KEY": key, "POSTGRES_PASSWORD": "trusted", "postgres": postgres}
    values |= {"redis:6379": redis, "server:4200": server}
    with tempfile.TemporaryDirectory(prefix="parts-") as folder:
        parts, data = Parts(Path(folder), values), Path(folder) / "data"
        data.mkdir()
        other: dict[str, Any] = {"user": "postgres"} if os.geteuid() == 0 else {}  # PostgreSQL refuses to run as root
        for each in (Path(folder), data):
            shutil.chown(each, **other) if other else None
        subprocess.run([POSTGRES / "initdb", "-D", data, "-U", "prefect", "-A", "trust", "-N"], **QUIETLY, **other)
        options = ["-p", str(ports[0]), "-k", folder, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        parts.start([str(POSTGRES / "postgres"), "-D", str(data), *options], **other)
        parts.start([REDIS, "--port", str(ports[1]), "--bind", "127.0.0.1", "--save", "", "--dir", folder])
        create = [POSTGRES / "createdb", "-h", "127.0.0.1", "-p", str(ports[0]), "-U", "prefect", "prefect"]
        try:
            wait_until(lambda: subprocess.run(create, capture_output=True).returncode == 0)
            yield parts
        finally:
            parts.stop()


QUIETLY: dict[str, Any] = {"check": True, "capture_output": True}


def test_the_parts_of_the_compose_file_work_together(parts: Parts) -> None:
    """A server in two parts on PostgreSQL and Redis; nobody gets in without the password; a worker makes a dataset."""
    port = parts.values["server:4200"].rpartition(":")[2]
    for service in ("server", "services"):
        words = [word.replace("0.0.0.0", "127.0.0.1") for word in COMPOSE[service]["command"]]
        more = ["--port", port] if service == "server" else []
        parts.start([sys.executable, "-m", *words, *more], env=parts.environment(service))
        wait_until(lambda: parts.ask("health", None) == 200, 120)
    assert parts.ask("flows/count", None) == 401 and parts.ask("admin/version", ("admin", "guessed")) == 401
    assert parts.ask("admin/version", ("admin", "of-the-test")) == 200

    client = parts.environment("deployments") | {"PREFECT_WORKER_QUERY_SECONDS": "2"}
    for more in ([], ["--check"]):
        subprocess.run([sys.executable, *COMPOSE["deployments"]["command"][1:], *more], env=client, cwd=ROOT, **QUIETLY)
    parts.start([sys.executable, *COMPOSE["worker-api"]["command"][1:]], env=client)
    words = ["deployment", "run", "text-generation/hosted", "--param", "limit=3", "--watch"]
    done = subprocess.run([sys.executable, "-m", "prefect", *words], env=client, capture_output=True, text=True)
    assert "'Completed'" in done.stdout, done.stdout + done.stderr
    assert list((parts.folder / "outputs/hosted/text_generation/default").glob("*.parquet"))

    def said(sql: str) -> str:
        words = ["-h", "127.0.0.1", "-p", parts.values["postgres"].rpartition(":")[2], "-U", "prefect", "-Atc", sql]
        return subprocess.run(["psql", *words], text=True, **QUIETLY).stdout.strip()

    assert said("SELECT count(*) FROM flow_run") == "1"
    assert said("SELECT count(*) FROM configuration WHERE key = 'ENCRYPTION_KEY'") == "0", "it is not beside the blocks"
    redis = socket.create_connection(("127.0.0.1", int(parts.values["redis:6379"].rpartition(":")[2])))
    redis.sendall(b"EXISTS events\r\n")
    assert redis.recv(100) == b":1\r\n", "the events go through it"
    redis.close()


def test_the_compose_file_and_the_laptops_server_agree() -> None:
    assert serve.SERVER_SETTINGS.items() <= COMPOSE["server"]["environment"].items()
    shown = COMPOSE["server"]["environment"]["PREFECT_UI_URL"]
    assert COMPOSE["server"]["environment"]["PREFECT_SERVER_UI_API_URL"] == f"{shown}/api"
    assert COMPOSE["server"]["ports"] == ["${BIND:-127.0.0.1}:4200:4200"], "on this machine only, unless told otherwise"


@pytest.mark.usefixtures("prefect_server")
def test_what_steps_made_is_in_s3_for_other_machines(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A run elsewhere, with a store of answers of its own, asks nothing that was made already."""
    if not (find_spec("prefect_aws") and find_spec("moto")):
        skip_or_fail("needs `pip install 'distilflow[dev]'`")
    import boto3
    import prefect_aws as aws
    from moto import server as moto

    s3 = moto.ThreadedMotoServer(port=0)
    s3.start()
    url = "http://{}:{}".format(*s3.get_host_and_port())
    keys = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=url, **keys)
    client.create_bucket(Bucket="results")
    credentials = aws.AwsCredentials(**keys, aws_client_parameters=aws.AwsClientParameters(endpoint_url=url))
    aws.S3Bucket(bucket_name="results", credentials=credentials).save("results")
    try:
        for machine in ("one", "other"):
            monkeypatch.setenv("DISTILFLOW_HOME", str(tmp_path / machine))
            store.close()
            with Pipeline(name="in S3") as pipeline:
                data = LoadDataFromDicts(data=[{"instruction": f"question {each}"} for each in range(30)])
                data >> TextGeneration(llm=OpenAILLM(model="m", base_url=wire.url, api_key="k"))  # type: ignore[arg-type]
            assert pipeline.run(result_storage="s3-bucket/results").summary.rows == 30
            assert len(wire.requests) == 30, machine
        objects = [each["Key"] for each in client.list_objects_v2(Bucket="results")["Contents"]]
        assert objects
        for name in objects:
            json.loads(client.get_object(Bucket="results", Key=name)["Body"].read())
    finally:
        s3.stop()
