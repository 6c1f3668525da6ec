"""Python's regular expressions as syntax trees."""

import re
import warnings
from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from typing import Any

import regex

from llms.errors import Fatal
from llms.structured.grammar import EMPTY_TEXT, CharSet, Expr, concat, one_of, repeat, union

op: Any = import_module("re._constants")
parser: Any = import_module("re._parser")

UNSUPPORTED = {
    "GROUPREF": "a backreference",
    "GROUPREF_EXISTS": "a condition",
}
"""Constructs that no automaton can match, by the names of Python's parser."""

MAX_CASE_FOLDED_CHARS = 1000
"""Size of a character set at most that is widened to both cases, where case is to be ignored."""

ANCHORS_AT_START = ((op.AT, op.AT_BEGINNING), (op.AT, op.AT_BEGINNING_STRING))
ANCHORS_AT_END = ((op.AT, op.AT_END), (op.AT, op.AT_END_STRING))


def parse_regex(pattern: str) -> Expr:
    """Parse a regular expression that is to match whole texts, whether it has anchors or not.

    Lookarounds and boundaries are left out: they only narrow the texts, and are checked on the complete text. Greedy
    and lazy repetition match the same texts.

    Raises:
        Fatal: If it is none, or no automaton can match it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # about sets that may mean something else one day
            parsed = parser.parse(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise Fatal(f"`structured_output`: `{pattern}` is not a regular expression: {error}.") from None
    return _Parser(pattern).concat(list(parsed), parsed.state.flags, True, True)


class _Parser:
    """Turns the nodes of Python's own parser into expressions."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern

    def concat(self, nodes: list[Any], flags: int, is_first: bool, is_last: bool) -> Expr:
        """Parse consecutive nodes.

        Args:
            is_first: Whether they begin the pattern.
            is_last: Whether they end it.
        """
        start, end = 0, len(nodes)
        while is_first and start < end and nodes[start] in ANCHORS_AT_START:
            start += 1
        while is_last and start < end and nodes[end - 1] in ANCHORS_AT_END:
            end -= 1
        inner = nodes[start:end]
        return concat(
            *(
                self._node(node, flags, is_first and index == 0, is_last and index == len(inner) - 1)
                for index, node in enumerate(inner)
            )
        )

    def _node(self, node: tuple[Any, Any], flags: int, is_first: bool, is_last: bool) -> Expr:
        kind, value = node
        match str(kind):
            case "LITERAL" | "NOT_LITERAL" | "IN" | "ANY" | "RANGE":
                return _char_set(kind, value, flags)
            case "BRANCH":
                return union(*(self.concat(list(branch), flags, is_first, is_last) for branch in value[1]))
            case "SUBPATTERN":
                _, add, drop, inner = value
                return self.concat(list(inner), (flags | add) & ~drop, is_first, is_last)
            case "MAX_REPEAT" | "MIN_REPEAT":
                min_count, max_count, inner = value
                is_once = max_count == 1
                part = self.concat(list(inner), flags, is_first and is_once, is_last and is_once)
                return repeat(part, min_count, None if max_count is op.MAXREPEAT else int(max_count))
            case "AT" | "ASSERT" | "ASSERT_NOT":
                return EMPTY_TEXT
            case name:
                raise Fatal(
                    f"`structured_output`: `{self._pattern}` has {UNSUPPORTED.get(name, f'something ({name})')}, which "
                    "generation cannot be held to: write the pattern without."
                )


def _char_set(kind: Any, value: Any, flags: int) -> CharSet:
    match str(kind):
        case "ANY":
            return CharSet(()).complement if flags & re.DOTALL else one_of("\n").complement
        case "LITERAL":
            return _fold_case(CharSet(((value, value),)), flags)
        case "NOT_LITERAL":
            return _fold_case(CharSet(((value, value),)), flags).complement
    (negated, *_), members = value[0], value
    found = _fold_case(_join(_class_member(*each) for each in members if each[0] is not op.NEGATE), flags)
    if negated is not op.NEGATE:
        return found
    # An excluded category is excluded as widely as any engine understands it.
    wide = [_unicode_class(str(inner)) for outer, inner in members if outer is op.CATEGORY]
    return _join([found, *wide]).complement


def _class_member(kind: Any, value: Any) -> CharSet:
    match str(kind):
        case "LITERAL":
            return CharSet(((value, value),))
        case "RANGE":
            return CharSet((value,))
    name = str(value)
    return _unicode_class(name.replace("_NOT", "")).complement if "_NOT" in name else _ascii_class(name)


def _ascii_class(category: str) -> CharSet:
    """Return `\\d`, `\\w` or `\\s` as all engines understand it: JSON Schema means fewer characters than Python."""
    if category == "CATEGORY_DIGIT":
        return one_of("0123456789")
    return one_of(" \t\n\r\f\v") if category == "CATEGORY_SPACE" else _word_chars(all)


@cache
def _unicode_class(category: str) -> CharSet:
    """Return a category as widely as any engine understands it."""
    if "_NOT" in category:
        return _ascii_class(category.replace("_NOT", "")).complement
    members = {"CATEGORY_DIGIT": str.isdecimal, "CATEGORY_SPACE": str.isspace}.get(category)
    return _filter_chars(members, 0x20000) if members else _word_chars(any)


@cache
def _word_chars(by: Callable[[Iterable[object]], bool]) -> CharSet:
    """Return the letters and digits of every script, and the underscore, by `all` engines or by `any`."""
    word = regex.compile(r"\w")
    return _filter_chars(lambda char: by((char.isalnum() or char == "_", word.match(char))), 0x30000)


def _filter_chars(belongs: Callable[[str], bool], limit: int) -> CharSet:
    return CharSet.from_ranges((point, point) for point in range(limit) if belongs(chr(point)))


def _fold_case(chars: CharSet, flags: int) -> CharSet:
    """Return the characters in both cases, where case is to be ignored."""
    if not flags & re.IGNORECASE or len(chars) > MAX_CASE_FOLDED_CHARS:
        return chars
    points = [point for first, last in chars.ranges for point in range(first, last + 1)]
    cases = {case for point in points for case in (chr(point).lower(), chr(point).upper(), chr(point))}
    return one_of("".join(case for case in cases if len(case) == 1))


def _join(sets: Iterable[CharSet]) -> CharSet:
    return CharSet.from_ranges(char_range for chars in sets for char_range in chars.ranges)
