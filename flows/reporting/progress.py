"""How far a run is, step by step: counted as batches are done, and told to those who watch."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Protocol

from prefect.logging import get_logger

from flows.dag.graph import Graph
from flows.dataset.summary import Summary
from flows.runtime.humanize import duration, money
from tasks import GeneratorStep, Join, Step, Task
from tasks.typing import BatchResult, add_costs

RATE_WINDOW_S = 30.0
"""Seconds that rates are taken over."""

SHUTDOWN_TIMEOUT_S = 10.0
"""Seconds a run that is over waits for those who watch it."""


@dataclass(frozen=True)
class StepSnapshot:
    """Where a step is; `None` is what cannot be known.

    Attributes:
        rows_in: Rows it is done with; 0, if it is a source.
        rows_expected: Rows it will have been done with at the end, as far as the steps before it tell.
        rows: Rows it has passed on.
        failures: Rows that failed in it.
        in_flight: Rows that have come to it and that it is not done with.
        rows_per_second: Over the last half minute.
        tokens_per_second: Tokens of output, over the last half minute.
        input_tokens: Tokens of its prompts.
        output_tokens: Tokens of the answers.
        cost: Dollars.
        eta_seconds: Seconds until it is done.
    """

    rows_in: int
    rows_expected: int | None
    rows: int
    failures: int
    in_flight: int | None
    rows_per_second: float
    tokens_per_second: float
    input_tokens: int
    output_tokens: int
    cost: float | None
    eta_seconds: float | None

    @property
    def done(self) -> int:
        """Rows it is done with: those a source has brought, those that came to another step."""
        return self.rows_in or self.rows

    @property
    def fraction(self) -> float | None:
        """How much of its work is done, from 0 to 1."""
        return min(1.0, self.done / self.rows_expected) if self.rows_expected else None

    def __str__(self) -> str:
        of = f" of {self.rows_expected:,}" if self.rows_expected else ""
        parts = [f"{self.done:,}{of} rows"]
        parts += [f"{self.failures:,} failed"] if self.failures else []
        parts += [f"{self.in_flight:,} in flight"] if self.in_flight else []
        parts += [f"{self.rows_per_second:,.0f} rows/s"] if self.rows_per_second and self.rows_in else []
        parts += [f"{self.tokens_per_second:,.0f} tokens/s"] if self.tokens_per_second else []
        parts += [f"{self.input_tokens + self.output_tokens:,} tokens"] if self.output_tokens else []
        parts += [money(self.cost)] if self.cost else []
        parts += [f"{duration(self.eta_seconds)} left"] if self.eta_seconds else []
        return ", ".join(parts)


@dataclass(frozen=True)
class RunSnapshot:
    """Where a run is.

    Attributes:
        seconds: Since it began.
        rows: Rows in the datasets.
        failures: Rows that failed, in whatever step.
        input_tokens: Tokens of all prompts.
        output_tokens: Tokens of all answers.
        cost: Dollars; `None` when a price is not known.
        eta_seconds: Seconds until the last step is done; `None` when that cannot be known.
        steps: Where each step is.
    """

    seconds: float
    rows: int
    failures: int
    input_tokens: int
    output_tokens: int
    cost: float | None
    eta_seconds: float | None
    steps: dict[str, StepSnapshot]


class ProgressListener(Protocol):
    """Somebody who is told where a run is, by a thread that does nothing else."""

    def on_update(self, now: RunSnapshot) -> float:
        """Take note, and say in how many seconds to be told again."""
        ...

    def on_end(self, now: RunSnapshot) -> None:
        """Take note for the last time."""
        ...


@dataclass
class _StepCounters:
    """What a step has done, and when it had done how much."""

    rows_in: int = 0
    rows: int = 0
    failures: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = 0.0
    history: deque[tuple[float, int, int]] = field(default_factory=deque)

    def rates(self, now: float) -> tuple[float, float]:
        """Rows and tokens per second, lately."""
        while len(self.history) > 2 and self.history[1][0] < now - RATE_WINDOW_S:
            self.history.popleft()
        then, rows, tokens = self.history[0]
        seconds = max(now - then, 0.001)
        return ((self.rows_in or self.rows) - rows) / seconds, (self.output_tokens - tokens) / seconds


class ProgressTracker:
    """Counts what every step does; `finished` costs microseconds, from any thread.

    Args:
        graph: The steps, checked.
        limit: Rows that are taken of each source, at most.
        summary: What is on disk so far. It knows of batches that were there, and let go, before they were counted here.
    """

    def __init__(self, graph: Graph, limit: int | None, summary: Summary) -> None:
        self.graph = graph
        self.limit = limit
        self.summary = summary
        self.started = time.monotonic()
        self._lock = threading.Lock()
        self._counters = {step.name: _StepCounters() for step in graph.order}
        for counts in self._counters.values():
            counts.history.append((self.started, 0, 0))

    def on_done(self, step: Step, result: BatchResult) -> None:
        """Count a batch."""
        with self._lock:
            counts = self._counters[step.name]
            counts.rows_in += result.rows_in
            counts.rows += len(result.rows)
            counts.failures += len(result.failures)
            for used in result.model_usage.values():
                counts.input_tokens += used.usage.input_tokens
                counts.output_tokens += used.usage.output_tokens
                counts.cost = add_costs(counts.cost, used.cost)
            counts.history.append((time.monotonic(), counts.rows_in or counts.rows, counts.output_tokens))

    def snapshot(self) -> RunSnapshot:
        """Where the run is."""
        now, steps, cost = time.monotonic(), dict[str, StepSnapshot](), 0.0
        passed_on: dict[str, float | None] = {}
        with self._lock:
            for step in self.graph.order:
                counts = self._counters[step.name]
                if on_disk := self.summary.steps.get(step.name):
                    counts.rows = max(counts.rows, on_disk.rows)
                    counts.failures = max(counts.failures, on_disk.failures)
                rate, tokens = counts.rates(now)
                expected = self._expected(step, passed_on)
                passed_on[step.name] = None if expected is None else expected * self._ratio(step, counts)
                done = counts.rows_in or counts.rows
                left = None if expected is None else max(0.0, expected - done)
                eta = None if left is None else left / rate if rate else None if left else 0.0
                cost = add_costs(cost, counts.cost)
                steps[step.name] = StepSnapshot(
                    counts.rows_in,
                    None if expected is None else max(round(expected), done),
                    counts.rows,
                    counts.failures,
                    self._in_flight(step),
                    round(rate, 2),
                    round(tokens, 2),
                    counts.input_tokens,
                    counts.output_tokens,
                    counts.cost,
                    None if eta is None else round(eta, 1),
                )
        etas = [step.eta_seconds for step in steps.values()]
        return RunSnapshot(
            round(now - self.started, 3),
            sum(steps[leaf].rows for leaf in self.graph.leaves),
            sum(step.failures for step in steps.values()),
            sum(step.input_tokens for step in steps.values()),
            sum(step.output_tokens for step in steps.values()),
            cost,
            None if None in etas else max(eta for eta in etas if eta is not None),
            steps,
        )

    def _expected(self, step: Step, passed_on: dict[str, float | None]) -> float | None:
        """Rows that will have come to a step."""
        if isinstance(step, GeneratorStep):
            count = self.graph.row_counts.get(step.name)
            return None if count is None else min(count, self.limit or count)
        if isinstance(step, Join):
            fork = self.graph.fork(step)
            return passed_on[fork.name] if fork else None
        rows = [
            None if self._routed(each, step) else passed_on[each.name] for each in self.graph.predecessors[step.name]
        ]
        return None if None in rows else sum(each for each in rows if each is not None)

    def _ratio(self, step: Step, counts: _StepCounters) -> float:
        """Rows a step passes on for each that comes to it, as far as it has shown."""
        if counts.rows_in:
            return counts.rows / counts.rows_in
        return step.num_generations if isinstance(step, Task) and not step.group_generations else 1

    def _in_flight(self, step: Step) -> int | None:
        before = self.graph.predecessors[step.name]
        if not before or isinstance(step, Join) or any(self._routed(each, step) for each in before):
            return None  # of what the steps before it made, some goes elsewhere or together
        came = sum(self._counters[each.name].rows for each in before)
        return max(0, came - self._counters[step.name].rows_in)

    def _routed(self, source: Step, step: Step) -> bool:
        return (source.name, step.name) in self.graph.routes


@contextmanager
def notify(progress: ProgressTracker, watchers: list[ProgressListener]) -> Iterator[None]:
    """Tell the watchers how the run is doing while it goes on, from a thread of its own."""
    thread = _NotifierThread(progress.snapshot, watchers)
    thread.start()
    try:
        yield
    finally:
        thread.over.set()
        thread.join(SHUTDOWN_TIMEOUT_S)


class _NotifierThread(threading.Thread):
    """Tells the watchers where the run is, each as often as it wants; off the path of the rows."""

    def __init__(self, now: Callable[[], RunSnapshot], watchers: list[ProgressListener]) -> None:
        super().__init__(name="progress", daemon=True)
        self.over = threading.Event()
        self._now = now
        self._watchers = watchers
        self._context = copy_context()  # which flow run this is, and where its server is

    def run(self) -> None:
        """Go on until it is over."""
        self._context.run(self._watch)

    def _watch(self) -> None:
        due = dict.fromkeys(self._watchers, time.monotonic() + 1)
        while not self.over.wait(min(due.values()) - time.monotonic() if due else None):
            now, late = self._now(), time.monotonic()
            for watcher in [each for each, at in due.items() if at <= late]:
                if (wait := _call(watcher.on_update, now)) is None:
                    del due[watcher]
                else:
                    due[watcher] = time.monotonic() + wait
        for watcher in due:
            _call(watcher.on_end, self._now())


def _call(tell: Callable[[RunSnapshot], float | None], now: RunSnapshot) -> float | None:
    """What the watcher says; one that breaks is not told again, and never breaks the run."""
    try:
        return tell(now)
    except Exception as error:
        get_logger("distilflow").warning("Progress is not shown from here on: %s: %s", type(error).__name__, error)
        return None
