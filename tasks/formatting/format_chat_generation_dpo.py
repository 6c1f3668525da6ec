"""Conversations with a better and a worse answer, for direct preference optimization."""

from collections.abc import Sequence

from tasks.formatting.base import Conversation, DPOFormatter, continued
from tasks.typing import Row


class FormatChatGenerationDPO(DPOFormatter):
    """Makes a pair of a conversation's answers, the best rated and the worst, as preference optimization reads it.

    The two differ in text and in rating. A row where no two do is dropped, and is no failure; one that is malformed
    fails: see `FormatTextGenerationDPO`.

    Input columns: `messages`, `generations`, `ratings`; `generation_models` if there are any.
    Output columns: `prompt` (what the user said first), `prompt_id` (its SHA-256), `chosen`, `chosen_model`,
        `chosen_rating`, `rejected`, `rejected_model`, `rejected_rating`. The models are `None` when there are no
        `generation_models`.

    Example:
        ```python
        from tasks import FormatChatGenerationDPO

        step = FormatChatGenerationDPO()
        chat = [{"role": "user", "content": "What's 2 + 2?"}]
        next(step.process(inputs=[{"messages": chat, "generations": ["4", "5"], "ratings": [5, 1]}]))
        ```
    """

    @property
    def inputs(self) -> Sequence[str]:
        """`messages`, `generations` and `ratings`."""
        return ["messages", "generations", "ratings"]

    def conversation(self, row: Row) -> Conversation:
        """The messages."""
        return continued(row)
