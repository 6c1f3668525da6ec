"""What a second run asks again: only what is missing, what failed, and what somebody changed."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from contextlib import suppress
from datetime import datetime

import pytest
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, PREFECT_LOCAL_STORAGE_PATH
from prefect.states import Cancelling, Scheduled

from flows import Pipeline, RunFailed
from flows.results import BatchResultSerializer, digest_rows, step_identity
from llms import BudgetExceeded, OpenAILLM
from tasks import (
    CombineOutputs,
    Filter,
    GlobalStep,
    GroupColumns,
    LoadDataFromDicts,
    Step,
    Task,
    TextGeneration,
    route,
    step,
)
from tasks.dag import Route
from tasks.typing import BatchResult, ModelUsage, Row, RowLineage
from tests.support.waiting import wait_until

ROWS = 20


def rows(count=ROWS):
    return [{"instruction": f"row {number}"} for number in range(count)]


def model(wire, **fields):
    return OpenAILLM(model="m", base_url=wire.url, api_key="key", **fields)


def prompt_of(request):
    return request.body["messages"][-1]["content"]


def echoing(wire):
    """Have the wire answer with the prompt and an exclamation mark."""
    wire.answer = lambda request: wire.Reply(wire.completion(f"{prompt_of(request)}!"))
    return wire.answer


def asked(wire):
    """How often each prompt was asked since the last look."""
    prompts = Counter(map(prompt_of, wire.requests))
    wire.requests.clear()
    return prompts


@pytest.fixture
def forget(monkeypatch, tmp_path):
    """A function that empties the store of answers: what is not asked then came from Prefect's results."""

    def forget():
        monkeypatch.setenv("DISTILFLOW_HOME", str(tmp_path / f"home-{time.monotonic_ns()}"))

    return forget


class Answer(Task):
    """Asks for a row's instruction. Input columns: `instruction`. Output columns: `answer`."""

    @property
    def inputs(self):
        return ["instruction"]

    @property
    def outputs(self):
        return ["answer"]

    def format_input(self, row):
        return [{"role": "user", "content": row["instruction"]}]

    def format_output(self, text, row):
        return {"answer": text}


def three(wire, second="{{ generation }} b", count=ROWS, **first):
    """A pipeline of three steps that ask."""
    echoing(wire)
    with Pipeline(name="three") as pipeline:
        (
            LoadDataFromDicts(data=rows(count), batch_size=10)
            >> TextGeneration(name="a", llm=model(wire), **first)
            >> TextGeneration(name="b", llm=model(wire), template=second)
            >> TextGeneration(name="c", llm=model(wire), template="{{ generation }} c")
        )
    return pipeline


def made(dataset):
    """The rows of the only leaf, without what differs from run to run."""
    return [
        {name: value for name, value in row.items() if not name.endswith("_metadata")}
        for row in dataset["default"]["train"]
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
class TestSecondRun:
    def test_no_requests_and_equal_rows_and_counts(self, wire, forget):
        first = three(wire).run()
        assert len(asked(wire)) == 3 * ROWS
        forget()
        again = three(wire).run()
        assert not asked(wire)
        assert list(again["default"]["train"]) == list(first["default"]["train"])  # metadata and all
        for name in "abc":
            before, now = first.summary.steps[name], again.summary.steps[name]
            assert (now.rows_in, now.rows, now.failures) == (before.rows_in, before.rows, 0) == (ROWS, ROWS, 0)
            assert (now.models["m"].requests, now.models["m"].cached, now.models["m"].output_tokens) == (0, ROWS, 0)
        assert again.summary.cost == 0.0 and first.summary.output_tokens == 3 * ROWS * 4

    def test_only_batches_with_failures_run_again(self, wire, forget):
        pipeline = three(wire)
        echo = echoing(wire)
        wire.answer = lambda request: wire.Reply({}, 400) if prompt_of(request) == "row 7" else echo(request)
        assert pipeline.run().summary.failures == 1
        asked(wire)
        forget()
        again = three(wire).run()
        prompts = asked(wire)
        assert again.summary.rows == ROWS and [row["instruction"] for row in made(again)] == [
            row["instruction"] for row in rows()
        ]
        assert {prompt for prompt in prompts if "!" not in prompt} == {f"row {number}" for number in range(10)}
        assert len(prompts) == 3 * 10  # what follows was made of nine rows

    def test_a_changed_step_and_its_descendants_run_again(self, wire, forget):
        three(wire).run()
        asked(wire)
        forget()
        three(wire, second="{{ generation }} B").run()
        prompts = asked(wire)
        assert len(prompts) == 2 * ROWS and not any(
            prompt.startswith("row 1") and "!" not in prompt for prompt in prompts
        )
        three(wire, second="{{ generation }} B", system_prompt="Shout.").run()
        assert sum(asked(wire).values()) == ROWS  # the same texts came, so that the others are not asked again

    def test_only_appended_rows_are_requested(self, wire):
        three(wire).run()
        asked(wire)
        again = three(wire, count=ROWS + 10).run()
        assert again.summary.rows == ROWS + 10 and sum(asked(wire).values()) == 3 * 10

    def test_an_edited_parser_reuses_answers(self, wire):
        def pipeline(parse):
            class Parsed(Answer):
                """Reads an answer. Output columns: `answer`."""

                format_output = parse

            with Pipeline() as pipeline:
                LoadDataFromDicts(data=rows(), batch_size=5) >> Parsed(llm=model(wire))
            return pipeline

        echoing(wire)
        pipeline(lambda self, text, row: {"answer": text}).run()
        assert sum(asked(wire).values()) == ROWS
        again = pipeline(lambda self, text, row: {"answer": text.upper()}).run()
        assert not asked(wire) and again["default"]["train"]["answer"][3] == "ROW 3!"

    def test_another_api_key_requests_nothing(self, wire, forget):
        three(wire).run()
        asked(wire)
        forget()
        pipeline = three(wire)
        for each in pipeline.steps[1:]:
            each.llm.api_key = type(each.llm.api_key)("another")
        pipeline.run()
        assert not asked(wire)

    def test_no_cache_requests_again_and_stores(self, wire, forget):
        three(wire).run()
        asked(wire)
        pipeline = three(wire)
        wire.answer = lambda request: wire.Reply(wire.completion("new"))
        pipeline.run(use_cache=False)
        assert sum(asked(wire).values()) == 3 * ROWS
        forget()
        assert {row["generation"] for row in made(three(wire).run())} == {"new"} and not asked(wire)
        three(wire, use_cache=False).run()
        assert {prompt for prompt in asked(wire) if "!" not in prompt} == {f"row {number}" for number in range(ROWS)}

    def test_rows_json_would_change_are_not_cached(self, wire, forget):
        when = datetime(2026, 1, 2)

        def pipeline():
            with Pipeline() as pipeline:
                data = LoadDataFromDicts(data=[{"instruction": "row 0", "when": when}])
                data >> TextGeneration(llm=model(wire))
            return pipeline

        for _ in range(2):
            assert pipeline().run()["default"]["train"]["when"] == [when]
            assert len(asked(wire)) == 1
            forget()

    def test_a_run_over_budget_resumes(self, wire, forget):
        echoing(wire)
        with pytest.raises(BudgetExceeded):
            three(wire).run(max_tokens_total=13 * 25)
        before = asked(wire)
        assert 20 <= len(before) <= 30
        assert three(wire).run().summary.rows == ROWS
        assert not before.keys() & asked(wire).keys()

    def test_results_are_json_and_corrupt_ones_are_recomputed(self, wire, forget):
        three(wire).run()
        asked(wire)
        files = [path for path in PREFECT_LOCAL_STORAGE_PATH.value().rglob("distilflow/*/*") if path.is_file()]
        assert len(files) == 3 * ROWS / 10
        records = [json.loads(path.read_text()) for path in files]
        assert {record["metadata"]["serializer"]["type"] for record in records} == {"distilflow"}
        assert all(json.loads(record["result"])["rows"] for record in records)
        assert "key" not in {word for path in files for word in path.read_text().split('"')}
        broken = next(path for path in files if path.parent.name == "b")
        broken.write_text(broken.read_text()[:100])
        forget()
        assert three(wire).run().summary.rows == ROWS
        assert sum(prompt.endswith("! b") for prompt in asked(wire)) == 10

    def test_results_in_any_storage(self, wire, forget, tmp_path):
        for _ in range(2):
            three(wire).run(result_storage=tmp_path / "elsewhere")
            forget()
        assert sum(asked(wire).values()) == 3 * ROWS
        assert len(list((tmp_path / "elsewhere").rglob("distilflow/a/*"))) == ROWS / 10

    def test_branches_joins_routes_and_global_steps_are_cached(self, wire, forget):
        class Last(GlobalStep):
            """The last rows. Output columns: none."""

            def process(self, inputs):
                yield inputs[-10:]

        def pipeline(by):
            with Pipeline() as pipeline:
                a, b = (
                    TextGeneration(name=name, llm=model(wire), template=f"{{{{ instruction }}}} {name}")
                    for name in "ab"
                )
                data = LoadDataFromDicts(data=rows(), batch_size=5)
                data >> route(by) >> [a, b] >> GroupColumns(columns=["generation"]) >> Last()
            return pipeline

        echoing(wire)
        first = pipeline(lambda row: ["a", "b"]).run()
        assert sum(asked(wire).values()) == 2 * ROWS
        forget()
        again = pipeline(lambda row: ["a", "b"]).run()
        assert made(again) == made(first) and len(made(again)) == 10 and not asked(wire)
        other = pipeline(lambda row: "a").run()
        assert [row["grouped_generation"] for row in made(other)] == [[f"row {n} a!"] for n in range(10, 20)]

    def test_branches_do_not_share_rows(self):
        def mark(self, inputs):
            for row in inputs:
                row[self.name] = True
            yield inputs

        First = type("First", (Step,), {"process": mark, "__doc__": "Marks."})
        with Pipeline() as pipeline:
            data = LoadDataFromDicts(data=rows(), batch_size=5)
            data >> [First(name="left"), First(name="right")] >> CombineOutputs()
        for _ in range(2):
            assert all(row.keys() == {"instruction", "left", "right"} for row in made(pipeline.run()))


@pytest.mark.usefixtures("prefect_server")
class TestNothingIsLost:
    def test_a_task_that_drops_rows_fails_the_run(self, wire):
        class Careless(Answer):
            """Forgets every third row. Output columns: `answer`."""

            def process(self, inputs):
                yield [Row(row | {"answer": ""}, row.origin) for row in inputs if not row["instruction"].endswith("3")]

        with Pipeline() as pipeline:
            LoadDataFromDicts(data=rows(), batch_size=10) >> Careless(llm=model(wire))
        with pytest.raises(RunFailed, match=r"`careless` lost rows: 10 went in, 9 came out, 0 failed, .* data\[3\]"):
            pipeline.run()

    def test_a_step_may_declare_that_it_drops_rows(self, wire):
        class Choosy(Answer):
            """Answers what it likes. Output columns: `answer`."""

            keeps_rows = False

            def process(self, inputs):
                yield [row | {"answer": ""} for row in inputs[1:]]

        with Pipeline() as pipeline:
            data = LoadDataFromDicts(data=rows(), batch_size=10)
            data >> Choosy(llm=model(wire)) >> Filter(where=lambda row: row["instruction"] != "row 5")
        assert pipeline.run().summary.rows == 17


class TestIdentity:
    """Which edits of the code and the fields of a step are seen."""

    CODE = """
        import helpers_of_the_test
        from tasks import Step

        LIMIT = 3

        def shortened(text):
            return text[:LIMIT]

        class Base(Step):
            def mark(self):
                return "x"

        class Short(Base):
            length: int = 5

            def process(self, inputs):
                yield [{"text": shortened(row["text"]) + self.mark() + helpers_of_the_test.end()} for row in inputs]
    """
    HELPERS = "def end(): return '.'\ndef other(): return 1"

    def identity(self, code=CODE, helpers=HELPERS, **fields):
        module = type(sys)("helpers_of_the_test")
        exec(helpers, vars(module))
        sys.modules["helpers_of_the_test"] = module
        names = {"__name__": "somewhere"}
        exec(textwrap.dedent(code), names)
        del sys.modules["helpers_of_the_test"]
        return step_identity(names["Short"](**fields), ["data"], [])

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("LIMIT = 3", "LIMIT = 4"),
            ("text[:LIMIT]", "text[LIMIT:]"),
            ('return "x"', 'return "y"'),
            ("+ self.mark()", ""),
            ("length: int = 5", "length: int = 6"),
        ],
    )
    def test_edits_of_the_code_count(self, before, after):
        assert self.identity(self.CODE.replace(before, after)) != self.identity()

    def test_fields_and_modules_of_the_user_count(self):
        assert self.identity(length=6) != self.identity(length=5) == self.identity()
        assert self.identity(helpers=self.HELPERS.replace("'.'", "'!'")) != self.identity()

    def test_other_edits_do_not_count(self):
        moved = self.CODE.replace("def shortened", "# a remark\n\n        def shortened").replace(
            "LIMIT = 3", "LIMIT = 3\n"
        )
        assert self.identity(moved, self.HELPERS.replace("1", "2"), use_cache=False) == self.identity()

    LOOKED_UP = """
        import pkg
        from enum import Enum
        from functools import cache

        import prefect
        from tasks import Step

        @cache
        def remembered():
            return "remembered 1"

        @prefect.task
        def asked():
            return "asked 1"

        class Style:
            def __init__(self, tone):
                self.tone, self.itself = tone, self

            def said(self):
                return "said 1"

        class Kind(Enum):
            SHORT = "kind 1"

        STYLE = Style("tone 1")

        class Short(Step):
            kind: Kind = Kind.SHORT
            _prompt = "private 1"
            _started: list = []

            def process(self, inputs):
                from pkg.late import late
                from pkg import later

                def whatever():
                    import pkg.latest as newest

                    return newest.latest()

                remembered(), asked(), STYLE.said(), pkg.prompts.build(1), late(), later.later(), whatever()
                yield inputs
    """
    PACKAGE = {
        "__init__": "import pkg.prompts",
        "prompts": "import pkg\nTEXT = 'deep 1'\ndef build(row): return TEXT\ndef other(): return 'other 1'",
        "late": "def late(): return 'late 1'",
        "later": "def later(): return 'later 1'",
        "latest": "def latest(): return 'latest 1'",
    }

    IN_PROCESSES = """
        import os
        import runpy
        import sys

        import flows.results  # once, for seconds: each script is run in a process that has nothing else

        for home in sys.argv[1:]:
            sys.stdout.flush()
            if not (child := os.fork()):
                sys.path.insert(0, home)
                runpy.run_path(f"{home}/script.py", run_name="__main__")
                sys.stdout.flush()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
    """

    @pytest.fixture
    def looked_up(self, tmp_path):
        """A function that makes edits, and gives back the identity of the step in a new process after each."""
        script = textwrap.dedent(self.LOOKED_UP) + textwrap.dedent("""
            from flows.results import step_identity

            print(step_identity(Short(), ["data"], []))
        """)

        def identities(*edits):
            homes = [tmp_path / f"{number}" for number, _ in enumerate(edits)]
            for home, (before, after) in zip(homes, edits, strict=True):
                (home / "pkg").mkdir(parents=True)
                for name, text in {
                    **{f"pkg/{name}": text for name, text in self.PACKAGE.items()},
                    "script": script,
                }.items():
                    (home / f"{name}.py").write_text(text.replace(before, after) if before else text)
            env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
            command = [sys.executable, "-c", textwrap.dedent(self.IN_PROCESSES), *map(str, homes)]
            done = subprocess.run(command, env=env, capture_output=True, text=True)
            found = done.stdout.split()
            assert not done.returncode and list(map(len, found)) == [32] * len(edits), done.stdout + done.stderr
            return found

        return identities

    @pytest.mark.slow
    def test_user_code_a_step_reaches_counts(self, looked_up):
        reached = ["remembered", "asked", "said", "tone", "kind", "private", "deep", "late", "later", "latest"]
        edits = [(f"{name} 1", f"{name} 2") for name in ("other", *reached)]
        same, unreached, *found = looked_up(("", ""), *edits)
        assert unreached == same
        assert [name for name, identity in zip(reached, found, strict=True) if identity == same] == []
        assert len(set(found)) == len(reached)

    def test_the_state_of_objects_counts(self):
        class Tone:
            def __init__(self, tone):
                self.tone, self.calls = tone, 0

            def __getstate__(self):
                return self.tone

        def said(tone, calls=0):
            thing = Tone(tone)
            thing.calls = calls
            return step_identity(Filter(where=lambda row: thing.tone in row["text"]), [], [])

        assert said("a") == said("a", calls=3) != said("b")

    def test_functions_in_fields_and_routes_count(self):
        def filtered(limit):
            return step_identity(Filter(where=lambda row: len(row["text"]) > limit), ["data"], [])

        assert filtered(1) == filtered(1) != filtered(2)
        way = [[Route(route(lambda row, to=to: to).selector, ("a", "b"))] for to in "aab"]
        first, same, other = (step_identity(Filter(column="x"), ["data"], each) for each in way)
        assert first == same != other

    def test_arguments_and_body_of_a_function_step_count(self):
        def counted(unit, plus):
            @step(inputs=["text"], outputs=["length"])
            def Length(rows, unit: str = "words"):
                for row in rows:
                    row["length"] = len(row["text"].split()) + plus
                yield rows

            return step_identity(Length(unit=unit), ["data"], [])

        assert counted("words", 0) == counted("words", 0)
        assert len({counted("words", 0), counted("letters", 0), counted("words", 1)}) == 3

    def test_unhashable_values_have_no_identity(self):
        class Held(Step):
            """Holds anything. Output columns: none."""

            thing: object = None

            def process(self, inputs):
                yield inputs

        assert step_identity(Held(thing=object()), [], []) is None and step_identity(Held(thing=[1]), [], [])

    @pytest.mark.slow
    def test_identity_is_equal_in_another_process(self, tmp_path):
        script = tmp_path / "script.py"
        script.write_text(
            textwrap.dedent("""
                from flows.results import step_identity
                from llms import OpenAILLM
                from tasks import TextGeneration, UltraFeedback

                llm = OpenAILLM(model="m", base_url="http://localhost:1")
                print(step_identity(TextGeneration(llm=llm), ["data"], []))
                print(step_identity(UltraFeedback(llm=llm), ["data"], []))
            """)
        )
        said = [
            subprocess.run(
                [sys.executable, str(script)],
                env=os.environ | {"PYTHONHASHSEED": seed},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for seed in "12"
        ]
        assert said[0] == said[1] and len(set(said[0].split())) == 2


class TestSerializer:
    ROWS = [
        Row({"a": [1, None, {"b": "ü\n"}], "n": 0.1}, RowLineage("data[0]", (0, 1))),
        Row({}, "x:1"),
        Row({"a": True}),
    ]

    def test_a_round_trip_keeps_rows_and_lineage(self):
        outcome = BatchResult(self.ROWS, model_usage={"m": ModelUsage(2, 3)}, rows_in=4, digest=digest_rows(self.ROWS))
        back = BatchResultSerializer().loads(BatchResultSerializer().dumps(outcome))
        assert back.rows == self.ROWS and [row.origin for row in back.rows] == ["data[0]", "x:1", None]
        assert [row.id for row in back.rows] == [(0, 1), None, None]
        assert (back.model_usage, back.rows_in, back.digest) == ({"m": ModelUsage(cached=5)}, 4, outcome.digest)

    @pytest.mark.parametrize(
        "value", [(1, 2), float("nan"), datetime(2026, 1, 1), b"x", {1: 2}, 2**70, {1, 2}, "\ud83d"]
    )
    def test_rows_json_would_change_have_no_digest(self, value):
        assert digest_rows([Row({"value": value})]) is None

    def test_content_order_and_lineage_count(self):
        first, *_ = self.ROWS
        others = [self.ROWS, self.ROWS[::-1], [Row(first, RowLineage("data[0]", (0, 2)))], [Row(first, first.origin)]]
        assert len({digest_rows(each) for each in others}) == 4


SCRIPT = """
import sys

from flows import Pipeline
from llms import OpenAILLM
from tasks import LoadDataFromDicts, TextGeneration


def pipeline(url):
    llm = OpenAILLM(model="m", base_url=url, api_key="key")
    with Pipeline(name="killed") as pipeline:
        data = LoadDataFromDicts(data=[{"instruction": f"row {number}"} for number in range(20)], batch_size=4)
        first = TextGeneration(name="a", llm=llm)
        data >> first >> TextGeneration(name="b", llm=llm, template="{{ generation }} b")
    return pipeline


if __name__ == "__main__":
    if sys.argv[2:] == ["serve"]:
        pipeline(sys.argv[1]).flow.serve(name="resumed", pause_on_shutdown=False)
    else:
        pipeline(sys.argv[1]).run()
"""


class Gate:
    """Answers all about the first rows, and nobody about the others before it is opened."""

    def __init__(self, wire):
        self.wire, self.echo = wire, echoing(wire)
        self.opened, self.held, self.answered = threading.Event(), threading.Event(), Counter()
        wire.answer = self

    def __call__(self, request):
        prompt = prompt_of(request)
        if int(prompt.removeprefix("row ").split("!")[0]) >= 8 and not self.opened.is_set():
            self.held.set()
            self.opened.wait(120)
            return self.wire.Reply(drop=True)
        self.answered[prompt] += 1
        return self.echo(request)


def kept(step):
    """How many batches of a step are among the results, written to the end."""
    files = PREFECT_LOCAL_STORAGE_PATH.value().rglob(f"distilflow/{step}/*")
    return sum(is_json(path.read_bytes()) for path in files if path.is_file())


def is_json(text):
    with suppress(ValueError):
        return bool(json.loads(text))
    return False


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "killed.py"
    path.write_text(SCRIPT)
    return path


def start(script, *arguments):
    env = os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value()}
    return subprocess.Popen(
        [sys.executable, str(script), *arguments], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def module_of(script):
    spec = importlib.util.spec_from_file_location("killed", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.slow
class TestKilled:
    @pytest.mark.timeout(900)
    @pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
    def test_a_killed_run_resumes(self, how, wire, script, forget):
        gate = Gate(wire)
        process = start(script, wire.url)
        try:
            wait_until(lambda: kept("b") == 2 and gate.held.is_set())
            process.send_signal(how)
            assert process.wait(60) != 0
        finally:
            process.kill()
        gate.opened.set()
        forget()  # what was answered is among the results, and need not be in the store
        again = module_of(script).pipeline(wire.url).run()
        assert [row["generation"] for row in made(again)] == [f"row {number}! b!" for number in range(20)]
        assert len(gate.answered) == 40 and set(gate.answered.values()) == {1}

    @pytest.mark.timeout(900)
    def test_a_cancelled_run_resumes_on_retry(self, wire, script):
        gate = Gate(wire)
        server = start(script, wire.url, "serve")
        try:
            with get_client(sync_client=True) as client:

                def deployed():
                    with suppress(ObjectNotFound):
                        return client.read_deployment_by_name("killed/resumed")

                run = client.create_flow_run_from_deployment(wait_until(deployed).id)
                wait_until(lambda: kept("b") == 2 and gate.held.is_set())
                client.set_flow_run_state(run.id, Cancelling())
                wait_until(lambda: client.read_flow_run(run.id).state.is_cancelled())
                gate.opened.set()
                client.set_flow_run_state(run.id, Scheduled(name="AwaitingRetry"), force=True)
                wait_until(lambda: client.read_flow_run(run.id).state.is_completed())
        finally:
            gate.opened.set()
            server.send_signal(signal.SIGINT)
            server.wait(60)
        assert len(gate.answered) == 40 and set(gate.answered.values()) == {1}
