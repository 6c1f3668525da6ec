"""Joins of branches by row lineage."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, ClassVar

from tasks.base import Step
from tasks.typing import UNKNOWN_PARENT, BatchResult, Row, RowId, RowLineage


class Join(Step, ABC):
    """A step that joins the rows that several branches made of one row.

    Subclasses define `joined`. A row that a branch lost, by a failure or a filter, is joined without that branch.
    """

    keeps_rows: ClassVar[bool] = False

    @abstractmethod
    def joined(self, rows: list[Row]) -> Row:
        """Return one row for the rows of one join key, which are in the order of the branches.

        Override this in subclasses.
        """

    def process(self, *inputs: list[Row]) -> Iterator[list[Row]]:  # type: ignore[override]
        """Join the n-th rows of all lists. Usually not overridden."""
        yield [self.joined([Row.of(row) for row in rows]) for rows in zip(*inputs, strict=True)]

    def run_groups(self, groups: Iterable[tuple[RowLineage, list[Row]]]) -> BatchResult:
        """Join each group so that one that cannot be joined fails alone. Usually not overridden."""
        result = BatchResult()
        for lineage, rows in groups:
            result.rows_in += 1
            try:
                joined = self.joined([self.apply_input_mappings(row) for row in rows])
            except Exception as error:
                result.failures.append(self._failure(_merged(rows, lineage), error))
            else:
                result.rows.append(self._apply_output_mappings(self._restore_shadowed(joined, rows[0]), lineage))
        return result


def sort_by_lineage(fork: Sequence[Row] | None, batches: Sequence[Sequence[Row]]) -> list[Row]:
    """Return the rows of all batches in the order of their ancestors at the fork, else in the order of loading."""
    if len(batches) == 1:
        return list(batches[0])
    positions = _positions(fork or ())

    def sort_key(row: Row) -> tuple[int, RowId]:
        return positions.get(_join_key(row.id or (), positions) or (), len(positions)), row.id or ()

    return sorted((row for batch in batches for row in batch), key=sort_key)


def group_by_lineage(
    fork: Sequence[Row] | None, batches: Sequence[Sequence[Row]]
) -> list[tuple[RowLineage, list[Row]]]:
    """Group the rows of all branches by the row they descend from, in the order of those rows.

    Args:
        fork: Rows at the step where the branches fork; if they have no such step, rows are joined by their number in
            their source.
        batches: Rows of each branch.

    Raises:
        ValueError: If the parent of a row is unknown.
    """
    positions = None if fork is None else _positions(fork)
    groups: dict[RowId, list[Row]] = {}
    for row in (row for batch in batches for row in batch):
        if not row.id or (key := _join_key(row.id, positions)) is None:
            raise ValueError(
                "rows can be joined only if each says what it was made of: a step that makes a number of rows out of "
                "others must pass `row.origin` on, `Row({…}, row.origin)`."
            )
        groups.setdefault(key, []).append(row)
    order = positions or {}
    keys = sorted(groups, key=lambda key: (order.get(key, len(order)), key))
    return [(RowLineage(f"{groups[key][0].origin}", key), groups[key]) for key in keys]


def _positions(rows: Iterable[Row]) -> dict[RowId, int]:
    return {row.id: position for position, row in enumerate(rows) if row.id}


def _join_key(id: RowId, fork: Collection[RowId] | None) -> RowId | None:
    """Return the id of a row's ancestor at the fork; its own id if it has none there, `None` if that is unknown.

    Args:
        id: Id of the row.
        fork: Ids at the fork; without one, the key is the row's number in its source.
    """
    if fork is None:
        return None if UNKNOWN_PARENT in id else (0, *id[1:])
    for length in range(len(id), 0, -1):
        if id[:length] in fork:
            return id[:length]
        if id[length - 1] == UNKNOWN_PARENT:
            return None
    return id


def _merged(rows: list[Row], lineage: RowLineage) -> Row:
    columns: dict[str, Any] = {}
    for row in rows:
        columns |= row
    return Row(columns, lineage)
