"""What a text is held to, as a tree of shapes; and whether a text keeps to it."""

import re
import warnings
from functools import cache
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from llms.errors import Fatal
from llms.structured.grammar import EMPTY_TEXT, CharSet, Expr, concat, one_of, repeat, union, union_of_sets

CANNOT = {
    "GROUPREF": "a backreference",
    "GROUPREF_EXISTS": "a condition",
}
"""What no automaton can do, by the names of Python's parser."""

FOLDED = 1000
"""A set of at most so many characters is widened to both cases where case is to be ignored."""


def parse_regex(pattern: str) -> Expr:
    """All texts that match a regular expression from their start to their end, whether it has anchors there or not.

    How greedy a repetition is makes no difference to which texts match.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # about sets that may mean something else one day
            parsed = _parser.parse(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise Fatal(f"`structured_output`: `{pattern}` is not a regular expression: {error}.") from None
    return _Reader(pattern).sequence(list(parsed), parsed.state.flags, True, True)


class _Reader:
    """Turns what Python's parser makes of one pattern into shapes."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern

    def sequence(self, nodes: list[Any], flags: int, first: bool, last: bool) -> Expr:
        """What stands one after another.

        Args:
            first: Whether it begins the text.
            last: Whether it ends it.
        """
        least, most = 0, len(nodes)
        while first and least < most and nodes[least] in ((op.AT, op.AT_BEGINNING), (op.AT, op.AT_BEGINNING_STRING)):
            least += 1
        while last and least < most and nodes[most - 1] in ((op.AT, op.AT_END), (op.AT, op.AT_END_STRING)):
            most -= 1
        inner = nodes[least:most]
        return concat(
            *(
                self._node(node, flags, first and at == 0, last and at == len(inner) - 1)
                for at, node in enumerate(inner)
            )
        )

    def _node(self, node: tuple[Any, Any], flags: int, first: bool, last: bool) -> Expr:
        kind, what = node
        match str(kind):
            case "LITERAL" | "NOT_LITERAL" | "IN" | "ANY" | "RANGE":
                return _chars(kind, what, flags)
            case "BRANCH":
                return union(*(self.sequence(list(each), flags, first, last) for each in what[1]))
            case "SUBPATTERN":
                _, add, drop, inner = what
                return self.sequence(list(inner), (flags | add) & ~drop, first, last)
            case "MAX_REPEAT" | "MIN_REPEAT":
                least, most, inner = what
                once = most == 1
                part = self.sequence(list(inner), flags, first and once, last and once)
                return repeat(part, least, None if most is op.MAXREPEAT else int(most))
            case "AT" | "ASSERT" | "ASSERT_NOT":
                return EMPTY_TEXT  # they only narrow down what else is said: the text is checked when it is there
            case name:
                raise self._refused(CANNOT.get(name, f"something ({name})"))

    def _refused(self, what: str) -> Fatal:
        return Fatal(
            f"`structured_output`: `{self._pattern}` has {what}, which generation cannot be held to: write the pattern "
            "without."
        )


def _chars(kind: Any, what: Any, flags: int) -> CharSet:
    match str(kind):
        case "ANY":
            return CharSet(()).complement if flags & re.DOTALL else one_of("\n").complement
        case "LITERAL":
            return _folded(CharSet(((what, what),)), flags)
        case "NOT_LITERAL":
            return _folded(CharSet(((what, what),)), flags).complement
    (negated, *_), members = what[0], what
    found = _folded(union_of_sets(_member(*each) for each in members if each[0] is not op.NEGATE), flags)
    if negated is not op.NEGATE:
        return found
    # What is excluded with a category, is excluded as widely as somebody may understand it.
    wide = [_unicode_class(str(inner)) for outer, inner in members if outer is op.CATEGORY]
    return union_of_sets([found, *wide]).complement


def _member(kind: Any, what: Any) -> CharSet:
    match str(kind):
        case "LITERAL":
            return CharSet(((what, what),))
        case "RANGE":
            return CharSet((what,))
    name = str(what)
    return _unicode_class(name.replace("_NOT", "")).complement if "_NOT" in name else _ascii_class(name)


def _ascii_class(category: str) -> CharSet:
    """What `\\d`, `\\w` or `\\s` is for everybody: JSON Schema means fewer characters than Python."""
    return {"CATEGORY_DIGIT": one_of("0123456789"), "CATEGORY_SPACE": one_of(" \t\n\r\f\v")}.get(category) or _word()


@cache
def _unicode_class(category: str) -> CharSet:
    """What it is for anybody."""
    if "_NOT" in category:
        return _ascii_class(category.replace("_NOT", "")).complement
    belongs = {"CATEGORY_DIGIT": str.isdecimal, "CATEGORY_SPACE": str.isspace}.get(category)
    if not belongs:
        return _word()
    return CharSet.from_ranges((point, point) for point in range(0x20000) if belongs(chr(point)))


@cache
def _word() -> CharSet:
    """Letters and digits of every script, and the underscore."""
    return CharSet.from_ranges((point, point) for point in range(0x30000) if chr(point).isalnum() or point == ord("_"))


def _folded(chars: CharSet, flags: int) -> CharSet:
    """The same characters in both cases, where case is to be ignored."""
    if not flags & re.IGNORECASE or len(chars) > FOLDED:
        return chars
    points = [point for first, last in chars.ranges for point in range(first, last + 1)]
    cases = {case for point in points for case in (chr(point).lower(), chr(point).upper(), chr(point))}
    return one_of("".join(case for case in cases if len(case) == 1))
