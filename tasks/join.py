"""Rows of several branches: brought together by which row they were made of."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, ClassVar

from tasks.base import Step
from tasks.typing import UNKNOWN_PARENT, BatchResult, Row, RowId, RowLineage


class Join(Step, ABC):
    """A step after several branches. A subclass says what becomes of what they made of one row.

    A row that a branch lost, because it failed or was filtered there, is joined without it.
    """

    keeps_rows: ClassVar[bool] = False

    @abstractmethod
    def joined(self, rows: list[Row]) -> Row:
        """One row of those that the branches made of the same, in the order of the branches."""

    def process(self, *inputs: list[Row]) -> Iterator[list[Row]]:  # type: ignore[override]
        """Join rows that stand in the same place of their lists."""
        yield [self.joined([Row.of(row) for row in rows]) for rows in zip(*inputs, strict=True)]

    def run_groups(self, groups: Iterable[tuple[RowLineage, list[Row]]]) -> BatchResult:
        """Join each group so that one that cannot be joined costs itself only."""
        outcome = BatchResult()
        for origin, rows in groups:
            outcome.rows_in += 1
            try:
                made = self.joined([self._apply_input_mappings(row) for row in rows])
            except Exception as error:
                outcome.failures.append(self._failure(_merged(rows, origin), error))
            else:
                outcome.rows.append(self._apply_output_mappings(self._restore_shadowed(made, rows[0]), origin))
        return outcome


def sort_by_lineage(forked: Sequence[Row] | None, batches: Sequence[Sequence[Row]]) -> list[Row]:
    """The rows of all batches in the order of the rows as they were where the branches part, or else were loaded in."""
    if len(batches) == 1:
        return list(batches[0])
    places = _places(forked or ())

    def place(row: Row) -> tuple[int, RowId]:
        return places.get(_made_of(row.id or (), places) or (), len(places)), row.id or ()

    return sorted((row for batch in batches for row in batch), key=place)


def group_by_lineage(
    forked: Sequence[Row] | None, batches: Sequence[Sequence[Row]]
) -> list[tuple[RowLineage, list[Row]]]:
    """What the branches made of each row, in the order of the rows, under the row's own origin.

    Args:
        forked: The rows as they were where the branches part; when that is nowhere, the n-th rows of each belong
            together.
        batches: What came of each branch.

    Raises:
        ValueError: If a row does not say what it was made of.
    """
    places = None if forked is None else _places(forked)
    found: dict[RowId, list[Row]] = {}
    for row in (row for batch in batches for row in batch):
        if not row.id or (id := _made_of(row.id, places)) is None:
            raise ValueError(
                "rows can be joined only if each says what it was made of: a step that makes a number of rows out of "
                "others must pass `row.origin` on, `Row({…}, row.origin)`."
            )
        found.setdefault(id, []).append(row)
    known = places or {}
    order = sorted(found, key=lambda id: (known.get(id, len(known)), id))
    return [(RowLineage(f"{found[id][0].origin}", id), found[id]) for id in order]


def _places(rows: Iterable[Row]) -> dict[RowId, int]:
    """Where each row stands, by its id."""
    return {row.id: place for place, row in enumerate(rows) if row.id}


def _made_of(id: RowId, known: Collection[RowId] | None) -> RowId | None:
    """The row that one was made of, among those known; itself if of none, `None` if it does not say.

    Args:
        id: That of the row.
        known: Those where branches part; when that is nowhere, the row's number in its source tells.
    """
    if known is None:
        return None if UNKNOWN_PARENT in id else (0, *id[1:])
    for end in range(len(id), 0, -1):
        if id[:end] in known:
            return id[:end]
        if id[end - 1] == UNKNOWN_PARENT:
            return None
    return id


def _merged(rows: list[Row], origin: RowLineage) -> Row:
    columns: dict[str, Any] = {}
    for row in rows:
        columns |= row
    return Row(columns, origin)
