"""A JSON schema as a tree of shapes: all JSON texts that are valid against it, as far as a tree can say it.

What a tree cannot say (`not`, `if`, `contains`, `uniqueItems`, a pattern that looks around or goes with a length …) is
left out, and checked when the text is there. Texts are written as most are: members in the schema's order, one space at
most.
"""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from jsonschema.validators import validator_for

from llms.errors import Fatal
from llms.structured.grammar import (
    EMPTY_TEXT,
    NEVER,
    CharSet,
    Expr,
    Repeat,
    concat,
    literal,
    map_chars,
    one_of,
    optional,
    repeat,
    union,
)
from llms.structured.numbers import decimal_range, parse_integer, parse_number
from llms.structured.regex import parse_regex
from llms.structured.schema_merge import Schema, merge_schemas

MAX_REF_DEPTH = 3
"""How often a definition may stand within itself."""

MAX_COUNTED_CHARS = 200
"""Characters of a string that are counted at most: whether one is longer than it may be is checked afterwards."""

CONTROL_CHARS = CharSet(((0x00, 0x1F), (0x7F, 0x9F)))
UNESCAPED_CHARS = (CONTROL_CHARS | one_of('"\\')).complement
"""What may stand between the quotes of a JSON string as it is."""

STRING_CHAR = union(UNESCAPED_CHARS, concat("\\", one_of('"\\n')))
"""One character of a JSON string that may be anything."""

OPTIONAL_SPACE = optional(literal(" "))

_HEX, _MONTHS = (
    "[0-9a-fA-F]",
    r"(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)",
)
_LEAP = r"(?:[1-9]\d(?:0[48]|[2468][048]|[13579][26])|(?:1[26]|[2468][048]|[3579][26])00)"
_DATE = rf"(?:[1-9]\d{{3}}-{_MONTHS}|{_LEAP}-02-29)"
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?(?:Z|[+-](?:0\d|1[0-4]):[0-5]\d)"
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?"
_HOST = rf"(?:{_LABEL}\.){{1,4}}[a-z]{{2,10}}"
_BYTE = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": r"P(?:\d{1,4}D(?:T\d{1,2}H)?|\d{1,3}W|T\d{1,4}[HMS]|T\d{1,2}H\d{1,2}M(?:\d{1,2}S)?)",
    "uuid": f"{_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-{_HEX}{{12}}",
    "email": rf"[A-Za-z0-9_+-]{{1,24}}(?:\.[A-Za-z0-9_+-]{{1,24}}){{0,2}}@{_HOST}",
    "hostname": _HOST,
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "ipv6": rf"(?:{_HEX}{{1,4}}:){{7}}{_HEX}{{1,4}}",
    "uri": rf"https?://{_HOST}(?:/[A-Za-z0-9._~-]{{1,40}}){{0,8}}/?",
}
FORMATS |= {
    "idn-email": FORMATS["email"],
    "idn-hostname": _HOST,
    "uri-reference": FORMATS["uri"],
    "iri": FORMATS["uri"],
}
"""Formats of strings, as patterns: what they allow is valid, though not all that is valid is allowed."""

KINDS = {
    "object": {"properties", "required", "additionalProperties", "patternProperties", "propertyNames", "minProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems", "contains", "uniqueItems"},
    "string": {"pattern", "format", "minLength", "maxLength"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
}
"""What a schema without a type is about, by the words it has."""


def parse_schema(schema: dict[str, Any]) -> Expr:
    """All JSON texts that are valid against a schema.

    Raises:
        Fatal: If none is, or a reference leads nowhere.
    """
    try:
        shape = _Reader(schema).read(schema, {})
    except RecursionError:
        shape = NEVER
    if shape == NEVER:
        raise Fatal("`structured_output` cannot be compiled: nothing is valid against this schema.")
    return shape


class _Reader:
    """Turns one schema document into shapes."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._validator = validator_for(document)

    def read(self, schema: Schema, within: Mapping[str, int]) -> Expr:
        """What is valid against a part of the document.

        Args:
            within: How often each definition stands around it.
        """
        if isinstance(schema, bool):
            return self.anything() if schema else NEVER
        if "$ref" in schema:
            reference = schema["$ref"]
            if within.get(reference, 0) >= MAX_REF_DEPTH:
                return NEVER
            rest = {key: value for key, value in schema.items() if key != "$ref"}
            return self.read(
                merge_schemas(self._found(reference), rest), {**within, reference: within.get(reference, 0) + 1}
            )
        if "allOf" in schema:
            first, *others = schema["allOf"]
            rest = {key: value for key, value in schema.items() if key != "allOf"}
            return self.read(merge_schemas(merge_schemas(rest, first), {"allOf": others} if others else {}), within)
        if "const" in schema or "enum" in schema:
            return self._one_of(schema)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                rest = {name: value for name, value in schema.items() if name != key}
                return union(*(self.read(merge_schemas(rest, option), within) for option in schema[key]))
        kinds = schema.get("type", [kind for kind, words in KINDS.items() if words & schema.keys()])
        if "type" not in schema and not kinds:
            return self.anything()
        return union(*(self._of(kind, schema, within) for kind in ([kinds] if isinstance(kinds, str) else kinds)))

    def anything(self) -> Expr:
        """Any JSON: plain values, and lists and objects of those."""
        plain = union(_string({}), decimal_range(None, None), "true", "false", "null")
        member = concat(_string({}), ":", OPTIONAL_SPACE, plain)
        return union(plain, _listed("[", [], plain, 0, None, "]"), _listed("{", [], member, 0, None, "}"))

    def _of(self, kind: str, schema: Mapping[str, Any], within: Mapping[str, int]) -> Expr:
        match kind:
            case "object":
                return self._object(schema, within)
            case "array":
                return self._array(schema, within)
            case "string":
                return _string(schema)
            case "integer":
                return parse_integer(schema)
            case "number":
                return parse_number(schema)
            case "boolean":
                return union("true", "false")
            case _:
                return literal("null")

    def _one_of(self, schema: Mapping[str, Any]) -> Expr:
        """The values that a schema lists, but for those that something else in it forbids."""
        values = [schema["const"]] if "const" in schema else schema["enum"]
        judge = self._validator({word: value for word, value in schema.items() if word in _JUDGES})
        return union(*(json.dumps(value, ensure_ascii=False) for value in values if judge.is_valid(value)))

    def _object(self, schema: Mapping[str, Any], within: Mapping[str, int]) -> Expr:
        properties: dict[str, Schema] = dict(schema.get("properties", {}))
        required = schema.get("required", [])
        others = schema.get("additionalProperties", True)
        for name in required:
            properties.setdefault(name, others)
        if not properties:
            return self._map(schema, others, within)
        members = [
            (concat(_quoted(name), ":", OPTIONAL_SPACE, self.read(part, within)), name in required)
            for name, part in properties.items()
        ]
        return concat("{", OPTIONAL_SPACE, _members(members), OPTIONAL_SPACE, "}")

    def _map(self, schema: Mapping[str, Any], others: Schema, within: Mapping[str, int]) -> Expr:
        """An object with names of its own."""
        names = schema.get("propertyNames", {})
        name = self.read({"type": "string", **names} if isinstance(names, dict) else names, within)
        kinds = [
            concat(_string({"pattern": pattern}), ":", OPTIONAL_SPACE, self.read(part, within))
            for pattern, part in schema.get("patternProperties", {}).items()
        ]
        if not (kinds and others is True):
            kinds.append(concat(name, ":", OPTIONAL_SPACE, self.read(others, within)))
        return _listed("{", [], union(*kinds), schema.get("minProperties", 0), schema.get("maxProperties"), "}")

    def _array(self, schema: Mapping[str, Any], within: Mapping[str, int]) -> Expr:
        first, rest = schema.get("prefixItems", []), schema.get("items")
        if isinstance(rest, list):  # as drafts before 2020 have it
            first, rest = rest, schema.get("additionalItems")
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if first and rest is None and least <= len(first):  # nobody wants what is allowed behind them
            rest = False
        items = [self.read(item, within) for item in first]
        return _listed("[", items, self.read(True if rest is None else rest, within), least, most, "]")

    def _found(self, reference: str) -> Schema:
        found: Any = self._document
        if not reference.startswith("#"):
            raise Fatal(f"`structured_output`: `$ref` to `{reference}` leads out of the schema: put it in `$defs`.")
        try:
            for step in filter(None, reference[1:].split("/")):
                name = unquote(step).replace("~1", "/").replace("~0", "~")
                found = found[int(name)] if isinstance(found, list) else found[name]
        except (LookupError, TypeError, ValueError):
            raise Fatal(f"`structured_output`: `$ref` to `{reference}` leads nowhere.") from None
        return found


_JUDGES = set().union(*KINDS.values()) | {"type", "not"}
"""Words by which a listed value is judged that need no other part of the document."""


def _members(members: list[tuple[Expr, bool]]) -> Expr:
    """Members of an object in their order, each with a comma before it but for the first that is there."""
    followed, alone = EMPTY_TEXT, EMPTY_TEXT
    for member, needed in reversed(members):
        after = concat(",", OPTIONAL_SPACE, member)
        first = concat(member, followed)
        alone = first if needed else union(first, alone)
        followed = concat(after if needed else optional(after) if after != NEVER else EMPTY_TEXT, followed)
    return alone


def _listed(start: str, first: list[Expr], rest: Expr, least: int, most: int | None, end: str) -> Expr:
    """Things between brackets, with commas between them: the first ones, then any number of the rest."""
    comma = concat(",", OPTIONAL_SPACE)
    tail: Expr = repeat(
        concat(comma, rest), max(0, least - len(first)), None if most is None else max(0, most - len(first))
    )
    if first:
        whole = tail
        for at in range(len(first) - 1, 0, -1):
            whole = concat(comma, first[at], whole)
            whole = whole if least > at else optional(whole)
        whole = concat(first[0], whole)
    else:
        fewer = None if most is None else most - 1
        whole = concat(rest, repeat(concat(comma, rest), max(0, least - 1), fewer)) if most != 0 else NEVER
    if least == 0:
        whole = union(EMPTY_TEXT, whole)
    return concat(start, OPTIONAL_SPACE, whole, OPTIONAL_SPACE, end)


def _string(schema: Mapping[str, Any]) -> Expr:
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    shape = _of_pattern(pattern) if isinstance(pattern := schema.get("pattern"), str) else None
    if shape is not None and not (shape == EMPTY_TEXT and least):  # else it says only what must not be
        return concat('"', _sized(map_chars(shape, _spelled), least, most), '"')
    if (form := schema.get("format")) in FORMATS:
        return concat('"', map_chars(parse_regex(FORMATS[form]), _spelled), '"')
    return concat(
        '"',
        repeat(
            STRING_CHAR, min(least, MAX_COUNTED_CHARS), most if most is not None and most <= MAX_COUNTED_CHARS else None
        ),
        '"',
    )


def _of_pattern(pattern: str) -> Expr | None:
    """The texts that match a pattern; `None` where it has something that no tree can say."""
    try:
        return parse_regex(pattern)
    except Fatal:
        return None


def _sized(shape: Expr, least: int, most: int | None) -> Expr:
    """The same with a length, where it is one character again and again."""
    match shape:
        case Repeat(CharSet() as part, low, high):
            longest = min((each for each in (high, most) if each is not None), default=None)
            return repeat(part, max(low, least), longest)
        case _:
            return shape


def _spelled(chars: CharSet) -> Expr:
    """Characters as they stand in a JSON string; those that need an escape are left out where there are others."""
    if plain := chars & UNESCAPED_CHARS:
        return plain
    points = [point for first, last in chars.ranges for point in range(first, last + 1)]
    return union(*(json.dumps(chr(point))[1:-1] for point in points if point not in range(0xD800, 0xE000)))


def _quoted(name: str) -> Expr:
    return literal(json.dumps(name, ensure_ascii=False))
