"""The first rows before all of them: what was sent and came, and what all would take."""

import json
import os
import subprocess
import sys
from functools import partial
from itertools import islice

import pytest
from prefect.settings import PREFECT_API_URL

from flows import ConfigurationError, Pipeline
from flows.preview.estimate import Estimate, estimate
from flows.preview.trace import TraceRecorder
from llms import AsyncLLM, OpenAILLM, Rejected
from llms.config.prices import Price
from llms.local.base import LocalLLM
from llms.typing import GenerateOutput, Usage
from tasks import ExpandColumns, GeneratorStep, GlobalStep, KeepColumns, LoadDataFromDicts, Step, Task, TextGeneration
from tasks.typing import BatchResult, Row, RowLineage


class Scribe(AsyncLLM):
    """Takes a token per letter, says `n` as many times as told, and each is a hundredth of a dollar."""

    n: int = 1
    priced: bool = True

    @property
    def model_name(self) -> str:
        return f"scribe-{self.n}"

    def cost(self, usage: Usage) -> float | None:
        return (usage.input_tokens + usage.output_tokens) / 100 if self.priced else None

    async def agenerate(self, input, num_generations=1, temperature: float = 1.0) -> GenerateOutput:
        text = input[-1]["content"]
        if text == "boom":
            raise Rejected("it is too loud")
        usage = Usage(input_tokens=len(text), output_tokens=self.n * num_generations)
        return GenerateOutput(["n" * self.n] * num_generations, usage=usage, seconds=2.0)


class Here(LocalLLM):
    """Answers a batch in three seconds."""

    @property
    def model_name(self) -> str:
        return "here"

    def _engine_key(self):
        return "here"

    def generate(self, inputs, num_generations=1) -> list[GenerateOutput]:
        return [GenerateOutput(["n"] * num_generations, usage=Usage(1, 1), seconds=3.0) for _ in inputs]


class Judge(Task):
    """Cannot read the answer to `odd`."""

    @property
    def inputs(self):
        return ["instruction"]

    @property
    def outputs(self):
        return ["rating"]

    def format_input(self, row):
        return [{"role": "system", "content": "Judge."}, {"role": "user", "content": row["instruction"]}]

    def format_output(self, text, row):
        if row["instruction"] == "odd":
            raise ValueError("no rating")
        return {"rating": len(text)}


class Endless(GeneratorStep):
    """Brings rows, nobody knows how many."""

    def process(self, offset=0):
        while True:
            yield [{"instruction": f"{offset:04}"}]
            offset += 1


def previewed(texts, count, *steps, limit=None, source=None):
    """The estimate from the first rows through steps in a row, and what was asked for them; no flow run is needed."""
    with Pipeline() as pipeline:
        before = source() if source else LoadDataFromDicts(data=[{"instruction": text} for text in texts])
        for make in steps:
            before >> (before := make())
    graph = pipeline._build_graph({})
    graph.check()
    recorder = TraceRecorder(graph)
    first, *others = graph.order
    outcome = BatchResult(
        [Row(row, RowLineage(f"{row.origin}", (0, at))) for at, row in enumerate(islice(first.rows(), count))]
    )
    recorder.record(first, outcome)
    for step in others:
        outcome = step.run(outcome.rows)
        recorder.record(step, outcome)
    return estimate(graph, recorder.rows, limit), list(recorder.rows.values())


def figures(made):
    return made.requests, made.input_tokens, made.output_tokens, made.cost


def scribe(**fields):
    return lambda: TextGeneration(llm=Scribe(**fields))


class TestEstimate:
    def test_all_rows_are_as_many_times_what_some_took(self):
        made, _ = previewed(["abcd"[: 1 + at % 4] + str(at) for at in range(40)], 4, scribe(n=3))
        assert (made.rows, made.known, made.sampled) == (40, True, 4)
        assert figures(made) == (40, 140, 120, pytest.approx(2.6)) == figures(made.models["scribe-3"])
        assert made.least.requests == made.most.requests == 40
        assert made.least.input_tokens < 140 < made.most.input_tokens and made.most.output_tokens == 120
        assert made.least.cost < made.cost < made.most.cost

    def test_what_will_come_is_in_the_range(self):
        texts = ["x" * (1 + at * at % 97) + f"{at}" for at in range(500)]
        made, _ = previewed(texts, 25, scribe())
        assert made.least.input_tokens < sum(map(len, texts)) < made.most.input_tokens
        whole, _ = previewed(texts[:30], 30, scribe())
        assert whole.input_tokens == whole.least.input_tokens == whole.most.input_tokens == sum(map(len, texts[:30]))
        assert "hardly" not in whole.markdown() and f"{whole.input_tokens:,}" in whole.markdown()

    def test_one_row_gives_no_range_and_says_so(self):
        made, _ = previewed(["a"] * 9, 1, scribe())
        assert made.least is None and made.most is None and "One row does not tell" in made.markdown()

    def test_the_second_time_it_says_the_same(self):
        texts = ["a", "bb", "odd", "a", "ccccc", "boom"]
        first, shown = previewed(texts * 9, 6, scribe(n=2), lambda: Judge(llm=Scribe()))
        again, shown_again = previewed(texts * 9, 6, scribe(n=2), lambda: Judge(llm=Scribe()))
        assert first == again and shown == shown_again

    def test_what_is_asked_twice_is_paid_once(self):
        made, _ = previewed(["same", "same", "same", "other"] * 10, 4, scribe())
        assert made.requests == 20 and made.input_tokens == 10 * len("sameother")

    def test_several_generations_are_one_request(self):
        for group in (True, False):
            step = partial(TextGeneration, llm=Scribe(), num_generations=3, group_generations=group)
            made, [row] = previewed(["abc"], 1, step)
            assert figures(made) == (1, 3, 3, pytest.approx(0.06)) and row.asked[0].answers == ["n"] * 3

    def test_a_step_after_one_that_makes_more_rows_asks_more(self):
        def source():
            return LoadDataFromDicts(data=[{"parts": [f"{at}{n}" for n in range(at % 4)]} for at in range(80)])

        def ask():
            return TextGeneration(llm=Scribe(), template="{{ part }}")

        made, rows = previewed([], 8, lambda: ExpandColumns(columns={"parts": "part"}), ask, source=source)
        assert [len(row.asked) for row in rows] == [0, 1, 2, 3] * 2 and made.requests == 120
        assert made.least.requests < 120 < made.most.requests

    def test_an_unknown_price_is_said(self):
        made, _ = previewed(list("abcd"), 2, scribe(priced=False), lambda: Judge(llm=Scribe(n=2)))
        assert made.cost is None and made.most.cost is None
        assert made.models["scribe-1"].cost is None and made.models["scribe-2"].cost == pytest.approx(0.12)
        assert "What `scribe-1` costs is not known" in made.markdown() and "| not known |" in made.markdown()

    def test_of_unknown_many_rows_it_is_for_a_thousand(self):
        made, _ = previewed([], 5, scribe(), source=Endless)
        assert (made.rows, made.known, made.requests) == (1000, False, 1000)
        assert made.markdown().startswith("Estimate for every 1,000 rows, from the first 5:")
        limited, _ = previewed([], 5, scribe(), source=Endless, limit=200)
        assert (limited.rows, limited.known, limited.input_tokens) == (200, True, 800)

    def test_a_limit_is_what_all_means(self):
        made, _ = previewed([f"{at:03}" for at in range(100)], 5, scribe(), limit=50)
        assert (made.rows, made.requests, made.input_tokens) == (50, 50, 150)

    def test_time_follows_from_latency_and_how_many_go_at_once(self):
        texts = [f"{at:05}" for at in range(10_000)]
        made, _ = previewed(texts, 5, scribe(max_concurrency=100))
        assert made.seconds == pytest.approx(10_000 * 2 / 100) and made.most.seconds == pytest.approx(10_000 * 2 / 5)
        assert "with 100 requests to `scribe-1` at once" in made.markdown() and "67 min" in made.markdown()
        held, _ = previewed(texts, 5, scribe(max_concurrency=100, requests_per_minute=1_000))
        assert held.seconds == pytest.approx(600, rel=0.01)

    def test_a_model_that_runs_here_goes_on_as_fast(self):
        texts = [f"{at:05}" for at in range(1_000)]
        made, _ = previewed(texts, 5, lambda: TextGeneration(llm=Here()), lambda: Judge(llm=Here()))
        assert made.seconds == made.most.seconds == pytest.approx(200 * 2 * 3.0, rel=0.01)
        assert "`here` goes on as fast as it was here" in made.markdown() and made.cost == 0

    def test_a_step_that_waits_for_all_rows_is_a_guess(self):
        class Distinct(GlobalStep):
            """Keeps the first of equal rows."""

            def process(self, inputs):
                yield list({row["instruction"]: row for row in inputs}.values())

        made, _ = previewed(["a", "b"] * 10, 4, Distinct, scribe())
        assert made.requests == 10 and "`distinct` has seen these rows only" in made.markdown()

    def test_nothing_asked_is_nothing_estimated(self):
        class Same(Step):
            """Does nothing."""

            def process(self, inputs):
                yield inputs

        made, [row, _] = previewed(["a"] * 4, 2, Same)
        assert figures(made) == (0, 0, 0, 0.0) and made.seconds == 0.0 and not row.asked
        assert Estimate.model_validate(json.loads(made.model_dump_json())) == made


class TestShown:
    def test_a_failure_is_shown_with_what_was_sent_and_counts_as_a_request(self):
        made, rows = previewed(["fine", "boom", "odd"], 3, scribe(n=2), lambda: Judge(llm=Scribe()))
        assert made.requests == 3 + 2
        fine, boom, odd = rows
        assert [asked.step for asked in fine.asked] == ["text_generation", "judge"] and not fine.failures
        assert fine.asked[1].prompt == [{"role": "system", "content": "Judge."}, {"role": "user", "content": "fine"}]
        [asked] = boom.asked
        assert asked.error == "it is too loud" and asked.prompt[-1]["content"] == "boom" and not asked.answers
        assert odd.asked[1].error == "no rating" and odd.asked[1].answers == ["n"]
        assert odd.asked[1].prompt[-1]["content"] == "odd"
        text = odd.markdown()
        assert "> Judge." in text and "> n" in text and "**failed**: no rating" in text

    def test_prompts_are_shown_though_the_dataset_is_not_to_keep_them(self):
        _, [row] = previewed(["a"], 1, lambda: TextGeneration(llm=Scribe(), add_raw_input=False, add_raw_output=False))
        assert row.asked[0].prompt == [{"role": "user", "content": "a"}] and row.asked[0].answers == ["n"]

    def test_what_fails_before_it_is_asked_is_no_request(self):
        class Picky(Task):
            """Takes no row."""

            def format_input(self, row):
                raise ValueError("not this one")

            def format_output(self, text, row):
                return {}

        made, [row] = previewed(["a"], 1, lambda: Picky(llm=Scribe()))
        assert made.requests == 0 and row.failures == ["`picky`: not this one"]


@pytest.mark.usefixtures("prefect_server")
class TestRun:
    def pipeline(self, wire):
        llm = OpenAILLM(model="m", base_url=wire.url, api_key="k", price=Price(input=1, output=10))
        with Pipeline(name="preview") as pipeline:
            data = LoadDataFromDicts(data=[{"instruction": f"question {at}"} for at in range(20)])
            answer = TextGeneration(name="answer", llm=llm, system_prompt="Be brief.")
            check = TextGeneration(name="check", llm=llm, template="Is it so? {{ generation }} {{ instruction }}")
            data >> answer >> check >> KeepColumns(columns=["instruction", "generation"])
        return pipeline

    @pytest.mark.slow
    def test_what_it_asks_is_shown_priced_and_never_paid_again(self, wire, tmp_path):
        kept = Pipeline.run(self.pipeline(wire), output=tmp_path / "out", limit=1)
        dataset = self.pipeline(wire).run(output=tmp_path / "out", dry_run=4)
        assert len(wire.requests) == 2 * 4 and dataset.summary.rows == 4
        sent = [request.body["messages"] for request in wire.requests]
        assert len(dataset.preview) == 4 and all(len(row.asked) == 2 for row in dataset.preview)
        assert all(
            asked.prompt in sent and asked.answers == ["Madrid."] for row in dataset.preview for asked in row.asked
        )
        made = dataset.estimate
        assert figures(made) == (40, 40 * 9, 40 * 4, pytest.approx(40 * (9 + 4 * 10) / 1e6))
        assert (made.rows, made.sampled) == (20, 4) and made.seconds > 0
        assert kept.folder.exists() and kept.estimate is None and not kept.preview

        assert self.pipeline(wire).dry_run(batch_size=4).estimate == made
        assert len(wire.requests) == 2 * 4
        assert self.pipeline(wire).run().summary.rows == 20 and len(wire.requests) == 40

    def test_no_row_is_no_dry_run(self, wire):
        with pytest.raises(ConfigurationError, match="`dry_run` is 0: it takes one row at least"):
            self.pipeline(wire).dry_run(batch_size=0)

    @pytest.mark.slow
    def test_from_the_shell(self, wire, tmp_path):
        command = [sys.executable, "-m", "flows.text_generation", "--dry-run", "--system-prompt", "Be brief."]
        done = subprocess.run(
            [*command, "--llm", "OpenAILLM", "model=m", f"base_url={wire.url}"],
            cwd=tmp_path,
            env=os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value(), "OPENAI_API_KEY": "k"},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        assert "> Be brief." in done.stdout and done.stdout.count("> Madrid.") == 3 == len(wire.requests)
        assert (
            "Estimate for 386 rows, from the first 3:" in done.stdout and "What `m` costs is not known" in done.stdout
        )
        assert not list(tmp_path.iterdir())
