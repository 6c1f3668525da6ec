"""Numbers between two bounds as syntax trees of how they are written in JSON."""

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
"""Digits after the point at most, where there are bounds: with fewer than 16 in all, no rounding crosses a bound."""

MAX_INTEGER_DIGITS = 15
"""Digits before the point at most, where there are no bounds."""

MAX_LISTED_MULTIPLES = 1000
"""Multiples up to which `multipleOf` is compiled to a list; beyond that it is validated."""

DIGIT = one_of("0123456789")
NONZERO_DIGIT = one_of("123456789")


def parse_integer(schema: Mapping[str, Any]) -> Expr:
    """Match the integers that are valid against a schema."""
    low, high, low_is_excluded, high_is_excluded = _bounds(schema)
    first = None if low is None else math.ceil(low) + (low_is_excluded and low == math.ceil(low))
    last = None if high is None else math.floor(high) - (high_is_excluded and high == math.floor(high))
    step = schema.get("multipleOf", 1)
    return integer_range(first, last, step if isinstance(step, int) else 1)


def parse_number(schema: Mapping[str, Any]) -> Expr:
    """Match the numbers that are valid against a schema."""
    return decimal_range(*_bounds(schema))


def _bounds(schema: Mapping[str, Any]) -> tuple[Decimal | None, Decimal | None, bool, bool]:
    """Return the bounds of a number, and whether each is excluded itself."""
    found: list[tuple[Decimal | None, bool]] = []
    for keyword, exclusive, tightest in (("minimum", "exclusiveMinimum", max), ("maximum", "exclusiveMaximum", min)):
        bound, excluded = schema.get(keyword), schema.get(exclusive)
        if isinstance(excluded, bool):  # in draft 4
            limits = [(bound, excluded)] if bound is not None else []
        else:
            limits = [(each, each is excluded) for each in (bound, excluded) if each is not None]
        limit = tightest((each for each, _ in limits), default=None)
        is_excluded = any(strict for each, strict in limits if each == limit)
        found.append((None if limit is None else Decimal(str(limit)), is_excluded))
    (low, low_is_excluded), (high, high_is_excluded) = found
    return low, high, low_is_excluded, high_is_excluded


def integer_range(low: int | None, high: int | None, step: int = 1) -> Expr:
    """Match the integers from `low` to `high`; the multiples of `step`, where they are few."""
    if step > 1 and low is not None and high is not None and (high - low) // step <= MAX_LISTED_MULTIPLES:
        return union(*(str(number) for number in range(math.ceil(low / step) * step, high + 1, step)))
    negative = _natural_range(1 if high is None or high >= 0 else -high, None if low is None else -low)
    natural = _natural_range(0 if low is None or low <= 0 else low, high)
    return union(natural, concat("-", negative))


def _natural_range(low: int, high: int | None) -> Expr:
    """Match the integers of a range that are not negative."""
    if high is None:
        high = max(low * 10, 10**MAX_INTEGER_DIGITS - 1)
    if high < low:
        return NEVER
    exprs = [literal("0")] if low == 0 else []
    for num_digits in range(1, len(str(high)) + 1):
        first, last = max(low, 10 ** (num_digits - 1)), min(high, 10**num_digits - 1)
        if first <= last:
            exprs.append(_equal_length_range(str(first), str(last)))
    return union(*exprs)


def _equal_length_range(low: str, high: str) -> Expr:
    """Match the digits between two bounds of equal length."""
    if not low:
        return EMPTY_TEXT
    rest = len(low) - 1
    if set(low[1:]) <= {"0"} and set(high[1:]) <= {"9"}:
        return concat(_digit_range(low[0], high[0]), repeat(DIGIT, rest, rest))
    if low[0] == high[0]:
        return concat(low[0], _equal_length_range(low[1:], high[1:]))
    between = _digit_range(chr(ord(low[0]) + 1), chr(ord(high[0]) - 1))
    return union(
        concat(low[0], _equal_length_range(low[1:], "9" * rest)),
        concat(between, repeat(DIGIT, rest, rest)),
        concat(high[0], _equal_length_range("0" * rest, high[1:])),
    )


def decimal_range(
    low: Decimal | None, high: Decimal | None, low_is_excluded: bool = False, high_is_excluded: bool = False
) -> Expr:
    """Match the numbers from `low` to `high`, with up to `MAX_FRACTION_DIGITS` digits after the point."""
    zero = Decimal(0)
    if low is None and high is None:
        integer = union("0", concat(NONZERO_DIGIT, repeat(DIGIT, 0, MAX_INTEGER_DIGITS - 1)))
        fraction = concat(".", repeat(DIGIT, 1, MAX_INTEGER_DIGITS))
        exponent = concat(one_of("eE"), optional(one_of("+-")), NONZERO_DIGIT, optional(DIGIT))
        return concat(optional(literal("-")), integer, optional(fraction), optional(exponent))
    positive = negative = NEVER
    if high is None or high >= zero:
        positive = _unsigned_range(
            max(low or zero, zero), high, low_is_excluded and (low or zero) >= zero, high_is_excluded
        )
    if low is None or low < zero:
        nearest = zero if high is None or high >= zero else -high
        nearest_is_excluded = high_is_excluded if high is not None and high < zero else True
        negative = _unsigned_range(nearest, None if low is None else -low, nearest_is_excluded, low_is_excluded)
    return union(positive, concat("-", negative))


def _unsigned_range(low: Decimal, high: Decimal | None, low_is_excluded: bool, high_is_excluded: bool) -> Expr:
    """Match the numbers of a range that are not negative."""
    if high is None:
        high, high_is_excluded = low * 10 + 10 ** (MAX_INTEGER_DIGITS - MAX_FRACTION_DIGITS), False
    if high < low or (high == low and (low_is_excluded or high_is_excluded)):
        return NEVER
    (first, first_digits), (last, last_digits) = _split(low), _split(high)
    if first == last:
        return concat(str(first), _fraction(first_digits, last_digits, low_is_excluded, high_is_excluded))
    return union(
        concat(str(first), _fraction(first_digits, None, low_is_excluded, False)),
        concat(integer_range(first + 1, last - 1), _fraction("", None, False, False)),
        concat(str(last), _fraction("", last_digits, False, high_is_excluded)),
    )


def _split(number: Decimal) -> tuple[int, str]:
    """Return a number's integer part, and its digits after the point."""
    integer, _, digits = f"{number:f}".partition(".")
    return int(integer), digits.rstrip("0")


def _fraction(low: str, high: str | None, low_is_excluded: bool, high_is_excluded: bool) -> Expr:
    """Match what follows an integer part, so that the fraction is in a range; below 1 where `high` is `None`."""
    digits = _fraction_digits(low, high, low_is_excluded, high_is_excluded, MAX_FRACTION_DIGITS)
    with_point = concat(".", digits) if digits != EMPTY_TEXT else NEVER
    may_be_empty = not low and not low_is_excluded and not (high == "" and high_is_excluded)
    return union(*([EMPTY_TEXT] if may_be_empty else []), with_point)


def _fraction_digits(
    low: str, high: str | None, low_is_excluded: bool, high_is_excluded: bool, max_digits: int, has_digit: bool = False
) -> Expr:
    """Match the digits after those that both bounds have in common.

    Args:
        max_digits: How many at most.
        has_digit: Whether there is a digit already, so that none has to follow.
    """
    may_end = has_digit and not low and not low_is_excluded and not (high == "" and high_is_excluded)
    if not max_digits:
        return EMPTY_TEXT if may_end else NEVER
    if not low and not low_is_excluded and high is None:
        return repeat(DIGIT, 0 if has_digit else 1, max_digits)
    first, last = int(low[:1] or 0), 9 if high is None else int(high[:1] or 0)
    options: list[Expr] = [EMPTY_TEXT] if may_end else []
    for digit in range(first, last + 1):
        is_low, is_high = digit == first, high is not None and digit == last
        rest = _fraction_digits(
            low[1:] if is_low else "",
            (high or "")[1:] if is_high else None,
            low_is_excluded and is_low,
            high_is_excluded and is_high,
            max_digits - 1,
            True,
        )
        options.append(concat(str(digit), rest))
    return union(*options)


def _digit_range(first: str, last: str) -> Expr:
    return CharSet(((ord(first), ord(last)),)) if first <= last else NEVER
