"""Instructions with a better and a worse answer, for direct preference optimization."""

from collections.abc import Sequence

from tasks.formatting.base import Conversation, DPOFormatter, instructed
from tasks.typing import Row


class FormatTextGenerationDPO(DPOFormatter):
    """Makes a pair of an instruction's answers, the best rated and the worst, as preference optimization reads it.

    The two differ in text and in rating. An answer the judge did not rate, or the model did not give, is passed over.
    A row where no two answers differ is dropped, and is no failure: nothing went wrong, judges give the same rating
    often, and ten thousand rows must not fail because a quarter of them are ties. What fails is a row that is
    malformed: lists of unequal length, a rating that is no number.

    Input columns: `instruction`, `generations`, `ratings`; `generation_models` and `system_prompt` if there are any.
    Output columns: `prompt`, `prompt_id` (its SHA-256), `chosen`, `chosen_model`, `chosen_rating`, `rejected`,
        `rejected_model`, `rejected_rating`. The models are `None` when there are no `generation_models`.

    Example:
        ```python
        from tasks import FormatTextGenerationDPO

        step = FormatTextGenerationDPO()
        next(step.process(inputs=[{"instruction": "What's 2 + 2?", "generations": ["4", "5"], "ratings": [5, 1]}]))
        ```
    """

    @property
    def inputs(self) -> Sequence[str]:
        """`instruction`, `generations` and `ratings`."""
        return ["instruction", "generations", "ratings"]

    def conversation(self, row: Row) -> Conversation:
        """The system prompt, if any, and the instruction."""
        return instructed(row)
