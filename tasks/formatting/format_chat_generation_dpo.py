"""A formatter of chats for direct preference optimization."""

from collections.abc import Sequence

from tasks.formatting.base import Conversation, DPOFormatter, chat_messages
from tasks.typing import Row


class FormatChatGenerationDPO(DPOFormatter):
    """Format the best and the worst generation for a chat as a preference pair.

    The two differ in text and in rating. A row without such a pair is dropped, which is no failure; a malformed row
    fails. See `FormatTextGenerationDPO`.

    Input columns: `messages`, `generations`, `ratings`; optionally `generation_models`.
    Output columns: `prompt` (the first user message), `prompt_id` (its SHA-256), `chosen`, `chosen_model`,
        `chosen_rating`, `rejected`, `rejected_model`, `rejected_rating`. The models are `None` without
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
        """Return the messages."""
        return chat_messages(row)
