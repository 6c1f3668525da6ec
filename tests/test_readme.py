"""READMEs: their Python runs, their commands parse, their links lead somewhere, their tables and output are current."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import api_profiles, tables

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
CONTRIBUTING = ROOT / ".github" / "CONTRIBUTING.md"
FOLDERS = ("llms", "tasks", "flows", "deployments", "tests")
PAGES = [README, *(ROOT / folder / "README.md" for folder in FOLDERS), CONTRIBUTING]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LONGEST = 170
FACTS = ("limits", "pools")
"""Files of `deployments` that are of no flow."""
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
SHELL = {"source", "umask", "{", "ruff", "pyright"}
"""Commands of the shell and of other tools whose words are not checked."""


class Block(NamedTuple):
    """A fenced block."""

    page: Path
    language: str
    code: str

    def __str__(self) -> str:
        start = re.sub(r"\W+", " ", self.code)[:60].strip()
        return f"{name_of(self.page)}: {start}"


class Command(NamedTuple):
    """A command of a `sh` block, or one in backticks within the text."""

    page: Path
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{name_of(self.page)}: {shlex.join(self.words)}"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(language: str, *pages: Path) -> list[Block]:
    found = [(page, *match) for page in pages or PAGES for match in FENCE.findall(page.read_text())]
    return [Block(*each) for each in found if each[1] == language]


def split(line: str) -> list[tuple[str, ...]]:
    """The commands of a line, each as its words, without comment and without the folder of the environment."""
    words = shlex.split(re.sub(r"^[A-Z_]+=\w+ ", "", line), comments=True)
    commands: list[tuple[str, ...]] = []
    while words:
        command = tuple(takewhile(lambda word: word != "&&", words))
        words = words[len(command) + 1 :]
        commands.append((command[0].removeprefix(".venv/bin/"), *command[1:]))
    return commands


def commands() -> list[Command]:
    """All commands, each once."""
    found = [
        Command(page, words) for page, _, code in blocks("sh") for line in code.splitlines() for words in split(line)
    ]
    for page in PAGES:
        text = FENCE.sub("", page.read_text())
        inline = re.findall(r"`((?:python -m|pip install|prefect |\.ci/)[^`…]*)", text)
        found += [Command(page, words) for line in inline for words in split(line)]
    return list(dict.fromkeys(found))


PYTHON = blocks("python")
COMMANDS = commands()


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_runs(block, prefect_server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["example.py"])
    exec(compile(block.code, block.page.name, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_command_parses(command, request, tmp_path, monkeypatch):
    match command.words:
        case ("python" | "python3", "-m", "venv", _):
            pass
        case ("python", "-m", "prefect", *words) | ("prefect", *words):
            parse_prefect(words)
        case ("python", "-m", "pytest", *words):
            parse_pytest(words)
        case ("python", "-m", module, *words) if module.startswith("tests."):
            source = Path(find_spec(module).origin).read_text()
            assert all(re.search(rf"\b{word}\b", source) or find_spec(f"llms.{word}") for word in words)
        case ("python", "-m", "flows.run"):
            assert find_spec("flows.run")
        case ("python", "-m", "flows.run", file, *words):
            from flows.run import flow_of

            save_pipeline(tmp_path / file)
            parse_options(flow_of(tmp_path / file), words)
        case ("python", "-m", "flows.results" | "llms.store" as module, *words):
            if module == "flows.results":
                request.getfixturevalue("prefect_server")
            monkeypatch.chdir(tmp_path)
            (tmp_path / "results").mkdir()
            monkeypatch.setattr(sys, "argv", [module, *words])
            import_module(f"{module}.__main__").main()
        case ("python", "-m", "deployments", *words):
            parse_deployments(words)
        case ("python", "-m", module, *words) if module.startswith("flows."):
            parse_options(getattr(import_module(module), module.rpartition(".")[2]), words)
        case ("pip", "install", *words) | ("uv", "pip", "install", *words):
            check_install(words)
        case ("docker", "compose", *words):
            assert (ROOT / words[words.index("-f") + 1]).is_file()
        case (path, *words) if path.startswith(".ci/"):
            assert not words and os.access(ROOT / path, os.X_OK)
        case (word, *_):
            assert word in SHELL, f"nothing here checks `{word}`"


def parse_options(flow, words):
    from flows.cli.arguments import build_parser

    assert vars(build_parser(flow).parse_args(words)) or not words


def save_pipeline(file):
    from flows import Pipeline
    from tasks import KeepColumns, LoadDataFromDicts

    with Pipeline() as pipeline:
        LoadDataFromDicts(data=[{"a": 1}]) >> KeepColumns(columns=["a"])
    pipeline.save(file)


def parse_deployments(words):
    from deployments import __main__
    from deployments.local import serve, worker

    subcommand = {"serve": serve, "worker": worker}.get(words[0] if words else "")
    (subcommand or __main__).parser().parse_args(words[1:] if subcommand else words)


def parse_prefect(words):
    from cyclopts.exceptions import MissingArgumentError
    from prefect.cli._app import _app

    with suppress(MissingArgumentError):  # the text only names the command
        _app.parse_args(words, exit_on_error=False, print_error=False)


def parse_pytest(words):
    markers = "\n".join(PYPROJECT["tool"]["pytest"]["ini_options"]["markers"])
    for option, value in zip(words, words[1:], strict=False):
        assert option != "-m" or re.search(rf"^{value.removeprefix('not ')}:", markers, re.MULTILINE)
    assert all((ROOT / word).exists() for word in words if word.startswith("tests"))


def check_install(words):
    extras = PYPROJECT["project"]["optional-dependencies"]
    named = {extra for word in words for extra in re.findall(r"\[(.+)\]", word) for extra in extra.split(",")}
    assert named <= extras.keys()
    assert all((ROOT / word).is_file() for word in words if word.endswith(".txt"))


@pytest.mark.slow
def test_first_command_prints_what_is_shown(tmp_path, prefect_server):
    from prefect.settings import PREFECT_API_URL

    *_, words = split(blocks("sh", README)[0].code)
    assert words == ("python", "-m", "flows.text_generation")
    done = subprocess.run(
        [sys.executable, *words[1:]],
        cwd=tmp_path,
        env=os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value()},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    [shown] = [block.code for block in blocks("", README)]

    def shape(text: str) -> list[str]:
        return [re.sub(r"[\d,.]+", "N", line.split(":")[0]) for line in text.strip().splitlines()]

    assert shape(done.stdout) == shape(shown)


def test_ci_runs_the_two_commands():
    lines = [line for block in blocks("sh", README) for line in block.code.splitlines()]
    modules = re.findall(r"\$\(readme (\S+)\)", (ROOT / ".ci" / "core").read_text())
    assert modules == ["flows.text_generation", "pytest"]
    for module in modules:
        [line] = [line for line in lines if line.endswith(f"-m {module}")]
        made, installed, _ = line.split(" && ")
        assert made == "python3 -m venv .venv" and installed.startswith(".venv/bin/pip install")


@pytest.mark.parametrize("name", tables.TABLES)
def test_generated_table_is_current(name):
    assert tables.shown(name) == tables.TABLES[name][1](), f"rewrite it with `{tables.COMMAND}`"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the hosting sites make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text())
    for link in re.findall(r"\]\(([^)]+)\)|<img src=\"([^\"]+)\"", text):
        path, _, anchor = "".join(link).partition("#")
        if path.startswith("https://"):
            continue
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_automations_are_listed():
    text = (ROOT / "deployments" / "README.md").read_text()
    assert all(f"`{path.name}`" in text for path in (ROOT / "deployments" / "automations").iterdir())


def test_readme_is_short_and_up_to_date():
    text = README.read_text()
    remote, shipped = len(api_profiles.remote()), len(api_profiles.shipped())
    assert len(text.splitlines()) <= LONGEST
    assert f"{remote} providers and {shipped - remote} local engines" in text
    assert all(f"`{path.stem}`" in text for path in (ROOT / "deployments").glob("*.yaml") if path.stem not in FACTS)
