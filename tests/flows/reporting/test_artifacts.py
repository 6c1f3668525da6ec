"""What Prefect's UI and its automations see of a run: artifacts, the state it ends in, and events."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import flow
from prefect.assets import Asset
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.events import emit_event
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Failed, Running

from deployments.__main__ import main
from deployments.reconcile.files import SHIPPED
from flows import Distiset, Pipeline, RunFailed
from flows.reporting import assets
from flows.reporting.artifacts import MAX_TEXT_CHARS, StepProgressArtifacts, artifact_key
from flows.reporting.events import RunEvents, spend_thresholds
from flows.reporting.progress import RunSnapshot, StepSnapshot
from flows.text_generation import text_generation
from llms import AsyncLLM, BudgetExceeded, OpenAILLM, Price, Rejected
from llms.typing import ChatType, GenerateOutput, Usage
from tasks import LoadDataFromDicts, LoadDataFromFiles, LoadDataFromHub, TextGeneration
from tests.support.prefect_server import PrefectServer, ask_server
from tests.support.waiting import wait_until


class Polly(AsyncLLM):
    """Says it again, for a cent; not what is too loud."""

    @property
    def model_name(self) -> str:
        return "parrot"

    def cost(self, usage: Usage) -> float:
        return 0.01 * usage.input_tokens

    async def agenerate(self, input: ChatType, num_generations: int = 1) -> GenerateOutput:
        text = str(input[-1]["content"])
        if "!" in text:
            raise Rejected("it is too loud | <b>")
        return GenerateOutput([f"{text}, {text}"] * num_generations, usage=Usage(1, 2))


def parrots(good: int, loud: int = 0, llm: AsyncLLM | None = None) -> Pipeline:
    said = [f"polly {number}" for number in range(good)] + [f"POLLY {number}!" for number in range(loud)]
    with Pipeline(name="Polly's words") as pipeline:
        LoadDataFromDicts(name="data", data=[{"instruction": each} for each in said]) >> TextGeneration(
            name="say", llm=llm or Polly()
        )
    return pipeline


def api(path: str, **body: Any) -> Any:
    return ask_server("POST", f"{PREFECT_API_URL.value()}/{path}", body).raise_for_status().json()


def artifacts_of(flow_run_id: Any) -> dict[str, Any]:
    """What the flow run's page shows, by key."""
    found = api("artifacts/filter", artifacts={"flow_run_id": {"any_": [str(flow_run_id)]}, "key": {"exists_": True}})
    return {each["key"]: each for each in found}


def run_of(dataset: Distiset) -> str:
    return json.loads((dataset.folder / "run.json").read_text())["flow_run"]["id"]


def states_of(flow_run_id: Any) -> list[tuple[str, str]]:
    """The states of type and name a flow run went through, the last being the one it is in."""
    url = f"{PREFECT_API_URL.value()}/flow_run_states/"
    found = ask_server("GET", url, params={"flow_run_id": str(flow_run_id)}).raise_for_status().json()
    return [(each["type"], each["name"]) for each in sorted(found, key=lambda each: each["timestamp"])]


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
class TestArtifacts:
    def test_summary_samples_and_failures_of_a_completed_run(self, tmp_path):
        dataset = parrots(30, 2).run(output=tmp_path / "out")
        shown = artifacts_of(run_of(dataset))
        kinds = {name.removeprefix("polly-s-words-"): each["type"] for name, each in shown.items()}
        assert kinds == {
            "progress-data": "progress",
            "progress-say": "progress",
            "summary": "markdown",
            "samples": "table",
            "failures": "table",
            "files": "markdown",
            "failed-rows": "markdown",
        }
        step = shown["polly-s-words-progress-say"]
        assert step["data"] == 100 and step["description"].startswith("`say`: 32 of 32 rows, 2 failed")

        summary = shown["polly-s-words-summary"]["data"]
        assert summary.startswith("# Polly's words: completed with failures")
        assert "| `say` | 32 | 30 | 2 |" in summary and "| `say` | Rejected | 2 |" in summary
        assert "| `say` | parrot | 32 | 0 | 30 | 60 | $0.30 |" in summary
        assert "(start)" in summary.split("## Limits")[1], "the limiter's history"
        assert "Run it again, the same way, to try the rows that failed once more" in summary
        assert str(dataset.folder) in summary

        first, *others = json.loads(shown["polly-s-words-samples"]["data"])
        assert len(others) == 4
        assert first["say: prompt"] == "user: polly 0" and first["say: answer"] == "polly 0, polly 0"
        assert first["generation"] == "polly 0, polly 0" and not any("metadata" in name for name in first)
        failed = json.loads(shown["polly-s-words-failures"]["data"])
        assert [(each["step"], each["error"], each["origin"]) for each in failed] == [
            ("say", "Rejected", "data[30]"),
            ("say", "Rejected", "data[31]"),
        ]
        files = shown["polly-s-words-files"]["data"]
        assert f"```\n{dataset.folder}\n```" in files and f"({dataset.folder.as_uri()})" in files

        again = parrots(30, 2).run(output=tmp_path / "out")
        assert artifacts_of(run_of(again)).keys() == shown.keys(), "versions of the same"

    def test_summary_of_a_failed_run(self, tmp_path):
        run: Any = parrots(20, 20).flow(output=tmp_path / "out", return_state=True)
        shown = artifacts_of(run.state_details.flow_run_id)
        summary = shown["polly-s-words-summary"]["data"]
        assert summary.startswith("# Polly's words: failed") and "too loud \\| \\<b\\>" in summary
        assert f"What was made until then is in `{tmp_path / 'out.partial'}`" in summary and "*Retry*" in summary
        assert len(json.loads(shown["polly-s-words-failures"]["data"])) == 3, "the first of each class"

    def test_summary_of_a_run_whose_budget_is_spent(self, tmp_path):
        run: Any = parrots(60).flow(output=tmp_path / "out", max_cost=0.2, return_state=True)
        shown = artifacts_of(run.state_details.flow_run_id)
        assert "with more `max_cost`: it resumes from here" in shown["polly-s-words-summary"]["data"]

    def test_summary_of_a_dry_run(self):
        shown = artifacts_of(run_of(parrots(30).run(dry_run=2)))
        summary = shown["polly-s-words-summary"]["data"]
        assert summary.startswith("# Polly's words: the first rows") and "run it without `dry_run`" in summary

    def test_temporary_files_are_not_linked(self):
        dataset = parrots(3).run()
        assert not any("files" in name for name in artifacts_of(run_of(dataset)))

    def test_long_texts_are_truncated(self):
        with Pipeline(name="long") as pipeline:
            LoadDataFromDicts(data=[{"instruction": "long " * 5_000}]) >> TextGeneration(llm=Polly())
        shown = artifacts_of(run_of(pipeline.run()))
        [row] = json.loads(shown["long-samples"]["data"])
        assert all(len(text) <= MAX_TEXT_CHARS + 1 for text in row.values())

    def test_secrets_are_redacted(self, wire, tmp_path):
        def answer(request: Any) -> Any:
            bad = "2" in request.body["messages"][-1]["content"]
            echo = {"error": {"message": f"what do you want with {request.headers['authorization']}?"}}
            return wire.Reply(echo, 400) if bad else wire.Reply()

        wire.answer = answer
        llm = OpenAILLM(model="m", base_url=wire.url, api_key="sk-planted-4711", price=Price(input=1, output=1))
        dataset = parrots(10, llm=llm).run(output=tmp_path / "out", max_error_rate=0.5)
        assert dataset.summary.failures == 1
        shown = artifacts_of(run_of(dataset))
        assert "polly-s-words-failures" in shown and "sk-planted" not in json.dumps(shown)

    def test_artifact_keys(self):
        assert artifact_key("My Flow!", "my flow", "progress", "Step_1") == "my-flow-my-flow-progress-step-1"
        assert artifact_key("flow", "flow", "summary") == "flow-summary" and artifact_key("流") == "pipeline"

    def test_updates_keep_to_their_cpu_budget(self, monkeypatch):
        """No more than a two-hundredth of the CPU; at the end in any case."""
        from flows.reporting import artifacts

        class Clock:
            process = now = thread = 0.0

            def process_time(self) -> float:
                return self.process

            def monotonic(self) -> float:
                return self.now

            def thread_time(self) -> float:
                self.thread += 0.005
                return self.thread

        def at(rows: int) -> RunSnapshot:
            return RunSnapshot(
                1.0, rows, 0, 0, 0, 0.0, None, {"say": StepSnapshot(rows, 9, rows, 0, 0, 0.0, 0.0, 0, 0, 0.0, None)}
            )

        monkeypatch.setattr(artifacts, "time", clock := Clock())
        updates: list[int] = []
        watched = StepProgressArtifacts(None, "x")  # type: ignore[arg-type]
        monkeypatch.setattr(watched, "_write", lambda name, step: updates.append(step.rows))
        for process, now, rows in ((0.1, 2, 1), (0.9, 4, 2), (1.2, 6, 3), (1.3, 8, 4), (1.4, 30, 5), (3.0, 32, 5)):
            clock.process, clock.now = process, now
            watched.on_update(at(rows))
        assert updates == [1, 3, 5]
        watched.on_end(at(6))
        assert updates == [1, 3, 5, 6]


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
class TestStates:
    def test_a_pipeline_ends_in_one_state_with_its_failures(self):
        flow_of = parrots(20, 1).flow
        assert isinstance(flow_of(), Distiset)
        state: Any = flow_of(return_state=True)
        assert (state.name, state.message) == ("Completed with failures", "20 rows, 1 failure (1 Rejected)")
        assert [kind for kind, _ in states_of(state.state_details.flow_run_id)].count("COMPLETED") == 1
        state = parrots(30).flow(use_cache=False, return_state=True)
        assert (state.name, state.message) == ("Completed", "30 rows, no failures, $0.30")

    def test_a_shipped_flow_ends_in_one_state_with_its_failures(self, tmp_path):
        dataset = text_generation(llm=Polly(), limit=2, output=tmp_path / "out")
        assert isinstance(dataset, Distiset) and dataset.summary.rows == 2
        assert states_of(run_of(dataset))[-1] == ("COMPLETED", "Completed")
        run = ask_server("GET", f"{PREFECT_API_URL.value()}/flow_runs/{run_of(dataset)}").json()
        assert run["state"]["message"] == "2 rows, no failures, $0.02" and run["state"]["data"] is None, "not persisted"

    def test_max_error_rate_is_a_parameter_of_shipped_flows(self, tmp_path):
        data = [{"instruction": f"{each}{'!' * (each % 2)}"} for each in range(40)]
        with pytest.raises(RunFailed, match="max_error_rate=0.1"):
            text_generation(llm=Polly(), data=data, output=tmp_path / "out")
        assert text_generation(llm=Polly(), data=data, output=tmp_path / "out", max_error_rate=0.6).summary.rows == 20

    def test_a_plain_function_returns_the_dataset(self, tmp_path):
        @flow
        def outer() -> Any:
            return text_generation.fn(llm=Polly(), limit=2, output=tmp_path / "out").summary.rows

        assert outer() == 2

    def test_the_state_of_a_users_flow_tells_of_failures(self):
        @flow
        def mine(loud: int) -> int:
            return parrots(20, loud).run().summary.rows + parrots(10).run().summary.rows

        assert mine(1) == 30
        state: Any = mine(1, return_state=True)
        assert (state.name, state.message) == ("Completed with failures", "20 rows, 1 failure (1 Rejected)")
        assert state.result() == 30
        there = states_of(state.state_details.flow_run_id)
        assert there[-2:] == [("COMPLETED", "Completed"), ("COMPLETED", "Completed with failures")]
        state = mine(0, return_state=True)
        assert [name for _, name in states_of(state.state_details.flow_run_id)].count("Completed") == 1

    def test_the_state_of_an_async_flow_tells_of_failures(self):
        @flow
        async def mine() -> int:
            return parrots(20, 1).run().summary.rows

        state: Any = asyncio.run(mine(return_state=True))  # type: ignore[arg-type]
        assert state.name == "Completed with failures"

    def test_a_message_of_the_flow_itself_is_kept(self):
        @flow
        def mine() -> Any:
            parrots(20, 1).run()
            return Completed(message="as I like it")

        state: Any = mine(return_state=True)
        assert (state.name, state.message) == ("Completed", "as I like it")

    def test_failed_states_have_names(self, tmp_path):
        failing, poor = parrots(20, 20), parrots(60)
        with pytest.raises(RunFailed):
            failing.run()
        state: Any = failing.flow(output=tmp_path / "out", return_state=True)
        assert (state.type.value, state.name) == ("FAILED", "Too many failures")
        assert "more than `max_error_rate=0.1`" in state.message
        assert f"20 rows made before that are in `{tmp_path / 'out.partial'}`." in state.message
        state = poor.flow(output=tmp_path / "poor", max_cost=0.2, return_state=True)
        assert (state.type.value, state.name) == ("FAILED", "Budget spent") and "`max_cost=0.2`" in state.message
        with pytest.raises(BudgetExceeded):
            state.result()


@pytest.mark.slow
def test_an_interrupted_run_is_reported(wire, tmp_path, prefect_server):
    wire.answer = lambda request: wire.Reply(delay=60)
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.text_generation", "--json", "--llm", "OpenAILLM", "model=m"]
        + [f"base_url={wire.url}"],
        cwd=tmp_path,
        env=os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "OPENAI_API_KEY": "k"},
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: bool(wire.requests) or process.poll() is not None, 120)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    summary = json.loads(said.splitlines()[-1])
    assert (summary["event"], summary["state"], summary["rows"]) == ("summary", "interrupted", 0)
    facts = json.loads((tmp_path / f"{summary['folder']}" / "run.json").read_text())
    assert "text-generation-summary" in artifacts_of(facts["flow_run"]["id"])


def test_spend_thresholds():
    found = spend_thresholds()
    assert [f"{next(found):g}" for _ in range(10)] == ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1", "2", "5", "10"]


RUN = """
import sys
from prefect import tags
from flows import Pipeline
from llms import OpenAILLM, Price
from tasks import LoadDataFromDicts, LoadDataFromFiles, LoadDataFromHub, TextGeneration

with Pipeline(name="dear") as pipeline:
    data = LoadDataFromDicts(data=[{"instruction": f"question {number}"} for number in range(8)])
    llm = OpenAILLM(model="m", base_url=sys.argv[1], api_key="k", price=Price(input=1_000_000, output=0))
    data >> TextGeneration(llm=llm)
with tags("distilflow"):
    pipeline.run()
"""


@pytest.mark.slow
class TestAssets:
    @pytest.fixture(autouse=True)
    def prefect(self, server: PrefectServer) -> Iterator[None]:
        """Events go to the server that has all its services."""
        with temporary_settings({PREFECT_API_URL: server.url}):
            EventsWorker.drain_all()  # one that was there before speaks to another server
            yield
            EventsWorker.drain_all()

    def told(self, uri: str, at_least: int = 1) -> list[Any]:
        """What the server was told of an asset, in order."""
        EventsWorker.drain_all()
        wanted: dict[str, Any] = {"event": {"prefix": ["prefect.asset."]}, "resource": {"id": [assets.asset_key(uri)]}}
        wanted["order"] = "ASC"
        wait_until(lambda: len(api("events/filter", filter=wanted, limit=50)["events"]) >= at_least)
        return api("events/filter", filter=wanted, limit=50)["events"]

    def related(self, event: Any, role: str) -> list[str]:
        """What an event is related to, in one role."""
        return sorted(each["prefect.resource.id"] for each in event["related"] if each["prefect.resource.role"] == role)

    def test_upstream_assets_are_datasets_and_files(self, tmp_path):
        first, second = tmp_path / "it's, [well] ~ 100 % ünd", tmp_path / "second"
        made = parrots(30, 2).run(output=first)
        (tmp_path / "more.jsonl").write_text(json.dumps({"instruction": "one more"}))
        with Pipeline(name="Polly again") as pipeline:
            files: list[str | Path] = [f"{first}/default", tmp_path / "more.jsonl"]
            LoadDataFromFiles(data_files=files) >> TextGeneration(llm=Polly())
        again = pipeline.run(output=second)
        pipeline.run(output=second, dry_run=1)

        event, referenced = self.told(first.as_uri(), 2)
        assert event["event"] == "prefect.asset.materialization.succeeded"
        assert event["resource"]["prefect.resource.name"] == first.name
        assert event["resource"]["prefect.asset.url"] == first.as_uri()
        assert "`Polly's words` with `parrot`" in event["resource"]["prefect.asset.description"]
        payload = event["payload"]
        assert (payload["leaves"], payload["failures"], payload["cost"]) == ({"default": 30}, 2, 0.3)
        assert payload["output_tokens"] == made.summary.output_tokens and payload["manifest"].startswith("sha256:")
        assert self.related(event, "asset") == [] and self.related(event, "asset-materialized-by") == ["distilflow"]
        assert self.related(event, "flow-run") == [f"prefect.flow-run.{run_of(made)}"]
        assert referenced["event"] == "prefect.asset.referenced"

        [event] = self.told(second.as_uri())  # once: what a dry run makes does not stay
        sources = [assets.asset_key(each.as_uri()) for each in (first, tmp_path / "more.jsonl")]
        assert self.related(event, "asset") == sorted(sources)
        assert self.related(event, "flow-run") == [f"prefect.flow-run.{run_of(again)}"]

    def test_a_failed_run_fails_its_asset_without_secrets(self, wire, tmp_path):
        def answer(request: Any) -> Any:
            return wire.Reply({"error": {"message": f"no {request.headers['authorization']}"}}, 400)

        wire.answer = answer
        output = tmp_path / "sk-planted-4711"
        with pytest.raises(RunFailed):
            parrots(20, llm=OpenAILLM(model="m", base_url=wire.url, api_key=output.name)).run(output=output)
        [event] = self.told((tmp_path / "***").as_uri())
        assert event["event"] == "prefect.asset.materialization.failed"
        assert "rows failed in `say`" in event["payload"]["error"] and "sk-planted" not in json.dumps(event)

    def test_uris_of_sources(self, tmp_path):
        """A dataset of the Hub, what a glob looks into, and a source of somebody's own."""
        (tmp_path / "run.json").write_text("[]")  # somebody else's
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "run.json").write_text((parrots(1).run().folder / "run.json").read_text())
        sources = [
            LoadDataFromHub(repo_id="openai/gsm8k"),
            LoadDataFromFiles(data_files=f"{tmp_path}/data/**/*.csv"),
            LoadDataFromDicts(data=[{"instruction": "Hi"}]),
            *(LoadDataFromFiles(data_files=[f"{tmp_path}/data/{number}.csv"] * 2) for number in range(2)),
        ]
        assets.emit_materialization(tmp_path / "run", tmp_path / "run", sources, str)
        [event] = self.told((tmp_path / "run").as_uri())
        there = [f"{tmp_path.as_uri()}/data", *(f"{tmp_path.as_uri()}/data/{number}.csv" for number in range(2))]
        assert self.related(event, "asset") == sorted([*map(assets.asset_key, there), "hf://datasets/openai/gsm8k"])

        many = LoadDataFromFiles(data_files=[f"{tmp_path}/{number}.csv" for number in range(200)])
        assets.emit_materialization(tmp_path / "of many", tmp_path / "run", [many], str)
        [event] = self.told((tmp_path / "of many").as_uri())
        assert len(self.related(event, "asset")) == assets.MAX_UPSTREAM_ASSETS

    def test_asset_keys_are_unique(self):
        names = [
            "a b",
            "a~20b",
            "a%20b",
            "a#?&\"'<>[]{}|\\^`\n\t",
            "é" * 80,
            *("/".join(["long"] * 200 + [end]) for end in "xy"),
        ]
        keys = {assets.asset_key(Path("/", name).as_uri()) for name in names}
        assert len(keys) == len(names) and all(Asset(key=each) for each in keys)


@pytest.mark.slow
class TestAutomations:
    @pytest.mark.parametrize("path", sorted((SHIPPED / "automations").glob("*.yaml")), ids=lambda path: path.stem)
    def test_automations_cover_every_final_event(self, path):
        trigger = yaml.safe_load(path.read_text())["trigger"]
        ends = [each for each in trigger["expect"] if each.startswith("prefect.flow-run.Completed")]
        if trigger["posture"] == "Proactive" and ends:
            assert "prefect.flow-run.Completed with failures" in ends, "else it acts on a run that has ended"

    @pytest.mark.slow
    def test_automations_act_on_completion_and_cost(self, server, wire, tmp_path, capsys):
        """A real server takes the automations, and hears the run; the notification it sends comes to the wire."""
        with temporary_settings({PREFECT_API_URL: server.url}):
            names = self.applied(tmp_path, wire)
            made = [line for line in capsys.readouterr().out.splitlines() if line.startswith("created    automation")]
            assert len(made) == len(names) and not any("tells nobody" in line for line in made)
            there = {each["name"]: each["enabled"] for each in api("automations/filter")}
            assert there.pop("distilflow cancel dear run") is False and all(there.values())

            done = subprocess.run(
                [sys.executable, "-c", RUN, wire.url],
                cwd=tmp_path,
                env=os.environ | {"PREFECT_API_URL": server.url},
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0, done.stderr

            def events() -> list[Any]:
                wanted = {"event": {"prefix": ["distilflow.run."]}}
                found = api("events/filter", filter=wanted, limit=50)["events"]
                return [each for each in found if each["resource"]["distilflow.pipeline"] == "dear"]

            wait_until(
                lambda: bool(self.told(wire)) and any(each["event"].endswith("completed") for each in events()), 120
            )
            heard = sorted(events(), key=lambda each: each["occurred"])
            assert [heard[0]["event"], heard[-1]["event"]] == ["distilflow.run.started", "distilflow.run.completed"]
            payload = heard[-1]["payload"]
            assert (payload["rows"], payload["failures"], payload["cost"]) == (8, 0, 72.0)
            spent = [
                each["resource"]["distilflow.dollars"] for each in heard if each["event"] == "distilflow.run.spent"
            ]
            assert spent == ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1", "2", "5", "10", "20", "50"]
            for each in heard:
                assert each["resource"]["prefect.resource.id"].startswith("prefect.flow-run.")
                related = [resource["prefect.resource.id"] for resource in each["related"]]
                assert "prefect.tag.distilflow" in related
            subjects = {message["subject"] for message in self.told(wire)}  # Prefect 3.8 now and then says it twice
            assert len(subjects) == 1 and re.fullmatch("dear/.* has spent [$]20", *subjects), subjects

    @pytest.mark.slow
    def test_automations_act_on_failed_stuck_and_lost_runs_only(self, server, wire, tmp_path):
        """Those that wait for what does not come wait for ten seconds here, Prefect's least."""

        def said(word: str) -> dict[str, str]:
            """Bodies by subject; Prefect 3.8 now and then says one twice."""
            return {each["subject"]: each["body"] for each in self.told(wire) if word in each["subject"]}

        def beat(run: FlowRun) -> None:
            related = [
                {"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"} for tag in run.tags
            ]
            resource = {"prefect.resource.id": f"prefect.flow-run.{run.id}"}
            emit_event("prefect.flow-run.heartbeat", resource, related=related)

        with temporary_settings({PREFECT_API_URL: server.url}), get_client(sync_client=True) as client:
            self.applied(tmp_path, wire, (": 1800", ": 10"), (": 300", ": 10"))
            EventsWorker.drain_all()  # one that was there before speaks to another server

            def run(name: str, *tags: str) -> FlowRun:
                state = Running()
                return client.create_flow_run(flow(lambda: None, name="acted on"), name=name, tags=tags, state=state)

            ours, theirs = [
                {name: run(name, *tags) for name in ("fails", "hangs", "dies")} for tags in (["distilflow"], [])
            ]
            for runs in (theirs, ours):
                client.set_flow_run_state(runs["fails"].id, Failed(message="as it may"), force=True)
                RunEvents(runs["hangs"], "hanging").emit("started", {})
                beat(runs["dies"])
            EventsWorker.drain_all()
            wait_until(lambda: client.read_flow_run(ours["dies"].id).state_type.value == "CRASHED", 120)
            wait_until(lambda: len(said("acted on/")) == 2 and bool(said("made no rows")), 120)
            assert said("acted on/").keys() == {"acted on/dies: Crashed", "acted on/fails: Failed"}
            [(subject, body)] = said("made no rows").items()
            assert "hangs has made no rows" in subject
            assert body == f"{server.url.removesuffix('/api')}/runs/flow-run/{ours['hangs'].id}"
            others = {name: client.read_flow_run(each.id).state_type.value for name, each in theirs.items()}
            assert others == {"fails": "FAILED", "hangs": "RUNNING", "dies": "RUNNING"}

    def applied(self, folder: Path, wire: Any, *edits: tuple[str, str]) -> list[str]:
        """The shipped automations, applied with these edits; they tell the wire. Their names."""
        url = wire.url.removesuffix("/v1") + "/told"
        said = {"subject": "{{subject}}", "body": "{{body}}"}
        CustomWebhookNotificationBlock(name="told", url=url, json_data=said).save("told", overwrite=True)
        (folder / "automations").mkdir()
        for path in (SHIPPED / "automations").glob("*.yaml"):
            text = path.read_text()
            for old, new in [("slack-webhook/distilflow", "custom-webhook/told"), *edits]:
                text = text.replace(old, new)
            (folder / "automations" / path.name).write_text(text)
        names = [path.stem for path in (folder / "automations").glob("*.yaml")]
        assert main(["--from", str(folder), *names]) == 0
        return names

    def told(self, wire: Any) -> list[Any]:
        """What the notifications said."""
        return [request.body for request in wire.requests if request.path == "/told"]
