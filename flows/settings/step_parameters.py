"""A pipeline's runtime parameters: one typed group per step, made from the steps' own fields."""

from collections.abc import Iterable, Mapping
from copy import copy
from typing import Annotated, Any, Optional

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
"""What a shipped flow has a parameter of its own for."""


class StepParameters:
    """Shows a flow's `parameters` in Prefect's UI as a typed group per step.

    A group has what every step of its kind has. It is open: a step's other fields, and what only one model takes, can
    be given in JSON, and are checked with all the rest when the steps are there. Secrets are refused before that.

    Args:
        **steps: The classes of the steps, by name.
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
    """The model of all the steps' parameters: `{step: {field: value, "llm": {…, "generation_kwargs": {…}}}}`.

    Every field of a step but its name is a runtime parameter, and every field of its model but the secrets. Defaults
    are the values the step has now. Instead of its model's fields another model may be given: see `llms.any_llm.model`.
    """
    groups: dict[str, Any] = {}
    for number, step in enumerate(steps):
        group = _step_model(step)
        groups[f"step_{number}"] = (group, Field(default_factory=group, alias=step.name, title=step.name))
    return create_model("Parameters", __base__=_Parameters, **groups)


def with_parameters(step: Step, given: Mapping[str, Any]) -> Step:
    """A copy of the step with these parameters instead of its own."""
    values = {name: getattr(step, name) for name in type(step).model_fields} | dict(given)
    for name, llm in _models_of(step).items():
        if isinstance(changed := given.get(name), Mapping):
            values[name] = _with_llm_parameters(llm, changed)
    return type(step)(**values)


def validate_parameters(of: type[StrictModel], parameters: Any) -> dict[str, dict[str, Any]]:
    """Only what was given, coerced to its type; another model as itself, with the secrets it has.

    Raises:
        ConfigurationError: If a name is unknown or a value does not fit.
    """
    try:
        groups = of.model_validate(parameters or {})
    except ValidationError as error:
        raise ConfigurationError(format_validation_error(error)) from None
    given = groups.model_dump(by_alias=True, exclude_unset=True)
    for number in groups.model_fields_set:
        group = getattr(groups, number)
        models = {name: held for name in group.model_fields_set if _contains_model(held := getattr(group, name))}
        given[f"{type(groups).model_fields[number].alias}"] |= models  # a dump is not a model any more
    return given


def to_json(given: Any) -> Any:
    """The parameters as JSON that could be given again: a model as its class and fields, without the secrets."""
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


def _contains_model(value: Any) -> bool:
    """Whether it is a model, or a list or dictionary with one in it."""
    within = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return isinstance(value, LLM) or any(map(_contains_model, within))


class _Parameters(StrictModel):
    """What all steps' parameters have in common."""

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, values: Any) -> Any:
        return _drop_unset_options(values)


def _drop_unset_options(parameters: Any) -> Any:
    """The parameters without the options that are `None`: a form says so of what nobody filled in."""
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
        of_llm = _fields(llm, exclude=secret_fields(type(llm)))
        of_llm["generation_kwargs"] = (options, Field(default_factory=options, title="Generation kwargs"))
        group = create_model(type(llm).__name__, __base__=StrictModel, **of_llm)
        either: Any = Annotated[SerializeAsAny[group], WrapValidator(_own_or_other_model), _OwnOrOtherModel()]
        title = type(step).model_fields[name].title or ("Model" if name == "llm" else name)
        fields[name] = (either, Field(default_factory=group, title=title))
    return create_model(step.name, __base__=StrictModel, **fields)


def _own_or_other_model(value: Any, own: ValidatorFunctionWrapHandler) -> Any:
    """A model's parameters, or the model that is named instead."""
    match value:
        case Block() | str() | {"block_type_slug": _} | {"$ref": _}:
            return resolve_model(value)
        case _:
            return own(value)


class _OwnOrOtherModel(ModelPicker):
    """Shows a model's parameters in Prefect's UI, and in further tabs the models to take instead."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        own = handler.resolve_ref_schema(handler(core)) | {"title": "As it is"}
        others = super().__get_pydantic_json_schema__(core, handler)
        another = {"anyOf": [{"required": ["block_type_slug"]}, {"required": ["$ref"]}]}
        return {
            "anyOf": [own, *others["anyOf"]],
            "if": {"type": "object", "not": another},  # so that Prefect names a misspelt field, not only the model
            "then": {"propertyNames": {"enum": sorted(own["properties"])}},
        }


def get_llm(step: Step) -> LLM | None:
    """The model a step asks, if it does."""
    llm = getattr(step, "llm", None)
    return llm if isinstance(llm, LLM) else None


def _models_of(step: Step) -> dict[str, LLM]:
    """The models a step asks, by the field they stand in."""
    held = {name: getattr(step, name) for name in type(step).model_fields}
    return {name: llm for name, llm in held.items() if isinstance(llm, LLM)}


def _fields(of: BaseModel, exclude: set[str]) -> dict[str, Any]:
    """An object's fields, each optional, with what it holds as the default."""
    fields: dict[str, Any] = {}
    for name, field in type(of).model_fields.items():
        if name not in exclude and not field.exclude:  # rows are no parameter
            optional = copy(field)
            optional.default, optional.default_factory = getattr(of, name), None
            fields[name] = (field.annotation, optional)
    return fields


def _options_model(llm: LLM) -> type[StrictModel]:
    """A model's options, none of them required, with what it has as the default."""
    fields: dict[str, Any] = {}
    for name, field in llm.Options.model_fields.items():
        optional = copy(field)
        optional.default = llm.generation_kwargs.get(name, None if field.is_required() else field.default)
        optional.serialization_alias = None
        fields[name] = (Optional[field.annotation], optional)  # noqa: UP045
    base = type("Options", (StrictModel,), {"model_config": llm.Options.model_config})
    return create_model(f"{type(llm).__name__}.Options", __base__=base, **fields)


def _with_llm_parameters(llm: LLM, given: Mapping[str, Any]) -> LLM:
    values = {name: getattr(llm, name) for name in type(llm).model_fields} | dict(given)
    values["generation_kwargs"] = {**llm.generation_kwargs, **given.get("generation_kwargs", {})}
    return type(llm)(**values)
