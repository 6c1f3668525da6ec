"""The shape of the house: who imports whom, where things are, how large a file may grow."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {"llms": set(), "tasks": {"llms"}, "flows": {"llms", "tasks"}, "deployments": set()}
MODULES = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]
LONGEST = 320
TOP = {
    "LICENSE",
    "README.md",
    "deployments",
    "flows",
    "llms",
    "pyproject.toml",
    "tasks",
    "tests",
}
SDKS = {
    "anthropic",
    "cohere",
    "groq",
    "huggingface_hub",
    "litellm",
    "mistralai",
    "ollama",
    "openai",
    "together",
    "vllm",
}


def each(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: str(path.relative_to(ROOT)))


def imported(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    names = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
    return names


@each(MODULES)
def test_imports_point_downwards(path):
    package = path.relative_to(ROOT).parts[0]
    assert imported(path) & MAY_IMPORT.keys() <= MAY_IMPORT[package] | {package}


@each([path for path in MODULES if "demo" not in path.parts])
def test_no_sdk_is_imported_before_it_is_used(path):
    heavy = SDKS | {"torch", "transformers", "datasets", "xllamacpp", "llama_cpp", "outlines"}
    assert not imported(path, top_level_only=True) & heavy


@each(MODULES)
def test_says_in_its_first_line_what_it_is_for(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring and docstring.splitlines()[0].endswith((".", ":", "`"))


@each(MODULES)
def test_fits_in_the_head(path):
    longest = 1000 if "demo" in path.parts else LONGEST  # the demo model's corpus is a book of phrases
    assert len(path.read_text().splitlines()) <= longest


@each(sorted((ROOT / "flows").glob("*.py")))
def test_no_flow_is_named_like_an_sdk(path):
    assert path.stem not in SDKS  # Prefect puts flows/ first on sys.path when it loads a flow by its path


def test_tests_are_flat():
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= {"benchmarks", "snapshots"}  # tests/llms would shadow llms


def test_the_top_level_holds_what_it_should():
    ours = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    generated = {"outputs", "build", "dist", "distilflow.egg-info"}
    assert TOP <= ours <= TOP | generated


def test_no_path_of_a_machine_is_in_a_file():
    text = "".join(path.read_text() for path in [*MODULES, ROOT / "README.md", ROOT / "pyproject.toml"])
    assert not any(place in text for place in ("/root/", "/tmp/env", "/opt/"))


def test_every_extra_of_the_table_of_contents_can_be_resolved():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {
        name
        for needs in extras.values()
        for need in needs
        if need.startswith("distilflow[")
        for name in need.removeprefix("distilflow[").removesuffix("]").split(",")
    }
    assert named <= extras.keys()
    assert "litellm" not in extras["remote"][0]
