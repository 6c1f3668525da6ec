"""Progress of a run on a terminal: a live table, log lines, or JSON lines."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any, Literal

from rich.console import Console
from rich.live import Live
from rich.table import Table

from flows.dag.graph import Graph
from flows.dataset.summary import Summary
from flows.reporting.progress import ProgressListener, ProgressTracker, RunSnapshot, StepSnapshot, notify
from flows.runtime.humanize import compact, money
from llms.limits.usage import UsageCollector

TABLE_HEADERS = ("step", "in", "out", "failed", "in\nflight", "rows\n/s", "tokens\n/s", "tokens", "cost", "time\nleft")


@dataclass
class OutputMode:
    """Output of a run started from the shell.

    Attributes:
        kind: A live table or log lines on standard error; nothing; or JSON lines on standard output.
        result: State, folder and summary of the finished run, as plain data.
    """

    kind: Literal["live", "quiet", "json"] = "live"
    result: dict[str, Any] = field(default_factory=dict)


output_mode: ContextVar[OutputMode | None] = ContextVar("output_mode", default=None)
"""Output mode of the runs in this context; live when `None`."""


@contextmanager
def live_progress(
    graph: Graph, limit: int | None, summary: Summary, usage: UsageCollector, *listeners: ProgressListener
) -> Iterator[ProgressTracker]:
    """Track a run's progress, notify the listeners, and show it in the current output mode.

    Live is a table on a terminal, and log lines on standard error elsewhere.
    """
    kind = mode.kind if (mode := output_mode.get()) else "live"
    console, progress = Console(stderr=True), ProgressTracker(graph, limit, summary, usage)
    is_live = kind == "live" and console.is_terminal
    shown: list[ProgressListener] = (
        [JsonLines()] if kind == "json" else [LogLines(console)] if kind == "live" and not is_live else []
    )
    table = Live(
        console=console,
        transient=True,
        refresh_per_second=1,
        get_renderable=lambda: progress_table(progress.snapshot()),
    )
    handlers = [each for name in ("", "prefect") for each in logging.getLogger(name).handlers]
    for handler in handlers:
        handler.addFilter(_hide_task_runs)
    try:
        with notify(progress, [*shown, *listeners]), table if is_live else nullcontext():
            yield progress
    finally:
        for handler in handlers:
            handler.removeFilter(_hide_task_runs)


class LogLines:
    """Prints a line of progress where there is no terminal: every five seconds, later every minute."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._last = ""

    def on_update(self, now: RunSnapshot) -> float:
        """Print the steps that ask a model or, without any, all but the sources."""
        asking = {name: step for name, step in now.steps.items() if step.input_tokens or step.output_tokens}
        steps = asking or {name: step for name, step in now.steps.items() if step.rows_in}
        line = "; ".join(f"{name}: {step}" for name, step in steps.items())
        if line and line != self._last:
            self.console.print(line, soft_wrap=True, highlight=False, markup=False)
        self._last = line
        return min(max(5.0, now.seconds / 20), 60.0)

    def on_end(self, now: RunSnapshot) -> None:
        """Print nothing: the command line prints the summary."""


class JsonLines:
    """Writes a `RunSnapshot` as a line of JSON to standard output, every two seconds and at the end."""

    def on_update(self, now: RunSnapshot) -> float:
        """Write a line."""
        write_json_line(event="progress", **asdict(now))
        return 2.0

    def on_end(self, now: RunSnapshot) -> None:
        """Write the last line."""
        self.on_update(now)


def write_json_line(**fields: Any) -> None:
    """Write a line of JSON to standard output."""
    sys.stdout.write(f"{json.dumps(fields, default=str)}\n")
    sys.stdout.flush()


def progress_table(now: RunSnapshot) -> Table:
    """Render a row per step, without the columns that are empty for all."""
    columns = [
        [name, *cells]
        for name, *cells in zip(TABLE_HEADERS, *map(_cells, now.steps.items()), strict=True)
        if any(cells)
    ]
    grid = Table(box=None, header_style="dim", padding=(0, 1, 0, 0), pad_edge=False)
    for at, (name, *_) in enumerate(columns):
        grid.add_column(name, justify="right" if at else "left", no_wrap=at > 0, overflow="ellipsis", vertical="bottom")
    for row in list(zip(*columns, strict=True))[1:]:
        grid.add_row(*row)
    return grid


def _cells(named: tuple[str, StepSnapshot]) -> list[str]:
    name, step = named
    of_total = f"/{compact(step.rows_expected)}" if step.rows_expected else ""
    is_source = step.rows > 0 and not step.rows_in
    return [
        name,
        f"{compact(step.rows_in)}{of_total}" if not is_source else "",
        f"{compact(step.rows)}{of_total if is_source else ''}",
        f"[red]{compact(step.failures)}[/]" if step.failures else "0",
        "" if step.in_flight is None else compact(step.in_flight),
        compact(step.rows_per_second),
        compact(step.tokens_per_second) if step.output_tokens else "",
        compact(step.input_tokens + step.output_tokens) if step.output_tokens else "",
        money(step.cost) if step.cost else "",
        "" if step.eta_seconds is None else f"{timedelta(seconds=round(step.eta_seconds))}".removeprefix("0:"),
    ]


def _hide_task_runs(record: logging.LogRecord) -> bool:
    """Keep a line per batch off the terminal; Prefect's server still gets it."""
    return record.name != "prefect.task_runs" or record.levelno >= logging.WARNING
