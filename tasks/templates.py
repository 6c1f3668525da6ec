"""Prompts as sandboxed Jinja2 templates over the columns of a row; what they compute is bounded."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextvars import ContextVar
from functools import lru_cache, wraps
from typing import Annotated, Any

from jinja2 import StrictUndefined, TemplateSyntaxError, UndefinedError, meta, nodes, pass_context
from jinja2 import Template as CompiledTemplate
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer
from pydantic import AfterValidator

MAX_CHARS = 50_000_000
"""Length of a prompt, and of each text or list that a template makes."""

MAX_BITS = 100_000
"""Of a number that a template computes."""

MAX_NUMBER = 100_000
"""Largest argument of what makes a text as long as it is told, such as `center`."""

MAX_ITERATIONS = 1_000_000
"""Of all loops of a template together."""

SIZED_BY_ARGUMENT = {
    *("batch", "center", "expandtabs", "indent", "ljust", "rjust", "round", "slice", "to_bytes", "tojson", "wordwrap"),
    *("zfill",),
}
"""Filters and methods that make a text as long as an argument tells."""


class _Work:
    """What one rendering has done so far."""

    def __init__(self) -> None:
        self.chars = self.iterations = 0

    def iterate(self) -> None:
        self.iterations += 1
        if self.iterations > MAX_ITERATIONS:
            raise SecurityError(f"its loops run more than {MAX_ITERATIONS:,} times")

    def write(self, text: str) -> None:
        self.chars += len(text)
        _check_size(self.chars)


_work: ContextVar[_Work] = ContextVar("_work")


def _check_size(size: int, limit: int = MAX_CHARS, what: str = "a text or list") -> None:
    if size > limit:
        raise SecurityError(f"it makes {what} of more than {limit:,}")


def _check_operation(operator: str, left: Any, right: Any) -> None:
    """Check the size of a result before it is computed."""
    if isinstance(left, int) and isinstance(right, int):
        bits = {"*": left.bit_length() + right.bit_length(), "**": left.bit_length() * right}.get(operator, 0)
        _check_size(bits, MAX_BITS, "a number of bits")
    elif operator == "*":
        text, times = (left, right) if isinstance(left, Sized) else (right, left)
        if isinstance(text, Sized) and isinstance(times, int):
            _check_size(len(text) * times)
    elif operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
        _check_size(len(left) + len(right))
    elif operator == "%" and isinstance(left, str):
        _check_format(left, right if isinstance(right, tuple) else (right,))


def _check_call(name: str, subject: Any, arguments: tuple[Any, ...]) -> None:
    """Check the size of what a filter, or a method of a text or number, is about to make."""
    if name in SIZED_BY_ARGUMENT:
        _check_size(max([0, *_numbers(arguments)]), MAX_NUMBER, "something with a width")
    texts = [each for each in arguments if isinstance(each, str)]
    if name == "replace" and len(texts) >= 2:
        _check_size(f"{subject}".count(texts[0]) * len(texts[1]))
    elif name in ("wordwrap", "translate"):
        _check_size(len(f"{subject}") * sum(map(len, texts), start=int(name == "translate")))
    elif name == "join":
        parts = [part for each in (subject, *arguments) if isinstance(each, list | tuple) for part in each]
        separators = [each for each in (subject, *arguments) if isinstance(each, str)]
        _check_size(sum(len(part) for part in parts if isinstance(part, str)) + len(parts) * sum(map(len, separators)))
    elif name in ("format", "format_map"):
        _check_format(f"{subject}", arguments)


def _check_format(text: str, arguments: tuple[Any, ...]) -> None:
    """Check the widths in a format string, and those among its arguments."""
    widths = [int(width[:9]) for width in re.findall(r"\d+", text)]
    if "*" in text or re.search(r"\{[^{}]*\{", text):
        widths += _numbers(arguments)
    _check_size(max([0, *widths]), MAX_NUMBER, "something with a width")


def _numbers(arguments: Iterable[Any]) -> list[int]:
    return [each for each in arguments if isinstance(each, int)]


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    """Count the iterations of a loop."""
    for value in values:
        _work.get().iterate()
        yield value


def _sized(text: str) -> str:
    """Check the length of joined texts."""
    _check_size(len(text))
    return text


@pass_context  # so that nothing is computed when a template is read
def _written(_: Any, value: Any) -> str:
    text = f"{value}"
    _work.get().write(text)
    return text


class _Environment(ImmutableSandboxedEnvironment):
    """A sandbox that refuses to make what is very large."""

    intercepted_binops = frozenset({"**", "*", "+", "%"})

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, keep_trailing_newline=True, finalize=_written)
        del self.globals["lipsum"]
        self.filters = {name: _checked(name, each) for name, each in self.filters.items()}
        self.filters |= {"_counted": _counted, "_sized": _sized}

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _check_operation(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  as Jinja names them
        subject = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        _check_call(getattr(__obj, "__name__", ""), subject, (*args, *kwargs.values()))
        return super().call(__context, __obj, *args, **kwargs)


def _checked(name: str, filter: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that checks what it is about to make."""
    is_passed_something = hasattr(filter, "jinja_pass_arg")

    @wraps(filter)
    def checked(*args: Any, **kwargs: Any) -> Any:
        passed, (subject, *others) = args[:is_passed_something], args[is_passed_something:]
        if name == "join" and not isinstance(subject, str):
            subject = list(subject)  # what `map` and the like yield can be looked at once
        _check_call(name, subject, (*others, *kwargs.values()))
        return filter(*passed, subject, *others, **kwargs)

    return checked


class _Bounds(NodeTransformer):
    """Puts bounds where Jinja has no hook, and computes operations on constants, so that reading finds large ones."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "_counted", [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(node, "_sized", [], [], None, None, lineno=node.lineno)

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        super().generic_visit(node, *args, **kwargs)
        if isinstance(node, nodes.BinExpr) and node.operator in _Environment.intercepted_binops:
            left, right = node.left, node.right
            if isinstance(left, nodes.Const) and isinstance(right, nodes.Const):
                _check_operation(node.operator, left.value, right.value)
                if isinstance(left.value, int) and isinstance(right.value, int):
                    return nodes.Const(_environment.binop_table[node.operator](left.value, right.value))
        return node


_environment = _Environment()


def render(template: str, columns: Mapping[str, Any]) -> str:
    """Render a template.

    Raises:
        ValueError: If a column is missing, or it makes something too large.
    """
    token = _work.set(_Work())
    try:
        return _compile(template).render(columns)
    except UndefinedError as error:
        raise ValueError(f"the template cannot be filled in: {error.message}.") from None
    except RecursionError:
        raise ValueError("the template cannot be filled in: it is nested too deeply.") from None
    finally:
        _work.reset(token)


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
    tree = _environment.parse(template)
    return _environment.from_string(_Bounds().visit(tree))


def _validate(template: str) -> str:
    try:
        _compile(template)
    except TemplateSyntaxError as error:
        raise ValueError(f"line {error.lineno} of the template: {error.message}") from None
    except SecurityError as error:
        raise ValueError(f"the template cannot be used: {error.message}.") from None
    except RecursionError:
        raise ValueError("the template cannot be used: it is nested too deeply.") from None
    return template


Template = Annotated[str, AfterValidator(_validate)]
"""A Jinja2 template; a syntax error is reported with its line."""
