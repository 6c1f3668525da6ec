"""Conversations for supervised fine-tuning."""

from collections.abc import Sequence

from tasks.formatting.base import Conversation, SFTFormatter, continued
from tasks.typing import Row


class FormatChatGenerationSFT(SFTFormatter):
    """Puts the answer at the end of its conversation, which is what supervised fine-tuning reads.

    A row without an answer fails: there is nothing to learn.

    Input columns: `messages`, `generation`.
    Output columns: `prompt` (what the user said first), `prompt_id` (its SHA-256), `messages` with the answer.

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
        """The messages."""
        return continued(row)
