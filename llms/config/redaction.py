"""What is secret by its name or place, and its redaction: in errors, as some providers repeat a key, and in records."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, SecretStr

from llms.errors import LLMError
from llms.typing import ModelInfo

MIN_SECRET_LENGTH = 8
"""Characters of the shortest secret that is redacted: a shorter one is part of many words."""

SECRET_NAME = re.compile(
    r"(api_?key|authorization|credentials?|passphrase|password|passwd|secret"
    r"|(^|_)(access|account|auth|client|master|private|service|signing|subscription)_key"
    r"|(^|_)(?<!bos_)(?<!cls_)(?<!end_)(?<!eos_)(?<!first_)(?<!last_)(?<!mask_)(?<!next_)(?<!pad_)(?<!sep_)"
    r"(?<!start_)(?<!stop_)(?<!unk_)token)"  # those are tokens of a text
    r"(_?\d+|_(backup|dev|new|old|prod|staging|test))?$"
)
"""Names of variables, fields and members that hold a secret; see `is_secret_name`."""

URL_CREDENTIALS = re.compile(r"(?<=://)[^/?#@\s]+(?=@)")
"""The user and password in a URL."""

URL_PARAMETER = re.compile(r"(?<=[?&])([\w.-]+)=([^&#\s\"'`<>]+)")
"""A parameter in the query of a URL."""

URL_SIGNATURES = ("key", "sig", "signature")
"""Names of secrets in a query, besides those that are secret everywhere; `signature` may end a longer one."""

MIN_KEY_LENGTH = 16
"""Characters of the shortest text that is a secret because it is called `key`: columns are called so too."""

HIDDEN = "***"


def is_secret_name(name: str) -> bool:
    """Return whether what has this name is a secret: `api_key`, `clientSecret`, `X-Auth-Token`, `OPENAI_API_KEY_2`."""
    return SECRET_NAME.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).replace("-", "_").lower()) is not None


def hide_secrets(value: Any) -> Any:
    """Return plain data with `***` for what is secret: members of dictionaries by their names, and parts of URLs.

    A long text called `key` is one too. Columns (`…_mappings`) and the properties of a JSON schema may have any name.
    """
    match value:
        case str():
            return redact(value, ())
        case list() | tuple():
            return [hide_secrets(each) for each in value]
        case Mapping():
            return {name: _hide_member(f"{name}", each) for name, each in value.items()}
        case _:
            return value


def _hide_member(name: str, value: Any) -> Any:
    if name.endswith("_mappings"):
        return value
    if name in ("properties", "$defs") and isinstance(value, Mapping):
        return {each: hide_secrets(schema) for each, schema in value.items()}
    return HIDDEN if _is_secret_member(name, value) else hide_secrets(value)


def _is_secret_member(name: str, value: Any) -> bool:
    if name == "key":
        return isinstance(value, str) and len(value) >= MIN_KEY_LENGTH
    return isinstance(value, str | bytes | Mapping | list | tuple) and bool(value) and is_secret_name(name)


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
    """Return a text without these secrets, and without credentials and keys in URLs."""
    for secret in sorted(secrets, key=len, reverse=True):  # one may be part of another
        text = text.replace(secret, HIDDEN)
    return URL_PARAMETER.sub(_redact_parameter, URL_CREDENTIALS.sub(HIDDEN, text))


def _redact_parameter(found: re.Match[str]) -> str:
    name = found[1].lower()
    is_secret = name in URL_SIGNATURES or name.endswith("-signature") or is_secret_name(name)
    return f"{found[1]}={HIDDEN}" if is_secret else found[0]


def secrets_of(llm: ModelInfo) -> set[str]:
    """Return the secrets of a model and of the environment that are long enough to be redacted."""
    secrets = llm.secret_values() | {value for name, value in os.environ.items() if is_secret_name(name)}
    return {each for each in secrets if len(each) >= MIN_SECRET_LENGTH}


def secrets_in_fields(model: BaseModel) -> set[str]:
    """Return the secrets in the fields of a model, and in dictionaries in them: by their type or their name."""
    return set(_secrets_in({name: getattr(model, name) for name in type(model).model_fields}))


def _secrets_in(value: Any) -> Iterator[str]:
    match value:
        case SecretStr():
            yield value.get_secret_value()
        case Mapping():
            for name, each in value.items():
                if isinstance(each, str) and _is_secret_member(f"{name}", each):
                    yield each
                yield from _secrets_in(each)
        case list() | tuple():
            for each in value:
                yield from _secrets_in(each)
        case _:
            pass
