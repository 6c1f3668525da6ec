"""What every step here is: a pydantic class from rows to rows that runs as a Prefect task."""

import re
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar, overload

import prefect
from prefect.cache_policies import NO_CACHE
from pydantic import Field

from llms import Fatal
from llms.config.strict import Strict
from tasks import dag
from tasks.typing import BatchResult, Failure, PartialBatchError, Row, RowLineage

S = TypeVar("S", bound="Step")


class Step(Strict, ABC):
    """Rows in, rows out. A subclass gives `process`, and says which columns it reads and adds.

    Its fields are its configuration and its runtime parameters: they are shown as a form, coerced from strings, and
    a misspelt one is refused.
    """

    name: str = Field(
        default="", pattern=r"^[A-Za-z0-9_-]*$", description="What the step is called; after its class when empty."
    )
    input_mappings: dict[str, str] = Field(
        default_factory=dict, description="Where the step's input columns are found: `{its name: the row's name}`."
    )
    output_mappings: dict[str, str] = Field(
        default_factory=dict, description="What its output columns are to be called: `{its name: another name}`."
    )
    input_batch_size: int | None = Field(
        default=None, gt=0, description="Rows `process` gets at once, at most; a whole batch when empty."
    )
    use_cache: bool = Field(default=True, description="Take what the step made of the same rows before, in any run.")

    keeps_rows: ClassVar[bool] = True
    """Whether every row comes out again, once or several times, or fails: a pipeline makes sure that it does. A step
    that drops rows says `False`."""

    def model_post_init(self, context: Any) -> None:
        """Take a name and a place in the pipeline being declared."""
        if not self.name:
            words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(self).__name__)
            self.name = words.lower()
            self.model_fields_set.discard("name")  # nobody gave it: a pipeline may number it
        if pipeline := dag.current.get():
            pipeline.add(self)

    @property
    def inputs(self) -> Sequence[str]:
        """The columns every row must have."""
        return ()

    @property
    def optional_inputs(self) -> Sequence[str]:
        """The columns it makes use of where a row has them."""
        return ()

    @property
    def outputs(self) -> Sequence[str]:
        """The columns it adds."""
        return ()

    def load(self) -> None:
        """Acquire what is slow to acquire, and say what is missing. A pipeline calls it by itself."""

    def unload(self) -> None:
        """Let go of it."""

    @abstractmethod
    def process(self, inputs: list[Row]) -> Iterator[list[Row]]:
        """Turn a batch of rows into rows, yielded in one or several lists."""

    def run(self, rows: list[Row]) -> BatchResult:
        """Process a batch so that one bad row costs one row.

        Raises:
            Fatal: If no row can work.
        """
        started, outcome = time.perf_counter(), BatchResult(rows_in=len(rows))
        size = self.input_batch_size or max(len(rows), 1)
        for start in range(0, len(rows), size):
            outcome.add(self._run([Row.of(row) for row in rows[start : start + size]]))
        _number_siblings(outcome.rows)
        outcome.seconds = time.perf_counter() - started
        return outcome

    def task(
        self, work: "Callable[[Sequence[BatchResult]], BatchResult] | None" = None, **options: Any
    ) -> "prefect.Task[..., BatchResult]":
        """This step as a Prefect task, `(*batches, number=0) -> BatchResult`; the run is called `<name>-<number>`.

        A batch is a list of rows, or what another step made.

        Args:
            work: What a run makes of its batches; when not given, what `run` makes of their rows.
            options: What else `prefect.Task` takes, such as where results are kept; without, they are not.
        """

        def process(*batches: BatchResult | list[Row], number: int = 0) -> BatchResult:
            made = [each if isinstance(each, BatchResult) else BatchResult(each) for each in batches]
            return work(made) if work else self.run([row for each in made for row in each.rows])

        return prefect.Task(
            process,
            name=self.name,
            description=type(self).__doc__,
            task_run_name=f"{self.name}-{{number}}",
            **(options or {"persist_result": False, "cache_policy": NO_CACHE}),
        )

    @overload
    def __rshift__(self, others: "S") -> "S": ...

    @overload
    def __rshift__(self, others: "list[S]") -> "list[S]": ...

    def __rshift__(self, others: Any) -> Any:
        """`a >> b`, `a >> [b, c]`: what `a` makes goes to each."""
        if not isinstance(others, Step | list):
            return NotImplemented  # a router, which knows what to do
        for other in others if isinstance(others, list) else [others]:
            self._pipeline().connect(self, other)
        return others

    def __rrshift__(self: S, others: "Sequence[Step]") -> S:
        """`[a, b] >> c`: what each makes goes to `c`."""
        for other in others:
            self._pipeline().connect(other, self)
        return self

    def connect(self, *others: "Step") -> None:
        """The same as `self >> [*others]`."""
        for other in others:
            self._pipeline().connect(self, other)

    def _pipeline(self) -> dag.DagBuilder:
        if pipeline := dag.current.get():
            return pipeline
        raise ValueError(f"`{self.name}`: steps are connected inside `with Pipeline() as pipeline:`.")

    def _run(self, rows: list[Row]) -> BatchResult:
        failures: list[Failure] = []
        try:
            made = [row for chunk in self.process([self._apply_input_mappings(row) for row in rows]) for row in chunk]
        except PartialBatchError as error:
            made, failures = error.rows, error.failures
        except Fatal:
            raise
        except Exception as error:
            if len(rows) == 1 or isinstance(self, GlobalStep):  # one by one, they are not what it is for
                return BatchResult(failures=[self._failure(row, error) for row in rows])
            outcome = BatchResult()
            for row in rows:  # find the rows that did it: the others go on
                outcome.add(self._run([row]))
            return outcome
        known = {row.id or row.origin: row for row in rows}
        alone = rows[0] if len(rows) == 1 else None
        same = len(made) == len(rows) and not failures and not isinstance(self, GlobalStep)
        named: list[Row] = []
        for at, columns in enumerate(made):
            row = Row.of(columns)
            guessed = rows[at] if same else alone
            source = guessed if row.origin is None else known.get(row.id or row.origin, guessed)
            origin = row.origin or (None if source is None else source.origin)
            named.append(self._apply_output_mappings(self._restore_shadowed(row, source), origin))
        return BatchResult(named, failures)

    def _restore_shadowed(self, made: Mapping[str, Any], source: Mapping[str, Any] | None) -> dict[str, Any]:
        """What was made, without what `input_mappings` lent it: a column the row itself has of that name comes back."""
        lent = self.input_mappings.keys() - set(self.outputs)
        own = {} if source is None else {name: source[name] for name in lent if name in source}
        return {name: own.get(name, value) for name, value in made.items() if name not in lent or name in own}

    def _apply_input_mappings(self, row: Row) -> Row:
        """A copy of the row under the names this step knows, so that no other step sees what it does to it.

        Raises:
            ValueError: If it lacks a column.
        """
        needed = {name: self.input_mappings.get(name, name) for name in [*self.inputs, *self.input_mappings]}
        if missing := [column for column in needed.values() if column not in row]:
            columns = ", ".join(f"`{column}`" for column in row) or "no columns"
            raise ValueError(f"no column `{missing[0]}`: the row has {columns}.")
        if not self.input_mappings:
            return Row(row, row.origin)
        return Row(row | {name: row[column] for name, column in self.input_mappings.items()}, row.origin)

    def _apply_output_mappings(self, row: Mapping[str, Any], origin: str | None) -> Row:
        """A row this step made, its columns called as `output_mappings` says."""
        return Row({self.output_mappings.get(name, name): value for name, value in row.items()}, origin)

    def _failure(self, row: Row, error: Exception, **facts: Any) -> Failure:
        message = getattr(error, "message", None) or f"{error}" or "no message"
        return Failure(self.name, type(error).__name__, message, row, **facts)


class GlobalStep(Step, ABC):
    """A step that needs all rows at once, such as one that removes duplicates.

    It may drop rows, and bring them in another order: what it makes of a row must pass `row.origin` on, as
    `row | {…}` does.
    """

    keeps_rows: ClassVar[bool] = False


class GeneratorStep(Step, ABC):
    """A source: rows out, none in."""

    batch_size: int | None = Field(
        default=None, gt=0, description="Rows per batch, the work of one task run; sized by itself when empty."
    )

    @abstractmethod
    def process(self, offset: int = 0) -> Iterator[list[Row]]:  # type: ignore[override]
        """Yield rows in lists of any length, beginning with row number `offset`."""

    def rows(self, offset: int = 0) -> Iterator[Row]:
        """All the rows one by one, under their final names, each with its origin."""
        number = offset
        for chunk in self.process(offset):
            for row in chunk:
                yield self._apply_output_mappings(row, Row.of(row).origin or f"{self.name}[{number}]")
                number += 1

    def check(self, columns: Sequence[str]) -> int | None:
        """Refuse data that lacks a column or cannot be read, before anything is paid for.

        Args:
            columns: What the steps after it need, under this step's own names.

        Returns:
            How many rows it will bring, if that is known.

        Raises:
            ValueError: Naming the place, the column and the cure.
        """
        outputs = self.outputs
        if outputs and (missing := [column for column in columns if column not in outputs]):
            found = ", ".join(f"`{column}`" for column in outputs)
            raise ValueError(f"`{self.name}` brings no column `{missing[0]}`: it has {found}.")
        return None


def _number_siblings(rows: list[Row]) -> None:
    """Number the rows that were made of one and the same."""
    count = Counter(row.id for row in rows)
    seen = Counter[tuple[int, ...]]()
    for row in rows:
        if row.id is not None and count[row.id] > 1:
            number, seen[row.id] = seen[row.id], seen[row.id] + 1
            row.origin = RowLineage(f"{row.origin}", (*row.id, number))
