"""The shapes a text can be held to: one type for every model, stored as plain data."""

import json
import re
from typing import Annotated, Any

from jsonschema import SchemaError
from jsonschema.validators import validator_for
from pydantic import BaseModel, BeforeValidator

from llms.errors import Rejected
from llms.typing import ChatType, StructuredOutputType


def _normalized(value: Any) -> Any:
    """Infer a missing format, turn a class or a string into the schema it stands for, and check it."""
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
        schema = _parsed(schema, must=value.get("format") == "json")
    kind = value.get("format") or ("json" if isinstance(schema, dict) else "regex")
    if kind == "json" and isinstance(schema, dict):
        try:
            validator_for(schema).check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"the `schema` is not a JSON schema: {error.message}") from None
    return {**value, "format": kind, "schema": schema}


def _parsed(text: str, must: bool) -> Any:
    """The JSON object a string holds; the string itself, a pattern, when it holds none and need not."""
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError as error:
        if must:
            raise ValueError(f"the `schema` is not JSON: {error}") from None
        return text
    return parsed if isinstance(parsed, dict) else text


StructuredOutput = Annotated[StructuredOutputType, BeforeValidator(_normalized)]
"""A `StructuredOutputType` however it was written."""


def canonical_schema(structure: Any) -> str:
    """A structure as text: two classes may bear one name, so a class is spelled as the schema it stands for."""

    def plain(part: Any) -> Any:
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part.model_json_schema()
        return part.pattern if isinstance(part, re.Pattern) else f"{part}"

    try:
        return json.dumps(structure, default=plain)
    except Exception as error:  # of pydantic, whose classes may hold what no schema can say
        what = f"{error}".partition("\n")[0]
        raise Rejected(f"`structured_output`: {what}", attempts=0) from None


def with_schema_prompt(chat: ChatType, schema: dict[str, Any]) -> ChatType:
    """The chat with a JSON schema said to the model, for an API that cannot hold it to one."""
    words = (
        "Answer with one JSON value and nothing else: no explanation, no code fence. "
        f"It must be valid against this JSON schema:\n{json.dumps(schema, ensure_ascii=False)}"
    )
    match chat:
        case [{"role": "system", "content": str(content)}, *rest]:
            return [{"role": "system", "content": f"{content}\n\n{words}"}, *rest]
        case _:
            return [{"role": "system", "content": words}, *chat]
