"""`python -m deployments`, against a real server of Prefect and with real workers."""

import ast
import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow.parquet as pq
import pytest
import yaml
from prefect.blocks.notifications import SlackWebhook
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.flows import load_flow_from_entrypoint
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.utilities.templating import apply_values

from deployments.__main__ import main
from deployments.local import worker
from deployments.local.processes import SHUTDOWN_TIMEOUT_S
from deployments.reconcile import blocks
from deployments.reconcile.files import SHIPPED
from flows.runtime.child import descendants
from tests.support.files import replace_in_file
from tests.support.prefect_server import PrefectServer, ask_server
from tests.support.waiting import PROCESS_LOGS, skip_or_fail, wait_until

ROOT = Path(__file__).parents[2]
POOLS = {pool["name"]: pool for pool in yaml.safe_load((SHIPPED / "pools.yaml").read_text())["pools"]}
FILES = [path for path in sorted(SHIPPED.glob("*.yaml")) if path.stem not in ("pools", "limits")]
DEPLOYMENTS = [
    pytest.param(deployment, id=f"{path.stem}/{deployment['name']}")
    for path in FILES
    for deployment in yaml.safe_load(path.read_text())["deployments"]
]
TEMPLATES = sorted((SHIPPED / "job_templates").glob("*.json"))


def shipped_flows() -> Iterator[str]:
    """The modules of `flows` that run a flow of theirs from the shell."""
    for path in sorted((ROOT / "flows").glob("*.py")):
        tree = ast.parse(path.read_text())
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        flows = {each.name for each in functions if any("flow" in ast.dump(mark) for mark in each.decorator_list)}
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        started = {
            argument.id
            for call in calls
            if isinstance(call.func, ast.Name) and call.func.id == "main"
            for argument in call.args
            if isinstance(argument, ast.Name)
        }
        if flows & started:
            yield path.stem


def test_every_shipped_flow_is_deployed():
    assert set(shipped_flows()) == {path.stem for path in FILES}, "one YAML per flow, named like it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_hosted_models_run_on_one_pool_and_local_engines_on_the_other(path: Path):
    said = yaml.safe_load(path.read_text())["deployments"]
    pools = {each["name"]: each["work_pool"]["name"] for each in said}
    assert pools and pools.items() <= {"hosted": "api", "local": "gpu"}.items()
    assert not any(schedule["active"] for each in said for schedule in each.get("schedules", []))


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_every_deployment_names_what_exists(deployment: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    flow = load_flow_from_entrypoint(deployment["entrypoint"])
    flow.validate_parameters(deployment.get("parameters", {}))
    pool = deployment["work_pool"]
    assert pool.get("work_queue_name", "default") in [each["name"] for each in POOLS[pool["name"]]["queues"]]
    assert "distilflow" in deployment["tags"], "the automations look for it"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_base_job_template_uses_what_it_declares(path: Path):
    template = json.loads(path.read_text())
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == template["variables"]["properties"].keys()


def test_containers_get_their_gpus():
    docker, kubernetes = (
        apply_values(template["job_configuration"], {**defaults(template), "gpus": 2})
        for template in (json.loads((SHIPPED / f"job_templates/{name}-gpu.json").read_text()) for name in CONTAINERS)
    )
    [request] = docker["container_create_kwargs"]["device_requests"]
    assert request == {"driver": "nvidia", "count": 2, "capabilities": [["gpu"]]}
    pod = kubernetes["job_manifest"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"


def filled(kind: str, **given: Any) -> Any:
    """A run's job, as the worker of the real package makes it of our template."""
    if not find_spec(f"prefect_{kind}"):
        skip_or_fail(f"needs `pip install 'distilflow[{kind}]'`")
    module = import_module(f"prefect_{kind}.worker")
    template = json.loads((SHIPPED / f"job_templates/{kind}-gpu.json").read_text())
    values = defaults(template) | given
    job = getattr(module, f"{kind.title()}WorkerJobConfiguration")
    made = asyncio.run(job.from_template_and_values(template, given))
    made.prepare_for_flow_run(FlowRun(id=uuid4(), flow_id=uuid4(), name="a run"))
    assert made.env.items() >= values["env"].items()
    return made


@pytest.mark.slow
def test_docker_s_worker_understands_our_template(api):
    job = filled("docker", gpus=2)
    assert job.volumes == ["distilflow:/data"] and job.image == "distilflow-gpu:latest"
    assert job.container_create_kwargs["device_requests"][0]["count"] == 2
    assert job.container_create_kwargs["shm_size"] == "2g"


@pytest.mark.slow
def test_kubernetes_worker_understands_our_template(api):
    """A run may write to its volumes, though it is not root; SQLite is on none that other machines share."""
    job = filled("kubernetes", gpus=2)
    pod = job.job_manifest["spec"]["template"]["spec"]
    assert pod["securityContext"] == {"fsGroup": 1000}
    [container] = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 2
    env = {each["name"]: each["value"] for each in container["env"]}
    mounted = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert "emptyDir" in volumes[mounted[env["DISTILFLOW_HOME"]]]
    assert "persistentVolumeClaim" in volumes[mounted[str(Path(env["PREFECT_LOCAL_STORAGE_PATH"]).parent)]]


CONTAINERS = ("docker", "kubernetes")


def defaults(template: dict[str, Any]) -> dict[str, Any]:
    return {name: each["default"] for name, each in template["variables"]["properties"].items() if "default" in each}


@pytest.fixture(scope="module", autouse=True)
def only_what_is_shipped():
    """The models that other tests define in this process are not there."""
    shipped = [model for model in blocks.models() if model.__module__.startswith("llms.")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "models", lambda: shipped)
        yield


@pytest.fixture
def api(server: PrefectServer) -> Iterator[Callable[..., Any]]:
    """Says what Prefect's API holds; it is the API in force."""

    def ask(path: str, method: str = "GET", body: Any = None) -> Any:
        reply = ask_server(method, f"{server.url}/{path}", body)
        reply.raise_for_status()
        return reply.json() if reply.content else None

    with temporary_settings({PREFECT_API_URL: server.url}):
        yield ask


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[str]]]:
    """Runs `python -m deployments` here: its exit status and its lines."""

    def run(*words: object) -> tuple[int, list[str]]:
        capsys.readouterr()
        status = main([str(word) for word in words])
        output = capsys.readouterr()
        return status, (output.out + output.err).splitlines()

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped files, to edit."""
    return Path(
        shutil.copytree(SHIPPED, tmp_path / "deployments", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    )


@pytest.fixture(scope="module")
def first(server: PrefectServer) -> list[str]:
    """What the first `python -m deployments` says, in a shell of its own."""
    return shell(server).splitlines()


def shell(server: PrefectServer, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "deployments", *words],
        cwd=ROOT,
        env=os.environ | {"PREFECT_API_URL": server.url},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def changed(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith("unchanged")]


@pytest.mark.slow
class TestApply:
    def test_the_first_run_makes_all_and_the_second_changes_nothing(self, server, first):
        made = [line.split() for line in first]
        assert ["created", "work", "pool", "gpu"] in made
        assert ["created", "work", "queue", "api/urgent"] in made
        assert ["created", "limit", "openai"] in made
        assert ["created", "deployment", "text-generation/hosted"] in made
        assert any(line.startswith("created    automation  distilflow failed run") for line in first)
        again = shell(server).splitlines()
        assert len(again) == len(first) and not changed(again)
        assert not changed(shell(server, "--check").splitlines())

    def test_every_model_is_a_form_with_a_description_a_link_and_a_logo(self, api, first):
        models = blocks.models()
        assert len(models) >= 15
        for model in models:
            there = api(f"block_types/slug/{model.get_block_type_slug()}")
            assert there["description"] and there["documentation_url"] and there["logo_url"], model
            schemas = api("block_schemas/filter", "POST", {"block_schemas": {"block_type_id": {"any_": [there["id"]]}}})
            assert all(field.get("description") for field in schemas[0]["fields"]["properties"].values()), model
            if "api_key" in schemas[0]["fields"]["properties"]:
                assert "api_key" in schemas[0]["fields"]["secret_fields"], model

    def test_the_nightly_schedule_is_there_and_off(self, api, first):
        [schedule] = api("deployments/name/text-generation/hosted")["schedules"]
        assert schedule["slug"] == "nightly" and schedule["active"] is False
        assert schedule["schedule"] == {"cron": "0 3 * * *", "timezone": "UTC", "day_or": True}

    def test_queues_have_priorities(self, api, first):
        for pool in ("api", "gpu"):
            queues = {each["name"]: each["priority"] for each in api(f"work_pools/{pool}/queues/filter", "POST", {})}
            assert queues == {"urgent": 1, "default": 2, "bulk": 3}

    def test_an_edited_file_is_seen_by_check_and_then_applied(self, api, first, said, folder):
        replace_in_file(
            folder / "text_generation.yaml", "parameters: {output: ", "parameters: {limit: 5, output: ", times=1
        )
        status, lines = said("--check", "--from", folder)
        assert status == 1
        assert [line.split()[:3] for line in changed(lines)] == [["differs", "deployment", "text-generation/hosted"]]
        assert "parameters.limit: None → 5" in changed(lines)[0]
        assert "limit" not in api("deployments/name/text-generation/hosted")["parameters"], "it only looked"
        status, lines = said("--from", folder)
        assert status == 0 and changed(lines)[0].startswith("updated    deployment  text-generation/hosted")
        assert api("deployments/name/text-generation/hosted")["parameters"]["limit"] == 5
        assert said("--check", "--from", folder)[0] == 0
        said("text_generation")
        assert said("--check")[0] == 0

    def test_what_people_added_in_the_ui_stays(self, api, first, said, folder):
        there = api("deployments/name/text-generation/hosted")
        own = {"schedule": {"interval": 3600}, "active": True}
        api(f"deployments/{there['id']}/schedules", "POST", [own])
        api(f"deployments/{there['id']}", "PATCH", {"paused": True})
        assert said("--check", "text-generation")[0] == 0
        replace_in_file(folder / "text_generation.yaml", "active: false", "active: true")
        assert said("--from", folder, "text_generation")[0] == 0
        there = api("deployments/name/text-generation/hosted")
        assert {each["slug"]: each["active"] for each in there["schedules"]} == {"nightly": True, None: True}
        assert there["paused"]
        [theirs] = [each for each in there["schedules"] if not each["slug"]]
        api(f"deployments/{there['id']}/schedules/{theirs['id']}", "DELETE")
        api(f"deployments/{there['id']}", "PATCH", {"paused": False})
        said("text_generation")

    def test_a_schedule_that_the_file_no_longer_has_is_gone(self, api, first, said, folder):
        line = '      - {slug: nightly, cron: "0 3 * * *", timezone: UTC, active: false}\n'
        text = (folder / "text_generation.yaml").read_text().replace("    schedules:\n" + line, "", 1)
        assert "0 3" not in text
        (folder / "text_generation.yaml").write_text(text)
        there = api("deployments/name/text-generation/hosted")
        api(f"deployments/{there['id']}/schedules", "POST", [{"schedule": {"interval": 3600}, "active": False}])
        status, lines = said("--check", "--from", folder, "text_generation")
        assert status == 1 and "schedules: [{'slug': 'nightly', 'active': False}] → []" in changed(lines)[0]
        assert said("--from", folder, "text_generation")[0] == 0
        assert [each["slug"] for each in api("deployments/name/text-generation/hosted")["schedules"]] == [None]
        assert said("--check", "--from", folder, "text_generation")[0] == 0
        [theirs] = api("deployments/name/text-generation/hosted")["schedules"]
        api(f"deployments/{there['id']}/schedules/{theirs['id']}", "DELETE")
        said("text_generation")

    def test_a_limit_edited_in_the_file_or_in_the_ui(self, api, first, said, folder):
        replace_in_file(folder / "limits.yaml", "name: gpu-server, limit: 64", "name: gpu-server, limit: 32")
        assert said("--from", folder, "limits")[1][-1] == "updated    limit       gpu-server  (limit: 64 → 32)"
        assert api("v2/concurrency_limits/gpu-server")["limit"] == 32
        api("v2/concurrency_limits/gpu-server", "PATCH", {"limit": 16, "active": False})
        status, lines = said("limits", "--check")
        assert status == 1 and lines[-1] == "differs    limit       gpu-server  (limit: 16 → 64)"
        said("limits")
        there = api("v2/concurrency_limits/gpu-server")
        assert there["limit"] == 64 and there["active"] is False, "the file does not say whether it is on"

    def test_an_automation_tells_somebody_once_there_is_a_block(self, api, first, said):
        assert "tells nobody yet: there is no block `slack-webhook/distilflow`" in said("failed-run")[1][0]
        SlackWebhook(url="https://hooks.example/T/B/x").save("distilflow")  # type: ignore[call-arg]
        [line] = said("failed-run")[1]
        assert line.startswith("updated    automation") and "nobody" not in line
        [there] = api("automations/filter", "POST", {"automations": {"name": {"any_": ["distilflow failed run"]}}})
        assert there["actions"][0]["type"] == "send-notification"
        assert said("failed-run")[1][0].startswith("unchanged")

    @pytest.mark.parametrize("kind", CONTAINERS)
    def test_a_pool_of_containers(self, api, said, folder, kind):
        path = folder / "pools.yaml"
        pool = {"name": f"gpu-{kind}", "type": kind, "base_job_template": f"job_templates/{kind}-gpu.json"}
        path.write_text(yaml.safe_dump({"pools": [pool]}))
        assert said("--from", folder, "pools")[1] == [f"created    work pool   gpu-{kind}"]
        assert said("--from", folder, "pools", "--check")[0] == 0
        path.write_text(yaml.safe_dump({"pools": [pool | {"type": "process"}]}))
        status, lines = said("--from", folder, "pools")
        assert status == 2 and f"`prefect work-pool delete gpu-{kind}`" in lines[-1]


@pytest.mark.slow
class TestMistakes:
    @pytest.mark.parametrize(
        ("old", "new", "why"),
        [
            ("tags:", "tag:", "`hosted` has no `tag`: did you mean `tags`?"),
            ("slug: nightly, ", "", "every schedule has a `slug`"),
            ("parameters: {output:", "parameters: {limit: many, output:", "limit"),
            ("parameters: {output:", "parameters: {ouput:", "ouput"),
            (
                "flows.text_generation.text_generation",
                "flows.text_generation.answers",
                "`flows.text_generation.answers`",
            ),
            ("{name: api}", "{name: apis}", "`python -m deployments pools`"),
            ("parameters: {output:", "parameters: {llm: openai-llm/none, output:", "no saved block `openai-llm/none`"),
            (
                "parameters: {output:",
                "parameters: {system_prompt: '{{ prefect.blocks.secret.key }}', output:",
                "name the block instead",
            ),
            ("deployments:", "deployments: [", "cannot be read"),
        ],
    )
    def test_a_file_that_cannot_work(self, api, first, said, folder, old, new, why):
        replace_in_file(folder / "text_generation.yaml", old, new, times=1)
        status, lines = said("--from", folder, "text_generation")
        assert status == 2 and why in "\n".join(lines), lines
        assert lines[-1].startswith("error: ") or "error: " in "\n".join(lines)

    def test_a_name_that_is_not_there(self, api, said):
        assert said("text_generatoin") == (
            2,
            [f"error: `{SHIPPED}` holds no `text_generatoin`: did you mean `text_generation`?"],
        )

    def test_no_api(self, said):
        with temporary_settings({PREFECT_API_URL: None}):
            status, lines = said()
        assert status == 2 and "`prefect config set PREFECT_API_URL=http://127.0.0.1:4200/api`" in lines[0]
        with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
            status, lines = said()
        assert status == 2 and "does not answer" in lines[0] and "`python -m deployments serve`" in lines[0]


MINE = """
import os, time
from pathlib import Path
from prefect import flow

@flow
def mine(number: int):
    seen = os.environ["CUDA_VISIBLE_DEVICES"]
    Path(f"began-{number}").write_text(seen)
    late = time.monotonic() + 200
    while len(list(Path(".").glob("began-*"))) < 2 and time.monotonic() < late:
        time.sleep(0.1)
    Path(f"sees-{number}").write_text(seen)
    Path(f"sees-{number}").rename(f"saw-{number}")
"""


@pytest.mark.slow
class TestWorker:
    def test_a_run_from_the_shell_ends_on_a_worker_with_a_dataset_on_disk(self, server, first, api, tmp_path):
        with at_work(server, tmp_path, "api"):
            done = subprocess.run(
                [sys.executable, "-m", "prefect", "deployment", "run", "text-generation/hosted"]
                + ["--param", "limit=5", "--watch"],
                env=os.environ | {"PREFECT_API_URL": server.url},
                capture_output=True,
                text=True,
                timeout=300,
            )
        assert done.returncode == 0 and "Completed" in done.stdout, done.stdout + done.stderr
        assert pq.read_table(tmp_path / "outputs/hosted/text_generation/default").num_rows == 5

    @pytest.mark.timeout(600)
    def test_each_gpu_has_a_worker_and_each_run_a_gpu(self, server, first, api, said, tmp_path, monkeypatch):
        (tmp_path / "mine.py").write_text(MINE)
        own = {"name": "own", "entrypoint": "mine.py:mine", "work_pool": {"name": "gpu"}}
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"deployments": [own]}))
        monkeypatch.chdir(tmp_path)
        assert said("--from", tmp_path, "mine")[1] == ["created    deployment  mine/own"]
        with at_work(server, tmp_path, "gpu", CUDA_VISIBLE_DEVICES="2,5"):
            for number in range(2):
                run_deployment("mine/own", parameters={"number": number}, timeout=0)
            wait_until(lambda: len(list(tmp_path.glob("saw-*"))) == 2, 240)
        assert {path.read_text() for path in tmp_path.glob("saw-*")} == {"2", "5"}

    def test_gpus_are_grouped(self, monkeypatch):
        class Api:
            def get(self, *_: object, **__: object) -> dict[str, str]:
                return {"type": "process"}

        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4")
        workers = worker.workers_of(Api(), "gpu", gpus_per_run=2)  # type: ignore[arg-type]
        assert [each.env["CUDA_VISIBLE_DEVICES"] for each in workers] == ["0,1", "2,3"]
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        [alone] = worker.workers_of(Api(), "gpu")  # type: ignore[arg-type]
        assert alone.limit == 1 and not alone.env


class at_work:
    """`python -m deployments worker` in a folder, until the `with` ends; it leaves nothing behind."""

    def __init__(self, server: PrefectServer, folder: Path, pool: str, **environment: str) -> None:
        PROCESS_LOGS["worker"] = folder / "worker.log"
        with PROCESS_LOGS["worker"].open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "deployments", "worker", pool],
                cwd=folder,
                env=os.environ | {"PREFECT_API_URL": server.url, "PREFECT_WORKER_QUERY_SECONDS": "2"} | environment,
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        started = descendants(self.process.pid)
        self.process.send_signal(signal.SIGINT)
        try:
            status = self.process.wait(2 * SHUTDOWN_TIMEOUT_S + 30)
        except subprocess.TimeoutExpired:
            for pid in [*started, self.process.pid]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            status = self.process.wait()
        assert status == 0, PROCESS_LOGS.pop("worker").read_text()
        assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]
