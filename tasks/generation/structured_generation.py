"""A task that generates text of a schema or a regular expression."""

from collections.abc import Sequence

from tasks.generation.text_generation import TextGeneration
from tasks.typing import FormattedInput, Row


class StructuredGeneration(TextGeneration):
    """Generate JSON of a schema, or text that matches a regular expression, for an instruction.

    The row's `structured_output` takes precedence over the model's. Without either the generation is unconstrained.

    Input columns: those in `template`; optionally `system_prompt` and `structured_output` (`{"format": "json" or
        "regex", "schema": …}`).
    Output columns: `generation`, a text; parse JSON with `json.loads`.

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
        """Return the chat, with the row's `structured_output` if there is one."""
        chat, structured_output = self.chat(row), row.get("structured_output")
        return chat if structured_output is None else (chat, structured_output)
