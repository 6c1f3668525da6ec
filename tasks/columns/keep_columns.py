"""A step that selects columns, and the base class of steps that drop some."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import AfterValidator, Field

from tasks.base import Step
from tasks.typing import Row


def validate_distinct(columns: list[str]) -> list[str]:
    """Return the columns.

    Raises:
        ValueError: If there is none, or one is named twice.
    """
    if not columns:
        raise ValueError('name a column: `columns=["instruction"]`.')
    if repeated := [column for index, column in enumerate(columns) if column in columns[:index]]:
        raise ValueError(f"`{repeated[0]}` is named twice.")
    return columns


Columns = Annotated[list[str], AfterValidator(validate_distinct)]
"""Names of one or several distinct columns."""


class DropsColumns(Step, ABC):
    """A step that drops columns, which steps downstream cannot read.

    Subclasses define `keeps` and `process`.
    """

    @abstractmethod
    def keeps(self, column: str) -> bool:
        """Return whether an input column, other than `outputs`, is kept. Override this in subclasses."""


class KeepColumns(DropsColumns):
    """Keep some columns, in the order given, and drop all others, metadata included.

    Input columns: those in `columns`.
    Output columns: those in `columns`.

    Example:
        ```python
        from tasks import KeepColumns

        KeepColumns(columns=["instruction", "generation"])
        ```
    """

    columns: Columns = Field(description="The columns to keep, in the order they are to have.")

    @property
    def inputs(self) -> Sequence[str]:
        """The columns in `columns`."""
        return self.columns

    @property
    def outputs(self) -> Sequence[str]:
        """The columns in `columns`."""
        return self.columns

    def keeps(self, column: str) -> bool:
        """Return `False`: no other column is kept."""
        return False

    def process(self, inputs: list[Row]) -> Iterator[list[Row]]:
        """Yield the rows with these columns only."""
        yield [Row({name: row[name] for name in self.columns}, Row.of(row).origin) for row in inputs]
