"""The next turn of a conversation."""

from collections.abc import Sequence
from typing import Any

from tasks.task import Task
from tasks.typing import ChatType, Row


class ChatGeneration(Task):
    """Continues a conversation with the assistant's next message.

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
        """The conversation itself."""
        messages = row["messages"]
        if not messages or messages[-1]["role"] != "user":
            raise ValueError("the last of `messages` must be the user's.")
        return [{"role": message["role"], "content": message["content"]} for message in messages]

    def format_output(self, text: str | None, row: Row) -> dict[str, Any]:
        """The answer as it came."""
        return {"generation": text}
