"""Keys stay out of what is said: some providers repeat, in what they refuse, the key they were given."""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from llms.errors import LLMError

if TYPE_CHECKING:
    from llms.base import LLM

MIN_SECRET_LENGTH = 8
"""Characters of the shortest secret that is looked for: a shorter one is part of many words."""

SECRET_ENV_NAMES = re.compile(r"(API_?KEY|ACCESS_KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS?)$", re.I)
"""How variables of the environment end that hold a secret, whichever SDK reads them."""

URL_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")
"""Who asks and with which password, in a URL."""


def redact_error(error: LLMError, llm: "LLM") -> None:
    """Take the model's secrets out of an error, wherever it holds them, and the SDK's own error from behind it.

    That one holds the request, key and all, and goes along where whole chains of errors are pickled, as Dask does.
    """
    error.__cause__ = error.__context__ = None
    secrets = secrets_of(llm)

    def without(value: Any) -> Any:
        return redact(value, secrets) if isinstance(value, str) else value

    for name in ("message", "code", "request_id"):
        setattr(error, name, without(getattr(error, name)))
    if error.headers:
        error.headers = {without(name): without(value) for name, value in error.headers.items()}
    error.args = (error.message,)


def redact(text: str, secrets: Iterable[str]) -> str:
    """A text without these secrets, and without the logins in its URLs."""
    for secret in sorted(secrets, key=len, reverse=True):  # one may be part of another
        text = text.replace(secret, "***")
    return URL_CREDENTIALS.sub("***", text)


def secrets_of(llm: "LLM") -> set[str]:
    """The secrets in a model's fields, the key it would use, and all that the environment holds."""
    fields = [getattr(llm, name) for name in type(llm).model_fields]
    held = [each for value in fields for each in (value.values() if isinstance(value, dict) else [value])]
    secrets = [each.get_secret_value() for each in held if isinstance(each, SecretStr)]
    names = {getattr(llm, "_api_key_env", ""), *getattr(llm, "_other_api_key_envs", ())}
    secrets += [value for name, value in os.environ.items() if name in names or SECRET_ENV_NAMES.search(name)]
    with suppress(Exception):  # it has none, or finds it nowhere
        secrets.append(getattr(llm, "_resolve_api_key")())  # noqa: B009  (of those behind an API; an engine's is no text)
    return {each for each in secrets if isinstance(each, str) and len(each) >= MIN_SECRET_LENGTH}
