"""A join that groups the columns of several branches into lists."""

from collections.abc import Sequence
from typing import Self

from pydantic import Field, model_validator

from tasks.columns.keep_columns import Columns
from tasks.join import Join
from tasks.typing import Row


class GroupColumns(Join):
    """Join the rows of several branches into one row, with a list for each of some columns.

    The other columns are those of the first branch. A branch that lost the row has no element in the lists.

    Input columns: those in `columns`.
    Output columns: `output_columns`, or `grouped_<column>` for each.

    Example:
        ```python
        from tasks import GroupColumns

        group = GroupColumns(columns=["generation", "model_name"], output_columns=["generations", "models"])
        next(group.process([{"generation": "4", "model_name": "a"}], [{"generation": "5", "model_name": "b"}]))
        ```
    """

    columns: Columns = Field(description="The columns to make lists of.")
    output_columns: Columns | None = Field(
        default=None, description="What the lists are called, in the same order; `grouped_<column>` when empty."
    )

    @model_validator(mode="after")
    def _validate_output_columns(self) -> Self:
        if self.output_columns is not None and len(self.output_columns) != len(self.columns):
            raise ValueError(f"`output_columns` has {len(self.output_columns)} names for {len(self.columns)} columns.")
        return self

    @property
    def inputs(self) -> Sequence[str]:
        """The columns in `columns`."""
        return self.columns

    @property
    def outputs(self) -> Sequence[str]:
        """The columns of the lists."""
        return self.output_columns or [f"grouped_{column}" for column in self.columns]

    def joined(self, rows: list[Row]) -> Row:
        """Return the first row with lists in place of the columns."""
        lists = {
            output: [row[column] for row in rows] for column, output in zip(self.columns, self.outputs, strict=True)
        }
        others = {name: value for name, value in rows[0].items() if name not in self.columns}
        return Row(others | lists, rows[0].origin)
