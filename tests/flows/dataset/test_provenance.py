"""Versions in `run.json`: those of the packages the steps' models use."""

import json
import re
import tomllib
from importlib.metadata import version
from itertools import chain
from pathlib import Path

from flows.dataset.provenance import describe_step, package_versions
from llms import LlamaServerLLM, OpenAILLM
from llms.any_llm import model_classes
from tasks import LoadDataFromDicts, TextGeneration


def test_versions_are_those_of_the_packages_in_use(monkeypatch):
    steps = [
        LoadDataFromDicts(data=[{"instruction": "a"}]),
        TextGeneration(name="local", llm=LlamaServerLLM()),
        TextGeneration(name="remote", llm=OpenAILLM(model="m", api_key="k")),
    ]
    versions = package_versions(steps)
    assert list(versions) == ["python", "distilflow", "prefect", "xllamacpp"]
    assert versions["xllamacpp"] == version("xllamacpp")
    monkeypatch.setattr(LlamaServerLLM, "packages", ("xllamacpp", "not-installed"))
    assert package_versions(steps) == versions


def test_what_is_secret_by_its_name_is_not_recorded():
    body = {"gateway": {"token": "sk-planted-4711", "tags": ["a"]}, "url": "https://host?key=sk-planted-4711"}
    llm = OpenAILLM(model="m", api_key="sk-planted-4711", generation_kwargs={"extra_body": body, "max_new_tokens": 3})
    recorded = describe_step(TextGeneration(name="text", llm=llm))
    assert "sk-planted-4711" not in json.dumps(recorded)
    shown = {"gateway": {"token": "***", "tags": ["a"]}, "url": "https://host?key=***"}
    assert recorded["llm"]["generation_kwargs"] == {"extra_body": shown, "max_new_tokens": 3}


def test_packages_of_a_model_are_dependencies():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    names = {re.match(r"[\w-]+", each)[0] for each in needed} | {"vllm"}  # which is installed apart from the rest
    packages = {name for cls in model_classes().values() if cls.__module__.startswith("llms.") for name in cls.packages}
    assert packages and packages <= names
