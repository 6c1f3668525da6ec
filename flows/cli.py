"""A flow from the shell: its parameters are the options, its docstring is the help."""

import argparse
import json
import logging
import shlex
import signal
import sys
from types import FrameType
from typing import Any

from prefect import Flow
from prefect.exceptions import ParameterTypeError
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from flows import server
from flows.distiset import Distiset
from flows.errors import Refused, RunFailed
from llms import Fatal
from llms.strict import explain

MISTAKES = (Refused, RunFailed, Fatal, ParameterTypeError, ValidationError)
"""What a person can mend: told as a sentence, not as a stack trace."""


def main(flow: "Flow[..., Distiset]", arguments: list[str] | None = None) -> None:
    """Run the flow with the command line's options, show how it goes, and exit with its status.

    Exit status: 0 when the run completed, 1 when it failed, 2 when it was refused, 130 when it was interrupted.
    """
    given = _given(parser_of(flow), arguments)
    _hush_prefect()
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    interrupted = _interruptions()
    try:
        server.boot()
        with server.available():
            dataset = flow(**flow.validate_parameters(given))  # Prefect keeps what it is given: by now, no secrets
    except BaseException as error:
        if interrupted:  # whatever Prefect made of it
            errors.print("interrupted")
            sys.exit(130)
        if not isinstance(error, MISTAKES):
            raise
        errors.print(Text.assemble(("error: ", "bold red"), _sentence(error)))
        for note in getattr(error, "__notes__", []):
            errors.print(Text(note))
        sys.exit(1 if isinstance(error, RunFailed | Fatal) else 2)
    show(dataset)


def _interruptions() -> list[int]:
    """A list that gets longer with every Ctrl-C, which goes on to interrupt as ever."""
    seen: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    return seen


def parser_of(flow: "Flow[..., Any]") -> argparse.ArgumentParser:
    """A parser with an option for every parameter of the flow."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {flow.fn.__module__.replace('__main__', f'flows.{flow.fn.__name__}')}",
        description=(flow.description or "").split("Args:")[0].strip(),
        argument_default=argparse.SUPPRESS,  # what is not given is the flow's to fill in
    )
    for name, schema in flow.parameters.properties.items():
        about = " ".join(str(schema.get("description", "")).split()).replace("%", "%%")
        if isinstance(default := schema.get("default"), str | int | float) and default != "":
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
        else:
            is_model = any("block_type_slug" in each for each in schema.get("anyOf", []))
            words = "+" if is_model else None  # `--llm OpenAILLM model=gpt-5`: a class and its fields
            parser.add_argument(f"--{name.replace('_', '-')}", metavar=name.upper(), nargs=words, help=about)
    return parser


def _given(parser: argparse.ArgumentParser, arguments: list[str] | None) -> dict[str, Any]:
    """The parameters named on the command line, as strings for the flow to coerce."""
    given = vars(parser.parse_args(arguments))
    for name, value in given.items():
        if name == "parameters":
            given[name] = _nested(parser, value)
        elif isinstance(value, list):
            given[name] = value[0] if len(value) == 1 else shlex.join(value)
    return given


def _nested(parser: argparse.ArgumentParser, assignments: list[str]) -> dict[str, Any]:
    """`["a.b=1"]` as `{"a": {"b": "1"}}`; lists and dictionaries are written in JSON."""
    nested: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        *groups, name = path.split(".")
        if not equals or not groups:
            parser.error(f"`--param {assignment}`: write it like `--param text_generation.num_generations=2`")
        group = nested
        for each in groups:
            group = group.setdefault(each, {})
        group[name] = json.loads(value) if value.startswith(("{", "[")) else value
    return nested


def _sentence(mistake: Exception) -> str:
    if isinstance(mistake, ValidationError):
        return explain(mistake)
    if isinstance(mistake, ParameterTypeError):  # "Flow run received invalid parameters:\n - name: why"
        lines = [line.removeprefix(" - ").partition(": ") for line in str(mistake).splitlines()[1:]]
        return "\n".join(f"`{name}`: {why.removeprefix('Value error, ')}" for name, _, why in lines)
    return str(mistake)


def _hush_prefect() -> None:
    """Keep Prefect's log lines off the terminal; they still go to its server."""

    def unless_prefect(record: logging.LogRecord) -> bool:
        return not record.name.startswith(("prefect", "EventsWorker", "APILogWorker"))

    for name in ("", "prefect", "prefect._internal"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(unless_prefect)


def show(dataset: Distiset) -> None:
    """Print what was made, what it took, a row of each leaf and where the files are."""
    out, summary = Console(soft_wrap=True, highlight=False), dataset.summary
    rate = summary.rows / summary.seconds if summary.seconds else 0
    made = f"[bold]{summary.rows:,} rows[/] in {summary.seconds:,.1f} s ({rate:,.0f} rows/s)"
    out.print(f"{made}, {_failures(summary.failures)}")
    for step in summary.steps.values():
        for model, spent in step.models.items():
            known = (
                f"{_counted(spent.requests, 'request')}, {spent.input_tokens:,} tokens in, {spent.output_tokens:,} out"
            )
            cached = f", {spent.cached:,} from the store" if spent.cached else ""
            cost = f", ${spent.cost:,.4f}" if spent.cost else ""
            out.print(f"{model}: {known}{cached}{cost}")
    for leaf in dataset:
        for row in dataset.head(leaf):
            out.print()
            for column, value in row.items():
                if not column.endswith("_metadata") and column != "model_name":
                    out.print(Text.assemble((f"{column}: ", "cyan"), _short(value)))
    out.print()
    for leaf in dataset:
        out.print(Text(f"{dataset.folder}/{leaf}/*.parquet"))
    if summary.failures:
        out.print(Text(f"{dataset.folder}/errors.parquet"))


def _failures(count: int) -> str:
    return f"[red]{_counted(count, 'failure')}[/]" if count else "no failures"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 400 else f"{text[:400]}…"
