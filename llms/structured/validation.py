"""Validation of a text against its structure."""

import json
import re
from typing import Any

from jsonschema.validators import validator_for
from referencing import Registry

from llms.errors import Rejected
from llms.structured.grammar import Expr
from llms.structured.json_schema import parse_schema
from llms.structured.regex import parse_regex
from llms.typing import StructuredOutputType


def parse_structure(structure: StructuredOutputType) -> Expr:
    """All texts that keep to the structure, as far as a tree of shapes can say it.

    Raises:
        Fatal: If the schema or the pattern has something that cannot be said, or contradicts itself; the message names
            it.
    """
    schema = structure["schema"]
    return parse_regex(schema) if isinstance(schema, str) else parse_schema(schema)


def validation_error(structure: StructuredOutputType, text: str) -> str | None:
    """Why a text does not keep to the structure; `None` when it does.

    Raises:
        Rejected: If no text can be held against it, as with a `$ref` to nowhere.
    """
    try:
        return _mistake(structure["schema"], text)
    except Exception as error:  # of libraries, which find out only now
        raise Rejected(f"`structured_output` cannot be checked: {type(error).__name__}: {error}") from None


def _mistake(schema: dict[str, Any] | str, text: str) -> str | None:
    if isinstance(schema, str):
        return None if re.fullmatch(schema, text) else "it does not match the pattern"
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"it is not JSON: {error}"
    except RecursionError:
        return "it is nested too deeply"
    cls = validator_for(schema)
    checker = cls(schema, registry=Registry(), format_checker=cls.FORMAT_CHECKER)  # which fetches nothing
    error = next(iter(checker.iter_errors(value)), None)
    return f"at `{error.json_path}`: {error.message}" if error else None
