"""Validation of complete texts, which ends whatever pattern and text it is given."""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import Any

import regex
from jsonschema import ValidationError
from jsonschema.validators import extend, validator_for
from referencing import Registry

from llms.errors import Rejected
from llms.typing import StructuredOutputType

VALIDATION_TIMEOUT_S = 5.0
"""For all patterns of a structure on one text: alternatives that overlap, repeated, take exponentially long."""

TOO_SLOW = f"its patterns take longer than {VALIDATION_TIMEOUT_S:g} s on it"
"""The error of a text that cannot be validated in time."""

ESCAPE_OR_BRACE = re.compile(r"(\\N\{[^}]*\}|\\.)|\{(?![\d,])", re.DOTALL)
"""An escape, or else a brace that is no repetition: `regex` would take some of these for approximate matching."""

_deadline: ContextVar[float] = ContextVar("_deadline")


def validation_error(structure: StructuredOutputType, text: str) -> str | None:
    """Return why a text breaks its structure; `None` when it does not.

    It may take up to `VALIDATION_TIMEOUT_S`, without holding up other threads: on an event loop, use
    `asyncio.to_thread`.

    Raises:
        Rejected: If no text can be validated, as with a `$ref` to nowhere.
    """
    token = _deadline.set(time.monotonic() + VALIDATION_TIMEOUT_S)
    try:
        return _find_error(structure["schema"], text)
    except TimeoutError:
        return TOO_SLOW
    except Exception as error:  # of libraries, which find out only now
        raise Rejected(f"`structured_output` cannot be checked: {type(error).__name__}: {error}") from None
    finally:
        _deadline.reset(token)


def _find_error(schema: dict[str, Any] | str, text: str) -> str | None:
    if isinstance(schema, str):
        return None if _matches(schema, text, whole=True) else "it does not match the pattern"
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"it is not JSON: {error}"
    except RecursionError:
        return "it is nested too deeply"
    cls = validator_for(schema)
    rules = {name: rule for name, rule in schema.items() if name != "$schema"}  # by which it would find `cls` again
    validator = _with_own_patterns(cls)(
        rules, registry=Registry(), format_checker=cls.FORMAT_CHECKER
    )  # fetches nothing
    error = next(iter(validator.iter_errors(value)), None)
    return f"at `{error.json_path}`: {error.message}" if error else None


def _matches(pattern: str, text: str, whole: bool = False) -> bool:
    """Return whether a pattern is found in a text, or matches the whole of it; other threads run meanwhile.

    Raises:
        TimeoutError: If that takes too long.
    """
    seconds = _deadline.get() - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    compiled = regex.compile(ESCAPE_OR_BRACE.sub(lambda found: found[1] or r"\{", pattern))
    find = compiled.fullmatch if whole else compiled.search
    return find(text, timeout=seconds, concurrent=True) is not None


@lru_cache(maxsize=16)
def _with_own_patterns(cls: Any) -> Any:
    """Return a validator class that matches all patterns by `_matches`."""
    own = {"pattern": _pattern, "patternProperties": _pattern_properties}
    for keyword in ("additionalProperties", "unevaluatedProperties"):
        if keyword in cls.VALIDATORS:
            own[keyword] = partial(_other_properties, cls.VALIDATORS[keyword])
    return extend(cls, own)


def _pattern(validator: Any, pattern: str, value: Any, schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(value, "string") and not _matches(pattern, value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, rules: Mapping[str, Any], value: Any, schema: Any) -> Iterator[ValidationError]:
    for pattern, rule in rules.items() if validator.is_type(value, "object") else ():
        for name, member in value.items():
            if _matches(pattern, name):
                yield from validator.descend(member, rule, path=name, schema_path=pattern)


def _other_properties(
    check: Callable[..., Any], validator: Any, rule: Any, value: Any, schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    """Check the properties that nothing else is about: those that match a pattern are left out first."""
    if patterns := schema.get("patternProperties") if validator.is_type(value, "object") else None:
        value = {name: each for name, each in value.items() if not any(_matches(every, name) for every in patterns)}
        schema = {keyword: each for keyword, each in schema.items() if keyword != "patternProperties"}
    yield from check(validator, rule, value, schema) or ()
