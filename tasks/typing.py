"""What steps exchange: rows, and what became of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llms.typing import ChatType, GenerateOutput, Usage

__all__ = ["ChatType", "Failure", "Outcome", "Row", "RowsFailed", "Spending", "dollars"]


class Row(dict[str, Any]):
    """A row: a dictionary of columns that remembers where it came from.

    Attributes:
        origin: The file and line, or the position, it was loaded from; what an error about it names.
    """

    __slots__ = ("origin",)

    def __init__(self, columns: Mapping[str, Any] | None = None, origin: str | None = None) -> None:
        super().__init__(columns or {})
        self.origin = origin

    @classmethod
    def of(cls, columns: Mapping[str, Any]) -> "Row":
        """The same columns as a `Row`; one that already is passes untouched."""
        return columns if isinstance(columns, cls) else cls(columns)


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
class Spending:
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
    def of(cls, output: GenerateOutput) -> "Spending":
        """What one output took."""
        return cls(cached=1) if output.cached else cls(1, 0, output.usage, output.cost, output.seconds)

    def __add__(self, other: "Spending") -> "Spending":
        return Spending(
            self.requests + other.requests,
            self.cached + other.cached,
            self.usage + other.usage,
            dollars(self.cost, other.cost),
            self.seconds + other.seconds,
        )


def dollars(one: float | None, other: float | None) -> float | None:
    """Two costs together: not known when one of them is not."""
    return None if one is None or other is None else one + other


@dataclass
class Outcome:
    """What a step made of a batch.

    Attributes:
        rows: The rows that go on, in order.
        failures: The rows that do not.
        spending: What each model took, by its name.
        seconds: How long the step worked.
    """

    rows: list[Row] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    spending: dict[str, Spending] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, other: "Outcome") -> None:
        """Take over what another batch came to."""
        self.rows += other.rows
        self.failures += other.failures
        for model, spending in other.spending.items():
            self.spending[model] = self.spending.get(model, Spending()) + spending
        self.seconds += other.seconds


class RowsFailed(Exception):
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
