"""A step that embeds texts with the last layer of a language model."""

from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import Field

from llms import AnyLLM
from llms.typing import HiddenState
from tasks.base import Step
from tasks.typing import ChatType, Row


class GenerateEmbeddings(Step):
    """Embed a text or a conversation: pool the last hidden states of a model into one vector.

    The model must run in this process and return hidden states.

    Input columns: `text`, a text or a list of messages.
    Output columns: `embedding`, a list of numbers; `model_name`.

    Example:
        ```python
        from llms import LlamaServerLLM
        from tasks import GenerateEmbeddings

        step = GenerateEmbeddings(llm=LlamaServerLLM(), pooling="mean")
        step.load()
        next(step.process(inputs=[{"text": "What's the capital of Spain?"}]))
        ```
    """

    llm: AnyLLM = Field(description="The model whose hidden states are taken.")
    pooling: Literal["last", "mean", "cls"] = Field(
        default="last", description="The vector of the last token, the mean of them all, or that of the first (`cls`)."
    )

    @property
    def inputs(self) -> Sequence[str]:
        """`text`."""
        return ["text"]

    @property
    def outputs(self) -> Sequence[str]:
        """`embedding` and `model_name`."""
        return ["embedding", "model_name"]

    def load(self) -> None:
        """Load the model."""
        super().load()
        self.llm.load_hidden_states()

    def unload(self) -> None:
        """Release the model's memory."""
        self.llm.unload()

    def process(self, inputs: list[Row]) -> Iterator[list[Row]]:
        """Yield the rows with their embeddings, computed as one batch.

        Raises:
            ValueError: If a row has no text.
            Fatal: If the model returns no hidden states.
        """
        states = self.llm.get_last_hidden_state([_chat(row["text"]) for row in inputs])
        yield [
            Row(row | {"embedding": self._pool(state), "model_name": self.llm.model_name}, Row.of(row).origin)
            for row, state in zip(inputs, states, strict=True)
        ]

    def _pool(self, state: HiddenState) -> list[float]:
        if not len(state):
            raise ValueError("the text has no tokens.")
        match self.pooling:
            case "last":
                return state[-1].tolist()
            case "mean":
                return state.mean(axis=0, dtype=float).tolist()
            case "cls":
                return state[0].tolist()


def _chat(text: str | ChatType | None) -> ChatType:
    if isinstance(text, str) and text:
        return [{"role": "user", "content": text}]
    if isinstance(text, list) and text:
        return [{"role": message["role"], "content": message["content"]} for message in text]
    raise ValueError(f"`text` is neither a text nor a list of messages: it is `{text!r}`.")
