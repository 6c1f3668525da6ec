"""Types of the sampling options that models have in common: each with its bounds and its description.

A model whose API calls an option otherwise states the alias alone:

    max_new_tokens: MaxNewTokens = Field(default=None, serialization_alias="max_tokens")
"""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from llms.config.strict import StrictModel


def _expand_response_format(value: Any) -> Any:
    """Return the API's dictionary for `"json"` or `"text"`; any other value unchanged."""
    return {"type": {"json": "json_object"}.get(value, value)} if isinstance(value, str) else value


# Length
MaxNewTokens = Annotated[int | None, Field(gt=0, description="Tokens to generate at most, reasoning included.")]
StopTexts = Annotated[str | list[str] | None, Field(description="Texts at which generation ends.")]
StopList = Annotated[StopTexts, BeforeValidator(lambda stop: [stop] if isinstance(stop, str) else stop)]
"""`stop`, for an API that accepts only a list."""

# Sampling
Temperature = Annotated[float | None, Field(ge=0, description="How freely to sample; 0 is greedy.")]
TopP = Annotated[float | None, Field(gt=0, le=1, description="Sample from this much probability mass.")]
TopK = Annotated[int | None, Field(description="Sample from this many tokens.")]
TopKOrAll = Annotated[int | None, Field(ge=0, description="Sample from this many tokens; 0 means all.")]
PositiveTopK = Annotated[int | None, Field(gt=0, description="Sample from this many likeliest tokens.")]
MinP = Annotated[float | None, Field(ge=0, le=1, description="Least probability beside the likeliest's.")]
Seed = Annotated[int | None, Field(description="Makes sampling repeatable, as far as the provider can.")]
UnsignedSeed = Annotated[int | None, Field(ge=0, description="Makes sampling repeatable.")]

# Penalties
FrequencyPenalty = Annotated[float | None, Field(description="Against words already used often.")]
PresencePenalty = Annotated[float | None, Field(description="Against words already used at all.")]
TokenFrequencyPenalty = Annotated[float | None, Field(description="Against tokens already used often.")]
TokenPresencePenalty = Annotated[float | None, Field(description="Against tokens already used at all.")]
RepetitionPenalty = Annotated[float | None, Field(gt=0, description="Against repeating; 1 is none.")]
LogitBias = Annotated[dict[str, float] | None, Field(description="For or against tokens, by their number.")]

# Log probabilities
ReturnLogprobs = Annotated[bool | None, Field(description="Whether to say how likely each token was.")]
TopLogprobs = Annotated[
    int | None, Field(ge=0, le=20, description="How many likeliest tokens to name at each place; needs `logprobs`.")
]

# The request
ResponseFormat = Annotated[
    dict[str, Any] | None,
    BeforeValidator(_expand_response_format),
    Field(description='`"json"` for any JSON object (say so in the prompt too), or the API\'s own dictionary.'),
]
ReasoningEffort = Annotated[
    str | None, Field(description="How much a reasoning model thinks first: `minimal`, `low`, `medium`, `high` …")
]
ExtraBody = Annotated[
    dict[str, Any] | None,
    Field(description="More members for the request's body, for servers with options of their own."),
]


class CommonOptions(StrictModel):
    """Options of every API in the shape of OpenAI's; an option that is unset is not sent."""

    max_new_tokens: MaxNewTokens = Field(default=None, serialization_alias="max_completion_tokens")
    temperature: Temperature = None
    top_p: TopP = None
    stop: StopTexts = None
    seed: Seed = None


class ChatOptions(CommonOptions):
    """Options of OpenAI's chat completions that most APIs have adopted."""

    frequency_penalty: FrequencyPenalty = None
    presence_penalty: PresencePenalty = None
    response_format: ResponseFormat = None


class OpenModelOptions(ChatOptions):
    """Options that servers of open models, such as vLLM, add to OpenAI's."""

    max_new_tokens: MaxNewTokens = Field(default=None, serialization_alias="max_tokens")
    top_k: TopK = None
    min_p: MinP = None
    repetition_penalty: RepetitionPenalty = None
    logit_bias: LogitBias = None
    reasoning_effort: ReasoningEffort = None
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, description="Variables for the model's chat template."
    )
    extra_body: ExtraBody = None
