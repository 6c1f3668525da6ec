"""Several columns of a row as one list."""

from collections.abc import Iterator, Sequence

from pydantic import Field

from tasks.columns.keep_columns import Columns, DropsColumns
from tasks.typing import Row


class MergeColumns(DropsColumns):
    """Puts the values of several columns into one list, in the order of the columns, and drops the columns.

    A column that holds a list gives its elements, any other its value. A `None` stays, so that the list has as many
    elements in every row, and lists merged alike (`generation_a` with `generation_b`, `model_a` with `model_b`) match.

    Input columns: those named.
    Output columns: the one that takes their place.

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
        """The columns to merge."""
        return self.columns

    @property
    def outputs(self) -> Sequence[str]:
        """The list."""
        return [self.output_column]

    def keeps(self, column: str) -> bool:
        """All but those that are merged."""
        return column not in {*self.columns, *(self.input_mappings.get(name, name) for name in self.columns)}

    def process(self, inputs: list[Row]) -> Iterator[list[Row]]:
        """The rows with a list in place of the columns."""
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
