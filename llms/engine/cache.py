"""The cache of a batch: which generations are stored, which are to be asked for, and under which keys they go."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llms import store
from llms.engine.request import Request
from llms.errors import Fatal
from llms.typing import GenerateOutput

logger = logging.getLogger(__name__)

_unusable_stores: set[Path] = set()
"""Stores that failed while no answers were read from them: they are not tried again."""

_warnings: set[str] = set()
"""Warnings already logged: each is logged once, not once per answer."""


class CacheLookup:
    """The stored generations of the requests of a batch.

    A store that cannot be used ends the run if answers are read from it; otherwise the run continues without a store.

    Args:
        requests: The requests of the batch.
        use_cache: Whether to take answers from the store; new ones are stored either way.
    """

    def __init__(self, requests: Sequence[Request[Any]], use_cache: bool) -> None:
        self.requests = requests
        self._use_cache = use_cache
        self._keys: list[list[str]] = []
        self._stored: dict[str, store.StoredAnswer] = {}
        try:
            self._keys = [
                [store.key_of(each.llm, each.chat, each.options, number) for number in range(each.num_generations)]
                for each in requests
            ]
        except store.StoreError as error:
            self._disable(error)
        try:
            if use_cache:
                self._stored = store.get({key for keys in self._keys for key in keys})
                _unusable_stores.discard(store.path())
                if len(self._stored) < sum(map(len, self._keys)):
                    store.prepare()  # before anything is paid for
            elif store.path() not in _unusable_stores:
                store.prepare()  # now, in a thread that may wait for a lock on the file
        except store.StoreError as error:
            self._disable(error)
            _unusable_stores.add(store.path())

    def missing(self, index: int) -> list[int]:
        """Return the numbers of the generations to ask for."""
        request = self.requests[index]
        numbers = range(request.num_generations)
        if not self._keys:
            return list(numbers)
        missing = [number for number in numbers if self._keys[index][number] not in self._stored]
        # Generations with a seed are a sequence: asking for some of them would repeat the first ones.
        return list(numbers) if missing and request.options.get("seed") is not None else missing

    def request_key(self, index: int) -> tuple[str, ...] | int:
        """Return a key that equal requests share, so that they are sent once; unique if the cache is not used."""
        return tuple(self._keys[index]) if self._keys and self._use_cache else index

    def claim_key(self, index: int) -> str | None:
        """Return the key under which processes agree who sends a request; `None` if it need not be sent, or always."""
        missing = self.missing(index)
        return self._keys[index][missing[0]] if self._use_cache and self._keys and missing else None

    def refresh(self, index: int) -> None:
        """Read the answers to a request that were stored since.

        Raises:
            Fatal: If the store cannot be read.
        """
        try:
            self._stored |= store.get(self._keys[index])
        except store.StoreError as error:
            self._disable(error)

    async def persist(
        self, index: int, numbers: Sequence[int], output: GenerateOutput, positions: Sequence[int]
    ) -> None:
        """Store generations; they are durable when this returns.

        Args:
            index: The index of the request.
            numbers: The number of each generation in `output`.
            output: Generations of the request.
            positions: Positions in `output` of those to store.

        Raises:
            Fatal: If they cannot be stored, and answers are read from the store.
        """
        if not self._keys or not positions or (not self._use_cache and store.path() in _unusable_stores):
            return
        answers = store.StoredAnswer.from_output(self.requests[index].llm, output)
        try:
            await store.put({self._keys[index][numbers[at]]: answers[at] for at in positions})
        except store.StoreError as error:
            self._disable(error)
            _unusable_stores.add(store.path())

    def merge_cached(self, index: int, new: GenerateOutput) -> GenerateOutput:
        """Return all generations of a request: `new`, which were missing, and those that are stored."""
        missing, keys = self.missing(index), self._keys[index] if self._keys else []
        if new.error or len(missing) == self.requests[index].num_generations:
            return new
        fresh = dict(zip(missing, new.split(), strict=True))
        parts = [fresh.get(number) or self._stored[key].to_output() for number, key in enumerate(keys)]
        output = GenerateOutput.join(parts)
        output.cached = not missing
        if missing:  # only what was paid for now counts
            output.usage, output.cost, output.seconds, output.attempts = new.usage, new.cost, new.seconds, new.attempts
        return output

    def _disable(self, error: store.StoreError) -> None:
        """Continue without a store, unless answers are read from it."""
        if self._use_cache:
            raise Fatal(str(error)) from None
        self._keys = []
        if str(error) not in _warnings:
            _warnings.add(str(error))
            logger.warning("Answers are not stored: %s", error)
