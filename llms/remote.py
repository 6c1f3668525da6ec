"""Models behind an API: where it is, which key opens it, how long to wait."""

import os
from abc import ABC
from collections.abc import Hashable
from typing import ClassVar

from pydantic import Field, SecretStr

from llms.base import AsyncLLM
from llms.errors import Fatal
from llms.prices import Price, listed
from llms.typing import Usage


class RemoteLLM(AsyncLLM, ABC):
    """A model behind an API. Subclasses state facts: the key's variable and the default URL."""

    model: str = Field(description="Name of the model, as the provider spells it.")
    base_url: str | None = Field(
        default=None, description="Base URL of the API; the provider's variable or its own URL when empty."
    )
    api_key: SecretStr | None = Field(
        default=None, description="API key; read from the provider's environment variable when empty."
    )
    timeout: float = Field(default=120.0, gt=0, description="Seconds to wait for one response.")

    price: Price | None = Field(
        default=None, description="Dollars per million tokens; the provider's list price when empty, where it is known."
    )

    _provider: ClassVar[str | None] = None
    _api_key_env: ClassVar[str]
    _base_url_env: ClassVar[str | None] = None
    _default_base_url: ClassVar[str]

    @property
    def model_name(self) -> str:
        """The provider's name of the model."""
        return self.model

    def ready(self) -> None:
        """Check that there is a key."""
        self._key()

    def cost(self, usage: Usage) -> float | None:
        """Dollars for this usage, at the price given or, at the provider's own address, its list price."""
        price = self.price
        if price is None and self._provider and self._url() == self._default_base_url:
            price = listed(self._provider, self.model)
        return price.of(usage) if price else None

    def account(self) -> Hashable:
        """The address, the key (its hash) and the model."""
        return (self._url(), hash(self._key()), self.model)

    def _url(self) -> str:
        """The base URL in force, without a slash at its end."""
        url = self.base_url or (self._base_url_env and os.getenv(self._base_url_env)) or self._default_base_url
        return url.rstrip("/")

    def _key(self) -> str:
        """The key in force; whoever calls this must not keep it."""
        if key := self.api_key.get_secret_value() if self.api_key else os.getenv(self._api_key_env):
            return key
        raise Fatal(f"`{type(self).__name__}` has no API key: pass `api_key=` or set `{self._api_key_env}`.")
