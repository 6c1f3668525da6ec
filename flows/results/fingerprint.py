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

_SHIPPED_PACKAGES = {"llms", "flows", "prefect", "pydantic", "pydantic_core"}
_FRAMEWORK_MODULES = {"tasks.base", "tasks.join", "tasks.task", "tasks.typing", "tasks.dag"}
"""What is ours and no step: it counts with the version of the distribution."""

_INSTALL_PATHS = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


class NotHashable(Exception):
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
    walk = CodeHasher()
    values = {name: getattr(step, name) for name in type(step).model_fields if name != "use_cache"}
    return [
        walk.describe(type(step)),
        [[name, walk.describe_strictly(value)] for name, value in values.items()],
        walk.describe_strictly(more),
    ]


class CodeHasher:
    """Describes values; functions, classes and objects of the user's once each."""

    def __init__(self) -> None:
        self._seen = dict[int, int]()  # by their addresses, when they were seen
        self._references = list[Any]()  # so that no other object takes the place, and the address, of one that was seen
        self._ancestors = set[int]()

    def describe_strictly(self, value: Any) -> Any:
        """The same as `of`, for data that must be told apart from all other."""
        return self.describe(value, opaque=False)

    def describe(self, value: Any, opaque: bool = True) -> Any:
        """A value as plain data; with `opaque`, one that is neither data nor code counts by its class."""
        if id(value) in self._ancestors:
            return "around"  # it holds itself
        self._ancestors.add(id(value))
        try:
            return self._describe(value, opaque)
        finally:
            self._ancestors.discard(id(value))

    def _describe(self, value: Any, opaque: bool) -> Any:
        match value:
            case None | bool() | int() | float() | str() | bytes() if type(value).__module__ == "builtins":
                return [type(value).__name__, repr(value)]
            case list() | tuple():
                return [type(value).__name__, [self.describe(each, opaque) for each in value]]
            case set() | frozenset():
                return [type(value).__name__, sorted(repr(self.describe(each, opaque)) for each in value)]
            case Mapping():
                return [
                    "dict",
                    [[self.describe(name, opaque), self.describe(each, opaque)] for name, each in value.items()],
                ]
            case SecretStr() | SecretBytes():
                return None
            case complex() | range() | slice() | bytearray() | date() | time() | timedelta() | Decimal() | UUID():
                return [type(value).__qualname__, repr(value)]
            case Enum():
                return [self.describe(type(value)), value.name, self.describe(value.value)]
            case re.Pattern():
                return ["pattern", value.pattern, value.flags]
            case Path():
                return ["path", f"{value}"]
            case LLM():
                return _describe_model(value)
            case ModuleType():
                return ["module", value.__name__]
            case MethodType():
                return [self.describe(value.__func__), self.describe(value.__self__, opaque)]
            case partial():
                return [self.describe(value.func, opaque), self.describe([value.args, value.keywords], opaque)]
            case FunctionType() | type():
                return self._code(value)
        if isinstance(value, BaseModel):
            held = {name: getattr(value, name) for name in type(value).model_fields}
            return [self.describe(type(value)), self.describe(held, opaque)]
        if is_dataclass(value):
            held = {each.name: getattr(value, each.name) for each in fields(value)}
            return [self.describe(type(value)), self.describe(held, opaque)]
        if isinstance(wrapped := getattr(value, "__wrapped__", getattr(value, "fn", None)), FunctionType):
            return [type(value).__qualname__, self.describe(wrapped)]  # `@cache`, Prefect's `@task`
        if callable(value) and getattr(value, "__module__", None) and hasattr(value, "__qualname__"):
            return [value.__module__, value.__qualname__]  # built in
        if not _is_installed(type(value).__module__) and _is_user_class(type(value)):
            return self._object(value, opaque)
        if opaque:
            return ["a", self.describe(type(value))]
        raise NotHashable(f"a `{type(value).__qualname__}` is neither plain data nor code")

    def _object(self, value: Any, opaque: bool) -> Any:
        if (seen := self._seen.get(id(value))) is not None:
            return ["again", seen]
        self._mark_seen(value)
        try:
            held = value.__getstate__()
        except Exception as error:
            if not opaque:
                raise NotHashable(f"a `{type(value).__qualname__}` does not say what it holds: {error}") from None
            held = None
        return [self.describe(type(value)), self.describe(held, opaque)]

    def _mark_seen(self, value: Any) -> None:
        self._seen[id(value)] = len(self._seen)
        self._references.append(value)

    def _code(self, value: FunctionType | type) -> Any:
        if _is_installed(value.__module__):
            return [value.__module__, value.__qualname__, self._closure(value)]
        if id(value) in self._seen:
            return ["again", value.__qualname__]
        self._mark_seen(value)
        if isinstance(value, FunctionType):
            return ["function", value.__qualname__, self._closure(value), list(self._function(value))]
        own = [each for each in value.__mro__ if each is value or not _is_installed(each.__module__)]
        return ["class", value.__qualname__, [[each.__qualname__, list(self._members(each))] for each in own]]

    def _closure(self, value: FunctionType | type) -> list[Any]:
        """What a function made inside another took from it."""
        cells = value.__closure__ or () if isinstance(value, FunctionType) else ()
        return [self.describe(cell.cell_contents) for cell in cells if _has_value(cell)]

    def _function(self, function: FunctionType) -> Iterator[Any]:
        yield self._compiled(function.__code__)
        yield self.describe([function.__defaults__, function.__kwdefaults__])
        package = function.__globals__.get("__package__")
        modules = {name: _import_user_module(name, taken, package) for name, taken in _lazy_imports(function.__code__)}
        names, within = sorted(_referenced_names(function.__code__)), set[int]()
        reached = {name: function.__globals__[name] for name in names if name in function.__globals__}
        for name, value in [*reached.items(), *modules.items()]:
            yield from self._global(name, value, names, within)

    def _global(self, name: str, value: Any, names: list[str], within: set[int]) -> Iterator[Any]:
        """What a name stands for; of a module of the user's, what these names stand for in it."""
        yield [name, self.describe(value)]
        if isinstance(value, ModuleType) and not _is_installed(value.__name__) and id(value) not in within:
            within.add(id(value))
            for each in names:
                if each in vars(value):
                    yield from self._global(each, vars(value)[each], names, within)

    def _compiled(self, code: CodeType) -> Any:
        constants = [
            self._compiled(each) if isinstance(each, CodeType) else self.describe(each) for each in code.co_consts
        ]
        return [code.co_code.hex(), code.co_names, constants]

    def _members(self, cls: type) -> Iterator[Any]:
        kinds = vars(cls).get("__annotations__", {})
        yield [[name, re.sub(" at 0x[0-9a-f]+", "", f"{kind}")] for name, kind in kinds.items()]
        private = vars(cls).get("__private_attributes__", {})  # pydantic's, of `_prompt = "…"`
        yield [
            [name, self.describe(each.default), self.describe(each.default_factory)] for name, each in private.items()
        ]
        for name, value in sorted(vars(cls).items()):
            inner = next((getattr(value, each) for each in ("fget", "__func__", "func") if hasattr(value, each)), value)
            if isinstance(inner, FunctionType):
                yield [
                    name,
                    self.describe(inner),
                    self.describe(inspect.unwrap(inner)),
                ]  # a decorated one, and what it decorates
            elif not name.startswith(("__", "_abc_", "model_")):
                yield [name, self.describe(value)]


def _describe_model(llm: LLM) -> Any:
    try:
        return store.key_of(llm, [], llm.options({}).model_dump(exclude_unset=True), 0)
    except store.StoreError as error:
        raise NotHashable(f"{error}") from None


def _referenced_names(code: CodeType) -> set[str]:
    """The names a function's code, and that of the functions inside it, looks up."""
    return set(code.co_names).union(*(_referenced_names(each) for each in code.co_consts if isinstance(each, CodeType)))


def _lazy_imports(code: CodeType) -> Iterator[tuple[str, list[str]]]:
    """The modules a function's code, and that of the functions inside it, imports when called; what it takes of each.

    One relative to the function's own begins with dots.
    """
    told = [each for each in dis.get_instructions(code) if each.opname != "EXTENDED_ARG"]
    for dots, taken, each in zip(told, told[1:], told[2:], strict=False):
        if each.opname == "IMPORT_NAME":
            yield f"{'.' * dots.argval}{each.argval}", list(taken.argval or [])
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _lazy_imports(inner)


def _import_user_module(name: str, taken: list[str], package: str | None) -> ModuleType | None:
    """A module of the user's, imported as it will be when the step works; `None` if it is installed, or not there."""
    try:
        name = resolve_name(name, package)
        top = name.partition(".")[0]
        known = sys.modules.get(top)
        spec = known.__spec__ if known else find_spec(top)
        places = [spec.origin, *(spec.submodule_search_locations or [])] if spec else []
        if _is_installed(top) or any(f"{place}".startswith(_INSTALL_PATHS) for place in places):
            return None
        module = import_module(name)
        for each in taken:
            if not hasattr(module, each):
                import_module(f"{name}.{each}")
    except Exception:  # the step may know what to do then
        return None
    return module


def _is_user_class(cls: type) -> bool:
    """Whether a class is the user's, and so are all it is made of."""
    return all(each in (object, ABC, Generic, Protocol) or not _is_installed(each.__module__) for each in cls.__mro__)


def _has_value(cell: Any) -> bool:
    try:
        return bool([cell.cell_contents])
    except ValueError:
        return False


def _is_installed(module: str) -> bool:
    """Whether a module is nobody's to edit."""
    if module.partition(".")[0] in _SHIPPED_PACKAGES | sys.stdlib_module_names or module in _FRAMEWORK_MODULES:
        return module != "__main__"
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return file.startswith(_INSTALL_PATHS)
