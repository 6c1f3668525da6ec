"""Runtime parameters of a user's own model, from the signature of its `generate` or `agenerate`."""

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

from pydantic import ConfigDict, create_model

from llms.config.strict import StrictModel


def options_from_signature(
    cls: type[Any], generate: Callable[..., Any], inherited: type[StrictModel]
) -> type[StrictModel]:
    """Return a model of the runtime parameters that a function declares.

    Args:
        cls: The class that the function belongs to.
        generate: The function.
        inherited: Options of the parent class, which a function with `**kwargs` takes too; `StrictModel` has none.
    """
    try:
        hints = get_type_hints(inspect.unwrap(generate), include_extras=True)
    except NameError:  # a type imported for the type checker only
        hints = {}
    parameters = list(inspect.signature(generate).parameters.values())[1:]
    named: dict[str, Any] = {
        each.name: (hints.get(each.name, Any), ... if each.default is each.empty else each.default)
        for each in parameters
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
        and each.name not in ("input", "inputs", "num_generations")
    }
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    if takes_any and inherited is not StrictModel:  # `**kwargs` passed on to a model that declares them
        return create_model("Options", __base__=inherited, **named) if named else inherited
    config = ConfigDict(extra="allow" if takes_any else "forbid", arbitrary_types_allowed=True, protected_namespaces=())
    base = type("Options", (StrictModel,), {"model_config": config, "__module__": cls.__module__})
    return create_model(f"{cls.__name__}Options", __base__=base, **named)
