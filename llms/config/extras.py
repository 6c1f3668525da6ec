"""Optional dependencies: packages that only some models need, imported on first use."""

from importlib import import_module
from typing import Any

from llms.errors import Fatal


def import_optional(name: str, llm: object, extra: str | None = None) -> Any:
    """Import an optional package.

    Args:
        name: The name of the package, or of a module in it.
        llm: The model that needs it.
        extra: The extra that installs it; by default the one named like the module of the model's shipped class.

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
