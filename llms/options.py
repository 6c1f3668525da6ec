"""Sampling options that several providers have in common."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from llms.config.strict import Strict


def _spelled_out(value: Any) -> Any:
    """`"json"` and `"text"` as the API wants them."""
    return {"type": {"json": "json_object"}.get(value, value)} if isinstance(value, str) else value


ResponseFormat = Annotated[
    dict[str, Any] | None,
    BeforeValidator(_spelled_out),
    Field(description='`"json"` for any JSON object (say so in the prompt too), or the API\'s own dictionary.'),
]
"""`"json"`, `"text"`, or the API's own dictionary."""


MaxTokens = Annotated[
    int | None,
    Field(gt=0, serialization_alias="max_tokens", description="Tokens to generate at most, reasoning included."),
]
"""`max_new_tokens`, for an API that has kept the older name."""


StopTexts = Annotated[
    str | list[str] | None,
    BeforeValidator(lambda stop: [stop] if isinstance(stop, str) else stop),
    Field(description="Texts at which generation ends."),
]
"""`stop`, for an API that takes nothing but a list."""


TopK = Annotated[int | None, Field(description="Sample from this many tokens.")]


RepetitionPenalty = Annotated[float | None, Field(gt=0, description="Against repeating; 1 is none.")]


LogitBias = Annotated[dict[str, float] | None, Field(description="For or against tokens, by their number.")]


WithLogprobs = Annotated[bool | None, Field(description="Whether to say how likely each token was.")]


TopLogprobs = Annotated[
    int | None, Field(ge=0, le=20, description="How many likeliest tokens to name at each place; needs `logprobs`.")
]


ReasoningEffort = Annotated[
    str | None, Field(description="How much a reasoning model thinks first: `minimal`, `low`, `medium`, `high` …")
]


ExtraBody = Annotated[
    dict[str, Any] | None,
    Field(description="More members for the request's body, for servers with options of their own."),
]


class CommonOptions(Strict):
    """The sampling options that every API here has; what is unset is not sent."""

    max_new_tokens: int | None = Field(
        default=None,
        gt=0,
        serialization_alias="max_completion_tokens",
        description="Tokens to generate at most, reasoning included.",
    )
    temperature: float | None = Field(default=None, ge=0, description="How freely to sample; 0 is greedy.")
    top_p: float | None = Field(default=None, gt=0, le=1, description="Sample from this much probability mass.")
    stop: str | list[str] | None = Field(default=None, description="Texts at which generation ends.")
    seed: int | None = Field(default=None, description="Makes sampling repeatable, as far as the provider can.")


class ChatOptions(CommonOptions):
    """The options of OpenAI's chat completions that most have taken over."""

    frequency_penalty: float | None = Field(default=None, description="Against words already used often.")
    presence_penalty: float | None = Field(default=None, description="Against words already used at all.")
    response_format: ResponseFormat = None


class OpenModelOptions(ChatOptions):
    """What servers of open models, such as vLLM, take besides."""

    max_new_tokens: MaxTokens = None
    top_k: TopK = None
    min_p: float | None = Field(default=None, ge=0, le=1, description="Least probability beside the likeliest's.")
    repetition_penalty: RepetitionPenalty = None
    logit_bias: LogitBias = None
    reasoning_effort: ReasoningEffort = None
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, description="Variables for the model's chat template."
    )
    extra_body: ExtraBody = None
