"""What the four formatters share: conversations, their prompts, and which answer is better."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from tasks.base import Step
from tasks.typing import Row

Conversation = list[dict[str, Any]]
"""Messages as they stand in a column."""


class Formatter(Step, ABC):
    """Rows as trainers read them. A subclass says what was said before the answer."""

    @abstractmethod
    def conversation(self, row: Row) -> Conversation:
        """The conversation up to the answer."""

    @abstractmethod
    def columns(self, row: Row, before: Conversation) -> dict[str, Any] | None:
        """The columns that come of a row, besides its prompt; `None` when nothing can be learnt from it."""

    def process(self, inputs: list[Row]) -> Iterator[list[Row]]:
        """The rows with the columns of the format.

        Raises:
            ValueError: If a row is malformed.
        """
        made = list[Row]()
        for row in inputs:
            before = self.conversation(row)
            if (columns := self.columns(row, before)) is not None:
                made.append(Row(row | _prompt(before) | columns, Row.of(row).origin))
        yield made


class SFTFormatter(Formatter, ABC):
    """One answer, to be learnt."""

    @property
    def optional_inputs(self) -> Sequence[str]:
        """`system_prompt`."""
        return ["system_prompt"]

    @property
    def outputs(self) -> Sequence[str]:
        """The prompt, and the whole conversation."""
        return ["prompt", "prompt_id", "messages"]

    def columns(self, row: Row, before: Conversation) -> dict[str, Any]:
        """The conversation with its answer.

        Raises:
            ValueError: If there is no answer.
        """
        if not isinstance(row["generation"], str):
            raise ValueError(f"`generation` is no text: it is `{row['generation']!r}`.")
        return {"messages": [*before, _answer(row["generation"])]}


class DPOFormatter(Formatter, ABC):
    """Two answers, one to be preferred."""

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
        """The best answer and the worst; `None` when no two differ in text and rating."""
        pair = preferred(row)
        if pair is None:
            return None
        models = row.get("generation_models")
        return {
            name: value
            for side, at in zip(("chosen", "rejected"), pair, strict=True)
            for name, value in (
                (side, [*before, _answer(row["generations"][at])]),
                (f"{side}_model", models[at] if models else None),
                (f"{side}_rating", row["ratings"][at]),
            )
        }


def preferred(row: Row) -> tuple[int, int] | None:
    """Which of a row's answers is the best, and which the worst of another text and a lower rating.

    An answer without a text or a rating is passed over; of several that are as good, or as bad, the first is taken.

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
    for at, (text, rating) in enumerate(zip(row["generations"], row["ratings"], strict=True)):
        if not isinstance(rating, int | float | None):
            raise ValueError(f"rating {at + 1} is no number: it is `{rating!r}`.")
        if isinstance(text, str) and rating is not None and rating == rating:  # NaN, a missing number, is not
            rated.append((rating, text.strip(), at))
    best = max(rated, key=lambda each: each[0], default=None)
    below = [each for each in rated if best and each[0] < best[0] and each[1] != best[1]]
    return (best[2], min(below, key=lambda each: each[0])[2]) if best and below else None


def instructed(row: Row) -> Conversation:
    """The conversation a row of `TextGeneration` had: its `system_prompt`, if any, and its `instruction`.

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


def continued(row: Row) -> Conversation:
    """The conversation a row of `ChatGeneration` had: its `messages`.

    Raises:
        ValueError: If the user has not the last word.
    """
    messages = row["messages"]
    if not messages or messages[-1]["role"] != "user":
        raise ValueError("the last of `messages` must be the user's: the answer comes after it.")
    return [dict(message) for message in messages]


def _prompt(conversation: Conversation) -> dict[str, str]:
    """What the user said first, and its fingerprint."""
    first = next(message["content"] for message in conversation if message["role"] == "user")
    text = first if isinstance(first, str) else "\n".join(part["text"] for part in first if part.get("type") == "text")
    return {"prompt": text, "prompt_id": hashlib.sha256(text.encode()).hexdigest()}


def _answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
