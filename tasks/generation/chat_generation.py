"""A task that continues conversations."""

from collections.abc import Sequence
from typing import Any

from tasks.task import Task
from tasks.typing import ChatType, Row


class ChatGeneration(Task):
    """Generate the assistant's next message in a conversation.

    Input columns: `messages`, a list of `{"role": …, "content": …}` that ends with the user's.
    Output columns: `generation`.

    Example:
        ```python
        from llms import LlamaServerLLM
        from tasks import ChatGeneration

        task = ChatGeneration(llm=LlamaServerLLM())
        task.load()
        next(task.process(inputs=[{"messages": [{"role": "user", "content": "What's the capital of Spain?"}]}]))
        ```
    """

    @property
    def inputs(self) -> Sequence[str]:
        """`messages`."""
        return ["messages"]

    @property
    def outputs(self) -> Sequence[str]:
        """`generation`."""
        return ["generation"]

    def format_input(self, row: Row) -> ChatType:
        """Return the conversation.

        Raises:
            ValueError: If the last message is not the user's.
        """
        messages = row["messages"]
        if not messages or messages[-1]["role"] != "user":
            raise ValueError("the last of `messages` must be the user's.")
        return [{"role": message["role"], "content": message["content"]} for message in messages]

    def format_output(self, text: str | None, row: Row) -> dict[str, Any]:
        """Return the generation unchanged."""
        return {"generation": text}
