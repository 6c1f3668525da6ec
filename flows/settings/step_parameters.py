"""Runtime parameters of a pipeline: a typed group per step, generated from the step's own fields."""

from collections.abc import Iterable, Mapping
from copy import copy
from typing import Annotated, Any

from prefect.blocks.core import Block
from pydantic import (
    BaseModel,
    Field,
    GetJsonSchemaHandler,
    SerializeAsAny,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from flows.errors import ConfigurationError
from llms import LLM
from llms.any_llm import ModelPicker, forbid_secrets, resolve_model, secret_fields
from llms.config.forms import form_fields
from llms.config.strict import StrictModel, format_validation_error
from llms.options import CommonOptions
from tasks import Step, Task

FLOW_LEVEL_FIELDS = ("name", "llm", "num_generations", "use_cache")
"""Fields of steps that shipped flows have as parameters of their own."""


class StepParameters:
    """JSON schema of a flow's `parameters`: a typed group per step in Prefect's form.

    A group shows the fields that all steps of its kind have. Other fields of the step or of its model may be given as
    JSON; they are validated when the steps exist. Secrets are rejected by the schema.

    Args:
        **steps: The class of each step, by the step's name.
    """

    def __init__(self, **steps: type[Step]) -> None:
        self._steps = steps

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        groups = {name: self._group(name, cls) for name, cls in self._steps.items()}
        return {"type": "object", "properties": groups} | forbid_secrets(within=3)

    def _group(self, name: str, cls: type[Step]) -> JsonSchemaValue:
        fields = form_fields(Task if issubclass(cls, Task) else Step, *FLOW_LEVEL_FIELDS)
        if issubclass(cls, Task):
            options = {"title": "Generation Kwargs", "type": "object", "properties": form_fields(CommonOptions)}
            inner = {"generation_kwargs": options | forbid_secrets(within=1)}
            fields["llm"] = {"title": "Model", "type": "object", "properties": inner} | forbid_secrets(within=2)
        return {"title": name, "type": "object", "properties": fields} | forbid_secrets(within=2)


def parameters_model(steps: Iterable[Step]) -> type[StrictModel]:
    """Return a pydantic model of the parameters: `{step: {field: value, "llm": {…, "generation_kwargs": {…}}}}`.

    Every field of a step except its name is a parameter, and every field of its model except secrets. Defaults are
    the current values of the step. Instead of the model's fields another model may be given, in any form that
    `llms.any_llm.resolve_model` takes.
    """
    groups: dict[str, Any] = {}
    for number, step in enumerate(steps):
        group = _step_model(step)
        groups[f"step_{number}"] = (group, Field(default_factory=group, alias=step.name, title=step.name))
    return create_model("Parameters", __base__=_Parameters, **groups)


def with_parameters(step: Step, given: Mapping[str, Any]) -> Step:
    """Return a copy of the step with these values for some of its fields."""
    values = {name: getattr(step, name) for name in type(step).model_fields} | dict(given)
    for name, llm in _models_of(step).items():
        if isinstance(llm_parameters := given.get(name), Mapping):
            values[name] = _with_llm_parameters(llm, llm_parameters)
    return type(step)(**values)


def validate_parameters(model: type[StrictModel], parameters: Any) -> dict[str, dict[str, Any]]:
    """Return the given parameters, coerced to their types; another model as an instance, secrets included.

    Args:
        model: The result of `parameters_model`.
        parameters: By step and field; fields that are not set are left out of the result.

    Raises:
        ConfigurationError: If a name is unknown or a value does not fit.
    """
    try:
        groups = model.model_validate(parameters or {})
    except ValidationError as error:
        raise ConfigurationError(format_validation_error(error)) from None
    given = groups.model_dump(by_alias=True, exclude_unset=True)
    for number in groups.model_fields_set:
        group = getattr(groups, number)
        llms = {name: value for name in group.model_fields_set if _contains_llm(value := getattr(group, name))}
        given[f"{type(groups).model_fields[number].alias}"] |= llms  # `model_dump` has made dictionaries of them
    return given


def to_json(given: Any) -> Any:
    """Return parameters as JSON that can be given again: a model as its class and fields, without secrets."""
    match given:
        case LLM():
            fields = given.model_dump(mode="json", exclude_defaults=True, exclude=secret_fields(type(given)))
            return {name: value for name, value in fields.items() if not name.startswith("_")}
        case Mapping():
            return {name: to_json(each) for name, each in given.items()}
        case list() | tuple():
            return [to_json(each) for each in given]
        case _:
            return given


def _contains_llm(value: Any) -> bool:
    """Tell whether a value is a model, or a list or dictionary with one in it."""
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return isinstance(value, LLM) or any(map(_contains_llm, items))


class _Parameters(StrictModel):
    """Base of the model of all steps' parameters."""

    @model_validator(mode="before")
    @classmethod
    def _drop_unset(cls, values: Any) -> Any:
        return _drop_unset_options(values)


def _drop_unset_options(parameters: Any) -> Any:
    """Remove generation options that are `None`, which is how a form sends what nobody filled in."""
    match parameters:
        case {"generation_kwargs": Mapping() as options, **others}:
            return {**others, "generation_kwargs": {name: each for name, each in options.items() if each is not None}}
        case Mapping():
            return {name: _drop_unset_options(each) for name, each in parameters.items()}
        case _:
            return parameters


def _step_model(step: Step) -> type[StrictModel]:
    fields = _fields(step, exclude={"name"})
    for name, llm in _models_of(step).items():
        options = _options_model(llm)
        llm_fields = _fields(llm, exclude=secret_fields(type(llm)))
        llm_fields["generation_kwargs"] = (options, Field(default_factory=options, title="Generation kwargs"))
        group = create_model(type(llm).__name__, __base__=StrictModel, **llm_fields)
        annotation: Any = Annotated[SerializeAsAny[group], WrapValidator(_own_or_other_llm), _OwnOrOtherModel()]
        title = type(step).model_fields[name].title or ("Model" if name == "llm" else name)
        fields[name] = (annotation, Field(default_factory=group, title=title))
    return create_model(step.name, __base__=StrictModel, **fields)


def _own_or_other_llm(value: Any, validate_own: ValidatorFunctionWrapHandler) -> Any:
    """Return the parameters of the step's model, or the model that is given instead of it."""
    match value:
        case Block() | str() | {"block_type_slug": _} | {"$ref": _}:
            return resolve_model(value)
        case _:
            return validate_own(value)


class _OwnOrOtherModel(ModelPicker):
    """JSON schema of a model's parameters, with further tabs in Prefect's form for the models to use instead."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        own = handler.resolve_ref_schema(handler(core)) | {"title": "As it is"}
        others = super().__get_pydantic_json_schema__(core, handler)
        is_other = {"anyOf": [{"required": ["block_type_slug"]}, {"required": ["$ref"]}]}
        return {
            "anyOf": [own, *others["anyOf"]],
            "if": {"type": "object", "not": is_other},  # so that Prefect names a misspelt field, not only the model
            "then": {"propertyNames": {"enum": sorted(own["properties"])}},
        }


def get_llm(step: Step) -> LLM | None:
    """Return the step's model, or `None` if it has none."""
    llm = getattr(step, "llm", None)
    return llm if isinstance(llm, LLM) else None


def _models_of(step: Step) -> dict[str, LLM]:
    """Return the step's models by the name of their field."""
    values = {name: getattr(step, name) for name in type(step).model_fields}
    return {name: llm for name, llm in values.items() if isinstance(llm, LLM)}


def _fields(instance: BaseModel, exclude: set[str]) -> dict[str, Any]:
    """Return definitions of an instance's fields for `create_model`, with its current values as defaults."""
    fields: dict[str, Any] = {}
    for name, field in type(instance).model_fields.items():
        if name not in exclude and not field.exclude:  # rows are excluded: they are no parameter
            optional = copy(field)
            optional.default, optional.default_factory = getattr(instance, name), None
            fields[name] = (field.annotation, optional)
    return fields


def _options_model(llm: LLM) -> type[StrictModel]:
    """Return a pydantic model of a model's options, all optional, with its current values as defaults."""
    fields: dict[str, Any] = {}
    for name, field in llm.Options.model_fields.items():
        optional = copy(field)
        optional.default = llm.generation_kwargs.get(name, None if field.is_required() else field.default)
        optional.serialization_alias = None
        annotation: Any = field.annotation
        fields[name] = (annotation | None, optional)
    base = type("Options", (StrictModel,), {"model_config": llm.Options.model_config})
    return create_model(f"{type(llm).__name__}.Options", __base__=base, **fields)


def _with_llm_parameters(llm: LLM, given: Mapping[str, Any]) -> LLM:
    values = {name: getattr(llm, name) for name in type(llm).model_fields} | dict(given)
    values["generation_kwargs"] = {**llm.generation_kwargs, **given.get("generation_kwargs", {})}
    return type(llm)(**values)
