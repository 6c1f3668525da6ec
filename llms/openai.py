"""OpenAI, and the protocol most others speak."""

from typing import Any, ClassVar

from pydantic import Field, HttpUrl

from llms import chat_completions
from llms.base import StructuredLLM
from llms.chat_completions import ChatOptions
from llms.remote import RemoteLLM
from llms.typing import ChatType, GenerateOutput


class OpenAILLM(RemoteLLM, StructuredLLM):
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
    _default_base_url: ClassVar[str] = "https://api.openai.com/v1"

    class Options(ChatOptions):
        """Runtime parameters."""

        reasoning_effort: str | None = Field(
            default=None, description="How much a reasoning model thinks first: `minimal`, `low`, `medium`, `high` …"
        )
        extra_body: dict[str, Any] | None = Field(
            default=None, description="More members for the request's body, for servers with options of their own."
        )

    async def agenerate(self, input: ChatType, num_generations: int = 1, **kwargs: Any) -> GenerateOutput:
        """Answer one chat `num_generations` times, with one request."""
        body = chat_completions.encode(self, self.model, input, num_generations, self.options(kwargs))
        return await chat_completions.complete(
            self._url(), {"Authorization": f"Bearer {self._key()}"}, body, self.timeout
        )
