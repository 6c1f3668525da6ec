"""What a request is charged to the budget of its run: before it is sent, and once it is answered."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol

from llms.engine.model import Model
from llms.errors import Rejected
from llms.limits.cost import Amount, Estimate
from llms.typing import ChatType, GenerateOutput, Usage

CHARS_PER_TOKEN = 4
"""Characters of a token in English, where nobody has counted the tokens."""


class _Request(Protocol):
    @property
    def llm(self) -> Model: ...
    @property
    def chat(self) -> ChatType: ...
    @property
    def num_generations(self) -> int: ...
    @property
    def options(self) -> Mapping[str, Any]: ...


def estimate_request(request: _Request) -> Estimate:
    """Estimate what a request will cost, by the length of its texts and of the longest answer it allows."""
    input_tokens = _count_tokens(request.chat)
    longest = (request.options.get("max_new_tokens") or 0) * request.num_generations
    input, ceiling = Usage(input_tokens), Usage(input_tokens, longest)
    return Estimate(_amount(request.llm, input), _amount(request.llm, ceiling))


def amount_of(llm: Model, chat: ChatType, output: GenerateOutput) -> Amount:
    """Return what an answer costs; by the length of its texts if the provider did not count its tokens."""
    usage = output.usage
    tokens = usage.input_tokens + usage.output_tokens
    if tokens or output.error:
        return Amount(output.cost or 0.0, tokens)
    texts = [text for text in (*output, *output.reasoning) if text]
    estimated = _amount(llm, Usage(_count_tokens(chat), sum(map(len, texts)) // CHARS_PER_TOKEN))
    return Amount(output.cost or estimated.cost, estimated.tokens)


def _amount(llm: Model, usage: Usage) -> Amount:
    return Amount(llm.cost(usage) or 0.0, usage.input_tokens + usage.output_tokens)


def _count_tokens(chat: ChatType) -> int:
    """Estimate the tokens of a chat's texts; what else is in it is not counted."""
    contents = [message["content"] for message in chat]
    texts = [
        text
        for content in contents
        for text in ([content] if isinstance(content, str) else [part.get("text") for part in content])
    ]
    return sum(len(text) for text in texts if isinstance(text, str)) // CHARS_PER_TOKEN


def coerce_paid(generations: Any, num_generations: int) -> GenerateOutput:
    """Return what a model returned as an output; a failed one that keeps its usage if something else is wrong with it.

    Raises:
        TypeError: If it is no list of texts.
        ValueError: If it is invalid, and nothing says what it took.
    """
    try:
        return GenerateOutput.coerce(generations, num_generations)
    except ValueError as error:
        if not isinstance(generations, GenerateOutput) or not isinstance(generations.usage, Usage):
            raise
        output = GenerateOutput.failed(Rejected(f"ValueError: {error}"), num_generations)
        with suppress(ValueError):
            output.usage = generations.usage.normalized()
        output.cost = generations.cost if isinstance(generations.cost, float | int | None) else None
        return output
