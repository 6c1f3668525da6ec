"""Steps and models as plain data: their class and non-default fields, without secrets."""

import inspect
from collections.abc import Collection, Mapping
from datetime import date
from enum import Enum
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel, Secret, SecretBytes, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticSerializationError, to_jsonable_python

from flows.errors import ConfigurationError
from llms import LLM
from llms.any_llm import model_classes, resolve_model, secret_fields
from llms.config.redaction import MIN_SECRET_LENGTH, is_secret_name, redact
from tasks import Filter, LoadDataFromDicts, Step

MAX_INLINE_ROWS = 1_000
"""Rows of `LoadDataFromDicts` that are serialized, at most; more belong in a file of their own."""

_OMIT = object()


class Serializer:
    """Converts steps and models to plain data.

    Attributes:
        secrets: The values that were left out, so that a caller can search the result for them.
    """

    def __init__(self) -> None:
        self.secrets: list[str] = []

    def serialize_step(self, step: Step) -> dict[str, Any]:
        """Return the class and the fields of a step, without its name.

        Raises:
            ConfigurationError: If a field cannot be serialized; the message names it and says what to do.
        """
        if isinstance(step, LoadDataFromDicts) and len(step.data) > MAX_INLINE_ROWS:
            raise ConfigurationError(
                f"`{step.name}.data` has {len(step.data):,} rows, too many for a file that people read: put them into "
                'one of their own, and load it with `LoadDataFromFiles(data_files="rows.jsonl")`.'
            )
        names = [name for name, cls in step_classes().items() if cls is type(step)]
        if not names:
            raise _stale_class_error(step.name, type(step))
        return {"class": min(names, key=len), **self._serialize_fields(step, step.name)}

    def _serialize_model(self, llm: LLM, path: str) -> Any:
        """Return a model as its class and fields; one of a saved block, as that block and the fields changed since."""
        name, cls = getattr(llm, "_block_document_name", None), type(llm)
        if name and not getattr(llm, "_is_anonymous", False):
            slug = f"{cls.get_block_type_slug()}/{name}"
            try:
                saved = resolve_model(slug)
            except ValueError as error:
                raise ConfigurationError(f"`{path}`: {error}") from None
            for secret in secret_fields(cls):
                self._serialize(getattr(llm, secret), path)
            changed = {name for name in cls.model_fields if getattr(llm, name) != getattr(saved, name, None)}
            fields = self._serialize_fields(llm, path, changed - secret_fields(cls))
            return {"block": slug, **fields} if fields else slug
        if model_classes().get(cls.__name__) is not cls:
            raise _stale_class_error(path, cls)
        return {"class": cls.__name__, **self._serialize_fields(llm, path)}

    def _serialize_fields(self, owner: BaseModel, path: str, only: Collection[str] | None = None) -> dict[str, Any]:
        """Return the non-default fields, or `only` the named ones."""
        serialized: dict[str, Any] = {}
        for name, field in type(owner).model_fields.items():
            value, field_path = getattr(owner, name), f"{path}.{name}"
            is_selected = not _is_default(value, field) if only is None else name in only
            if not is_selected or (isinstance(owner, Step) and name == "name"):
                continue
            if is_secret_name(name) and isinstance(value, str):
                raise ConfigurationError(
                    f"`{field_path}` is a secret by its name: give it the type `SecretStr`, to leave it out."
                )
            if callable(value) and isinstance(owner, Filter):
                raise ConfigurationError(
                    f"`{field_path}` is a function, which no file can hold: let a column decide, `Filter(column=…)`, "
                    "or make a step of the function with `@step`."
                )
            plain = self._serialize(value, field_path, scan_secrets=not isinstance(owner, LoadDataFromDicts))
            if plain is not _OMIT:
                serialized[name] = plain
            elif field.is_required():
                raise ConfigurationError(
                    f"`{field_path}` is a secret, and has to be given: let the class read it from a variable."
                )
        return serialized

    def _serialize(self, value: Any, path: str, scan_secrets: bool = True) -> Any:
        """Return a value as YAML has it; `scan_secrets` is off for rows of a dataset, which may hold anything."""
        match value:
            case None | bool() | bytes() | date():
                return value
            case Secret() | SecretStr() | SecretBytes():
                secret = value.get_secret_value()
                self.secrets += [secret] if isinstance(secret, str) and len(secret) >= MIN_SECRET_LENGTH else []
                return _OMIT
            case Enum():
                return self._serialize(value.value, path, scan_secrets)
            case LLM():
                return self._serialize_model(value, path)
            case BaseModel():
                return self._serialize_fields(value, path)
            case str() | PurePath():
                if scan_secrets and redact(str(value), ()) != str(value):
                    raise ConfigurationError(f"`{path}` holds a password or a key: leave it out of the address.")
                return str(value)
            case int():
                return int(value)
            case float():
                return float(value)
            case Mapping():
                return self._serialize_mapping(value, path, scan_secrets)
            case list() | tuple():
                return self._serialize_list(value, path, scan_secrets)
            case set() | frozenset():
                return self._serialize_list(sorted(value, key=repr), path, scan_secrets)
        if callable(value):
            raise ConfigurationError(f"`{path}` is a function, which no file can hold: make a step of it with `@step`.")
        try:
            return to_jsonable_python(value)
        except PydanticSerializationError:
            raise ConfigurationError(
                f"`{path}` is a `{type(value).__name__}`, which no file can hold: use plain data."
            ) from None

    def _serialize_mapping(self, value: Mapping[Any, Any], path: str, scan_secrets: bool) -> Any:
        plain: dict[Any, Any] = {}
        for key, item in value.items():
            if not isinstance(key, str | int | float | None):
                raise ConfigurationError(f"`{path}` has a key `{key}`, which no file can hold: use texts.")
            is_column = path.endswith("_mappings")  # columns may have any name
            if scan_secrets and not is_column and is_secret_name(str(key)) and isinstance(item, str):
                raise ConfigurationError(
                    f"`{path}` holds a secret by its name, `{key}`: use the field or the variable that is meant for "
                    "it, or save the model as a block."
                )
            plain[key] = self._serialize(item, f"{path}.{key}", scan_secrets)
        kept = {key: item for key, item in plain.items() if item is not _OMIT}
        return kept if kept or not plain else _OMIT

    def _serialize_list(self, value: Collection[Any], path: str, scan_secrets: bool) -> Any:
        plain = [self._serialize(item, f"{path}[{at}]", scan_secrets) for at, item in enumerate(value)]
        return _OMIT if _OMIT in plain else plain


def step_classes() -> dict[str, type[Step]]:
    """Return all imported step classes, the user's own included, by full name, and by name where that is unique."""
    classes: dict[str, type[Step]] = {}

    def collect(cls: type[Step]) -> None:
        for each in cls.__subclasses__():
            if not inspect.isabstract(each):
                classes[f"{each.__module__}.{each.__qualname__}"] = each  # a redefined class replaces the earlier one
            collect(each)

    collect(Step)
    full_names: dict[str, list[str]] = {}
    for full_name, cls in classes.items():
        full_names.setdefault(cls.__name__, []).append(full_name)
    return classes | {name: classes[names[0]] for name, names in full_names.items() if len(names) == 1}


def _is_default(value: Any, field: FieldInfo) -> bool:
    if field.is_required() or field.default_factory_takes_validated_data:
        return False
    return bool(value == field.get_default(call_default_factory=True))


def _stale_class_error(path: str, cls: type) -> ConfigurationError:
    return ConfigurationError(
        f"`{path}` is of a class `{cls.__name__}` that was defined anew since: make the step again."
    )
