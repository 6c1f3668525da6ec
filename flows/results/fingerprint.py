"""What a step does, as plain data: its class and fields, its code, and what that code refers to."""

import dis
import inspect
import re
import sys
import sysconfig
from abc import ABC
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from importlib import import_module
from importlib.util import find_spec, resolve_name
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Generic, Protocol
from uuid import UUID

from pydantic import BaseModel, SecretBytes, SecretStr

from llms import LLM, store
from tasks import Step

_SHIPPED = {"llms", "flows", "prefect", "pydantic", "pydantic_core"}
_BASES = {"tasks.base", "tasks.join", "tasks.task", "tasks.typing", "tasks.dag"}
"""What is ours and no step: it counts with the version of the distribution."""

_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


class Unknown(Exception):
    """There is no telling whether two of these are the same."""


def fingerprint(step: Step, more: Any = None) -> Any:
    """Plain data that is equal for steps that make the same of the same rows.

    It holds the fields of the step but `use_cache`, its model as the store of answers sees it, and of the code of the
    step, of functions in its fields, and of the functions and classes these refer to: what Python compiled, constants
    and defaults, module-level values. An object of a class of the user's counts with the class and what it holds, which
    is what `__getstate__` says. What is installed, and the framework's own, counts by its name.

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
    """Describes values; functions, classes and objects of the user's once each."""

    def __init__(self) -> None:
        self._seen = dict[int, int]()  # by their addresses, when they were seen
        self._kept = list[Any]()  # so that no other object takes the place, and the address, of one that was seen
        self._within = set[int]()

    def exactly(self, value: Any) -> Any:
        """The same as `of`, for data that must be told apart from all other."""
        return self.of(value, opaque=False)

    def of(self, value: Any, opaque: bool = True) -> Any:
        """A value as plain data; with `opaque`, one that is neither data nor code counts by its class."""
        if id(value) in self._within:
            return "around"  # it holds itself
        self._within.add(id(value))
        try:
            return self._of(value, opaque)
        finally:
            self._within.discard(id(value))

    def _of(self, value: Any, opaque: bool) -> Any:
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
                return [self.of(type(value)), value.name, self.of(value.value)]
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
        if isinstance(wrapped := getattr(value, "__wrapped__", getattr(value, "fn", None)), FunctionType):
            return [type(value).__qualname__, self.of(wrapped)]  # `@cache`, Prefect's `@task`
        if callable(value) and getattr(value, "__module__", None) and hasattr(value, "__qualname__"):
            return [value.__module__, value.__qualname__]  # built in
        if not _installed(type(value).__module__) and _is_plain(type(value)):
            return self._object(value, opaque)
        if opaque:
            return ["a", self.of(type(value))]
        raise Unknown(f"a `{type(value).__qualname__}` is neither plain data nor code")

    def _object(self, value: Any, opaque: bool) -> Any:
        if (seen := self._seen.get(id(value))) is not None:
            return ["again", seen]
        self._see(value)
        try:
            held = value.__getstate__()
        except Exception as error:
            if not opaque:
                raise Unknown(f"a `{type(value).__qualname__}` does not say what it holds: {error}") from None
            held = None
        return [self.of(type(value)), self.of(held, opaque)]

    def _see(self, value: Any) -> None:
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)

    def _code(self, value: FunctionType | type) -> Any:
        if _installed(value.__module__):
            return [value.__module__, value.__qualname__, self._held(value)]
        if id(value) in self._seen:
            return ["again", value.__qualname__]
        self._see(value)
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
        package = function.__globals__.get("__package__")
        modules = {name: _module(name, taken, package) for name, taken in _imported(function.__code__)}
        names, within = sorted(_names(function.__code__)), set[int]()
        reached = {name: function.__globals__[name] for name in names if name in function.__globals__}
        for name, value in [*reached.items(), *modules.items()]:
            yield from self._looked_up(name, value, names, within)

    def _looked_up(self, name: str, value: Any, names: list[str], within: set[int]) -> Iterator[Any]:
        """What a name stands for; of a module of the user's, what these names stand for in it."""
        yield [name, self.of(value)]
        if isinstance(value, ModuleType) and not _installed(value.__name__) and id(value) not in within:
            within.add(id(value))
            for each in names:
                if each in vars(value):
                    yield from self._looked_up(each, vars(value)[each], names, within)

    def _compiled(self, code: CodeType) -> Any:
        constants = [self._compiled(each) if isinstance(each, CodeType) else self.of(each) for each in code.co_consts]
        return [code.co_code.hex(), code.co_names, constants]

    def _members(self, cls: type) -> Iterator[Any]:
        kinds = vars(cls).get("__annotations__", {})
        yield [[name, re.sub(" at 0x[0-9a-f]+", "", f"{kind}")] for name, kind in kinds.items()]
        private = vars(cls).get("__private_attributes__", {})  # pydantic's, of `_prompt = "…"`
        yield [[name, self.of(each.default), self.of(each.default_factory)] for name, each in private.items()]
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


def _imported(code: CodeType) -> Iterator[tuple[str, list[str]]]:
    """The modules a function's code, and that of the functions inside it, imports when called; what it takes of each.

    One relative to the function's own begins with dots.
    """
    told = [each for each in dis.get_instructions(code) if each.opname != "EXTENDED_ARG"]
    for dots, taken, each in zip(told, told[1:], told[2:], strict=False):
        if each.opname == "IMPORT_NAME":
            yield f"{'.' * dots.argval}{each.argval}", list(taken.argval or [])
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _imported(inner)


def _module(name: str, taken: list[str], package: str | None) -> ModuleType | None:
    """A module of the user's, imported as it will be when the step works; `None` if it is installed, or not there."""
    try:
        name = resolve_name(name, package)
        top = name.partition(".")[0]
        known = sys.modules.get(top)
        spec = known.__spec__ if known else find_spec(top)
        places = [spec.origin, *(spec.submodule_search_locations or [])] if spec else []
        if _installed(top) or any(f"{place}".startswith(_INSTALLED) for place in places):
            return None
        module = import_module(name)
        for each in taken:
            if not hasattr(module, each):
                import_module(f"{name}.{each}")
    except Exception:  # the step may know what to do then
        return None
    return module


def _is_plain(cls: type) -> bool:
    """Whether a class is the user's, and so are all it is made of."""
    return all(each in (object, ABC, Generic, Protocol) or not _installed(each.__module__) for each in cls.__mro__)


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
