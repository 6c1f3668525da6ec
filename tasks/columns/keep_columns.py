"""Some columns, in the order wanted."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import AfterValidator, Field

from tasks.base import Step
from tasks.typing import Row


def distinct(columns: list[str]) -> list[str]:
    """Refuse no column, and one that is named twice."""
    if not columns:
        raise ValueError('name a column: `columns=["instruction"]`.')
    if twice := [column for at, column in enumerate(columns) if column in columns[:at]]:
        raise ValueError(f"`{twice[0]}` is named twice.")
    return columns


Columns = Annotated[list[str], AfterValidator(distinct)]
"""The names of one column or several, each once."""


class DropsColumns(Step, ABC):
    """A step after which columns are missing, so that none after it can count on them."""

    @abstractmethod
    def keeps(self, column: str) -> bool:
        """Whether rows that had this column have it still; `outputs` they have in any case."""


class KeepColumns(DropsColumns):
    """Keeps the columns named, in that order, and drops the others, metadata included.

    Input columns: those named.
    Output columns: the same.

    Example:
        ```python
        from tasks import KeepColumns

        KeepColumns(columns=["instruction", "generation"])
        ```
    """

    columns: Columns = Field(description="The columns to keep, in the order they are to have.")

    @property
    def inputs(self) -> Sequence[str]:
        """The columns to keep."""
        return self.columns

    @property
    def outputs(self) -> Sequence[str]:
        """The same."""
        return self.columns

    def keeps(self, column: str) -> bool:
        """No other."""
        return False

    def process(self, inputs: list[Row]) -> Iterator[list[Row]]:
        """The rows with these columns only."""
        yield [Row({name: row[name] for name in self.columns}, Row.of(row).origin) for row in inputs]
