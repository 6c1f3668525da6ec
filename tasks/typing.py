"""Types that steps exchange: rows with their lineage, batch results, failures and model usage."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llms.typing import ChatType, FormattedInput, ModelUsage

__all__ = [
    "UNKNOWN_PARENT",
    "BatchResult",
    "ChatType",
    "Failure",
    "FormattedInput",
    "ModelUsage",
    "PartialBatchError",
    "Row",
    "RowId",
    "RowLineage",
]


RowId = tuple[int, ...]
"""Path of a row: the number of its source, its number there, and its number among siblings at each fan-out."""

UNKNOWN_PARENT = -1
"""In a row's id: the parent is unknown, but was in the batch whose first row has the id before this number."""


class RowLineage(str):
    """The origin of a row, as errors name it, with its id.

    Attributes:
        id: Equal for the rows that several branches make of one row. A step that makes several rows of one appends a
            number to each. Ids sort in the order of loading.
    """

    id: RowId

    def __new__(cls, origin: str, id: RowId) -> "RowLineage":
        lineage = super().__new__(cls, origin)
        lineage.id = id
        return lineage

    def __reduce__(self) -> Any:
        return (RowLineage, (str(self), self.id))


class Row(dict[str, Any]):
    """A dictionary of columns with an origin, which copies and `row | {…}` keep.

    Attributes:
        origin: File and line, or position, that the row was loaded from; inside a pipeline a `RowLineage`.
    """

    __slots__ = ("origin",)

    def __init__(self, columns: Mapping[str, Any] | None = None, origin: str | None = None) -> None:
        super().__init__(columns or {})
        self.origin = origin

    def __reduce__(self) -> Any:
        return (Row, (dict(self), self.origin))

    def __or__(self, other: Any) -> Any:
        return Row({**self, **other}, self.origin) if isinstance(other, Mapping) else NotImplemented

    def __ror__(self, other: Any) -> Any:
        return Row({**other, **self}, self.origin) if isinstance(other, Mapping) else NotImplemented

    def copy(self) -> "Row":
        """Return a copy with equal columns and origin."""
        return Row(self, self.origin)

    @classmethod
    def of(cls, columns: Mapping[str, Any]) -> "Row":
        """Return the columns as a `Row`; a `Row` is returned as it is."""
        return columns if isinstance(columns, cls) else cls(columns)

    @property
    def id(self) -> RowId | None:
        """The id of the row's lineage; `None` outside a pipeline."""
        return self.origin.id if isinstance(self.origin, RowLineage) else None


@dataclass(slots=True)
class Failure:
    """A row that failed in a step, and its error.

    Attributes:
        step: Name of the step.
        error: Class name of the error.
        message: Message of the error, with the cure where there is one.
        attempts: Number of requests to the model.
        row: The row as it entered the step.
        origin: Origin of the row.
        raw_output: Output of the model, if it could not be parsed.
    """

    step: str
    error: str
    message: str
    row: Row
    attempts: int = 1
    raw_output: str | None = None

    @property
    def origin(self) -> str | None:
        return self.row.origin


class BatchResult:
    """The result of a step for one batch.

    It is no dataclass, in whose rows Prefect would search for futures.

    Attributes:
        rows: Output rows, in order.
        failures: Rows that failed.
        model_usage: Usage of each model, by model name.
        seconds: Duration of the step.
        rows_in: Number of input rows.
        digest: Hash of the rows in a pipeline, which is part of the cache keys of steps downstream.
        is_counted: Whether a collector around the step has counted its usage.
    """

    __slots__ = ("digest", "failures", "is_counted", "model_usage", "rows", "rows_in", "seconds")

    def __init__(
        self,
        rows: list[Row] | None = None,
        failures: list[Failure] | None = None,
        model_usage: dict[str, ModelUsage] | None = None,
        rows_in: int = 0,
        digest: str | None = None,
    ) -> None:
        self.rows = [] if rows is None else rows
        self.failures = [] if failures is None else failures
        self.model_usage = {} if model_usage is None else model_usage
        self.seconds = 0.0
        self.rows_in = rows_in
        self.digest = digest
        self.is_counted = False

    def add(self, other: "BatchResult") -> None:
        """Add the rows and failures of another batch."""
        self.rows += other.rows
        self.failures += other.failures


class PartialBatchError(Exception):
    """Raised when some rows of a batch failed.

    Attributes:
        rows: Output of the rows that succeeded, in order.
        failures: Rows that failed.
    """

    def __init__(self, rows: list[Row], failures: list[Failure]) -> None:
        super().__init__(rows, failures)
        self.rows = rows
        self.failures = failures

    def __str__(self) -> str:
        first = self.failures[0]
        where = f" ({first.origin})" if first.origin else ""
        total = len(self.rows) + len(self.failures)
        return f"`{first.step}`: {len(self.failures)} of {total} rows failed; the first{where}: {first.message}"
