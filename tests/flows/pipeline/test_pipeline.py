"""Rows through connected steps: shape, order, identity, failures, memory, and what is left on disk."""

import asyncio
import json
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, load_dataset
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.sorting import TaskRunSort
from prefect.exceptions import TerminationSignal

from flows import ConfigurationError, Pipeline, RunFailed
from flows.dataset.formats import read_batches
from flows.dataset.writer import ShardWriter
from flows.execution import executor
from flows.reporting import terminal
from llms import AsyncLLM, Fatal, LlamaServerLLM, OpenAILLM, Rejected
from llms.typing import GenerateOutput, Usage
from tasks import GeneratorStep, GlobalStep, LoadDataFromDicts, Step, TextGeneration

pytestmark = pytest.mark.usefixtures("prefect_server")
ROOT = Path(__file__).parents[3]


class Parrot(AsyncLLM):
    """Says what it is told, after a moment; fails on `boom`, gives up on `dead`."""

    suffix: str = ""
    slow: float = 0.0

    @property
    def model_name(self) -> str:
        return "parrot"

    async def agenerate(self, input, num_generations=1, temperature: float = 1.0) -> GenerateOutput:
        text = input[-1]["content"]
        if self.slow:
            await asyncio.sleep(random.random() * self.slow)
        if text == "boom":
            raise Rejected("it is too loud")
        if text == "dead":
            raise Fatal("no balance: pay")
        return GenerateOutput(
            [f"{text}{self.suffix} at {temperature}"] * num_generations, usage=Usage(input_tokens=1, output_tokens=2)
        )


class Words(Step):
    """A row per word. Input columns: `generation`. Output columns: `word`."""

    @property
    def inputs(self):
        return ["generation"]

    @property
    def outputs(self):
        return ["word"]

    def process(self, inputs):
        yield [{"word": word} for row in inputs for word in row["generation"].split()]


def rows(*texts):
    return [{"instruction": text} for text in texts]


def simple(texts, llm=None, **fields):
    with Pipeline(name="simple") as pipeline:
        LoadDataFromDicts(data=rows(*texts), batch_size=4) >> TextGeneration(llm=llm or Parrot(), **fields)
    return pipeline


class TestRun:
    def test_the_result_is_a_dataset_with_errors_and_a_summary(self, tmp_path):
        result = simple(["a", "boom", "c"]).run(output=tmp_path / "out")
        assert list(result) == ["default"] and isinstance(result["default"], DatasetDict)
        assert result["default"]["train"]["generation"] == ["a at 1.0", "c at 1.0"]
        [error] = result.errors
        assert (error["step"], error["error"], error["message"]) == ("text_generation", "Rejected", "it is too loud")
        assert json.loads(error["row"]) == {"instruction": "boom"} and error["origin"] == "data[1]"
        summary = result.summary
        assert (summary.rows, summary.failures, summary.input_tokens, summary.output_tokens) == (2, 1, 2, 4)
        step = summary.steps["text_generation"]
        assert (step.rows, step.failures, step.models["parrot"].requests) == (2, 1, 3)
        assert step.models["parrot"].seconds > 0 and summary.seconds > 0

    def test_no_failures_is_an_empty_dataset_of_errors(self):
        assert simple(["a"]).run().errors.column_names[:3] == ["step", "error", "message"]

    def test_the_folder_holds_what_the_readme_promises(self, tmp_path):
        simple(["a"]).run(output=tmp_path / "out")
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"default", "run.json", "README.md"}
        run = json.loads((tmp_path / "out" / "run.json").read_text())
        assert run["state"] == "completed" and run["versions"].keys() >= {"python", "distilflow", "prefect"}
        assert run["steps"]["text_generation"]["llm"]["class"] == "Parrot"
        again = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
        assert again["instruction"] == ["a"]

    def test_failures_are_a_file_of_their_own(self, tmp_path):
        simple(["a", "boom"]).run(output=tmp_path / "out")
        assert pq.read_table(tmp_path / "out" / "errors.parquet").num_rows == 1

    def test_a_second_run_takes_the_place_of_the_first(self, tmp_path):
        simple(["a", "b"]).run(output=tmp_path / "out")
        assert simple(["c"]).run(output=tmp_path / "out")["default"]["train"].num_rows == 1
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_a_second_run_of_one_place_is_refused_while_the_first_lives(self, tmp_path):
        begun, go = threading.Event(), threading.Event()

        class Wait(Step):
            """Waits. Output columns: none."""

            def process(self, inputs):
                begun.set()
                assert go.wait(120)
                yield inputs

        with Pipeline() as slow:
            LoadDataFromDicts(data=rows("slow")) >> Wait()
        with ThreadPoolExecutor() as pool:
            first = pool.submit(slow.run, output=tmp_path / "out")
            try:
                assert begun.wait(120)
                with pytest.raises(
                    ConfigurationError, match="another run is writing `.*out`: .* choose another `output`"
                ):
                    simple(["b"]).run(output=tmp_path / "out")
            finally:
                go.set()
            assert first.result()["default"]["train"]["instruction"] == ["slow"]
        assert simple(["b"]).run(output=tmp_path / "out").summary.rows == 1
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_a_failed_run_lets_its_place_go(self, tmp_path):
        with pytest.raises(RunFailed) as failed:
            simple(["boom"]).run(output=tmp_path / "out")
        assert simple(["b"]).run(output=tmp_path / "out").summary.rows == 1
        assert failed and [path.name for path in tmp_path.iterdir()] == ["out"]

    @pytest.mark.slow
    def test_a_killed_run_lets_its_place_go(self, tmp_path):
        script = "import os, sys; from pathlib import Path; from flows.dataset.output_folder import OutputFolder\n"
        script += "folder = OutputFolder(Path(sys.argv[1]), ['default']); print('has it', flush=True); sys.stdin.read()"
        command = [sys.executable, "-c", script, str(tmp_path / "out")]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "has it\n"
            with pytest.raises(ConfigurationError, match="another run is writing"):
                simple(["a"]).run(output=tmp_path / "out")
            process.kill()
        assert simple(["a"]).run(output=tmp_path / "out").summary.rows == 1
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    @pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), TerminationSignal(signal.SIGTERM)])
    def test_an_interrupt_that_prefect_fails_to_handle_is_one(self, tmp_path, monkeypatch, interrupt):
        monkeypatch.setattr("prefect.task_engine._create_task_run_locally", Mock(side_effect=interrupt))
        mode = terminal.OutputMode("json")
        token = terminal.output_mode.set(mode)
        handler = signal.signal(signal.SIGTERM, lambda *_: None)  # Prefect sends it once more
        try:
            with pytest.raises(type(interrupt)) as error:  # not Prefect's `Task run is not set`
                simple(["a"]).run(output=tmp_path / "out")
        finally:
            terminal.output_mode.reset(token)
            signal.signal(signal.SIGTERM, handler)
        assert error.value is interrupt and mode.result["state"] == "interrupted"

    def test_a_folder_of_somebody_elses_is_left_alone(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("")
        with pytest.raises(ConfigurationError, match="choose another `output`"):
            simple(["a"]).run(output=tmp_path)
        assert (tmp_path / "thesis.tex").exists()

    def test_a_temporary_dataset_goes_with_its_result(self):
        simple(["a"]).run()  # Prefect's threads keep the context they are started in, of the first run of a process
        result = simple(["a"]).run()
        folder, rows = result.folder, result["default"]["train"]
        assert folder.exists()
        del result
        assert not folder.exists() and rows["instruction"] == ["a"]

    @pytest.mark.slow
    def test_order_is_kept_whatever_the_latency(self):
        texts = [f"row {number}" for number in range(300)]
        result = simple(texts, llm=Parrot(slow=0.2)).run()
        assert result["default"]["train"]["instruction"] == texts

    @pytest.mark.slow
    def test_the_same_pipeline_runs_again_unchanged(self):
        pipeline = simple(["a"])
        warm = {"text_generation": {"llm": {"generation_kwargs": {"temperature": 0.5}}}}
        assert pipeline.run(parameters=warm)["default"]["train"]["generation"] == ["a at 0.5"]
        assert pipeline.run()["default"]["train"]["generation"] == ["a at 1.0"]

    def test_a_dry_run_takes_the_first_rows_only(self):
        assert simple(["a", "b", "c"]).dry_run()["default"]["train"]["instruction"] == ["a"]
        assert simple(["a", "b", "c"]).run(limit=2).summary.rows == 2

    def test_rows_may_be_given_to_run(self):
        with Pipeline() as pipeline:
            TextGeneration(llm=Parrot()) >> Words()
        assert pipeline.name == "pipeline-text_generation-words"
        assert pipeline.run(dataset=rows("a"))["default"]["train"]["word"] == ["a", "at", "1.0"]

    def test_rows_may_be_a_table_in_memory(self):
        table = Dataset.from_list([{"instruction": "a", "note": "new"}, *rows("b", "c")])
        for each in (table, table.to_pandas(), table.data.table):
            with Pipeline() as pipeline:
                TextGeneration(llm=Parrot())
            made = pipeline.run(dataset=each)["default"]["train"]
            assert made["instruction"] == ["a", "b", "c"] and made["note"] == ["new", None, None]
        with pytest.raises(ValueError, match=r'`data` has the splits `train`: give one, `data\["train"\]`'):
            pipeline.run(dataset=DatasetDict(train=table))

    def test_inside_a_running_event_loop(self):
        async def notebook():
            return simple(["a"]).run()

        assert asyncio.run(notebook()).summary.rows == 1


class TestFailures:
    def test_too_many_end_the_run_and_leave_what_was_made(self, tmp_path):
        texts = ["a"] * 40 + ["boom"] * 20 + ["b"] * 4000
        with pytest.raises(RunFailed, match="of .* rows failed in `text_generation`.*it is too loud") as error:
            simple(texts).run(output=tmp_path / "out")
        assert "rows made before that are in" in error.value.__notes__[0]
        assert not (tmp_path / "out").exists()
        run = json.loads((tmp_path / "out.partial" / "run.json").read_text())
        assert run["state"] == "failed" and 40 <= run["summary"]["rows"] < 4000

    def test_how_many_is_for_the_user_to_say(self):
        assert simple(["a"] * 10 + ["boom"] * 20).run(max_error_rate=0.9).summary.failures == 20

    def test_nothing_but_failures_is_a_failed_run(self):
        with pytest.raises(RunFailed, match="2 of 2 rows failed"):
            simple(["boom", "boom"]).run()

    def test_a_fatal_error_stops_at_once(self, tmp_path):
        llm = Parrot(slow=0.01)
        with pytest.raises(Fatal, match="pay"):
            simple(["a"] * 16 + ["dead"] + ["b"] * 50_000, llm=llm).run(output=tmp_path / "out")
        assert json.loads((tmp_path / "out.partial" / "run.json").read_text())["summary"]["rows"] < 5_000

    def test_a_model_without_a_key_is_refused_before_any_row(self):
        with pytest.raises(ConfigurationError, match="set `OPENAI_API_KEY`"):
            simple(["a"], llm=OpenAILLM(model="m")).run()

    def test_an_error_in_a_source_fails_the_run(self):
        class Broken(GeneratorStep):
            """Breaks. Output columns: none."""

            def process(self, offset=0):
                yield rows("a")
                raise ValueError("the well is dry")

        with Pipeline() as pipeline:
            Broken() >> TextGeneration(llm=Parrot())
        with pytest.raises(ValueError, match="the well is dry"):
            pipeline.run()


class TestShape:
    def test_branches_make_a_dataset_each(self):
        with Pipeline() as pipeline:
            data = LoadDataFromDicts(data=rows("a", "b"))
            loud = TextGeneration(name="loud", llm=Parrot(suffix="!"))
            data >> [loud, TextGeneration(name="plain", llm=Parrot())]
            loud >> Words()
        result = pipeline.run()
        assert result["plain"]["train"]["generation"] == ["a at 1.0", "b at 1.0"]
        assert result["words"]["train"]["word"] == ["a!", "at", "1.0", "b!", "at", "1.0"]

    def test_sources_run_one_after_the_other(self):
        with Pipeline() as pipeline:
            for name in ("first", "second"):
                LoadDataFromDicts(name=name, data=rows(name)) >> TextGeneration(name=f"{name}_text", llm=Parrot())
        result = pipeline.run()
        assert result["first_text"]["train"]["instruction"] == ["first"]
        assert result["second_text"]["train"]["instruction"] == ["second"]

    def test_a_global_step_gets_all_rows_and_streams_on(self):
        class Distinct(GlobalStep):
            """Keeps the first of equal rows. Output columns: none."""

            def process(self, inputs):
                yield list({row["instruction"]: row for row in inputs}.values())

        with Pipeline() as pipeline:
            data = LoadDataFromDicts(data=rows(*"abcabcabc"), batch_size=2)
            data >> Distinct() >> TextGeneration(llm=Parrot())
        assert pipeline.run()["default"]["train"]["instruction"] == ["a", "b", "c"]

    def test_two_steps_of_a_class_are_numbered(self):
        with Pipeline() as pipeline:
            data = LoadDataFromDicts(data=rows("a"))
            data >> TextGeneration(llm=Parrot()) >> TextGeneration(llm=Parrot())
        assert [step.name for step in pipeline.steps][1:] == ["text_generation", "text_generation_1"]
        assert pipeline.run()["default"]["train"].num_rows == 1

    def refused(self, connect, *names):
        with Pipeline() as pipeline:
            known = {
                "data": lambda: LoadDataFromDicts(name="data", data=rows("a")),
                "text": lambda: TextGeneration(name="text", llm=Parrot()),
                "words": lambda: Words(name="words"),
            }
            connect(*(known[name]() for name in names))
        with pytest.raises(ConfigurationError) as error:
            pipeline.run()
        return str(error.value)

    def test_what_cannot_work_is_refused_by_name(self):
        assert "`text` gets no rows: put a source before it" in self.refused(lambda text: None, "text")
        said = self.refused(lambda data, text: text >> data, "data", "text")
        assert "`data` brings rows and takes none: `text` cannot come before it" in said
        said = self.refused(lambda data, words: data >> words, "data", "words")
        assert "has no `generation`: it has `instruction`" in said
        said = self.refused(lambda data, text, words: data >> text >> words >> text, "data", "text", "words")
        assert "goes in a circle" in said
        said = self.refused(lambda data, text, words: text >> words >> text, "data", "text", "words")
        assert "`text >> words >> text` goes in a circle" in said

    def test_a_step_that_needs_all_rows_takes_no_batches(self):
        class Last(GlobalStep):
            """The last row. Output columns: none."""

            def process(self, inputs):
                yield inputs[-1:]

        with Pipeline() as pipeline:
            LoadDataFromDicts(data=rows("a", "b")) >> Last(input_batch_size=1)
        with pytest.raises(ConfigurationError, match="`last` needs all rows at once: leave out its `input_batch_size`"):
            pipeline.run()

    def test_an_empty_pipeline_is_refused(self):
        with Pipeline() as pipeline:
            pass
        with pytest.raises(ConfigurationError, match="no steps"):
            pipeline.run()

    def test_names_and_edges_are_given_once(self):
        with Pipeline():
            data = LoadDataFromDicts(name="data", data=rows("a"))
            with pytest.raises(ValueError, match="two steps are called `data`"):
                LoadDataFromDicts(name="data", data=rows("a"))
            text = TextGeneration(llm=Parrot())
            data >> text
            with pytest.raises(ValueError, match="`data >> text_generation` is written twice"):
                data >> text

    def test_a_step_of_another_pipeline_is_refused(self):
        stray = LoadDataFromDicts(data=rows("a"))
        with Pipeline(), pytest.raises(ValueError, match="made outside this pipeline"):
            stray >> TextGeneration(llm=Parrot())

    def test_mappings_name_columns_there_are(self):
        pipeline = simple(["a"], input_mappings={"instuction": "instruction"})
        with pytest.raises(ConfigurationError, match="no input column `instuction`: did you mean `instruction`"):
            pipeline.run()
        with pytest.raises(ConfigurationError, match="no output column `generations`: did you mean `generation`"):
            simple(["a"], output_mappings={"generations": "answer"}).run()

    def test_a_template_must_name_columns_there_are(self):
        with pytest.raises(ConfigurationError, match="`data\\[0\\]` has no `question`: it has `instruction`"):
            simple(["a"], template="{{ question }}").run()

    def test_renamed_columns_are_followed(self):
        with Pipeline() as pipeline:
            data = LoadDataFromDicts(data=[{"q": "a"}], output_mappings={"q": "instruction"})
            answer = TextGeneration(llm=Parrot(), output_mappings={"generation": "answer"})
            data >> answer >> Words(input_mappings={"generation": "answer"})
        assert pipeline.run()["default"]["train"]["word"] == ["a", "at", "1.0"]


class TestParameters:
    def run(self, **given):
        return simple(["a"]).run(parameters=given)["default"]["train"][0]

    def test_strings_are_coerced(self):
        made = self.run(text_generation={"llm": {"suffix": "!", "generation_kwargs": {"temperature": "0.3"}}})
        assert made["generation"] == "a! at 0.3"
        made = simple(["a"]).run(parameters={"text_generation": {"num_generations": "3"}})
        assert made.summary.rows == 3

    def test_a_step_keeps_what_is_not_given(self):
        pipeline = simple(["a"], llm=Parrot(suffix="?", generation_kwargs={"temperature": 0.1}))
        given = {"text_generation": {"llm": {"slow": 0.01}}}
        assert pipeline.run(parameters=given)["default"]["train"]["generation"] == ["a? at 0.1"]

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"text_generaton": {}}, "no `text_generaton`: did you mean `text_generation`"),
            ({"text_generation": {"num_generation": 2}}, "did you mean `num_generations`"),
            ({"text_generation": {"llm": {"sufix": ""}}}, "`text_generation.llm`: .* did you mean `suffix`"),
            (
                {"text_generation": {"llm": {"generation_kwargs": {"temprature": 1}}}},
                "`text_generation.llm.generation_kwargs`: .* did you mean `temperature`",
            ),
            ({"text_generation": {"num_generations": "two"}}, "`text_generation.num_generations`: .*integer"),
            ({"text_generation": {"num_generations": 0}}, "`text_generation.num_generations`: .*greater than 0"),
        ],
    )
    def test_a_wrong_one_is_refused_by_name(self, given, message):
        with pytest.raises(ConfigurationError, match=message):
            simple(["a"]).run(parameters=given)

    def test_a_key_is_no_parameter(self):
        with pytest.raises(ConfigurationError, match="no `api_key`"):
            simple(["a"], llm=OpenAILLM(model="m")).run(parameters={"text_generation": {"llm": {"api_key": "sk-1"}}})

    def test_the_flow_shows_them_as_a_form(self):
        schema = simple(["a"], llm=LlamaServerLLM()).flow.parameters.model_dump()
        text = json.dumps(schema)
        runs = {"output", "max_error_rate", "limit", "use_cache", "max_cost", "max_tokens_total"}
        runs |= {"output_format", "dry_run", "approve"}
        assert schema["properties"].keys() == {"parameters", *runs}
        assert "How freely to sample" in text and "Answers per row" in text
        assert len(text) < 64_000

    def test_the_flow_can_be_called_with_them(self):
        made = simple(["a"]).flow(parameters={"text_generation": {"llm": {"suffix": "!"}}})
        assert made["default"]["train"]["generation"] == ["a! at 1.0"]

    def test_another_model_takes_the_place_of_a_step_s(self):
        pipeline = simple(["a"])
        assert pipeline.run()["default"]["train"]["generation"] == ["a at 1.0"]
        for named in ("Parrot suffix=?", {"block_type_slug": "parrot", "suffix": "?"}, Parrot(suffix="?")):
            made = pipeline.run(parameters={"text_generation": {"llm": named}})
            assert made["default"]["train"]["generation"] == ["a? at 1.0"], "and not what the first one said"
            run = json.loads((made.folder / "run.json").read_text())
            assert run["parameters"]["text_generation"]["llm"] == {"block_type_slug": "parrot", "suffix": "?"}


class TestPrefect:
    def test_every_step_and_batch_is_a_task_run_of_one_flow_run(self):
        result = simple([f"{n}" for n in range(10)]).run()
        run = json.loads((result.folder / "run.json").read_text())["flow_run"]
        with get_client(sync_client=True) as client:
            assert client.read_flow_run(run["id"]).state.is_completed()
            names = task_runs(client, run["id"], 6)
        assert sorted(names) == [
            f"{step}-{n}" for step in ("load_data_from_dicts", "text_generation") for n in range(3)
        ]

    def test_inside_a_flow_its_steps_join_that_run(self):
        @task
        def before():
            return ["a", "b"]

        @flow
        def mine():
            return simple(before()).run()

        result = mine()
        run = json.loads((result.folder / "run.json").read_text())["flow_run"]
        with get_client(sync_client=True) as client:
            flow_run = client.read_flow_run(run["id"])
            assert client.read_flow(flow_run.flow_id).name == "mine"
            names = task_runs(client, run["id"], 3)
        assert {"load_data_from_dicts-0", "text_generation-0"} < set(names)

    def test_no_secret_reaches_the_server(self, wire):
        llm = OpenAILLM(model="m", base_url=wire.url, api_key="sk-secret")

        @flow
        def mine(llm: OpenAILLM):
            return simple(["a"], llm=llm).run()

        result = mine(llm)
        assert "Bearer sk-secret" in wire.requests[0].headers["authorization"]
        run = json.loads((result.folder / "run.json").read_text())["flow_run"]
        with get_client(sync_client=True) as client:
            assert "sk-secret" not in client.read_flow_run(run["id"]).model_dump_json()
        assert not any(
            "sk-secret" in path.read_text() for path in result.folder.glob("*.*") if path.suffix != ".parquet"
        )


class TestMotion:
    @pytest.mark.slow
    def test_rows_in_flight_are_bounded(self, monkeypatch):
        monkeypatch.setattr(executor, "MAX_ROWS_IN_FLIGHT", 100)
        brought, done, ahead, lock = count(), [0], [], threading.Lock()

        class Tap(GeneratorStep):
            """Drips. Output columns: `instruction`."""

            def process(self, offset=0):
                for number in range(1_000):
                    ahead.append(next(brought) - done[0])
                    yield rows(f"{number}")

        class Count(Step):
            """Counts. Output columns: none."""

            def process(self, inputs):
                with lock:
                    done[0] += len(inputs)
                yield inputs

        with Pipeline() as pipeline:
            Tap(batch_size=10) >> TextGeneration(llm=Parrot(slow=0.02)) >> Count()
        assert pipeline.run().summary.rows == 1_000
        assert max(ahead) <= 100 + 2 * 10

    @pytest.mark.slow
    def test_a_step_works_while_the_one_before_it_does(self):
        late, begun = threading.Event(), threading.Event()

        class First(Step):
            """Waits in its second batch until the next step has begun. Output columns: none."""

            def process(self, inputs):
                if inputs[0]["instruction"] == "1":
                    late.set() if begun.wait(120) else None
                yield inputs

        class Second(Step):
            """Begins. Output columns: none."""

            def process(self, inputs):
                begun.set()
                yield inputs

        with Pipeline() as pipeline:
            LoadDataFromDicts(data=rows("0", "1"), batch_size=1) >> First() >> Second()
        pipeline.run()
        assert late.is_set()

    def test_batches_grow_so_that_task_runs_stay_hundreds(self):
        sizes = [len(batch) for batch in executor.split_into_batches(iter(range(100_000)))]
        assert sum(sizes) == 100_000 and sizes == sorted(sizes[:-1]) + sizes[-1:]
        assert sizes[0] == 8 and 100 < len(sizes) < 300


class TestParts:
    def write(self, folder, *rows):
        parts = ShardWriter(folder)
        for row in rows:
            parts.write([row])
            parts._flush()
        parts.close()
        return pq.read_table(folder).to_pylist()

    def test_a_column_takes_its_type_when_it_shows(self, tmp_path):
        made = self.write(tmp_path, {"a": None}, {"a": 1}, {"a": 2.5}, {"a": None})
        assert [row["a"] for row in made] == [None, 1.0, 2.5, None]

    def test_columns_may_come_and_go(self, tmp_path):
        assert self.write(tmp_path, {"a": 1}, {"b": "x"}) == [{"a": 1, "b": None}, {"a": None, "b": "x"}]

    def test_structs_may_widen(self, tmp_path):
        made = self.write(tmp_path, {"m": {"a": None}}, {"m": {"a": [1], "b": "x"}})
        assert made == [{"m": {"a": None, "b": None}}, {"m": {"a": [1], "b": "x"}}]

    def test_what_no_file_takes_is_made_so_that_it_does(self, tmp_path):
        made = self.write(tmp_path, {"a": "half \ud83d", "b": {}, "c": [{}]}, {"a": "x", "b": {"n": 1}, "c": []})
        assert [row["a"] for row in made] == ["half ?", "x"]
        assert [row["b"] for row in made] == [None, {"n": 1}] and [row["c"] for row in made] == [[None], []]

    def test_lines_have_every_column_and_one_type_for_each(self, tmp_path):
        parts = ShardWriter(tmp_path, "jsonl")
        rows = [{"a": None}, {"a": "x", "b": {"n": 1}}, {"b": {"m": float("nan")}, "c": 1}, {"c": "one", "d": b"\xff"}]
        for row in rows:
            parts.write([row])
            parts._flush()
        made = [json.loads(line) for path in parts.close() for line in path.read_text().splitlines()]
        assert [list(row) for row in made] == [["a", "b", "c", "d"]] * 4
        assert [row["c"] for row in made] == [None, None, "1", "one"] and made[3]["d"] == "_w=="
        assert [row["b"] for row in made[1:3]] == [{"n": 1, "m": None}, {"n": None, "m": None}]
        assert pa.types.is_string(parts.schema.field("a").type) and not list(tmp_path.glob("wider*"))

    @pytest.mark.parametrize("format", ["parquet", "jsonl"])
    def test_no_digit_of_a_number_is_lost_where_a_fraction_comes_later(self, tmp_path, format):
        parts = ShardWriter(tmp_path, format)
        for row in ({"a": 2**60 + 1, "b": 1}, {"a": 0.5, "b": 0.5}, {"a": None, "b": None}, {"a": [7], "b": 2}):
            parts.write([row])
            parts._flush()
        made = [row for path in parts.close() for rows in read_batches(path, 10) for row in rows]
        assert [row["a"] for row in made] == [str(2**60 + 1), "0.5", None, "[7]"]
        assert [row["b"] for row in made] == [1.0, 0.5, None, 2.0]

    @pytest.mark.parametrize("format", ["parquet", "jsonl"])
    def test_one_that_was_found_too_large_at_the_end_becomes_text(self, tmp_path, format):
        parts = ShardWriter(tmp_path, format)
        for row in ({"a": 2**60 + 1, "b": [2**60 + 1]}, {"a": 0.5, "b": [0.5]}):
            parts.write([row])
            parts._flush()
        made = [row for path in parts.close() for rows in read_batches(path, 10) for row in rows]
        assert made == [{"a": str(2**60 + 1), "b": f"[{2**60 + 1}]"}, {"a": "0.5", "b": "[0.5]"}]
        assert parts.schema.types == [pa.string()] * 2 and not list(tmp_path.glob("wider*"))

    def test_values_that_do_not_agree_become_text(self, tmp_path):
        made = self.write(tmp_path, {"a": 1}, {"a": "one"}, {"a": {"n": 1}})
        assert [row["a"] for row in made] == ["1", "one", '{"n": 1}']
        made = self.write(tmp_path / "same", {"a": [1]}, {"a": "x"})
        assert [row["a"] for row in made] == ["[1]", "x"]


def task_runs(client, flow_run_id, count, seconds=180):
    """The names of a flow run's task runs, once the server has recorded `count` of them."""
    deadline = time.monotonic() + seconds
    mine = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    while True:
        found = client.read_task_runs(flow_run_filter=mine, sort=TaskRunSort.NAME_ASC, limit=200)
        if len(found) >= count or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return [each.name for each in found]
