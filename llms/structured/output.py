"""The type of `structured_output`: a JSON schema or a pattern however it is written, stored as plain data."""

import json
import re
from typing import Annotated, Any

from jsonschema import SchemaError
from jsonschema.validators import validator_for
from pydantic import BaseModel, BeforeValidator

from llms.errors import Rejected
from llms.typing import ChatType, StructuredOutputType


def _normalize(value: Any) -> Any:
    """Replace a class or a text by its schema, infer a missing format, and check the schema."""
    if isinstance(value, type) and issubclass(value, BaseModel):
        value = {"schema": value}
    if not isinstance(value, dict) or "schema" not in value:
        raise ValueError(
            '`structured_output` is `{"format": "json" or "regex", "schema": …}`; the `schema` is missing.'
        )
    schema = value["schema"]
    if isinstance(schema, re.Pattern):
        schema = schema.pattern
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        schema = schema.model_json_schema()
    if isinstance(schema, str) and value.get("format") != "regex":
        schema = _parse(schema, must_be_json=value.get("format") == "json")
    kind = value.get("format") or ("json" if isinstance(schema, dict) else "regex")
    if kind == "json" and isinstance(schema, dict):
        try:
            validator_for(schema).check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"the `schema` is not a JSON schema: {error.message}") from None
    return {**value, "format": kind, "schema": schema}


def _parse(text: str, must_be_json: bool) -> Any:
    """Parse a JSON object; a text that is none is a pattern, and stays as it is."""
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError as error:
        if must_be_json:
            raise ValueError(f"the `schema` is not JSON: {error}") from None
        return text
    return parsed if isinstance(parsed, dict) else text


StructuredOutput = Annotated[StructuredOutputType, BeforeValidator(_normalize)]
"""A `StructuredOutputType` however it is written."""


def canonical_schema(structure: Any) -> str:
    """Serialize a structure: a class as its schema, for two classes may have one name.

    Raises:
        Rejected: If a class has no schema.
    """

    def serialize(part: Any) -> Any:
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part.model_json_schema()
        return part.pattern if isinstance(part, re.Pattern) else f"{part}"

    try:
        return json.dumps(structure, default=serialize)
    except Exception as error:  # of pydantic, whose classes may have fields without a schema
        why = f"{error}".partition("\n")[0]
        raise Rejected(f"`structured_output`: {why}", attempts=0) from None


def with_schema_prompt(chat: ChatType, schema: dict[str, Any]) -> ChatType:
    """Add a JSON schema to the chat's system prompt, for an API that cannot constrain its answers."""
    instruction = (
        "Answer with one JSON value and nothing else: no explanation, no code fence. "
        f"It must be valid against this JSON schema:\n{json.dumps(schema, ensure_ascii=False)}"
    )
    match chat:
        case [{"role": "system", "content": str(content)}, *rest]:
            return [{"role": "system", "content": f"{content}\n\n{instruction}"}, *rest]
        case _:
            return [{"role": "system", "content": instruction}, *chat]
