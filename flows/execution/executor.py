"""Streams batches through the steps: each is a Prefect task run, results are committed in order, backpressure holds."""

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from concurrent.futures import CancelledError
from dataclasses import dataclass
from itertools import islice

import prefect
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import PrefectException
from prefect.futures import PrefectFuture

from flows import results
from flows.dag.graph import Graph
from flows.execution.step_task import RunStopping, StepTask, StopEvent
from llms import BudgetExceeded, LLMError
from llms.clients import event_loop
from llms.limits.usage import UsageCollector
from llms.typing import ModelUsage
from tasks import GeneratorStep, Step
from tasks.typing import BatchResult, Row, RowLineage

MAX_ROWS_IN_FLIGHT = 16_000
"""Rows not yet committed, counted at every step that holds them: memory is proportional to it. Many, because a batch
that takes ten seconds blocks all behind it, as batches keep their order, and a provider answers thousands meanwhile."""

MAX_BATCHES_IN_FLIGHT = 64
"""Unfinished batches: each holds a thread per step."""

BUSY_BATCHES = 12
"""Unfinished batches above which the next one waits up to `SUBMIT_DELAY_S`: a provider is busy, and starting a task
run takes CPU from the requests of those before it."""

SUBMIT_DELAY_S = 0.03

MIN_BATCH_ROWS = 8
"""First batches when no size is set: few rows, so that some show soon. Then as many as all before, so that a provider
is busy after half a dozen, up to `DEFAULT_BATCH_ROWS`; then a twentieth of all, so that task runs stay hundreds."""

DEFAULT_BATCH_ROWS = 100

MAX_BATCH_ROWS = 1_000


@dataclass
class _Batch:
    """A batch in flight: each step's result of it, the rows in each, and the steps that are not done."""

    number: int
    results: dict[str, BatchResult | PrefectFuture[BatchResult]]
    row_counts: dict[str, int]
    pending: set[str]

    @property
    def rows_in_flight(self) -> int:
        """Rows over all steps."""
        return sum(self.row_counts.values())


class Executor:
    """Streams rows through connected steps, inside a flow run.

    Args:
        graph: Steps and edges, checked.
        on_done: Called with a step's result for a batch as soon as it is known, from any thread.
        on_commit: Called with it once all earlier batches are committed, from the thread that called `run`.
        usage: Collects the usage of batches that ran elsewhere, or in an earlier run.
    """

    def __init__(
        self,
        graph: Graph,
        on_done: Callable[[Step, BatchResult], None],
        on_commit: Callable[[Step, BatchResult], None],
        usage: UsageCollector,
    ) -> None:
        self._graph = graph
        self._on_done = on_done
        self._on_commit = on_commit
        self._usage = usage
        self._stop = StopEvent()
        self._wakeup = threading.Event()
        self._first_error: BaseException | None = None
        self._in_flight: deque[_Batch] = deque()
        self._tasks: dict[str, prefect.Task[..., BatchResult]] = {}
        self._accumulated: dict[str, BatchResult] = {}

    def run(self, limit: int | None = None) -> None:
        """Stream the rows of every source, `limit` of each at most, through all the steps after it.

        Raises:
            Fatal: If no row can work.
            BudgetExceeded: If the budget is spent; all requests in flight have ended by then.
        """
        global_steps = [step for step in self._graph.order if self._graph.is_barrier(step)]
        for head in [*self._graph.sources, *global_steps]:  # now: objects their code refers to may change as they run
            path = self._graph.stream(head)
            for step in path[1:]:
                self._task_for(step, [each.name for each in path])
        for step in global_steps:
            self._task_for(step, self._global_inputs([step]))
        try:
            for number, source in enumerate(self._graph.sources):
                self._stream(source, self._read_source(source, number, limit))
            while global_steps:
                self._stream(step := global_steps.pop(0), self._run_global_step(step, global_steps))
        except BaseException as error:
            self._stop.set()
            is_consequence = isinstance(error, CancelledError | BudgetExceeded)
            if is_consequence:
                for batch in self._in_flight:  # their task runs are ending, and one of them may have the cause
                    self._wait_notified(batch, batch.pending & batch.results.keys())
            if is_consequence and self._first_error:
                raise self._first_error from None
            raise

    def _stream(self, head: Step, head_results: Iterable[BatchResult]) -> None:
        """Submit the batches of `head` to the steps after it, up to the global steps, and commit them in order."""
        path = self._graph.stream(head)
        in_flight = self._in_flight
        accumulated = self._global_inputs([step for step in self._graph.order if self._graph.is_barrier(step)])

        def commit_oldest() -> None:
            batch = in_flight[0]
            committed: list[BatchResult] = []
            for step in path:
                self._wait_notified(batch, {step.name})  # waiting for the result, a thread can sleep through a Ctrl-C
                future = batch.results[step.name]
                result = future if isinstance(future, BatchResult) else future.result()
                committed.append(result)
                if step.name in accumulated:
                    self._accumulate(step, result)
                self._on_commit(step, result)
            in_flight.popleft()
            for result in committed:  # no step needs them now, but Prefect's own objects refer to them for a while
                result.rows, result.failures = [], []

        for number, result in enumerate(head_results):
            row_counts = {step.name: len(result.rows) for step in path}  # an estimate until a step is done
            batch = _Batch(number, {head.name: result}, row_counts, {step.name for step in path[1:]})
            while in_flight:
                self._wakeup.clear()
                if self._first_error:
                    while in_flight and not in_flight[0].pending:
                        commit_oldest()  # keep what is done, up to the batch that failed, which raises
                    raise self._first_error
                if not in_flight[0].pending or not self._fits(batch):
                    commit_oldest()
                elif (unfinished := sum(bool(each.pending) for each in in_flight)) >= MAX_BATCHES_IN_FLIGHT:
                    self._wakeup.wait(event_loop.WAIT_POLL_S)
                else:
                    if unfinished >= BUSY_BATCHES:
                        self._wakeup.wait(SUBMIT_DELAY_S)
                    break
            in_flight.append(batch)
            for step in path[1:]:
                self._submit(step, batch)
        while in_flight:
            commit_oldest()

    def _fits(self, batch: _Batch) -> bool:
        """Return whether the window has room for a batch."""
        return batch.rows_in_flight + sum(each.rows_in_flight for each in self._in_flight) <= MAX_ROWS_IN_FLIGHT

    def _wait_notified(self, batch: _Batch, steps: Set[str]) -> None:
        """Wait until `on_done` was called with these steps' results of a batch."""
        while batch.pending & steps:
            self._wakeup.clear()
            if batch.pending & steps:
                self._wakeup.wait(event_loop.WAIT_POLL_S)

    def _accumulate(self, step: Step, result: BatchResult) -> None:
        total = self._accumulated.setdefault(step.name, BatchResult(digest=""))
        total.rows.extend(result.rows)
        total.digest = results.combine_digests(total.digest, result.digest)

    def _global_inputs(self, global_steps: list[Step]) -> set[str]:
        """Return the names of the steps whose rows are accumulated for these global steps."""
        names = {each.name for step in global_steps for each in self._graph.predecessors[step.name]}
        return names | {fork.name for step in global_steps if (fork := self._graph.fork(step))}

    def _run_global_step(self, step: Step, later: list[Step]) -> Iterator[BatchResult]:
        """Run a step on all its rows at once, and yield the result in batches; free rows no `later` step needs."""
        batch = _Batch(0, dict(self._accumulated), {}, {step.name})
        future = self._submit(step, batch)
        self._wait_notified(batch, {step.name})
        total = future.result()
        del batch, future
        needed = self._global_inputs(later)
        self._accumulated = {name: result for name, result in self._accumulated.items() if name in needed}
        first, *others = split_into_batches(iter(total.rows)) if total.rows else [[]]
        total.rows, total.digest = first, results.digest_rows(first)
        yield total  # its failures and usage count once
        yield from map(_to_result, others)

    def _read_source(self, source: GeneratorStep, index: int, limit: int | None) -> Iterator[BatchResult]:
        """Read a source's batches, each inside a task run of its own."""
        numbered = enumerate(islice(source.rows(), limit))
        rows = split_into_batches((_with_id(row, (index, number)) for number, row in numbered), source.batch_size)
        with UsageCollector(source.name).activate():
            ahead = next(rows, None)  # so that no task run is spent on finding the end

        def read(number: int) -> BatchResult:
            nonlocal ahead
            with UsageCollector(source.name).activate():
                batch, ahead = ahead, next(rows, None)
            return _to_result(batch or [])

        task = prefect.Task(
            read,
            name=source.name,
            task_run_name=f"{source.name}-{{number}}",
            persist_result=False,
            cache_policy=NO_CACHE,
        )
        number = 0
        while ahead is not None:
            result = task(number)
            self._on_done(source, result)
            yield result
            number += 1

    def _count(self, step: Step, usage: Mapping[str, ModelUsage]) -> None:
        for model, used in usage.items():
            self._usage.add(step.name, model, used)

    def _task_for(self, step: Step, available: Collection[str]) -> tuple[prefect.Task[..., BatchResult], list[str]]:
        """Return the task that runs a step on results of the `available` steps, and the names of those it takes."""
        upstream = [each.name for each in self._graph.predecessors[step.name] if each.name in available]
        fork = self._graph.fork(step)
        forks = [fork.name] if fork and fork.name in available else []
        key = " ".join([step.name, *upstream])  # a step after two sources has a task for each
        if key not in self._tasks:
            routes = {name: route for name in upstream if (route := self._graph.routes.get((name, step.name)))}
            step_task = StepTask(step, upstream, bool(forks), routes, self._stop)
            self._tasks[key] = step.task(step_task, **step_task.task_options)
        return self._tasks[key], [*upstream, *forks]

    def _submit(self, step: Step, batch: _Batch) -> PrefectFuture[BatchResult]:
        task, inputs = self._task_for(step, batch.results)

        def on_done(done: PrefectFuture[BatchResult]) -> None:
            try:
                result = done.result(raise_on_failure=False)
                if isinstance(result, BatchResult):
                    batch.row_counts[step.name] = len(result.rows)
                    self._count(step, {} if result.is_counted else result.model_usage)
                    self._on_done(step, result)
                elif not isinstance(result, CancelledError | RunStopping | PrefectException):  # those have a cause
                    self._first_error = self._first_error or result
                if isinstance(result, LLMError):
                    self._count(step, result.model_usage)
            finally:
                batch.pending.discard(step.name)
                self._wakeup.set()

        batch.results[step.name] = future = task.submit(*[batch.results[name] for name in inputs], number=batch.number)
        future.add_done_callback(on_done)
        return future


def _to_result(rows: list[Row]) -> BatchResult:
    return BatchResult(rows, digest=results.digest_rows(rows))


def _with_id(row: Row, id: tuple[int, ...]) -> Row:
    row.origin = RowLineage(row.origin or "", id)
    return row


def split_into_batches(rows: Iterator[Row], size: int | None = None) -> Iterator[list[Row]]:
    """Split rows into batches of `size`, or of a size that grows with the rows so far."""
    total = 0
    while batch := list(islice(rows, size or _batch_size(total))):
        total += len(batch)
        yield batch


def _batch_size(total: int) -> int:
    return min(max(MIN_BATCH_ROWS, min(total, DEFAULT_BATCH_ROWS), total // 20), MAX_BATCH_ROWS)
