"""Mistral AI."""

from pydantic import Field, HttpUrl

from llms.openai_compatible import ChatCompletionsLLM
from llms.options import (
    ChatOptions,
    ExtraBody,
    MaxNewTokens,
    ReasoningEffort,
    RepetitionPenalty,
    ReturnLogprobs,
    TopK,
    TopLogprobs,
    UnsignedSeed,
)


class MistralLLM(ChatCompletionsLLM):
    """Mistral AI's models.

    Example:
        ```python
        from llms import MistralLLM

        llm = MistralLLM.load("BLOCK_NAME")
        llm.generate([[{"role": "user", "content": "What's the capital of Spain?"}]])
        ```
    """

    _block_type_name = "Mistral LLM"
    _documentation_url = HttpUrl("https://docs.mistral.ai/api/#tag/chat")
    _logo_url = HttpUrl("https://cdn.simpleicons.org/mistralai")
    _provider = "mistral"
    _api_key_env = "MISTRAL_API_KEY"
    _default_base_url = "https://api.mistral.ai"
    _path = "/v1"
    _supports_strict_schema = True

    class Options(ChatOptions):
        """Runtime parameters."""

        max_new_tokens: MaxNewTokens = Field(default=None, serialization_alias="max_tokens")
        min_new_tokens: int | None = Field(
            default=None, ge=0, serialization_alias="min_tokens", description="Tokens to generate at least."
        )
        seed: UnsignedSeed = Field(default=None, serialization_alias="random_seed")
        top_k: TopK = None
        repetition_penalty: RepetitionPenalty = None
        logprobs: ReturnLogprobs = None
        top_logprobs: TopLogprobs = None
        reasoning_effort: ReasoningEffort = None
        prompt_mode: str | None = Field(
            default=None, description="`reasoning` for the system prompt that makes a reasoning model think."
        )
        safe_prompt: bool | None = Field(default=None, description="Whether to put a safety prompt before the chat.")
        service_tier: str | None = Field(default=None, description="`auto` or `standard_only`.")
        extra_body: ExtraBody = None
