"""Command line of a flow: its parameters are the options, its docstring is the help."""

import gc
import logging
import os
import signal
import sys
import threading
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
"""Errors that the user can fix, printed as a message without a traceback."""

REPEAT_INTERRUPT_S = 0.1
"""How long after Python dropped a Ctrl-C it is sent again."""


def main(flow: "Flow[..., Distiset]", arguments: list[str] | None = None) -> None:
    """Run the flow with the command line's options, show its progress, and exit with its status.

    Exit status: 0 when the run completed, 1 when it failed, 2 when it was refused, 130 when it was interrupted.

    With `--json`, standard output is JSON lines. Those with `"event": "progress"`, every two seconds, have the fields
    of `flows.reporting.progress.RunSnapshot`. The last one, `"event": "summary"`, has those of `flows.Summary`, a
    `state` (`completed`, `failed`, `drained`, `interrupted` or `refused`), the `folder`, and the `error` if any.
    """
    gc.freeze()  # what was imported stays: the collection at a program's end would look at all of it, for 0.4 s
    parameters = parse_arguments(build_parser(flow), arguments)
    mode = terminal.OutputMode(parameters.pop(OUTPUT_OPTION, "live"))
    token = terminal.output_mode.set(mode)
    _silence_prefect_logs()
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    interrupts = _record_interrupts()
    try:
        server.boot()
        with server.available():
            dataset = flow(**flow.validate_parameters(parameters))  # validated first: Prefect stores what it is given
    except BaseException as error:
        if mode.kind == "json":
            state = "interrupted" if interrupts else "refused" if _exit_status(error) == 2 else "failed"
            terminal.write_json_line(**{"event": "summary", "state": state} | mode.result, error=_message(error))
        if interrupts:  # whichever error Prefect made of it
            errors.print("interrupted")
            sys.exit(130)
        if not isinstance(error, USER_ERRORS):
            raise
        errors.print(Text.assemble(("error: ", "bold red"), _message(error)))
        for note in getattr(error, "__notes__", []):
            errors.print(Text(note))
        sys.exit(_exit_status(error))
    finally:
        terminal.output_mode.reset(token)
    if mode.kind == "json":
        estimate = {"estimate": dataset.estimate.model_dump()} if dataset.estimate else {}
        terminal.write_json_line(**{"event": "summary", "state": "completed"} | mode.result | estimate)
    elif dataset.estimate:
        print_preview(dataset, dataset.estimate)
        sys.exit(1 if dataset.summary.failures and not dataset.summary.rows else 0)
    else:
        print_dataset(dataset, brief=mode.kind == "quiet")


def _exit_status(error: BaseException) -> int:
    """Return 2 for a mistake found before any row was requested, 1 for a failure after."""
    return 2 if isinstance(error, USER_ERRORS) and not isinstance(error, RunFailed | Fatal) else 1


def _record_interrupts() -> list[int]:
    """Return a list to which each Ctrl-C appends its signal, before it raises `KeyboardInterrupt` as usual.

    Python drops what is raised while an object is freed: a Ctrl-C at such a moment is sent once more.
    """
    received: list[int] = []
    report = sys.unraisablehook

    def record(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.default_int_handler(number, frame)

    def repeat(dropped: "sys.UnraisableHookArgs") -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            threading.Timer(REPEAT_INTERRUPT_S, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            report(dropped)

    signal.signal(signal.SIGINT, record)
    sys.unraisablehook = repeat
    return received


def _message(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        return format_validation_error(error)
    if isinstance(error, ParameterTypeError):  # "Flow run received invalid parameters:\n - name: why"
        lines = [line.removeprefix(" - ").partition(": ") for line in str(error).splitlines()[1:]]
        return "\n".join(f"`{name}`: {why.removeprefix('Value error, ')}" for name, _, why in lines)
    return str(error) if isinstance(error, USER_ERRORS) else f"{type(error).__name__}: {error}"


def _silence_prefect_logs() -> None:
    """Keep Prefect's log lines off the terminal; its server still receives them."""

    def is_not_prefect(record: logging.LogRecord) -> bool:
        return not record.name.startswith(("prefect", "EventsWorker", "APILogWorker"))

    for name in ("", "prefect", "prefect._internal"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(is_not_prefect)
