"""A task that answers instructions."""

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from tasks.task import Task
from tasks.templates import Template, render, required_columns
from tasks.typing import ChatType, FormattedInput, Row


class TextGeneration(Task):
    """Generate text for an instruction.

    Input columns: those in `template`; optionally `system_prompt`.
    Output columns: `generation`.

    Example:
        ```python
        from llms import LlamaServerLLM
        from tasks import TextGeneration

        task = TextGeneration(llm=LlamaServerLLM())
        task.load()
        next(task.process(inputs=[{"instruction": "What's the capital of Spain?"}]))
        ```
    """

    system_prompt: str | None = Field(
        default=None, description="Said to the model before every instruction; a row's own `system_prompt` wins."
    )
    template: Template = Field(default="{{ instruction }}", description="Jinja2 over the row's columns: the prompt.")

    @property
    def inputs(self) -> Sequence[str]:
        """The columns in `template`."""
        return required_columns(self.template)

    @property
    def optional_inputs(self) -> Sequence[str]:
        """`system_prompt`."""
        return ["system_prompt"]

    @property
    def outputs(self) -> Sequence[str]:
        """`generation`."""
        return ["generation"]

    def format_input(self, row: Row) -> FormattedInput:
        """Return the chat."""
        return self.chat(row)

    def chat(self, row: Row) -> ChatType:
        """Return the chat: the system prompt, if any, and the rendered template."""
        chat: ChatType = [{"role": "user", "content": render(self.template, row)}]
        system = row.get("system_prompt") or self.system_prompt
        return [{"role": "system", "content": system}, *chat] if system else chat

    def format_output(self, text: str | None, row: Row) -> dict[str, Any]:
        """Return the generation unchanged."""
        return {"generation": text}
