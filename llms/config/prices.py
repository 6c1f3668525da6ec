"""Prices of tokens, from the table that ships with `genai-prices`: nothing is looked up online."""

from functools import lru_cache

from pydantic import Field

from llms.config.strict import StrictModel
from llms.typing import Usage

MILLION = 1_000_000
SAMPLE_TOKENS = 1_000
"""Tokens to ask the table for the price of: many more would be priced as a long context."""


class Price(StrictModel):
    """Dollars per million tokens."""

    input: float = Field(ge=0, description="Of input.")
    output: float = Field(ge=0, description="Of output, reasoning included.")
    cache_read: float | None = Field(default=None, ge=0, description="Of input read from a cache; as input when empty.")

    cache_write: float | None = Field(default=None, ge=0, description="Of input kept in a cache; as input when empty.")

    def cost(self, usage: Usage) -> float:
        """Return dollars for this usage, whose input includes tokens read from a cache and written to one."""
        read, written = usage.cache_read_input_tokens, usage.cache_creation_input_tokens
        dollars = (usage.input_tokens - read - written) * self.input + usage.output_tokens * self.output
        dollars += read * (self.input if self.cache_read is None else self.cache_read)
        dollars += written * (self.input if self.cache_write is None else self.cache_write)
        return dollars / MILLION


@lru_cache
def list_price(provider: str, model: str) -> Price | None:
    """Return the list price of a provider's model, `None` if the table has none.

    Args:
        provider: The table's name of the provider, such as `openai`.
        model: The provider's name of the model.
    """
    from genai_prices import Usage as Tokens
    from genai_prices import calc_price

    def dollars(**tokens: int) -> float:
        return (
            float(calc_price(Tokens(**tokens), model_ref=model, provider_id=provider).total_price)
            * MILLION
            / SAMPLE_TOKENS
        )

    try:
        return Price(
            input=dollars(input_tokens=SAMPLE_TOKENS),
            output=dollars(output_tokens=SAMPLE_TOKENS),
            cache_read=dollars(input_tokens=SAMPLE_TOKENS, cache_read_tokens=SAMPLE_TOKENS),
            cache_write=dollars(input_tokens=SAMPLE_TOKENS, cache_write_tokens=SAMPLE_TOKENS),
        )
    except LookupError:
        return None
