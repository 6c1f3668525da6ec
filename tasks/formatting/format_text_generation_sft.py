"""A formatter of instructions for supervised fine-tuning."""

from collections.abc import Sequence

from tasks.formatting.base import Conversation, SFTFormatter, instruction_messages
from tasks.typing import Row


class FormatTextGenerationSFT(SFTFormatter):
    """Format an instruction and its generation as a conversation for supervised fine-tuning.

    A row without a generation fails.

    Input columns: `instruction`, `generation`; optionally `system_prompt`.
    Output columns: `prompt`, `prompt_id` (its SHA-256), `messages`.

    Example:
        ```python
        from tasks import FormatTextGenerationSFT

        step = FormatTextGenerationSFT()
        next(step.process(inputs=[{"instruction": "What's 2 + 2?", "generation": "4"}]))
        ```
    """

    @property
    def inputs(self) -> Sequence[str]:
        """`instruction` and `generation`."""
        return ["instruction", "generation"]

    def conversation(self, row: Row) -> Conversation:
        """Return the system prompt, if any, and the instruction."""
        return instruction_messages(row)
