"""What goes into a model and what comes out: chats, generations, hidden states."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

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

HiddenState = NDArray[np.floating[Any]]
"""The last hidden state of one chat: `[num_tokens, hidden_size]`."""

FinishReason = Literal["stop", "length", "content_filter", "refusal", "tool_calls", "error"]
"""Why a generation ended; `length` means it was cut at `max_new_tokens`."""


class StructuredOutputType(TypedDict):
    """`{"format": "json", "schema": User}` or `{"format": "regex", "schema": "[A-E][+-]?"}`.

    A JSON schema may be given as a pydantic class, a dictionary or a string; it is stored as a dictionary.
    """

    format: Literal["json", "regex"]
    schema: dict[str, Any] | str


@dataclass(slots=True)
class Usage:
    """Tokens as the provider counted them, under OpenTelemetry's GenAI names. Input includes cache reads."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    reasoning_output_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_read_input_tokens + other.cache_read_input_tokens,
            self.reasoning_output_tokens + other.reasoning_output_tokens,
        )


class GenerateOutput(list[str | None]):
    """The generations of one chat: a list of texts, `None` where the model gave none, that knows what it cost.

    Attributes:
        finish_reasons: Why each generation ended; `None` where the model does not say.
        reasoning: What each generation thought first, where the provider keeps that apart.
        usage: Tokens of the whole request, counted once however many generations it has.
        cost: Dollars for the whole request; `None` when the price is not known.
        seconds: How long the last attempt took.
        attempts: How often the request was sent.
        cached: Whether all of it came from the store, and nothing was asked or paid.
        headers: What the provider said of its rate limits, names in lower case.
        error: Why there is no answer; `None` when there is one.
    """

    def __init__(
        self,
        texts: Iterable[str | None] = (),
        *,
        finish_reasons: list[FinishReason | None] | None = None,
        reasoning: list[str | None] | None = None,
        usage: Usage | None = None,
        cost: float | None = None,
        seconds: float = 0.0,
        attempts: int = 1,
        cached: bool = False,
        headers: Mapping[str, str] | None = None,
        error: LLMError | None = None,
    ) -> None:
        super().__init__(texts)
        self.finish_reasons = finish_reasons or [None] * len(self)
        self.reasoning = reasoning or [None] * len(self)
        self.usage = usage or Usage()
        self.cost = cost
        self.seconds = seconds
        self.attempts = attempts
        self.cached = cached
        self.headers = headers
        self.error = error

    @classmethod
    def of(cls, texts: "Iterable[str | None]") -> "GenerateOutput":
        """The same texts as a `GenerateOutput`; one that already is passes untouched."""
        if texts is None or isinstance(texts, str):
            raise TypeError(f"a chat is answered with a list of texts, not with {texts!r}")
        return texts if isinstance(texts, cls) else cls(texts)

    @classmethod
    def joined(cls, outputs: "list[GenerateOutput]") -> "GenerateOutput":
        """The generations of several requests for the same chat as if one had brought them all."""
        return cls(
            [text for output in outputs for text in output],
            finish_reasons=[reason for output in outputs for reason in output.finish_reasons],
            reasoning=[thought for output in outputs for thought in output.reasoning],
            usage=sum((output.usage for output in outputs), Usage()),
            seconds=max((output.seconds for output in outputs), default=0.0),
        )

    @classmethod
    def failed(cls, error: LLMError, num_generations: int) -> "GenerateOutput":
        """No text at all, and why."""
        reasons: list[FinishReason | None] = ["error"] * num_generations
        return cls([None] * num_generations, finish_reasons=reasons, attempts=error.attempts, error=error)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        texts = core_schema.list_schema(core_schema.nullable_schema(core_schema.str_schema()))
        return core_schema.union_schema(
            [core_schema.is_instance_schema(cls), core_schema.no_info_after_validator_function(cls, texts)]
        )
