"""Two JSON schemas for one value, as one schema: what `allOf`, and words beside a `$ref`, come to."""

from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any] | bool


def merge_schemas(one: Schema, other: Schema) -> Schema:
    """A schema that asks for what both ask for, as far as one can be put into the other."""
    if one is True or one == {}:
        return other
    if other is True or other == {}:
        return one
    if one is False or other is False:
        return False
    both = dict(one)
    for word, value in other.items():
        if word not in both:
            both[word] = value
        elif both[word] != value:
            both[word] = _both(word, both[word], value)
    return both


def _both(word: str, one: Any, other: Any) -> Any:
    match word:
        case "properties" | "patternProperties" | "$defs" | "definitions":
            return {
                **one,
                **{name: merge_schemas(one[name], part) if name in one else part for name, part in other.items()},
            }
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
            kinds = [[each] if isinstance(each, str) else each for each in (one, other)]
            common = [each for each in kinds[0] if each in kinds[1]]
            return common or (["integer"] if {"integer", "number"} <= {*kinds[0], *kinds[1]} else [])
        case _:
            return other
