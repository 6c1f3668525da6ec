"""A JSON schema as OpenAI's strict mode wants it: every property required, none besides."""

from typing import Any

CANNOT = {"allOf", "not", "if", "dependentRequired", "dependentSchemas", "oneOf", "patternProperties", "prefixItems"}
"""Keywords that strict mode refuses."""

MAPS = ("properties", "$defs", "definitions")
"""Keywords whose members are names, each with a schema."""

VALUES = ("const", "default", "enum", "examples")
"""Keywords that hold values, not schemas."""


def strict(schema: dict[str, Any]) -> dict[str, Any] | None:
    """A schema for strict mode whose texts are all valid against the given one; `None` when there is none such.

    What was optional is required: that asks for more, so what comes is valid still. A schema of open objects (a
    dictionary of anything) has no such form, nor has one that would then contain itself without end.
    """
    try:
        narrowed = _narrowed(schema)
    except ValueError:
        return None
    defs = {f"#/{name}/{key}": each for name in MAPS[1:] for key, each in narrowed.get(name, {}).items()}
    return None if narrowed.get("type") != "object" or _endless(narrowed, {"#": narrowed} | defs, ()) else narrowed


def _narrowed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_narrowed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if unsupported := CANNOT & schema.keys():
        raise ValueError(f"strict mode has no `{min(unsupported)}`")
    narrowed: dict[str, Any] = {}
    for key, value in schema.items():
        if key in MAPS:
            narrowed[key] = {name: _narrowed(each) for name, each in value.items()}
        elif key != "default":
            narrowed[key] = value if key in VALUES else _narrowed(value)
    if "object" in (schema.get("type") or ()) or "properties" in schema:
        if schema.get("additionalProperties", False) or not schema.get("properties"):
            raise ValueError("strict mode has no open objects")
        narrowed |= {"additionalProperties": False, "required": list(schema["properties"])}
    return narrowed


def _endless(schema: Any, named: dict[str, Any], within: tuple[str, ...]) -> bool:
    """Whether every text of this schema would have to contain another of it."""
    if not isinstance(schema, dict):
        return False
    if reference := schema.get("$ref"):
        return reference in within or _endless(named.get(reference), named, (*within, reference))
    if choices := schema.get("anyOf"):
        return all(_endless(each, named, within) for each in choices)
    return any(_endless(each, named, within) for each in schema.get("properties", {}).values())
