"""What requests cost: what those that were answered did, and what the next ones are expected to."""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

MAX_UNMEASURED_IN_FLIGHT = 8
"""Requests of a step to a model in flight while it is not known what they cost."""

MAX_IN_FLIGHT_PER_ANSWER = 4
"""Requests in flight, at most, for each that was answered: the next ones may cost more than the first ones did."""

RECENT_ANSWERS = 64
"""Answers that say what the next one will cost."""

EXPECTED_QUANTILE = 0.95

JUMP = 2.0
"""An answer that costs so many times what was reserved for it is followed by caution."""


class Amount(NamedTuple):
    """Something to spend.

    Attributes:
        cost: Dollars.
        tokens: Tokens, input and output together.
    """

    cost: float = 0.0
    tokens: float = 0.0

    def plus(self, other: "Amount") -> "Amount":
        """Return the sum."""
        return Amount(self.cost + other.cost, self.tokens + other.tokens)

    def times(self, factor: float) -> "Amount":
        """Return the multiple."""
        return Amount(self.cost * factor, self.tokens * factor)

    def at_least(self, other: "Amount") -> "Amount":
        """Return the larger of each."""
        return Amount(max(self.cost, other.cost), max(self.tokens, other.tokens))


class Estimate(NamedTuple):
    """An estimate of one request before it is sent.

    Attributes:
        input: Its prompt alone.
        ceiling: Its prompt and the longest answer it allows; its prompt alone if it allows any.
    """

    input: Amount = Amount()
    ceiling: Amount = Amount()


@dataclass(eq=False, slots=True)
class RequestGroup:
    """Some requests, and the sums of their estimates."""

    requests: int = 0
    inputs: Amount = Amount()
    ceilings: Amount = Amount()

    def count(self, estimate: Estimate, change: int) -> None:
        """Count one more or one less."""
        self.requests += change
        is_empty = not self.requests  # then nothing is left of how floats add up
        self.inputs = Amount() if is_empty else self.inputs.plus(estimate.input.times(change))
        self.ceilings = Amount() if is_empty else self.ceilings.plus(estimate.ceiling.times(change))


@dataclass(eq=False, slots=True)
class RequestStats:
    """The requests of one step to one model: those in flight, and what those before them cost."""

    name: str
    admitted: RequestGroup = field(default_factory=RequestGroup)
    sent: RequestGroup = field(default_factory=RequestGroup)  # of those
    answers: int = 0
    total: Amount = Amount()
    total_input: Amount = Amount()
    recent: deque[Amount] = field(default_factory=lambda: deque(maxlen=RECENT_ANSWERS))
    cautious: int = 0  # answers until the dearest is no longer expected
    usual: Amount = Amount()

    def expect(self, estimate: Estimate) -> Amount:
        """Return what the next request is expected to cost."""
        return self._expect(1, estimate.input) if self.answers else estimate.ceiling

    def reserved(self, group: RequestGroup) -> Amount:
        """Return what those of a group are expected to cost."""
        return self._expect(group.requests, group.inputs) if self.answers else group.ceilings

    def _expect(self, count: int, inputs: Amount) -> Amount:
        """Return what so many requests will cost: what is usual, and more if their prompts are longer than usual."""
        extra = inputs.plus(self.total_input.times(-count / self.answers)).at_least(Amount())
        return self.usual.times(count).plus(extra)

    @property
    def is_full(self) -> bool:
        """Whether too few were answered to have more in flight."""
        return self.admitted.requests >= max(MAX_UNMEASURED_IN_FLIGHT, MAX_IN_FLIGHT_PER_ANSWER * self.answers)

    def resume(self, total: Amount, answers: int) -> None:
        """Begin with what so many answers of earlier attempts cost."""
        self.total = self.total_input = total  # what their prompts cost is not known: no more than all
        self.answers, self.usual = answers, total.times(1 / answers)

    def measure(self, spent: Amount, estimate: Estimate) -> None:
        """Learn from an answer what the next ones will cost."""
        jumped = self.answers and any(each > JUMP * usual for each, usual in zip(spent, self.usual, strict=True))
        self.cautious = RECENT_ANSWERS if jumped else max(0, self.cautious - 1)
        self.answers += 1
        self.total = self.total.plus(spent)
        self.total_input = self.total_input.plus(estimate.input)
        self.recent.append(spent)
        rank = (len(self.recent) if self.cautious else math.ceil(EXPECTED_QUANTILE * len(self.recent))) - 1
        dear = Amount(*(sorted(each)[rank] for each in zip(*self.recent, strict=True)))
        self.usual = self.total.times(1 / self.answers).at_least(dear)
