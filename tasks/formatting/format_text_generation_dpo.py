"""A formatter of instructions for direct preference optimization."""

from collections.abc import Sequence

from tasks.formatting.base import Conversation, DPOFormatter, instruction_messages
from tasks.typing import Row


class FormatTextGenerationDPO(DPOFormatter):
    """Format the best and the worst generation for an instruction as a preference pair.

    The two differ in text and in rating. Generations without text or rating are skipped. A row without such a pair is
    dropped, which is no failure, since ties are frequent; a malformed row fails: lists of unequal length, a rating
    that is no number.

    Input columns: `instruction`, `generations`, `ratings`; optionally `generation_models` and `system_prompt`.
    Output columns: `prompt`, `prompt_id` (its SHA-256), `chosen`, `chosen_model`, `chosen_rating`, `rejected`,
        `rejected_model`, `rejected_rating`. The models are `None` without `generation_models`.

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
        """Return the system prompt, if any, and the instruction."""
        return instruction_messages(row)
