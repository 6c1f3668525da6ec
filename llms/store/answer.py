"""A stored answer, and its row in the store."""

import json
import time
from dataclasses import dataclass, field, replace
from typing import Any

from llms.typing import FinishReason, GenerateOutput, Logprobs, ModelInfo, Usage

COLUMNS = (
    "key, text, finish_reason, reasoning, input_tokens, output_tokens, cache_read_input_tokens, "
    "reasoning_output_tokens, cache_creation_input_tokens, logprobs, schema_error, seconds, model, provider, created"
)
# The newest answer replaces others: a run that does not read the store still writes it. Texts are passed as bytes,
# because models write lone surrogates (half of an emoji), which are not UTF-8.
INSERT = f"""
    REPLACE INTO answers ({COLUMNS})
    VALUES (?, CAST(? AS TEXT), ?, CAST(? AS TEXT), ?, ?, ?, ?, ?, ?, CAST(? AS TEXT), ?, ?, ?, ?)
"""
SELECT = f"SELECT {COLUMNS} FROM answers WHERE key IN (SELECT value FROM json_each(?))"


@dataclass(slots=True)
class StoredAnswer:
    """One stored generation.

    Attributes:
        text: The text; `None` if the model returned none.
        finish_reason: Why it ended.
        reasoning: The reasoning before it, if the provider returns it separately.
        logprobs: The log probabilities of its tokens, if requested.
        usage: Tokens of the whole request for the first of its generations, none for the others.
        seconds: Duration of the request.
        model: The name of the model.
        provider: The name of the model's class.
        created: Time in seconds since 1970.
        schema_error: What is wrong with a text that breaks the structure it was asked for; it is to be asked for again.
    """

    text: str | None
    finish_reason: FinishReason | None = None
    reasoning: str | None = None
    logprobs: Logprobs | None = None
    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0
    model: str = ""
    provider: str = ""
    created: float = field(default_factory=time.time)
    schema_error: str | None = None

    @classmethod
    def from_output(cls, llm: ModelInfo, output: GenerateOutput) -> "list[StoredAnswer]":
        """Return the generations of a request as they are stored."""
        usages = [output.usage, *(Usage() for _ in output[1:])]
        model, provider, now = llm.model_name, type(llm).__name__, time.time()
        return [
            cls(*generation, output.seconds, model, provider, now)
            for generation in zip(output, output.finish_reasons, output.reasoning, output.logprobs, usages, strict=True)
        ]

    def to_output(self) -> GenerateOutput:
        """Return this generation as an output; `GenerateOutput.join` makes one of several."""
        return GenerateOutput(
            [self.text],
            finish_reasons=[self.finish_reason],
            reasoning=[self.reasoning],
            logprobs=[self.logprobs],
            usage=self.usage,
            seconds=self.seconds,
        )

    def to_free_output(self) -> GenerateOutput:
        """Return this generation as an output without usage and cost, which were counted when it was paid for."""
        output = replace(self, usage=Usage(), seconds=0.0).to_output()
        output.cost = 0.0
        return output


def to_row(key: str, answer: StoredAnswer) -> tuple[Any, ...]:
    usage = answer.usage
    return (
        key,
        _encode(answer.text),
        answer.finish_reason,
        _encode(answer.reasoning),
        usage.input_tokens,
        usage.output_tokens,
        usage.cache_read_input_tokens,
        usage.reasoning_output_tokens,
        usage.cache_creation_input_tokens,
        answer.logprobs and json.dumps(answer.logprobs),
        _encode(answer.schema_error),
        answer.seconds,
        answer.model,
        answer.provider,
        answer.created,
    )


def from_row(row: tuple[Any, ...]) -> tuple[str, StoredAnswer]:
    key, text, finish_reason, reasoning, *usage, logprobs, schema_error, seconds, model, provider, created = row
    likely, used = logprobs and json.loads(logprobs), Usage(*usage)
    answer = StoredAnswer(text, finish_reason, reasoning, likely, used, seconds, model, provider, created, schema_error)
    return key, answer


def _encode(text: str | None) -> bytes | None:
    return None if text is None else text.encode("utf-8", "surrogatepass")
