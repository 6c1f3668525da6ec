"""Inputs and outputs of models: chats, generations, hidden states."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema
from typing_extensions import TypedDict

from llms.errors import LLMError


class Message(TypedDict):
    """One turn of a chat, in OpenAI's shape; `content` is a text, or a list of content parts (text, images)."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    role: Literal["system", "user", "assistant"]
    content: str | list[dict[str, Any]]


ChatType = list[Message]
"""A conversation, oldest message first."""

FormattedInput: TypeAlias = "ChatType | tuple[ChatType, Any]"
"""A chat, or a pair of a chat and the `structured_output` that its answer must match."""


def split_input(formatted: FormattedInput) -> tuple[ChatType, Any]:
    """Return the chat of an input, and its `structured_output` or `None`."""
    return formatted if isinstance(formatted, tuple) else (formatted, None)


HiddenState = NDArray[np.floating[Any]]
"""The last hidden state of one chat: `[num_tokens, hidden_size]`."""

FinishReason = Literal["stop", "length", "content_filter", "refusal", "tool_calls", "error"]
"""Why a generation ended; `length` means it was cut at `max_new_tokens`."""


class TokenLogprob(TypedDict):
    """A token that was chosen or could have been, and the logarithm of its probability."""

    token: str
    logprob: float


Logprobs = list[list[TokenLogprob]]
"""For every token of a text, the one chosen first and then the likeliest others, as many as were asked for."""


class ModelInfo(Protocol):
    """The members of a model that stored answers and errors are made from."""

    @property
    def model_name(self) -> str: ...

    def cache_fields(self) -> dict[str, Any]: ...

    def secret_values(self) -> set[str]: ...


class StructuredOutputType(TypedDict):
    """`{"format": "json", "schema": User}` or `{"format": "regex", "schema": "[A-E][+-]?"}`.

    A JSON schema may be given as a pydantic class, a dictionary or a string; it is stored as a dictionary.
    """

    format: Literal["json", "regex"]
    schema: dict[str, Any] | str


@dataclass(slots=True)
class Usage:
    """Tokens as the provider counted them, under OpenTelemetry's GenAI names.

    Input includes what was read from a cache and written to one; output includes reasoning.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    reasoning_output_tokens: int = 0
    cache_creation_input_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_read_input_tokens + other.cache_read_input_tokens,
            self.reasoning_output_tokens + other.reasoning_output_tokens,
            self.cache_creation_input_tokens + other.cache_creation_input_tokens,
        )

    def normalized(self) -> "Usage":
        """Return whole numbers from 0 on: some servers count in `12.0` or `"12"`, or write -1 for unknown.

        Raises:
            ValueError: If one of them is a fraction.
        """
        return Usage(*map(_to_count, astuple(self)))


def _to_count(value: Any) -> int:
    try:
        number = float(value)
    except (TypeError, ValueError):  # none at all: unknown
        return 0
    if not number.is_integer() and math.isfinite(number):
        raise ValueError(f"an answer's `usage` is a `Usage` of whole numbers, not {value!r:.50}")
    return max(0, int(number)) if math.isfinite(number) else 0


@dataclass(slots=True)
class ModelUsage:
    """Requests to a model, with tokens, cost and time.

    Attributes:
        requests: Number of requests sent, further attempts included.
        cached: Number of chats answered from the store.
        usage: Tokens of the requests that were answered.
        cost: Cost in dollars; `None` if the price of a request is unknown.
        seconds: Total latency of the requests that were answered.
        unanswered: Number of requests sent that nothing came back for (a time-out, a lost connection, a cancelled run):
            the provider may bill them, and their tokens are not known.
    """

    requests: int = 0
    cached: int = 0
    usage: Usage = field(default_factory=Usage)
    cost: float | None = 0.0
    seconds: float = 0.0
    unanswered: int = 0

    @classmethod
    def of(cls, output: "GenerateOutput") -> "ModelUsage":
        """Return the usage of one request that was answered."""
        return cls(1, usage=output.usage, cost=output.cost, seconds=output.seconds)

    def __add__(self, other: "ModelUsage") -> "ModelUsage":
        return ModelUsage(
            self.requests + other.requests,
            self.cached + other.cached,
            self.usage + other.usage,
            add_costs(self.cost, other.cost),
            self.seconds + other.seconds,
            self.unanswered + other.unanswered,
        )


def add_costs(one: float | None, other: float | None) -> float | None:
    """Add two costs in dollars; `None` if either is unknown. Rounded, so that the order of thousands does not show."""
    return None if one is None or other is None else round(one + other, 12)


_FIELD_TYPES: dict[str, Any] = {
    "cost": float | int | None,
    "seconds": float | int,
    "headers": Mapping | None,
    "error": LLMError | None,
}
"""Types of the attributes of an output that have one value."""


class GenerateOutput(list[str | None]):
    """The generations of one chat: a list of texts, `None` for a generation without one, and their usage and cost.

    Attributes:
        finish_reasons: Why each generation ended; `None` if unknown.
        reasoning: The reasoning of each generation, if the provider returns it separately.
        logprobs: The log probabilities of each generation's tokens, if requested.
        usage: Tokens of the whole request, counted once however many generations it has.
        cost: Dollars for the whole request; `None` if the price is unknown.
        seconds: Duration of the last attempt.
        attempts: Times the request was sent.
        cached: Whether all generations came from the store, so that nothing was requested or paid.
        headers: The provider's rate limit headers, names in lower case.
        error: The error of a request without an answer.
    """

    def __init__(
        self,
        texts: Iterable[str | None] = (),
        *,
        finish_reasons: list[FinishReason | None] | None = None,
        reasoning: list[str | None] | None = None,
        logprobs: list[Logprobs | None] | None = None,
        usage: Usage | None = None,
        cost: float | None = None,
        seconds: float = 0.0,
        attempts: int = 1,
        cached: bool = False,
        headers: Mapping[str, str] | None = None,
        error: LLMError | None = None,
    ) -> None:
        super().__init__(texts)
        self.finish_reasons: list[FinishReason | None] = finish_reasons or [None] * len(self)
        self.reasoning: list[str | None] = reasoning or [None] * len(self)
        self.logprobs: list[Logprobs | None] = logprobs or [None] * len(self)
        self.usage = usage or Usage()
        self.cost = cost
        self.seconds = seconds
        self.attempts = attempts
        self.cached = cached
        self.headers = headers
        self.error = error

    @classmethod
    def coerce(cls, texts: "Iterable[str | None]", num_generations: int) -> "GenerateOutput":
        """Return texts as a `GenerateOutput`; one that already is remains as it is.

        Raises:
            TypeError: If it is no list of texts.
            ValueError: If it has another number of generations, or an attribute of the wrong type.
        """
        if texts is None or isinstance(texts, str):
            raise TypeError(f"a chat is answered with a list of texts, not with {texts!r}")
        output = texts if isinstance(texts, cls) else cls(texts)
        if len(output) != num_generations:
            raise ValueError(f"{len(output)} generations came where {num_generations} were asked for")
        if isinstance(output.usage, Usage):
            output.usage = output.usage.normalized()
        if reason := output._invalid_reason():
            raise ValueError(f"an answer's {reason}")
        return output

    def _invalid_reason(self) -> str | None:
        """Return what is invalid in an output, which a user's own model may have made."""
        if not all(text is None or isinstance(text, str) for text in self):
            return f"texts are texts or `None`, not {list(self)!r:.200}"
        for name in ("finish_reasons", "reasoning", "logprobs"):
            parts, kind = getattr(self, name), list if name == "logprobs" else str
            if len(parts) != len(self) or not all(part is None or isinstance(part, kind) for part in parts):
                return f"`{name}` are one per text, not {parts!r:.200}"
        if not isinstance(self.usage, Usage):
            return f"`usage` is a `Usage`, not {self.usage!r:.200}"
        for name, kind in _FIELD_TYPES.items():
            if not isinstance(value := getattr(self, name), kind):
                return f"`{name}` cannot be {value!r:.200}"
        if self.headers and not all(isinstance(value, str) for value in self.headers.values()):
            return "`headers` are texts"
        return None

    @classmethod
    def join(cls, outputs: "list[GenerateOutput]") -> "GenerateOutput":
        """Return the generations of several requests for one chat as one output."""
        costs = [output.cost for output in outputs]
        return cls(
            [text for output in outputs for text in output],
            finish_reasons=[reason for output in outputs for reason in output.finish_reasons],
            reasoning=[thought for output in outputs for thought in output.reasoning],
            logprobs=[logprobs for output in outputs for logprobs in output.logprobs],
            usage=sum((output.usage for output in outputs), Usage()),
            cost=None if None in costs else sum(cost or 0.0 for cost in costs),
            seconds=max((output.seconds for output in outputs), default=0.0),
            attempts=max((output.attempts for output in outputs), default=1),
            error=next((output.error for output in outputs if output.error), None),
        )

    @classmethod
    def failed(cls, error: LLMError, num_generations: int) -> "GenerateOutput":
        """Return an output without texts and with an error."""
        reasons: list[FinishReason | None] = ["error"] * num_generations
        return cls([None] * num_generations, finish_reasons=reasons, cost=0.0, attempts=error.attempts, error=error)

    def fail(self, error: LLMError) -> None:
        """Turn this output into a failed one with its usage and cost."""
        none = GenerateOutput.failed(error, len(self))
        self[:], self.finish_reasons, self.error = none, none.finish_reasons, error
        self.reasoning, self.logprobs = none.reasoning, none.logprobs

    def split(self) -> "list[GenerateOutput]":
        """Return each generation as an output of its own, without usage or cost."""
        parts = zip(self, self.finish_reasons, self.reasoning, self.logprobs, strict=True)
        return [
            GenerateOutput([text], finish_reasons=[reason], reasoning=[thought], logprobs=[logprobs])
            for text, reason, thought, logprobs in parts
        ]

    def reorder(self, positions: Sequence[int]) -> None:
        """Put the generations at these positions in this order."""
        for part in (self, self.finish_reasons, self.reasoning, self.logprobs):
            part[:] = [part[position] for position in positions]  # type: ignore[index]

    def replace_generation(self, index: int, other: "GenerateOutput") -> None:
        """Replace one generation by that of another request, and add its usage and cost."""
        self[index], self.finish_reasons[index] = other[0], other.finish_reasons[0]
        self.reasoning[index], self.logprobs[index] = other.reasoning[0], other.logprobs[0]
        self.usage = self.usage + other.usage
        self.cost = None if self.cost is None or other.cost is None else self.cost + other.cost
        self.seconds += other.seconds
        self.attempts += other.attempts

    def replay(self) -> "GenerateOutput":
        """Return a copy for an equal chat, for which nothing was requested or paid."""
        copy = GenerateOutput.join(self.split())
        copy.error, copy.cached, copy.cost = self.error, self.error is None, 0.0
        return copy

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        texts = core_schema.list_schema(core_schema.nullable_schema(core_schema.str_schema()))
        return core_schema.union_schema(
            [core_schema.is_instance_schema(cls), core_schema.no_info_after_validator_function(cls, texts)]
        )
