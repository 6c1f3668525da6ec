"""JSON schemas of models as forms in Prefect's UI: an input per option, and plain inputs for optional fields."""

from typing import Any

from pydantic import BaseModel, GetJsonSchemaHandler, create_model
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from llms.config.strict import StrictModel

SIMPLE_TYPES = ("integer", "number", "string")
"""Types whose input in a form may be left empty."""


def block_schema(core: CoreSchema, options: type[StrictModel], handler: GetJsonSchemaHandler) -> JsonSchemaValue:
    """Return the JSON schema of a block whose `generation_kwargs` are these options."""
    schema = handler(core)
    fields = handler.resolve_ref_schema(schema)["properties"]
    try:
        group = handler.resolve_ref_schema(handler(options.__pydantic_core_schema__))
    except PydanticInvalidForJsonSchema:  # a user's own option of a type without a schema
        group = {}
    inputs = {name: flatten_optional(each) for name, each in group.get("properties", {}).items()}
    fields["generation_kwargs"] |= {"properties": inputs}
    for name, each in fields.items():
        fields[name] = flatten_optional(each)
    return schema


def form_fields(model: type[BaseModel], *without: str) -> dict[str, JsonSchemaValue]:
    """Return the JSON schemas of a model's fields as inputs of a form, except those in `without`."""
    fields: dict[str, Any] = {
        name: (field.annotation, field) for name, field in model.model_fields.items() if name not in without
    }
    schema = create_model(model.__name__, **fields).model_json_schema()
    return {name: flatten_optional(field) for name, field in schema["properties"].items()}


def flatten_optional(field: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of an optional field without `null`: Prefect's UI would have the user choose a type."""
    choices = [each for each in field.get("anyOf", []) if each != {"type": "null"}]
    if len(choices) != 1 or choices[0].get("type") not in SIMPLE_TYPES or field.get("default") is not None:
        return field
    return choices[0] | {key: value for key, value in field.items() if key not in ("anyOf", "default")}
