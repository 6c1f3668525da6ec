"""Steps and models as plain data: their class, what differs from its defaults, and no secrets."""

import inspect
import re
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
from tasks import Filter, LoadDataFromDicts, Step

MAX_INLINE_ROWS = 1_000
"""Rows of `LoadDataFromDicts` that are written down, at most: more belong into a file of their own."""

SECRET_NAME = re.compile(
    r"(^|[_-])(api[_-]?key|authorization|password|secret|credentials?)$"
    r"|(^|[_-])(access|api|auth|bearer|hf|hub)[_-]?token$|^token$",
    re.IGNORECASE,
)
"""Names of what is a secret, though its type does not say so."""

URL_CREDENTIALS = re.compile(r"://[^/\s:@]*:[^/\s@]+@")
"""An address with a password in it."""

_OMIT = object()


class Serializer:
    """Makes plain data of steps and models.

    Attributes:
        secrets: What was left out, to make sure that it stands nowhere else.
    """

    def __init__(self) -> None:
        self.secrets: list[str] = []

    def serialize_step(self, step: Step) -> dict[str, Any]:
        """The class and the fields of a step; its name is none of them.

        Raises:
            ConfigurationError: Naming the field that cannot be written down, and the cure.
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

    def _serialize_model(self, llm: LLM, where: str) -> Any:
        """The name of the saved block a model was loaded from, and what was changed since; its class and fields."""
        name, cls = getattr(llm, "_block_document_name", None), type(llm)
        if name and not getattr(llm, "_is_anonymous", False):
            slug = f"{cls.get_block_type_slug()}/{name}"
            try:
                saved = resolve_model(slug)
            except ValueError as error:
                raise ConfigurationError(f"`{where}`: {error}") from None
            for secret in secret_fields(cls):
                self._serialize(getattr(llm, secret), where)
            differs = {each for each in cls.model_fields if getattr(llm, each) != getattr(saved, each, None)}
            changed = self._serialize_fields(llm, where, differs - secret_fields(cls))
            return {"block": slug, **changed} if changed else slug
        if model_classes().get(cls.__name__) is not cls:
            raise _stale_class_error(where, cls)
        return {"class": cls.__name__, **self._serialize_fields(llm, where)}

    def _serialize_fields(self, of: BaseModel, where: str, only: Collection[str] | None = None) -> dict[str, Any]:
        """The fields that differ from their defaults, or `only` those named."""
        found: dict[str, Any] = {}
        for name, field in type(of).model_fields.items():
            value, place = getattr(of, name), f"{where}.{name}"
            wanted = not _is_default(value, field) if only is None else name in only
            if not wanted or (isinstance(of, Step) and name == "name"):
                continue
            if SECRET_NAME.search(name) and isinstance(value, str):
                raise ConfigurationError(
                    f"`{place}` is a secret by its name: give it the type `SecretStr`, to leave it out."
                )
            if callable(value) and isinstance(of, Filter):
                raise ConfigurationError(
                    f"`{place}` is a function, which no file can hold: let a column decide, `Filter(column=…)`, or "
                    "make a step of the function with `@step`."
                )
            plain = self._serialize(value, place, guarded=not isinstance(of, LoadDataFromDicts))
            if plain is not _OMIT:
                found[name] = plain
            elif field.is_required():
                raise ConfigurationError(
                    f"`{place}` is a secret, and has to be given: let the class read it from a variable."
                )
        return found

    def _serialize(self, value: Any, where: str, guarded: bool = True) -> Any:
        """A value as YAML has it. One that is `guarded` is searched for secrets; the rows of a dataset are not."""
        match value:
            case None | bool() | bytes() | date():
                return value
            case Secret() | SecretStr() | SecretBytes():
                hidden = value.get_secret_value()
                self.secrets += [hidden] if isinstance(hidden, str) and len(hidden) >= 8 else []
                return _OMIT
            case Enum():
                return self._serialize(value.value, where, guarded)
            case LLM():
                return self._serialize_model(value, where)
            case BaseModel():
                return self._serialize_fields(value, where)
            case str() | PurePath():
                if guarded and URL_CREDENTIALS.search(str(value)):
                    raise ConfigurationError(f"`{where}` holds a password: leave it out of the address.")
                return str(value)
            case int():
                return int(value)
            case float():
                return float(value)
            case Mapping():
                return self._serialize_mapping(value, where, guarded)
            case list() | tuple():
                return self._serialize_list(value, where, guarded)
            case set() | frozenset():
                return self._serialize_list(sorted(value, key=repr), where, guarded)
        if callable(value):
            raise ConfigurationError(
                f"`{where}` is a function, which no file can hold: make a step of it with `@step`."
            )
        try:
            return to_jsonable_python(value)
        except PydanticSerializationError:
            raise ConfigurationError(
                f"`{where}` is a `{type(value).__name__}`, which no file can hold: use plain data."
            ) from None

    def _serialize_mapping(self, value: Mapping[Any, Any], where: str, guarded: bool) -> Any:
        plain: dict[Any, Any] = {}
        for key, each in value.items():
            if not isinstance(key, str | int | float | None):
                raise ConfigurationError(f"`{where}` has a key `{key}`, which no file can hold: use texts.")
            columns = where.endswith("_mappings")  # of rows, which may be called as they like
            if guarded and not columns and SECRET_NAME.search(str(key)) and isinstance(each, str):
                raise ConfigurationError(
                    f"`{where}` holds a secret by its name, `{key}`: use the field or the variable that is meant for "
                    "it, or save the model as a block."
                )
            plain[key] = self._serialize(each, f"{where}.{key}", guarded)
        kept = {key: each for key, each in plain.items() if each is not _OMIT}
        return kept if kept or not plain else _OMIT

    def _serialize_list(self, value: Collection[Any], where: str, guarded: bool) -> Any:
        plain = [self._serialize(each, f"{where}[{at}]", guarded) for at, each in enumerate(value)]
        return _OMIT if _OMIT in plain else plain


def step_classes() -> dict[str, type[Step]]:
    """The steps there are, the user's own included: by name where one class bears it, and by module and name."""
    found: dict[str, type[Step]] = {}

    def look(cls: type[Step]) -> None:
        for each in cls.__subclasses__():
            if not inspect.isabstract(each):
                found[f"{each.__module__}.{each.__qualname__}"] = each  # of one made anew, the last
            look(each)

    look(Step)
    bearers: dict[str, list[str]] = {}
    for full, cls in found.items():
        bearers.setdefault(cls.__name__, []).append(full)
    return found | {name: found[full[0]] for name, full in bearers.items() if len(full) == 1}


def _is_default(value: Any, field: FieldInfo) -> bool:
    if field.is_required() or field.default_factory_takes_validated_data:
        return False
    return bool(value == field.get_default(call_default_factory=True))


def _stale_class_error(where: str, cls: type) -> ConfigurationError:
    return ConfigurationError(
        f"`{where}` is of a class `{cls.__name__}` that was defined anew since: make the step again."
    )
