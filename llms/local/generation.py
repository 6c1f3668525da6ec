"""Token sequences of an engine in this process, validated and generated again where they break their structure."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from llms.errors import Rejected
from llms.local.automaton import Automaton
from llms.structured.validation import validation_error
from llms.typing import FinishReason, GenerateOutput, Logprobs, StructuredOutputType, Usage


@dataclass
class TokenSequence:
    """One text while it is generated. With an `error` there is none, and never will be.

    Attributes:
        prompt: Tokens before it.
        max_tokens: Tokens it has at most.
        seed: Determines every draw, together with `generation` and `attempt`; `None` for a different text each time.
        generation: Number of the text among those of its prompt.
        attempt: Number of the attempt at this generation.
        automaton: Constrains its tokens.
        stop: Texts at which it ends; they are not part of it.
        logprobs: Log probabilities of its tokens, where they were asked for.
    """

    prompt: list[int] = field(default_factory=list)
    max_tokens: int = 0
    seed: int | None = None
    generation: int = 0
    attempt: int = 0
    automaton: Automaton | None = None
    stop: tuple[str, ...] = ()
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    logprobs: Logprobs | None = None
    error: Rejected | None = None

    @property
    def entropy(self) -> list[int] | None:
        """The seed of this sequence alone; `None` for a random one."""
        return None if self.seed is None else [self.seed, self.generation, self.attempt]

    def fresh_copy(self, generation: int, attempt: int) -> "TokenSequence":
        """Return a sequence like this one without tokens."""
        return replace(self, generation=generation, attempt=attempt, tokens=[])


@dataclass
class PendingGenerations:
    """The generations of one chat, until all are valid or attempts run out.

    Attributes:
        structure: Every text is validated against it.
        prototype: Copied for every sequence.
        error: Why the chat has no answer.
        validation_errors: Of each generation that is to be generated again, by its number.
        output_tokens: Tokens of all attempts together.
    """

    structure: StructuredOutputType | None
    num_generations: int
    prototype: TokenSequence
    error: Rejected | None = None
    sequences: dict[int, TokenSequence] = field(default_factory=dict)
    validation_errors: dict[int, str] = field(default_factory=dict)
    attempts: int = 0
    output_tokens: int = 0

    def begin_attempt(self, attempt: int) -> list[TokenSequence]:
        """Return new sequences: for all generations at first, later for the invalid ones."""
        due = [] if self.error else list(self.validation_errors) if attempt else list(range(self.num_generations))
        self.attempts += bool(due)
        self.sequences |= {number: self.prototype.fresh_copy(number, attempt) for number in due}
        self.validation_errors = dict.fromkeys(due, "")
        return [self.sequences[number] for number in due]

    def validate(self) -> None:
        """Count and validate the sequences of this attempt, now that they are complete."""
        complete = {number: self.sequences[number] for number in self.validation_errors}
        self.output_tokens += sum(len(sequence.tokens) for sequence in complete.values())
        self.error = self.error or next((each.error for each in complete.values() if each.error), None)
        if not self.error:
            structure = self.structure
            found = {number: structure and validation_error(structure, each.text) for number, each in complete.items()}
            self.validation_errors = {number: error for number, error in found.items() if error}

    def to_output(self, seconds: float) -> GenerateOutput:
        """Return the texts; `None` for a generation that no attempt got right."""
        if self.error:
            return GenerateOutput.failed(self.error, self.num_generations)
        for number, error in self.validation_errors.items():
            sequence = self.sequences[number]
            self.error = Rejected(
                f"None of {self.attempts} texts keeps to the `structured_output`, the last one "
                f"`{sequence.text[:200]}`: {error}.",
                attempts=self.attempts,
            )
            sequence.finish_reason = "error"
        sequences = [self.sequences[number] for number in range(self.num_generations)]
        return GenerateOutput(
            [None if number in self.validation_errors else each.text for number, each in enumerate(sequences)],
            finish_reasons=[each.finish_reason for each in sequences],
            logprobs=[each.logprobs for each in sequences],
            usage=Usage(len(self.prototype.prompt), self.output_tokens),
            seconds=seconds,
            attempts=self.attempts,
            error=self.error,
        )


def generate_validated(
    chats: Sequence[PendingGenerations],
    write: Callable[[list[TokenSequence], int], None],
    max_attempts: int,
    started: float,
) -> list[GenerateOutput]:
    """Generate the sequences of all chats in one batch, and the invalid ones again.

    Args:
        write: Generates sequences to their ends, given the number of the attempt.
        max_attempts: Attempts at a text, where it breaks what no automaton can express.
        started: When the work on these chats began, by `time.perf_counter`.
    """
    for attempt in range(max_attempts):
        if sequences := [sequence for chat in chats for sequence in chat.begin_attempt(attempt)]:
            write(sequences, attempt)
        for chat in chats:
            chat.validate()
    return [chat.to_output(time.perf_counter() - started) for chat in chats]
