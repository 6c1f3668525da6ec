"""Azure OpenAI, in both its forms, with a key or an Entra token."""

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

from pydantic import Field, HttpUrl, SecretStr

from llms.clients import event_loop
from llms.clients.errors import error_from_sdk
from llms.config.extras import import_optional
from llms.errors import Fatal, LLMError, Throttled, Transient
from llms.openai import OpenAILLM

TOKEN_SCOPE = "https://cognitiveservices.azure.com/.default"
"""Scope of an Entra token."""

TOKEN_REFRESH_MARGIN_S = 300.0
"""Time before its expiry at which a token is replaced."""

SIGN_IN_RETRY_S = 5.0
"""Time after which a failed sign-in is tried again, once for all requests."""

NETWORK_ERRORS = re.compile("Max retries exceeded|Connection aborted|Timed out waiting")
"""Network errors in the messages of Azure's command lines, which have no other form."""


class AzureOpenAILLM(OpenAILLM):
    """OpenAI's models on Azure: `model` is the name of the deployment, `base_url` the endpoint of the resource.

    With an `api_version` the address is the deployment's, without one (or with `v1`) it is that of Azure's v1 API.

    Example:
        ```python
        from llms import AzureOpenAILLM

        llm = AzureOpenAILLM.load("BLOCK_NAME")
        llm.generate([[{"role": "user", "content": "What's the capital of Spain?"}]])
        ```
    """

    _block_type_name = "Azure OpenAI LLM"
    _documentation_url = HttpUrl("https://learn.microsoft.com/azure/ai-foundry/openai/reference")
    _logo_url = HttpUrl("https://azure.microsoft.com/favicon.ico")
    _provider = None  # a deployment may bear any name: there is no looking up what it costs
    _api_key_env = "AZURE_OPENAI_API_KEY"
    _base_url_env = "AZURE_OPENAI_ENDPOINT"
    _default_base_url = None
    _path = "/openai/v1"

    api_version: str | None = Field(
        default=None, description="Version of the API, such as `2024-10-21`; `OPENAI_API_VERSION` when empty, else v1."
    )
    azure_ad_token: SecretStr | None = Field(
        default=None, description="Entra token, instead of a key; `AZURE_OPENAI_AD_TOKEN` when both are empty."
    )
    azure_identity: bool = Field(
        default=False,
        description="Sign in as whoever `azure-identity` finds: a managed identity, who did `az login`, and so on.",
    )

    def prepare(self) -> None:
        """Check that there is an address, and a key, a token or a way to sign in.

        Raises:
            Fatal: Naming what is missing.
        """
        super().prepare()
        if self.azure_identity:
            import_optional("azure.identity.aio", self)

    def cache_fields(self) -> dict[str, Any]:
        """Return the fields, with the version of the API in use. Usually not overridden."""
        return super().cache_fields() | {"api_version": self._version()}

    def _version(self) -> str | None:
        return self.api_version or os.getenv("OPENAI_API_VERSION") or None

    def _endpoint(self) -> str:
        version = self._version() or "v1"
        if version == "v1":
            return super()._endpoint()
        deployment = quote(self.model, safe="")
        return (
            f"{self._resolve_base_url()}/openai/deployments/{deployment}/chat/completions?api-version={quote(version)}"
        )

    def _resolve_api_key(self) -> str:
        return "" if self.azure_identity else self._given_token() or super()._resolve_api_key()

    def _given_token(self) -> str | None:
        """Return the token given. As in Azure's SDK, arguments precede the environment, there tokens precede keys."""
        if self.azure_ad_token:
            return self.azure_ad_token.get_secret_value()
        return None if self.api_key else os.getenv("AZURE_OPENAI_AD_TOKEN")

    def takes_key_from_environment(self) -> bool:
        """Return whether the environment's key, token or identity is used. Usually not overridden."""
        return self.azure_identity or super().takes_key_from_environment()

    async def _authorization(self) -> dict[str, str]:
        token = await event_loop.run_on_loop(_entra_token(self)) if self.azure_identity else self._given_token()
        return {"Authorization": f"Bearer {token}"} if token else {"api-key": self._resolve_api_key()}


class _EntraIdentity:
    """The identity of this process in Entra, and its current token."""

    def __init__(self, llm: AzureOpenAILLM) -> None:
        self._errors = import_optional("azure.core.exceptions", llm)
        self._credential = import_optional("azure.identity.aio", llm).DefaultAzureCredential()
        self._attempt_errors: list[Exception] = []
        for each in self._credential.credentials:
            each.get_token = self._recording_errors(each.get_token)
        self._token: Any = None
        self._error: Any = None
        self._renew_at = 0.0
        self._lock = asyncio.Lock()

    async def get_token(self) -> str:
        """Return a valid token; one near its expiry is replaced, and used if that fails."""
        async with self._lock:
            if self._renew_at <= time.time():
                await self._renew()
            if not self._token or self._token.expires_on <= time.time():
                raise self._sign_in_error(self._error)
            return self._token.token

    async def close(self) -> None:
        await self._credential.close()

    async def _renew(self) -> None:
        self._attempt_errors.clear()
        try:
            self._token = await self._credential.get_token(TOKEN_SCOPE)
            self._renew_at = self._token.expires_on - TOKEN_REFRESH_MARGIN_S
        except self._errors.AzureError as error:
            self._error, self._renew_at = error, time.time() + SIGN_IN_RETRY_S

    def _recording_errors(self, ask: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """Wrap `ask` to record its errors: the chain of credentials passes on no more than their messages."""

        async def asked(*args: Any, **kwargs: Any) -> Any:
            try:
                return await ask(*args, **kwargs)
            except Exception as error:
                self._attempt_errors.append(error)
                raise

        return asked

    def _sign_in_error(self, error: Any) -> LLMError:
        message = f"`azure-identity` cannot sign in to Azure: {error.message}"
        transient = any(map(self._is_transient, self._attempt_errors))
        return Transient(message, retry_after=SIGN_IN_RETRY_S) if transient else Fatal(message)

    def _is_transient(self, error: Exception) -> bool:
        """Whether it was a network error, or one of the server."""
        network_errors = (self._errors.ServiceRequestError, self._errors.ServiceResponseError)
        if isinstance(error, network_errors) or NETWORK_ERRORS.search(str(error)):
            return True
        return isinstance(error_from_sdk(error, TOKEN_SCOPE), Throttled | Transient)


async def _entra_token(llm: AzureOpenAILLM) -> str:
    identity = event_loop.shared_client("azure-identity", lambda: _EntraIdentity(llm), _EntraIdentity.close)
    return await identity.get_token()
