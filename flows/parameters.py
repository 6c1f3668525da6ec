"""A pipeline's runtime parameters: one typed group per step, made from the steps' own fields."""

from collections.abc import Iterable, Mapping
from copy import copy
from typing import Any, Optional

from pydantic import BaseModel, Field, ValidationError, create_model

from flows.errors import Refused
from llms import LLM
from llms.models import secrets
from llms.strict import Strict, explain
from tasks import Step, Task


def parameters_of(steps: Iterable[Step]) -> type[Strict]:
    """The model of all the steps' parameters: `{step: {field: value, "llm": {…, "generation_kwargs": {…}}}}`.

    Every field of a step but its name is a runtime parameter, and every field of its model but the secrets. Defaults
    are the values the step has now.
    """
    groups: dict[str, Any] = {}
    for number, step in enumerate(steps):
        group = _step_group(step)
        groups[f"step_{number}"] = (group, Field(default_factory=group, alias=step.name, title=step.name))
    return create_model("Parameters", __base__=Strict, **groups)


def configured(step: Step, given: Mapping[str, Any]) -> Step:
    """A copy of the step with these parameters instead of its own."""
    values = {name: getattr(step, name) for name in type(step).model_fields} | dict(given)
    if isinstance(step, Task) and "llm" in given:
        values["llm"] = _configured_llm(step.llm, given["llm"])
    return type(step)(**values)


def validated(model: type[Strict], parameters: Any) -> dict[str, dict[str, Any]]:
    """Only what was given, coerced to its type.

    Raises:
        Refused: If a name is unknown or a value does not fit.
    """
    try:
        groups = parameters if isinstance(parameters, model) else model.model_validate(parameters or {})
    except ValidationError as error:
        raise Refused(explain(error)) from None
    return groups.model_dump(by_alias=True, exclude_unset=True)


def _step_group(step: Step) -> type[Strict]:
    fields = _fields(step, exclude={"name"})
    if isinstance(step, Task):
        llm, options = step.llm, _partial(type(step.llm))
        of_llm = _fields(llm, exclude=secrets(type(llm)))
        of_llm["generation_kwargs"] = (options, Field(default_factory=options, title="Generation kwargs"))
        group = create_model(type(llm).__name__, __base__=Strict, **of_llm)
        fields["llm"] = (group, Field(default_factory=group, title="Model"))
    return create_model(step.name, __base__=Strict, **fields)


def _fields(of: BaseModel, exclude: set[str]) -> dict[str, Any]:
    """An object's fields, each optional, with what it holds as the default."""
    fields: dict[str, Any] = {}
    for name, field in type(of).model_fields.items():
        if name not in exclude and not field.exclude:  # rows are no parameter
            optional = copy(field)
            optional.default, optional.default_factory = getattr(of, name), None
            fields[name] = (field.annotation, optional)
    return fields


def _partial(llm: type[LLM]) -> type[Strict]:
    """A model's options, none of them required."""
    fields: dict[str, Any] = {}
    for name, field in llm.Options.model_fields.items():
        optional = copy(field)
        optional.default = None if field.is_required() else field.default
        optional.serialization_alias = None
        fields[name] = (Optional[field.annotation], optional)  # noqa: UP045
    base = type("Options", (Strict,), {"model_config": llm.Options.model_config})
    return create_model(f"{llm.__name__}.Options", __base__=base, **fields)


def _configured_llm(llm: LLM, given: Mapping[str, Any]) -> LLM:
    values = {name: getattr(llm, name) for name in type(llm).model_fields} | dict(given)
    values["generation_kwargs"] = {**llm.generation_kwargs, **given.get("generation_kwargs", {})}
    return type(llm)(**values)
