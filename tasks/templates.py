"""Prompts as sandboxed Jinja2 templates over the columns of a row."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any

from jinja2 import StrictUndefined, TemplateSyntaxError, UndefinedError, meta, nodes
from jinja2 import Template as CompiledTemplate
from jinja2.sandbox import SandboxedEnvironment
from pydantic import AfterValidator

_environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)


def render(template: str, columns: Mapping[str, Any]) -> str:
    """Render a template.

    Raises:
        ValueError: If a column is missing.
    """
    try:
        return _compile(template).render(columns)
    except UndefinedError as error:
        raise ValueError(f"the template cannot be filled in: {error.message}.") from None


@lru_cache(maxsize=256)
def required_columns(template: str) -> list[str]:
    """Return the columns that a template names, except those guarded by `is defined` or `default`."""
    tree = _environment.parse(template)
    guarded = {
        name.name
        for guard in [*tree.find_all(nodes.Test), *tree.find_all(nodes.Filter)]
        if guard.name in ("defined", "undefined", "default", "d") and isinstance(name := guard.node, nodes.Name)
    }
    return sorted(meta.find_undeclared_variables(tree) - guarded)


@lru_cache(maxsize=256)
def _compile(template: str) -> CompiledTemplate:
    return _environment.from_string(template)


def _validate(template: str) -> str:
    try:
        _compile(template)
    except TemplateSyntaxError as error:
        raise ValueError(f"line {error.lineno} of the template: {error.message}") from None
    return template


Template = Annotated[str, AfterValidator(_validate)]
"""A Jinja2 template; a syntax error is reported with its line."""
