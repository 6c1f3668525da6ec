"""Base classes of steps: pydantic classes from rows to rows that run as Prefect tasks."""

import re
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar, overload

import prefect
from prefect.cache_policies import NO_CACHE
from pydantic import Field

from llms import Fatal, LLMError
from llms.config.strict import StrictModel
from llms.limits.usage import UsageCollector
from tasks import dag
from tasks.typing import BatchResult, Failure, PartialBatchError, Row, RowId, RowLineage

S = TypeVar("S", bound="Step")


class Step(StrictModel, ABC):
    """A step from rows to rows.

    Subclasses define `process`, and `inputs` and `outputs` where they read and add columns. Fields are configuration
    and runtime parameters at once: shown as a form, coerced from strings, validated.
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
    """Whether every row comes out, once or several times, or fails, which a pipeline checks. Set this to `False` in
    subclasses that drop rows."""

    def model_post_init(self, context: Any) -> None:
        """Set the default name and join the pipeline being declared. Usually not overridden."""
        if not self.name:
            words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(self).__name__)
            self.name = words.lower()
            self.model_fields_set.discard("name")  # a default, which a pipeline may number
        if pipeline := dag.current.get():
            pipeline.add(self)

    @property
    def inputs(self) -> Sequence[str]:
        """Columns that every row must have. Override this in subclasses that read columns."""
        return ()

    @property
    def optional_inputs(self) -> Sequence[str]:
        """Columns that are used where a row has them. Override this in subclasses that have such columns."""
        return ()

    @property
    def outputs(self) -> Sequence[str]:
        """Columns that the step adds. Override this in subclasses that add columns."""
        return ()

    def load(self) -> None:
        """Acquire resources, and raise if one is missing; a pipeline calls it before the first batch.

        Override this in subclasses that need resources.
        """

    def unload(self) -> None:
        """Release the resources. Override this in subclasses that override `load`."""

    @abstractmethod
    def process(self, inputs: list[Row]) -> Iterator[list[Row]]:
        """Turn a batch of rows into rows, yielded in one or several lists. Override this in subclasses."""

    def run(self, rows: list[Row]) -> BatchResult:
        """Process a batch so that an invalid row fails alone. Usually not overridden.

        Raises:
            Fatal: If no row can succeed.
        """
        started, result = time.perf_counter(), BatchResult(rows_in=len(rows))
        size = self.input_batch_size or max(len(rows), 1)
        with UsageCollector(self.name).activate() as usage:
            try:
                for start in range(0, len(rows), size):
                    result.add(self._run([Row.of(row) for row in rows[start : start + size]]))
            except LLMError as error:
                error.model_usage = {} if usage.is_nested else usage.by_model
                raise
        result.model_usage, result.is_counted = usage.by_model, usage.is_nested
        _number_siblings(result.rows)
        result.seconds = time.perf_counter() - started
        return result

    def task(
        self, function: Callable[[Sequence[BatchResult]], BatchResult] | None = None, **options: Any
    ) -> "prefect.Task[..., BatchResult]":
        """Return this step as a Prefect task, `(*batches, number=0) -> BatchResult`. Usually not overridden.

        A batch is a list of rows or the result of another step. The task run is called `<name>-<number>`.

        Args:
            function: Called with the batches; by default `run` with all their rows.
            options: Further arguments of `prefect.Task`; by default results are not persisted.
        """

        def process(*batches: BatchResult | list[Row], number: int = 0) -> BatchResult:
            results = [each if isinstance(each, BatchResult) else BatchResult(each) for each in batches]
            return function(results) if function else self.run([row for each in results for row in each.rows])

        return prefect.Task(
            process,
            name=self.name,
            description=type(self).__doc__,
            task_run_name=f"{self.name}-{{number}}",
            **(options or {"persist_result": False, "cache_policy": NO_CACHE}),
        )

    @overload
    def __rshift__(self, others: S) -> S: ...

    @overload
    def __rshift__(self, others: list[S]) -> list[S]: ...

    def __rshift__(self, others: Any) -> Any:
        """Connect `a >> b`, or fan out `a >> [b, c]`."""
        if not isinstance(others, Step | list):
            return NotImplemented  # a router connects itself
        for other in others if isinstance(others, list) else [others]:
            dag.connect(self, other)
        return others

    def __rrshift__(self: S, others: "Sequence[Step]") -> S:
        """Fan in `[a, b] >> c`."""
        for other in others:
            dag.connect(other, self)
        return self

    def connect(self, *others: "Step") -> None:
        """Connect this step to others, as `self >> [*others]` does."""
        for other in others:
            dag.connect(self, other)

    def apply_input_mappings(self, row: Row) -> Row:
        """Return a copy of a row under the step's own column names, so that no other step sees it change.

        Usually not overridden.

        Raises:
            ValueError: If a column is missing.
        """
        needed = {name: self.input_mappings.get(name, name) for name in [*self.inputs, *self.input_mappings]}
        if missing := [column for column in needed.values() if column not in row]:
            columns = ", ".join(f"`{column}`" for column in row) or "no columns"
            raise ValueError(f"no column `{missing[0]}`: the row has {columns}.")
        if not self.input_mappings:
            return Row(row, row.origin)
        return Row(row | {name: row[column] for name, column in self.input_mappings.items()}, row.origin)

    def _run(self, rows: list[Row]) -> BatchResult:
        failures: list[Failure] = []
        try:
            made = [row for chunk in self.process([self.apply_input_mappings(row) for row in rows]) for row in chunk]
        except PartialBatchError as error:
            made, failures = error.rows, error.failures
        except Fatal:
            raise
        except Exception as error:
            if len(rows) == 1 or isinstance(self, GlobalStep):  # which is not meant for single rows
                return BatchResult(failures=[self._failure(row, error) for row in rows])
            result = BatchResult()
            for row in rows:  # isolate the rows that fail
                result.add(self._run([row]))
            return result
        parents = {row.id or row.origin: row for row in rows}
        only = rows[0] if len(rows) == 1 else None
        one_to_one = len(made) == len(rows) and not failures and not isinstance(self, GlobalStep)
        mapped: list[Row] = []
        for position, columns in enumerate(made):
            row = Row.of(columns)
            likely = rows[position] if one_to_one else only
            parent = likely if row.origin is None else parents.get(row.id or row.origin, likely)
            origin = row.origin or (None if parent is None else parent.origin)
            mapped.append(self._apply_output_mappings(self._restore_shadowed(row, parent), origin))
        return BatchResult(mapped, failures)

    def _restore_shadowed(self, made: Mapping[str, Any], parent: Mapping[str, Any] | None) -> dict[str, Any]:
        """Remove the aliases of `input_mappings`, and restore columns of the parent row that they shadowed."""
        aliases = self.input_mappings.keys() - set(self.outputs)
        shadowed = {} if parent is None else {name: parent[name] for name in aliases if name in parent}
        return {
            name: shadowed.get(name, value) for name, value in made.items() if name not in aliases or name in shadowed
        }

    def _apply_output_mappings(self, row: Mapping[str, Any], origin: str | None) -> Row:
        """Return a row with its columns renamed by `output_mappings`."""
        return Row({self.output_mappings.get(name, name): value for name, value in row.items()}, origin)

    def _failure(self, row: Row, error: Exception, **details: Any) -> Failure:
        message = getattr(error, "message", None) or f"{error}" or "no message"
        return Failure(self.name, type(error).__name__, message, row, **details)


class GlobalStep(Step, ABC):
    """A step that gets all rows at once, such as deduplication.

    It may drop and reorder rows. Subclasses define `process`; new rows must keep the `row.origin` of their parent, as
    `row | {…}` does.
    """

    keeps_rows: ClassVar[bool] = False


class GeneratorStep(Step, ABC):
    """A source: a step that yields rows and takes none.

    Subclasses define `process` and `outputs`.
    """

    batch_size: int | None = Field(
        default=None, gt=0, description="Rows per batch, the work of one task run; sized by itself when empty."
    )

    @abstractmethod
    def process(self, offset: int = 0) -> Iterator[list[Row]]:  # type: ignore[override]
        """Yield rows in lists of any length, from row number `offset` on. Override this in subclasses."""

    def rows(self, offset: int = 0) -> Iterator[Row]:
        """Yield the rows one by one, renamed by `output_mappings`, each with its origin. Usually not overridden."""
        number = offset
        for chunk in self.process(offset):
            for row in chunk:
                yield self._apply_output_mappings(row, Row.of(row).origin or f"{self.name}[{number}]")
                number += 1

    def check(self, columns: Sequence[str]) -> int | None:
        """Validate the data before the first request. Override this in subclasses that can check more.

        Args:
            columns: Columns that the steps downstream need, under this step's own names.

        Returns:
            The number of rows, if it is known.

        Raises:
            ValueError: If data cannot be read or lacks a column; it names the place, the column and the cure.
        """
        outputs = self.outputs
        if outputs and (missing := [column for column in columns if column not in outputs]):
            found = ", ".join(f"`{column}`" for column in outputs)
            raise ValueError(f"`{self.name}` brings no column `{missing[0]}`: it has {found}.")
        return None


def _number_siblings(rows: list[Row]) -> None:
    """Append a number to the id of rows that share a parent row."""
    count = Counter(row.id for row in rows)
    seen = Counter[RowId]()
    for row in rows:
        if row.id is not None and count[row.id] > 1:
            number, seen[row.id] = seen[row.id], seen[row.id] + 1
            row.origin = RowLineage(f"{row.origin}", (*row.id, number))
