"""Guided texts inside vLLM's own processes: a logits processor that leaves to each only what it can still end with."""

import pickle
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from llms.local.automaton import Automaton, Tokens

LOGITS_PROCESSOR = "llms.local.vllm.guide:Guided"
"""How vLLM finds the logits processor, in processes that it starts itself."""

EXTRA_ARGS_KEY = "distilflow"
"""The name, among the `extra_args` of a request, of what its text is held to: a file and the tokens that end a text."""

MAX_CACHED_MASKS = 512
"""How many masks over the vocabulary are kept: those of a large one have a megabyte per eight."""


class RowState:
    """Where one text is in its automaton.

    Attributes:
        astray: Whether something else than this processor let it leave the automaton: nothing can be said any more.
    """

    def __init__(self, automaton: Automaton, ends: Sequence[int], budget: int, said: list[int]) -> None:
        """Begin before the first token.

        Args:
            budget: How many tokens the text has at most.
            said: The tokens it has, which vLLM adds to.
        """
        self.automaton, self.ends, self.has_left_automaton = automaton, list(ends), False
        self._budget, self._said, self._read, self.state = budget, said, 0, automaton.start_state
        self._allowed = automaton.allowed_tokens(self.state, budget)

    def allowed_tokens(self) -> Tokens:
        """The tokens that may come next, besides an end where the text is whole."""
        while self._read < len(self._said) and not self.has_left_automaton:
            token = self._said[self._read]
            at = int(self._allowed.searchsorted(token))
            if at == len(self._allowed) or self._allowed[at] != token:
                self.has_left_automaton = True
            else:
                self._read += 1
                self.state = self.automaton.next_state(self.state, token)
                self._allowed = self.automaton.allowed_tokens(self.state, self._budget - self._read)
        return self._allowed


class GuideProcessor:
    """What vLLM asks of a logits processor. Requests that are held to nothing are left alone."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        self._device = device
        self._rows: dict[int, RowState] = {}
        self._masks: dict[tuple[Automaton, int, int], Any] = {}

    def is_argmax_invariant(self) -> bool:
        """No: the likeliest token may be one that must not come."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Take in which requests have come, gone and moved."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._rows.pop(row, None)
        for row, params, _, said in batch_update.added:
            self._rows.pop(row, None)
            if held := (params.extra_args or {}).get(EXTRA_ARGS_KEY):
                self._rows[row] = RowState(_automaton(held["automaton"]), held["ends"], params.max_tokens, said)
        for source, target, direction in batch_update.moved:
            moved, other = self._rows.pop(source, None), self._rows.pop(target, None)
            if moved:
                self._rows[target] = moved
            if other and direction.name == "SWAP":
                self._rows[source] = other

    def apply(self, logits: Any) -> Any:
        """Leave to every row only the tokens after which it can still keep to its structure, and end in time."""
        masks = {at: mask for at, row in self._rows.items() if (mask := self._mask(row, logits.shape[-1])) is not None}
        if masks:
            import torch

            rows = list(masks)
            logits[rows] = logits[rows].masked_fill(torch.stack(list(masks.values())), float("-inf"))
        return logits

    def _mask(self, row: RowState, size: int) -> Any:
        """What a row must not say next, as a mask over the vocabulary; nothing once it went astray."""
        allowed = row.allowed_tokens()
        if row.has_left_automaton:
            return None
        # The fewer tokens are left, the fewer are allowed: of one state, as many are always the same.
        key = (row.automaton, row.state, len(allowed))
        if key not in self._masks:
            import torch

            forbidden = np.full(size, True)
            forbidden[allowed] = False
            forbidden[row.ends] = row.state not in row.automaton.accepting_states
            if len(self._masks) >= MAX_CACHED_MASKS:
                self._masks.clear()
            self._masks[key] = torch.from_numpy(forbidden).to(self._device)
        return self._masks[key]


@cache
def _processor() -> type:
    from vllm.v1.sample.logits_processor import LogitsProcessor

    return type("Guided", (GuideProcessor, LogitsProcessor), {})


def __getattr__(name: str) -> Any:
    """`Guided` is a class of vLLM's, which is imported only where it is used."""
    if name == "Guided":
        return _processor()
    raise AttributeError(name)


@lru_cache(maxsize=64)
def _automaton(path: str) -> Automaton:
    return pickle.loads(Path(path).read_bytes())
