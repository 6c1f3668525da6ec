"""Constrained decoding for any engine in this process: which tokens may come next, so that a text ends as it must.

A structure is compiled once per tokenizer to an automaton over tokens. Beside where a text is in it, a guide knows how
many tokens are left, and allows only those after which the text can still be finished.
"""

from collections import deque
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from llms.errors import Fatal
from llms.patterns import to_regex
from llms.typing import StructuredOutputType

Tokens = NDArray[np.int32]

NEVER = np.iinfo(np.int32).max
"""The distance to an end that cannot be reached."""


class Automaton:
    """All texts that match a regular expression, as sequences of a tokenizer's tokens.

    Attributes:
        least: The fewest tokens that a whole text has.
    """

    def __init__(self, regex: str, pieces: Mapping[bytes, list[int]], end: int) -> None:
        """Compile `regex`.

        Args:
            regex: In the dialect of `llms.patterns`.
            pieces: The bytes of every token that stands for text, and its numbers: texts would mangle half characters.
            end: A token that stands for no text.

        Raises:
            Fatal: If it cannot be compiled, or no text of these tokens matches.
        """
        from outlines_core import Index, Vocabulary

        try:
            index = Index(regex, Vocabulary(end, dict(pieces)))
        except (TypeError, ValueError) as error:
            raise Fatal(f"`structured_output` cannot be compiled: {error}.") from None
        edges: dict[int, dict[int, int]] = index.get_transitions()
        ends = set(index.get_final_states())
        numbers = {state: number for number, state in enumerate({index.get_initial_state(), *edges, *ends})}
        self.start = numbers[index.get_initial_state()]
        self.ends = frozenset(numbers[state] for state in ends)
        self._tokens = [np.empty(0, dtype=np.int32)] * len(numbers)
        self._targets = list(self._tokens)
        while edges:  # one by one, for the dictionaries of a large vocabulary fill gigabytes
            state, targets = edges.popitem()
            targets.pop(end, None)
            tokens = np.fromiter(targets, np.int32, len(targets))
            order = tokens.argsort()
            self._tokens[numbers[state]] = tokens[order]
            self._targets[numbers[state]] = np.fromiter(map(numbers.get, targets.values()), np.int32, len(order))[order]
        self._steps = self._steps_to_an_end()
        self.least = int(self._steps[self.start])
        if self.least == NEVER:
            raise Fatal("`structured_output` cannot be compiled: this model has no tokens to write such a text with.")
        self._furthest = [int(self._steps[targets].max(initial=0)) for targets in self._targets]

    def allowed(self, state: int, left: int) -> Tokens:
        """The tokens after which the text can be finished within `left` tokens, themselves included."""
        tokens = self._tokens[state]
        return tokens if self._furthest[state] < left else tokens[self._steps[self._targets[state]] < left]

    def after(self, state: int, token: int) -> int:
        """The state that `token` leads to."""
        return int(self._targets[state][self._tokens[state].searchsorted(token)])

    def _steps_to_an_end(self) -> Tokens:
        """How few tokens it takes from each state to a whole text."""
        before: dict[int, list[int]] = {}
        for state, targets in enumerate(self._targets):
            for target in np.unique(targets).tolist():
                before.setdefault(target, []).append(state)
        steps = np.full(len(self._targets), NEVER, dtype=np.int32)
        steps[list(self.ends)] = 0
        queue = deque(self.ends)
        while queue:
            state = queue.popleft()
            for earlier in before.get(state, ()):
                if steps[earlier] == NEVER:
                    steps[earlier] = steps[state] + 1
                    queue.append(earlier)
        return steps


class Guide:
    """One text in the making: ask it for `allowed`, then tell it what was taken with `advance`."""

    def __init__(self, automaton: Automaton, budget: int) -> None:
        """Begin a text of at most `budget` tokens.

        Raises:
            ValueError: If no whole text is that short.
        """
        if budget < automaton.least:
            raise ValueError(f"{automaton.least} tokens are needed, {budget} are left")
        self._automaton = automaton
        self._state = automaton.start
        self._left = budget

    @property
    def may_end(self) -> bool:
        """Whether the text is whole as it stands."""
        return self._state in self._automaton.ends

    def allowed(self) -> Tokens:
        """The tokens that may come next, besides an end where the text `may_end`; none when it must."""
        return self._automaton.allowed(self._state, self._left)

    def advance(self, token: int) -> None:
        """Go on behind `token`, one of those allowed."""
        self._state = self._automaton.after(self._state, token)
        self._left -= 1


class Compiler:
    """Automata for one tokenizer; the latest are kept."""

    def __init__(self, pieces: Mapping[bytes, list[int]], end: int) -> None:
        self._compiled = lru_cache(maxsize=16)(lambda regex: Automaton(regex, pieces, end))

    def automaton(self, structure: StructuredOutputType) -> Automaton:
        """The automaton of a structure.

        Raises:
            Fatal: If it cannot be compiled; the message says why.
        """
        return self._compiled(to_regex(structure))
