"""Answers of a given shape."""

from collections.abc import Sequence

from tasks.generation.text_generation import TextGeneration
from tasks.typing import FormattedInput, Row


class StructuredGeneration(TextGeneration):
    """Answers an instruction with JSON of a schema, or with a text that matches a pattern.

    The shape is the model's `structured_output`, or a row's own, which wins. Without either the answer is free.

    Input columns: those the template names; `system_prompt` and `structured_output` (`{"format": "json" or "regex",
        "schema": …}`) if there are any.
    Output columns: `generation`, a text: JSON is to be parsed with `json.loads`.

    Example:
        ```python
        from llms import LlamaServerLLM
        from tasks import StructuredGeneration

        schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
        task = StructuredGeneration(llm=LlamaServerLLM(structured_output={"format": "json", "schema": schema}))
        task.load()
        next(task.process(inputs=[{"instruction": "Create a knight."}]))
        ```
    """

    @property
    def optional_inputs(self) -> Sequence[str]:
        """`system_prompt` and `structured_output`."""
        return ["system_prompt", "structured_output"]

    def format_input(self, row: Row) -> FormattedInput:
        """The chat, and with it the shape its answer is to have if the row brings one."""
        return self.chat(row) if (shape := row.get("structured_output")) is None else (self.chat(row), shape)
