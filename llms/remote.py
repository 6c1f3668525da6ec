"""Models behind an API: base URL, key, timeout, price, and the ways to structured output."""

import os
from abc import ABC
from collections.abc import Hashable
from contextlib import suppress
from typing import Any, ClassVar, Literal

from pydantic import Field, SecretStr, field_validator

from llms.base import AsyncLLM, StructuredLLM
from llms.config.prices import Price, list_price
from llms.config.strict import did_you_mean
from llms.config.urls import is_loopback, origin, url_fault
from llms.errors import Fatal
from llms.structured.output import with_schema_prompt
from llms.typing import ChatType, Usage

StructuredMode = Literal["json_schema", "tool", "json_object", "prompt"]
"""How an API makes a model follow a JSON schema: constrained decoding (`json_schema`), the arguments of a tool that the
model must call, or a prompt, with JSON of any kind enforced (`json_object`) or not. Every answer is validated."""


class RemoteLLM(AsyncLLM, StructuredLLM, ABC):
    """A model behind an API. Subclasses state facts: the variable of the key, the default URL, the modes."""

    model: str = Field(description="Name of the model, as the provider spells it.")
    base_url: str | None = Field(
        default=None, description="Base URL of the API; the provider's variable or its own URL when empty."
    )
    api_key: SecretStr | None = Field(
        default=None, description="API key; read from the provider's environment variable when empty."
    )
    timeout: float = Field(default=600.0, gt=0, description="Seconds to wait for one response.")  # type: ignore[override]
    structured_mode: StructuredMode | None = Field(
        default=None, description="How it is held to a JSON schema; the strictest way its API has when empty."
    )
    price: Price | None = Field(
        default=None,
        title="Price",
        description="Dollars per million tokens; the provider's list price when empty, where it is known.",
    )

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, url: str | None) -> str | None:
        if url and (fault := url_fault(url)):
            raise ValueError(fault)
        return url

    _provider: ClassVar[str | None] = None
    """The provider's name in the price table. Override this in subclasses whose prices are in it."""
    _api_key_env: ClassVar[str]
    """The environment variable of the key. Override this in subclasses."""
    _other_api_key_envs: ClassVar[tuple[str, ...]] = ()
    """Variables that may hold the key too. Override this in subclasses that have any."""
    _base_url_env: ClassVar[str | None] = None
    """The environment variable of the base URL. Override this in subclasses that have one."""
    _default_base_url: ClassVar[str | None]
    """The base URL if none is given; `None` if there is no default. Override this in subclasses."""
    _structured_modes: ClassVar[tuple[StructuredMode, ...]] = ("json_schema", "tool", "json_object", "prompt")
    """Modes that the API supports, the strictest first. Override this in subclasses that support fewer."""
    _supports_regex: ClassVar[bool] = False
    """Whether the API can constrain texts to a regular expression. Override this in subclasses that can."""

    @property
    def model_name(self) -> str:
        """Return the provider's name of the model. Usually not overridden."""
        return self.model

    def prepare(self) -> None:
        """Check that there is a base URL, a key, and a mode for the `structured_output`.

        Override this in subclasses that need a package, and call `super().prepare()`.

        Raises:
            Fatal: If something is missing.
        """
        self._resolve_base_url()
        self._resolve_api_key()
        self._resolve_structured_mode()

    def cost(self, usage: Usage) -> float | None:
        """Return dollars for this usage, by `price` or, at the provider's own URL, by its list price.

        Override this in subclasses whose price is known otherwise.
        """
        price = self.price
        if price is None and self._provider and self._resolve_base_url() == self._default_base_url:
            price = list_price(self._provider, self.model)
        return price.cost(usage) if price else None

    def rate_limit_scope(self) -> Hashable:
        """Return the base URL, the hash of the key, and the model.

        Override this in subclasses whose provider counts requests otherwise.
        """
        return (self._resolve_base_url(), hash(self._resolve_api_key()), self.model_name)

    def secret_values(self) -> set[str]:
        """Return the secrets in the fields, in the variables of the key, and the key in use. Usually not overridden."""
        names = (self.api_key_env(), *self._other_api_key_envs)
        secrets = super().secret_values() | {key for name in names if name and (key := os.getenv(name))}
        with suppress(Exception):  # there is no key
            secrets.add(self._resolve_api_key())
        return secrets

    def cache_fields(self) -> dict[str, Any]:
        """Return the fields, with the base URL in use. Usually not overridden."""
        return {name: getattr(self, name) for name in type(self).model_fields} | {"base_url": self._resolve_base_url()}

    def foreign_origins(self) -> set[str]:
        """Return scheme, host and port of URLs in the fields that are not the provider's or this machine's.

        Nor are those that the environment variable of the base URL names. Usually not overridden.
        """
        known = {
            origin(url) for url in (self._default_base_url, self._base_url_env and os.getenv(self._base_url_env)) if url
        }
        return {origin(url) for url in self._named_urls() if not is_loopback(url)} - known

    def takes_key_from_environment(self) -> bool:
        """Return whether requests bring a key that no field holds.

        Override this in subclasses with other ways to log in.
        """
        if any(isinstance(getattr(self, name), SecretStr) for name in type(self).model_fields):
            return False
        try:
            return bool(self._resolve_api_key())
        except Fatal:  # there is none
            return False

    def _named_urls(self) -> list[str]:
        """Return the URLs that fields name. Override this in subclasses with more than `base_url`."""
        return [self.base_url] if self.base_url else []

    @classmethod
    def api_key_env(cls) -> str | None:
        """Return the environment variable of the key, `None` if it depends on the model. Usually not overridden."""
        return getattr(cls, "_api_key_env", None)

    @classmethod
    def base_url_env(cls) -> str | None:
        """Return the environment variable of the base URL, `None` if there is none. Usually not overridden."""
        return cls._base_url_env

    def _resolve_base_url(self) -> str:
        """Return the base URL in use, without a slash at its end. Override this in subclasses that derive it.

        Raises:
            Fatal: If there is none, or it is no URL.
        """
        url = self._configured_base_url()
        if fault := url_fault(url):
            raise Fatal(f"`{'base_url' if self.base_url else self._base_url_env}`: {fault}")
        if not url.startswith(("http://", "https://")):
            raise Fatal(f"`{url}` is not an address: `base_url` is one, `https://` included.")
        return url.rstrip("/")

    def _configured_base_url(self) -> str:
        """Return the base URL as configured. Override this in subclasses that accept other spellings.

        Raises:
            Fatal: If there is none.
        """
        url = self.base_url or (self._base_url_env and os.getenv(self._base_url_env)) or self._default_base_url
        if not url:
            variable = f" or set `{self._base_url_env}`" if self._base_url_env else ""
            raise Fatal(f"`{type(self).__name__}` has no address: pass `base_url=`{variable}.")
        return url

    def _resolve_api_key(self) -> str:
        """Return the key in use, which callers must not keep. Override this in subclasses that find it elsewhere.

        Raises:
            Fatal: If there is none, or it is invalid.
        """
        names = (self._api_key_env, *self._other_api_key_envs)
        found = [self.api_key.get_secret_value()] if self.api_key else [os.getenv(name) for name in names]
        key = next(filter(None, found), None)
        if not key:
            raise Fatal(f"`{type(self).__name__}` has no API key: pass `api_key=` or set `{self._api_key_env}`.")
        return self._validate_api_key(key)

    def _validate_api_key(self, key: str) -> str:
        """Return the key if it is valid in a header. Usually not overridden.

        Raises:
            Fatal: If it is not.
        """
        if not (key.isascii() and key.isprintable()):
            raise Fatal(f"The API key of `{type(self).__name__}` has a character no key has: a line break?")
        return key

    def _resolve_structured_mode(self) -> StructuredMode | Literal["regex"] | None:
        """Return the mode to follow `structured_output` in, `None` without one.

        Override this in subclasses whose modes depend on the model.

        Raises:
            Fatal: If the API does not support it.
        """
        if self.structured_output is None:
            return None
        if self.structured_output["format"] == "regex":
            if self._supports_regex:
                return "regex"
            raise Fatal(
                f"`{type(self).__name__}` cannot be held to a regular expression: use a JSON schema with a `pattern`."
            )
        if self.structured_mode and self.structured_mode not in self._structured_modes:
            raise Fatal(
                f"`{type(self).__name__}` has no `structured_mode={self.structured_mode}`: "
                f"{did_you_mean(self.structured_mode, self._structured_modes)}"
            )
        return self.structured_mode or self._structured_modes[0]

    def _json_schema(self) -> dict[str, Any]:
        """Return the JSON schema of `structured_output`, `{}` without one. Usually not overridden."""
        schema = self.structured_output and self.structured_output["schema"]
        return schema if isinstance(schema, dict) else {}

    def _with_schema_prompt(self, chat: ChatType) -> ChatType:
        """Return the chat, with the schema in its system prompt if the API does not enforce it.

        Override this in subclasses whose API enforces it only in part.
        """
        return (
            with_schema_prompt(chat, self._json_schema())
            if self._resolve_structured_mode() in ("json_object", "prompt")
            else chat
        )
