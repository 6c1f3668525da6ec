"""Pins of what users have, in `tests/snapshots/`: flows, blocks, YAML, files of a run, imports, keys of answers.

A change that is meant is accepted with `UPDATE_SNAPSHOTS=1 python -m pytest tests/test_compatibility.py`.

The facts are collected by this file run as a script, in a process where no class of another test is known. Exit
statuses 0, 1 and 2 are pinned in `test_progress.py`, 130 in `test_flows.py`.
"""

import asyncio
import json
import os
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from difflib import unified_diff
from importlib import import_module
from inspect import isabstract
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from prefect import Flow
from prefect.blocks.core import Block
from prefect.events.clients import AssertingEventsClient
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL
from prefect.utilities.dispatch import get_registry_for_type

import deployments
import flows
import llms
import tasks
from flows import Pipeline
from flows.run import flow_of
from llms import AsyncLLM, LlamaServerLLM, OpenAILLM, Rejected
from llms.store import key_of
from llms.typing import ChatType, GenerateOutput, Usage
from tests.support.modules import run_main

ROOT = Path(__file__).parents[1]
SNAPSHOTS = ROOT / "tests" / "snapshots"

ENTRIES = ("deployments", "deployments serve", "deployments worker", "flows.results", "flows.run", "llms.store")
"""What is run with `python -m`, besides the flows and a pipeline in a file."""

MODULES = {
    "flows.errors": ["ConfigurationError", "RunFailed"],
    "llms.base": ["LLM", "AsyncLLM", "StructuredLLM"],
    "llms.errors": ["BudgetExceeded", "Fatal", "LLMError", "Rejected", "Throttled", "Transient"],
    "llms.remote": ["RemoteLLM"],
    "llms.store": ["IRRELEVANT", "StoreError", "key_of"],
    "llms.typing": ["ChatType", "FormattedInput", "GenerateOutput", "HiddenState", "StructuredOutputType", "Usage"],
    "tasks.base": ["GeneratorStep", "GlobalStep", "Step"],
    "tasks.task": ["Task"],
    "tasks.typing": ["ChatType", "Row"],
}
"""What users import from modules of a package."""

REQUIRED = {
    "AnyscaleLLM": {"base_url": "https://anyscale.example/v1"},
    "AzureOpenAILLM": {"base_url": "https://azure.example"},
    "InferenceEndpointsLLM": {"model_id": "m"},
    "LlamaCppLLM": {"model_path": "m.gguf"},
    "LlamaServerLLM": {"model_path": "m.gguf"},
    "LiteLLM": {"model": "openai/m"},
    "VertexAILLM": {"project": "p"},
}
"""Fields of a model without which it has no key, or one of the demo model's; each other needs a `model`."""

CHAT: ChatType = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Capital of Spain?"}]

SHAPE = {"type": "object", "properties": {"capital": {"type": "string"}}, "required": ["capital"]}


class Lovebird(AsyncLLM):
    """A model of a user's own, a cent a text: it repeats what it is told, the slow slowly, the loud not at all."""

    word: str = "indeed"

    @property
    def model_name(self) -> str:
        return "lovebird"

    def cost(self, usage: Usage) -> float:
        return 0.01 * usage.input_tokens

    async def agenerate(self, input: ChatType, num_generations: int = 1, temperature: float = 1.0) -> GenerateOutput:
        if "!" in (text := str(input[-1]["content"])):
            raise Rejected("too loud")
        await asyncio.sleep(3 * ("slow" in text))
        return GenerateOutput([f"{text}, {self.word}"] * num_generations, usage=Usage(1, 2))


class Interrupted(tasks.Step):
    """A step of a user's own, in which somebody presses Ctrl-C."""

    unit: str = "words"

    def process(self, inputs: Any) -> Iterator[Any]:
        raise KeyboardInterrupt


def rows(good: int, loud: int = 0) -> list[dict[str, Any]]:
    return [{"instruction": f"row {at}{'!' * (at >= good)}"} for at in range(good + loud)]


# --- a pipeline for each feature of a file ----------------------------------------------------------------------------


def described() -> None:
    llm = OpenAILLM(model="gpt-5", generation_kwargs={"temperature": 0.5, "stop": ["a", "b"]})
    data = tasks.LoadDataFromFiles(name="data", data_files="questions.jsonl")
    data >> tasks.TextGeneration(name="answer", llm=llm, num_generations=4, system_prompt="Be brief.\nBe kind.")


def edges() -> None:
    data = tasks.LoadDataFromDicts(name="data", data=rows(2))
    both = [tasks.KeepColumns(name=name, columns=["instruction"]) for name in "ab"]
    data >> both >> tasks.GroupColumns(columns=["instruction"])


def mapped() -> None:
    data = tasks.LoadDataFromDicts(data=[{"question": "Why?"}])
    mappings: Any = {"input_mappings": {"instruction": "question"}, "output_mappings": {"generation": "answer"}}
    data >> tasks.TextGeneration(llm=LlamaServerLLM(n_ctx=512), input_batch_size=7, **mappings)


def own() -> None:
    answer = tasks.TextGeneration(llm=Lovebird(word="no"))
    tasks.LoadDataFromDicts(data=rows(2)) >> answer >> Interrupted(unit="letters")


def sampled() -> None:
    data = tasks.LoadDataFromDicts(data=rows(2))
    both = [tasks.TextGeneration(name=name, llm=Lovebird(word=name)) for name in "ab"]
    data >> tasks.sample_n_steps(1, seed=7) >> both


def structured() -> None:
    structure: Any = {"format": "json", "schema": SHAPE}
    llm = OpenAILLM(model="gpt-5", structured_output={"format": "regex", "schema": "[A-Z][a-z]+"})
    data = tasks.LoadDataFromDicts(data=[{"instruction": "Capital of Spain?", "structured_output": structure}])
    data >> tasks.StructuredGeneration(llm=OpenAILLM(model="gpt-5")) >> tasks.TextGeneration(llm=llm)


PIPELINES: dict[str, Callable[[], None]] = {
    each.__name__: each for each in (described, edges, mapped, own, sampled, structured)
}


def pipeline(name: str) -> Pipeline:
    with Pipeline(name, f"A pipeline that is {name}." if name == "described" else None) as made:
        PIPELINES[name]()
    return made


# --- facts, by the file they are kept in ------------------------------------------------------------------------------


def text(value: Any) -> str:
    return f"{json.dumps(value, indent=2, ensure_ascii=False)}\n"


def shape(value: Any) -> Any:
    """The names in plain data, and the types of what they name; of a list, those of its first item."""
    match value:
        case dict():
            return {name: shape(each) for name, each in sorted(value.items())}
        case list():
            return list(map(shape, value[:1]))
    return type(value).__name__


def of_flows() -> Iterator[tuple[str, str]]:
    for module in pkgutil.iter_modules(flows.__path__):
        found = getattr(import_module(f"flows.{module.name}"), module.name, None)
        if isinstance(found, Flow):
            yield f"flows/{module.name}.json", text(found.parameters.model_dump(mode="json"))
            yield f"help/flows.{module.name}.txt", run_main(f"flows.{module.name}", "--help")
    pipeline("described").save("p.yaml")
    yield "flows/p.yaml.json", text(flow_of(Path("p.yaml")).parameters.model_dump(mode="json"))
    yield "flows/described.json", text(pipeline("described").flow.parameters.model_dump(mode="json"))
    yield "help/flows.run p.yaml.txt", run_main("flows.run", "p.yaml", "--help")
    for entry in ENTRIES:
        yield f"help/{entry}.txt", run_main(*entry.split(), "--help")


def of_blocks() -> Iterator[tuple[str, str]]:
    ours = ("llms", "tasks", "flows", "deployments")
    blocks = [cls for cls in (get_registry_for_type(Block) or {}).values() if cls.__module__.split(".")[0] in ours]
    named = {cls.__name__: cls for cls in sorted(blocks, key=lambda cls: cls.__name__) if not isabstract(cls)}
    slugs = {name: [cls.get_block_type_slug(), cls._calculate_schema_checksum()] for name, cls in named.items()}
    yield "blocks.json", text(slugs)
    keys = dict[str, Any]()
    for name, cls in named.items():
        needed = {each: "m" for each, field in cls.model_fields.items() if field.is_required()}
        llm: Any = cls(**needed | REQUIRED.get(name, {}))
        keys[name] = [key_of(llm, CHAT, {}, 0), key_of(llm, CHAT, {"max_new_tokens": 8, "temperature": 0.5}, 1)]
    shaped = OpenAILLM(model="gpt-5", structured_output={"format": "json", "schema": SHAPE})
    yield "keys.json", text(keys | {"structured": key_of(shaped, CHAT, {}, 0)})


def of_imports() -> Iterator[tuple[str, str]]:
    named = {each.__name__: each.__all__ for each in (llms, tasks, flows)} | MODULES
    lines = [f"from {module} import {name}" for module, names in sorted(named.items()) for name in sorted(names)]
    for line in lines:
        exec(line, {})
    yield "imports.txt", "\n".join([*lines, ""])


def run(data: list[dict[str, Any]], **settings: Any) -> tuple[str, dict[str, Any]]:
    """The name of the state a run ends in, and its `run.json` if it has completed."""
    with Pipeline(name="lovebird") as made:
        tasks.LoadDataFromDicts(data=data) >> tasks.TextGeneration(llm=Lovebird())
    state: Any = made.flow(return_state=True, **settings)
    return state.name, json.loads((state.result().folder / "run.json").read_text()) if state.is_completed() else {}


def of_runs() -> Iterator[tuple[str, str]]:
    EventsWorker.set_client_override(AssertingEventsClient)
    lossy = run(rows(19, 1), output="lossy", parameters={"text_generation": {"system_prompt": "Hi"}})
    completed = [run([{"instruction": "slow"}]), lossy, run(rows(3), dry_run=1)]
    failed = [run(rows(0, 3)), run(rows(60), max_cost=0.2)]
    _, facts, preview = (facts for _, facts in completed)
    with Pipeline() as stopped:
        tasks.LoadDataFromDicts(data=rows(1)) >> Interrupted()
    with suppress(KeyboardInterrupt):
        stopped.run()
    EventsWorker.drain_all()
    told = [event for client in AssertingEventsClient.all for event in client.events]
    events = {each.event: each.payload for each in told if each.event.startswith("distilflow")}
    yield "run.json", text(shape(facts) | {"versions": "dict"})
    yield "run-preview.json", text(shape({name: preview[name] for name in preview.keys() - facts.keys()}))
    yield "errors.parquet.txt", f"{pq.read_schema('lossy/errors.parquet').to_string(show_schema_metadata=False)}\n"
    yield "events.json", text(shape(events))
    yield "states.json", text([name for name, _ in completed + failed])
    lines = list(map(json.loads, run_main("flows.text_generation", "--limit", "3", "--json").splitlines()))
    last = {line["event"]: line for line in lines}
    yield "json-lines.json", text(shape(last))


def of_automations() -> Iterator[tuple[str, str]]:
    files = sorted((Path(deployments.__path__[0]) / "automations").glob("*.yaml"))
    found = {path.stem: yaml.safe_load(path.read_text()) for path in files}
    yield "automations.json", text({name: [each["name"], each["trigger"]] for name, each in found.items()})


def collected() -> dict[str, str]:
    facts = dict[str, str]()
    for of in (of_flows, of_blocks, of_imports, of_automations, of_runs):
        facts |= of()
    return facts | {f"pipelines/{name}.yaml": pipeline(name).to_yaml() for name in PIPELINES}


# --- tests ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def facts(prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = str(tmp_path_factory.mktemp("home"))
    told = {name: os.environ[name] for name in ("PATH", "PREFECT_LOGGING_LEVEL", "PREFECT_HOME") if name in os.environ}
    places = {"DISTILFLOW_HOME": home, "HOME": home, "PREFECT_API_URL": str(PREFECT_API_URL.value())}
    done = subprocess.run(
        [sys.executable, __file__, "facts.json"],
        cwd=home,
        env=told | places | {"COLUMNS": "100", "PYTHONPATH": str(ROOT), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(Path(home, "facts.json").read_text())


@pytest.mark.slow
def test_users_keep_what_they_have(facts: dict[str, str]) -> None:
    if os.environ.get("UPDATE_SNAPSHOTS"):
        shutil.rmtree(SNAPSHOTS, ignore_errors=True)
        for name, fact in facts.items():
            (SNAPSHOTS / name).parent.mkdir(parents=True, exist_ok=True)
            (SNAPSHOTS / name).write_text(fact, encoding="utf-8")
    files = [path for path in SNAPSHOTS.rglob("*") if path.is_file()]
    had = {path.relative_to(SNAPSHOTS).as_posix(): path.read_text(encoding="utf-8") for path in files}
    lines = list[str]()
    for name in sorted(had.keys() | facts.keys()):
        old, new = had.get(name, "").splitlines(True), facts.get(name, "").splitlines(True)
        lines += unified_diff(old, new, f"had/{name}", f"have/{name}", n=2)
    if lines:
        accept = f"UPDATE_SNAPSHOTS=1 python -m pytest {Path(__file__).relative_to(ROOT).as_posix()}"
        pytest.fail(f"users would have something else:\n{''.join(lines)}Where it is meant: {accept}", pytrace=False)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_saved_pipeline_loads_equal(name: str) -> None:
    loaded, made = Pipeline.from_yaml(SNAPSHOTS / "pipelines" / f"{name}.yaml"), pipeline(name)
    assert (loaded.name, loaded.description, loaded.steps) == (made.name, made.description, made.steps)
    assert loaded.to_yaml() == made.to_yaml() and loaded.draw() == made.draw()


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(collected()), encoding="utf-8")
