"""The shape of the house: who imports whom, where things are, how large a file may grow."""

import ast
import importlib.util
import re
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("llms", "tasks", "flows", "deployments")
MAY_IMPORT = {"llms": set(), "tasks": {"llms"}, "flows": {"llms", "tasks"}, "deployments": {"flows"}}
FLOORS = {
    "llms": [
        {"typing", "errors"},
        {"config", "structured"},
        {"store", "options"},
        {"clients"},
        {"limits"},
        {"engine"},
        {"base"},
        {"local", "remote", "any_llm"},
        {"openai_compatible", "demo"},
    ],
    "tasks": [{"typing"}, {"dag"}, {"base"}, {"join", "routing", "templates", "task"}, {"decorators"}],
    "flows": [
        {"errors", "runtime"},
        {"dag", "settings", "results"},
        {"preview"},
        {"dataset"},
        {"reporting"},
        {"execution", "cli"},
        {"pipeline"},
    ],
    "deployments": [{"errors"}, {"reconcile"}, {"local"}],
}
"""Rooms of each package, the lowest floor first; whatever is not named stands on the top floor."""
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
LONGEST = 320
WIDEST = 25
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


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(path: Path, top_level_only: bool = False) -> set[str]:
    nodes = parsed(path).body if top_level_only else ast.walk(parsed(path))
    names = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
    return names


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


DOTTED = {dotted(path): path for path in MODULES}


@cache
def modules_imported(path: Path) -> set[str]:
    """Our own modules that a file imports, wherever in it, `TYPE_CHECKING` included."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {
                name if (name := f"{node.module}.{alias.name}") in DOTTED else node.module for alias in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & DOTTED.keys() - {dotted(path)}


def room(module: str) -> str:
    """The subfolder a module is in, or the file at the top of a package."""
    return ".".join(module.split(".")[:2])


def floor(module: str) -> int:
    package, _, name = room(module).partition(".")
    floors = FLOORS[package]
    return next((height for height, rooms in enumerate(floors) if name in rooms), len(floors))


def test_packages_import_downwards():
    for path in MODULES:
        package = path.relative_to(ROOT).parts[0]
        above = (imported(path) & MAY_IMPORT.keys()) - MAY_IMPORT[package] - {package}
        assert not above, f"{path} imports from {above}"


def test_rooms_import_downwards():
    above = [
        f"{here} stands on a lower floor than {there}"
        for here, path in DOTTED.items()
        for there in sorted(modules_imported(path))
        if there.startswith(f"{here.partition('.')[0]}.") and floor(there) > floor(here)
    ]
    assert not above, "\n".join(above)


@pytest.mark.parametrize("level", ["files", "rooms"])
def test_no_circle_of_imports(level):
    name = room if level == "rooms" else str
    edges: dict[str, set[str]] = {}
    for module, path in DOTTED.items():
        edges.setdefault(name(module), set()).update(map(name, modules_imported(path)))
    edges = {here: there - {here} for here, there in edges.items()}
    while ends := {here for here, there in edges.items() if not there & edges.keys()}:
        edges = {here: there for here, there in edges.items() if here not in ends}
    assert not edges, "these import each other"


def test_every_room_on_a_floor_exists():
    named = {f"{package}.{name}" for package, floors in FLOORS.items() for rooms in floors for name in rooms}
    assert named <= set(map(room, DOTTED))


FOLDERS = sorted({path.parent for path in MODULES})


def test_no_folder_is_too_wide():
    width = {path: len([each for each in path.glob("*.py") if each.name != "__init__.py"]) for path in FOLDERS}
    assert not {path: files for path, files in width.items() if files > WIDEST}


def test_every_folder_is_a_package():
    assert not [path for path in FOLDERS if not (path / "__init__.py").is_file()]


def test_no_sdk_is_imported_before_it_is_used():
    heavy = SDKS | {"torch", "transformers", "datasets", "xllamacpp", "llama_cpp", "outlines"}
    for path in MODULES:
        early = imported(path, top_level_only=True) & heavy
        assert not early or "demo" in path.parts, f"{path} imports {early} at its top"


def test_says_in_its_first_line_what_it_is_for():
    for path in MODULES:
        docstring = ast.get_docstring(parsed(path))
        assert docstring and docstring.splitlines()[0].endswith((".", ":", "`")), path


def test_fits_in_the_head():
    lines = {path: len(path.read_text().splitlines()) for path in MODULES}
    corpus = {path for path in MODULES if "demo" in path.parts}  # the demo model's is a book of phrases
    too_long = {str(path): n for path, n in lines.items() if n > (1000 if path in corpus else LONGEST)}
    assert not too_long


def test_no_flow_is_named_like_a_package():
    # Prefect puts flows/ first on sys.path when it loads a flow by its path.
    names = {path.stem for path in (ROOT / "flows").iterdir() if not path.name.startswith("_")}
    assert not names & (SDKS | sys.stdlib_module_names)
    assert not [name for name in names if importlib.util.find_spec(name)]  # neither is one installed


def test_tests_mirror_the_packages():
    folders = {
        path.relative_to(ROOT / "tests")
        for path in (ROOT / "tests").rglob("*")
        if path.is_dir() and path.name != "__pycache__"
    }
    packages = {path.relative_to(ROOT) for path in FOLDERS}
    helpers = {Path("benchmarks"), Path("snapshots"), Path("support")}
    assert {folder for folder in folders if Path(folder.parts[0]) not in helpers} <= packages


def test_no_test_imports_from_another_test():
    for path in (ROOT / "tests").rglob("*.py"):
        nodes = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.ImportFrom)]
        borrowed = [node.module for node in nodes if re.search(r"\btest_\w+$", node.module or "")]
        assert not borrowed, f"{path} imports from {borrowed}: share it in `tests/support`"


def test_the_top_level_holds_what_it_should():
    ours = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    generated = {"outputs", "build", "dist", "distilflow.egg-info"}
    assert TOP <= ours <= TOP | generated


def test_no_path_of_a_machine_is_in_a_file():
    pages = [ROOT / "README.md", *(ROOT / package / "README.md" for package in (*PACKAGES, "tests"))]
    text = "".join(path.read_text() for path in [*MODULES, *pages, ROOT / "pyproject.toml"])
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
