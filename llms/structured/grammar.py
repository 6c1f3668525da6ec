"""The set of texts that something may be, as a tree: characters, one thing after another, one of several, repetition.

Whatever a text is held to, pattern or JSON schema, is turned into such a tree first; the tree is then written in the
words of whoever does the holding.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, reduce

Range = tuple[int, int]
"""The first and the last of some code points in a row."""

MAX_CODE_POINT = 0x10FFFF
SURROGATES = (0xD800, 0xDFFF)
"""Code points that are no characters of a text."""


@dataclass(frozen=True)
class CharSet:
    """One character of a set.

    Attributes:
        ranges: In order, without overlaps.
    """

    ranges: tuple[Range, ...]

    @classmethod
    def from_ranges(cls, ranges: Iterable[Range]) -> "CharSet":
        """The characters in any of these ranges."""
        joined: list[Range] = []
        for first, last in sorted(ranges):
            if joined and first <= joined[-1][1] + 1:
                joined[-1] = (joined[-1][0], max(joined[-1][1], last))
            else:
                joined.append((first, last))
        return cls(tuple(joined))

    @property
    def complement(self) -> "CharSet":
        """All characters that are not in the set."""
        edges = [
            -1,
            *(each for first, last in CharSet.from_ranges([*self.ranges, SURROGATES]).ranges for each in (first, last)),
        ]
        gaps = zip([-1, *edges[2::2]], [*edges[1::2], MAX_CODE_POINT + 1], strict=True)
        return CharSet(tuple((low + 1, high - 1) for low, high in gaps if low + 1 < high))

    def __and__(self, other: "CharSet") -> "CharSet":
        return CharSet.from_ranges([*self.complement.ranges, *other.complement.ranges]).complement

    def __or__(self, other: "CharSet") -> "CharSet":
        return CharSet.from_ranges([*self.ranges, *other.ranges])

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self.ranges)


@dataclass(frozen=True)
class Concat:
    """One shape after another."""

    parts: tuple["Expr", ...]


@dataclass(frozen=True)
class Union:
    """One of several shapes."""

    options: tuple["Expr", ...]


@dataclass(frozen=True)
class Repeat:
    """A shape several times; without an end where `most` is `None`."""

    part: "Expr"
    least: int
    most: int | None


Expr = CharSet | Concat | Union | Repeat

EMPTY_TEXT = Concat(())
"""The empty text."""

NEVER = Union(())
"""No text at all."""

UNBOUNDED = 1 << 60
"""The size of a text that may be as long as it likes."""


def literal(text: str) -> Expr:
    """Exactly this text."""
    return concat(*(CharSet(((ord(each), ord(each)),)) for each in text))


def one_of(text: str) -> CharSet:
    """One of the characters of a text."""
    return CharSet.from_ranges((ord(each), ord(each)) for each in text)


def concat(*parts: Expr | str) -> Expr:
    """One after another; impossible where one of them is."""
    flat: list[Expr] = []
    for part in parts:
        shape = literal(part) if isinstance(part, str) else part
        if _impossible(shape):
            return NEVER
        flat += shape.parts if isinstance(shape, Concat) else [shape]
    return flat[0] if len(flat) == 1 else Concat(tuple(flat))


def union(*options: Expr | str) -> Expr:
    """One of several, but for those that are impossible."""
    shapes = [literal(each) if isinstance(each, str) else each for each in options]
    possible = tuple(dict.fromkeys(each for each in shapes if not _impossible(each)))
    return possible[0] if len(possible) == 1 else Union(possible)


def repeat(part: Expr, least: int = 0, most: int | None = None) -> Expr:
    """Several times; not once where it is impossible and need not be."""
    if most is not None and most < least:
        return NEVER
    if most == 0 or part == EMPTY_TEXT:
        return EMPTY_TEXT
    if _impossible(part):
        return NEVER if least else EMPTY_TEXT
    return part if (least, most) == (1, 1) else Repeat(part, least, most)


def optional(part: Expr) -> Expr:
    """Once or not at all."""
    return repeat(part, 0, 1)


def map_chars(shape: Expr, change: Callable[[CharSet], Expr]) -> Expr:
    """The same shape of other characters."""
    match shape:
        case CharSet():
            return change(shape)
        case Concat(parts):
            return concat(*(map_chars(part, change) for part in parts))
        case Union(options):
            return union(*(map_chars(option, change) for option in options))
        case Repeat(part, least, most):
            return repeat(map_chars(part, change), least, most)


def to_regex(shape: Expr) -> str:
    """The shape as a regular expression of the compiler's dialect, which is Rust's."""
    match shape:
        case CharSet(ranges):
            members = "".join(_escaped(a) + (f"-{_escaped(b)}" if b > a else "") for a, b in ranges)
            return _escaped(ranges[0][0]) if len(shape) == 1 else f"[{members}]"
        case Concat(parts):
            return "".join(f"(?:{to_regex(each)})" if isinstance(each, Union) else to_regex(each) for each in parts)
        case Union(options):
            return "|".join(map(to_regex, options))
        case Repeat(part, least, most):
            times = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((least, most))
            inner = to_regex(part) if isinstance(part, CharSet) else f"(?:{to_regex(part)})"
            return inner + (times or f"{{{least},{'' if most is None else most}}}")


@lru_cache(maxsize=100_000)
def length_bounds(shape: Expr) -> Range:
    """How many bytes the shortest and the longest text have; `ENDLESS` where there is no longest."""
    match shape:
        case CharSet(ranges):
            return len(chr(ranges[0][0]).encode()), len(chr(ranges[-1][1]).encode())
        case Concat(parts):
            found = [length_bounds(part) for part in parts]
            return sum(each[0] for each in found), min(UNBOUNDED, sum(each[1] for each in found))
        case Union(options):
            found = [length_bounds(option) for option in options]
            return min(each[0] for each in found), max(each[1] for each in found)
        case Repeat(part, least, most):
            short, long = length_bounds(part)
            return short * least, UNBOUNDED if most is None else min(UNBOUNDED, long * most)


def shortest_text(shape: Expr) -> str:
    """A text of the fewest bytes."""
    match shape:
        case CharSet(ranges):
            return chr(ranges[0][0])
        case Concat(parts):
            return "".join(map(shortest_text, parts))
        case Union(options):
            return shortest_text(min(options, key=lambda option: length_bounds(option)[0]))
        case Repeat(part, least, _):
            return shortest_text(part) * least


def bounded(shape: Expr, size: int) -> Expr:
    """Those of the texts, or some of them, that have at most so many bytes; `size` is not below the shortest's."""
    short, long = length_bounds(shape)
    if long <= size:
        return shape
    match shape:
        case CharSet():
            return shape & CharSet(((0, (0x7F, 0x7FF, 0xFFFF)[size - 1]),))
        case Concat(parts):
            return concat(*_shared(parts, size - short))
        case Union(options):
            return union(*(bounded(option, size) for option in options if length_bounds(option)[0] <= size))
        case Repeat(part, least, most):
            short, long = length_bounds(part)
            times = size // max(1, short) if long == UNBOUNDED else size // long
            times = max(least, min(times, least + 2) if long == UNBOUNDED else times)
            times = times if most is None else min(times, most)
            return repeat(bounded(part, size // times), least, times) if times else EMPTY_TEXT


def _shared(parts: tuple[Expr, ...], spare: int) -> list[Expr]:
    """Parts of a sequence which share the bytes that it may have beyond its shortest: those that want few go first."""
    found = list(parts)
    wishes = sorted((length_bounds(part)[1] - length_bounds(part)[0], at) for at, part in enumerate(parts))
    waiting = sum(wish > 0 for wish, _ in wishes)
    for wish, at in wishes:
        if wish:
            given = min(wish, spare // waiting)
            found[at] = bounded(parts[at], length_bounds(parts[at])[0] + given)
            spare, waiting = spare - given, waiting - 1
    return found


def _impossible(shape: Expr) -> bool:
    return shape == NEVER or shape == CharSet(())


def _escaped(point: int) -> str:
    character = chr(point)
    return character if character.isascii() and character.isalnum() else f"\\x{{{point:X}}}"


def union_of_sets(sets: Iterable[CharSet]) -> CharSet:
    """All characters of several sets."""
    return reduce(CharSet.__or__, sets, CharSet(()))
