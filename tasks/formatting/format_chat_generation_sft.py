"""A formatter of chats for supervised fine-tuning."""

from collections.abc import Sequence

from tasks.formatting.base import Conversation, SFTFormatter, chat_messages
from tasks.typing import Row


class FormatChatGenerationSFT(SFTFormatter):
    """Format a chat and its generation as a conversation for supervised fine-tuning.

    A row without a generation fails.

    Input columns: `messages`, `generation`.
    Output columns: `prompt` (the first user message), `prompt_id` (its SHA-256), `messages` with the generation.

    Example:
        ```python
        from tasks import FormatChatGenerationSFT

        step = FormatChatGenerationSFT()
        next(step.process(inputs=[{"messages": [{"role": "user", "content": "What's 2 + 2?"}], "generation": "4"}]))
        ```
    """

    @property
    def inputs(self) -> Sequence[str]:
        """`messages` and `generation`."""
        return ["messages", "generation"]

    def conversation(self, row: Row) -> Conversation:
        """Return the messages."""
        return chat_messages(row)
