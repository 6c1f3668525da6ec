"""A source of rows in memory."""

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import Field

from tasks.base import GeneratorStep
from tasks.typing import Row


class LoadDataFromDicts(GeneratorStep):
    """Load rows from memory.

    Output columns: those of the rows.
    """

    data: list[dict[str, Any]] = Field(description="The rows.", min_length=1, exclude=True, repr=False)

    @property
    def outputs(self) -> Sequence[str]:
        """The columns of the first row."""
        return list(self.data[0])

    def process(self, offset: int = 0) -> Iterator[list[Row]]:
        """Yield the rows from number `offset` on."""
        yield [Row(row, f"data[{number}]") for number, row in enumerate(self.data[offset:], offset)]

    def check(self, columns: Sequence[str]) -> int:
        """Return the number of rows.

        Raises:
            ValueError: If a row lacks a column.
        """
        for number, row in enumerate(self.data):
            if missing := [column for column in columns if column not in row]:
                found = ", ".join(f"`{column}`" for column in row) or "no columns"
                raise ValueError(f"`data[{number}]` has no `{missing[0]}`: it has {found}.")
        return len(self.data)
