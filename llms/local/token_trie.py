"""A tokenizer's vocabulary as a trie of bytes, so that common prefixes of tokens are read once."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]

DEAD_STATE = -1
"""State of an automaton after a byte that no accepted text continues with."""


class TokenTrie:
    """The tokens that stand for text. Nodes are numbered level by level, so that a node's children are contiguous.

    Args:
        token_ids: The bytes of every token, and its ids.
    """

    def __init__(self, token_ids: Mapping[bytes, list[int]]) -> None:
        spellings = sorted(filter(None, token_ids))
        text = np.frombuffer(b"".join(spellings), np.uint8)
        lengths = np.array([len(spelling) for spelling in spellings])
        begins = np.cumsum(lengths) - lengths
        nodes_of = np.zeros(len(spellings), np.int64)  # the node of each spelling's prefix
        first, size = 0, 1  # of the current level
        edge_bytes, child_counts = [np.zeros(1, np.uint8)], []
        for depth in range(lengths.max(initial=0)):
            longer = np.flatnonzero(lengths > depth)
            edges = (nodes_of[longer] - first) * 256 + text[begins[longer] + depth]
            children, child_of = np.unique(edges, return_inverse=True)
            child_counts.append(np.bincount(children >> 8, minlength=size))
            edge_bytes.append((children & 255).astype(np.uint8))
            first, size = first + size, len(children)
            nodes_of[longer] = first + child_of
        child_counts.append(np.zeros(size, np.int64))
        self._edge_bytes = np.concatenate(edge_bytes)
        self._child_offsets = _offsets(np.concatenate(child_counts), 1)
        ids = [token_ids[spelling] for spelling in spellings]
        nodes_of = np.repeat(nodes_of, [len(each) for each in ids])
        self._tokens = np.array([token for each in ids for token in each], np.int32)[nodes_of.argsort()]
        self._vocabulary_size = self._tokens.max(initial=-1) + 1
        self._token_offsets = _offsets(np.bincount(nodes_of, minlength=first + size), 0)

    def walk(self, table: Ints, state: int) -> tuple[Ints, Ints]:
        """Return the tokens that lead from a state of an automaton over bytes to a live one, sorted, and their targets.

        Args:
            table: The next state by state and byte, or `DEAD_STATE`, `[states, 256]`.
            state: Where to begin.
        """
        nodes, states = np.zeros(1, np.int32), np.full(1, state, np.int32)
        targets = np.full(self._vocabulary_size, DEAD_STATE, np.int32)
        while len(nodes):
            nodes, parents = _members(self._child_offsets, nodes)
            states = table[states[parents], self._edge_bytes[nodes]]
            live = np.flatnonzero(states != DEAD_STATE)
            nodes, states = nodes[live], states[live]
            indices, owners = _members(self._token_offsets, nodes)
            targets[self._tokens[indices]] = states[owners]
        tokens = np.flatnonzero(targets != DEAD_STATE).astype(np.int32)
        return tokens, targets[tokens]


def _offsets(counts: NDArray[np.int64], first: int) -> Ints:
    """Return the offset of each group of contiguous members, and the end of the last, counted from `first`."""
    return np.concatenate([[first], first + np.cumsum(counts)]).astype(np.int32)


def _members(offsets: Ints, groups: Ints) -> tuple[Ints, Ints]:
    """Return the members of some groups, and the index in `groups` of each."""
    begins = offsets[groups]
    counts = offsets[groups + 1] - begins
    owners = np.repeat(np.arange(len(groups), dtype=np.int32), counts)
    shifts = begins - np.cumsum(counts, dtype=np.int32) + counts
    return np.arange(len(owners), dtype=np.int32) + shifts[owners], owners
