"""Redaction of secrets in errors: some providers repeat a key in their error messages."""

import os
import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, SecretStr

from llms.errors import LLMError
from llms.typing import ModelInfo

MIN_SECRET_LENGTH = 8
"""Characters of the shortest secret that is redacted: a shorter one is part of many words."""

SECRET_ENV_NAMES = re.compile(r"(API_?KEY|ACCESS_KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS?)$", re.I)
"""Environment variables that hold a secret, by the end of their names."""

URL_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")
"""The user and password in a URL."""


def redact_error(error: LLMError, llm: ModelInfo) -> None:
    """Remove the model's secrets from an error, and the SDK's error from its causes.

    An SDK's error may hold the request with its key, and Dask pickles whole chains of errors.
    """
    error.__cause__ = error.__context__ = None
    secrets = secrets_of(llm)

    def redacted(value: Any) -> Any:
        return redact(value, secrets) if isinstance(value, str) else value

    for name in ("message", "code", "request_id"):
        setattr(error, name, redacted(getattr(error, name)))
    if error.headers:
        error.headers = {redacted(name): redacted(value) for name, value in error.headers.items()}
    error.args = (error.message,)


def redact(text: str, secrets: Iterable[str]) -> str:
    """Return a text without these secrets and without credentials in URLs."""
    for secret in sorted(secrets, key=len, reverse=True):  # one may be part of another
        text = text.replace(secret, "***")
    return URL_CREDENTIALS.sub("***", text)


def secrets_of(llm: ModelInfo) -> set[str]:
    """Return the secrets of a model and of the environment that are long enough to be redacted."""
    secrets = llm.secret_values() | {value for name, value in os.environ.items() if SECRET_ENV_NAMES.search(name)}
    return {each for each in secrets if len(each) >= MIN_SECRET_LENGTH}


def secrets_in_fields(model: BaseModel) -> set[str]:
    """Return the secrets in the fields of a model, and in dictionaries in them."""
    fields = [getattr(model, name) for name in type(model).model_fields]
    values = [each for field in fields for each in (field.values() if isinstance(field, dict) else [field])]
    return {each.get_secret_value() for each in values if isinstance(each, SecretStr)}
