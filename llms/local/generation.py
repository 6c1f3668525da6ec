"""Answers of an engine in this process: written, held against their structure, and written again where they miss it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from llms.errors import Rejected
from llms.structured.validation import mistake
from llms.typing import FinishReason, GenerateOutput, StructuredOutputType, Usage


class Text(Protocol):
    """One text of an engine; `str` of it is what is written. With an `error` there is none, and never will be."""

    tokens: list[int]
    finish_reason: FinishReason | None
    error: Rejected | None


T = TypeVar("T", bound=Text)


@dataclass
class Answer(Generic[T]):
    """The generations of one chat: those that are written, and those that are asked for again.

    Attributes:
        structure: What every text must keep to.
        new: Begins a text, given the number of the generation and of the attempt.
        input_tokens: How long the chat is.
        error: Why there is no answer.
    """

    structure: StructuredOutputType | None
    num_generations: int
    new: Callable[[int, int], T]
    input_tokens: int = 0
    error: Rejected | None = None
    texts: dict[int, T] = field(default_factory=dict)
    mistakes: dict[int, str] = field(default_factory=dict)
    attempts: int = 0
    output_tokens: int = 0

    def begin(self, attempt: int) -> list[T]:
        """New texts: for all generations at first, then for those with a mistake."""
        due = [] if self.error else list(self.mistakes) if attempt else list(range(self.num_generations))
        self.attempts += bool(due)
        self.texts |= {number: self.new(number, attempt) for number in due}
        self.mistakes = dict.fromkeys(due, "")
        return [self.texts[number] for number in due]

    def check(self) -> None:
        """Count and judge the texts that were begun, now that they are written."""
        written = {number: self.texts[number] for number in self.mistakes}
        self.output_tokens += sum(len(text.tokens) for text in written.values())
        self.error = self.error or next((text.error for text in written.values() if text.error), None)
        if not self.error:
            found = {number: self.structure and mistake(self.structure, str(text)) for number, text in written.items()}
            self.mistakes = {number: what for number, what in found.items() if what}

    def output(self, seconds: float) -> GenerateOutput:
        """What came of it; a generation that no attempt got right is `None`."""
        if self.error:
            return GenerateOutput.failed(self.error, self.num_generations)
        for number, what in self.mistakes.items():
            text = str(self.texts[number])
            self.error = Rejected(
                f"None of {self.attempts} texts keeps to the `structured_output`, the last one `{text[:200]}`: {what}.",
                attempts=self.attempts,
            )
            self.texts[number].finish_reason = "error"
        texts = [self.texts[number] for number in range(self.num_generations)]
        return GenerateOutput(
            [None if number in self.mistakes else str(text) for number, text in enumerate(texts)],
            finish_reasons=[text.finish_reason for text in texts],
            usage=Usage(self.input_tokens, self.output_tokens),
            seconds=seconds,
            attempts=self.attempts,
            error=self.error,
        )


def answered(
    answers: Sequence[Answer[T]], write: Callable[[list[T], int], None], attempts: int, since: float
) -> list[GenerateOutput]:
    """Have `write` write the texts of all answers together, and what misses its structure again.

    Args:
        write: Writes texts to their ends, given the number of the attempt.
        attempts: How often at most a text is asked for, where it misses what no automaton can say.
        since: When the work on these answers began, by `time.perf_counter`.
    """
    for attempt in range(attempts):
        if texts := [text for answer in answers for text in answer.begin(attempt)]:
            write(texts, attempt)
        for answer in answers:
            answer.check()
    return [answer.output(time.perf_counter() - since) for answer in answers]
