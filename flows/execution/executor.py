"""Batches in motion: every step and batch a Prefect task run, in order, with a bounded number of rows in flight."""

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Set
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
from llms import Drained, LLMError
from tasks import GeneratorStep, Step, Task
from tasks.typing import BatchResult, ModelUsage, Row, RowLineage

MAX_ROWS_IN_FLIGHT = 16_000
"""Rows that may be anywhere between a source and the disk, counted at every step that holds them: what memory follows.
Many, because one that takes ten seconds holds back all behind it, which keep their order, and a provider answers
thousands meanwhile."""

MAX_BATCHES_IN_FLIGHT = 64
"""Batches that may be unfinished: each holds a thread per step."""

BUSY_BATCHES, SUBMIT_DELAY_S = 12, 0.03
"""Unfinished batches that keep a provider busy for now, and the seconds that then go by before the next one, or until
one is done: a task run begun is work for this process, which has a thousand requests to send meanwhile."""

MIN_BATCH_ROWS, DEFAULT_BATCH_ROWS, MAX_BATCH_ROWS = 8, 100, 1_000
"""Rows per batch when nobody says: few at first, so that rows show soon; then as many as all before them, so that a
provider is busy after half a dozen; not more for a while, so that the next step is never far behind; then a twentieth
of all, so that task runs stay hundreds."""


@dataclass
class _Batch:
    """A batch on its way: what each step makes of it, how many rows that is, and the steps that are not done yet."""

    results: dict[str, Outcome | PrefectFuture[Outcome]]
    row_counts: dict[str, int]
    pending: set[str]

    @property
    def rows_in_flight(self) -> int:
        """Rows of all its steps."""
        return sum(self.row_counts.values())


class Executor:
    """Streams rows through connected steps, inside a flow run.

    Args:
        graph: The steps, checked.
        finished: Told what a step made of a batch as soon as it is known, from whatever thread.
        settled: Told the same once all batches before it are settled, from the thread that called `run`.
    """

    def __init__(
        self, graph: Graph, on_done: Callable[[Step, Outcome], None], on_commit: Callable[[Step, Outcome], None]
    ) -> None:
        self._graph = graph
        self._on_done = on_done
        self._on_commit = on_commit
        self._stop = StopEvent()
        self._wakeup = threading.Event()
        self._first_error: BaseException | None = None
        self._in_flight: deque[_Batch] = deque()
        self._tasks: dict[str, prefect.Task[..., Outcome]] = {}
        self._accumulated: dict[str, Outcome] = {}
        self._usage_of_failed: list[tuple[Step, Outcome]] = []  # by batches that broke, for answers that had come

    def run(self, limit: int | None = None) -> None:
        """Bring the rows of every source, `limit` of each at most, through all the steps after it.

        Raises:
            Fatal: If no row can work.
            Drained: If the run may spend no more; all that was asked for has come by then.
        """
        waiting = [step for step in self._graph.order if self._graph.is_barrier(step)]
        for first in [*self._graph.sources, *waiting]:  # now: what their code refers to may change as they work
            path = self._graph.stream(first)
            for step in path[1:]:
                self._task_for(step, [each.name for each in path])
        for step in waiting:
            self._task_for(step, self._global_inputs([step]))
        try:
            for number, source in enumerate(self._graph.sources):
                self._stream(source, self._read_source(source, number, limit))
            while waiting:
                self._stream(step := waiting.pop(0), self._run_global_step(step, waiting))
        except BaseException as error:
            self._stop.set()
            following = isinstance(error, CancelledError | Drained)
            if following:
                for batch in self._in_flight:  # they are ending: one of them may know why
                    self._wait_notified(
                        batch, {name for name, made in batch.results.items() if not isinstance(made, Outcome)}
                    )
            for step, outcome in self._usage_of_failed:
                self._on_commit(step, outcome)
            if following and self._first_error:
                raise self._first_error from None
            raise

    def _stream(self, first: Step, outcomes: Iterable[BatchResult]) -> None:
        """Send what `first` made through the steps after it, up to those that wait for all rows."""
        path = self._graph.stream(first)
        in_flight = self._in_flight
        kept = self._global_inputs([step for step in self._graph.order if self._graph.is_barrier(step)])

        def commit_oldest() -> None:
            batch = in_flight[0]
            outcomes: list[BatchResult] = []
            for step in path:
                made = batch.results[step.name]
                outcome = made if isinstance(made, Outcome) else made.result()
                outcomes.append(outcome)
                if step.name in kept:
                    self._accumulate(step, outcome)
                self._on_commit(step, outcome)
            self._wait_notified(batch, batch.pending)  # it is made, but not everybody was told
            in_flight.popleft()
            for outcome in outcomes:  # now that no step needs them: Prefect's own objects hold on to them for a while
                outcome.rows, outcome.failures = [], []

        for number, outcome in enumerate(outcomes):
            rows = {step.name: len(outcome.rows) for step in path}  # what a step will make of it shows later
            batch = _Batch({first.name: outcome}, rows, {step.name for step in path[1:]})
            while in_flight:
                self._wakeup.clear()
                if self._first_error:
                    while in_flight and not in_flight[0].pending:
                        commit_oldest()  # what is done is kept, up to the batch that broke, which raises
                    raise self._first_error
                if (
                    not in_flight[0].pending
                    or sum(each.rows_in_flight for each in in_flight) + batch.rows_in_flight > MAX_ROWS_IN_FLIGHT
                ):
                    commit_oldest()
                elif (unfinished := sum(bool(batch.pending) for batch in in_flight)) >= MAX_BATCHES_IN_FLIGHT:
                    self._wakeup.wait()
                else:
                    if unfinished >= BUSY_BATCHES:
                        self._wakeup.wait(SUBMIT_DELAY_S)
                    break
            in_flight.append(batch)
            for step in path[1:]:
                self._submit(step, number, batch)
        while in_flight:
            commit_oldest()

    def _wait_notified(self, batch: _Batch, steps: Set[str]) -> None:
        """Wait until everybody was told what these steps made of a batch."""
        while batch.pending & steps:
            self._wakeup.clear()
            if batch.pending & steps:
                self._wakeup.wait()

    def _accumulate(self, step: Step, outcome: Outcome) -> None:
        whole = self._accumulated.setdefault(step.name, Outcome(digest=""))
        whole.rows.extend(outcome.rows)
        whole.digest = results.combine_digests(whole.digest, outcome.digest)

    def _global_inputs(self, waiting: list[Step]) -> set[str]:
        """The steps whose rows are kept for others that wait for all of them."""
        before = {each.name for step in waiting for each in self._graph.predecessors[step.name]}
        return before | {fork.name for step in waiting if (fork := self._graph.fork(step))}

    def _run_global_step(self, step: Step, waiting: list[Step]) -> Iterator[Outcome]:
        """What a step makes of all its rows, in batches; what only it needed is let go."""
        alone = _Batch(dict(self._accumulated), {}, {step.name})
        self._submit(step, 0, alone)
        whole = alone.results[step.name].result()  # type: ignore[union-attr]
        del alone
        needed = self._global_inputs(waiting)
        self._accumulated = {name: outcome for name, outcome in self._accumulated.items() if name in needed}
        first, *others = split_into_batches(iter(whole.rows)) if whole.rows else [[]]
        whole.rows, whole.digest = first, results.digest_rows(first)
        yield whole  # what failed and was spent is told once
        yield from map(_source_batch, others)

    def _read_source(self, source: GeneratorStep, place: int, limit: int | None) -> Iterator[Outcome]:
        """A source's batches, each read inside a task run of its own."""
        numbered = enumerate(islice(source.rows(), limit))
        rows = split_into_batches((_with_id(row, (place, number)) for number, row in numbered), source.batch_size)
        ahead = next(rows, None)  # so that no task run is spent on finding the end

        def read(number: int) -> BatchResult:
            nonlocal ahead
            now, ahead = ahead, next(rows, None)
            return _source_batch(now or [])

        task = prefect.Task(
            read,
            name=source.name,
            task_run_name=f"{source.name}-{{number}}",
            persist_result=False,
            cache_policy=NO_CACHE,
        )
        number = 0
        while ahead is not None:
            outcome = task(number)
            self._on_done(source, outcome)
            yield outcome
            number += 1

    def _task_for(self, step: Step, made: Collection[str]) -> tuple[prefect.Task[..., Outcome], list[str]]:
        """What works for a step on a batch that these steps have `made` something of, and whose of that it takes."""
        before = [each.name for each in self._graph.predecessors[step.name] if each.name in made]
        fork = self._graph.fork(step)
        forked = [fork.name] if fork and fork.name in made else []
        key = " ".join([step.name, *before])  # a step after two sources has a task for each
        if key not in self._tasks:
            routes = {name: self._graph.routes.get((name, step.name)) for name in before}
            work = StepTask(step, before, bool(forked), {n: each for n, each in routes.items() if each}, self._stop)
            self._tasks[key] = step.task(work, **work.task_options)
        return self._tasks[key], [*before, *forked]

    def _submit(self, step: Step, number: int, batch: _Batch) -> None:
        task, taken = self._task_for(step, batch.results)

        def on_done(done: PrefectFuture[Outcome]) -> None:
            try:
                outcome = done.result(raise_on_failure=False)
                if isinstance(outcome, Outcome):
                    batch.row_counts[step.name] = len(outcome.rows)
                    self._on_done(step, outcome)
                elif not isinstance(outcome, CancelledError | RunStopping | PrefectException):  # those follow another's
                    self._first_error = self._first_error or outcome
                if isinstance(outcome, LLMError) and isinstance(step, Task):
                    spent = sum(map(Spending.of, outcome.spent), Spending())
                    self._usage_of_failed.append((step, Outcome(spending={step.llm.model_name: spent})))
            finally:
                batch.pending.discard(step.name)
                self._wakeup.set()

        batch.results[step.name] = future = task.submit(*[batch.results[name] for name in taken], number=number)
        future.add_done_callback(on_done)


def _source_batch(rows: list[Row]) -> Outcome:
    return Outcome(rows, digest=results.digest_rows(rows))


def _with_id(row: Row, id: tuple[int, ...]) -> Row:
    row.origin = Origin(row.origin or "", id)
    return row


def split_into_batches(rows: Iterator[Row], size: int | None = None) -> Iterator[list[Row]]:
    """Rows in batches of `size`, or of a size that grows with how many there are, so that task runs stay hundreds."""
    total = 0
    while batch := list(
        islice(rows, size or min(max(MIN_BATCH_ROWS, min(total, DEFAULT_BATCH_ROWS), total // 20), MAX_BATCH_ROWS))
    ):
        total += len(batch)
        yield batch
