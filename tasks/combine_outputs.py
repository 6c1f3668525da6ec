"""Columns of several branches side by side."""

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
                if row[name] != columns[name]:
                    raise ValueError(
                        f"two branches fill `{name}`: let one of them call it otherwise, "
                        f'`output_mappings={{"{name}": "other_{name}"}}`.'
                    )
            columns |= row
        return Row(columns, rows[0].origin)
