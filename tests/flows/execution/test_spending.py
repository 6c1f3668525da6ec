"""What a run has spent: the record says what the provider counts, whichever way it ends, however often it is tried."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.states import Scheduled

from flows import Pipeline
from flows.dataset.distiset import Distiset
from flows.errors import RunFailed
from flows.pipeline.flow import flow as dataset_flow
from llms import BudgetExceeded, Fatal, OpenAILLM, Price
from llms.limits.usage import UsageCollector
from tasks import LoadDataFromDicts, TextGeneration, step
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("prefect_server")
PRICE = {"input": 1_000_000, "output": 0}  # of the wire: nine tokens of input a request, so nine dollars


@step()
def refuse(rows):
    """Likes none."""
    raise ValueError("no")


def make(wire, rows=40, batch_size=5, **fields) -> Pipeline:
    llm = OpenAILLM(model="m", base_url=wire.url, api_key="k", price=Price(**PRICE), **fields)
    with Pipeline(name="spending") as pipeline:
        data = LoadDataFromDicts(data=[{"instruction": f"q {each}"} for each in range(rows)], batch_size=batch_size)
        data >> TextGeneration(llm=llm)
    return pipeline


class Meter:
    """Counts what a provider has answered, and would bill."""

    def __init__(self, wire, status: dict[int, int] | None = None) -> None:
        self.asked, self.answered, self.status, self.wire = 0, 0, status or {}, wire
        wire.answer = self.answer

    def answer(self, request):
        with self.wire.lock:
            self.asked += 1
            status = self.status.get(self.asked, 200)
            self.answered += status == 200
        body = {"error": {"message": "invalid key"}} if status != 200 else None
        return self.wire.Reply(body, status=status)


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())["summary"]


def check(summary: dict, answered: int, requests: int | None = None) -> None:
    assert (summary["input_tokens"], summary["output_tokens"]) == (9 * answered, 4 * answered)
    assert summary["cost"] == 9 * answered
    (used,) = summary["steps"]["text_generation"]["models"].values()
    assert (used["input_tokens"], used["output_tokens"], used["cost"]) == (9 * answered, 4 * answered, 9 * answered)
    assert requests is None or used["requests"] == requests


def check_requests(used: dict, wire) -> None:
    """Those that were cancelled may not have arrived yet."""
    assert used["requests"] - used["unanswered"] <= len(wire.requests) <= used["requests"]


def test_of_a_run_that_completes(wire, tmp_path):
    meter = Meter(wire)
    make(wire).run(output=tmp_path / "out")
    check(summary_of(tmp_path / "out"), 40, 40)
    assert meter.answered == 40
    make(wire).run(output=tmp_path / "out")  # again, from what is stored
    again = summary_of(tmp_path / "out")
    assert again["cost"] == again["input_tokens"] == 0
    assert again["steps"]["text_generation"]["models"]["m"]["cached"] == 40


def test_of_a_run_whose_budget_is_spent(wire, tmp_path):
    meter = Meter(wire)
    with pytest.raises(BudgetExceeded):
        make(wire).run(output=tmp_path / "out", max_tokens_total=300)
    check(summary_of(tmp_path / "out.partial"), meter.answered, len(wire.requests))
    assert 250 < 13 * meter.answered <= 300


def test_of_a_run_that_cannot_go_on(wire, tmp_path):
    meter = Meter(wire, {20: 401})
    with pytest.raises(Fatal, match="invalid key"):
        make(wire, max_concurrency=4).run(output=tmp_path / "out")
    summary = summary_of(tmp_path / "out.partial")
    assert 9 * (meter.answered - 4) <= summary["input_tokens"] <= 9 * meter.answered
    used = summary["steps"]["text_generation"]["models"]["m"]
    assert used["input_tokens"] // 9 + used["unanswered"] + 1 == used["requests"]
    check_requests(used, wire)


def test_of_a_run_in_which_too_many_rows_fail(wire, tmp_path):
    meter = Meter(wire)
    pipeline = make(wire)
    with pipeline:
        pipeline.steps[-1] >> refuse()
    with pytest.raises(RunFailed):
        pipeline.run(output=tmp_path / "out")
    summary = summary_of(tmp_path / "out.partial")
    used = summary["steps"]["text_generation"]["models"]["m"]
    assert used["input_tokens"] // 9 + used["unanswered"] == used["requests"]
    check_requests(used, wire)
    assert summary["input_tokens"] == used["input_tokens"] <= 9 * meter.answered


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_of_a_run_that_is_interrupted(wire, tmp_path, sent):
    """Slow answers behind, quick ones before: what came is counted, what was on its way is told."""
    wire.answer = lambda request: wire.Reply(delay=30 if int(request.body["messages"][-1]["content"][2:]) >= 20 else 0)
    script = f"""
from flows import Pipeline
from llms import OpenAILLM, Price
from tasks import LoadDataFromDicts, TextGeneration

with Pipeline(name="spending") as pipeline:
    data = LoadDataFromDicts(data=[{{"instruction": f"q {{each}}"}} for each in range(40)], batch_size=5)
    data >> TextGeneration(llm=OpenAILLM(model="m", base_url={wire.url!r}, api_key="k", price=Price(**{PRICE})))
pipeline.run(output={str(tmp_path / "out")!r})
"""
    process = subprocess.Popen([sys.executable, "-c", script], env={**os.environ}, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: len(wire.requests) == 40)
        wait_until(lambda: wire.in_flight == 20)
        process.send_signal(sent)
        process.wait(60)
    finally:
        process.kill()
    summary = summary_of(tmp_path / "out.partial")
    check(summary, 20, 40)
    assert summary["steps"]["text_generation"]["models"]["m"]["unanswered"] == 20


def test_spending_is_told_with_every_answer_not_with_every_batch(wire, tmp_path):
    """One batch, whose last answer is awaited: what the others cost is known by then."""
    go, seen = threading.Event(), []

    def answer(request):
        if request.body["messages"][-1]["content"] == "q 9":
            go.wait(60)
        return wire.Reply()

    wire.answer = answer
    with UsageCollector().activate() as usage:

        def release() -> None:
            wait_until(lambda: usage.totals.get(("text_generation", "m")) and usage.by_model["m"].requests == 9)
            seen.append(usage.by_model["m"].cost)
            go.set()

        watcher = threading.Thread(target=release)
        watcher.start()
        make(wire, rows=10, batch_size=10).run(output=tmp_path / "out")
        watcher.join()
    assert seen == [81.0]


def test_a_step_that_asks_a_model_by_itself_is_counted(wire, tmp_path):
    llm = OpenAILLM(model="m", base_url=wire.url, api_key="k", price=Price(**PRICE))

    @step()
    def ask_twice(rows):
        """Asks a model."""
        for row in rows:
            for text in ("a", "b"):
                llm.generate_outputs([[{"role": "user", "content": f"{text} {row['instruction']}"}]])
        yield rows

    with Pipeline(name="spending") as pipeline:
        LoadDataFromDicts(data=[{"instruction": f"q {each}"} for each in range(5)]) >> ask_twice()
    pipeline.run(output=tmp_path / "out")
    summary = summary_of(tmp_path / "out")
    assert summary["cost"] == 90 == summary["steps"]["ask_twice"]["models"]["m"]["cost"]


class TestAttempts:
    """A flow run that is tried again spends what is left."""

    def run(self, wire, folder, rows=40, retries=0, **settings) -> tuple[list, Distiset | BaseException]:
        runs = []

        @flow(name="attempts", retries=retries, persist_result=False)
        def tried() -> Distiset:
            from prefect.context import FlowRunContext

            runs.append(FlowRunContext.get().flow_run)
            return make(wire, rows).run(output=folder, **settings)

        try:
            return runs, tried()
        except Exception as error:
            return runs, error

    def test_a_run_whose_budget_is_spent_is_not_tried_again(self, wire, tmp_path):
        runs, error = self.run(wire, tmp_path / "out", retries=2, max_tokens_total=300)
        assert isinstance(error, BudgetExceeded) and len(runs) == 1
        assert len(wire.requests) * 13 <= 300

    def test_what_an_attempt_has_spent_is_not_spent_again(self, wire, tmp_path):
        """The first one fails for another reason; a second has what is left."""
        meter = Meter(wire, {11: 401})
        runs, error = self.run(wire, tmp_path / "out", retries=1, max_cost=180)
        assert len(runs) == 2 and isinstance(error, BudgetExceeded)
        summary = summary_of(tmp_path / "out.partial")
        assert summary["attempts"] == 2 and summary["cost"] <= 180
        used = summary["steps"]["text_generation"]["models"]["m"]
        assert used["cost"] == summary["cost"]
        check_requests(used, wire)
        assert 9 * (meter.answered - used["unanswered"]) <= summary["cost"] <= 9 * meter.answered
        assert "spent in two attempts" in str(error)

    def test_a_dataset_made_in_two_attempts_tells_what_both_took(self, wire, tmp_path):
        meter = Meter(wire, {25: 401})
        runs, dataset = self.run(wire, tmp_path / "out", retries=1)
        assert len(runs) == 2 and isinstance(dataset, Distiset)
        summary = dataset.summary
        assert summary.attempts == 2 and summary.rows == 40
        used = summary.steps["text_generation"].models["m"]
        assert used.cost == summary.cost
        check_requests(used.model_dump(), wire)
        assert used.input_tokens == 9 * (used.requests - 1 - used.unanswered) <= 9 * meter.answered
        assert str(summary).endswith("in two attempts")

    def test_retried_by_hand_it_goes_on_with_what_is_left(self, wire, tmp_path):
        """As *Retry* in the UI does it: the run is scheduled again, and a process starts it."""
        from prefect.flow_engine import run_flow

        @dataset_flow
        def by_hand() -> Distiset:
            return make(wire).run(output=tmp_path / "out", max_tokens_total=300)

        with pytest.raises(BudgetExceeded):
            by_hand()
        first = len(wire.requests)
        with get_client(sync_client=True) as client:
            (run,) = client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=[by_hand.name])))
            assert run.state and run.state.name == "Budget spent"
            client.set_flow_run_state(run.id, Scheduled(name="AwaitingRetry"), force=True)
            run = client.read_flow_run(run.id)
        with pytest.raises(BudgetExceeded, match="spent in two attempts"):
            run_flow(by_hand, flow_run=run)
        assert len(wire.requests) == first

    def test_two_pipelines_of_one_flow_have_each_its_own(self, wire, tmp_path):
        @flow(persist_result=False)
        def both() -> None:
            make(wire, 10).run(output=tmp_path / "a", max_tokens_total=200)
            make(wire, 20).run(output=tmp_path / "b", max_tokens_total=200)

        both()
        assert summary_of(tmp_path / "a")["input_tokens"] == summary_of(tmp_path / "b")["input_tokens"] == 90
        assert summary_of(tmp_path / "b")["attempts"] == 1
