"""Which generations of a batch are in the store, which are to be asked for, and where those go."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llms import store
from llms.errors import Fatal
from llms.typing import ChatType, GenerateOutput

logger = logging.getLogger(__name__)

_left_alone: set[Path] = set()
"""Stores that could not be used, while nothing had to be looked up in them: they are not tried again."""

_said: set[str] = set()
"""Why answers are not stored, as it was said: once, not once per answer."""


class Recall:
    """Requests, each a model and a chat, with the answers the store has for them.

    A store that cannot be used ends the run, unless nothing is looked up in it: then it goes on without one.

    Args:
        look_up: Whether to take answers from the store; new ones are put there either way.
    """

    def __init__(
        self,
        requests: "Sequence[tuple[Any, ChatType]]",
        num_generations: int,
        options: Mapping[str, Any],
        look_up: bool,
    ) -> None:
        self.requests = requests
        self._look_up = look_up
        self._numbers = range(num_generations)
        self._keys: list[list[str]] = []
        self._found: dict[str, store.StoredAnswer] = {}
        try:
            self._keys = [[store.key_of(llm, chat, options, each) for each in self._numbers] for llm, chat in requests]
        except store.StoreError as error:
            self._give_up(error)
        try:
            if look_up:
                self._found = store.get({key for keys in self._keys for key in keys})
                _left_alone.discard(store.path())
            elif store.path() not in _left_alone:
                store.prepare()  # here, where waiting for whoever locks it holds up nobody else
        except store.StoreError as error:
            self._give_up(error)
            _left_alone.add(store.path())
        # Generations with a seed are a sequence: to ask for some of them would repeat the first ones.
        self._whole = options.get("seed") is not None

    def missing(self, at: int) -> list[int]:
        """The generations of request number `at` to ask for."""
        keys = self._keys[at] if self._keys else []
        known = [key in self._found for key in keys] or [False] * len(self._numbers)
        if all(known):
            return []
        return list(self._numbers) if self._whole else [each for each in self._numbers if not known[each]]

    def twin(self, at: int) -> tuple[str, ...] | int:
        """The same for chats that are the same request, which is made once; each its own when nothing is looked up."""
        return tuple(self._keys[at]) if self._keys and self._look_up else at

    def look_again(self, at: int) -> None:
        """Look up what has come meanwhile.

        Raises:
            Fatal: If the store cannot be read.
        """
        try:
            self._found |= store.get(self._keys[at])
        except store.StoreError as error:
            self._give_up(error)

    async def keep(self, at: int, places: Mapping[int, int], new: GenerateOutput) -> None:
        """Put new generations into the store; they are durable when this returns.

        Args:
            places: Where in `new` the generation of each number is.

        Raises:
            Fatal: If they cannot be stored, and answers are looked up.
        """
        if not self._keys or not places or (not self._look_up and store.path() in _left_alone):
            return
        answers = store.StoredAnswer.from_output(self.requests[at][0], new)
        try:
            await store.put({self._keys[at][number]: answers[place] for number, place in places.items()})
        except store.StoreError as error:
            self._give_up(error)
            _left_alone.add(store.path())

    def completed(self, at: int, new: GenerateOutput) -> GenerateOutput:
        """The generations that were missing, `new`, together with those that were there."""
        missing = self.missing(at)
        if new.error or len(missing) == len(self._numbers):
            return new
        fresh = dict(zip(missing, new.split(), strict=True))
        output = GenerateOutput.join(
            [fresh.get(number) or self._found[self._keys[at][number]].to_output() for number in self._numbers]
        )
        output.cached = not missing
        if missing:  # what was paid now is what counts
            output.usage, output.cost, output.seconds, output.attempts = new.usage, new.cost, new.seconds, new.attempts
        return output

    def _give_up(self, error: store.StoreError) -> None:
        """Go on without a store, where nothing is looked up in it."""
        if self._look_up:
            raise Fatal(str(error)) from None
        self._keys = []
        if str(error) not in _said:
            _said.add(str(error))
            logger.warning("Answers are not stored: %s", error)
