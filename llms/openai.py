"""OpenAI: GPT, over Chat Completions."""

import os
from collections.abc import Hashable
from typing import Any, ClassVar, Literal

from pydantic import Field, HttpUrl

from llms.openai_compatible import ChatCompletionsLLM
from llms.options import ChatOptions, ExtraBody, LogitBias, ReasoningEffort, ReturnLogprobs, TopLogprobs


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
    _supports_strict_schema: ClassVar[bool] = True

    organization: str | None = Field(
        default=None, description="Organization that pays, of several; `OPENAI_ORG_ID` when empty."
    )
    project: str | None = Field(
        default=None, description="Project that pays, of several; `OPENAI_PROJECT_ID` when empty."
    )

    class Options(ChatOptions):
        """Runtime parameters."""

        logprobs: ReturnLogprobs = None
        top_logprobs: TopLogprobs = None
        logit_bias: LogitBias = None
        reasoning_effort: ReasoningEffort = None
        verbosity: Literal["low", "medium", "high"] | None = Field(default=None, description="How long answers are.")
        service_tier: str | None = Field(default=None, description="`auto`, `default`, `flex`, `priority` …")
        extra_body: ExtraBody = None

    def rate_limit_scope(self) -> Hashable:
        """Return the scope with the organization and the project: each has limits of its own."""
        return (super().rate_limit_scope(), *self._billing_headers().values())

    async def _headers(self) -> dict[str, str]:
        return self._billing_headers() | await super()._headers()

    def cache_fields(self) -> dict[str, Any]:
        """Return the fields, with the organization and the project in use. Usually not overridden."""
        return super().cache_fields() | {"organization": self._organization(), "project": self._project()}

    def _organization(self) -> str | None:
        return self.organization or os.getenv("OPENAI_ORG_ID") or None

    def _project(self) -> str | None:
        return self.project or os.getenv("OPENAI_PROJECT_ID") or None

    def _billing_headers(self) -> dict[str, str]:
        """Return the headers that say who pays, if the key alone does not."""
        headers = {"OpenAI-Organization": self._organization(), "OpenAI-Project": self._project()}
        return {name: value for name, value in headers.items() if value}
