"""Merging of JSON schemas: the meaning of `allOf`, and of keywords beside a `$ref`."""

from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any] | bool


def merge_schemas(one: Schema, other: Schema) -> Schema:
    """Return a schema that asks for what both ask for, as far as they can be merged."""
    if one is True or one == {}:
        return other
    if other is True or other == {}:
        return one
    if one is False or other is False:
        return False
    merged = dict(one)
    for keyword, value in other.items():
        if keyword not in merged:
            merged[keyword] = value
        elif merged[keyword] != value:
            merged[keyword] = _merge_keyword(keyword, merged[keyword], value)
    return merged


def _merge_keyword(keyword: str, one: Any, other: Any) -> Any:
    match keyword:
        case "properties" | "patternProperties" | "$defs" | "definitions":
            common = {name: merge_schemas(one[name], part) for name, part in other.items() if name in one}
            return {**one, **other, **common}
        case "required" | "allOf":
            return [*one, *(each for each in other if each not in one)]
        case "enum":
            return [each for each in one if each in other]
        case "anyOf" | "oneOf":  # one of these and one of those
            return [merge_schemas(first, second) for first in one for second in other]
        case "minimum" | "exclusiveMinimum" | "minLength" | "minItems" | "minProperties":
            return max(one, other)
        case "maximum" | "exclusiveMaximum" | "maxLength" | "maxItems" | "maxProperties":
            return min(one, other)
        case "items" | "additionalProperties" | "propertyNames" if not isinstance(one, list):
            return merge_schemas(one, other)
        case "type":
            types = [[each] if isinstance(each, str) else each for each in (one, other)]
            common = [each for each in types[0] if each in types[1]]
            return common or (["integer"] if {"integer", "number"} <= {*types[0], *types[1]} else [])
        case _:
            return other
