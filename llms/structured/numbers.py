"""Numbers between two bounds, as they are written in JSON."""

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from llms.structured.grammar import (
    EMPTY_TEXT,
    NEVER,
    CharSet,
    Expr,
    concat,
    literal,
    one_of,
    optional,
    repeat,
    union,
)

MAX_FRACTION_DIGITS = 9
"""Digits after the point at most, where there are bounds: with fewer than 16 in all, none is rounded beyond one."""

MAX_INTEGER_DIGITS = 15
"""Digits before the point at most, where nothing bounds them."""

MAX_LISTED_MULTIPLES = 1000
"""So many multiples at most are written down one by one; of more, the text is checked afterwards."""

DIGIT = one_of("0123456789")
NONZERO_DIGIT = one_of("123456789")


def parse_integer(schema: Mapping[str, Any]) -> Expr:
    """The integers that are valid against a schema."""
    least, most, above, below = _bounds(schema)
    low = None if least is None else math.ceil(least) + (above and least == math.ceil(least))
    high = None if most is None else math.floor(most) - (below and most == math.floor(most))
    step = schema.get("multipleOf", 1)
    return integer_range(low, high, step if isinstance(step, int) else 1)


def parse_number(schema: Mapping[str, Any]) -> Expr:
    """The numbers that are valid against a schema."""
    return decimal_range(*_bounds(schema))


def _bounds(schema: Mapping[str, Any]) -> tuple[Decimal | None, Decimal | None, bool, bool]:
    """The least and the most that a number may be, and whether it must be above and below these."""
    found: list[tuple[Decimal | None, bool]] = []
    for word, exclusive, pick in (("minimum", "exclusiveMinimum", max), ("maximum", "exclusiveMaximum", min)):
        bound, strict = schema.get(word), schema.get(exclusive)
        if isinstance(strict, bool):  # as the fourth draft had it
            limits = [(bound, strict)] if bound is not None else []
        else:
            limits = [(each, each is strict) for each in (bound, strict) if each is not None]
        nearest = pick((each for each, _ in limits), default=None)
        strictly = any(beyond for each, beyond in limits if each == nearest)
        found.append((None if nearest is None else Decimal(str(nearest)), strictly))
    (least, above), (most, below) = found
    return least, most, above, below


def integer_range(least: int | None, most: int | None, step: int = 1) -> Expr:
    """All integers of a range; its multiples of `step`, where they are few."""
    if step > 1 and least is not None and most is not None and (most - least) // step <= MAX_LISTED_MULTIPLES:
        return union(*(str(number) for number in range(math.ceil(least / step) * step, most + 1, step)))
    below = _magnitudes(1 if most is None or most >= 0 else -most, None if least is None else -least)
    above = _magnitudes(0 if least is None or least <= 0 else least, most)
    return union(above, concat("-", below))


def _magnitudes(least: int, most: int | None) -> Expr:
    """All integers of a range that are not negative."""
    if most is None:
        most = max(least * 10, 10**MAX_INTEGER_DIGITS - 1)
    if most < least:
        return NEVER
    shapes = [literal("0")] if least == 0 else []
    for digits in range(1, len(str(most)) + 1):
        low, high = max(least, 10 ** (digits - 1)), min(most, 10**digits - 1)
        if low <= high:
            shapes.append(_same_length(str(low), str(high)))
    return union(*shapes)


def _same_length(low: str, high: str) -> Expr:
    """The numbers between two of the same number of digits."""
    if not low:
        return EMPTY_TEXT
    rest = len(low) - 1
    if set(low[1:]) <= {"0"} and set(high[1:]) <= {"9"}:
        return concat(_digits(low[0], high[0]), repeat(DIGIT, rest, rest))
    if low[0] == high[0]:
        return concat(low[0], _same_length(low[1:], high[1:]))
    between = _digits(chr(ord(low[0]) + 1), chr(ord(high[0]) - 1))
    return union(
        concat(low[0], _same_length(low[1:], "9" * rest)),
        concat(between, repeat(DIGIT, rest, rest)),
        concat(high[0], _same_length("0" * rest, high[1:])),
    )


def decimal_range(least: Decimal | None, most: Decimal | None, above: bool = False, below: bool = False) -> Expr:
    """All numbers of a range, with up to `FRACTION` digits after the point.

    Args:
        above: Whether they are greater than `least`.
        below: Whether they are less than `most`.
    """
    zero = Decimal(0)
    if least is None and most is None:
        whole = union("0", concat(NONZERO_DIGIT, repeat(DIGIT, 0, MAX_INTEGER_DIGITS - 1)))
        power = concat(one_of("eE"), optional(one_of("+-")), NONZERO_DIGIT, optional(DIGIT))
        return concat(
            optional(literal("-")), whole, optional(concat(".", repeat(DIGIT, 1, MAX_INTEGER_DIGITS))), optional(power)
        )
    positive = (
        NEVER
        if most is not None and most < zero
        else _between(max(least or zero, zero), most, above and (least or zero) >= zero, below)
    )
    negative = NEVER
    if least is None or least < zero:
        nearest = zero if most is None or most >= zero else -most
        strictly = below if most is not None and most < zero else True
        negative = _between(nearest, None if least is None else -least, strictly, above)
    return union(positive, concat("-", negative))


def _between(least: Decimal, most: Decimal | None, above: bool, below: bool) -> Expr:
    """The same of numbers that are not negative."""
    if most is None:
        most, below = least * 10 + 10 ** (MAX_INTEGER_DIGITS - MAX_FRACTION_DIGITS), False
    if most < least or (most == least and (above or below)):
        return NEVER
    (low, low_digits), (high, high_digits) = _split(least), _split(most)
    if low == high:
        return concat(str(low), _fraction(low_digits, high_digits, above, below))
    return union(
        concat(str(low), _fraction(low_digits, None, above, False)),
        concat(integer_range(low + 1, high - 1), _fraction("", None, False, False)),
        concat(str(high), _fraction("", high_digits, False, below)),
    )


def _split(number: Decimal) -> tuple[int, str]:
    """A number's whole part, and its digits after the point."""
    whole, _, digits = f"{number:f}".partition(".")
    return int(whole), digits.rstrip("0")


def _fraction(low: str, high: str | None, above: bool, below: bool) -> Expr:
    """What may follow a whole number, so that it is between two fractions; without `high`, less than the next one."""
    digits = _tail(low, high, above, below, MAX_FRACTION_DIGITS)
    written = concat(".", digits) if digits != EMPTY_TEXT else NEVER
    bare = not low and not above and not (high == "" and below)
    return union(*([EMPTY_TEXT] if bare else []), written)


def _tail(low: str, high: str | None, above: bool, below: bool, room: int, begun: bool = False) -> Expr:
    """The digits that go on after those that both bounds have in common.

    Args:
        room: How many at most.
        begun: Whether there is a digit already, so that there need not be another.
    """
    if not room:
        return EMPTY_TEXT if begun and not low and not above and not (high == "" and below) else NEVER
    if not low and not above and high is None:
        return repeat(DIGIT, 0 if begun else 1, room)
    first, last = int(low[:1] or 0), 9 if high is None else int(high[:1] or 0)
    options: list[Expr] = []
    if begun and not low and not above and not (high == "" and below):
        options.append(EMPTY_TEXT)
    for digit in range(first, last + 1):
        at_low, at_high = digit == first, high is not None and digit == last
        rest = _tail(
            low[1:] if at_low else "",
            (high or "")[1:] if at_high else None,
            above and at_low,
            below and at_high,
            room - 1,
            True,
        )
        options.append(concat(str(digit), rest))
    return union(*options)


def _digits(first: str, last: str) -> Expr:
    return CharSet(((ord(first), ord(last)),)) if first <= last else NEVER
