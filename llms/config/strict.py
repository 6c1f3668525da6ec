"""Pydantic models that reject unknown fields, and readable validation errors."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo


class StrictModel(BaseModel):
    """A pydantic model that rejects unknown fields and suggests the closest known one."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _reject_unknown_fields(cls, values: Any) -> Any:
        fits = not isinstance(values, dict) or values.keys() <= cls.model_fields.keys()
        if not fits and cls.model_config.get("extra") == "forbid":
            known = [name for field in cls.model_fields.items() for name in field_names(*field)]
            for name in values.keys() - set(known) - {"block_type_slug"}:
                raise ValueError(f"`{cls.__qualname__}` has no `{name}`: {did_you_mean(name, known)}")
            return {name: value for name, value in values.items() if name != "block_type_slug"}
        return values


def drop_none(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that are set: a form gives `None` for those that nobody filled in."""
    return {name: value for name, value in options.items() if value is not None}


def field_names(name: str, field: FieldInfo) -> Iterable[str]:
    """Return the names that a field may be given under."""
    return [name, *([field.alias] if field.alias else [])]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of an error about an unknown name: the closest known one, or all."""
    known = sorted(known)
    if close := get_close_matches(name, known, n=1):
        return f"did you mean `{close[0]}`?"
    return f"there are {', '.join(f'`{each}`' for each in known)}." if known else "there are none."


def stale_block_message(name: str, error: RuntimeError) -> str | None:
    """Return what to do about a block that does not load because its class has other fields now, `None` otherwise."""
    if not isinstance(error.__cause__, ValidationError):
        return None
    return (
        f"the block `{name}` was saved when its model had other fields: {format_validation_error(error.__cause__)} "
        f"Saving it again would keep them: `prefect block delete {name}`, and save it anew."
    )


def format_validation_error(error: ValidationError) -> str:
    """Return a validation error as one sentence per field, without values, which may be secret."""
    lines = []
    for item in error.errors(include_url=False, include_input=False):
        where = ".".join(str(part) for part in item["loc"])
        what = item["msg"].removeprefix("Value error, ")
        lines.append(f"`{where}`: {what}" if where else what)
    return "\n".join(dict.fromkeys(lines))
