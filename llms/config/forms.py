"""A model as a form in Prefect's UI: its options field by field, and nothing to click where nothing is said."""

from typing import Any

from pydantic import BaseModel, GetJsonSchemaHandler, create_model
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from llms.config.strict import StrictModel

SIMPLE_TYPES = ("integer", "number", "string")
"""Types whose input is empty when there is no value."""


def block_schema(core: CoreSchema, options: type[StrictModel], handler: GetJsonSchemaHandler) -> JsonSchemaValue:
    """The JSON schema of a block whose `generation_kwargs` are these options."""
    schema = handler(core)
    fields = handler.resolve_ref_schema(schema)["properties"]
    try:
        group = handler.resolve_ref_schema(handler(options.__pydantic_core_schema__))
    except PydanticInvalidForJsonSchema:  # a user's own, of a type that has no form: it stays a dictionary
        group = {}
    options_of = group.get("properties", {})
    fields["generation_kwargs"] |= {"properties": {name: flatten_optional(each) for name, each in options_of.items()}}
    for name, each in fields.items():
        fields[name] = flatten_optional(each)
    return schema


def form_fields(model: type[BaseModel], *without: str) -> dict[str, JsonSchemaValue]:
    """The fields of a model as inputs of a form, but for some."""
    fields: dict[str, Any] = {
        name: (field.annotation, field) for name, field in model.model_fields.items() if name not in without
    }
    schema = create_model(model.__name__, **fields).model_json_schema()
    return {name: flatten_optional(field) for name, field in schema["properties"].items()}


def flatten_optional(field: dict[str, Any]) -> dict[str, Any]:
    """A field that may be empty as an input that may: Prefect's UI would ask for a click on the type first."""
    choices = [each for each in field.get("anyOf", []) if each != {"type": "null"}]
    if len(choices) != 1 or choices[0].get("type") not in SIMPLE_TYPES or field.get("default") is not None:
        return field
    return choices[0] | {key: value for key, value in field.items() if key not in ("anyOf", "default")}
