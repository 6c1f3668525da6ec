"""Models as flow parameters: chosen in a form, named in YAML or a shell, or passed as an object."""

import json
import re
import shlex
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any

from prefect.blocks.core import Block
from prefect.utilities.dispatch import get_registry_for_type
from pydantic import (
    BeforeValidator,
    ConfigDict,
    GetJsonSchemaHandler,
    SerializeAsAny,
    ValidationError,
    create_model,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from llms.base import LLM
from llms.config.redaction import is_secret_name
from llms.config.strict import did_you_mean, format_validation_error, stale_block_message
from llms.errors import Fatal
from llms.remote import RemoteLLM

NAME_FORMATS = 'a model is named like `"openai-llm/prod"` or `"OpenAILLM model=gpt-5"`'


def model_classes() -> dict[str, type[LLM]]:
    """Return the classes of all models, shipped and user-defined, by name."""
    registry = get_registry_for_type(Block) or {}
    return {cls.__name__: cls for cls in registry.values() if issubclass(cls, LLM)}


def resolve_model(value: Any) -> LLM:
    """Return the model that a value names.

    Args:
        value: A model; `"openai-llm/prod"`, a saved block; `"OpenAILLM model=gpt-5 base_url=…"`, a class and its
            fields; or a dictionary of fields with the class under `block_type_slug`, or a `$ref` to a saved block.

    Raises:
        ValueError: If there is no such block, class or field.
    """
    match value:
        case LLM():
            return value
        case str() if value.lstrip().startswith("{"):
            return resolve_model(_parse_json(value, "the model"))
        case str() if "/" in value.split(" ")[0]:
            return _load_saved(value)
        case str() if value.strip():
            name, *fields = _split_words(value)
            return _build(name, dict(_parse_field(each) for each in fields))
        case {"$ref": {"block_document_slug": str(slug)}} | {"$ref": str(slug)}:
            return _load_saved(slug)
        case {"$ref": {"block_document_id": identity}}:
            return _load_saved({"block_document_id": identity})
        case {"block_type_slug": str(slug)}:
            return _build(slug, {name: field for name, field in value.items() if name != "block_type_slug"})
        case str():
            raise ValueError(f"no model is named: {NAME_FORMATS}")
        case _:
            raise ValueError(f"{NAME_FORMATS}, or is one; this is a `{type(value).__name__}` without `block_type_slug`")


def _load_saved(slug: str | dict[str, Any]) -> LLM:
    name = slug if isinstance(slug, str) else str(slug["block_document_id"])
    load: Any = Block.load if isinstance(slug, str) else Block.load_from_ref
    try:
        block = load(slug, _sync=True)  # without `_sync` a coroutine in a running loop, where async flows validate
    except ValueError as error:
        raise ValueError(
            f"there is no saved block `{name}`: save one in the UI, or with `OpenAILLM(model=…).save(…)` ({error})"
        ) from None
    except RuntimeError as error:
        if message := stale_block_message(name, error):
            raise ValueError(message) from None
        raise
    if not isinstance(block, LLM):
        raise ValueError(f"the block `{name}` is a `{type(block).__name__}`, not a model")
    return block


def _build(name: str, fields: Mapping[str, Any]) -> LLM:
    known = model_classes()
    by_slug = {cls.get_block_type_slug(): cls for cls in known.values()}
    cls = known.get(name) or by_slug.get(name)
    if cls is None:
        raise ValueError(f"there is no model `{name}`: {did_you_mean(name, [*known, *by_slug])}")
    if secret := [each for each in fields if each in secret_fields(cls)]:
        raise ValueError(plaintext_secret_message(secret[0], cls))
    try:
        return cls(**fields)
    except (ValidationError, Fatal) as error:
        raise ValueError(format_validation_error(error) if isinstance(error, ValidationError) else str(error)) from None


def secret_fields(cls: type[LLM]) -> set[str]:
    """Return the names of a model's fields that hold a secret."""
    return {name for name, field in cls.model_fields.items() if "Secret" in str(field.annotation)}


def forbid_secrets(within: int = 0) -> JsonSchemaValue:
    """Return a JSON schema of objects without secrets, nor with any in nested objects, so many levels deep.

    Prefect stores the parameters of a run in plain text, and validates them against the schema first.
    """
    names = {"propertyNames": {"not": {"enum": _secret_names()}}}
    return names | ({"additionalProperties": forbid_secrets(within - 1)} if within else {})


def find_secret(value: Any) -> str | None:
    """Return the name of a secret that is set in plain data: a field in a dictionary, or anything in a model's text."""
    match value:
        case str() if "block_type_slug" in value or re.match(r"\s*\S*LM\s", value):
            if found := re.search(_secret_pattern(), value):
                return found[2]
            members = (each[1] for each in re.finditer(r"([\w-]+)[\"'\\]+\s*:", value))  # of JSON in it
            return next(filter(is_secret_name, members), None)
        case dict():
            return next((name for name in value if name in _secret_names()), None) or find_secret(list(value.values()))
        case list() | tuple():
            return next(filter(None, map(find_secret, value)), None)
        case _:
            return None


def plaintext_secret_message(secret: str, of: type[LLM] | None = None) -> str:
    """Return the error for a secret in plain text, with the place where it belongs."""
    variable = of.api_key_env() if of and issubclass(of, RemoteLLM) else None
    variable = f"`{variable}`" if variable else "the provider's variable"
    return f"`{secret}` does not belong in a parameter, which Prefect keeps in clear: set {variable}, or save a block."


def _secret_pattern() -> str:
    """Return a regular expression that matches a text which sets a secret field."""
    return rf"""(^|\W)({"|".join(_secret_names())})["'\\]*\s*[=:]"""


def _secret_names() -> list[str]:
    return sorted(set[str]().union(*map(secret_fields, model_classes().values())))


def _parse_field(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"`{text}` is not a field: a model's fields are written `name=value`")
    return name, _parse_json(value, f"`{name}`") if value.startswith(("{", "[")) else value


def _parse_json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{what} is not JSON: {error}; {NAME_FORMATS}") from None


def _split_words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{error} in what names the model: {NAME_FORMATS}") from None


class ModelPicker:
    """The JSON schema of a model parameter: a name, or one tab per class with a picker of saved blocks and *Add*.

    Prefect validates values against it. It has the names of a model's fields, without those of secrets; their values
    are validated by `resolve_model`, which converts texts and explains errors. A name with fields, such as
    `"OpenAILLM model=gpt-5"`, must not set a secret either.
    """

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        shipped = [cls for cls in model_classes().values() if cls.__module__.startswith("llms.")]
        shipped.sort(key=lambda cls: cls.__module__)
        union = handler(core_schema.union_schema(list(map(_block_tab, shipped))))  # it refers to what has a `ref`
        name = {"title": "By name", "type": "string", "not": {"pattern": _secret_pattern()}}
        return {"title": "Model", "anyOf": [name, *union["anyOf"]]}


@cache
def _block_tab(cls: type[LLM]) -> CoreSchema:
    """Return the schema of one class as Prefect's UI expects a block, under its own name in the definitions."""
    slug, fields = cls.get_block_type_slug(), cls.model_fields.keys() - secret_fields(cls)
    form = {
        "block_type_slug": slug,
        "properties": {"block_type_slug": {"enum": [slug, cls.__name__]}} | {name: {} for name in sorted(fields)},
        "required": ["block_type_slug"],
    }
    tab = create_model(cls.__name__, __config__=ConfigDict(extra="forbid", json_schema_extra=form))
    return {**tab.__pydantic_core_schema__, "ref": f"{cls.__module__}.{cls.__qualname__}:{id(cls)}"}  # type: ignore


AnyLLM = Annotated[SerializeAsAny[LLM], BeforeValidator(resolve_model), ModelPicker()]
"""A flow parameter or field that takes any model: see `resolve_model` for the ways to name one."""
