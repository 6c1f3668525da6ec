"""What a step does, as plain data: its class and fields, its code, and what that code refers to."""

import inspect
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any
from uuid import UUID

from pydantic import BaseModel, SecretBytes, SecretStr

from llms import LLM, store
from tasks import Step

_SHIPPED = {"llms", "flows", "prefect", "pydantic", "pydantic_core"}
_BASES = {"tasks.base", "tasks.join", "tasks.task", "tasks.typing", "tasks.wiring"}
"""What is ours and no step: it counts with the version of the distribution."""

_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


class Unknown(Exception):
    """There is no telling whether two of these are the same."""


def fingerprint(step: Step, more: Any = None) -> Any:
    """Plain data that is equal for steps that make the same of the same rows.

    It holds the fields of the step but `use_cache`, its model as the store of answers sees it, and of the code of the
    step, of functions in its fields, and of the functions and classes these refer to: what Python compiled, constants
    and defaults, module-level values. What is installed, and the framework's own, counts by its name.

    Args:
        step: The step.
        more: What else decides, such as the functions that send rows to it.

    Raises:
        Unknown: If a field holds something that can only be told by its address in memory.
    """
    walk = _Walk()
    values = {name: getattr(step, name) for name in type(step).model_fields if name != "use_cache"}
    return [walk.of(type(step)), [[name, walk.exactly(value)] for name, value in values.items()], walk.exactly(more)]


class _Walk:
    """Describes values, functions and classes, each once."""

    def __init__(self) -> None:
        self._seen = set[int]()
        self._kept = list[Any]()  # so that no other object takes the place, and the number, of one that was seen

    def exactly(self, value: Any) -> Any:
        """The same as `of`, for data that must be told apart from all other."""
        return self.of(value, opaque=False)

    def of(self, value: Any, opaque: bool = True) -> Any:
        """A value as plain data; with `opaque`, one that is neither data nor code counts by its class."""
        match value:
            case None | bool() | int() | float() | str() | bytes() if type(value).__module__ == "builtins":
                return [type(value).__name__, repr(value)]
            case list() | tuple():
                return [type(value).__name__, [self.of(each, opaque) for each in value]]
            case set() | frozenset():
                return [type(value).__name__, sorted(repr(self.of(each, opaque)) for each in value)]
            case Mapping():
                return ["dict", [[self.of(name, opaque), self.of(each, opaque)] for name, each in value.items()]]
            case SecretStr() | SecretBytes():
                return None
            case complex() | range() | slice() | bytearray() | date() | time() | timedelta() | Decimal() | UUID():
                return [type(value).__qualname__, repr(value)]
            case Enum():
                return [type(value).__qualname__, value.name]
            case re.Pattern():
                return ["pattern", value.pattern, value.flags]
            case Path():
                return ["path", f"{value}"]
            case LLM():
                return _model(value)
            case ModuleType():
                return ["module", value.__name__]
            case MethodType():
                return [self.of(value.__func__), self.of(value.__self__, opaque)]
            case partial():
                return [self.of(value.func, opaque), self.of([value.args, value.keywords], opaque)]
            case FunctionType() | type():
                return self._code(value)
        if isinstance(value, BaseModel):
            held = {name: getattr(value, name) for name in type(value).model_fields}
            return [self.of(type(value)), self.of(held, opaque)]
        if is_dataclass(value):
            held = {each.name: getattr(value, each.name) for each in fields(value)}
            return [self.of(type(value)), self.of(held, opaque)]
        if callable(value) and getattr(value, "__module__", None) and hasattr(value, "__qualname__"):
            return [value.__module__, value.__qualname__]  # built in
        if opaque:
            return ["a", type(value).__qualname__]
        raise Unknown(f"a `{type(value).__qualname__}` is neither plain data nor code")

    def _code(self, value: FunctionType | type) -> Any:
        if _installed(value.__module__):
            return [value.__module__, value.__qualname__, self._held(value)]
        if id(value) in self._seen:
            return ["again", value.__qualname__]
        self._seen.add(id(value))
        self._kept.append(value)
        if isinstance(value, FunctionType):
            return ["function", value.__qualname__, self._held(value), list(self._function(value))]
        own = [each for each in value.__mro__ if each is value or not _installed(each.__module__)]
        return ["class", value.__qualname__, [[each.__qualname__, list(self._members(each))] for each in own]]

    def _held(self, value: FunctionType | type) -> list[Any]:
        """What a function made inside another took from it."""
        cells = value.__closure__ or () if isinstance(value, FunctionType) else ()
        return [self.of(cell.cell_contents) for cell in cells if _filled(cell)]

    def _function(self, function: FunctionType) -> Iterator[Any]:
        yield self._compiled(function.__code__)
        yield self.of([function.__defaults__, function.__kwdefaults__])
        names = sorted(_names(function.__code__))
        for name in names:
            if name in function.__globals__:
                value = function.__globals__[name]
                yield [name, self.of(value)]
                if isinstance(value, ModuleType) and not _installed(value.__name__):
                    yield [[each, self.of(vars(value)[each])] for each in names if each in vars(value)]

    def _compiled(self, code: CodeType) -> Any:
        constants = [self._compiled(each) if isinstance(each, CodeType) else self.of(each) for each in code.co_consts]
        return [code.co_code.hex(), code.co_names, constants]

    def _members(self, cls: type) -> Iterator[Any]:
        kinds = vars(cls).get("__annotations__", {})
        yield [[name, re.sub(" at 0x[0-9a-f]+", "", f"{kind}")] for name, kind in kinds.items()]
        for name, value in sorted(vars(cls).items()):
            inner = next((getattr(value, each) for each in ("fget", "__func__", "func") if hasattr(value, each)), value)
            if isinstance(inner, FunctionType):
                yield [name, self.of(inner), self.of(inspect.unwrap(inner))]  # a decorated one, and what it decorates
            elif not name.startswith(("__", "_abc_", "model_")):
                yield [name, self.of(value)]


def _model(llm: LLM) -> Any:
    try:
        return store.key_of(llm, [], llm.options({}).model_dump(exclude_unset=True), 0)
    except store.StoreError as error:
        raise Unknown(f"{error}") from None


def _names(code: CodeType) -> set[str]:
    """The names a function's code, and that of the functions inside it, looks up."""
    return set(code.co_names).union(*(_names(each) for each in code.co_consts if isinstance(each, CodeType)))


def _filled(cell: Any) -> bool:
    try:
        return bool([cell.cell_contents])
    except ValueError:
        return False


def _installed(module: str) -> bool:
    """Whether a module is nobody's to edit."""
    if module.partition(".")[0] in _SHIPPED | sys.stdlib_module_names or module in _BASES:
        return module != "__main__"
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return file.startswith(_INSTALLED)
