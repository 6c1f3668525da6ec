"""A tokenizer's tokens as a tree of their bytes, in which what several begin with is looked at once."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int32]

DEAD_STATE = -1
"""The state after a byte that no text goes on with."""


class TokenTrie:
    """The tokens that stand for text. Its nodes are numbered level by level, so that a node's children are in a row.

    Args:
        pieces: The bytes of every token, and its numbers.
    """

    def __init__(self, pieces: Mapping[bytes, list[int]]) -> None:
        words = sorted(filter(None, pieces))
        text = np.frombuffer(b"".join(words), np.uint8)
        sizes = np.array([len(word) for word in words])
        begins = np.cumsum(sizes) - sizes
        places, first, size = np.zeros(len(words), np.int64), 0, 1  # where each word is, in a level of so many nodes
        characters, children = [np.zeros(1, np.uint8)], []
        for depth in range(sizes.max(initial=0)):
            longer = np.flatnonzero(sizes > depth)
            keys = (places[longer] - first) * 256 + text[begins[longer] + depth]
            nodes, which = np.unique(keys, return_inverse=True)
            children.append(np.bincount(nodes >> 8, minlength=size))
            characters.append((nodes & 255).astype(np.uint8))
            first, size = first + size, len(nodes)
            places[longer] = first + which
        children.append(np.zeros(size, np.int64))
        self._bytes = np.concatenate(characters)
        self._children = _offsets(np.concatenate(children), 1)
        numbers = [pieces[word] for word in words]
        places = np.repeat(places, [len(each) for each in numbers])
        self._tokens = np.array([number for each in numbers for number in each], np.int32)[places.argsort()]
        self._count = self._tokens.max(initial=-1) + 1
        self._ends = _offsets(np.bincount(places, minlength=first + size), 0)

    def walk(self, table: Numbers, state: int) -> tuple[Numbers, Numbers]:
        """The tokens that lead on from a state of an automaton over bytes, in order, and where each leads.

        Args:
            table: The state after each state and byte, or `NOWHERE`.
            state: Where to begin.
        """
        nodes, states = np.zeros(1, np.int32), np.full(1, state, np.int32)
        targets = np.full(self._count, DEAD_STATE, np.int32)
        while len(nodes):
            nodes, of = _members(self._children, nodes)
            states = table[states[of], self._bytes[nodes]]
            alive = np.flatnonzero(states != DEAD_STATE)
            nodes, states = nodes[alive], states[alive]
            found, of = _members(self._ends, nodes)
            targets[self._tokens[found]] = states[of]
        tokens = np.flatnonzero(targets != DEAD_STATE).astype(np.int32)
        return tokens, targets[tokens]


def _offsets(counts: NDArray[np.int64], first: int) -> Numbers:
    """Where the members of each group begin, and the last one's end, when they are numbered from `first`."""
    return np.concatenate([[first], first + np.cumsum(counts)]).astype(np.int32)


def _members(borders: Numbers, groups: Numbers) -> tuple[Numbers, Numbers]:
    """The members of some groups, and which of these each is in."""
    begins = borders[groups]
    counts = borders[groups + 1] - begins
    of = np.repeat(np.arange(len(groups), dtype=np.int32), counts)
    return np.arange(len(of), dtype=np.int32) + (begins - np.cumsum(counts, dtype=np.int32) + counts)[of], of
