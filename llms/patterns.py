"""What a text is held to, as a regular expression that compiles to an automaton; and whether a text keeps to it."""

import json
import math
import re
from typing import Any

from jsonschema.validators import validator_for

from llms.errors import Fatal
from llms.typing import StructuredOutputType

PIECE = re.compile(
    r"(?P<escape>\\(?:\d+|.))|(?P<group>\(\?(?:<?[=!]|P=\w+|\())|\[(?P<not>\^?)(?P<set>\]?(?:\\.|[^\\\]])*)\]|(?P<dot>\.)",
    re.DOTALL,
)
"""The parts of a regular expression that we read; whatever is between them stays."""

CANNOT = {
    "(?=": "look-ahead",
    "(?!": "look-ahead",
    "(?<=": "look-behind",
    "(?<!": "look-behind",
    "(?P=": "a backreference",
    "(?(": "a condition",
    r"\b": r"a word boundary (`\b`)",
    r"\B": r"a word boundary (`\B`)",
}
"""What no automaton can do, by how it starts."""

DIGITS = {r"\d": "[0-9]", r"\D": "[^0-9]"}
"""Python and JSON Schema mean the ten digits; the compiler means those of every script."""

INSIDE_A_STRING = r'[^"\\\x00-\x1F\x7F-\x9F]'
"""What may stand between the quotes of a JSON string without an escape."""

MOST_NUMBERS = 1000
"""A range of at most so many integers is compiled number by number; of a wider one the text is checked afterwards."""

CONSTANTS = ("const", "default", "enum", "examples")
"""Keywords of a JSON schema that hold values, not schemas."""


def to_regex(structure: StructuredOutputType) -> str:
    """The regular expression of all texts that keep to the structure, as far as one can say it.

    Raises:
        Fatal: If the schema or the pattern has something that cannot be compiled; the message names it.
    """
    schema = structure["schema"]
    if isinstance(schema, str):
        return _portable(schema)
    from outlines_core.json_schema import build_regex_from_schema

    try:
        regex = build_regex_from_schema(json.dumps(_compilable(schema)))
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0].strip()
        raise Fatal(f"`structured_output` cannot be compiled: {reason}.") from None
    return re.sub(r"\\.", lambda escape: DIGITS.get(escape[0], escape[0]), regex, flags=re.DOTALL)


def mistake(structure: StructuredOutputType, text: str) -> str | None:
    """Why a text does not keep to the structure; `None` when it does."""
    schema = structure["schema"]
    if isinstance(schema, str):
        return None if re.fullmatch(schema, text) else "it does not match the pattern"
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"it is not JSON: {error}"
    cls = validator_for(schema)
    error = next(iter(cls(schema, format_checker=cls.FORMAT_CHECKER).iter_errors(value)), None)
    return f"at `{error.json_path}`: {error.message}" if error else None


def _portable(pattern: str, within: str | None = None) -> str:
    """A user's pattern in the compiler's dialect, without its outer anchors.

    Args:
        pattern: As Python and JSON Schema write it.
        within: The class that every single character must belong to as well.
    """
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise Fatal(f"`structured_output`: `{pattern}` is not a regular expression: {error}.") from None
    pattern = re.sub(r"^(?:\^|\\A)", "", pattern)
    pattern = re.sub(r"(?<!\\)((?:\\\\)*)(?:\$|\\Z)$", r"\1", pattern)
    return _translated(pattern, within)


def _translated(pattern: str, within: str | None = None) -> str:
    def piece(match: re.Match[str]) -> str:
        text = match[0]
        if (impossible := CANNOT.get(match["group"] or text)) or text.startswith("(?P="):
            _refuse(pattern, impossible or CANNOT["(?P="])
        if match["escape"]:
            if text[1] in "123456789":
                _refuse(pattern, f"a backreference (`{text}`)")
            text = DIGITS.get(text, text)
            return f"[{text}&&{within}]" if within and text in NEGATIVE else text
        if match["dot"]:
            return within or "."
        if match["set"] is not None:
            members = re.sub(r"\\.|[\[&~]", _member, match["set"], flags=re.DOTALL)
            text = f"[{match['not']}{members}]"
            return f"[{text}&&{within}]" if within else text
        return text

    return PIECE.sub(piece, pattern)


NEGATIVE = {"[^0-9]", r"\W", r"\S", r"\s"}
"""Escapes that a quote, a backslash or a line break belongs to."""


def _member(match: re.Match[str]) -> str:
    """A member of a class: some that are plain in Python are operators in the compiler's dialect."""
    text = match[0]
    return DIGITS.get(text, text) if text.startswith("\\") else f"\\{text}"


def _refuse(pattern: str, what: str) -> None:
    raise Fatal(
        f"`structured_output`: `{pattern}` has {what}, which generation cannot be held to: write the pattern without."
    )


def _compilable(schema: Any) -> Any:
    """The schema with what the compiler passes over said in words it knows."""
    if isinstance(schema, list):
        return [_compilable(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: value if key in CONSTANTS else _compilable(value) for key, value in schema.items()}
    if isinstance(pattern := schema.get("pattern"), str):
        only = {key: value for key, value in schema.items() if key not in ("minLength", "maxLength", "format")}
        return only | {"pattern": f"(?:{_portable(pattern, INSIDE_A_STRING)})"}
    numbers = _numbers(schema) if schema.get("type") == "integer" else None
    return {"enum": numbers} if numbers and "enum" not in schema else schema


def _numbers(schema: dict[str, Any]) -> list[int] | None:
    """Every integer in the schema's range, if it has one that is short enough."""
    if any(isinstance(schema.get(bound), bool) for bound in ("exclusiveMinimum", "exclusiveMaximum")):
        return None  # as the fourth draft had them
    least = [math.ceil(schema["minimum"])] if "minimum" in schema else []
    least += [math.floor(schema["exclusiveMinimum"]) + 1] if "exclusiveMinimum" in schema else []
    most = [math.floor(schema["maximum"])] if "maximum" in schema else []
    most += [math.ceil(schema["exclusiveMaximum"]) - 1] if "exclusiveMaximum" in schema else []
    if not least or not most or min(most) - max(least) >= MOST_NUMBERS:
        return None
    step = schema.get("multipleOf", 1)
    return [number for number in range(max(least), min(most) + 1) if number % step == 0]
