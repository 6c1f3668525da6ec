"""Instructions and answers for supervised fine-tuning."""

from collections.abc import Sequence

from tasks.formatting.base import Conversation, SFTFormatter, instructed
from tasks.typing import Row


class FormatTextGenerationSFT(SFTFormatter):
    """Turns an instruction and its answer into the conversation that supervised fine-tuning reads.

    A row without an answer fails: there is nothing to learn.

    Input columns: `instruction`, `generation`; `system_prompt` if there is one.
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
        """The system prompt, if any, and the instruction."""
        return instructed(row)
