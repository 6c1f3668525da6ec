"""Options of the command line, generated from a flow's parameters."""

import argparse
import json
import shlex
from typing import Any

from prefect import Flow

OUTPUT_OPTION = "output mode"
"""Name of the parsed `--quiet` or `--json`; its space keeps it apart from the flow's parameters."""

DEFAULT_DRY_RUN_ROWS = "3"
"""Rows of a `--dry-run` without a number."""


def build_parser(flow: "Flow[..., Any]") -> argparse.ArgumentParser:
    """Return a parser with an option for every parameter of the flow."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {flow.fn.__module__.replace('__main__', f'flows.{flow.fn.__name__}')}",
        description=(flow.description or "").split("Args:")[0].strip(),
        argument_default=argparse.SUPPRESS,  # the flow has the defaults
    )
    definitions = flow.parameters.definitions.items()
    blocks = {f"#/definitions/{name}" for name, schema in definitions if "block_type_slug" in schema}
    for name, schema in flow.parameters.properties.items():
        option = f"--{name.replace('_', '-')}"
        help_text = " ".join(str(schema.get("description", "")).split()).replace("%", "%%")
        if isinstance(default := schema.get("default"), str | int | float) and default is not False and default != "":
            help_text += f" (default: {default})"
        if name == "parameters":
            action = parser.add_argument(
                "--param", action="append", metavar="STEP.NAME=VALUE", help=f"{help_text} Repeatable."
            )
            action.dest = name
        elif schema.get("type") == "boolean" and schema.get("default") is True:
            # `use_cache`: `--no-cache` turns it off
            switch = f"--no-{name.removeprefix('use_').replace('_', '-')}"
            parser.add_argument(switch, dest=name, action="store_false", help=f"Off: {help_text}")
        elif schema.get("type") == "boolean":
            parser.add_argument(option, action="store_true", help=help_text)
        elif name == "dry_run":
            parser.add_argument(option, metavar=name.upper(), help=help_text, nargs="?", const=DEFAULT_DRY_RUN_ROWS)
        else:
            is_list = schema.get("type") == "array"  # each item is given by an option of its own
            item = schema.get("items", {}) if is_list else schema
            is_model = any(each.get("$ref") in blocks for each in item.get("anyOf", []))
            options: dict[str, Any] = {"nargs": "+"} if is_model else {}  # `--llm OpenAILLM model=gpt-5`
            if is_list and is_model:
                options["action"] = "append"
                help_text += " Repeatable."
            parser.add_argument(option, metavar=name.upper(), help=help_text, **options)
    modes = parser.add_mutually_exclusive_group()
    for mode, help_text in (
        ("quiet", "Show the result and errors only."),
        ("json", "Show all of it in lines of JSON."),
    ):
        modes.add_argument(f"--{mode}", dest=OUTPUT_OPTION, action="store_const", const=mode, help=help_text)
    return parser


def parse_arguments(parser: argparse.ArgumentParser, arguments: list[str] | None) -> dict[str, Any]:
    """Return the parameters on the command line, as strings for the flow to coerce."""
    parameters = vars(parser.parse_args(arguments))
    for name, value in parameters.items():
        if name == "parameters":
            parameters[name] = _parse_assignments(parser, value)
        elif isinstance(value, list):
            parameters[name] = list(map(_join_words, value)) if isinstance(value[0], list) else _join_words(value)
    return parameters


def _join_words(words: list[str]) -> str:
    return words[0] if len(words) == 1 else shlex.join(words)


def _parse_assignments(parser: argparse.ArgumentParser, assignments: list[str]) -> dict[str, Any]:
    """Return `["a.b=1"]` as `{"a": {"b": "1"}}`; values that are lists or dictionaries are JSON."""
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
    """Return a list or dictionary; text that is no JSON, such as `{{ question }}` or `[INST] …`, as it is."""
    try:
        return json.loads(text)
    except ValueError:
        return text
