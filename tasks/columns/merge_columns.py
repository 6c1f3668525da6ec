"""A step that merges columns into a list."""

from collections.abc import Iterator, Sequence

from pydantic import Field

from tasks.columns.keep_columns import Columns, DropsColumns
from tasks.typing import Row


class MergeColumns(DropsColumns):
    """Merge several columns into one list, in the order of the columns, and drop the columns.

    A column that holds a list contributes its elements, any other its value. `None` is kept, so that all rows have
    lists of one length, and lists merged alike (`generation_a` with `generation_b`, `model_a` with `model_b`) match.

    Input columns: those in `columns`.
    Output columns: `output_column`.

    Example:
        ```python
        from tasks import MergeColumns

        MergeColumns(columns=["answer", "other_answers"], output_column="generations")
        ```
    """

    columns: Columns = Field(description="The columns to merge, in the order their values are to have.")
    output_column: str = Field(
        default="merged_column", min_length=1, description="The column that takes their place; it may be one of them."
    )

    @property
    def inputs(self) -> Sequence[str]:
        """The columns in `columns`."""
        return self.columns

    @property
    def outputs(self) -> Sequence[str]:
        """The column of the list."""
        return [self.output_column]

    def keeps(self, column: str) -> bool:
        """Return whether a column is not merged."""
        return column not in {*self.columns, *(self.input_mappings.get(name, name) for name in self.columns)}

    def process(self, inputs: list[Row]) -> Iterator[list[Row]]:
        """Yield the rows with a list in place of the columns."""
        yield [
            Row(
                {name: value for name, value in row.items() if self.keeps(name)}
                | {self.output_column: [value for name in self.columns for value in _values(row[name])]},
                Row.of(row).origin,
            )
            for row in inputs
        ]


def _values(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value]
