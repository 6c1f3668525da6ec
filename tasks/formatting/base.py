"""Base classes of steps that format rows for trainers, and the choice of preference pairs."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from tasks.base import Step
from tasks.typing import Row

Conversation = list[dict[str, Any]]
"""A list of messages, as a column holds it."""


class Formatter(Step, ABC):
    """A step that formats rows for a trainer.

    Subclasses define `conversation` and `columns`.
    """

    @abstractmethod
    def conversation(self, row: Row) -> Conversation:
        """Return the conversation before the generation. Override this in subclasses."""

    @abstractmethod
    def columns(self, row: Row, before: Conversation) -> dict[str, Any] | None:
        """Return the columns to add besides the prompt; `None` drops the row. Override this in subclasses."""

    def process(self, inputs: list[Row]) -> Iterator[list[Row]]:
        """Yield the rows with the columns of the format. Usually not overridden.

        Raises:
            ValueError: If a row is malformed.
        """
        formatted = list[Row]()
        for row in inputs:
            before = self.conversation(row)
            if (columns := self.columns(row, before)) is not None:
                formatted.append(Row(row | _prompt(before) | columns, Row.of(row).origin))
        yield formatted


class SFTFormatter(Formatter, ABC):
    """A formatter for supervised fine-tuning: one conversation per row."""

    @property
    def optional_inputs(self) -> Sequence[str]:
        """`system_prompt`."""
        return ["system_prompt"]

    @property
    def outputs(self) -> Sequence[str]:
        """The prompt and the whole conversation."""
        return ["prompt", "prompt_id", "messages"]

    def columns(self, row: Row, before: Conversation) -> dict[str, Any]:
        """Return the conversation with the generation.

        Raises:
            ValueError: If there is no generation.
        """
        if not isinstance(row["generation"], str):
            raise ValueError(f"`generation` is no text: it is `{row['generation']!r}`.")
        return {"messages": [*before, _answer(row["generation"])]}


class DPOFormatter(Formatter, ABC):
    """A formatter for direct preference optimization: a chosen and a rejected conversation per row."""

    keeps_rows: ClassVar[bool] = False

    @property
    def optional_inputs(self) -> Sequence[str]:
        """`generation_models` and `system_prompt`."""
        return ["generation_models", "system_prompt"]

    @property
    def outputs(self) -> Sequence[str]:
        """The prompt, and two conversations with their models and ratings."""
        pair = [f"{side}{part}" for side in ("chosen", "rejected") for part in ("", "_model", "_rating")]
        return ["prompt", "prompt_id", *pair]

    def columns(self, row: Row, before: Conversation) -> dict[str, Any] | None:
        """Return the best and the worst generation; `None` if no two differ in text and rating."""
        pair = preference_pair(row)
        if pair is None:
            return None
        models = row.get("generation_models")
        return {
            name: value
            for side, index in zip(("chosen", "rejected"), pair, strict=True)
            for name, value in (
                (side, [*before, _answer(row["generations"][index])]),
                (f"{side}_model", models[index] if models else None),
                (f"{side}_rating", row["ratings"][index]),
            )
        }


def preference_pair(row: Row) -> tuple[int, int] | None:
    """Return the indexes of the best generation, and of the worst with another text and a lower rating.

    Generations without text or rating are skipped; among equal ratings the first one wins.

    Raises:
        ValueError: If the columns are no lists of equal length, or a rating is no number.
    """
    names = [name for name in ("generations", "ratings", "generation_models") if row.get(name) is not None]
    if missing := {"generations", "ratings"} - set(names):
        raise ValueError(f"`{sorted(missing)[0]}` is `None`, not a list.")
    for name in names:
        if not isinstance(row[name], list | tuple):
            raise ValueError(f"`{name}` is a `{type(row[name]).__name__}`, not a list.")
        if len(row[name]) != len(row["generations"]):
            raise ValueError(f"there are {len(row['generations'])} `generations`, and {len(row[name])} `{name}`.")
    rated = list[tuple[float, str, int]]()
    for index, (text, rating) in enumerate(zip(row["generations"], row["ratings"], strict=True)):
        if not isinstance(rating, int | float | None):
            raise ValueError(f"rating {index + 1} is no number: it is `{rating!r}`.")
        if isinstance(text, str) and rating is not None and rating == rating:  # NaN, a missing number, is not
            rated.append((rating, text.strip(), index))
    best = max(rated, key=lambda each: each[0], default=None)
    below = [each for each in rated if best and each[0] < best[0] and each[1] != best[1]]
    return (best[2], min(below, key=lambda each: each[0])[2]) if best and below else None


def instruction_messages(row: Row) -> Conversation:
    """Return the conversation of a row of `TextGeneration`: its `system_prompt`, if any, and its `instruction`.

    Raises:
        ValueError: If the instruction is no text.
    """
    if not isinstance(row["instruction"], str):
        raise ValueError(f"`instruction` is no text: it is `{row['instruction']!r}`.")
    system = row.get("system_prompt")
    return [
        *([{"role": "system", "content": system}] if system else []),
        {"role": "user", "content": row["instruction"]},
    ]


def chat_messages(row: Row) -> Conversation:
    """Return the conversation of a row of `ChatGeneration`: its `messages`.

    Raises:
        ValueError: If the last message is not the user's.
    """
    messages = row["messages"]
    if not messages or messages[-1]["role"] != "user":
        raise ValueError("the last of `messages` must be the user's: the answer comes after it.")
    return [dict(message) for message in messages]


def _prompt(conversation: Conversation) -> dict[str, str]:
    """Return the first user message and its SHA-256."""
    first = next(message["content"] for message in conversation if message["role"] == "user")
    text = first if isinstance(first, str) else "\n".join(part["text"] for part in first if part.get("type") == "text")
    return {"prompt": text, "prompt_id": hashlib.sha256(text.encode()).hexdigest()}


def _answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
