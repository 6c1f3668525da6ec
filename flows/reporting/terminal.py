"""A run as people and programs see it: a live table, a line now and then, or JSON."""

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
from flows.reporting.progress import Now, Progress, StepNow, Watcher, told
from flows.runtime.humanize import money


@dataclass
class View:
    """How a run from the shell is shown, and what came of it.

    Attributes:
        kind: A live table or lines on standard error; nothing; or JSON on standard output.
        ended: What the run came to, as plain data, once it is over.
    """

    kind: Literal["live", "quiet", "json"] = "live"
    ended: dict[str, Any] = field(default_factory=dict)


view: ContextVar[View | None] = ContextVar("view", default=None)
"""How the runs of this context are shown; live when nobody says."""


@contextmanager
def shown(graph: Graph, limit: int | None, summary: Summary, *watchers: Watcher) -> Iterator[Progress]:
    """Count a run, tell the watchers, and show it as `view` says.

    Live is a table on a terminal, and a line on standard error now and then where there is none.
    """
    kind = given.kind if (given := view.get()) else "live"
    console, progress = Console(stderr=True), Progress(graph, limit, summary)
    live = kind == "live" and console.is_terminal
    said: list[Watcher] = [Json()] if kind == "json" else [Lines(console)] if kind == "live" and not live else []
    drawn = Live(console=console, transient=True, refresh_per_second=1, get_renderable=lambda: table(progress.now()))
    handlers = [each for name in ("", "prefect") for each in logging.getLogger(name).handlers]
    for handler in handlers:
        handler.addFilter(_no_task_run)
    try:
        with told(progress, [*said, *watchers]), drawn if live else nullcontext():
            yield progress
    finally:
        for handler in handlers:
            handler.removeFilter(_no_task_run)


class Lines:
    """A short line now and then, where there is no terminal to draw on: every five seconds, in the end every minute."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._said = ""

    def look(self, now: Now) -> float:
        """Say where the steps that ask a model are, or, without any, all but the sources."""
        asking = {name: step for name, step in now.steps.items() if step.input_tokens or step.output_tokens}
        steps = asking or {name: step for name, step in now.steps.items() if step.rows_in}
        line = "; ".join(f"{name}: {step}" for name, step in steps.items())
        if line and line != self._said:
            self.console.print(line, soft_wrap=True, highlight=False, markup=False)
        self._said = line
        return min(max(5.0, now.seconds / 20), 60.0)

    def end(self, now: Now) -> None:
        """What it came to is told by others."""


class Json:
    """`Now` as a line of JSON on standard output, every two seconds and at the end."""

    def look(self, now: Now) -> float:
        """Write a line."""
        line(event="progress", **asdict(now))
        return 2.0

    def end(self, now: Now) -> None:
        """Write the last one."""
        self.look(now)


def line(**facts: Any) -> None:
    """A line of JSON on standard output."""
    sys.stdout.write(f"{json.dumps(facts, default=str)}\n")
    sys.stdout.flush()


def table(now: Now) -> Table:
    """Where every step is, for a terminal; what is known of none is left out."""
    columns = [
        [name, *cells] for name, *cells in zip(HEADS, *map(_cells, now.steps.items()), strict=True) if any(cells)
    ]
    grid = Table(box=None, header_style="dim", padding=(0, 1, 0, 0), pad_edge=False)
    for at, (name, *_) in enumerate(columns):
        grid.add_column(name, justify="right" if at else "left", no_wrap=at > 0, overflow="ellipsis", vertical="bottom")
    for row in list(zip(*columns, strict=True))[1:]:
        grid.add_row(*row)
    return grid


HEADS = ("step", "in", "out", "failed", "in\nflight", "rows\n/s", "tokens\n/s", "tokens", "cost", "time\nleft")


def _cells(named: tuple[str, StepNow]) -> list[str]:
    name, step = named
    of = f"/{_short(step.rows_expected)}" if step.rows_expected else ""
    is_source = step.rows > 0 and not step.rows_in
    return [
        name,
        f"{_short(step.rows_in)}{of}" if not is_source else "",
        f"{_short(step.rows)}{of if is_source else ''}",
        f"[red]{_short(step.failures)}[/]" if step.failures else "0",
        "" if step.in_flight is None else _short(step.in_flight),
        _short(step.rows_per_second),
        _short(step.tokens_per_second) if step.output_tokens else "",
        _short(step.input_tokens + step.output_tokens) if step.output_tokens else "",
        money(step.cost) if step.cost else "",
        "" if step.eta_seconds is None else f"{timedelta(seconds=round(step.eta_seconds))}".removeprefix("0:"),
    ]


def _short(number: float) -> str:
    """A number in six characters: `9,999`, `12.3k`, `4.5M`."""
    if number < 10_000:
        return f"{number:,.0f}"
    return f"{number / 1e3:,.1f}k" if number < 1e6 else f"{number / 1e6:,.1f}M"


def _no_task_run(record: logging.LogRecord) -> bool:
    """Keep one line per batch off the terminal, where it would drown all else; Prefect's server gets it still."""
    return record.name != "prefect.task_runs" or record.levelno >= logging.WARNING
