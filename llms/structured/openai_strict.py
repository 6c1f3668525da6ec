"""JSON schemas in the subset of OpenAI's strict mode: every property required, no additional ones."""

from typing import Any

UNSUPPORTED_KEYWORDS = {
    "allOf",
    "dependentRequired",
    "dependentSchemas",
    "if",
    "not",
    "oneOf",
    "patternProperties",
    "prefixItems",
}

DEFINITION_KEYWORDS = ("$defs", "definitions")

SCHEMA_MAP_KEYWORDS = ("properties", *DEFINITION_KEYWORDS)
"""Keywords whose members are names, each with a schema."""

VALUE_KEYWORDS = ("const", "default", "enum", "examples")
"""Keywords that hold values, not schemas."""

ANNOTATION_KEYWORDS = {
    "$comment",
    "default",
    "deprecated",
    "description",
    "examples",
    "readOnly",
    "title",
    "writeOnly",
    *DEFINITION_KEYWORDS,
}
"""Keywords beside a `$ref` that do not narrow what it allows."""


def strict_schema(schema: dict[str, Any]) -> dict[str, Any] | None:
    """Narrow a schema to strict mode: what is valid against the result is valid against the schema.

    Optional properties become required.

    Returns:
        `None` where there is no such form: of open objects (a dictionary of anything), and of a schema that would then
        contain itself without end.
    """
    try:
        narrowed = _narrow(schema, _reference_targets(schema), ("#",))
    except ValueError:
        return None
    is_object = narrowed.get("type") == "object"
    return narrowed if is_object and not _is_infinite(narrowed, _reference_targets(narrowed), ()) else None


def _reference_targets(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schemas of a document that a `$ref` can name."""
    definitions = {
        f"#/{keyword}/{name}": each for keyword in DEFINITION_KEYWORDS for name, each in schema.get(keyword, {}).items()
    }
    return {"#": schema, **definitions}


def _narrow(schema: Any, targets: dict[str, Any], enclosing: tuple[str, ...]) -> Any:
    """Return a schema in strict mode's form.

    Args:
        targets: Schemas by reference.
        enclosing: References that are being replaced by their schemas.
    """
    if isinstance(schema, list):
        return [_narrow(each, targets, enclosing) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if unsupported := UNSUPPORTED_KEYWORDS & schema.keys():
        raise ValueError(f"strict mode has no `{min(unsupported)}`")
    if "$ref" in schema and len(schema) > 1:
        return _inline_reference(schema, targets, enclosing)
    narrowed: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in SCHEMA_MAP_KEYWORDS:
            narrowed[keyword] = {name: _narrow(each, targets, enclosing) for name, each in value.items()}
        elif keyword != "default":
            narrowed[keyword] = value if keyword in VALUE_KEYWORDS else _narrow(value, targets, enclosing)
    if "object" in (schema.get("type") or ()) or "properties" in schema:
        if schema.get("additionalProperties", False) or not schema.get("properties"):
            raise ValueError("strict mode has no open objects")
        narrowed |= {"additionalProperties": False, "required": list(schema["properties"])}
    return narrowed


def _inline_reference(schema: dict[str, Any], targets: dict[str, Any], enclosing: tuple[str, ...]) -> Any:
    """Replace a reference that has other keywords, which strict mode refuses, by its schema.

    In a cycle it stays a reference without them.
    """
    reference = schema["$ref"]
    others = {keyword: value for keyword, value in schema.items() if keyword != "$ref"}
    if reference not in targets or others.keys() - ANNOTATION_KEYWORDS:
        raise ValueError("strict mode has nothing beside a `$ref`")
    if reference in enclosing:
        return {"$ref": reference}
    return _narrow(targets[reference] | others, targets, (*enclosing, reference))


def _is_infinite(schema: Any, targets: dict[str, Any], enclosing: tuple[str, ...]) -> bool:
    """Return whether every valid value would contain another one."""
    if not isinstance(schema, dict):
        return False
    if reference := schema.get("$ref"):
        return reference in enclosing or _is_infinite(targets.get(reference), targets, (*enclosing, reference))
    if options := schema.get("anyOf"):
        return all(_is_infinite(each, targets, enclosing) for each in options)
    return any(_is_infinite(each, targets, enclosing) for each in schema.get("properties", {}).values())
