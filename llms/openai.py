"""OpenAI, and the protocol most others speak."""

import os
from abc import ABC
from collections.abc import Hashable
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field, HttpUrl, SecretStr

from llms import chat_completions
from llms.chat_completions import ChatOptions, ExtraBody, LogitBias, ReasoningEffort, TopLogprobs, WithLogprobs
from llms.remote import RemoteLLM
from llms.strict_schema import strict
from llms.typing import ChatType, GenerateOutput


class ChatCompletionsLLM(RemoteLLM, ABC):
    """A model whose API has the shape of OpenAI's chat completions. Subclasses state facts and their options."""

    default_headers: dict[str, SecretStr] | None = Field(
        default=None, description="More headers for every request, such as those a gateway wants."
    )

    _path: ClassVar[str] = ""
    """What stands between the provider's base URL and `/chat/completions`; a base URL may end with it or not."""
    _strict: ClassVar[bool] = False
    """Whether the API can be told to keep strictly to a schema."""

    async def agenerate(self, input: ChatType, num_generations: int = 1, **kwargs: Any) -> GenerateOutput:
        """Answer one chat `num_generations` times, with one request."""
        body = self._body(input, num_generations, self.options(kwargs))
        return await chat_completions.complete(self._endpoint(), await self._headers(), body, self.timeout)

    def _url(self) -> str:
        return super()._url().removesuffix(self._path)

    def _endpoint(self) -> str:
        return f"{self._url()}{self._path}/chat/completions"

    async def _headers(self) -> dict[str, str]:
        more = {name: value.get_secret_value() for name, value in (self.default_headers or {}).items()}
        return await self._authorization() | more

    async def _authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key()}"}

    def _body(self, chat: ChatType, num_generations: int, options: BaseModel) -> dict[str, Any]:
        """The request's body, for this provider."""
        mode, structure = self._mode(), self.structured_output
        narrow = strict if self._strict else None
        held_to = chat_completions.held_to(mode, structure["schema"], narrow) if mode and structure else {}
        return chat_completions.encode(self.model, self._told(chat), num_generations, options, held_to)


class OpenAILLM(ChatCompletionsLLM):
    """Chat models served by OpenAI, or by anything that speaks its protocol (set `base_url`).

    Example:
        ```python
        from llms import OpenAILLM

        llm = OpenAILLM.load("BLOCK_NAME")
        llm.generate([[{"role": "user", "content": "What's the capital of Spain?"}]])
        ```
    """

    _block_type_name = "OpenAI LLM"
    _documentation_url = HttpUrl("https://platform.openai.com/docs/api-reference/chat")
    _logo_url = HttpUrl("https://cdn.simpleicons.org/openai")
    _provider: ClassVar[str | None] = "openai"
    _api_key_env: ClassVar[str] = "OPENAI_API_KEY"
    _base_url_env: ClassVar[str | None] = "OPENAI_BASE_URL"
    _default_base_url: ClassVar[str | None] = "https://api.openai.com/v1"
    _strict: ClassVar[bool] = True

    organization: str | None = Field(
        default=None, description="Organization that pays, of several; `OPENAI_ORG_ID` when empty."
    )
    project: str | None = Field(
        default=None, description="Project that pays, of several; `OPENAI_PROJECT_ID` when empty."
    )

    class Options(ChatOptions):
        """Runtime parameters."""

        logprobs: WithLogprobs = None
        top_logprobs: TopLogprobs = None
        logit_bias: LogitBias = None
        reasoning_effort: ReasoningEffort = None
        verbosity: Literal["low", "medium", "high"] | None = Field(default=None, description="How long answers are.")
        service_tier: str | None = Field(default=None, description="`auto`, `default`, `flex`, `priority` …")
        extra_body: ExtraBody = None

    def account(self) -> Hashable:
        """The organization and the project too: each has limits of its own."""
        return (super().account(), *self._payer().values())

    async def _headers(self) -> dict[str, str]:
        return self._payer() | await super()._headers()

    def _payer(self) -> dict[str, str]:
        """Who pays, where the key alone does not say."""
        payer = {
            "OpenAI-Organization": self.organization or os.getenv("OPENAI_ORG_ID"),
            "OpenAI-Project": self.project or os.getenv("OPENAI_PROJECT_ID"),
        }
        return {name: value for name, value in payer.items() if value}
