"""Models behind an API: where it is, which key opens it, how long to wait, how it is held to a schema."""

import os
from abc import ABC
from collections.abc import Hashable
from typing import Any, ClassVar, Literal

from pydantic import Field, SecretStr

from llms.base import AsyncLLM, StructuredLLM
from llms.config.prices import Price, list_price
from llms.config.strict import did_you_mean
from llms.errors import Fatal
from llms.structured.output import with_schema_prompt
from llms.typing import ChatType, Usage

StructuredMode = Literal["json_schema", "tool", "json_object", "prompt"]
"""How a model is held to a JSON schema: by the API, as the arguments of a tool it must call, or by words, with an API
that keeps it to JSON of whatever kind or does nothing. The answer is checked in each case."""


class RemoteLLM(AsyncLLM, StructuredLLM, ABC):
    """A model behind an API. Subclasses state facts: the key's variable, the default URL, what the API can do."""

    model: str = Field(description="Name of the model, as the provider spells it.")
    base_url: str | None = Field(
        default=None, description="Base URL of the API; the provider's variable or its own URL when empty."
    )
    api_key: SecretStr | None = Field(
        default=None, description="API key; read from the provider's environment variable when empty."
    )
    timeout: float = Field(default=120.0, gt=0, description="Seconds to wait for one response.")  # type: ignore[override]
    structured_mode: StructuredMode | None = Field(
        default=None, description="How it is held to a JSON schema; the strictest way its API has when empty."
    )
    price: Price | None = Field(
        default=None,
        title="Price",
        description="Dollars per million tokens; the provider's list price when empty, where it is known.",
    )

    _provider: ClassVar[str | None] = None
    _api_key_env: ClassVar[str]
    _other_api_key_envs: ClassVar[tuple[str, ...]] = ()
    """More variables a key is looked for in, after the first."""
    _base_url_env: ClassVar[str | None] = None
    _default_base_url: ClassVar[str | None]
    _structured_modes: ClassVar[tuple[StructuredMode, ...]] = ("json_schema", "tool", "json_object", "prompt")
    """The ways its API has, the strictest first."""
    _supports_regex: ClassVar[bool] = False
    """Whether its API can hold a text to a regular expression."""

    @property
    def model_name(self) -> str:
        """The provider's name of the model."""
        return self.model

    def prepare(self) -> None:
        """Check that there is an address, a key, and a way to hold texts to the `structured_output`.

        Raises:
            Fatal: Naming what is missing.
        """
        self._resolve_base_url()
        self._resolve_api_key()
        self._resolve_structured_mode()

    def cost(self, usage: Usage) -> float | None:
        """Dollars for this usage, at the price given or, at the provider's own address, its list price."""
        price = self.price
        if price is None and self._provider and self._resolve_base_url() == self._default_base_url:
            price = list_price(self._provider, self.model)
        return price.cost(usage) if price else None

    def rate_limit_scope(self) -> Hashable:
        """The address, the key (its hash) and the model."""
        return (self._resolve_base_url(), hash(self._resolve_api_key()), self.model_name)

    def _resolve_base_url(self) -> str:
        """The base URL in force, without a slash at its end."""
        url = self._configured_base_url()
        if not url.startswith(("http://", "https://")):
            raise Fatal(f"`{url}` is not an address: `base_url` is one, `https://` included.")
        return url.rstrip("/")

    def _configured_base_url(self) -> str:
        """The base URL in force, as it was given."""
        url = self.base_url or (self._base_url_env and os.getenv(self._base_url_env)) or self._default_base_url
        if not url:
            variable = f" or set `{self._base_url_env}`" if self._base_url_env else ""
            raise Fatal(f"`{type(self).__name__}` has no address: pass `base_url=`{variable}.")
        return url

    def _resolve_api_key(self) -> str:
        """The key in force; whoever calls this must not keep it."""
        names = (self._api_key_env, *self._other_api_key_envs)
        found = [self.api_key.get_secret_value()] if self.api_key else [os.getenv(name) for name in names]
        key = next(filter(None, found), None)
        if not key:
            raise Fatal(f"`{type(self).__name__}` has no API key: pass `api_key=` or set `{self._api_key_env}`.")
        return self._validate_api_key(key)

    def _validate_api_key(self, key: str) -> str:
        """The key, if it can stand in a header."""
        if not (key.isascii() and key.isprintable()):
            raise Fatal(f"The API key of `{type(self).__name__}` has a character no key has: a line break?")
        return key

    def _resolve_structured_mode(self) -> StructuredMode | Literal["regex"] | None:
        """How this model is held to its structure; `None` when it has none.

        Raises:
            Fatal: If its API has no such way.
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
        """The JSON schema this model is held to."""
        schema = self.structured_output and self.structured_output["schema"]
        return schema if isinstance(schema, dict) else {}

    def _with_schema_prompt(self, chat: ChatType) -> ChatType:
        """The chat, with the schema said in it where the API does not know of it."""
        return (
            with_schema_prompt(chat, self._json_schema())
            if self._resolve_structured_mode() in ("json_object", "prompt")
            else chat
        )
