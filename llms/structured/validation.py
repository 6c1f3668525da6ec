"""Validation of complete texts."""

import json
import re
from typing import Any

from jsonschema.validators import validator_for
from referencing import Registry

from llms.errors import Rejected
from llms.typing import StructuredOutputType


def validation_error(structure: StructuredOutputType, text: str) -> str | None:
    """Return why a text breaks its structure; `None` when it does not.

    Raises:
        Rejected: If no text can be validated, as with a `$ref` to nowhere.
    """
    try:
        return _find_error(structure["schema"], text)
    except Exception as error:  # of libraries, which find out only now
        raise Rejected(f"`structured_output` cannot be checked: {type(error).__name__}: {error}") from None


def _find_error(schema: dict[str, Any] | str, text: str) -> str | None:
    if isinstance(schema, str):
        return None if re.fullmatch(schema, text) else "it does not match the pattern"
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"it is not JSON: {error}"
    except RecursionError:
        return "it is nested too deeply"
    cls = validator_for(schema)
    validator = cls(schema, registry=Registry(), format_checker=cls.FORMAT_CHECKER)  # which fetches nothing
    error = next(iter(validator.iter_errors(value)), None)
    return f"at `{error.json_path}`: {error.message}" if error else None
