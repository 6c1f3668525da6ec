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
    IMPOSSIBLE,
    NOTHING,
    Chars,
    Repeat,
    Shape,
    among,
    choice,
    literal,
    mapped,
    optional,
    repeat,
    sequence,
)
from llms.structured.numbers import decimals, of_integer, of_number
from llms.structured.regex import of_pattern
from llms.structured.schema_merge import Schema, merged

DEPTH = 3
"""How often a definition may stand within itself."""

LONGEST = 200
"""Characters of a string that are counted at most: whether one is longer than it may be is checked afterwards."""

CONTROLS = Chars(((0x00, 0x1F), (0x7F, 0x9F)))
PLAIN = (CONTROLS | among('"\\')).others
"""What may stand between the quotes of a JSON string as it is."""

CHARACTER = choice(PLAIN, sequence("\\", among('"\\n')))
"""One character of a JSON string that may be anything."""

GAP = optional(literal(" "))

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


def of_schema(schema: dict[str, Any]) -> Shape:
    """All JSON texts that are valid against a schema.

    Raises:
        Fatal: If none is, or a reference leads nowhere.
    """
    try:
        shape = _Reader(schema).read(schema, {})
    except RecursionError:
        shape = IMPOSSIBLE
    if shape == IMPOSSIBLE:
        raise Fatal("`structured_output` cannot be compiled: nothing is valid against this schema.")
    return shape


class _Reader:
    """Turns one schema document into shapes."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._validator = validator_for(document)

    def read(self, schema: Schema, within: Mapping[str, int]) -> Shape:
        """What is valid against a part of the document.

        Args:
            within: How often each definition stands around it.
        """
        if isinstance(schema, bool):
            return self.anything() if schema else IMPOSSIBLE
        if "$ref" in schema:
            reference = schema["$ref"]
            if within.get(reference, 0) >= DEPTH:
                return IMPOSSIBLE
            rest = {key: value for key, value in schema.items() if key != "$ref"}
            return self.read(merged(self._found(reference), rest), {**within, reference: within.get(reference, 0) + 1})
        if "allOf" in schema:
            first, *others = schema["allOf"]
            rest = {key: value for key, value in schema.items() if key != "allOf"}
            return self.read(merged(merged(rest, first), {"allOf": others} if others else {}), within)
        if "const" in schema or "enum" in schema:
            return self._one_of(schema)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                rest = {name: value for name, value in schema.items() if name != key}
                return choice(*(self.read(merged(rest, option), within) for option in schema[key]))
        kinds = schema.get("type", [kind for kind, words in KINDS.items() if words & schema.keys()])
        if "type" not in schema and not kinds:
            return self.anything()
        return choice(*(self._of(kind, schema, within) for kind in ([kinds] if isinstance(kinds, str) else kinds)))

    def anything(self) -> Shape:
        """Any JSON: plain values, and lists and objects of those."""
        plain = choice(_string({}), decimals(None, None), "true", "false", "null")
        member = sequence(_string({}), ":", GAP, plain)
        return choice(plain, _listed("[", [], plain, 0, None, "]"), _listed("{", [], member, 0, None, "}"))

    def _of(self, kind: str, schema: Mapping[str, Any], within: Mapping[str, int]) -> Shape:
        match kind:
            case "object":
                return self._object(schema, within)
            case "array":
                return self._array(schema, within)
            case "string":
                return _string(schema)
            case "integer":
                return of_integer(schema)
            case "number":
                return of_number(schema)
            case "boolean":
                return choice("true", "false")
            case _:
                return literal("null")

    def _one_of(self, schema: Mapping[str, Any]) -> Shape:
        """The values that a schema lists, but for those that something else in it forbids."""
        values = [schema["const"]] if "const" in schema else schema["enum"]
        judge = self._validator({word: value for word, value in schema.items() if word in _JUDGES})
        return choice(*(json.dumps(value, ensure_ascii=False) for value in values if judge.is_valid(value)))

    def _object(self, schema: Mapping[str, Any], within: Mapping[str, int]) -> Shape:
        properties: dict[str, Schema] = dict(schema.get("properties", {}))
        required = schema.get("required", [])
        others = schema.get("additionalProperties", True)
        for name in required:
            properties.setdefault(name, others)
        if not properties:
            return self._map(schema, others, within)
        members = [
            (sequence(_quoted(name), ":", GAP, self.read(part, within)), name in required)
            for name, part in properties.items()
        ]
        return sequence("{", GAP, _members(members), GAP, "}")

    def _map(self, schema: Mapping[str, Any], others: Schema, within: Mapping[str, int]) -> Shape:
        """An object with names of its own."""
        names = schema.get("propertyNames", {})
        name = self.read({"type": "string", **names} if isinstance(names, dict) else names, within)
        kinds = [
            sequence(_string({"pattern": pattern}), ":", GAP, self.read(part, within))
            for pattern, part in schema.get("patternProperties", {}).items()
        ]
        if not (kinds and others is True):
            kinds.append(sequence(name, ":", GAP, self.read(others, within)))
        return _listed("{", [], choice(*kinds), schema.get("minProperties", 0), schema.get("maxProperties"), "}")

    def _array(self, schema: Mapping[str, Any], within: Mapping[str, int]) -> Shape:
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


def _members(members: list[tuple[Shape, bool]]) -> Shape:
    """Members of an object in their order, each with a comma before it but for the first that is there."""
    followed, alone = NOTHING, NOTHING
    for member, needed in reversed(members):
        after = sequence(",", GAP, member)
        first = sequence(member, followed)
        alone = first if needed else choice(first, alone)
        followed = sequence(after if needed else optional(after) if after != IMPOSSIBLE else NOTHING, followed)
    return alone


def _listed(start: str, first: list[Shape], rest: Shape, least: int, most: int | None, end: str) -> Shape:
    """Things between brackets, with commas between them: the first ones, then any number of the rest."""
    comma = sequence(",", GAP)
    tail: Shape = repeat(
        sequence(comma, rest), max(0, least - len(first)), None if most is None else max(0, most - len(first))
    )
    if first:
        whole = tail
        for at in range(len(first) - 1, 0, -1):
            whole = sequence(comma, first[at], whole)
            whole = whole if least > at else optional(whole)
        whole = sequence(first[0], whole)
    else:
        fewer = None if most is None else most - 1
        whole = sequence(rest, repeat(sequence(comma, rest), max(0, least - 1), fewer)) if most != 0 else IMPOSSIBLE
    if least == 0:
        whole = choice(NOTHING, whole)
    return sequence(start, GAP, whole, GAP, end)


def _string(schema: Mapping[str, Any]) -> Shape:
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    shape = _of_pattern(pattern) if isinstance(pattern := schema.get("pattern"), str) else None
    if shape is not None and not (shape == NOTHING and least):  # else it says only what must not be
        return sequence('"', _sized(mapped(shape, _spelled), least, most), '"')
    if (form := schema.get("format")) in FORMATS:
        return sequence('"', mapped(of_pattern(FORMATS[form]), _spelled), '"')
    return sequence(
        '"', repeat(CHARACTER, min(least, LONGEST), most if most is not None and most <= LONGEST else None), '"'
    )


def _of_pattern(pattern: str) -> Shape | None:
    """The texts that match a pattern; `None` where it has something that no tree can say."""
    try:
        return of_pattern(pattern)
    except Fatal:
        return None


def _sized(shape: Shape, least: int, most: int | None) -> Shape:
    """The same with a length, where it is one character again and again."""
    match shape:
        case Repeat(Chars() as part, low, high):
            longest = min((each for each in (high, most) if each is not None), default=None)
            return repeat(part, max(low, least), longest)
        case _:
            return shape


def _spelled(chars: Chars) -> Shape:
    """Characters as they stand in a JSON string; those that need an escape are left out where there are others."""
    if plain := chars & PLAIN:
        return plain
    points = [point for first, last in chars.ranges for point in range(first, last + 1)]
    return choice(*(json.dumps(chr(point))[1:-1] for point in points if point not in range(0xD800, 0xE000)))


def _quoted(name: str) -> Shape:
    return literal(json.dumps(name, ensure_ascii=False))
