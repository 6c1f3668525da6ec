"""Answers of an engine in this process: written, held against their structure, and written again where they miss it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from llms.errors import Rejected
from llms.structured.validation import validation_error
from llms.typing import FinishReason, GenerateOutput, StructuredOutputType, Usage


class TokenSequence(Protocol):
    """One text of an engine; `str` of it is what is written. With an `error` there is none, and never will be."""

    tokens: list[int]
    finish_reason: FinishReason | None
    error: Rejected | None


T = TypeVar("T", bound=TokenSequence)


@dataclass
class PendingGenerations(Generic[T]):
    """The generations of one chat: those that are written, and those that are asked for again.

    Attributes:
        structure: What every text must keep to.
        new: Begins a text, given the number of the generation and of the attempt.
        input_tokens: How long the chat is.
        error: Why there is no answer.
    """

    structure: StructuredOutputType | None
    num_generations: int
    new_sequence: Callable[[int, int], T]
    input_tokens: int = 0
    error: Rejected | None = None
    sequences: dict[int, T] = field(default_factory=dict)
    validation_errors: dict[int, str] = field(default_factory=dict)
    attempts: int = 0
    output_tokens: int = 0

    def begin_attempt(self, attempt: int) -> list[T]:
        """New texts: for all generations at first, then for those with a mistake."""
        due = [] if self.error else list(self.validation_errors) if attempt else list(range(self.num_generations))
        self.attempts += bool(due)
        self.sequences |= {number: self.new_sequence(number, attempt) for number in due}
        self.validation_errors = dict.fromkeys(due, "")
        return [self.sequences[number] for number in due]

    def validate(self) -> None:
        """Count and judge the texts that were begun, now that they are written."""
        written = {number: self.sequences[number] for number in self.validation_errors}
        self.output_tokens += sum(len(text.tokens) for text in written.values())
        self.error = self.error or next((text.error for text in written.values() if text.error), None)
        if not self.error:
            found = {
                number: self.structure and validation_error(self.structure, str(text))
                for number, text in written.items()
            }
            self.validation_errors = {number: what for number, what in found.items() if what}

    def to_output(self, seconds: float) -> GenerateOutput:
        """What came of it; a generation that no attempt got right is `None`."""
        if self.error:
            return GenerateOutput.failed(self.error, self.num_generations)
        for number, what in self.validation_errors.items():
            text = str(self.sequences[number])
            self.error = Rejected(
                f"None of {self.attempts} texts keeps to the `structured_output`, the last one `{text[:200]}`: {what}.",
                attempts=self.attempts,
            )
            self.sequences[number].finish_reason = "error"
        texts = [self.sequences[number] for number in range(self.num_generations)]
        return GenerateOutput(
            [None if number in self.validation_errors else str(text) for number, text in enumerate(texts)],
            finish_reasons=[text.finish_reason for text in texts],
            usage=Usage(self.input_tokens, self.output_tokens),
            seconds=seconds,
            attempts=self.attempts,
            error=self.error,
        )


def generate_validated(
    answers: Sequence[PendingGenerations[T]], write: Callable[[list[T], int], None], attempts: int, since: float
) -> list[GenerateOutput]:
    """Have `write` write the texts of all answers together, and what misses its structure again.

    Args:
        write: Writes texts to their ends, given the number of the attempt.
        attempts: How often at most a text is asked for, where it misses what no automaton can say.
        since: When the work on these answers began, by `time.perf_counter`.
    """
    for attempt in range(attempts):
        if texts := [text for answer in answers for text in answer.begin_attempt(attempt)]:
            write(texts, attempt)
        for answer in answers:
            answer.validate()
    return [answer.to_output(time.perf_counter() - since) for answer in answers]
