"""Tables of the READMEs that are generated from the code: `python -m tests.support.tables` rewrites them all."""

import re
from collections.abc import Callable, Iterable, Sequence
from inspect import getdoc, isabstract
from pathlib import Path
from typing import Any

import tasks
from flows.cli import build_parser
from flows.settings import RunSettings
from flows.text_generation import text_generation
from llms import LLM, AsyncLLM, RemoteLLM
from llms.local.base import LocalLLM
from llms.local.batched import BatchedLLM
from llms.openai_compatible import ChatCompletionsLLM
from tasks import GeneratorStep, GlobalStep, Join, Step, Task
from tests.support.api_profiles import Way, remote, shipped, ways

ROOT = Path(__file__).parents[2]
COMMAND = "python -m tests.support.tables"

USAGE = {
    "input_tokens": "input",
    "output_tokens": "output",
    "cache_read_input_tokens": "cache read",
    "cache_creation_input_tokens": "cache written",
    "reasoning_output_tokens": "reasoning",
}


def providers() -> str:
    """Return the capabilities of each provider, which the tests of the providers check."""
    rows: dict[tuple[str, ...], str] = {}
    for way in ways(*remote()):
        name = f"`{way.cls.__name__}`"
        rows.setdefault((name, *_capabilities(way)), f"{name}, {way.profile.name}" if way.profile.name else name)
    heads = ("", "key", "chat", "n", "seed", "logprobs", "images", "JSON schema", "regex", "reasoning", "usage")
    return _table(heads, ((name, *cells) for (_, *cells), name in rows.items()))


def _capabilities(way: Way) -> tuple[str, ...]:
    cls, profile = way
    options = profile.options_of(cls).model_fields
    knobs = [name for name in ("reasoning_effort", "thinking", "think", "reasoning") if name in options]
    key = cls.api_key_env()
    return (
        f"`{key}`" if key else "",
        "messages" if profile.turns else "one text",
        {None: "one request", 1: "a request each"}.get(
            cls.max_generations_per_request, f"{cls.max_generations_per_request} a request"
        ),
        f"`{options['seed'].serialization_alias or 'seed'}`" if "seed" in options else "",
        "yes" if options.keys() & {"logprobs", "top_n_tokens"} else "",
        "yes" if profile.images else "",
        ", ".join(f"`{mode}`" for mode in profile.modes(cls)),
        profile.patterns or ("yes" if cls._supports_regex else ""),
        ", ".join(["apart"] * profile.thinks + [f"`{name}`" for name in knobs]),
        ", ".join(kind for name, kind in USAGE.items() if getattr(profile.usage, name)),
    )


def parameters() -> str:
    """Return every runtime parameter and the models that have it."""
    options = {}
    for way in ways(*shipped()):
        suffix = "" if way.profile.turns else f" ({way.profile.name})"
        options[f"`{way.cls.__name__}`{suffix}"] = way.profile.options_of(way.cls).model_fields
    names = {name: [model for model in options if name in options[model]] for each in options.values() for name in each}
    rows = []
    for name, having in sorted(names.items(), key=lambda item: (-len(item[1]), item[0])):
        lacking = [model for model in options if model not in having]
        few = f"all but {', '.join(lacking)}" if len(lacking) < len(having) else ", ".join(having)
        rows.append((f"`{name}`", few if lacking else "all"))
    return _table(("parameter", "models"), rows)


def steps() -> str:
    """Return the steps of `tasks` by the folder they are in, each with the first line of its docstring."""
    classes = [getattr(tasks, name) for name in tasks.__all__]
    concrete = [cls for cls in classes if isinstance(cls, type) and issubclass(cls, Step) and not isabstract(cls)]
    rows = []
    for cls in sorted(concrete, key=lambda cls: cls.__module__.split(".")[1]):
        about = getdoc(cls) or ""
        rows.append((cls.__module__.split(".")[1], f"`{cls.__name__}`", about.splitlines()[0], *_columns(about)))
    return _table(("group", "step", "", "input columns", "output columns"), rows)


def _columns(docstring: str) -> tuple[str, str]:
    """Return the input and the output columns that a docstring states; each ends with a full stop."""
    stated = dict.fromkeys(("Input", "Output"), "")
    for kind in stated:
        if found := re.search(rf"^{kind} columns: (.*?)(?=^\S|\Z)", docstring, re.MULTILINE | re.DOTALL):
            stated[kind] = " ".join(found[1].split()).removesuffix(".")
    return stated["Input"], stated["Output"]


def settings() -> str:
    """Return the run settings, each with its option on the command line."""
    options = {action.dest: action.option_strings[0] for action in build_parser(text_generation)._actions}
    rows = []
    for name, field in RunSettings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        rows.append((f"`{name}`", f"`{options[name]}`", default, f"{field.description}"))
    return _table(("setting", "option", "default", ""), rows)


def model_seams() -> str:
    """Return the hooks of the base classes of models."""
    return _seams(LLM, AsyncLLM, RemoteLLM, ChatCompletionsLLM, LocalLLM, BatchedLLM)


def step_seams() -> str:
    """Return the hooks of the base classes of steps."""
    return _seams(Step, Task, GlobalStep, GeneratorStep, Join)


def _seams(*classes: type[Any]) -> str:
    """Return what an author of a subclass gives: what is abstract, and what he may override, as its docstring says."""
    rows = []
    for cls in classes:
        parent = next((each for each in cls.__mro__[1:] if each in classes), None)
        facts = [name for each in cls.__mro__ for name in _facts(each)]
        hooks = [name for name, member in vars(cls).items() if "Override this" in (getdoc(member) or "")]
        given = [*sorted(cls.__abstractmethods__), *(name for name in facts if not hasattr(cls, name))]
        optional = [name for name in (*facts, *hooks) if name not in given and not hasattr(parent, name)]
        inherited = [f"all of `{parent.__name__}`"] if parent else []
        rows.append((f"`{cls.__name__}`", ", ".join(map(_code, given)), ", ".join([*map(_code, optional), *inherited])))
    return _table(("base class", "you give", "you may override"), rows)


def _facts(cls: type[Any]) -> list[str]:
    """Return the class variables that a class declares, without those of Prefect's blocks."""
    declared = vars(cls).get("__annotations__", {}).items() if cls.__module__.startswith(("llms", "tasks")) else ()
    return [name for name, kind in declared if "ClassVar" in str(kind) and name != "load"]


def _code(name: str) -> str:
    return f"`{name}`"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "providers": ("llms/README.md", providers),
    "parameters": ("llms/README.md", parameters),
    "steps": ("tasks/README.md", steps),
    "models to subclass": (".github/CONTRIBUTING.md", model_seams),
    "steps to subclass": (".github/CONTRIBUTING.md", step_seams),
    "settings": ("flows/README.md", settings),
}
"""The name of each table, the file it is in, and the function that returns it."""


def markers(name: str) -> tuple[str, str]:
    """Return the comments between which a table stands."""
    return f"<!-- {name}: {COMMAND} -->\n", f"<!-- /{name} -->"


def shown(name: str) -> str:
    """Return a table as its file has it."""
    begin, end = markers(name)
    return (ROOT / TABLES[name][0]).read_text().partition(begin)[2].partition(end)[0]


def main() -> None:
    """Rewrite all tables.

    Raises:
        SystemExit: If a file has no place for its table.
    """
    for name, (file, table) in TABLES.items():
        begin, end = markers(name)
        path = ROOT / file
        before, found, rest = path.read_text().partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"`{file}` has no place for the table: {begin}{end}")
        path.write_text(f"{before}{begin}{table()}{end}{after}")


if __name__ == "__main__":
    main()
