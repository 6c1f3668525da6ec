"""Batches in other processes: Dask and Ray on real local clusters, and what cannot be counted across them."""

import os
import pickle
import subprocess
import sys
from collections import Counter

import cloudpickle
import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL
from prefect.task_runners import ProcessPoolTaskRunner

from flows import ConfigurationError, Pipeline
from flows.execution.step_task import StepTask, StopEvent
from flows.results import digest_rows
from llms import OpenAILLM
from tasks import Filter, LoadDataFromDicts, TextGeneration, route
from tasks.dag import Route
from tasks.typing import BatchResult, Failure, Row, RowLineage

pytestmark = pytest.mark.usefixtures("prefect_server")

SCRIPT = """
import os
import sys
import time
from pathlib import Path

from flows import Pipeline
from llms import OpenAILLM
from llms.clients import event_loop
from tasks import Filter, GroupColumns, LoadDataFromDicts, TextGeneration, route, step


@step(inputs=["grouped_generation"], outputs=["process", "clients"])
def Where(rows, met: str):
    (Path(met) / f"{os.getpid()}").touch()
    deadline = time.monotonic() + 120
    while len(list(Path(met).iterdir())) < 2 and time.monotonic() < deadline:  # until another process has a batch, too
        time.sleep(0.05)
    for row in rows:
        row["process"], row["clients"] = os.getpid(), len(event_loop._loop_thread().clients)
    yield rows


def runner(name):
    if name == "dask":
        from prefect_dask import DaskTaskRunner

        return DaskTaskRunner(cluster_kwargs={"n_workers": 2, "threads_per_worker": 2, "dashboard_address": None})
    from prefect_ray import RayTaskRunner

    return RayTaskRunner(init_kwargs={"num_cpus": 2, "include_dashboard": False})


if __name__ == "__main__":
    name, url, output, met = sys.argv[1:]
    with Pipeline(name="elsewhere") as pipeline:
        data = LoadDataFromDicts(data=[{"instruction": f"row {number}"} for number in range(24)], batch_size=4)
        llm = OpenAILLM(model="m", base_url=url, api_key="key")
        a, b = (TextGeneration(name=each, llm=llm, template="{{ instruction }} " + each) for each in "ab")
        data >> route(lambda row: ["a", "b"]) >> [a, b] >> GroupColumns(columns=["generation"]) >> Where(met=met)
    dataset = pipeline.run(output=output, task_runner=runner(name))
    rows = dataset["default"]["train"]
    assert rows["instruction"] == [f"row {number}" for number in range(24)]
    assert rows["grouped_generation"] == [[f"row {number} a!", f"row {number} b!"] for number in range(24)]
    assert os.getpid() not in rows["process"] and len(set(rows["process"])) >= 2, set(rows["process"])
    assert set(rows["clients"]) <= {0, 1}  # one for all the batches of a process
    print(dataset.summary.steps["a"].models["m"].requests, dataset.summary.steps["a"].models["m"].cached)
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["dask", "ray"])
@pytest.mark.slow
def test_batches_run_in_the_processes_of_a_cluster(name, wire, tmp_path):
    pytest.importorskip(f"prefect_{name}", reason=f"`pip install 'distilflow[{name}]'`")
    wire.answer = lambda request: wire.Reply(wire.completion(f"{request.body['messages'][-1]['content']}!"))
    script = tmp_path / "elsewhere.py"
    script.write_text(SCRIPT)
    env = os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value()}
    (met := tmp_path / "met").mkdir()
    command = [sys.executable, str(script), name, wire.url, str(tmp_path / "out"), str(met)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    assert done.stdout.split()[-2:] == ["24", "0"]
    asked = Counter(request.body["messages"][-1]["content"] for request in wire.requests)
    assert len(asked) == 48 and set(asked.values()) == {1}


def test_step_tasks_pickle_small_and_equal():
    llm = OpenAILLM(model="m", base_url="http://localhost:1", api_key="key")
    ways = {"data": Route(route(lambda row: "text").selector, ("text", "other"))}
    step_task = StepTask(TextGeneration(name="text", llm=llm), ["data"], False, ways, StopEvent())
    step_task.stop.set()
    sent = cloudpickle.dumps(step_task.step.task(step_task, **step_task.task_options))
    assert len(sent) < 20_000
    task = pickle.loads(sent)
    batch = BatchResult([Row({"instruction": "a"}, RowLineage("data[0]", (0, 0)))], digest="x")
    assert task.cache_key_fn(None, {"batches": (batch,)}) == step_task.task_options["cache_key_fn"](
        None, {"batches": (batch,)}
    )
    there = pickle.loads(cloudpickle.dumps(step_task))
    assert not there.stop.is_set() and there.step == step_task.step and there.cache_identity == step_task.cache_identity


def test_batch_results_pickle():
    rows = [Row({"a": 1}, RowLineage("data[0]", (0, 0))), Row({"b": [2]})]
    outcome = BatchResult(rows, [Failure("s", "E", "m", rows[0])], rows_in=3, digest=digest_rows(rows))
    back = pickle.loads(pickle.dumps(outcome))
    assert (back.rows, back.failures, back.rows_in, back.digest) == (rows, outcome.failures, 3, outcome.digest)
    assert [row.id for row in back.rows] == [(0, 0), None] and digest_rows(back.rows) == outcome.digest


def simple(**fields):
    with Pipeline(name="simple") as pipeline:
        LoadDataFromDicts(data=[{"instruction": "a"}], **fields) >> Filter(column="instruction")
    return pipeline


def test_a_budget_is_refused_with_a_distributed_runner():
    with pytest.raises(
        ConfigurationError, match="`max_tokens_total` is counted in one process, and `ProcessPoolTaskRunner`"
    ):
        simple().run(task_runner=ProcessPoolTaskRunner(max_workers=1), max_tokens_total=100)


def test_inside_a_flow_its_task_runner_is_used():
    @flow
    def mine():
        return simple().run(task_runner=ProcessPoolTaskRunner(max_workers=1))

    with pytest.raises(ConfigurationError, match="its own `task_runner` is used: say it there"):
        mine()
