"""Constrained decoding: token-level automata, and guides that finish every text within its tokens.

A structure is compiled once per tokenizer to a deterministic finite automaton over tokens. A guide tracks the state of
one text and the tokens it has left, and allows only tokens after which an accepting state can still be reached.
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
from llms.structured.json_schema import parse_structure
from llms.typing import StructuredOutputType

Tokens = NDArray[np.int32]

UNREACHABLE = np.iinfo(np.int32).max
"""Distance to an accepting state that cannot be reached."""

END_MARKER = "\U0010ffff"
"""Ends a text for the regular expression compiler: a noncharacter, which no text has where it may end."""


class Automaton:
    """A deterministic finite automaton over a tokenizer's tokens that accepts the texts of a regular expression.

    Attributes:
        start_state: Before the first token.
        accepting_states: Those in which a text is complete.
        min_tokens: Tokens of the shortest accepted text.
    """

    def __init__(self, arrays: automaton_cache.Arrays) -> None:
        """Wrap the arrays of `compile_regex`.

        Raises:
            KeyError, IndexError, ValueError: If these are no arrays of an automaton.
        """
        self.start_state = int(arrays["start"][0])
        self.accepting_states = frozenset(arrays["ends"].tolist())
        self._distances = arrays["steps"]
        offsets = arrays["borders"]
        self._tokens = np.split(arrays["tokens"], offsets)
        self._targets = np.split(arrays["targets"], offsets)
        self.min_tokens = int(self._distances[self.start_state])
        self._max_distances = [int(self._distances[targets].max(initial=0)) for targets in self._targets]

    def allowed_tokens(self, state: int, tokens_left: int) -> Tokens:
        """Return the tokens after which an accepting state can be reached within `tokens_left`, themselves included."""
        tokens = self._tokens[state]
        if self._max_distances[state] < tokens_left:
            return tokens
        return tokens[self._distances[self._targets[state]] < tokens_left]

    def next_state(self, state: int, token: int) -> int:
        """Return the state after `token`, one of those allowed."""
        return int(self._targets[state][self._tokens[state].searchsorted(token)])


def compile_regex(regex: str, tokens: TokenTrie) -> automaton_cache.Arrays:
    """Compile a regular expression to the arrays of an automaton.

    Args:
        regex: In the dialect of `llms.structured.grammar.to_regex`.
        tokens: Of the tokenizer.

    Raises:
        Fatal: If it cannot be compiled, or no text of these tokens matches.
    """
    table, start_state, accepting = _byte_automaton(regex)
    transitions = [tokens.walk(table, state) for state in range(len(table))]
    distances = _distances_to_acceptance([targets for _, targets in transitions], accepting)
    if distances[start_state] == UNREACHABLE:
        raise Fatal("`structured_output` cannot be compiled: this model has no tokens to write such a text with.")
    return {  # the names are those of the files of every version
        "start": np.array([start_state], np.int32),
        "ends": np.array(accepting, np.int32),
        "steps": distances,
        "borders": np.cumsum([len(each) for each, _ in transitions[:-1]], dtype=np.int32),
        "tokens": np.concatenate([each for each, _ in transitions]),
        "targets": np.concatenate([targets for _, targets in transitions]),
    }


def _byte_automaton(regex: str) -> tuple[Tokens, int, list[int]]:
    """Compile a regular expression to an automaton over bytes.

    It is small; `TokenTrie.walk` then finds the tokens. The compiler's own automaton over all tokens of a large
    vocabulary takes many times as long, as it reads each token from its first byte in each state, and it drops the
    transitions out of accepting states. So every text is followed by an `END_MARKER`, which is cut off again.

    Returns:
        The next state by state and byte, `[states, 256]`; the start state; the accepting states.
    """
    from outlines_core import Index, Vocabulary

    vocabulary = Vocabulary(256, {bytes([byte]): [byte] for byte in range(256)})
    try:
        index = Index(f"(?:{regex})\\x{{{ord(END_MARKER):X}}}", vocabulary)
    except (TypeError, ValueError) as error:
        raise Fatal(f"`structured_output` cannot be compiled: {error}.") from None
    edges: dict[int, dict[int, int]] = index.get_transitions()
    start_state, final_states = index.get_initial_state(), index.get_final_states()
    numbers = {state: number for number, state in enumerate({start_state, *edges, *final_states})}
    table = np.full((len(numbers) + 1, 257), DEAD_STATE, np.int32)  # the last row is that of `DEAD_STATE` itself
    for state, targets in edges.items():
        table[numbers[state], list(targets)] = [numbers[target] for target in targets.values()]
    after_marker = np.arange(len(numbers))
    for byte in END_MARKER.encode():
        after_marker = table[after_marker, byte]
    final = [numbers[state] for state in final_states]
    accepting = np.flatnonzero(np.isin(after_marker, final)).tolist()
    table[np.isin(table, final)] = DEAD_STATE
    return table[:-1, :256], numbers[start_state], accepting


def _distances_to_acceptance(targets: list[Tokens], accepting: list[int]) -> Tokens:
    """Return the fewest tokens from each state to an accepting one, by breadth-first search backwards."""
    predecessors: dict[int, list[int]] = {}
    for state, successors in enumerate(targets):
        for successor in np.unique(successors).tolist():
            predecessors.setdefault(successor, []).append(state)
    distances = np.full(len(targets), UNREACHABLE, dtype=np.int32)
    distances[accepting] = 0
    queue = deque(accepting)
    while queue:
        state = queue.popleft()
        for predecessor in predecessors.get(state, ()):
            if distances[predecessor] == UNREACHABLE:
                distances[predecessor] = distances[state] + 1
                queue.append(predecessor)
    return distances


class Guide:
    """The state of one text in its automaton, and the tokens it has left."""

    def __init__(self, automaton: Automaton, max_tokens: int) -> None:
        """Begin a text of at most `max_tokens`.

        Raises:
            ValueError: If no accepted text is that short.
        """
        if max_tokens < automaton.min_tokens:
            raise ValueError(f"{automaton.min_tokens} tokens are needed, {max_tokens} are left")
        self._automaton = automaton
        self._state = automaton.start_state
        self._tokens_left = max_tokens

    @property
    def is_accepting(self) -> bool:
        """Whether the text is complete as it stands."""
        return self._state in self._automaton.accepting_states

    def allowed_tokens(self) -> Tokens:
        """Return the tokens that may come next, besides an end where the state `is_accepting`; none where it must."""
        return self._automaton.allowed_tokens(self._state, self._tokens_left)

    def advance(self, token: int) -> None:
        """Append `token`, one of those allowed."""
        self._state = self._automaton.next_state(self._state, token)
        self._tokens_left -= 1


class Compiler:
    """Compiles structures for one tokenizer. The latest automata are in memory, all are on disk."""

    def __init__(self, token_ids: Mapping[bytes, list[int]], end_token: int) -> None:
        """Take over a tokenizer's vocabulary.

        Args:
            token_ids: Of every token that stands for text, its bytes and its ids.
            end_token: A token that ends a text.
        """
        self._token_ids, self._end_token = token_ids, end_token
        self._latest = lru_cache(maxsize=16)(self._compile)

    def compile(self, structure: StructuredOutputType) -> Automaton:
        """Compile a structure.

        Raises:
            Fatal: If it cannot be compiled; the message says why.
        """
        return self._latest(json.dumps(structure))

    def _compile(self, structure: str) -> Automaton:
        regex = to_regex(parse_structure(json.loads(structure)))
        name = automaton_cache.file_name(regex, self._digest)
        if arrays := automaton_cache.read(name):
            with suppress(KeyError, IndexError, ValueError):
                return Automaton(arrays)
        arrays = compile_regex(regex, self._trie)
        automaton_cache.write(name, arrays)
        return Automaton(arrays)

    @cached_property
    def _digest(self) -> bytes:
        return automaton_cache.tokenizer_digest(self._token_ids, self._end_token)

    @cached_property
    def _trie(self) -> TokenTrie:
        return TokenTrie(self._token_ids)
