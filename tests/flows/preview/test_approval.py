"""A run that asks before it spends: with a real server, the form answered over the API as the UI does."""

import json
import os
import pty
import sys
import threading
from typing import Any

import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL

from flows import Pipeline
from flows.preview import approval
from flows.preview.approval import SAMPLE_ROWS, ApprovalDeclined
from flows.reporting import events
from llms import BudgetExceeded, OpenAILLM, Price
from tasks import LoadDataFromDicts, TextGeneration
from tests.support.prefect_server import ask_server
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]
ROWS = 60
PRICE = {"input": 1_000_000, "output": 0}  # of the wire: nine tokens of input a request, so nine dollars


def pipeline(wire: Any, rows: int = ROWS, **fields: Any) -> Pipeline:
    llm = OpenAILLM(model="m", base_url=wire.url, api_key="k", **({"price": Price(**PRICE)} | fields))
    with Pipeline(name="asks first") as made:
        data = LoadDataFromDicts(data=[{"instruction": f"question {each}"} for each in range(rows)])
        data >> TextGeneration(llm=llm)
    return made


class Started:
    """A flow in a thread of its own, as far as it has come."""

    def __init__(self, function: Any, *arguments: Any, **keywords: Any) -> None:
        self.before = {run["id"] for run in paused()}
        self.result: Any = None

        def work() -> None:
            try:
                self.result = function(*arguments, **keywords)
            except BaseException as error:
                self.result = error

        self.thread = threading.Thread(target=work)
        self.thread.start()

    def asks(self) -> dict[str, Any]:
        """The run, once it waits with a form."""
        wait_until(lambda: bool(self._new()) or not self.thread.is_alive())
        assert self._new(), self.result
        wait_until(lambda: form(self._new()[0]) is not None)
        return self._new()[0]

    def _new(self) -> list[dict[str, Any]]:
        return [run for run in paused() if run["id"] not in self.before]

    def ends(self) -> Any:
        """What it returned or raised."""
        self.thread.join(60)
        assert not self.thread.is_alive()
        return self.result


def api(method: str, path: str, body: Any = None) -> Any:
    reply = ask_server(method, f"{PREFECT_API_URL.value()}/{path}", body)
    if reply.status_code == 404:
        return None
    reply.raise_for_status()
    return reply.json()


def paused() -> list[dict[str, Any]]:
    return api("POST", "flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["PAUSED"]}}}})


def form(run: dict[str, Any]) -> tuple[dict[str, Any], str] | None:
    """The schema and the description that the UI shows."""
    keys = run["state"]["state_details"]["run_input_keyset"]
    description = api("GET", f"flow_runs/{run['id']}/input/{keys['description']}")
    return description and (api("GET", f"flow_runs/{run['id']}/input/{keys['schema']}"), description)


def resume(run: dict[str, Any], **answer: Any) -> dict[str, Any]:
    return api("POST", f"flow_runs/{run['id']}/resume", {"run_input": answer})


def state(run: dict[str, Any]) -> dict[str, Any]:
    return api("GET", f"flow_runs/{run['id']}")["state"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approval, "POLL_INTERVAL_S", 0.2)


def prompts(wire: Any) -> list[str]:
    return [request.body["messages"][-1]["content"] for request in wire.requests]


def test_a_yes_with_a_budget(wire, tmp_path, monkeypatch):
    """The form shows the estimate; all is made under the budget given; the sample is not asked again."""
    told: list[str] = []
    monkeypatch.setattr(events, "emit_event", lambda event, *_, **__: told.append(event.rpartition(".")[2]))
    started = Started(pipeline(wire).run, approve=True, output=tmp_path / "out")
    run = started.asks()
    assert told[0] == "started" and told[-1] == "previewed" and "completed" not in told
    wanted = {"flow_run_id": {"any_": [run["id"]]}, "key": {"any_": ["asks-first-summary"]}}
    [summary] = api("POST", "artifacts/filter", {"artifacts": wanted})
    assert summary["data"].startswith("# asks first: the first rows") and "Approve the run" in summary["data"]
    assert len(wire.requests) == SAMPLE_ROWS and not (tmp_path / "out").exists()
    schema, description = form(run)
    assert f"{ROWS} rows" in description and "| `m` | 60 | 540 | 240 |" in description
    assert schema["required"] == ["decision"] and schema["properties"]["decision"]["enum"] == ["run", "stop"]
    assert schema["properties"]["max_cost"]["default"] == 680  # 540 dollars, and a quarter more
    assert schema["properties"]["max_tokens_total"]["default"] is None
    assert all(field["title"] and field["description"] for field in schema["properties"].values())

    assert resume(run)["status"] == "REJECT", "nobody said yes"
    assert resume(run, decision="run", max_cost=-1)["status"] == "REJECT"
    assert resume(run, decision="perhaps")["status"] == "REJECT"
    assert resume(run, decision="run", max_cost=600)["status"] == "ACCEPT"
    dataset = started.ends()
    assert dataset.summary.rows == ROWS and len(prompts(wire)) == len(set(prompts(wire))) == ROWS
    assert json.loads((tmp_path / "out" / "run.json").read_text())["budget"] == {"max_cost": 600}
    assert told[-1] == "completed"
    assert state(run)["type"] == "COMPLETED"


def test_the_budget_given_is_kept_to(wire):
    started = Started(pipeline(wire).run, approve=True, max_cost=1000)
    run = started.asks()
    assert form(run)[0]["properties"]["max_cost"]["default"] == 1000, "what was asked for is proposed"
    resume(run, decision="run", max_cost=180)
    assert isinstance(started.ends(), BudgetExceeded)
    assert len(wire.requests) == SAMPLE_ROWS + 20, "twenty requests are 180 dollars"
    assert state(run)["type"] == "FAILED"


def test_a_no(wire):
    started = Started(pipeline(wire).run, approve=True)
    run = started.asks()
    resume(run, decision="stop", max_cost=5)
    assert isinstance(declined := started.ends(), ApprovalDeclined) and "declined" in str(declined)
    assert len(wire.requests) == SAMPLE_ROWS
    assert state(run)["type"] == "CANCELLED" and "declined" in state(run)["message"]


def test_tokens_where_no_price_is_known(wire):
    started = Started(pipeline(wire, price=None).run, approve=True)
    run = started.asks()
    schema, description = form(run)
    assert "max_cost" not in schema["properties"]
    assert schema["properties"]["max_tokens_total"]["default"] == 980  # thirteen each, and a quarter more
    resume(run, decision="run", max_tokens_total=130)
    assert isinstance(started.ends(), BudgetExceeded) and len(wire.requests) == SAMPLE_ROWS + 10


def test_in_a_flow_of_ones_own_each_pipeline_asks(wire):
    @flow
    def mine() -> list[int]:
        first = pipeline(wire, 20).run(approve=True)
        second = pipeline(wire, 40).run(approve=True)
        return [first.summary.rows, second.summary.rows]

    started = Started(mine)
    run = started.asks()
    first = state(run)["id"]
    resume(run, decision="run")
    wait_until(lambda: state(run)["type"] == "PAUSED" and state(run)["id"] != first)
    wait_until(lambda: form(api("GET", f"flow_runs/{run['id']}")) is not None)
    assert len(wire.requests) == 20, "the second's first rows were the first's"
    resume(run, decision="run", max_cost=400)
    assert started.ends() == [20, 40] and len(wire.requests) == 40


def test_a_dry_run_asks_nobody(wire):
    assert pipeline(wire).run(approve=True, dry_run=3).summary.rows == 3 == len(wire.requests)


def test_at_a_terminal_it_is_asked_for_there(wire, monkeypatch, capsys):
    keyboard, screen = pty.openpty()
    monkeypatch.setattr(sys, "stdin", os.fdopen(screen))
    os.write(keyboard, b"run\nmany\nany\nrun\n180\nany\n")
    with pytest.raises(BudgetExceeded):
        pipeline(wire).run(approve=True)
    said = capsys.readouterr().err
    assert "Estimate for 60 rows" in said and "Dollars it may spend" in said and "`max_cost`" in said
    assert len(wire.requests) == SAMPLE_ROWS + 20
    os.write(keyboard, b"stop\n")
    with pytest.raises(ApprovalDeclined):
        pipeline(wire).run(approve=True)
    assert len(wire.requests) == SAMPLE_ROWS + 20
    os.close(keyboard)
