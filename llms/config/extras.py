"""Packages a model needs that the core does not: imported on first use, and named when they are missing."""

from importlib import import_module
from typing import Any

from llms.errors import Fatal


def import_optional(name: str, llm: object, extra: str | None = None) -> Any:
    """Import `name` for a model.

    Args:
        name: Of the package, or of a module in it.
        llm: The model, for the message.
        extra: Brings the package; the one named like the module of the class that ships with this, when not told.

    Raises:
        Fatal: If it is not installed; the message holds the command that installs it.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        modules = (cls.__module__ for cls in type(llm).__mro__)
        extra = extra or next(name.removeprefix("llms.") for name in modules if name.startswith("llms."))
        raise Fatal(
            f"`{type(llm).__name__}` needs the `{error.name}` package: `pip install 'distilflow[{extra}]'`."
        ) from None
