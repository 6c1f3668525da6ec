"""A flow from the shell: its parameters are the options, its docstring is the help."""

import logging
import signal
import sys
from types import FrameType

from prefect import Flow
from prefect.exceptions import ParameterTypeError
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from flows.cli.arguments import OUTPUT_OPTION, build_parser, parse_arguments
from flows.cli.output import print_dataset, print_preview
from flows.dataset.distiset import Distiset
from flows.errors import ConfigurationError, RunFailed
from flows.preview.approval import ApprovalDeclined
from flows.reporting import terminal
from flows.runtime import server
from llms import Fatal
from llms.config.strict import format_validation_error

USER_ERRORS = (ApprovalDeclined, ConfigurationError, RunFailed, Fatal, ParameterTypeError, ValidationError)
"""What a person can mend: told as a sentence, not as a stack trace."""


def main(flow: "Flow[..., Distiset]", arguments: list[str] | None = None) -> None:
    """Run the flow with the command line's options, show how it goes, and exit with its status.

    Exit status: 0 when the run completed, 1 when it failed, 2 when it was refused, 130 when it was interrupted.

    With `--json`, standard output is lines of JSON. Those with `"event": "progress"`, every two seconds, have what
    `flows.reporting.progress.Now` has; the last one, `"event": "summary"`, has what `flows.Summary` has, a `state`
    (`completed`, `failed`, `drained`, `interrupted` or `refused`), the `folder`, and the `error` if there is one.
    """
    given = parse_arguments(build_parser(flow), arguments)
    view = terminal.OutputMode(given.pop(OUTPUT_OPTION, "live"))
    shown = terminal.output_mode.set(view)
    _silence_prefect_logs()
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    interrupted = _record_interrupts()
    try:
        server.boot()
        with server.available():
            dataset = flow(**flow.validate_parameters(given))  # Prefect keeps what it is given: by now, no secrets
    except BaseException as error:
        if view.kind == "json":
            usual = "interrupted" if interrupted else "refused" if _exit_status(error) == 2 else "failed"
            terminal.write_json_line(**{"event": "summary", "state": usual} | view.result, error=_message(error))
        if interrupted:  # whatever Prefect made of it
            errors.print("interrupted")
            sys.exit(130)
        if not isinstance(error, USER_ERRORS):
            raise
        errors.print(Text.assemble(("error: ", "bold red"), _message(error)))
        for note in getattr(error, "__notes__", []):
            errors.print(Text(note))
        sys.exit(_exit_status(error))
    finally:
        terminal.output_mode.reset(shown)
    if view.kind == "json":
        told = {"estimate": dataset.estimate.model_dump()} if dataset.estimate else {}
        terminal.write_json_line(**{"event": "summary", "state": "completed"} | view.result | told)
    elif dataset.estimate:
        print_preview(dataset, dataset.estimate)
        sys.exit(1 if dataset.summary.failures and not dataset.summary.rows else 0)
    else:
        print_dataset(dataset, brief=view.kind == "quiet")


def _exit_status(error: BaseException) -> int:
    """What the process ends with: whether rows were asked for before it broke."""
    return 2 if isinstance(error, USER_ERRORS) and not isinstance(error, RunFailed | Fatal) else 1


def _record_interrupts() -> list[int]:
    """A list that gets longer with every Ctrl-C, which goes on to interrupt as ever."""
    seen: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    return seen


def _message(mistake: BaseException) -> str:
    if isinstance(mistake, ValidationError):
        return format_validation_error(mistake)
    if isinstance(mistake, ParameterTypeError):  # "Flow run received invalid parameters:\n - name: why"
        lines = [line.removeprefix(" - ").partition(": ") for line in str(mistake).splitlines()[1:]]
        return "\n".join(f"`{name}`: {why.removeprefix('Value error, ')}" for name, _, why in lines)
    return str(mistake) if isinstance(mistake, USER_ERRORS) else f"{type(mistake).__name__}: {mistake}"


def _silence_prefect_logs() -> None:
    """Keep Prefect's log lines off the terminal; they still go to its server."""

    def unless_prefect(record: logging.LogRecord) -> bool:
        return not record.name.startswith(("prefect", "EventsWorker", "APILogWorker"))

    for name in ("", "prefect", "prefect._internal"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(unless_prefect)
