"""A JSON schema as OpenAI's strict mode wants it: every property required, none besides."""

from typing import Any

CANNOT = {"allOf", "not", "if", "dependentRequired", "dependentSchemas", "oneOf", "patternProperties", "prefixItems"}
"""Keywords that strict mode refuses."""

MAPS = ("properties", "$defs", "definitions")
"""Keywords whose members are names, each with a schema."""

VALUES = ("const", "default", "enum", "examples")
"""Keywords that hold values, not schemas."""

BESIDE = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", *MAPS[1:]}
"""Keywords beside a `$ref` that take nothing away from what it allows."""


def strict_schema(schema: dict[str, Any]) -> dict[str, Any] | None:
    """A schema for strict mode whose texts are all valid against the given one; `None` when there is none such.

    What was optional is required: that asks for more, so what comes is valid still. A schema of open objects (a
    dictionary of anything) has no such form, nor has one that would then contain itself without end.
    """
    try:
        narrowed = _narrowed(schema, _named(schema), ("#",))
    except ValueError:
        return None
    return None if narrowed.get("type") != "object" or _endless(narrowed, _named(narrowed), ()) else narrowed


def _named(schema: dict[str, Any]) -> dict[str, Any]:
    """What a schema can refer to."""
    return {"#": schema} | {f"#/{name}/{key}": each for name in MAPS[1:] for key, each in schema.get(name, {}).items()}


def _narrowed(schema: Any, named: dict[str, Any], within: tuple[str, ...]) -> Any:
    """The schema in strict mode's form.

    Args:
        named: What there is to refer to.
        within: The references it stands in the place of.
    """
    if isinstance(schema, list):
        return [_narrowed(each, named, within) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if unsupported := CANNOT & schema.keys():
        raise ValueError(f"strict mode has no `{min(unsupported)}`")
    if "$ref" in schema and len(schema) > 1:
        return _alone(schema, named, within)
    narrowed: dict[str, Any] = {}
    for key, value in schema.items():
        if key in MAPS:
            narrowed[key] = {name: _narrowed(each, named, within) for name, each in value.items()}
        elif key != "default":
            narrowed[key] = value if key in VALUES else _narrowed(value, named, within)
    if "object" in (schema.get("type") or ()) or "properties" in schema:
        if schema.get("additionalProperties", False) or not schema.get("properties"):
            raise ValueError("strict mode has no open objects")
        narrowed |= {"additionalProperties": False, "required": list(schema["properties"])}
    return narrowed


def _alone(schema: dict[str, Any], named: dict[str, Any], within: tuple[str, ...]) -> Any:
    """A reference with more beside it, which strict mode refuses: what it refers to, in its place.

    In a circle it stays a reference, and what is said beside it is lost.
    """
    reference = schema["$ref"]
    beside = {key: value for key, value in schema.items() if key != "$ref"}
    if reference not in named or beside.keys() - BESIDE:
        raise ValueError("strict mode has nothing beside a `$ref`")
    if reference in within:
        return {"$ref": reference}
    return _narrowed(named[reference] | beside, named, (*within, reference))


def _endless(schema: Any, named: dict[str, Any], within: tuple[str, ...]) -> bool:
    """Whether every text of this schema would have to contain another of it."""
    if not isinstance(schema, dict):
        return False
    if reference := schema.get("$ref"):
        return reference in within or _endless(named.get(reference), named, (*within, reference))
    if choices := schema.get("anyOf"):
        return all(_endless(each, named, within) for each in choices)
    return any(_endless(each, named, within) for each in schema.get("properties", {}).values())
