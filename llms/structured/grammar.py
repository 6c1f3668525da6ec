"""Regular expressions as syntax trees: character sets, concatenation, union, repetition.

A pattern or a JSON schema is parsed to such a tree; the tree is then written in the dialect of what constrains texts:
`to_regex` for the compiler of automata, `llms.structured.gbnf` for llama.cpp's server.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

Range = tuple[int, int]
"""First and last of contiguous code points, or minimum and maximum of a length."""

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
        """Create the set of the characters in any of these ranges."""
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
        excluded = CharSet.from_ranges([*self.ranges, SURROGATES]).ranges
        starts = [0, *(last + 1 for _, last in excluded)]
        ends = [*(first - 1 for first, _ in excluded), MAX_CODE_POINT]
        return CharSet(tuple((first, last) for first, last in zip(starts, ends, strict=True) if first <= last))

    def __and__(self, other: "CharSet") -> "CharSet":
        return (self.complement | other.complement).complement

    def __or__(self, other: "CharSet") -> "CharSet":
        return CharSet.from_ranges([*self.ranges, *other.ranges])

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self.ranges)


@dataclass(frozen=True)
class Concat:
    """One expression after another."""

    parts: tuple["Expr", ...]


@dataclass(frozen=True)
class Union:
    """One of several expressions."""

    options: tuple["Expr", ...]


@dataclass(frozen=True)
class Repeat:
    """An expression several times; unbounded where `max_count` is `None`."""

    part: "Expr"
    min_count: int
    max_count: int | None


Expr = CharSet | Concat | Union | Repeat

EMPTY_TEXT = Concat(())
"""Matches the empty text only."""

NEVER = Union(())
"""Matches no text."""

UNBOUNDED = 1 << 60
"""Maximum length of an expression without one."""


def literal(text: str) -> Expr:
    """Match exactly this text."""
    return concat(*(CharSet(((ord(char), ord(char)),)) for char in text))


def one_of(text: str) -> CharSet:
    """Match one of the characters of a text."""
    return CharSet.from_ranges((ord(char), ord(char)) for char in text)


def concat(*parts: Expr | str) -> Expr:
    """Match one after another; `NEVER` where one of them is."""
    flat: list[Expr] = []
    for part in parts:
        expr = literal(part) if isinstance(part, str) else part
        if _is_never(expr):
            return NEVER
        flat += expr.parts if isinstance(expr, Concat) else [expr]
    return flat[0] if len(flat) == 1 else Concat(tuple(flat))


def union(*options: Expr | str) -> Expr:
    """Match one of several, each listed once and without those that are `NEVER`."""
    exprs = [literal(option) if isinstance(option, str) else option for option in options]
    possible = tuple(dict.fromkeys(expr for expr in exprs if not _is_never(expr)))
    return possible[0] if len(possible) == 1 else Union(possible)


def repeat(part: Expr, min_count: int = 0, max_count: int | None = None) -> Expr:
    """Match several times; zero times where the part is `NEVER`, if zero are enough."""
    if max_count is not None and max_count < min_count:
        return NEVER
    if max_count == 0 or part == EMPTY_TEXT:
        return EMPTY_TEXT
    if _is_never(part):
        return NEVER if min_count else EMPTY_TEXT
    return part if (min_count, max_count) == (1, 1) else Repeat(part, min_count, max_count)


def optional(part: Expr) -> Expr:
    """Match once or not at all."""
    return repeat(part, 0, 1)


def map_chars(expr: Expr, change: Callable[[CharSet], Expr]) -> Expr:
    """Replace every character set of an expression."""
    match expr:
        case CharSet():
            return change(expr)
        case Concat(parts):
            return concat(*(map_chars(part, change) for part in parts))
        case Union(options):
            return union(*(map_chars(option, change) for option in options))
        case Repeat(part, min_count, max_count):
            return repeat(map_chars(part, change), min_count, max_count)


def to_regex(expr: Expr) -> str:
    """Write an expression in the dialect of the compiler of automata, which is Rust's."""
    match expr:
        case CharSet(ranges):
            members = "".join(_escape(a) + (f"-{_escape(b)}" if b > a else "") for a, b in ranges)
            return _escape(ranges[0][0]) if len(expr) == 1 else f"[{members}]"
        case Concat(parts):
            return "".join(f"(?:{to_regex(part)})" if isinstance(part, Union) else to_regex(part) for part in parts)
        case Union(options):
            return "|".join(map(to_regex, options))
        case Repeat(part, min_count, max_count):
            inner = to_regex(part) if isinstance(part, CharSet) else f"(?:{to_regex(part)})"
            return inner + quantifier(min_count, max_count)


def quantifier(min_count: int, max_count: int | None) -> str:
    """Write how often something is repeated."""
    if short := {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((min_count, max_count)):
        return short
    return f"{{{min_count},{'' if max_count is None else max_count}}}"


@lru_cache(maxsize=100_000)
def length_bounds(expr: Expr) -> Range:
    """Return the bytes of the shortest and of the longest text; `UNBOUNDED` where there is no longest."""
    match expr:
        case CharSet(ranges):
            return len(chr(ranges[0][0]).encode()), len(chr(ranges[-1][1]).encode())
        case Concat(parts):
            bounds = [length_bounds(part) for part in parts]
            return sum(low for low, _ in bounds), min(UNBOUNDED, sum(high for _, high in bounds))
        case Union(options):
            bounds = [length_bounds(option) for option in options]
            return min(low for low, _ in bounds), max(high for _, high in bounds)
        case Repeat(part, min_count, max_count):
            low, high = length_bounds(part)
            return low * min_count, UNBOUNDED if max_count is None else min(UNBOUNDED, high * max_count)


def shortest_text(expr: Expr) -> str:
    """Return a text of the fewest bytes."""
    match expr:
        case CharSet(ranges):
            return chr(ranges[0][0])
        case Concat(parts):
            return "".join(map(shortest_text, parts))
        case Union(options):
            return shortest_text(min(options, key=lambda option: length_bounds(option)[0]))
        case Repeat(part, min_count, _):
            return shortest_text(part) * min_count


def bounded(expr: Expr, max_bytes: int) -> Expr:
    """Narrow an expression to texts of at most `max_bytes`: to all of them, or some.

    Args:
        max_bytes: At least those of the shortest text.
    """
    low, high = length_bounds(expr)
    if high <= max_bytes:
        return expr
    match expr:
        case CharSet():
            return expr & CharSet(((0, (0x7F, 0x7FF, 0xFFFF)[max_bytes - 1]),))
        case Concat(parts):
            return concat(*_distribute(parts, max_bytes - low))
        case Union(options):
            return union(*(bounded(option, max_bytes) for option in options if length_bounds(option)[0] <= max_bytes))
        case Repeat(part, min_count, max_count):
            low, high = length_bounds(part)
            count = max_bytes // max(1, low) if high == UNBOUNDED else max_bytes // high
            count = max(min_count, min(count, min_count + 2) if high == UNBOUNDED else count)
            count = count if max_count is None else min(count, max_count)
            return repeat(bounded(part, max_bytes // count), min_count, count) if count else EMPTY_TEXT


def _distribute(parts: tuple[Expr, ...], spare: int) -> list[Expr]:
    """Bound the parts of a concatenation, which share `spare` bytes beyond their shortest: small demands come first."""
    found = list(parts)
    demands = sorted((high - low, index) for index, (low, high) in enumerate(map(length_bounds, parts)))
    waiting = sum(demand > 0 for demand, _ in demands)
    for demand, index in demands:
        if demand:
            granted = min(demand, spare // waiting)
            found[index] = bounded(parts[index], length_bounds(parts[index])[0] + granted)
            spare, waiting = spare - granted, waiting - 1
    return found


def _is_never(expr: Expr) -> bool:
    return expr == NEVER or expr == CharSet(())


def _escape(code_point: int) -> str:
    char = chr(code_point)
    return char if char.isascii() and char.isalnum() else f"\\x{{{code_point:X}}}"
