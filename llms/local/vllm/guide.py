"""Constrained decoding inside vLLM's own processes: a logits processor that masks tokens by each row's automaton."""

import pickle
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from llms.local.automaton import Automaton, Tokens

LOGITS_PROCESSOR = "llms.local.vllm.guide:Guided"
"""Import path of the logits processor, for processes that vLLM starts itself."""

EXTRA_ARGS_KEY = "distilflow"
"""Among the `extra_args` of a request: the file of its automaton, and the tokens that end a text."""

MAX_CACHED_MASKS = 512
"""Token masks that are cached: eight masks over a large vocabulary take a megabyte."""


class RowState:
    """The state of one row in its automaton.

    Attributes:
        has_left_automaton: Whether another logits processor let it leave the automaton: it is no longer constrained.
    """

    def __init__(self, automaton: Automaton, end_tokens: Sequence[int], max_tokens: int, tokens: list[int]) -> None:
        """Begin before the first token.

        Args:
            max_tokens: Tokens of the text at most.
            tokens: Its tokens so far, which vLLM appends to.
        """
        self.automaton, self.end_tokens, self.has_left_automaton = automaton, list(end_tokens), False
        self._max_tokens, self._tokens, self._num_read, self.state = max_tokens, tokens, 0, automaton.start_state
        self._allowed = automaton.allowed_tokens(self.state, max_tokens)

    def allowed_tokens(self) -> Tokens:
        """Return the tokens that may come next, besides an end in an accepting state."""
        while self._num_read < len(self._tokens) and not self.has_left_automaton:
            token = self._tokens[self._num_read]
            index = int(self._allowed.searchsorted(token))
            if index == len(self._allowed) or self._allowed[index] != token:
                self.has_left_automaton = True
            else:
                self._num_read += 1
                self.state = self.automaton.next_state(self.state, token)
                self._allowed = self.automaton.allowed_tokens(self.state, self._max_tokens - self._num_read)
        return self._allowed


class GuideProcessor:
    """A logits processor of vLLM. Requests without a structure are left alone."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        self._device = device
        self._rows: dict[int, RowState] = {}
        self._masks: dict[tuple[Automaton, int, int], Any] = {}

    def is_argmax_invariant(self) -> bool:
        """Return `False`: the most likely token may be masked."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Take in which requests were added, removed and moved."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._rows.pop(row, None)
        for row, params, _, tokens in batch_update.added:
            self._rows.pop(row, None)
            if constraint := (params.extra_args or {}).get(EXTRA_ARGS_KEY):
                automaton = _load(constraint["automaton"])
                self._rows[row] = RowState(automaton, constraint["end_tokens"], params.max_tokens, tokens)
        for source, target, direction in batch_update.moved:
            moved, other = self._rows.pop(source, None), self._rows.pop(target, None)
            if moved:
                self._rows[target] = moved
            if other and direction.name == "SWAP":
                self._rows[source] = other

    def apply(self, logits: Any) -> Any:
        """Mask the tokens after which a row could not satisfy its structure within its remaining tokens."""
        size = logits.shape[-1]
        masks = {index: mask for index, row in self._rows.items() if (mask := self._mask(row, size)) is not None}
        if masks:
            import torch

            rows = list(masks)
            logits[rows] = logits[rows].masked_fill(torch.stack(list(masks.values())), float("-inf"))
        return logits

    def _mask(self, row: RowState, size: int) -> Any:
        """Return the token mask of a row, `[vocabulary]`, true where forbidden; `None` once it left its automaton."""
        allowed = row.allowed_tokens()
        if row.has_left_automaton:
            return None
        # Fewer remaining tokens allow fewer: in one state, equal numbers of allowed tokens are equal sets.
        key = (row.automaton, row.state, len(allowed))
        if key not in self._masks:
            import torch

            forbidden = np.full(size, True)
            forbidden[allowed] = False
            forbidden[row.end_tokens] = row.state not in row.automaton.accepting_states
            if len(self._masks) >= MAX_CACHED_MASKS:
                self._masks.clear()
            self._masks[key] = torch.from_numpy(forbidden).to(self._device)
        return self._masks[key]


@cache
def _processor() -> type:
    from vllm.v1.sample.logits_processor import LogitsProcessor

    return type("Guided", (GuideProcessor, LogitsProcessor), {})


def __getattr__(name: str) -> Any:
    """Create `Guided`, a class of vLLM's, which is imported only where it is used."""
    if name == "Guided":
        return _processor()
    raise AttributeError(name)


@lru_cache(maxsize=64)
def _load(path: str) -> Automaton:
    return pickle.loads(Path(path).read_bytes())
