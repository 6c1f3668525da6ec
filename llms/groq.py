"""Groq."""

from typing import Any, ClassVar, Literal

from pydantic import Field, HttpUrl

from llms.errors import Rejected
from llms.openai_compatible import ChatCompletionsLLM
from llms.options import CommonOptions, ExtraBody, ReasoningEffort, ResponseFormat
from llms.typing import ChatType, GenerateOutput

SCHEMA_MISMATCH_CODES = ("json_validate_failed", "tool_use_failed")
"""Groq's codes for an answer that misses the schema; it sends them with 400, as if the request was invalid."""


class GroqLLM(ChatCompletionsLLM):
    """Open models on Groq's inference hardware.

    Example:
        ```python
        from llms import GroqLLM

        llm = GroqLLM.load("BLOCK_NAME")
        llm.generate([[{"role": "user", "content": "What's the capital of Spain?"}]])
        ```
    """

    _block_type_name = "Groq LLM"
    _documentation_url = HttpUrl("https://console.groq.com/docs/api-reference#chat-create")
    _logo_url = HttpUrl("https://console.groq.com/favicon.ico")
    _provider = "groq"
    _api_key_env = "GROQ_API_KEY"
    _base_url_env = "GROQ_BASE_URL"
    _default_base_url = "https://api.groq.com"
    _path = "/openai/v1"

    max_generations_per_request: ClassVar[int | None] = 1

    class Options(CommonOptions):
        """Runtime parameters."""

        response_format: ResponseFormat = None
        reasoning_effort: ReasoningEffort = None
        reasoning_format: Literal["hidden", "raw", "parsed"] | None = Field(
            default=None, description="Where its thinking goes: nowhere, into the text, or apart as `reasoning`."
        )
        include_reasoning: bool | None = Field(
            default=None, description="Whether its thinking is part of the answer; not with `reasoning_format`."
        )
        service_tier: str | None = Field(default=None, description="`auto`, `on_demand`, `flex`, `performance` …")
        extra_body: ExtraBody = None

    async def agenerate(self, input: ChatType, num_generations: int = 1, **kwargs: Any) -> GenerateOutput:
        """Answer one chat with one generation; `None` if Groq found it to miss the schema, to be asked for again."""
        try:
            return await super().agenerate(input, num_generations, **kwargs)
        except Rejected as error:
            if self.structured_output is None or error.code not in SCHEMA_MISMATCH_CODES:
                raise
            return GenerateOutput([None] * num_generations)
