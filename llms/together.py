"""Together AI."""

from typing import Any, Literal

from pydantic import Field, HttpUrl

from llms.openai_compatible import ChatCompletionsLLM
from llms.options import OpenModelOptions, StopList


class TogetherLLM(ChatCompletionsLLM):
    """Open models hosted by Together AI.

    Example:
        ```python
        from llms import TogetherLLM

        llm = TogetherLLM.load("BLOCK_NAME")
        llm.generate([[{"role": "user", "content": "What's the capital of Spain?"}]])
        ```
    """

    _block_type_name = "Together LLM"
    _documentation_url = HttpUrl("https://docs.together.ai/reference/chat-completions-1")
    _logo_url = HttpUrl("https://www.together.ai/favicon.ico")
    _provider = "together"
    _api_key_env = "TOGETHER_API_KEY"
    _base_url_env = "TOGETHER_BASE_URL"
    _default_base_url = "https://api.together.ai"
    _path = "/v1"

    class Options(OpenModelOptions):
        """Runtime parameters."""

        stop: StopList = None
        logprobs: int | None = Field(
            default=None, ge=0, le=20, description="How many tokens to tell the likelihood of at each place."
        )
        reasoning: dict[str, Any] | None = Field(
            default=None, description='`{"enabled": False}` for a model that can do without thinking first.'
        )
        context_length_exceeded_behavior: Literal["truncate", "error"] | None = Field(
            default=None, description="What becomes of `max_new_tokens` that do not fit in the model's context."
        )
        safety_model: str | None = Field(default=None, description="Name of a model that watches over the answers.")
