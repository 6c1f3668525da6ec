"""JSON schemas as syntax trees of the JSON texts that are valid, as far as a regular expression can say it.

Other keywords (`not`, `if`, `contains`, `uniqueItems`, a pattern that looks around or has a length beside it …) are
left out, and validated on the complete text. Texts have properties in the schema's order, and optional single spaces.
"""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from jsonschema.validators import validator_for

from llms.errors import Fatal
from llms.structured.formats import FORMATS
from llms.structured.grammar import (
    EMPTY_TEXT,
    NEVER,
    SURROGATES,
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
from llms.typing import StructuredOutputType

MAX_REF_DEPTH = 3
"""How deep a definition may be nested in itself."""

MAX_COUNTED_CHARS = 200
"""Length of a string up to which `minLength` and `maxLength` are compiled; beyond that they are validated."""

CONTROL_CHARS = CharSet(((0x00, 0x1F), (0x7F, 0x9F)))
UNESCAPED_CHARS = (CONTROL_CHARS | one_of('"\\')).complement
"""Characters that stand in a JSON string as they are."""

STRING_CHAR = union(UNESCAPED_CHARS, concat("\\", one_of('"\\n')))
"""One character of any JSON string."""

OPTIONAL_SPACE = optional(literal(" "))
COMMA = concat(",", OPTIONAL_SPACE)
COLON = concat(":", OPTIONAL_SPACE)

KEYWORDS_BY_TYPE = {
    "object": {"properties", "required", "additionalProperties", "patternProperties", "propertyNames", "minProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems", "contains", "uniqueItems"},
    "string": {"pattern", "format", "minLength", "maxLength"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
}
"""Keywords that imply the type of a schema without one."""

VALUE_KEYWORDS = set().union(*KEYWORDS_BY_TYPE.values()) | {"type", "not"}
"""Keywords by which a listed value is validated without the rest of the document."""


def parse_structure(structure: StructuredOutputType) -> Expr:
    """Parse a pattern or a JSON schema, as far as a regular expression can say it.

    Raises:
        Fatal: If it has something that no automaton can match, or contradicts itself; the message names it.
    """
    schema = structure["schema"]
    return parse_regex(schema) if isinstance(schema, str) else parse_schema(schema)


def parse_schema(schema: dict[str, Any]) -> Expr:
    """Parse a JSON schema.

    Raises:
        Fatal: If nothing is valid against it, or a reference leads nowhere.
    """
    try:
        expr = _Parser(schema).parse(schema, {})
    except RecursionError:
        expr = NEVER
    if expr == NEVER:
        raise Fatal("`structured_output` cannot be compiled: nothing is valid against this schema.")
    return expr


class _Parser:
    """Turns the schemas of one document into expressions.

    Its methods take the `depths` of all definitions around a schema: how often each is nested in itself.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._validator = validator_for(document)

    def parse(self, schema: Schema, depths: Mapping[str, int]) -> Expr:
        """Parse a schema of the document."""
        if isinstance(schema, bool):
            return self._any_value() if schema else NEVER
        if "$ref" in schema:
            reference = schema["$ref"]
            depth = depths.get(reference, 0)
            if depth >= MAX_REF_DEPTH:
                return NEVER
            target = merge_schemas(self._resolve(reference), _without(schema, "$ref"))
            return self.parse(target, {**depths, reference: depth + 1})
        if "allOf" in schema:
            first, *others = schema["allOf"]
            merged = merge_schemas(_without(schema, "allOf"), first)
            return self.parse(merge_schemas(merged, {"allOf": others} if others else {}), depths)
        if "const" in schema or "enum" in schema:
            return self._enum(schema)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                rest = _without(schema, keyword)
                return union(*(self.parse(merge_schemas(rest, option), depths) for option in schema[keyword]))
        types = schema.get("type", [name for name, words in KEYWORDS_BY_TYPE.items() if words & schema.keys()])
        if "type" not in schema and not types:
            return self._any_value()
        return union(*(self._of_type(each, schema, depths) for each in ([types] if isinstance(types, str) else types)))

    def _any_value(self) -> Expr:
        """Match any JSON: scalars, and arrays and objects of scalars."""
        scalar = union(_string({}), decimal_range(None, None), "true", "false", "null")
        member = concat(_string({}), COLON, scalar)
        return union(scalar, _items("[", [], scalar, 0, None, "]"), _items("{", [], member, 0, None, "}"))

    def _of_type(self, name: str, schema: Mapping[str, Any], depths: Mapping[str, int]) -> Expr:
        match name:
            case "object":
                return self._object(schema, depths)
            case "array":
                return self._array(schema, depths)
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

    def _enum(self, schema: Mapping[str, Any]) -> Expr:
        """Match the values that a schema lists, without those that another keyword forbids."""
        values = [schema["const"]] if "const" in schema else schema["enum"]
        validator = self._validator({word: value for word, value in schema.items() if word in VALUE_KEYWORDS})
        return union(*(json.dumps(value, ensure_ascii=False) for value in values if validator.is_valid(value)))

    def _object(self, schema: Mapping[str, Any], depths: Mapping[str, int]) -> Expr:
        properties: dict[str, Schema] = dict(schema.get("properties", {}))
        required = schema.get("required", [])
        additional = schema.get("additionalProperties", True)
        for name in required:
            properties.setdefault(name, additional)
        if not properties:
            return self._map(schema, additional, depths)
        members = [
            (concat(_quote(name), COLON, self.parse(value, depths)), name in required)
            for name, value in properties.items()
        ]
        return concat("{", OPTIONAL_SPACE, _members(members), OPTIONAL_SPACE, "}")

    def _map(self, schema: Mapping[str, Any], additional: Schema, depths: Mapping[str, int]) -> Expr:
        """Match an object without named properties."""
        names = schema.get("propertyNames", {})
        name = self.parse({"type": "string", **names} if isinstance(names, dict) else names, depths)
        members = [
            concat(_string({"pattern": pattern}), COLON, self.parse(value, depths))
            for pattern, value in schema.get("patternProperties", {}).items()
        ]
        if not (members and additional is True):
            members.append(concat(name, COLON, self.parse(additional, depths)))
        return _items("{", [], union(*members), schema.get("minProperties", 0), schema.get("maxProperties"), "}")

    def _array(self, schema: Mapping[str, Any], depths: Mapping[str, int]) -> Expr:
        prefix, rest = schema.get("prefixItems", []), schema.get("items")
        if isinstance(rest, list):  # in drafts before 2020
            prefix, rest = rest, schema.get("additionalItems")
        min_items, max_items = schema.get("minItems", 0), schema.get("maxItems")
        if prefix and rest is None and min_items <= len(prefix):  # more items would be allowed, but are not wanted
            rest = False
        items = [self.parse(item, depths) for item in prefix]
        return _items("[", items, self.parse(True if rest is None else rest, depths), min_items, max_items, "]")

    def _resolve(self, reference: str) -> Schema:
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


def _without(schema: Mapping[str, Any], keyword: str) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name != keyword}


def _members(members: list[tuple[Expr, bool]]) -> Expr:
    """Match members of an object in their order, each of them required or not, with commas between those there are."""
    following, object_from_here = EMPTY_TEXT, EMPTY_TEXT
    for member, is_required in reversed(members):
        with_comma = concat(COMMA, member)
        starting_here = concat(member, following)
        object_from_here = starting_here if is_required else union(starting_here, object_from_here)
        following = concat(with_comma if is_required else optional(with_comma), following)
    return object_from_here


def _items(opening: str, prefix: list[Expr], rest: Expr, min_items: int, max_items: int | None, closing: str) -> Expr:
    """Match items between brackets, with commas between them: those of the prefix, then any number of the rest."""
    if prefix:
        more = None if max_items is None else max(0, max_items - len(prefix))
        items: Expr = repeat(concat(COMMA, rest), max(0, min_items - len(prefix)), more)
        for index in range(len(prefix) - 1, 0, -1):
            items = concat(COMMA, prefix[index], items)
            items = items if min_items > index else optional(items)
        items = concat(prefix[0], items)
    elif max_items == 0:
        items = NEVER
    else:
        more = None if max_items is None else max_items - 1
        items = concat(rest, repeat(concat(COMMA, rest), max(0, min_items - 1), more))
    if min_items == 0:
        items = union(EMPTY_TEXT, items)
    return concat(opening, OPTIONAL_SPACE, items, OPTIONAL_SPACE, closing)


def _string(schema: Mapping[str, Any]) -> Expr:
    min_length, max_length = schema.get("minLength", 0), schema.get("maxLength")
    expr = _try_parse_regex(pattern) if isinstance(pattern := schema.get("pattern"), str) else None
    if expr is not None and not (expr == EMPTY_TEXT and min_length):  # else it only says what must not be
        return concat('"', _with_length(map_chars(expr, _json_escape), min_length, max_length), '"')
    if (name := schema.get("format")) in FORMATS:
        return concat('"', map_chars(parse_regex(FORMATS[name]), _json_escape), '"')
    is_counted = max_length is not None and max_length <= MAX_COUNTED_CHARS
    chars = repeat(STRING_CHAR, min(min_length, MAX_COUNTED_CHARS), max_length if is_counted else None)
    return concat('"', chars, '"')


def _try_parse_regex(pattern: str) -> Expr | None:
    try:
        return parse_regex(pattern)
    except Fatal:
        return None


def _with_length(expr: Expr, min_length: int, max_length: int | None) -> Expr:
    """Bound the length of a repeated character; other expressions stay as they are."""
    match expr:
        case Repeat(CharSet() as part, min_count, max_count):
            bounds = [bound for bound in (max_count, max_length) if bound is not None]
            return repeat(part, max(min_count, min_length), min(bounds, default=None))
        case _:
            return expr


def _json_escape(chars: CharSet) -> Expr:
    """Write characters as in a JSON string, without those that need an escape where there are others."""
    if unescaped := chars & UNESCAPED_CHARS:
        return unescaped
    points = [point for first, last in chars.ranges for point in range(first, last + 1)]
    surrogates = range(SURROGATES[0], SURROGATES[1] + 1)
    return union(*(json.dumps(chr(point))[1:-1] for point in points if point not in surrogates))


def _quote(name: str) -> Expr:
    return literal(json.dumps(name, ensure_ascii=False))
