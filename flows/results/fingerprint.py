"""Fingerprint of a step, as plain data: its class and fields, its code, and whatever that code refers to."""

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
"""Modules that define no step: they count by the version of the distribution."""

_INSTALL_PATHS = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


class NotHashable(Exception):
    """Raised for a value that only its address in memory identifies."""


def fingerprint(step: Step, more: Any = None) -> Any:
    """Return plain data that is equal for steps with equal results on equal rows.

    It contains the step's fields except `use_cache`, its model as its stored answers are keyed, and its code: that of
    the step, of functions in its fields, and of the functions and classes they refer to, as bytecode, constants,
    defaults and module-level values. An object of a user's class counts with the class and its `__getstate__()`.
    Installed packages, and the framework itself, count by name.

    Args:
        step: The step.
        more: Other values that affect the result, such as the routes of its rows.

    Raises:
        NotHashable: If a field holds a value that only its address in memory identifies.
    """
    hasher = CodeHasher()
    values = {name: getattr(step, name) for name in type(step).model_fields if name != "use_cache"}
    values = {name: None if store.is_credential(name, value) else value for name, value in values.items()}
    return [
        hasher.describe(type(step)),
        [[name, hasher.describe_strictly(value)] for name, value in values.items()],
        hasher.describe_strictly(more),
    ]


class CodeHasher:
    """Describes values as plain data; each function, class and object of the user's once."""

    def __init__(self) -> None:
        self._seen = dict[int, int]()  # order of the objects, by their addresses
        self._references = list[Any]()  # keeps them alive, so that no other object gets their address
        self._ancestors = set[int]()

    def describe_strictly(self, value: Any) -> Any:
        """Describe a value, and raise `NotHashable` if nothing but its class is known."""
        return self.describe(value, opaque=False)

    def describe(self, value: Any, opaque: bool = True) -> Any:
        """Describe a value; with `opaque`, one that is neither data nor code counts by its class."""
        if id(value) in self._ancestors:
            return "around"  # it contains itself
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
                return _describe_secret(value)
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
            state = {name: getattr(value, name) for name in type(value).model_fields}
            return [self.describe(type(value)), self.describe(state, opaque)]
        if is_dataclass(value):
            state = {each.name: getattr(value, each.name) for each in fields(value)}
            return [self.describe(type(value)), self.describe(state, opaque)]
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
            state = value.__getstate__()
        except Exception as error:
            if not opaque:
                raise NotHashable(f"a `{type(value).__qualname__}` does not say what it holds: {error}") from None
            state = None
        return [self.describe(type(value)), self.describe(state, opaque)]

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
        """Describe the closure of a function."""
        cells = value.__closure__ or () if isinstance(value, FunctionType) else ()
        return [self.describe(cell.cell_contents) for cell in cells if _has_value(cell)]

    def _function(self, function: FunctionType) -> Iterator[Any]:
        yield self._compiled(function.__code__)
        yield self.describe([function.__defaults__, function.__kwdefaults__])
        package = function.__globals__.get("__package__")
        imports = _lazy_imports(function.__code__)
        modules = {name: _import_user_module(name, attributes, package) for name, attributes in imports}
        names, within = sorted(_referenced_names(function.__code__)), set[int]()
        reached = {name: function.__globals__[name] for name in names if name in function.__globals__}
        for name, value in [*reached.items(), *modules.items()]:
            yield from self._global(name, value, names, within)

    def _global(self, name: str, value: Any, names: list[str], within: set[int]) -> Iterator[Any]:
        """Describe the value of a global name; of a user's module, the values of `names` in it."""
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
                yield [name, *map(self.describe, (inner, inspect.unwrap(inner)))]  # the decorated function, too
            elif not name.startswith(("__", "_abc_", "model_")):
                yield [name, self.describe(value)]


def _describe_secret(secret: SecretStr | SecretBytes) -> Any:
    try:
        return ["secret", store.hash_secret(secret)]
    except store.StoreError as error:
        raise NotHashable(f"{error}") from None


def _describe_model(llm: LLM) -> Any:
    try:
        return store.key_of(llm, [], llm.options({}).model_dump(exclude_unset=True), 0)
    except store.StoreError as error:
        raise NotHashable(f"{error}") from None


def _referenced_names(code: CodeType) -> set[str]:
    """Return the names that a function's code, and that of the functions inside it, looks up."""
    return set(code.co_names).union(*(_referenced_names(each) for each in code.co_consts if isinstance(each, CodeType)))


def _lazy_imports(code: CodeType) -> Iterator[tuple[str, list[str]]]:
    """Yield the modules that a function's code, and that of the functions inside it, imports; and the names it imports.

    A relative import begins with dots.
    """
    instructions = [each for each in dis.get_instructions(code) if each.opname != "EXTENDED_ARG"]
    for level, names, each in zip(instructions, instructions[1:], instructions[2:], strict=False):
        if each.opname == "IMPORT_NAME":
            yield f"{'.' * level.argval}{each.argval}", list(names.argval or [])
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _lazy_imports(inner)


def _import_user_module(name: str, attributes: list[str], package: str | None) -> ModuleType | None:
    """Import a user's module as the step will; `None` if it is installed, or not found."""
    try:
        name = resolve_name(name, package)
        top = name.partition(".")[0]
        known = sys.modules.get(top)
        spec = known.__spec__ if known else find_spec(top)
        places = [spec.origin, *(spec.submodule_search_locations or [])] if spec else []
        if _is_installed(top) or any(f"{place}".startswith(_INSTALL_PATHS) for place in places):
            return None
        module = import_module(name)
        for each in attributes:
            if not hasattr(module, each):
                import_module(f"{name}.{each}")
    except Exception:  # the step may handle it
        return None
    return module


def _is_user_class(cls: type) -> bool:
    """Return whether a class and all its bases are the user's."""
    return all(each in (object, ABC, Generic, Protocol) or not _is_installed(each.__module__) for each in cls.__mro__)


def _has_value(cell: Any) -> bool:
    try:
        return bool([cell.cell_contents])
    except ValueError:
        return False


def _is_installed(module: str) -> bool:
    """Return whether a module belongs to an installed package or to the framework."""
    if module.partition(".")[0] in _SHIPPED_PACKAGES | sys.stdlib_module_names or module in _FRAMEWORK_MODULES:
        return module != "__main__"
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return file.startswith(_INSTALL_PATHS)
