"""Constrained decoding for any engine in this process: which tokens may come next, so that a text ends as it must.

A structure is compiled once per tokenizer to an automaton over tokens. Beside where a text is in it, a guide knows how
many tokens are left, and allows only those after which the text can still be finished.
"""

import json
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from llms.errors import Fatal
from llms.local import automaton_cache
from llms.local.token_trie import DEAD_STATE, TokenTrie
from llms.structured.grammar import to_regex
from llms.structured.validation import parse_structure
from llms.typing import StructuredOutputType

Tokens = NDArray[np.int32]

UNREACHABLE = np.iinfo(np.int32).max
"""The distance to an end that cannot be reached."""


END_MARKER = "\U0010ffff"
"""What a text is given to be known as whole: no character, and none of a text's own where it may end."""


class Automaton:
    """All texts that match a regular expression, as sequences of a tokenizer's tokens.

    Attributes:
        start: The state before the first token.
        ends: The states in which a text is whole.
        least: The fewest tokens that a whole text has.
    """

    def __init__(self, arrays: automaton_cache.Arrays) -> None:
        """Take over what `compiled` found.

        Raises:
            KeyError, IndexError, ValueError: If these are no arrays of an automaton.
        """
        self.start_state = int(arrays["start"][0])
        self.accepting_states = frozenset(arrays["ends"].tolist())
        self._distances = arrays["steps"]
        borders = arrays["borders"]
        self._tokens = np.split(arrays["tokens"], borders)
        self._targets = np.split(arrays["targets"], borders)
        self.min_tokens = int(self._distances[self.start_state])
        self._max_distances = [int(self._distances[targets].max(initial=0)) for targets in self._targets]

    def allowed_tokens(self, state: int, left: int) -> Tokens:
        """The tokens after which the text can be finished within `left` tokens, themselves included."""
        tokens = self._tokens[state]
        return tokens if self._max_distances[state] < left else tokens[self._distances[self._targets[state]] < left]

    def next_state(self, state: int, token: int) -> int:
        """The state that `token` leads to."""
        return int(self._targets[state][self._tokens[state].searchsorted(token)])


def compile_regex(regex: str, tokens: TokenTrie) -> automaton_cache.Arrays:
    """The automaton of a regular expression, as arrays.

    Args:
        regex: In the dialect of `llms.structured.grammar`.
        tokens: Of the tokenizer.

    Raises:
        Fatal: If it cannot be compiled, or no text of these tokens matches.
    """
    table, start, ends = _byte_dfa(regex)
    found = [tokens.walk(table, state) for state in range(len(table))]
    steps = _distances_to_acceptance([targets for _, targets in found], ends)
    if steps[start] == UNREACHABLE:
        raise Fatal("`structured_output` cannot be compiled: this model has no tokens to write such a text with.")
    return {
        "start": np.array([start], np.int32),
        "ends": np.array(ends, np.int32),
        "steps": steps,
        "borders": np.cumsum([len(those) for those, _ in found[:-1]], dtype=np.int32),
        "tokens": np.concatenate([those for those, _ in found]),
        "targets": np.concatenate([targets for _, targets in found]),
    }


def _byte_dfa(regex: str) -> tuple[Tokens, int, list[int]]:
    """The automaton that reads byte by byte: the state after each state and byte, the first one, and the ends.

    It is small. The compiler's own over all tokens of a large vocabulary takes many times as long, for it looks at each
    from its first byte, in each state; and it loses what goes on behind a text that is whole. So each text is given an
    end to read, a character that is none.
    """
    from outlines_core import Index, Vocabulary

    every = range(256)
    try:
        index = Index(
            f"(?:{regex})\\x{{{ord(END_MARKER):X}}}", Vocabulary(256, {bytes([each]): [each] for each in every})
        )
    except (TypeError, ValueError) as error:
        raise Fatal(f"`structured_output` cannot be compiled: {error}.") from None
    edges: dict[int, dict[int, int]] = index.get_transitions()
    start, finals = index.get_initial_state(), index.get_final_states()
    numbers = {state: number for number, state in enumerate({start, *edges, *finals})}
    table = np.full((len(numbers) + 1, 257), DEAD_STATE, np.int32)  # the last one is where `NOWHERE` leads
    for state, found in edges.items():
        table[numbers[state], list(found)] = [numbers[target] for target in found.values()]
    behind = np.arange(len(numbers))
    for byte in END_MARKER.encode():
        behind = table[behind, byte]
    over = [numbers[state] for state in finals]
    ends = np.flatnonzero(np.isin(behind, over)).tolist()
    table[np.isin(table, over)] = DEAD_STATE
    return table[:-1, :256], numbers[start], ends


def _distances_to_acceptance(targets: list[Tokens], ends: list[int]) -> Tokens:
    """How few tokens it takes from each state to a whole text."""
    before: dict[int, list[int]] = {}
    for state, those in enumerate(targets):
        for target in np.unique(those).tolist():
            before.setdefault(target, []).append(state)
    steps = np.full(len(targets), UNREACHABLE, dtype=np.int32)
    steps[ends] = 0
    queue = deque(ends)
    while queue:
        state = queue.popleft()
        for earlier in before.get(state, ()):
            if steps[earlier] == UNREACHABLE:
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
        if budget < automaton.min_tokens:
            raise ValueError(f"{automaton.min_tokens} tokens are needed, {budget} are left")
        self._automaton = automaton
        self._state = automaton.start_state
        self._left = budget

    @property
    def is_accepting(self) -> bool:
        """Whether the text is whole as it stands."""
        return self._state in self._automaton.accepting_states

    def allowed_tokens(self) -> Tokens:
        """The tokens that may come next, besides an end where the text `may_end`; none when it must."""
        return self._automaton.allowed_tokens(self._state, self._left)

    def advance(self, token: int) -> None:
        """Go on behind `token`, one of those allowed."""
        self._state = self._automaton.next_state(self._state, token)
        self._left -= 1


class Compiler:
    """Automata for one tokenizer: the latest are kept here, and all on disk."""

    def __init__(self, pieces: Mapping[bytes, list[int]], end: int) -> None:
        """Take note of a tokenizer.

        Args:
            pieces: The bytes of every token that stands for text, and its numbers.
            end: A token that stands for no text.
        """
        self._pieces, self._end = pieces, end
        self._latest = lru_cache(maxsize=16)(self._compile)

    def compile(self, structure: StructuredOutputType) -> Automaton:
        """The automaton of a structure.

        Raises:
            Fatal: If it cannot be compiled; the message says why.
        """
        return self._latest(json.dumps(structure))

    def _compile(self, structure: str) -> Automaton:
        regex = to_regex(parse_structure(json.loads(structure)))
        name = automaton_cache.file_name(regex, self._tokenizer)
        if arrays := automaton_cache.read(name):
            with suppress(KeyError, IndexError, ValueError):
                return Automaton(arrays)
        arrays = compile_regex(regex, self._tokens)
        automaton_cache.write(name, arrays)
        return Automaton(arrays)

    @cached_property
    def _tokenizer(self) -> bytes:
        return automaton_cache.tokenizer_digest(self._pieces, self._end)

    @cached_property
    def _tokens(self) -> TokenTrie:
        return TokenTrie(self._pieces)
