"""What steps exchange: rows, and what became of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llms.typing import ChatType, FormattedInput, GenerateOutput, Usage

__all__ = [
    "BatchResult",
    "ChatType",
    "Failure",
    "FormattedInput",
    "ModelUsage",
    "PartialBatchError",
    "Row",
    "RowLineage",
    "add_costs",
]


RowId = tuple[int, ...]

UNKNOWN_PARENT = -1
"""In an id: the row does not say what it was made of, but that was in the batch that began with the row before this."""


class RowLineage(str):
    """Where a row came from, as an error names it, and which row it is.

    Attributes:
        id: Equal for what several branches make of one row; what a step makes several rows of one gets a number at its
            end. In the order of the ids, rows are in the order they were loaded in.
    """

    id: RowId

    def __new__(cls, place: str, id: RowId) -> "RowLineage":
        origin = super().__new__(cls, place)
        origin.id = id
        return origin

    def __reduce__(self) -> Any:
        return (RowLineage, (str(self), self.id))


class Row(dict[str, Any]):
    """A row: a dictionary of columns that remembers where it came from, and so do its copies and `row | {…}`.

    Attributes:
        origin: The file and line, or the position, it was loaded from; inside a pipeline an `RowLineage`.
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
        """The same columns, of the same origin."""
        return Row(self, self.origin)

    @classmethod
    def of(cls, columns: Mapping[str, Any]) -> "Row":
        """The same columns as a `Row`; one that already is passes untouched."""
        return columns if isinstance(columns, cls) else cls(columns)

    @property
    def id(self) -> RowId | None:
        """Which row it is; `None` outside a pipeline."""
        return self.origin.id if isinstance(self.origin, RowLineage) else None


@dataclass(slots=True)
class Failure:
    """A row that left the stream, and why.

    Attributes:
        step: The name of the step it failed in.
        error: The class of the error.
        message: What is wrong with it, and the cure where there is one.
        attempts: How often a model was asked.
        row: The row as it entered the step.
        origin: Where the row was loaded from.
        raw_output: What the model had answered, if it was the answer that could not be used.
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


@dataclass(slots=True)
class ModelUsage:
    """What a model was asked for, and what it took.

    Attributes:
        requests: How many went out.
        cached: How many did not have to: their answers were in the store.
        usage: The tokens of those that went out.
        cost: Dollars; `None` when the price of any of them is not known.
        seconds: How long they took, added up.
    """

    requests: int = 0
    cached: int = 0
    usage: Usage = field(default_factory=Usage)
    cost: float | None = 0.0
    seconds: float = 0.0

    @classmethod
    def of(cls, output: GenerateOutput) -> "ModelUsage":
        """What one output took."""
        return cls(cached=1) if output.cached else cls(1, 0, output.usage, output.cost, output.seconds)

    def __add__(self, other: "ModelUsage") -> "ModelUsage":
        return ModelUsage(
            self.requests + other.requests,
            self.cached + other.cached,
            self.usage + other.usage,
            add_costs(self.cost, other.cost),
            self.seconds + other.seconds,
        )


def add_costs(one: float | None, other: float | None) -> float | None:
    """Two costs together: not known when one of them is not."""
    return None if one is None or other is None else one + other


class BatchResult:
    """What a step made of a batch. No dataclass: Prefect would look for futures in each of its rows.

    Attributes:
        rows: The rows that go on, in order.
        failures: The rows that do not.
        model_usage: What each model took, by its name.
        seconds: How long the step worked.
        rows_in: How many rows it was given.
        digest: In a pipeline, a hash of the rows, by which what is made of them is known again.
    """

    __slots__ = ("digest", "failures", "rows", "rows_in", "seconds", "model_usage")

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

    def add(self, other: "BatchResult") -> None:
        """Take over what another batch came to."""
        self.rows += other.rows
        self.failures += other.failures
        for model, used in other.model_usage.items():
            self.model_usage[model] = self.model_usage.get(model, ModelUsage()) + used
        self.seconds += other.seconds


class PartialBatchError(Exception):
    """Some rows of a batch failed; those that did not are in `rows`.

    Attributes:
        rows: The rows that went through, in order.
        failures: The rows that did not.
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
