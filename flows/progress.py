"""What a person sees while a run goes on: a line per step, with rows, failures, rate and tokens."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from flows.graph import Graph
from tasks import GeneratorStep, Step, Task
from tasks.typing import Outcome

EVERY = 10.0
"""Seconds between two lines where there is no terminal to draw on."""


class Shown:
    """Counts what every step has done, and draws it where there is something to draw on."""

    def __init__(self, graph: Graph, limit: int | None, console: Console) -> None:
        self.console = console
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        counts = [count and min(count, limit or count) for count in graph.counts.values()]
        total = sum(filter(None, counts)) if all(counts) else None
        self._bars: dict[str, TaskID] = {}
        for step in graph.steps:
            self._bars[step.name] = self.bars.add_task(step.name, total=total, rate="")
        self._tokens = dict.fromkeys(self._bars, 0)
        self._failed = dict.fromkeys(self._bars, 0)
        self._started = self._said = time.monotonic()

    def finished(self, step: Step, outcome: Outcome) -> None:
        """Count a batch."""
        self._tokens[step.name] += sum(each.usage.output_tokens for each in outcome.spending.values())
        self._failed[step.name] += len(outcome.failures)
        bar = self._bars[step.name]
        self.bars.update(bar, advance=len(outcome.rows) + len(outcome.failures), rate=self._rate(step))
        now = time.monotonic()
        if not self.console.is_terminal and now - self._said >= EVERY:
            self._said = now
            self.console.print("; ".join(self._line(name, bar) for name, bar in self._bars.items()))

    def _rate(self, step: Step) -> str:
        seconds = max(time.monotonic() - self._started, 0.001)
        done = self.bars.tasks[self._bars[step.name]].completed
        parts = [f"{done / seconds:,.0f} rows/s"] if not isinstance(step, GeneratorStep) else []
        parts += [f"{self._tokens[step.name] / seconds:,.0f} tokens/s"] if isinstance(step, Task) else []
        parts += [f"[red]{self._failed[step.name]:,} failed[/]"] if self._failed[step.name] else []
        return ", ".join(parts)

    def _line(self, name: str, bar: TaskID) -> str:
        task = self.bars.tasks[bar]
        rate = f" ({task.fields['rate']})" if task.fields["rate"] else ""
        return f"{name} {task.completed:,.0f}{f' of {task.total:,.0f}' if task.total else ''}{rate}"


@contextmanager
def shown(graph: Graph, limit: int | None) -> Iterator[Shown]:
    """Show the progress of a run on standard error: live on a terminal, a line now and then elsewhere."""
    console = Console(stderr=True)
    view = Shown(graph, limit, console)
    handlers = [each for name in ("", "prefect") for each in logging.getLogger(name).handlers]
    for handler in handlers:
        handler.addFilter(_no_task_run)
    try:
        with view.bars if console.is_terminal else nullcontext():
            yield view
    finally:
        for handler in handlers:
            handler.removeFilter(_no_task_run)


def _no_task_run(record: logging.LogRecord) -> bool:
    """Keep one line per batch off the terminal, where it would drown all else; Prefect's server gets it still."""
    return record.name != "prefect.task_runs" or record.levelno >= logging.WARNING
