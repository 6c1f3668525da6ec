"""Progress of a run, step by step: counted as batches are done, sent to listeners as snapshots."""

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
from llms.limits.usage import UsageCollector
from llms.typing import ModelUsage, add_costs
from tasks import GeneratorStep, Join, Step, Task
from tasks.typing import BatchResult

RATE_WINDOW_S = 30.0
"""Sliding window of the rates."""

SHUTDOWN_TIMEOUT_S = 10.0
"""Wait for listeners when the run is over."""


@dataclass(frozen=True)
class StepSnapshot:
    """Progress of a step; `None` is unknown.

    Attributes:
        rows_in: Rows it has processed; 0 for a source.
        rows_expected: Rows it will have processed at the end, estimated from the steps before it.
        rows: Rows it has passed on.
        failures: Rows that failed in it.
        in_flight: Rows that have reached it and are not processed yet.
        rows_per_second: Rate of the last half minute.
        tokens_per_second: Rate of output tokens, of the last half minute.
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
        """Rows processed: those a source has read, those other steps have taken in."""
        return self.rows_in or self.rows

    @property
    def fraction(self) -> float | None:
        """Fraction of the expected rows that is done, from 0 to 1."""
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
    """Progress of a run.

    Attributes:
        seconds: Seconds since it began.
        rows: Rows in the datasets.
        failures: Rows that failed, in any step.
        input_tokens: Tokens of all prompts.
        output_tokens: Tokens of all answers.
        cost: Dollars; `None` when a price is unknown.
        eta_seconds: Seconds until the last step is done; `None` when unknown.
        steps: Progress of each step.
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
    """Receives progress snapshots on a background thread."""

    def on_update(self, now: RunSnapshot) -> float:
        """Handle a snapshot, and return the seconds until the next one."""
        ...

    def on_end(self, now: RunSnapshot) -> None:
        """Handle the last snapshot."""
        ...


@dataclass
class _StepCounters:
    """Counters of a step, and their history over the rate window."""

    rows_in: int = 0
    rows: int = 0
    failures: int = 0
    history: deque[tuple[float, int, int]] = field(default_factory=deque)

    def record(self, now: float, output_tokens: int) -> None:
        """Add the present counts to the history."""
        self.history.append((now, self.rows_in or self.rows, output_tokens))

    def rates(self, now: float) -> tuple[float, float]:
        """Return rows and tokens per second over the rate window."""
        while len(self.history) > 2 and self.history[1][0] < now - RATE_WINDOW_S:
            self.history.popleft()
        then, rows, tokens = self.history[0]
        seconds = max(now - then, 0.001)
        _, rows_now, tokens_now = self.history[-1]
        return (rows_now - rows) / seconds, (tokens_now - tokens) / seconds


class ProgressTracker:
    """Counts rows and failures of every step as batches are done; `on_done` costs microseconds, on any thread.

    Args:
        graph: Steps and edges, checked.
        limit: Rows taken from each source, at most.
        summary: Counts of the committed batches, which may be ahead of `on_done`.
        usage: Tokens and cost by step, which are counted with every answer.
    """

    def __init__(self, graph: Graph, limit: int | None, summary: Summary, usage: UsageCollector) -> None:
        self.graph = graph
        self.limit = limit
        self.summary = summary
        self.usage = usage
        self.started = time.monotonic()
        self._lock = threading.Lock()
        self._counters = {step.name: _StepCounters() for step in graph.order}
        before = self._usage_by_step()
        for name, counters in self._counters.items():
            counters.history.append((self.started, 0, before[name].usage.output_tokens))

    def on_done(self, step: Step, result: BatchResult) -> None:
        """Count the result of a batch."""
        with self._lock:
            counters = self._counters[step.name]
            counters.rows_in += result.rows_in
            counters.rows += len(result.rows)
            counters.failures += len(result.failures)
            counters.record(time.monotonic(), self._usage_by_step()[step.name].usage.output_tokens)

    def snapshot(self) -> RunSnapshot:
        """Return the run's current progress."""
        now, steps, cost = time.monotonic(), dict[str, StepSnapshot](), 0.0
        passed_on: dict[str, float | None] = {}
        usage = self._usage_by_step()
        with self._lock:
            for step in self.graph.order:
                counters, used = self._counters[step.name], usage[step.name]
                if on_disk := self.summary.steps.get(step.name):
                    counters.rows = max(counters.rows, on_disk.rows)
                    counters.failures = max(counters.failures, on_disk.failures)
                counters.record(now, used.usage.output_tokens)
                rate, tokens = counters.rates(now)
                expected = self._expected(step, passed_on)
                passed_on[step.name] = None if expected is None else expected * self._ratio(step, counters)
                done = counters.rows_in or counters.rows
                left = None if expected is None else max(0.0, expected - done)
                eta = None if left is None else left / rate if rate else None if left else 0.0
                cost = add_costs(cost, used.cost)
                steps[step.name] = StepSnapshot(
                    counters.rows_in,
                    None if expected is None else max(round(expected), done),
                    counters.rows,
                    counters.failures,
                    self._in_flight(step),
                    round(rate, 2),
                    round(tokens, 2),
                    used.usage.input_tokens,
                    used.usage.output_tokens,
                    used.cost,
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

    def _usage_by_step(self) -> dict[str, ModelUsage]:
        usage = {step.name: ModelUsage() for step in self.graph.order}
        for (step, _), used in self.usage.totals.items():
            if step in usage:
                usage[step] = usage[step] + used
        return usage

    def _expected(self, step: Step, passed_on: dict[str, float | None]) -> float | None:
        """Return the rows a step will have processed at the end."""
        if isinstance(step, GeneratorStep):
            count = self.graph.row_counts.get(step.name)
            return None if count is None else min(count, self.limit or count)
        if isinstance(step, Join):
            fork = self.graph.fork(step)
            return passed_on[fork.name] if fork else None
        rows = [
            None if self._is_routed(each, step) else passed_on[each.name] for each in self.graph.predecessors[step.name]
        ]
        return None if None in rows else sum(each for each in rows if each is not None)

    def _ratio(self, step: Step, counters: _StepCounters) -> float:
        """Return the rows a step passes on per row it takes in, so far."""
        if counters.rows_in:
            return counters.rows / counters.rows_in
        return step.num_generations if isinstance(step, Task) and not step.group_generations else 1

    def _in_flight(self, step: Step) -> int | None:
        before = self.graph.predecessors[step.name]
        if not before or isinstance(step, Join) or any(self._is_routed(each, step) for each in before):
            return None  # some rows of the steps before it go elsewhere, or together
        arrived = sum(self._counters[each.name].rows for each in before)
        return max(0, arrived - self._counters[step.name].rows_in)

    def _is_routed(self, source: Step, step: Step) -> bool:
        return (source.name, step.name) in self.graph.routes


@contextmanager
def notify(progress: ProgressTracker, listeners: list[ProgressListener]) -> Iterator[None]:
    """Send snapshots to the listeners on a background thread within the block."""
    thread = _NotifierThread(progress.snapshot, listeners)
    thread.start()
    try:
        yield
    finally:
        thread.stop.set()
        thread.join(SHUTDOWN_TIMEOUT_S)


class _NotifierThread(threading.Thread):
    """Sends snapshots to listeners, to each at the interval it asks for."""

    def __init__(self, snapshot: Callable[[], RunSnapshot], listeners: list[ProgressListener]) -> None:
        super().__init__(name="progress", daemon=True)
        self.stop = threading.Event()
        self._snapshot = snapshot
        self._listeners = listeners
        self._context = copy_context()  # the flow run, and Prefect's settings

    def run(self) -> None:
        """Send snapshots until `stop` is set, then the last one."""
        self._context.run(self._run)

    def _run(self) -> None:
        due = dict.fromkeys(self._listeners, time.monotonic() + 1)
        while not self.stop.wait(min(due.values()) - time.monotonic() if due else None):
            snapshot, now = self._snapshot(), time.monotonic()
            for listener in [each for each, at in due.items() if at <= now]:
                if (interval := _call(listener.on_update, snapshot)) is None:
                    del due[listener]
                else:
                    due[listener] = time.monotonic() + interval
        for listener in due:
            _call(listener.on_end, self._snapshot())


def _call(method: Callable[[RunSnapshot], float | None], snapshot: RunSnapshot) -> float | None:
    """Call a listener, and return its interval; `None` if it raised, so that it is dropped and the run goes on."""
    try:
        return method(snapshot)
    except Exception as error:
        get_logger("distilflow").warning("Progress is not shown from here on: %s: %s", type(error).__name__, error)
        return None
