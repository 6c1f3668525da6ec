"""The set of texts that something may be, as a tree: characters, one thing after another, one of several, repetition.

Whatever a text is held to, pattern or JSON schema, is turned into such a tree first; the tree is then written in the
words of whoever does the holding.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, reduce

Range = tuple[int, int]
"""The first and the last of some code points in a row."""

LAST = 0x10FFFF
SURROGATES = (0xD800, 0xDFFF)
"""Code points that are no characters of a text."""


@dataclass(frozen=True)
class Chars:
    """One character of a set.

    Attributes:
        ranges: In order, without overlaps.
    """

    ranges: tuple[Range, ...]

    @classmethod
    def of(cls, ranges: Iterable[Range]) -> "Chars":
        """The characters in any of these ranges."""
        joined: list[Range] = []
        for first, last in sorted(ranges):
            if joined and first <= joined[-1][1] + 1:
                joined[-1] = (joined[-1][0], max(joined[-1][1], last))
            else:
                joined.append((first, last))
        return cls(tuple(joined))

    @property
    def others(self) -> "Chars":
        """All characters that are not in the set."""
        edges = [-1, *(each for first, last in Chars.of([*self.ranges, SURROGATES]).ranges for each in (first, last))]
        gaps = zip([-1, *edges[2::2]], [*edges[1::2], LAST + 1], strict=True)
        return Chars(tuple((low + 1, high - 1) for low, high in gaps if low + 1 < high))

    def __and__(self, other: "Chars") -> "Chars":
        return Chars.of([*self.others.ranges, *other.others.ranges]).others

    def __or__(self, other: "Chars") -> "Chars":
        return Chars.of([*self.ranges, *other.ranges])

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self.ranges)


@dataclass(frozen=True)
class Sequence:
    """One shape after another."""

    parts: tuple["Shape", ...]


@dataclass(frozen=True)
class Choice:
    """One of several shapes."""

    options: tuple["Shape", ...]


@dataclass(frozen=True)
class Repeat:
    """A shape several times; without an end where `most` is `None`."""

    part: "Shape"
    least: int
    most: int | None


Shape = Chars | Sequence | Choice | Repeat

NOTHING = Sequence(())
"""The empty text."""

IMPOSSIBLE = Choice(())
"""No text at all."""

ENDLESS = 1 << 60
"""The size of a text that may be as long as it likes."""


def literal(text: str) -> Shape:
    """Exactly this text."""
    return sequence(*(Chars(((ord(each), ord(each)),)) for each in text))


def among(text: str) -> Chars:
    """One of the characters of a text."""
    return Chars.of((ord(each), ord(each)) for each in text)


def sequence(*parts: Shape | str) -> Shape:
    """One after another; impossible where one of them is."""
    flat: list[Shape] = []
    for part in parts:
        shape = literal(part) if isinstance(part, str) else part
        if _impossible(shape):
            return IMPOSSIBLE
        flat += shape.parts if isinstance(shape, Sequence) else [shape]
    return flat[0] if len(flat) == 1 else Sequence(tuple(flat))


def choice(*options: Shape | str) -> Shape:
    """One of several, but for those that are impossible."""
    shapes = [literal(each) if isinstance(each, str) else each for each in options]
    possible = tuple(dict.fromkeys(each for each in shapes if not _impossible(each)))
    return possible[0] if len(possible) == 1 else Choice(possible)


def repeat(part: Shape, least: int = 0, most: int | None = None) -> Shape:
    """Several times; not once where it is impossible and need not be."""
    if most is not None and most < least:
        return IMPOSSIBLE
    if most == 0 or part == NOTHING:
        return NOTHING
    if _impossible(part):
        return IMPOSSIBLE if least else NOTHING
    return part if (least, most) == (1, 1) else Repeat(part, least, most)


def optional(part: Shape) -> Shape:
    """Once or not at all."""
    return repeat(part, 0, 1)


def mapped(shape: Shape, change: Callable[[Chars], Shape]) -> Shape:
    """The same shape of other characters."""
    match shape:
        case Chars():
            return change(shape)
        case Sequence(parts):
            return sequence(*(mapped(part, change) for part in parts))
        case Choice(options):
            return choice(*(mapped(option, change) for option in options))
        case Repeat(part, least, most):
            return repeat(mapped(part, change), least, most)


def to_regex(shape: Shape) -> str:
    """The shape as a regular expression of the compiler's dialect, which is Rust's."""
    match shape:
        case Chars(ranges):
            members = "".join(_escaped(a) + (f"-{_escaped(b)}" if b > a else "") for a, b in ranges)
            return _escaped(ranges[0][0]) if len(shape) == 1 else f"[{members}]"
        case Sequence(parts):
            return "".join(f"(?:{to_regex(each)})" if isinstance(each, Choice) else to_regex(each) for each in parts)
        case Choice(options):
            return "|".join(map(to_regex, options))
        case Repeat(part, least, most):
            times = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((least, most))
            inner = to_regex(part) if isinstance(part, Chars) else f"(?:{to_regex(part)})"
            return inner + (times or f"{{{least},{'' if most is None else most}}}")


@lru_cache(maxsize=100_000)
def sizes(shape: Shape) -> Range:
    """How many bytes the shortest and the longest text have; `ENDLESS` where there is no longest."""
    match shape:
        case Chars(ranges):
            return len(chr(ranges[0][0]).encode()), len(chr(ranges[-1][1]).encode())
        case Sequence(parts):
            found = [sizes(part) for part in parts]
            return sum(each[0] for each in found), min(ENDLESS, sum(each[1] for each in found))
        case Choice(options):
            found = [sizes(option) for option in options]
            return min(each[0] for each in found), max(each[1] for each in found)
        case Repeat(part, least, most):
            short, long = sizes(part)
            return short * least, ENDLESS if most is None else min(ENDLESS, long * most)


def shortest(shape: Shape) -> str:
    """A text of the fewest bytes."""
    match shape:
        case Chars(ranges):
            return chr(ranges[0][0])
        case Sequence(parts):
            return "".join(map(shortest, parts))
        case Choice(options):
            return shortest(min(options, key=lambda option: sizes(option)[0]))
        case Repeat(part, least, _):
            return shortest(part) * least


def within(shape: Shape, size: int) -> Shape:
    """Those of the texts, or some of them, that have at most so many bytes; `size` is not below the shortest's."""
    short, long = sizes(shape)
    if long <= size:
        return shape
    match shape:
        case Chars():
            return shape & Chars(((0, (0x7F, 0x7FF, 0xFFFF)[size - 1]),))
        case Sequence(parts):
            return sequence(*_shared(parts, size - short))
        case Choice(options):
            return choice(*(within(option, size) for option in options if sizes(option)[0] <= size))
        case Repeat(part, least, most):
            short, long = sizes(part)
            times = size // max(1, short) if long == ENDLESS else size // long
            times = max(least, min(times, least + 2) if long == ENDLESS else times)
            times = times if most is None else min(times, most)
            return repeat(within(part, size // times), least, times) if times else NOTHING


def _shared(parts: tuple[Shape, ...], spare: int) -> list[Shape]:
    """Parts of a sequence which share the bytes that it may have beyond its shortest: those that want few go first."""
    found = list(parts)
    wishes = sorted((sizes(part)[1] - sizes(part)[0], at) for at, part in enumerate(parts))
    waiting = sum(wish > 0 for wish, _ in wishes)
    for wish, at in wishes:
        if wish:
            given = min(wish, spare // waiting)
            found[at] = within(parts[at], sizes(parts[at])[0] + given)
            spare, waiting = spare - given, waiting - 1
    return found


def _impossible(shape: Shape) -> bool:
    return shape == IMPOSSIBLE or shape == Chars(())


def _escaped(point: int) -> str:
    character = chr(point)
    return character if character.isascii() and character.isalnum() else f"\\x{{{point:X}}}"


def union(sets: Iterable[Chars]) -> Chars:
    """All characters of several sets."""
    return reduce(Chars.__or__, sets, Chars(()))
