"""Options of the command line, made of a flow's parameters."""

import argparse
import json
import shlex
from typing import Any

from prefect import Flow

OUTPUT_OPTION = "how it is shown"
"""What the choice between `--quiet` and `--json` is called among the parameters of a flow, which have no such name."""


DEFAULT_DRY_RUN = "3"
"""Rows of a dry run that does not say how many."""


def build_parser(flow: "Flow[..., Any]") -> argparse.ArgumentParser:
    """A parser with an option for every parameter of the flow."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {flow.fn.__module__.replace('__main__', f'flows.{flow.fn.__name__}')}",
        description=(flow.description or "").split("Args:")[0].strip(),
        argument_default=argparse.SUPPRESS,  # what is not given is the flow's to fill in
    )
    known = flow.parameters.definitions.items()
    blocks = {f"#/definitions/{name}" for name, schema in known if "block_type_slug" in schema}
    for name, schema in flow.parameters.properties.items():
        about = " ".join(str(schema.get("description", "")).split()).replace("%", "%%")
        if isinstance(default := schema.get("default"), str | int | float) and default is not False and default != "":
            about += f" (default: {default})"
        if name == "parameters":
            option = parser.add_argument(
                "--param", action="append", metavar="STEP.NAME=VALUE", help=f"{about} Repeatable."
            )
            option.dest = name
        elif schema.get("type") == "boolean" and schema.get("default") is True:
            # `use_cache`: `--no-cache` turns it off
            switch = f"--no-{name.removeprefix('use_').replace('_', '-')}"
            parser.add_argument(switch, dest=name, action="store_false", help=f"Off: {about}")
        elif schema.get("type") == "boolean":
            parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=about)
        else:
            several = schema.get("type") == "array"  # of which each is given by an option of its own
            kinds = schema.get("items", {}) if several else schema
            is_model = any(each.get("$ref") in blocks for each in kinds.get("anyOf", []))
            words: dict[str, Any] = {"nargs": "+"} if is_model else {}  # `--llm OpenAILLM model=gpt-5`
            words |= {"action": "append"} if several and is_model else {}
            about += " Repeatable." if several and is_model else ""
            words = {"nargs": "?", "const": DEFAULT_DRY_RUN} if name == "dry_run" else words
            parser.add_argument(f"--{name.replace('_', '-')}", metavar=name.upper(), help=about, **words)
    shown = parser.add_mutually_exclusive_group()
    for kind, about in (
        ("quiet", "Show the result and errors only."),
        ("json", "Show all of it in lines of JSON."),
    ):
        shown.add_argument(f"--{kind}", dest=OUTPUT_OPTION, action="store_const", const=kind, help=about)
    return parser


def parse_arguments(parser: argparse.ArgumentParser, arguments: list[str] | None) -> dict[str, Any]:
    """The parameters named on the command line, as strings for the flow to coerce."""
    given = vars(parser.parse_args(arguments))
    for name, value in given.items():
        if name == "parameters":
            given[name] = _parse_assignments(parser, value)
        elif isinstance(value, list):
            given[name] = list(map(_join_words, value)) if isinstance(value[0], list) else _join_words(value)
    return given


def _join_words(words: list[str]) -> str:
    return words[0] if len(words) == 1 else shlex.join(words)


def _parse_assignments(parser: argparse.ArgumentParser, assignments: list[str]) -> dict[str, Any]:
    """`["a.b=1"]` as `{"a": {"b": "1"}}`; lists and dictionaries are written in JSON."""
    nested: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        *groups, name = path.split(".")
        if not equals or not groups:
            parser.error(f"`--param {assignment}`: write it like `--param text_generation.num_generations=2`")
        group: Any = nested
        for each in groups:
            group = group.setdefault(each, {}) if isinstance(group, dict) else group
        if not isinstance(group, dict) or isinstance(group.get(name), dict):
            parser.error(f"`--param {assignment}`: another `--param` gives a part of the same; leave one of them out")
        group[name] = _parse_json(value) if value.startswith(("{", "[")) else value
    return nested


def _parse_json(text: str) -> Any:
    """A list or dictionary; a text that only looks like one, `{{ question }}` or `[INST] …`, stays one."""
    try:
        return json.loads(text)
    except ValueError:
        return text
