"""The README: its Python runs as it stands, its commands are the ones that work, its output is what they print."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.api_profiles import BEGIN, END, table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
    return [code for name, code in fenced if name == language]


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: re.sub(r"\W+", " ", code)[:60].strip())
def test_its_python_runs(code, prefect_server):
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("python -m flows.")]


@pytest.mark.parametrize("command", COMMANDS)
def test_its_options_exist(command):
    from importlib import import_module

    from flows.cli.arguments import parser_of

    words = shlex.split(command)
    module = words[2]
    flow = getattr(import_module(module), module.rpartition(".")[2])
    assert vars(parser_of(flow).parse_args(words[3:])) or len(words) == 3


def test_its_first_command_prints_what_it_shows(tmp_path, prefect_server):
    import os

    from prefect.settings import PREFECT_API_URL

    done = subprocess.run(
        [sys.executable, *shlex.split(COMMANDS[0])[1:]],
        cwd=tmp_path,
        env=os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value()},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    shown = next(block for block in blocks("") if block.startswith("386 rows"))

    def shape(text: str) -> list[str]:
        return [re.sub(r"[\d,.]+", "N", line.split(":")[0]) for line in text.strip().splitlines()]

    assert shape(done.stdout) == shape(shown)


def test_its_table_of_providers_is_what_they_can_do():
    shown = README.partition(BEGIN)[2].partition(END)[0]
    assert shown == table(), "write it anew: `python -m tests.support.api_profiles`"


def test_its_test_command_is_the_one_ci_runs():
    ci = (ROOT / ".ci" / "core").read_text()
    [test] = [block for block in blocks("sh") if "pytest" in block]
    assert all(line in ci.replace("--quiet ", "") for line in test.splitlines())
