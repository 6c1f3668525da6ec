"""One batch of sequences in transformers' `generate`: token masks, sampling and stopping criteria per row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llms.local.automaton import Automaton
from llms.local.generation import TokenSequence
from llms.typing import FinishReason

MAX_CACHED_MASKS = 512
"""Token masks that a batch caches: eight masks over a large vocabulary take a megabyte."""

LogitsProcessor = Callable[[Any, Any], Any]
"""Token ids so far and the logits of the next ones → logits."""


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters of a whole batch, named as in transformers.

    Attributes:
        do_sample: Whether to sample; greedy otherwise.
    """

    do_sample: bool = True
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0

    def with_options(self, options: Mapping[str, Any]) -> "Sampling":
        """Apply runtime parameters: a temperature of 0 turns sampling off, any other one turns it on."""
        if options.get("temperature", self.temperature) == 0:
            return replace(self, **{**options, "temperature": 1.0, "do_sample": False})
        return replace(self, **{**({"do_sample": True} if "temperature" in options else {}), **options})

    def logits_warpers(self, transformers: Any) -> list[LogitsProcessor]:
        """Create transformers' logits warpers, in its order."""
        warpers: list[LogitsProcessor] = []
        if self.do_sample and self.temperature != 1.0:
            warpers.append(transformers.TemperatureLogitsWarper(self.temperature))
        if self.do_sample and self.top_k:
            warpers.append(transformers.TopKLogitsWarper(self.top_k))
        if self.do_sample and self.top_p < 1.0:
            warpers.append(transformers.TopPLogitsWarper(self.top_p))
        if self.do_sample and self.min_p:
            warpers.append(transformers.MinPLogitsWarper(self.min_p))
        if self.do_sample and self.typical_p < 1.0:
            warpers.append(transformers.TypicalLogitsWarper(self.typical_p))
        return warpers


class Batch:
    """The rows of one call of `generate`. No row depends on which others are beside it.

    Attributes:
        tokens: Generated tokens of each row.
        finish_reasons: Why each row has ended; `None` while it has not.
    """

    def __init__(
        self,
        torch: Any,
        sequences: list[TokenSequence],
        prompts: Any,
        attention_mask: Any,
        end_tokens: list[int],
        token_bytes: Sequence[bytes],
    ) -> None:
        """Begin after the prompts.

        Args:
            torch: The package.
            sequences: One per row.
            prompts: Their tokens, padded on the left, `[rows, width]`.
            attention_mask: 0 where `prompts` is padding, `[rows, width]`.
            end_tokens: Tokens that end a text.
            token_bytes: Bytes of every token, where a sequence has stop texts.
        """
        self.tokens: list[list[int]] = [[] for _ in sequences]
        self.finish_reasons: list[FinishReason | None] = [None] * len(sequences)
        self._torch, self._sequences, self._token_bytes = torch, sequences, token_bytes
        self._end_tokens, self._width = frozenset(end_tokens), prompts.shape[1]
        # transformers penalizes the padding token as if it was used: pad with a token of the row itself.
        self._prompts = prompts.where(attention_mask.bool(), prompts[:, -1:])
        self._states = [each.automaton.start_state if each.automaton else 0 for each in sequences]
        self._output = [bytearray() for _ in sequences]
        self._stops = [tuple(stop.encode() for stop in each.stop) for each in sequences]
        self._masks: dict[tuple[int, int, int], Any] = {}
        self._draws: Any = None

    def logits_processors(self, transformers: Any, sampling: Sampling) -> list[LogitsProcessor]:
        """Create the logits processors of a greedy `generate`: where the batch samples, they leave one token a row."""
        processors: list[LogitsProcessor] = []
        if sampling.repetition_penalty != 1.0:
            penalty = transformers.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)
            processors.append(lambda tokens, logits: penalty(self._without_padding(tokens), logits))
        if any(sequence.automaton for sequence in self._sequences):
            processors.append(self.mask_logits)
        processors += sampling.logits_warpers(transformers)
        if sampling.do_sample:
            processors.append(self.sample)
        return processors

    def mask_logits(self, tokens: Any, logits: Any) -> Any:
        """Mask the tokens after which a row could not satisfy its structure within its remaining tokens."""
        masks = [self._mask(row, logits) for row in range(len(self._sequences))]
        return logits.masked_fill(self._torch.stack(masks), float("-inf"))

    def sample(self, tokens: Any, logits: Any) -> Any:
        """Sample a token for every row by the row's own draws, and mask all others."""
        torch = self._torch
        if self._draws is None:
            self._draws = torch.from_numpy(self._draw()).to(logits.device)
        odds = logits.softmax(-1)
        mass = odds.cumsum(-1)
        step = tokens.shape[1] - self._width
        sampled = torch.searchsorted(mass, self._draws[:, step : step + 1] * mass[:, -1:], right=True)
        sampled = sampled.clamp_(max=logits.shape[1] - 1)
        # A parallel sum may be out of order by rounding: never take a token of probability 0.
        sampled = torch.where(odds.gather(1, sampled) > 0, sampled, odds.argmax(-1, keepdim=True))
        return torch.full_like(logits, float("-inf")).scatter_(1, sampled, 0.0)

    def stop(self, tokens: Any, logits: Any, **_: Any) -> Any:
        """Take in the last token of every row; a stopping criterion, `[rows]`, true where a row has ended."""
        for row, token in enumerate(tokens[:, -1].tolist()):
            if self.finish_reasons[row] is None:
                self.finish_reasons[row] = self._append(row, token)
        return self._torch.tensor([reason is not None for reason in self.finish_reasons], device=tokens.device)

    def _append(self, row: int, token: int) -> FinishReason | None:
        sequence, tokens = self._sequences[row], self.tokens[row]
        tokens.append(token)
        if token in self._end_tokens:
            return "stop"
        is_accepting = False
        if automaton := sequence.automaton:
            state = self._states[row] = automaton.next_state(self._states[row], token)
            is_accepting = state in automaton.accepting_states
            if is_accepting and not len(automaton.allowed_tokens(state, sequence.max_tokens - len(tokens))):
                return "stop"
        if self._stops[row] and self._has_stop_text(row, token):
            return "stop"
        if len(tokens) >= sequence.max_tokens:
            return "stop" if is_accepting else "length"
        return None

    def _has_stop_text(self, row: int, token: int) -> bool:
        output, spelling = self._output[row], self._token_bytes[token]
        output += spelling
        return any(output.find(stop, max(0, len(output) - len(spelling) - len(stop))) >= 0 for stop in self._stops[row])

    def _mask(self, row: int, logits: Any) -> Any:
        """Return the token mask of a row, `[vocabulary]`, true where a token is forbidden."""
        sequence, state = self._sequences[row], self._states[row]
        if sequence.automaton is None or self.finish_reasons[row] is not None:
            return self._cached_mask((0, 0, -1), None, logits)
        allowed = sequence.automaton.allowed_tokens(state, sequence.max_tokens - len(self.tokens[row]))
        # Fewer remaining tokens allow fewer: in one state, equal numbers of allowed tokens are equal sets.
        return self._cached_mask((id(sequence.automaton), state, len(allowed)), sequence.automaton, logits, allowed)

    def _cached_mask(
        self, key: tuple[int, int, int], automaton: Automaton | None, logits: Any, allowed: Any = None
    ) -> Any:
        if (mask := self._masks.get(key)) is None:
            forbidden = np.full(logits.shape[1], automaton is not None)
            if automaton:
                forbidden[allowed] = False
                forbidden[list(self._end_tokens)] = key[1] not in automaton.accepting_states
            if len(self._masks) >= MAX_CACHED_MASKS:
                self._masks.clear()
            mask = self._masks[key] = self._torch.from_numpy(forbidden).to(logits.device)
        return mask

    def _without_padding(self, tokens: Any) -> Any:
        return self._torch.cat([self._prompts, tokens[:, self._width :]], dim=1)

    def _draw(self) -> NDArray[np.float32]:
        """Draw the uniform numbers of every row, `[rows, max_tokens]`."""
        longest = max(each.max_tokens for each in self._sequences)
        draws = np.zeros((len(self._sequences), longest), dtype=np.float32)
        for row, sequence in enumerate(self._sequences):
            draws[row, : sequence.max_tokens] = uniform_draws(sequence)
        return draws


def uniform_draws(sequence: TokenSequence) -> NDArray[np.float32]:
    """Draw a number in [0, 1) for each of a sequence's tokens."""
    return np.random.default_rng(sequence.entropy).random(sequence.max_tokens, dtype=np.float32)
