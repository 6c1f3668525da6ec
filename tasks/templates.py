"""Prompts as Jinja2 templates over a row's columns, in the sandbox."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any

from jinja2 import StrictUndefined, TemplateSyntaxError, UndefinedError, meta, nodes
from jinja2 import Template as Compiled
from jinja2.sandbox import SandboxedEnvironment
from pydantic import AfterValidator

_environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)


def render(template: str, columns: Mapping[str, Any]) -> str:
    """The template filled in.

    Raises:
        ValueError: If it asks for a column the row has not.
    """
    try:
        return _compiled(template).render(columns)
    except UndefinedError as error:
        raise ValueError(f"the template cannot be filled in: {error.message}.") from None


@lru_cache(maxsize=256)
def required(template: str) -> list[str]:
    """The columns a template cannot do without: all it names but those it tests with `is defined` or `default`."""
    tree = _environment.parse(template)
    guarded = {
        name.name
        for guard in [*tree.find_all(nodes.Test), *tree.find_all(nodes.Filter)]
        if guard.name in ("defined", "undefined", "default", "d") and isinstance(name := guard.node, nodes.Name)
    }
    return sorted(meta.find_undeclared_variables(tree) - guarded)


@lru_cache(maxsize=256)
def _compiled(template: str) -> Compiled:
    return _environment.from_string(template)


def _checked(template: str) -> str:
    try:
        _compiled(template)
    except TemplateSyntaxError as error:
        raise ValueError(f"line {error.lineno} of the template: {error.message}") from None
    return template


Template = Annotated[str, AfterValidator(_checked)]
"""A Jinja2 template; a malformed one is refused with its line."""
