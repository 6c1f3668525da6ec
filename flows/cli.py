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

from flows import server, views
from flows.approval import Declined
from flows.distiset import Distiset
from flows.errors import Refused, RunFailed
from flows.preview import Estimate, counted
from llms import Fatal
from llms.strict import explain

VIEW = "how it is shown"
"""What the choice between `--quiet` and `--json` is called among the parameters of a flow, which have no such name."""

FEW = "3"
"""Rows of a dry run that does not say how many."""

MISTAKES = (Declined, Refused, RunFailed, Fatal, ParameterTypeError, ValidationError)
"""What a person can mend: told as a sentence, not as a stack trace."""


def main(flow: "Flow[..., Distiset]", arguments: list[str] | None = None) -> None:
    """Run the flow with the command line's options, show how it goes, and exit with its status.

    Exit status: 0 when the run completed, 1 when it failed, 2 when it was refused, 130 when it was interrupted.

    With `--json`, standard output is lines of JSON. Those with `"event": "progress"`, every two seconds, have what
    `flows.progress.Now` has; the last one, `"event": "summary"`, has what `flows.Summary` has, a `state` (`completed`,
    `failed`, `drained`, `interrupted` or `refused`), the `folder`, and the `error` if there is one.
    """
    given = _given(parser_of(flow), arguments)
    view = views.View(given.pop(VIEW, "live"))
    shown = views.view.set(view)
    _hush_prefect()
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    interrupted = _interruptions()
    try:
        server.boot()
        with server.available():
            dataset = flow(**flow.validate_parameters(given))  # Prefect keeps what it is given: by now, no secrets
    except BaseException as error:
        if view.kind == "json":
            usual = "interrupted" if interrupted else "refused" if _status(error) == 2 else "failed"
            views.line(**{"event": "summary", "state": usual} | view.ended, error=_sentence(error))
        if interrupted:  # whatever Prefect made of it
            errors.print("interrupted")
            sys.exit(130)
        if not isinstance(error, MISTAKES):
            raise
        errors.print(Text.assemble(("error: ", "bold red"), _sentence(error)))
        for note in getattr(error, "__notes__", []):
            errors.print(Text(note))
        sys.exit(_status(error))
    finally:
        views.view.reset(shown)
    if view.kind == "json":
        told = {"estimate": dataset.estimate.model_dump()} if dataset.estimate else {}
        views.line(**{"event": "summary", "state": "completed"} | view.ended | told)
    elif dataset.estimate:
        show_preview(dataset, dataset.estimate)
        sys.exit(1 if dataset.summary.failures and not dataset.summary.rows else 0)
    else:
        show(dataset, brief=view.kind == "quiet")


def _status(error: BaseException) -> int:
    """What the process ends with: whether rows were asked for before it broke."""
    return 2 if isinstance(error, MISTAKES) and not isinstance(error, RunFailed | Fatal) else 1


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
            words = {"nargs": "?", "const": FEW} if name == "dry_run" else words
            parser.add_argument(f"--{name.replace('_', '-')}", metavar=name.upper(), help=about, **words)
    shown = parser.add_mutually_exclusive_group()
    for kind, about in (
        ("quiet", "Show the result and errors only."),
        ("json", "Show all of it in lines of JSON."),
    ):
        shown.add_argument(f"--{kind}", dest=VIEW, action="store_const", const=kind, help=about)
    return parser


def _given(parser: argparse.ArgumentParser, arguments: list[str] | None) -> dict[str, Any]:
    """The parameters named on the command line, as strings for the flow to coerce."""
    given = vars(parser.parse_args(arguments))
    for name, value in given.items():
        if name == "parameters":
            given[name] = _nested(parser, value)
        elif isinstance(value, list):
            given[name] = list(map(_joined, value)) if isinstance(value[0], list) else _joined(value)
    return given


def _joined(words: list[str]) -> str:
    return words[0] if len(words) == 1 else shlex.join(words)


def _nested(parser: argparse.ArgumentParser, assignments: list[str]) -> dict[str, Any]:
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
        group[name] = _json(value) if value.startswith(("{", "[")) else value
    return nested


def _json(text: str) -> Any:
    """A list or dictionary; a text that only looks like one, `{{ question }}` or `[INST] …`, stays one."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _sentence(mistake: BaseException) -> str:
    if isinstance(mistake, ValidationError):
        return explain(mistake)
    if isinstance(mistake, ParameterTypeError):  # "Flow run received invalid parameters:\n - name: why"
        lines = [line.removeprefix(" - ").partition(": ") for line in str(mistake).splitlines()[1:]]
        return "\n".join(f"`{name}`: {why.removeprefix('Value error, ')}" for name, _, why in lines)
    return str(mistake) if isinstance(mistake, MISTAKES) else f"{type(mistake).__name__}: {mistake}"


def _hush_prefect() -> None:
    """Keep Prefect's log lines off the terminal; they still go to its server."""

    def unless_prefect(record: logging.LogRecord) -> bool:
        return not record.name.startswith(("prefect", "EventsWorker", "APILogWorker"))

    for name in ("", "prefect", "prefect._internal"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(unless_prefect)


def show(dataset: Distiset, brief: bool = False) -> None:
    """Print what was made, what it took, a row of each leaf and where the files are; the first and last when brief."""
    out, summary = Console(soft_wrap=True, highlight=False), dataset.summary
    rate = summary.rows / summary.seconds if summary.seconds else 0
    made = f"[bold]{summary.rows:,} rows[/] in {summary.seconds:,.1f} s ({rate:,.0f} rows/s)"
    out.print(f"{made}, {_failures(summary.failures)}")
    for step in () if brief else summary.steps.values():
        for model, spent in step.models.items():
            known = (
                f"{counted(spent.requests, 'request')}, {spent.input_tokens:,} tokens in, {spent.output_tokens:,} out"
            )
            cached = f", {spent.cached:,} from the store" if spent.cached else ""
            cost = f", ${spent.cost:,.4f}" if spent.cost else ""
            out.print(f"{model}: {known}{cached}{cost}")
    for leaf in () if brief else dataset:
        for row in dataset.head(leaf):
            out.print()
            for column, value in row.items():
                if not column.endswith("_metadata") and column != "model_name":
                    out.print(Text.assemble((f"{column}: ", "cyan"), _short(value)))
    if not brief:
        out.print()
    for leaf in dataset:
        out.print(Text(f"{dataset.folder}/{leaf}/*.{dataset.output_format}"))
    if summary.failures:
        out.print(Text(f"{dataset.folder}/errors.parquet"))


def show_preview(dataset: Distiset, estimate: Estimate) -> None:
    """Print what was asked for each row of a dry run, what came, a row of each leaf, and the estimate."""
    out = Console(soft_wrap=True, highlight=False)
    for row in dataset.preview:
        out.print(Text(f"{row.markdown()}\n"))
    for leaf in dataset:
        for made in dataset.head(leaf, 1):
            out.print(Text(f"## a row of {leaf}\n"))
            for column in (each for each in made if not each.endswith("_metadata")):
                out.print(Text.assemble((f"{column}: ", "cyan"), _short(made[column])))
            out.print()
    out.print(Text(estimate.markdown()))


def _failures(count: int) -> str:
    return f"[red]{counted(count, 'failure')}[/]" if count else "no failures"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 400 else f"{text[:400]}…"
