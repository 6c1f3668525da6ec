"""A join that combines the columns of several branches."""

from collections.abc import Mapping
from typing import Any

from tasks.join import Join
from tasks.typing import Row


class CombineOutputs(Join):
    """Join the rows of several branches into one row with the columns of all.

    If two branches fill a column differently, the row fails, unless one of them renames it with `output_mappings`. Of
    `model_name` the last branch wins.

    Input columns: any.
    Output columns: those of all branches.

    Example:
        ```python
        from tasks import CombineOutputs

        next(CombineOutputs().process([{"id": 1, "summary": "short"}], [{"id": 1, "title": "A tale"}]))
        ```
    """

    def joined(self, rows: list[Row]) -> Row:
        """Combine the columns of all rows.

        Raises:
            ValueError: If two rows differ in a column.
        """
        columns = dict(rows[0])
        for row in rows[1:]:
            for name in row.keys() & columns.keys() - {"model_name"}:
                if not _equal(row[name], columns[name]):
                    raise ValueError(
                        f"two branches fill `{name}`: let one of them call it otherwise, "
                        f'`output_mappings={{"{name}": "other_{name}"}}`.'
                    )
            columns |= row
        return Row(columns, rows[0].origin)


def _equal(one: Any, other: Any) -> bool:
    """Compare two values, with NaN equal to NaN, and arrays by their elements."""
    one, other = (each.tolist() if hasattr(each, "tolist") else each for each in (one, other))
    match one, other:
        case (Mapping(), Mapping()):
            return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)
        case (list() | tuple(), list() | tuple()):
            return len(one) == len(other) and all(map(_equal, one, other))
        case _:
            return bool(one == other or (one != one and other != other))
