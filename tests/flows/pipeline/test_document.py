"""Pipelines as YAML: what is written, what is never written, what is read back, and how it runs from the shell."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

from flows import ConfigurationError, Pipeline
from llms import AnyLLM, AsyncLLM, Fatal, LlamaServerLLM, OpenAILLM
from llms.typing import GenerateOutput
from tasks import (
    CombineOutputs,
    Filter,
    GroupColumns,
    KeepColumns,
    LoadDataFromDicts,
    LoadDataFromFiles,
    Step,
    StructuredGeneration,
    TextGeneration,
    route,
    sample_n_steps,
    step,
)
from tasks.routing import Sample

KEY = "sk-planted-in-the-test"


class Magpie(AsyncLLM):
    """Says what it is told, and its favourite word."""

    word: str = "shiny"

    @property
    def model_name(self) -> str:
        return "magpie"

    async def agenerate(self, input, num_generations=1, temperature: float = 1.0) -> GenerateOutput:
        return GenerateOutput([f"{input[-1]['content']} {self.word} {temperature}"] * num_generations)


class Anything(Step):
    """Takes what it is given."""

    value: Any = None
    judge: AnyLLM | None = None
    panel: list[AnyLLM] = []
    token: SecretStr | None = None

    def process(self, inputs):
        yield inputs


@step(inputs=["generation"], outputs=["length"])
def MeasuredLength(rows, unit: str = "words"):
    for row in rows:
        row["length"] = len(row["generation"].split() if unit == "words" else row["generation"])
    yield rows


def rows(count=5):
    return [{"instruction": f"row {n}"} for n in range(count)]


def one(made: Step) -> str:
    """The text of a pipeline of one step."""
    pipeline = Pipeline()
    pipeline._dag.add(made)
    return pipeline.to_yaml()


def again(pipeline: Pipeline, folder: Path) -> Pipeline:
    """The pipeline saved and loaded; its text is the same."""
    pipeline.save(folder / "p.yaml")
    loaded = Pipeline.from_yaml(folder / "p.yaml")
    assert loaded.to_yaml() == pipeline.to_yaml() == (folder / "p.yaml").read_text(encoding="utf-8")
    return loaded


CAPITALS = """\
format: 1
name: capitals
description: What a model knows.
steps:
  data:
    class: LoadDataFromFiles
    data_files: questions.jsonl
  answer:
    class: TextGeneration
    llm:
      class: OpenAILLM
      generation_kwargs:
        temperature: 0.5
      model: gpt-5
    num_generations: 2
    system_prompt: |-
      Be brief.
      Be kind.
  measured_length:
    class: MeasuredLength
    unit: letters
edges:
- data >> answer
- answer >> measured_length
"""


class TestText:
    def test_it_is_what_a_person_would_write(self, tmp_path):
        llm = OpenAILLM(model="gpt-5", api_key=KEY, generation_kwargs={"temperature": 0.5})
        with Pipeline(name="capitals", description="What a model knows.") as pipeline:
            data = LoadDataFromFiles(name="data", data_files=Path("questions.jsonl"))
            answer = TextGeneration(name="answer", llm=llm, num_generations=2, system_prompt="Be brief.\nBe kind.")
            data >> answer >> MeasuredLength(unit="letters")
        assert pipeline.to_yaml() == CAPITALS
        again(pipeline, tmp_path)

    def test_branches_routes_and_joins(self, tmp_path):
        with Pipeline() as pipeline:
            names = ["a", "b", "c"]
            data, (a, b, c) = LoadDataFromDicts(name="data", data=rows()), [Anything(name=name) for name in names]
            data >> sample_n_steps(2, seed=-7) >> [a, b, c] >> GroupColumns(name="g", columns=["instruction"])
            data >> [KeepColumns(name="k", columns=["instruction"]), Filter(name="f", column="instruction")]
        lines = pipeline.to_yaml().partition("edges:\n")[2].splitlines()
        sample = "- data >> sample_n_steps(2, seed=-7) >> [a, b, c]"
        assert lines == [sample, "- a >> g", "- b >> g", "- c >> g", "- data >> [k, f]"]
        loaded = again(pipeline, tmp_path)
        assert loaded._dag.routes["data", "b"].selector == Sample(2, -7)
        assert loaded._dag.routes["data", "b"].targets == ("a", "b", "c")

    def test_edges_may_be_written_in_one_line(self, tmp_path):
        head, _, _ = CAPITALS.partition("edges:")
        (tmp_path / "p.yaml").write_text(head + "edges: [data >> answer >> measured_length]\n")
        assert Pipeline.from_yaml(tmp_path / "p.yaml").to_yaml() == CAPITALS
        other = 'edges:\n- "[data] >> sample_n_steps( 1 ) >> [answer, measured_length]"\n'
        (tmp_path / "p.yaml").write_text(head + other)
        assert (
            Pipeline.from_yaml(tmp_path / "p.yaml")
            .to_yaml()
            .endswith("- data >> sample_n_steps(1, seed=0) >> [answer, measured_length]\n")
        )

    def test_a_structure_and_models_in_any_field(self, tmp_path):
        with Pipeline() as pipeline:
            shape = {"type": "object", "properties": {"on": {"enum": ["yes", "no"]}}}
            StructuredGeneration(llm=Magpie())
            Anything(judge=LlamaServerLLM(structured_output={"schema": shape}), panel=[Magpie(), Magpie(word="x")])
        loaded = again(pipeline, tmp_path).steps[1]
        assert loaded.judge.structured_output == {"format": "json", "schema": shape}
        assert [llm.word for llm in loaded.panel] == ["shiny", "x"]

    def test_a_model_may_be_written_as_in_the_shell(self, tmp_path):
        text = "format: 1\nsteps:\n  t:\n    class: TextGeneration\n    llm: Magpie word=blue\n"
        (tmp_path / "p.yaml").write_text(text)
        assert Pipeline.from_yaml(tmp_path / "p.yaml").steps[0].llm.word == "blue"

    @pytest.mark.parametrize(
        "value",
        [
            "on",
            "1e3",
            "2024-01-01",
            "a: b",
            "- x",
            " x\n y",
            "x \n\n",
            "\n",
            "",
            "é🙂\u2028\x07",
            "{{ x }}",
            "#",
            "'",
            '"',
        ],
    )
    def test_texts_stay_what_they_are(self, value, tmp_path):
        with Pipeline() as pipeline:
            Anything(value={"texts": [value, f"{value}\n{value}"], value: None})
        assert again(pipeline, tmp_path).steps[0].value == pipeline.steps[0].value

    def test_a_file_of_another_kind_is_refused(self, tmp_path):
        with pytest.raises(ConfigurationError, match="written as YAML: call the file `.*p.yaml`"):
            Pipeline().save(tmp_path / "p.json")


class TestSecrets:
    def test_none_is_ever_written(self, tmp_path):
        llm = OpenAILLM(model="m", api_key=KEY, default_headers={"X-Key": KEY})
        with Pipeline() as pipeline:
            LoadDataFromDicts(data=rows()) >> TextGeneration(llm=llm) >> Anything(token=KEY, judge=llm)
        assert KEY not in again(pipeline, tmp_path).to_yaml()
        assert "key" not in pipeline.to_yaml().lower()

    @pytest.mark.parametrize(
        ("llm", "said"),
        [
            (
                OpenAILLM(model="m", generation_kwargs={"extra_body": {"to": "https://me:pass@host/v1"}}),
                "`text.llm.generation_kwargs.extra_body.to` holds a password or a key",
            ),
            (
                OpenAILLM(model="m", generation_kwargs={"extra_body": {"to": f"https://host/v1?key={KEY}"}}),
                "`text.llm.generation_kwargs.extra_body.to` holds a password or a key",
            ),
            (OpenAILLM(model=KEY, api_key=KEY), "stands in another field too"),
            (
                OpenAILLM(model="m", generation_kwargs={"extra_headers": {"Authorization": KEY}}),
                "`text.llm.generation_kwargs.extra_headers` holds a secret by its name, `Authorization`",
            ),
        ],
    )
    def test_where_it_does_not_belong_it_is_refused(self, llm, said, tmp_path):
        with Pipeline() as pipeline:
            TextGeneration(name="text", llm=llm)
        with pytest.raises(ConfigurationError, match=said.replace(".", "\\.")) as error:
            pipeline.save(tmp_path / "p.yaml")
        assert KEY not in str(error.value) and not list(tmp_path.iterdir())

    def test_a_field_named_like_one_is_to_be_typed_like_one(self):
        class Careless(Step):
            """Keeps a key in the open."""

            api_key: str = ""

            def process(self, inputs):
                yield inputs

        with pytest.raises(
            ConfigurationError, match="`careless.api_key` is a secret by its name: give it the type `SecretStr`"
        ):
            one(Careless(api_key=KEY))

    def test_a_file_with_one_is_refused(self, tmp_path):
        (tmp_path / "p.yaml").write_text(CAPITALS.replace("model: gpt-5", f"model: gpt-5\n      api_key: {KEY}"))
        with pytest.raises(ConfigurationError, match="`answer`.*`api_key` does not belong") as error:
            Pipeline.from_yaml(tmp_path / "p.yaml")
        assert KEY not in str(error.value)


STRANGER = "https://stranger.example/v1"


def text_of(llm: str) -> str:
    return f"format: 1\nsteps:\n  t:\n    class: TextGeneration\n    llm: {llm}\n"


class TestStrangers:
    """A file that names an address does not get the key of whoever reads it."""

    def read(self, folder, llm):
        (folder / "p.yaml").write_text(text_of(llm))
        return Pipeline.from_yaml(folder / "p.yaml").steps[0].llm

    @pytest.mark.parametrize(
        ("llm", "key", "variable"),
        [
            (f"{{class: OpenAILLM, model: m, base_url: '{STRANGER}'}}", "OPENAI_API_KEY", "OPENAI_BASE_URL"),
            (f"{{block_type_slug: openai-llm, model: m, base_url: '{STRANGER}'}}", "OPENAI_API_KEY", "OPENAI_BASE_URL"),
            (f"OpenAILLM model=m base_url={STRANGER}", "OPENAI_API_KEY", "OPENAI_BASE_URL"),
            (
                f"{{class: AnthropicLLM, model: m, base_url: '{STRANGER}'}}",
                "ANTHROPIC_AUTH_TOKEN",
                "ANTHROPIC_BASE_URL",
            ),
            (f"{{class: OllamaLLM, model: m, base_url: '{STRANGER}'}}", "OLLAMA_API_KEY", "OLLAMA_HOST"),
            (
                f"{{class: AzureOpenAILLM, model: m, base_url: '{STRANGER}'}}",
                "AZURE_OPENAI_AD_TOKEN",
                "AZURE_OPENAI_END",
            ),
            (
                f"{{class: AzureOpenAILLM, model: m, azure_identity: true, base_url: '{STRANGER}'}}",
                "NONE",
                "AZURE_OPENAI_ENDPOINT",
            ),
            (f"{{class: VertexAILLM, model: m, base_url: '{STRANGER}'}}", "NONE", "GOOGLE_VERTEX_BASE_URL"),
            (f"{{class: InferenceEndpointsLLM, base_url: '{STRANGER}'}}", "HF_TOKEN", None),
            (f"{{class: LiteLLM, model: groq/m, litellm_params: {{api_base: '{STRANGER}'}}}}", "NONE", None),
        ],
    )
    def test_one_is_refused_and_told_how_to_mean_it(self, llm, key, variable, tmp_path, monkeypatch):
        monkeypatch.setenv(key, KEY)
        with pytest.raises(ConfigurationError, match="step `t`: this file would send .*key.*save a block") as error:
            self.read(tmp_path, llm)
        assert "`https://stranger.example:443`" in str(error.value) and KEY not in str(error.value)
        assert variable is None or f"set `{variable}" in str(error.value)

    @pytest.mark.parametrize(
        ("url", "environment"),
        [
            (STRANGER, {}),
            (STRANGER, {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": "https://stranger.example/v2"}),
            ("https://api.openai.com/v1", {"OPENAI_API_KEY": KEY}),
            ("http://localhost:8000/v1", {"OPENAI_API_KEY": KEY}),
            ("http://127.0.0.1:8000/v1", {"OPENAI_API_KEY": KEY}),
        ],
        ids=["no key", "a variable names it", "the provider's own", "this machine", "this machine's number"],
    )
    def test_one_that_is_meant_is_read(self, url, environment, tmp_path, monkeypatch):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert self.read(tmp_path, f"{{class: OpenAILLM, model: m, base_url: '{url}'}}").base_url == url

    @pytest.mark.parametrize(
        "url", ["http://api.openai.com/v1", "https://api.openai.com:444", "https://api.openai.com.example/v1"]
    )
    def test_one_that_looks_like_the_providers_is_a_stranger(self, url, tmp_path, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        with pytest.raises(ConfigurationError, match="this file would send"):
            self.read(tmp_path, f"{{class: OpenAILLM, model: m, base_url: '{url}'}}")

    def test_a_region_is_no_way_to_another_host(self, tmp_path):
        llm = self.read(tmp_path, "{class: VertexAILLM, model: m, location: stranger.example/x}")
        with pytest.raises(Fatal, match="`stranger.example/x` is no region"):
            llm._resolve_base_url()


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.slow
class TestSavedModels:
    def test_the_key_of_a_block_stays_with_its_address(self, tmp_path):
        OpenAILLM(model="gpt-5", api_key=KEY, base_url=STRANGER).save("document-own", overwrite=True)
        read = TestStrangers().read
        assert read(tmp_path, "openai-llm/document-own").base_url == STRANGER
        assert read(tmp_path, "{block: openai-llm/document-own, model: m}").base_url == STRANGER
        with pytest.raises(ConfigurationError, match="would send the block's key to `https://other.example:443`"):
            read(tmp_path, "{block: openai-llm/document-own, base_url: 'https://other.example/v1'}")

    def test_a_saved_model_is_written_by_name(self, tmp_path):
        OpenAILLM(model="gpt-5", api_key=KEY).save("document-prod", overwrite=True)
        with Pipeline() as pipeline:
            TextGeneration(name="text", llm=OpenAILLM.load("document-prod"))
        assert "    llm: openai-llm/document-prod\n" in pipeline.to_yaml()
        loaded = again(pipeline, tmp_path).steps[0].llm
        assert loaded.model == "gpt-5" and loaded.api_key.get_secret_value() == KEY

    def test_what_was_changed_on_it_is_written_too(self, tmp_path):
        OpenAILLM(model="gpt-5", api_key=KEY).save("document-changed", overwrite=True)
        llm = OpenAILLM.load("document-changed").model_copy(update={"timeout": 5.0, "api_key": SecretStr("another")})
        with Pipeline() as pipeline:
            TextGeneration(name="text", llm=llm)
        assert "    llm:\n      block: openai-llm/document-changed\n      timeout: 5.0\n" in pipeline.to_yaml()
        loaded = again(pipeline, tmp_path).steps[0].llm
        assert loaded.timeout == 5 and loaded.api_key.get_secret_value() == KEY

    def test_one_that_is_gone_is_refused_by_name(self, tmp_path):
        (tmp_path / "p.yaml").write_text("format: 1\nsteps:\n  t: {class: TextGeneration, llm: openai-llm/gone}\n")
        with pytest.raises(
            ConfigurationError, match="p.yaml`, step `t`: `llm`: there is no saved block `openai-llm/gone`"
        ):
            Pipeline.from_yaml(tmp_path / "p.yaml")


class TestWhatNoFileHolds:
    def refused(self, declare) -> str:
        with Pipeline() as pipeline:
            declare()
        with pytest.raises(ConfigurationError) as error:
            pipeline.to_yaml()
        return str(error.value)

    def test_functions_are_refused_with_a_cure(self):
        said = self.refused(lambda: Filter(where=lambda row: True))
        assert said.startswith("`filter.where` is a function") and "`Filter(column=…)`" in said and "`@step`" in said
        said = self.refused(lambda: Anything(value={"by": len}))
        assert said.startswith("`anything.value.by` is a function") and "`@step`" in said
        steps = lambda: [Anything(name="a"), Anything(name="b")]  # noqa: E731
        said = self.refused(lambda: LoadDataFromDicts(name="data", data=rows()) >> route(lambda row: "a") >> steps())
        assert said.startswith("`data >> route(…) >> [a, b]`") and "`sample_n_steps`" in said

    def test_objects_and_many_rows(self):
        assert self.refused(lambda: Anything(value=[object()])).startswith("`anything.value[0]` is a `object`")
        said = self.refused(lambda: LoadDataFromDicts(name="data", data=rows(1_001)))
        assert "`data.data` has 1,001 rows" in said and "`LoadDataFromFiles(" in said

    def test_two_classes_of_one_name_are_told_apart(self, tmp_path):
        first = type("Twin", (KeepColumns,), {"__module__": "north", "__qualname__": "Twin"})
        second = type("Twin", (KeepColumns,), {"__module__": "south", "__qualname__": "Twin"})
        with Pipeline() as pipeline:
            first(name="a", columns=["x"]), second(name="b", columns=["x"])
        assert "class: north.Twin" in pipeline.to_yaml()
        assert [type(each) for each in again(pipeline, tmp_path).steps] == [first, second]
        (tmp_path / "p.yaml").write_text("format: 1\nsteps:\n  a: {class: Twin, columns: [x]}\n")
        with pytest.raises(
            ConfigurationError, match="several classes `Twin`: write which, `north.Twin` or `south.Twin`"
        ):
            Pipeline.from_yaml(tmp_path / "p.yaml")


class TestMistakes:
    def said(self, tmp_path, text) -> str:
        (tmp_path / "p.yaml").write_text(text)
        with pytest.raises(ConfigurationError) as error:
            Pipeline.from_yaml(tmp_path / "p.yaml")
        return str(error.value).replace(f"{tmp_path}/", "")

    @pytest.mark.parametrize(
        ("right", "wrong", "said"),
        [
            (
                "TextGeneration",
                "TextGenration",
                "`p.yaml`, step `answer`: there is no step `TextGenration`: did you mean",
            ),
            ("MeasuredLength", "os.system", "One of your own is known once its module is imported"),
            ("OpenAILLM", "OpenAILM", "step `answer`: there is no model `OpenAILM`: did you mean `OpenAILLM`?"),
            ("OpenAILLM", "RemoteLLM", "there is no model `RemoteLLM`"),
            ("class: OpenAILLM", "clas: OpenAILLM", "step `answer`: `llm`:"),
            ("num_generations", "num_generation", "`TextGeneration` has no `num_generation`: did you mean"),
            ("unit", "unlit", "step `measured_length`: `MeasuredLength` has no `unlit`: did you mean `unit`?"),
            ("num_generations: 2", "num_generations: many", "step `answer`: `num_generations`: Input should be"),
            ("model: gpt-5", "modle: gpt-5", "`OpenAILLM` has no `modle`: did you mean `model`?"),
            ("    class: MeasuredLength", "    clas: x", "step `measured_length`: it has no `class`"),
            ("unit: letters", "name: x", "leave out `name`"),
            (
                "data >> answer",
                "data >> anser",
                "edge `data >> anser`: there is no step `anser`: did you mean `answer`?",
            ),
            ("- answer >> measured_length", "- data >> answer", "`data >> answer` is written twice"),
            ("- data >> answer", "- data", "edge `data`: an edge is written `a >> b`"),
            ("data >> answer", "data >> sample_n_steps(1)", "stands between a step and several"),
            ("data >> answer", "data >> __import__('os') >> answer", "there is no step `__import__('os')`"),
            ("format: 1", "format: 2", "it is laid out in format 2, and 1 is the newest one known here: update"),
            ("format: 1\n", "", "begin it with `format: 1`"),
            ("edges:", "edge:", "a pipeline has no `edge`: did you mean `edges`?"),
            ("  measured_length:", "  answer:", "is no YAML: `answer` is written twice"),
            ("  measured_length:", "  on:", "the name of step `True` for something else: put it in quotes"),
            ("name: capitals", "name: 1", "`name` is a text"),
            ("unit: letters", "unit: !!python/name:os.system x", "is no YAML: could not determine a constructor"),
            ("unit: letters", "unit: &a [*a]", "`*a` stands for another part"),
            ("unit: letters", "unit: [", "is no YAML"),
        ],
    )
    def test_it_is_told_with_the_file_and_the_place(self, right, wrong, said, tmp_path):
        assert right in CAPITALS
        before = set(sys.modules)
        message = self.said(tmp_path, CAPITALS.replace(right, wrong, 1))
        assert message.startswith("`p.yaml`") and said in message
        assert not {name for name in set(sys.modules) - before if not name.startswith(("pydantic", "yaml"))}

    def test_what_is_no_pipeline(self, tmp_path):
        assert "`p.yaml`: this is no pipeline, it has no `steps`" in self.said(tmp_path, "just words")
        assert "`steps` are written by name" in self.said(tmp_path, "format: 1\nsteps: [a, b]\n")
        assert "`edges` is a list of texts" in self.said(tmp_path, "format: 1\nsteps: {}\nedges: [[a, b]]\n")
        with pytest.raises(ConfigurationError, match="there is no `.*none.yaml`"):
            Pipeline.from_yaml(tmp_path / "none.yaml")
        with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
            Pipeline.from_yaml(tmp_path)
        deep = f"format: 1\nsteps: {{a: {{class: Anything, value: {'[' * 5_000}{']' * 5_000}}}}}\n"
        assert "is no YAML" in self.said(tmp_path, deep)


NASTY = [
    "on",
    "null",
    "0x1F",
    "1_0",
    "é🙂",
    "a: b #c",
    "[x]",
    "{{ y }}",
    " lead",
    "trail ",
    "two\nlines\n",
    "\ttab",
    "~",
    "",
]


def anything(draw: random.Random, depth: int = 0) -> Any:
    """A value of plain data."""
    kinds = [None, True, draw.randint(-(10**12), 10**12), draw.gauss(0, 10**6), draw.choice(NASTY), 1e300, 1e-7]
    if depth < 3 and draw.random() < 0.5:
        made = [anything(draw, depth + 1) for _ in range(draw.randint(0, 3))]
        return made if draw.random() < 0.5 else {draw.choice(NASTY) + f"{n}": each for n, each in enumerate(made)}
    return draw.choice(kinds)


def drawn_pipeline(seed: int) -> Pipeline:
    """A pipeline of any shape: sources, steps after any of those before, some by a sample, joins."""
    draw = random.Random(seed)
    with Pipeline(name=draw.choice([None, "drawn", "on"]), description=draw.choice([None, *NASTY])) as pipeline:
        made: list[Step] = [
            LoadDataFromDicts(data=[{"n": anything(draw), "m": n} for n in range(draw.randint(1, 4))])
            for _ in range(draw.randint(1, 2))
        ]
        for number in range(draw.randint(1, 7)):
            named = {"name": f"{draw.choice(['on', 'a-b', '1', 'null'])}_{number}"} if draw.random() < 0.5 else {}
            fields: dict[str, Any] = {"value": anything(draw)} if draw.random() < 0.7 else {}
            if draw.random() < 0.3:
                fields["judge"] = Magpie(word=draw.choice(NASTY), max_concurrency=draw.randint(1, 500))
            if draw.random() < 0.3:
                fields["input_batch_size"] = draw.randint(1, 9)
            step = Anything(**named, **fields)
            for source in draw.sample(made, draw.randint(1, min(2, len(made)))):
                source >> step
            made.append(step)
        if draw.random() < 0.6:
            branches = [Anything() for _ in range(draw.randint(2, 4))]
            draw.choice(made) >> sample_n_steps(draw.randint(1, 2), seed=draw.randint(-9, 9)) >> branches
            branches >> (CombineOutputs() if draw.random() < 0.5 else GroupColumns(columns=["m"]))
    return pipeline


@pytest.mark.parametrize("seed", range(120))
def test_whatever_the_pipeline_it_comes_back(seed, tmp_path):
    pipeline = drawn_pipeline(seed)
    loaded = again(pipeline, tmp_path)
    assert (loaded._name, loaded.description) == (pipeline._name, pipeline.description)
    for before, after in zip(pipeline.steps, loaded.steps, strict=True):
        assert type(before) is type(after)
        for name in type(before).model_fields:
            assert getattr(before, name) == getattr(after, name), (before.name, name)
    edges = [[(a.name, b.name) for a, b in each._dag.edges] for each in (pipeline, loaded)]
    assert edges[0] == edges[1]
    routes = [dict(p._dag.routes) for p in (pipeline, loaded)]
    assert routes[0] == routes[1]
    assert pipeline.draw() == loaded.draw()


@pytest.mark.usefixtures("prefect_server")
class TestRun:
    def test_the_loaded_pipeline_does_the_same(self, tmp_path):
        with Pipeline(name="same") as pipeline:
            branches = [TextGeneration(name=word, llm=Magpie(word=word), num_generations=2) for word in ("x", "y", "z")]
            data = LoadDataFromDicts(data=rows(30))
            data >> sample_n_steps(2, seed=5) >> branches >> GroupColumns(columns=["generation"]) >> Anything()
        warm = {"y": {"llm": {"generation_kwargs": {"temperature": 0.25}}}}
        loaded = again(pipeline, tmp_path)
        made = [each.run(warm)["default"]["train"].to_list() for each in (pipeline, loaded)]
        assert made[0] == made[1] and len(made[0]) == 30
        assert "y 0.25" in str(made[0])

    def test_a_loaded_step_of_a_function_runs(self, tmp_path):
        with Pipeline() as pipeline:
            TextGeneration(llm=Magpie()) >> MeasuredLength(unit="letters")
        made = again(pipeline, tmp_path).run(dataset=rows(2))
        assert made["default"]["train"]["length"] == [len("row 0 shiny 1.0")] * 2


MODULE = """
from tasks import step

@step(inputs=["generation"], outputs=["letters"])
def Letters(rows, less: int = 0):
    for row in rows:
        row["letters"] = len(row["generation"]) - less
    yield rows
"""

SHELL = """\
format: 1
name: shell
description: Capitals, and how long they are.
steps:
  data:
    class: LoadDataFromDicts
    data:
    - instruction: What's the capital of Spain?
    - instruction: What's the capital of France?
  answer: {class: TextGeneration, llm: LlamaServerLLM}
  letters: {class: Letters}
edges:
- data >> answer >> letters
"""


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.slow
class TestShell:
    @pytest.fixture
    def shell(self, tmp_path):
        from prefect.settings import PREFECT_API_URL

        (tmp_path / "my_steps.py").write_text(MODULE)
        (tmp_path / "p.yaml").write_text(SHELL)

        def run(*arguments):
            return subprocess.run(
                [sys.executable, "-m", "flows.run", *map(str, arguments)],
                cwd=tmp_path,
                env=os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value(), "COLUMNS": "100"},
                capture_output=True,
                text=True,
                timeout=300,
            )

        return run

    def test_makes_the_dataset_of_the_file(self, shell, tmp_path):
        given = ["--param", "letters.less=1", "--param", "answer.llm.generation_kwargs.temperature=0", "--no-cache"]
        done = shell("p.yaml", "--import", "my_steps", "--output", "made", "--limit", 1, "--max-cost", 5, *given)
        assert done.returncode == 0, done.stderr
        assert "1 rows in" in done.stdout and "letters: 30" in done.stdout and "Traceback" not in done.stderr
        assert pq.read_table(tmp_path / "made" / "default")["generation"].to_pylist() == [
            "The capital of Spain is Madrid."
        ]
        run = json.loads((tmp_path / "made" / "run.json").read_text())
        assert run["pipeline"] == "shell" and run["parameters"]["letters"] == {"less": 1}

    def test_rows_may_come_from_elsewhere(self, shell, tmp_path):
        text = "format: 1\nsteps:\n  answer: {class: TextGeneration, llm: LlamaServerLLM}\n"
        (tmp_path / "bare.yaml").write_text(text)
        done = shell("bare.yaml", "--data", '[{"instruction": "Hello"}]')
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "outputs" / "bare" / "run.json").exists()

    def test_help_says_what_the_file_does_and_takes(self, shell):
        done = shell("p.yaml", "--import=my_steps", "--help")
        said = " ".join(done.stdout.split())
        assert done.returncode == 0 and said.startswith("usage: python -m flows.run p.yaml")
        for word in ("how long they are.", "`answer` (TextGeneration)", "--import MODULE", "--max-cost", "--no-cache"):
            assert word in said
        assert "(default: outputs/p)" in said
        for arguments, status in ((["--help"], 0), ([], 2)):
            done = shell(*arguments)
            assert done.returncode == status and "python -m flows.run FILE.yaml" in done.stdout

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            ("none.yaml", "there is no `none.yaml`"),
            ("p.yaml", "`p.yaml`, step `letters`: there is no step `Letters`"),
            ("p.yaml --import my_stebs", "`--import my_stebs`: No module named 'my_stebs'"),
            ("p.yaml --import my_steps --param letter.less=1", "no `letter`: did you mean `letters`"),
            ("p.yaml --import my_steps --param letters.less=few", "`letters.less`: Input should be a valid integer"),
            ("p.yaml --import my_steps --limmit 3", "unrecognized arguments: --limmit"),
        ],
    )
    def test_a_mistake_is_told_in_a_sentence(self, shell, tmp_path, arguments, sentence):
        done = shell(*arguments.split())
        assert sentence in done.stderr and "Traceback" not in done.stderr
        assert done.returncode == 2 and not (tmp_path / "outputs").exists()
