"""llama.cpp's chain of samplers in NumPy, repeatable for every sequence."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
Tokens = NDArray[np.int32]


class Sampler:
    """Samples the tokens of one sequence. Order and defaults are llama.cpp's.

    Args:
        seed: Determines every draw; `None` for random ones.
        temperature: How freely to sample; 0 is greedy.
        top_k: Sample from this many tokens; 0 means all.
        top_p: Sample from this much probability mass.
        min_p: Minimum probability relative to the most likely token's.
        repetition_penalty: Divides the logits of tokens already used; 1 is none.
        frequency_penalty: Subtracted from a token's logit for every time it was used.
        presence_penalty: Subtracted from the logits of tokens already used.
    """

    def __init__(
        self,
        seed: Sequence[int] | None = None,
        *,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        repetition_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
    ) -> None:
        self._random = np.random.default_rng(seed)
        self._temperature, self._top_k, self._top_p, self._min_p = temperature, top_k, top_p, min_p
        self._repetition, self._frequency, self._presence = repetition_penalty, frequency_penalty, presence_penalty
        self._penalizes = (repetition_penalty, frequency_penalty, presence_penalty) != (1.0, 0.0, 0.0)
        self._token_counts: Counter[int] = Counter()

    def sample(self, logits: Logits, allowed: Tokens | None = None) -> int:
        """Sample the next token, among `allowed` where given."""
        if self._penalizes and self._token_counts:
            logits = self._apply_penalties(logits)
        logits = logits if allowed is None else logits[allowed]
        index = int(logits.argmax()) if self._temperature == 0 else self._draw(logits)
        token = index if allowed is None else int(allowed[index])
        if self._penalizes:
            self._token_counts[token] += 1
        return token

    def _apply_penalties(self, logits: Logits) -> Logits:
        logits = logits.copy()
        tokens = np.fromiter(self._token_counts, dtype=np.intp)
        counts = np.fromiter(self._token_counts.values(), dtype=np.float32)
        used = logits[tokens]
        used = np.where(used > 0, used / self._repetition, used * self._repetition)
        logits[tokens] = used - counts * self._frequency - self._presence
        return logits

    def _draw(self, logits: Logits) -> int:
        if 0 < self._top_k < len(logits):
            candidates = np.argpartition(logits, -self._top_k)[-self._top_k :]
        else:
            candidates = np.arange(len(logits))
        candidates = candidates[np.argsort(-logits[candidates], kind="stable")]
        ranked = logits[candidates].astype(np.float64)
        odds = np.exp(ranked - ranked[0])
        mass = odds.cumsum() / odds.sum()
        size = len(candidates)
        if self._top_p < 1:
            size = min(int(np.searchsorted(mass, self._top_p)) + 1, size)
        size = min(size, max(1, int((odds >= self._min_p).sum())))
        odds = np.exp((ranked[:size] - ranked[0]) / self._temperature)
        mass = odds.cumsum()
        drawn = int(np.searchsorted(mass, self._random.random() * mass[-1], side="right"))
        return int(candidates[min(drawn, size - 1)])
