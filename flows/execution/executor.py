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
from flows.execution.step_task import Brake, Stopped, Work
from llms import Drained, LLMError
from tasks import GeneratorStep, Step, Task
from tasks.typing import BatchResult, ModelUsage, Row, RowLineage

ROWS_IN_FLIGHT = 16_000
"""Rows that may be anywhere between a source and the disk, counted at every step that holds them: what memory follows.
Many, because one that takes ten seconds holds back all behind it, which keep their order, and a provider answers
thousands meanwhile."""

BATCHES_IN_FLIGHT = 64
"""Batches that may be unfinished: each holds a thread per step."""

ENOUGH, BREATH = 12, 0.03
"""Unfinished batches that keep a provider busy for now, and the seconds that then go by before the next one, or until
one is done: a task run begun is work for this process, which has a thousand requests to send meanwhile."""

SMALLEST, COMMON, LARGEST = 8, 100, 1_000
"""Rows per batch when nobody says: few at first, so that rows show soon; then as many as all before them, so that a
provider is busy after half a dozen; not more for a while, so that the next step is never far behind; then a twentieth
of all, so that task runs stay hundreds."""


@dataclass
class _Batch:
    """A batch on its way: what each step makes of it, how many rows that is, and the steps that are not done yet."""

    made: dict[str, BatchResult | PrefectFuture[BatchResult]]
    rows: dict[str, int]
    left: set[str]

    @property
    def held(self) -> int:
        """Rows of all its steps."""
        return sum(self.rows.values())


class Executor:
    """Streams rows through connected steps, inside a flow run.

    Args:
        graph: The steps, checked.
        finished: Told what a step made of a batch as soon as it is known, from whatever thread.
        settled: Told the same once all batches before it are settled, from the thread that called `run`.
    """

    def __init__(
        self, graph: Graph, finished: Callable[[Step, BatchResult], None], settled: Callable[[Step, BatchResult], None]
    ) -> None:
        self._graph = graph
        self._finished = finished
        self._settled = settled
        self._brake = Brake()
        self._news = threading.Event()
        self._broken: BaseException | None = None
        self._in_flight: deque[_Batch] = deque()
        self._tasks: dict[str, prefect.Task[..., BatchResult]] = {}
        self._gathered: dict[str, BatchResult] = {}
        self._paid: list[tuple[Step, BatchResult]] = []  # by batches that broke, for answers that had come

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
                self._task(step, [each.name for each in path])
        for step in waiting:
            self._task(step, self._needed([step]))
        try:
            for number, source in enumerate(self._graph.sources):
                self._stream(source, self._loaded(source, number, limit))
            while waiting:
                self._stream(step := waiting.pop(0), self._made_of_all(step, waiting))
        except BaseException as error:
            self._brake.set()
            following = isinstance(error, CancelledError | Drained)
            if following:
                for batch in self._in_flight:  # they are ending: one of them may know why
                    self._all_told(
                        batch, {name for name, made in batch.made.items() if not isinstance(made, BatchResult)}
                    )
            for step, outcome in self._paid:
                self._settled(step, outcome)
            if following and self._broken:
                raise self._broken from None
            raise

    def _stream(self, first: Step, outcomes: Iterable[BatchResult]) -> None:
        """Send what `first` made through the steps after it, up to those that wait for all rows."""
        path = self._graph.stream(first)
        in_flight = self._in_flight
        kept = self._needed([step for step in self._graph.order if self._graph.is_barrier(step)])

        def settle() -> None:
            batch = in_flight[0]
            outcomes: list[BatchResult] = []
            for step in path:
                made = batch.made[step.name]
                outcome = made if isinstance(made, BatchResult) else made.result()
                outcomes.append(outcome)
                if step.name in kept:
                    self._gather(step, outcome)
                self._settled(step, outcome)
            self._all_told(batch, batch.left)  # it is made, but not everybody was told
            in_flight.popleft()
            for outcome in outcomes:  # now that no step needs them: Prefect's own objects hold on to them for a while
                outcome.rows, outcome.failures = [], []

        for number, outcome in enumerate(outcomes):
            rows = {step.name: len(outcome.rows) for step in path}  # what a step will make of it shows later
            batch = _Batch({first.name: outcome}, rows, {step.name for step in path[1:]})
            while in_flight:
                self._news.clear()
                if self._broken:
                    while in_flight and not in_flight[0].left:
                        settle()  # what is done is kept, up to the batch that broke, which raises
                    raise self._broken
                if not in_flight[0].left or sum(each.held for each in in_flight) + batch.held > ROWS_IN_FLIGHT:
                    settle()
                elif (unfinished := sum(bool(batch.left) for batch in in_flight)) >= BATCHES_IN_FLIGHT:
                    self._news.wait()
                else:
                    if unfinished >= ENOUGH:
                        self._news.wait(BREATH)
                    break
            in_flight.append(batch)
            for step in path[1:]:
                self._submit(step, number, batch)
        while in_flight:
            settle()

    def _all_told(self, batch: _Batch, steps: Set[str]) -> None:
        """Wait until everybody was told what these steps made of a batch."""
        while batch.left & steps:
            self._news.clear()
            if batch.left & steps:
                self._news.wait()

    def _gather(self, step: Step, outcome: BatchResult) -> None:
        whole = self._gathered.setdefault(step.name, BatchResult(digest=""))
        whole.rows.extend(outcome.rows)
        whole.digest = results.joined(whole.digest, outcome.digest)

    def _needed(self, waiting: list[Step]) -> set[str]:
        """The steps whose rows are kept for others that wait for all of them."""
        before = {each.name for step in waiting for each in self._graph.predecessors[step.name]}
        return before | {fork.name for step in waiting if (fork := self._graph.fork(step))}

    def _made_of_all(self, step: Step, waiting: list[Step]) -> Iterator[BatchResult]:
        """What a step makes of all its rows, in batches; what only it needed is let go."""
        alone = _Batch(dict(self._gathered), {}, {step.name})
        self._submit(step, 0, alone)
        whole = alone.made[step.name].result()  # type: ignore[union-attr]
        del alone
        needed = self._needed(waiting)
        self._gathered = {name: outcome for name, outcome in self._gathered.items() if name in needed}
        first, *others = batches(iter(whole.rows)) if whole.rows else [[]]
        whole.rows, whole.digest = first, results.digest_of(first)
        yield whole  # what failed and was spent is told once
        yield from map(_brought, others)

    def _loaded(self, source: GeneratorStep, place: int, limit: int | None) -> Iterator[BatchResult]:
        """A source's batches, each read inside a task run of its own."""
        numbered = enumerate(islice(source.rows(), limit))
        rows = batches((_identified(row, (place, number)) for number, row in numbered), source.batch_size)
        ahead = next(rows, None)  # so that no task run is spent on finding the end

        def read(number: int) -> BatchResult:
            nonlocal ahead
            now, ahead = ahead, next(rows, None)
            return _brought(now or [])

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
            self._finished(source, outcome)
            yield outcome
            number += 1

    def _task(self, step: Step, made: Collection[str]) -> tuple[prefect.Task[..., BatchResult], list[str]]:
        """What works for a step on a batch that these steps have `made` something of, and whose of that it takes."""
        before = [each.name for each in self._graph.predecessors[step.name] if each.name in made]
        fork = self._graph.fork(step)
        forked = [fork.name] if fork and fork.name in made else []
        key = " ".join([step.name, *before])  # a step after two sources has a task for each
        if key not in self._tasks:
            routes = {name: self._graph.routes.get((name, step.name)) for name in before}
            work = Work(step, before, bool(forked), {n: each for n, each in routes.items() if each}, self._brake)
            self._tasks[key] = step.task(work, **work.options)
        return self._tasks[key], [*before, *forked]

    def _submit(self, step: Step, number: int, batch: _Batch) -> None:
        task, taken = self._task(step, batch.made)

        def tell(done: PrefectFuture[BatchResult]) -> None:
            try:
                outcome = done.result(raise_on_failure=False)
                if isinstance(outcome, BatchResult):
                    batch.rows[step.name] = len(outcome.rows)
                    self._finished(step, outcome)
                elif not isinstance(outcome, CancelledError | Stopped | PrefectException):  # those follow another's
                    self._broken = self._broken or outcome
                if isinstance(outcome, LLMError) and isinstance(step, Task):
                    spent = sum(map(ModelUsage.of, outcome.spent), ModelUsage())
                    self._paid.append((step, BatchResult(model_usage={step.llm.model_name: spent})))
            finally:
                batch.left.discard(step.name)
                self._news.set()

        batch.made[step.name] = future = task.submit(*[batch.made[name] for name in taken], number=number)
        future.add_done_callback(tell)


def _brought(rows: list[Row]) -> BatchResult:
    return BatchResult(rows, digest=results.digest_of(rows))


def _identified(row: Row, id: tuple[int, ...]) -> Row:
    row.origin = RowLineage(row.origin or "", id)
    return row


def batches(rows: Iterator[Row], size: int | None = None) -> Iterator[list[Row]]:
    """Rows in batches of `size`, or of a size that grows with how many there are, so that task runs stay hundreds."""
    total = 0
    while batch := list(islice(rows, size or min(max(SMALLEST, min(total, COMMON), total // 20), LARGEST))):
        total += len(batch)
        yield batch
