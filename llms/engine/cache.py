"""The cache of a batch: which generations are stored, which are to be asked for, and under which keys they go."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llms import store
from llms.engine.request import Request
from llms.errors import Fatal
from llms.typing import ChatType, GenerateOutput

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
        self._stored: dict[str, store.StoredAnswer] = {}  # valid ones and, marked, others
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
        keys = self._keys[index]
        missing = [number for number in numbers if not (kept := self._stored.get(keys[number])) or kept.schema_error]
        # Generations with a seed are a sequence: asking for some of them would repeat the first ones.
        absent = any(keys[number] not in self._stored for number in missing)
        return list(numbers) if absent and request.options.get("seed") is not None else missing

    def invalid(self, index: int) -> dict[int, store.StoredAnswer]:
        """Return the stored generations, by number, that break their structure and are to be asked for again."""
        if not self._keys:
            return {}
        missing, keys = self.missing(index), self._keys[index]
        found = {number: kept for number in missing if (kept := self._stored.get(keys[number]))}
        is_sequence = self.requests[index].options.get("seed") is not None and len(found) < len(missing)
        return {} if is_sequence else found

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
        self, index: int, numbers: Sequence[int], output: GenerateOutput, errors: Mapping[int, str], only: int | None
    ) -> None:
        """Store generations; they are durable when this returns.

        Args:
            index: The index of the request.
            numbers: The number of each generation in `output`.
            output: Generations of the request.
            errors: What is wrong with those that break their structure, by position.
            only: Position of the only one to store; all by default.

        Raises:
            Fatal: If they cannot be stored, and answers are read from the store.
        """
        positions = range(len(output)) if only is None else [only]
        if self._keys:
            keys = {position: self._keys[index][numbers[position]] for position in positions}
            await self._put(self.requests[index], keys, output, errors)

    async def find_retry(self, index: int, number: int, chat: ChatType) -> store.StoredAnswer | None:
        """Return the stored answer to a chat that asks for a generation of a request again.

        Raises:
            Fatal: If the store cannot be read.
        """
        if not self._keys or not self._use_cache:
            return None
        key = self._retry_key(index, number, chat)
        try:
            return (await asyncio.to_thread(store.get, [key])).get(key)
        except store.StoreError as error:
            self._disable(error)
            return None

    async def persist_retry(self, index: int, number: int, chat: ChatType, answer: GenerateOutput, error: str) -> None:
        """Store an answer that breaks its structure under the chat that asked for a generation again.

        Raises:
            Fatal: If it cannot be stored, and answers are read from the store.
        """
        if self._keys:
            await self._put(self.requests[index], {0: self._retry_key(index, number, chat)}, answer, {0: error})

    async def _put(
        self, request: Request[Any], keys: Mapping[int, str], output: GenerateOutput, errors: Mapping[int, str]
    ) -> None:
        """Store the generations at the positions that have a key."""
        if not self._use_cache and store.path() in _unusable_stores:
            return
        answers = store.StoredAnswer.from_output(request.llm, output)
        for position, error in errors.items():
            answers[position].schema_error = error
        try:
            await store.put({key: answers[position] for position, key in keys.items()})
        except store.StoreError as error:
            self._disable(error)
            _unusable_stores.add(store.path())

    def _retry_key(self, index: int, number: int, chat: ChatType) -> str:
        request = self.requests[index]
        return store.key_of(request.llm, chat, request.options, number)

    def merge_cached(self, index: int, new: GenerateOutput) -> GenerateOutput:
        """Return all generations of a request: `new`, which were missing, and those that are stored."""
        missing, keys = self.missing(index), self._keys[index] if self._keys else []
        if len(missing) == self.requests[index].num_generations:
            return new
        if new.error:
            failed = GenerateOutput.failed(new.error, len(keys))
            failed.usage, failed.cost, failed.seconds, failed.attempts = new.usage, new.cost, new.seconds, new.attempts
            return failed
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


@dataclass(frozen=True, slots=True)
class PartCache:
    """The place in the store of some generations of a request of a batch.

    Attributes:
        lookup: The cache of the batch.
        index: The index of the request.
        numbers: The numbers of the generations, in the order in which they are asked for.
    """

    lookup: CacheLookup
    index: int
    numbers: Sequence[int]

    async def persist(self, output: GenerateOutput, errors: Mapping[int, str], only: int | None = None) -> None:
        """Store the generations of an output, or only one of them."""
        await self.lookup.persist(self.index, self.numbers, output, errors, only)

    async def find_retry(self, index: int, chat: ChatType) -> store.StoredAnswer | None:
        """Return the stored answer to a chat that asks for the generation at this index again."""
        return await self.lookup.find_retry(self.index, self.numbers[index], chat)

    async def persist_retry(self, index: int, chat: ChatType, answer: GenerateOutput, error: str) -> None:
        """Store an answer to such a chat that breaks its structure."""
        await self.lookup.persist_retry(self.index, self.numbers[index], chat, answer, error)
