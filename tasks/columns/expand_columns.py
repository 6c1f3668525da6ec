"""A step that unnests lists: one row per element."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from pydantic import Field, field_validator

from llms.config.strict import did_you_mean
from tasks.base import Step
from tasks.columns.keep_columns import validate_distinct
from tasks.typing import Row


class ExpandColumns(Step):
    """Expand lists into one row per element; repeat the other columns.

    Several columns are expanded together, element by element; a row whose lists differ in length fails. An empty list
    makes no row.

    Input columns: those in `columns`.
    Output columns: those in `columns`, or their new names, with an element in place of the list.

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
    def _validate_columns(cls, columns: list[str] | dict[str, str]) -> list[str] | dict[str, str]:
        validate_distinct(list(columns))
        validate_distinct(list(_renamed(columns).values()))
        return columns

    @field_validator("encoded")
    @classmethod
    def _validate_encoded(cls, encoded: bool | list[str], info: Any) -> bool | list[str]:
        columns = _renamed(info.data.get("columns", {}))
        if columns and not isinstance(encoded, bool) and (unknown := [name for name in encoded if name not in columns]):
            raise ValueError(f"`{unknown[0]}` is not one of `columns`: {did_you_mean(unknown[0], columns)}")
        return encoded

    @property
    def inputs(self) -> Sequence[str]:
        """The columns in `columns`."""
        return list(self.columns)

    @property
    def outputs(self) -> Sequence[str]:
        """The columns of the elements."""
        return list(_renamed(self.columns).values())

    def process(self, inputs: list[Row]) -> Iterator[list[Row]]:
        """Yield a row per element.

        Raises:
            ValueError: If a column holds no list, or the lists of a row differ in length.
        """
        yield [expanded for row in inputs for expanded in self._expand(row)]

    def _expand(self, row: Row) -> Iterator[Row]:
        lists = {name: self._parse_list(row, name) for name in self.columns}
        if len({len(elements) for elements in lists.values()}) > 1:
            lengths = ", ".join(f"`{name}` has {len(elements)}" for name, elements in lists.items())
            raise ValueError(f"columns that are expanded together need equally many elements: {lengths}.")
        others = {name: value for name, value in row.items() if name not in self.columns}
        for index, elements in enumerate(zip(*lists.values(), strict=True)):
            repeated = others
            if index and self.split_statistics:
                repeated = {name: _without_usage(value) for name, value in others.items()}
            yield Row(repeated | dict(zip(self.outputs, elements, strict=True)), Row.of(row).origin)

    def _parse_list(self, row: Row, name: str) -> list[Any]:
        value = row[name]
        if encoded := self.encoded if isinstance(self.encoded, bool) else name in self.encoded:
            try:
                value = json.loads(value)
            except (TypeError, ValueError) as error:
                raise ValueError(f"`{name}` is no list in JSON: {error}.") from None
        if isinstance(value, str) and not encoded:
            raise ValueError(f"`{name}` is a text, not a list: if it is one in JSON, say `encoded=True`.")
        if not isinstance(value, list | tuple):
            raise ValueError(f"`{name}` is {_type_name(value)}, not a list.")
        return list(value)


def _renamed(columns: list[str] | dict[str, str]) -> dict[str, str]:
    return columns if isinstance(columns, dict) else {name: name for name in columns}


def _without_usage(value: Any) -> Any:
    """Return metadata without tokens and cost, and any other value as it is."""
    if isinstance(value, dict) and value.keys() >= {"input_tokens", "output_tokens"}:
        return {name: None if name == "cost" or name.endswith("_tokens") else each for name, each in value.items()}
    return value


def _type_name(value: Any) -> str:
    return "`None`" if value is None else f"a `{type(value).__name__}`"
