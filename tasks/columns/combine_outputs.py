"""Columns of several branches side by side."""

from collections.abc import Mapping
from typing import Any

from tasks.join import Join
from tasks.typing import Row


class CombineOutputs(Join):
    """Puts what several branches made of a row into one row that has the columns of all.

    A column that two branches fill differently must be called otherwise in one of them (`output_mappings`), or the row
    fails; only of `model_name` the last one counts.

    Input columns: any.
    Output columns: all of them.

    Example:
        ```python
        from tasks import CombineOutputs

        next(CombineOutputs().process([{"id": 1, "summary": "short"}], [{"id": 1, "title": "A tale"}]))
        ```
    """

    def joined(self, rows: list[Row]) -> Row:
        """The columns of all the rows.

        Raises:
            ValueError: If two of them differ.
        """
        columns = dict(rows[0])
        for row in rows[1:]:
            for name in row.keys() & columns.keys() - {"model_name"}:
                if not _same(row[name], columns[name]):
                    raise ValueError(
                        f"two branches fill `{name}`: let one of them call it otherwise, "
                        f'`output_mappings={{"{name}": "other_{name}"}}`.'
                    )
            columns |= row
        return Row(columns, rows[0].origin)


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal; NaN is equal to NaN, and an array to one that holds the same."""
    one, other = (each.tolist() if hasattr(each, "tolist") else each for each in (one, other))
    match one, other:
        case (Mapping(), Mapping()):
            return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
        case (list() | tuple(), list() | tuple()):
            return len(one) == len(other) and all(map(_same, one, other))
        case _:
            return bool(one == other or (one != one and other != other))
