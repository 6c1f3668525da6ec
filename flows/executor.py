"""Batches in motion: every step and batch a Prefect task run, in order, with a bounded number of rows in flight."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import prefect
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import PrefectException
from prefect.futures import PrefectFuture
from prefect.utilities.annotations import opaque

from tasks import GeneratorStep, GlobalStep, Step
from tasks.typing import Outcome, Row

ROWS_IN_FLIGHT = 5_000
"""Rows that may be anywhere between a source and the disk: what memory follows. Many, because one that takes ten
seconds holds back all behind it, which keep their order, and a provider answers thousands meanwhile."""

BATCHES_IN_FLIGHT = 64
"""Batches that may be unfinished: each holds a thread per step."""

SMALLEST, LARGEST = 8, 1_000
"""Rows per batch when nobody says: few at first, so that rows show soon, then a twentieth of all before them."""


class Stopped(Exception):
    """The run is ending: this batch is not begun."""


@dataclass
class _Batch:
    """A batch on its way: what each step makes of it, and the steps that are not done yet."""

    size: int
    made: dict[str, Outcome | PrefectFuture[Outcome]]
    left: set[str]


class Executor:
    """Streams rows through connected steps, inside a flow run.

    Args:
        after: The steps that follow each, by name; every step is in it.
        finished: Told what a step made of a batch as soon as it is known, from whatever thread.
        settled: Told the same once all batches before it are settled, from the thread that called `run`.
    """

    def __init__(
        self,
        after: dict[str, list[Step]],
        finished: Callable[[Step, Outcome], None],
        settled: Callable[[Step, Outcome], None],
    ) -> None:
        self._after = after
        self._finished = finished
        self._settled = settled
        self._stopping = threading.Event()
        self._news = threading.Event()
        self._broken: BaseException | None = None
        self._tasks: dict[str, prefect.Task[..., Outcome]] = {}

    def run(self, source: GeneratorStep, limit: int | None = None) -> None:
        """Bring the rows of a source, `limit` of them at most, through all the steps after it.

        Raises:
            Fatal: If no row can work.
        """
        try:
            self._stream(source, self._loaded(source, limit))
        except BaseException:
            self._stopping.set()
            raise

    def _stream(self, first: Step, outcomes: Iterable[Outcome]) -> None:
        """Send what `first` made through the steps after it, up to those that need all rows at once."""
        path = list(self._up_to_global(first))
        waiting = {step.name: (step, Outcome()) for each in path for step in self._globals(each)}
        in_flight: deque[_Batch] = deque()

        def settle() -> None:
            batch = in_flight.popleft()
            for step in path:
                made = batch.made[step.name]
                outcome = made if isinstance(made, Outcome) else made.result()
                for each in self._globals(step):
                    waiting[each.name][1].rows.extend(outcome.rows)
                self._settled(step, outcome)

        for number, outcome in enumerate(outcomes):
            size = len(outcome.rows)
            while in_flight:
                self._news.clear()
                if self._broken:
                    while in_flight and not in_flight[0].left:
                        settle()  # what is done is kept, up to the batch that broke, which raises
                    raise self._broken
                if not in_flight[0].left or sum(batch.size for batch in in_flight) + size > ROWS_IN_FLIGHT:
                    settle()
                elif sum(bool(batch.left) for batch in in_flight) >= BATCHES_IN_FLIGHT:
                    self._news.wait()
                else:
                    break
            batch = _Batch(size, {first.name: outcome}, {step.name for step in path[1:]})
            in_flight.append(batch)
            for before in path:
                for step in self._after[before.name]:
                    if not isinstance(step, GlobalStep):
                        self._submit(step, batch.made[before.name], number, batch)
        while in_flight:
            settle()
        for step, gathered in waiting.values():
            alone = _Batch(len(gathered.rows), {}, {step.name})
            self._submit(step, gathered, 0, alone)
            whole = alone.made[step.name].result()  # type: ignore[union-attr]
            self._settled(step, Outcome(failures=whole.failures, spending=whole.spending, seconds=whole.seconds))
            self._stream(step, (Outcome(rows) for rows in batches(iter(whole.rows))))

    def _loaded(self, source: GeneratorStep, limit: int | None) -> Iterator[Outcome]:
        """A source's batches, each read inside a task run of its own."""
        rows = batches(islice(source.rows(), limit), source.batch_size)
        ahead = next(rows, None)  # so that no task run is spent on finding the end

        def read(number: int) -> Outcome:
            nonlocal ahead
            now, ahead = ahead, next(rows, None)
            return Outcome(now or [])

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

    def _submit(self, step: Step, before: "Outcome | PrefectFuture[Outcome]", number: int, batch: _Batch) -> None:
        if step.name not in self._tasks:
            self._tasks[step.name] = step.task(guard=self._guard)

        def tell(done: PrefectFuture[Outcome]) -> None:
            outcome = done.result(raise_on_failure=False)
            if isinstance(outcome, Outcome):
                self._finished(step, outcome)
            elif not isinstance(outcome, Stopped | PrefectException):  # those only follow from another's
                self._broken = self._broken or outcome
            batch.left.discard(step.name)
            self._news.set()

        # `opaque`: Prefect looks for futures inside whatever it is handed; rows hold none, and there are many.
        batch.made[step.name] = future = self._tasks[step.name].submit(opaque(before), number)
        future.add_done_callback(tell)

    def _guard(self) -> None:
        if self._stopping.is_set():
            raise Stopped("the run is ending")

    def _up_to_global(self, first: Step) -> Iterator[Step]:
        yield first
        for step in self._after[first.name]:
            if not isinstance(step, GlobalStep):
                yield from self._up_to_global(step)

    def _globals(self, step: Step) -> list[Step]:
        return [each for each in self._after[step.name] if isinstance(each, GlobalStep)]


def batches(rows: Iterator[Row], size: int | None = None) -> Iterator[list[Row]]:
    """Rows in batches of `size`, or of a size that grows with how many there are, so that task runs stay hundreds."""
    total = 0
    while batch := list(islice(rows, size or min(max(SMALLEST, total // 20), LARGEST))):
        total += len(batch)
        yield batch
