"""A step that filters rows by a predicate or a column."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from tasks.base import Step
from tasks.typing import Row


class Filter(Step):
    """Keep the rows for which a function or a column is true; drop the others.

    A dropped row is no failure; a row for which the function raises is one.

    Input columns: `column`, if it is set.
    Output columns: those of the rows.

    Example:
        ```python
        from tasks import Filter

        Filter(where=lambda row: len(row["generation"]) > 20)
        Filter(column="is_correct")
        ```
    """

    keeps_rows: ClassVar[bool] = False

    where: SkipJsonSchema[Callable[[Row], Any] | None] = Field(
        default=None, exclude=True, description="A function of the row: what it returns is true of the rows to keep."
    )
    column: str | None = Field(
        default=None, min_length=1, description="The column whose value is true in the rows to keep."
    )

    @model_validator(mode="after")
    def _validate_predicate(self) -> Self:
        if (self.where is None) == (self.column is None):
            raise ValueError('say which rows to keep, with `where=lambda row: …` or with `column="…"`, one of the two.')
        return self

    @property
    def inputs(self) -> Sequence[str]:
        """The column in `column`, if it is set."""
        return [self.column] if self.column else []

    def process(self, inputs: list[Row]) -> Iterator[list[Row]]:
        """Yield the rows to keep."""
        yield [row for row in inputs if self._keeps(row)]

    def _keeps(self, row: Row) -> bool:
        keep = self.where(row) if self.where else bool(row[self.inputs[0]])
        if keep is None:
            raise ValueError("`where` returned `None`: it returns `True` for a row to keep, and `False` for another.")
        return bool(keep)
