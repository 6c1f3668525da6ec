"""Signatures of flows: `**settings` replaced by the settings of a run."""

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, Unpack

from flows.settings.run_settings import RunSettings, RunSettingsArgs

R = TypeVar("R")
INDENT = "    "


def expand_settings(function: Callable[..., R], output: Path | None) -> Callable[..., R]:
    """Replace `**settings: Unpack[RunSettingsArgs]` by a parameter for each run setting, with its sentence in `Args`.

    The settings stand before `parameters`, which closes the form of a flow, or behind it where it is the only other
    parameter. A setting that the docstring describes keeps that sentence.

    Args:
        function: The function under a flow; one without such `**settings` is returned as it is.
        output: The default of `output`.
    """
    own = inspect.signature(function, eval_str=True)
    parameters = [each for each in own.parameters.values() if each.annotation != Unpack[RunSettingsArgs]]
    if len(parameters) == len(own.parameters):
        return function
    settings = [_parameter(name, output) for name in RunSettings.model_fields]
    names = [each.name for each in parameters]
    at = names.index("parameters") if "parameters" in names[1:] else len(names)
    signature = own.replace(parameters=[*parameters[:at], *settings, *parameters[at:]])

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> R:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return function(**bound.arguments)

    vars(call)["__signature__"] = signature
    call.__annotations__ = {each.name: each.annotation for each in signature.parameters.values()}
    call.__annotations__["return"] = signature.return_annotation
    call.__doc__ = _describe(inspect.getdoc(function) or "", list(signature.parameters))
    return call


def _parameter(name: str, output: Path | None) -> inspect.Parameter:
    field = RunSettings.model_fields[name]
    default, annotation = field.default, field.annotation
    if name == "output" and output:
        default, annotation = output, Path
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)


def _describe(doc: str, names: list[str]) -> str:
    """Return the docstring with a sentence for each of these parameters in its `Args`, in this order."""
    head, _, rest = doc.partition("\nArgs:\n")
    about = {name: f"{INDENT}{name}: {field.description}" for name, field in RunSettings.model_fields.items()}
    lines = rest.split("\n")
    name = ""
    while lines and lines[0].startswith(INDENT):
        line = lines.pop(0)
        if line.startswith(2 * INDENT):
            about[name] += f"\n{line}"
        else:
            name = line.strip().partition(":")[0]
            about[name] = line
    described = [about[name] for name in names if name in about]
    return "\n".join([head.rstrip("\n"), "", "Args:", *described, *lines]).rstrip("\n")
