"""Rows of several branches: brought together by which row they were made of."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tasks.base import Step
from tasks.typing import Origin, Outcome, Row


class Join(Step, ABC):
    """A step after several branches. A subclass says what becomes of what they made of one row.

    A row that a branch lost, because it failed or was filtered there, is joined without it.
    """

    @abstractmethod
    def joined(self, rows: list[Row]) -> Row:
        """One row of those that the branches made of the same, in the order of the branches."""

    def process(self, *inputs: list[Row]) -> Iterator[list[Row]]:  # type: ignore[override]
        """Join rows that stand in the same place of their lists."""
        yield [self.joined([Row.of(row) for row in rows]) for rows in zip(*inputs, strict=True)]

    def run_groups(self, groups: Iterable[tuple[Origin, list[Row]]]) -> Outcome:
        """Join each group so that one that cannot be joined costs itself only."""
        outcome = Outcome()
        for origin, rows in groups:
            outcome.rows_in += 1
            try:
                made = self.joined([self._view(row) for row in rows])
            except Exception as error:
                outcome.failures.append(self._failure(_merged(rows, origin), error))
            else:
                outcome.rows.append(self._named(made, origin))
        return outcome


def in_order(batches: Sequence[Sequence[Row]]) -> list[Row]:
    """The rows of all batches in the order they were loaded in; those of which that is not known come last."""
    if len(batches) == 1:
        return list(batches[0])
    return sorted((row for batch in batches for row in batch), key=lambda row: (row.id is None, row.id or ()))


def groups(forked: Iterable[Row] | None, batches: Sequence[Sequence[Row]]) -> list[tuple[Origin, list[Row]]]:
    """What the branches made of each row, in the order of the rows, under the row's own origin.

    Args:
        forked: The rows as they were where the branches part; when that is nowhere, the n-th rows of each belong
            together.
        batches: What came of each branch.

    Raises:
        ValueError: If a row does not say what it was made of.
    """
    known = None if forked is None else {row.id for row in forked if row.id is not None}
    found: dict[tuple[int, ...], list[Row]] = {}
    for row in (row for batch in batches for row in batch):
        if row.id is None:
            raise ValueError(
                "rows can be joined only if each says what it was made of: a step that makes a number of rows out of "
                "others must pass `row.origin` on, `Row({…}, row.origin)`."
            )
        if known is None:
            found.setdefault((0, *row.id[1:]), []).append(row)
        else:
            beginnings = (row.id[:end] for end in range(len(row.id), 0, -1))
            found.setdefault(next((each for each in beginnings if each in known), row.id), []).append(row)
    return [(Origin(f"{found[id][0].origin}", id), found[id]) for id in sorted(found)]


def _merged(rows: list[Row], origin: Origin) -> Row:
    columns: dict[str, Any] = {}
    for row in rows:
        columns |= row
    return Row(columns, origin)
