"""A row per element of a list."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from pydantic import Field, field_validator

from llms.config.strict import did_you_mean
from tasks.base import Step
from tasks.columns.keep_columns import distinct
from tasks.typing import Row


class ExpandColumns(Step):
    """Makes a row of every element of a list; the other columns are repeated.

    Several columns are expanded together, the first elements with each other, and so on: their lists are equally long,
    or the row fails. An empty list makes no row.

    Input columns: those named.
    Output columns: the same, or their new names, with an element where the list was.

    Example:
        ```python
        from tasks import ExpandColumns

        ExpandColumns(columns=["generation", "rating"])
        ExpandColumns(columns={"generations": "generation", "ratings": "rating"})
        ```
    """

    keeps_rows: ClassVar[bool] = False

    columns: list[str] | dict[str, str] = Field(
        description="The columns to expand; `{column: new name}` where the element is to be called otherwise."
    )
    encoded: bool | list[str] = Field(
        default=False, description="Whether the lists are JSON in a text: all of them, or the columns named."
    )
    split_statistics: bool = Field(
        default=True, description="Leave the tokens in `…_metadata` to the first of a row's elements: they add up."
    )

    @field_validator("columns")
    @classmethod
    def _into_different_columns(cls, columns: list[str] | dict[str, str]) -> list[str] | dict[str, str]:
        distinct(list(columns))
        distinct(list(_renamed(columns).values()))
        return columns

    @field_validator("encoded")
    @classmethod
    def _among_the_columns(cls, encoded: bool | list[str], info: Any) -> bool | list[str]:
        columns = _renamed(info.data.get("columns", {}))
        if columns and not isinstance(encoded, bool) and (strange := [name for name in encoded if name not in columns]):
            raise ValueError(f"`{strange[0]}` is not one of `columns`: {did_you_mean(strange[0], columns)}")
        return encoded

    @property
    def inputs(self) -> Sequence[str]:
        """The columns to expand."""
        return list(self.columns)

    @property
    def outputs(self) -> Sequence[str]:
        """Their elements."""
        return list(_renamed(self.columns).values())

    def process(self, inputs: list[Row]) -> Iterator[list[Row]]:
        """A row per element.

        Raises:
            ValueError: If a column holds no list, or the lists of a row are not equally long.
        """
        yield [made for row in inputs for made in self._expanded(row)]

    def _expanded(self, row: Row) -> Iterator[Row]:
        lists = {name: self._list(row, name) for name in self.columns}
        if len({len(elements) for elements in lists.values()}) > 1:
            found = ", ".join(f"`{name}` has {len(elements)}" for name, elements in lists.items())
            raise ValueError(f"columns that are expanded together need equally many elements: {found}.")
        rest = {name: value for name, value in row.items() if name not in self.columns}
        for at, elements in enumerate(zip(*lists.values(), strict=True)):
            same = {name: _uncounted(value) for name, value in rest.items()} if at and self.split_statistics else rest
            yield Row(same | dict(zip(self.outputs, elements, strict=True)), Row.of(row).origin)

    def _list(self, row: Row, name: str) -> list[Any]:
        value = row[name]
        if encoded := self.encoded if isinstance(self.encoded, bool) else name in self.encoded:
            try:
                value = json.loads(value)
            except (TypeError, ValueError) as error:
                raise ValueError(f"`{name}` is no list in JSON: {error}.") from None
        if isinstance(value, str) and not encoded:
            raise ValueError(f"`{name}` is a text, not a list: if it is one in JSON, say `encoded=True`.")
        if not isinstance(value, list | tuple):
            raise ValueError(f"`{name}` is {_kind(value)}, not a list.")
        return list(value)


def _renamed(columns: list[str] | dict[str, str]) -> dict[str, str]:
    return columns if isinstance(columns, dict) else {name: name for name in columns}


def _uncounted(value: Any) -> Any:
    """Metadata without the tokens and what they cost; whatever else as it is."""
    if isinstance(value, dict) and value.keys() >= {"input_tokens", "output_tokens"}:
        return {name: None if name == "cost" or name.endswith("_tokens") else each for name, each in value.items()}
    return value


def _kind(value: Any) -> str:
    return "`None`" if value is None else f"a `{type(value).__name__}`"
