"""One token out of a model's scores: llama.cpp's chain of samplers, per text and repeatable."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]
Tokens = NDArray[np.int32]


class Sampler:
    """Chooses the tokens of one text. The order and the defaults are llama.cpp's.

    Args:
        seed: What every choice follows from; `None` for another text each time.
        temperature: How freely to sample; 0 takes the likeliest.
        top_k: Sample from this many tokens; 0 means all.
        top_p: Sample from this much probability mass.
        min_p: Least probability beside the likeliest's.
        repetition_penalty: Divides the score of what was said before; 1 is none.
        frequency_penalty: Taken off a token's score for every time it was said.
        presence_penalty: Taken off the score of what was said before.
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

    def sample(self, scores: Scores, among: Tokens | None = None) -> int:
        """The next token, out of `among` where that is given."""
        if self._penalizes and self._token_counts:
            scores = self._apply_penalties(scores)
        scores = scores if among is None else scores[among]
        chosen = int(scores.argmax()) if self._temperature == 0 else self._draw(scores)
        token = chosen if among is None else int(among[chosen])
        if self._penalizes:
            self._token_counts[token] += 1
        return token

    def _apply_penalties(self, scores: Scores) -> Scores:
        scores = scores.copy()
        tokens = np.fromiter(self._token_counts, dtype=np.intp)
        counts = np.fromiter(self._token_counts.values(), dtype=np.float32)
        said = scores[tokens]
        said = np.where(said > 0, said / self._repetition, said * self._repetition)
        scores[tokens] = said - counts * self._frequency - self._presence
        return scores

    def _draw(self, scores: Scores) -> int:
        if 0 < self._top_k < len(scores):
            kept = np.argpartition(scores, -self._top_k)[-self._top_k :]
        else:
            kept = np.arange(len(scores))
        kept = kept[np.argsort(-scores[kept], kind="stable")]
        ranked = scores[kept].astype(np.float64)
        odds = np.exp(ranked - ranked[0])
        mass = odds.cumsum() / odds.sum()
        size = min(int(np.searchsorted(mass, self._top_p)) + 1, len(kept)) if self._top_p < 1 else len(kept)
        size = min(size, max(1, int((odds >= self._min_p).sum())))
        odds = np.exp((ranked[:size] - ranked[0]) / self._temperature)
        mass = odds.cumsum()
        return int(kept[min(int(np.searchsorted(mass, self._random.random() * mass[-1], side="right")), size - 1)])
