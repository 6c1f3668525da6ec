"""Layered graph drawing: a row of boxes per rank, few crossings, lines routed around boxes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

SWEEPS = 12
"""Passes over the rows, alternately downwards and upwards."""

BOX_GAP_PX, ROW_GAP_PX = 28.0, 64.0


@dataclass
class Box:
    """A box, or a dummy box where a line passes a row.

    Attributes:
        x: Center.
        y: Upper edge.
    """

    width: float
    height: float
    x: float = 0.0
    y: float = 0.0
    above: "list[Box]" = field(default_factory=list, repr=False)
    below: "list[Box]" = field(default_factory=list, repr=False)


@dataclass
class Layout:
    """Boxes by name, the boxes each line passes, and the size of the drawing."""

    boxes: dict[str, Box]
    lines: dict[tuple[str, str], list[Box]]
    width: float
    height: float


def compute_layout(sizes: Mapping[str, tuple[float, float]], edges: Sequence[tuple[str, str]]) -> Layout:
    """Place boxes below their predecessors.

    Args:
        sizes: Width and height by name, in topological order.
        edges: Pairs of source and target.
    """
    boxes = {name: Box(*size) for name, size in sizes.items()}
    ranks = dict.fromkeys(sizes, 0)
    for name in sizes:
        ranks[name] = max((ranks[a] + 1 for a, b in edges if b == name), default=0)
    for name in sizes:  # a source is placed right above its targets
        if not any(b == name for _, b in edges):
            ranks[name] = min((ranks[b] - 1 for a, b in edges if a == name), default=0)
    rows: list[list[Box]] = [[] for _ in range(max(ranks.values(), default=-1) + 1)]
    for name, box in boxes.items():
        rows[ranks[name]].append(box)
    lines: dict[tuple[str, str], list[Box]] = {}
    for a, b in edges:
        bends = [Box(0.0, 0.0) for _ in range(ranks[a] + 1, ranks[b])]
        for rank, bend in enumerate(bends, ranks[a] + 1):
            rows[rank].append(bend)
        lines[a, b] = path = [boxes[a], *bends, boxes[b]]
        for upper, lower in zip(path, path[1:], strict=False):
            upper.below.append(lower)
            lower.above.append(upper)
    _reduce_crossings(rows)
    _assign_positions(rows)
    left = min((place.x - place.width / 2 for row in rows for place in row), default=0.0)
    for place in (place for row in rows for place in row):
        place.x -= left
    width = max((place.x + place.width / 2 for row in rows for place in row), default=0.0)
    height = max((place.y + place.height for row in rows for place in row), default=0.0)
    return Layout(boxes, lines, width, height)


def _reduce_crossings(rows: list[list[Box]]) -> None:
    """Sort each row by the barycenters of its neighbours, downwards and upwards in turn; keep the best order."""
    best, fewest = [list(row) for row in rows], _count_crossings(rows)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        before: dict[int, int] = {}
        for row in rows if down else reversed(rows):

            def barycenter(place: Box, down: bool = down, before: dict[int, int] = before) -> float:
                near = place.above if down else place.below
                return sum(before[id(each)] for each in near) / len(near) if near else before.get(id(place), 0)

            before |= {id(place): at for at, place in enumerate(row)}
            row.sort(key=barycenter)
            before |= {id(place): at for at, place in enumerate(row)}
        if (crossings := _count_crossings(rows)) < fewest:
            best, fewest = [list(row) for row in rows], crossings
    for row, ordered in zip(rows, best, strict=True):
        row[:] = ordered


def _count_crossings(rows: list[list[Box]]) -> int:
    count = 0
    for upper, lower in zip(rows, rows[1:], strict=False):
        at = {id(place): number for number, place in enumerate(lower)}
        ends = [(number, at[id(end)]) for number, place in enumerate(upper) for end in place.below]
        count += sum(a < c and b > d or a > c and b < d for n, (a, b) in enumerate(ends) for c, d in ends[:n])
    return count


def _assign_positions(rows: list[list[Box]]) -> None:
    """Stack the rows, and move each box as close to the mean of its neighbours as the others allow."""
    top = 0.0
    for row in rows:
        height = max(place.height for place in row)
        for place in row:
            place.height = place.height or height  # a line passes the whole row beside its boxes
            place.y = top + (height - place.height) / 2
        top += height + ROW_GAP_PX
        x = 0.0
        for place in row:
            place.x = x + place.width / 2
            x += place.width + BOX_GAP_PX
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for row in rows if down else reversed(rows):
            wanted = []
            for place in row:
                near = (place.above if down else place.below) or place.below or place.above
                wanted.append(sum(each.x for each in near) / len(near) if near else place.x)
            _resolve_overlaps(row, wanted)


def _resolve_overlaps(row: list[Box], wanted: list[float]) -> None:
    """Move each box to its wanted x; boxes that would overlap move as a group, to the mean of theirs."""
    offsets, x = [], 0.0
    for at, place in enumerate(row):
        x += (row[at - 1].width + place.width) / 2 + BOX_GAP_PX if at else 0.0
        offsets.append(x)
    groups: list[tuple[float, int]] = []  # mean wanted x of touching boxes, less their offsets, and their number
    for wish, offset in zip(wanted, offsets, strict=True):
        mean, count = wish - offset, 1
        while groups and groups[-1][0] >= mean:
            other, number = groups.pop()
            mean, count = (mean * count + other * number) / (count + number), count + number
        groups.append((mean, count))
    means = [mean for mean, count in groups for _ in range(count)]
    for place, mean, offset in zip(row, means, offsets, strict=True):
        place.x = mean + offset
