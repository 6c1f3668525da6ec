"""One batch of texts while transformers' `generate` writes it: what each may say next, and where it ends."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llms.errors import Rejected
from llms.local.automaton import Automaton
from llms.typing import FinishReason

MAX_CACHED_MASKS = 512
"""How many masks over the vocabulary a batch keeps: those of a large one have a megabyte per eight."""

LogitsProcessor = Callable[[Any, Any], Any]
"""A logits processor: the tokens so far and the scores of the next ones → scores."""


@dataclass
class TokenSequence:
    """One text in the making: what it begins with, what it must keep to, and what there is of it.

    Attributes:
        prompt: The tokens before it.
        limit: How many tokens it has at most.
        seed: What every choice follows from, together with `number`; `None` for another text each time.
        number: Which text of those with this prompt, and which attempt at it.
        automaton: What it keeps to.
        stop: Texts at which it ends; they are not part of it.
        error: Why it cannot be written.
    """

    prompt: list[int]
    max_tokens: int
    seed: int | None = None
    number: tuple[int, int] = (0, 0)
    automaton: Automaton | None = None
    stop: tuple[str, ...] = ()
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    error: Rejected | None = None

    def __str__(self) -> str:
        return self.text

    def fresh_copy(self, number: int, attempt: int) -> "TokenSequence":
        """Another text like this one, with nothing written."""
        return replace(self, number=(number, attempt), tokens=[])

    def uniform_draws(self) -> NDArray[np.float32]:
        """What decides about each of its tokens: a number in [0, 1)."""
        seed = None if self.seed is None else [self.seed, *self.number]
        return np.random.default_rng(seed).random(self.max_tokens, dtype=np.float32)


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, for every text of a batch; the names are transformers' own.

    Attributes:
        do_sample: Whether to draw tokens; the likeliest are taken otherwise.
    """

    do_sample: bool = True
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0

    def with_options(self, options: Mapping[str, Any]) -> "Sampling":
        """The same with these runtime parameters: a temperature of 0 means not to sample, any other one to do so."""
        if options.get("temperature", self.temperature) == 0:
            return replace(self, **{**options, "temperature": 1.0, "do_sample": False})
        return replace(self, **{**({"do_sample": True} if "temperature" in options else {}), **options})

    def logits_warpers(self, transformers: Any) -> list[LogitsProcessor]:
        """What narrows the scores before a token is drawn, in the order of transformers."""
        steps: list[LogitsProcessor] = []
        if self.do_sample and self.temperature != 1.0:
            steps.append(transformers.TemperatureLogitsWarper(self.temperature))
        if self.do_sample and self.top_k:
            steps.append(transformers.TopKLogitsWarper(self.top_k))
        if self.do_sample and self.top_p < 1.0:
            steps.append(transformers.TopPLogitsWarper(self.top_p))
        if self.do_sample and self.min_p:
            steps.append(transformers.MinPLogitsWarper(self.min_p))
        if self.do_sample and self.typical_p < 1.0:
            steps.append(transformers.TypicalLogitsWarper(self.typical_p))
        return steps


class Batch:
    """The rows of one call of `generate`. No row depends on which others are beside it.

    Attributes:
        tokens: What each row has said.
        reasons: Why each row has ended; `None` while it has not.
    """

    def __init__(
        self, torch: Any, texts: list[TokenSequence], prompts: Any, read: Any, ends: list[int], pieces: Sequence[bytes]
    ) -> None:
        """Begin behind the prompts.

        Args:
            torch: The package.
            texts: One per row.
            prompts: Their tokens, padded on the left: `[rows, width]`.
            read: Which of those are no padding, of the same shape.
            ends: The tokens that end a text.
            pieces: The bytes every token stands for, where a text has an automaton or a stop.
        """
        self.tokens: list[list[int]] = [[] for _ in texts]
        self.finish_reasons: list[FinishReason | None] = [None] * len(texts)
        self._torch, self._texts, self._pieces = torch, texts, pieces
        self._ends, self._width = frozenset(ends), prompts.shape[1]
        # To transformers padding is something that was said: here a row is padded with a word of its own.
        self._prompts = prompts.where(read.bool(), prompts[:, -1:])
        self._states = [text.automaton.start_state if text.automaton else 0 for text in texts]
        self._written = [bytearray() for _ in texts]
        self._stops = [tuple(stop.encode() for stop in text.stop) for text in texts]
        self._forbidden: dict[tuple[int, int, int], Any] = {}
        self._uniform_draws: Any = None

    def logits_processors(self, transformers: Any, sampling: Sampling) -> list[LogitsProcessor]:
        """The logits processors for `generate`, which is to take the likeliest token of what they leave."""
        steps: list[LogitsProcessor] = []
        if sampling.repetition_penalty != 1.0:
            penalty = transformers.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)
            steps.append(lambda tokens, scores: penalty(self._said(tokens), scores))
        if any(text.automaton for text in self._texts):
            steps.append(self.mask_logits)
        steps += sampling.logits_warpers(transformers)
        if sampling.do_sample:
            steps.append(self.sample)
        return steps

    def mask_logits(self, tokens: Any, scores: Any) -> Any:
        """Leave to every row only the tokens after which it can still keep to its structure, and end in time."""
        masks = [self._mask(row, scores) for row in range(len(self._texts))]
        return scores.masked_fill(self._torch.stack(masks), float("-inf"))

    def sample(self, tokens: Any, scores: Any) -> Any:
        """Choose a token for every row, by that row's own luck, and leave only this one."""
        torch = self._torch
        if self._uniform_draws is None:
            self._uniform_draws = torch.from_numpy(self._draws()).to(scores.device)
        odds = scores.softmax(-1)
        mass = odds.cumsum(-1)
        at = tokens.shape[1] - self._width
        chosen = torch.searchsorted(mass, self._uniform_draws[:, at : at + 1] * mass[:, -1:], right=True)
        chosen = chosen.clamp_(max=scores.shape[1] - 1)
        # A sum in parallel is not quite in order: never take what has no chance at all.
        chosen = torch.where(odds.gather(1, chosen) > 0, chosen, odds.argmax(-1, keepdim=True))
        return torch.full_like(scores, float("-inf")).scatter_(1, chosen, 0.0)

    def stop(self, tokens: Any, scores: Any, **_: Any) -> Any:
        """Take in the token that every row was given; which rows are at their end, as a stopping criterion says it."""
        for row, token in enumerate(tokens[:, -1].tolist()):
            if self.finish_reasons[row] is None:
                self.finish_reasons[row] = self._take(row, token)
        return self._torch.tensor([reason is not None for reason in self.finish_reasons], device=tokens.device)

    def _take(self, row: int, token: int) -> FinishReason | None:
        text, said = self._texts[row], self.tokens[row]
        said.append(token)
        if token in self._ends:
            return "stop"
        whole = False
        if text.automaton:
            state = self._states[row] = text.automaton.next_state(self._states[row], token)
            whole = state in text.automaton.accepting_states
            if whole and not len(text.automaton.allowed_tokens(state, text.max_tokens - len(said))):
                return "stop"
        if self._stops[row] and self._stopped(row, token):
            return "stop"
        if len(said) >= text.max_tokens:
            return "stop" if whole else "length"
        return None

    def _stopped(self, row: int, token: int) -> bool:
        written, piece = self._written[row], self._pieces[token]
        written += piece
        return any(written.find(stop, max(0, len(written) - len(piece) - len(stop))) >= 0 for stop in self._stops[row])

    def _mask(self, row: int, scores: Any) -> Any:
        """What a row must not say next, as a mask over the vocabulary."""
        text, state = self._texts[row], self._states[row]
        if text.automaton is None or self.finish_reasons[row] is not None:
            return self._of((0, 0, -1), None, scores)
        allowed = text.automaton.allowed_tokens(state, text.max_tokens - len(self.tokens[row]))
        # The fewer tokens are left, the fewer are allowed: of one state, as many are always the same.
        return self._of((id(text.automaton), state, len(allowed)), text.automaton, scores, allowed)

    def _of(self, key: tuple[int, int, int], automaton: Automaton | None, scores: Any, allowed: Any = None) -> Any:
        if (mask := self._forbidden.get(key)) is None:
            forbidden = np.full(scores.shape[1], automaton is not None)
            if automaton:
                forbidden[allowed] = False
                forbidden[list(self._ends)] = key[1] not in automaton.accepting_states
            if len(self._forbidden) >= MAX_CACHED_MASKS:
                self._forbidden.clear()
            mask = self._forbidden[key] = self._torch.from_numpy(forbidden).to(scores.device)
        return mask

    def _said(self, tokens: Any) -> Any:
        return self._torch.cat([self._prompts, tokens[:, self._width :]], dim=1)

    def _draws(self) -> Any:
        """The luck of every row."""
        lots = np.zeros((len(self._texts), max(text.max_tokens for text in self._texts)), dtype=np.float32)
        for row, text in enumerate(self._texts):
            lots[row, : text.max_tokens] = text.uniform_draws()
        return lots
