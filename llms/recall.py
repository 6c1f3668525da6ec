"""Which generations of a batch are in the store, which are to be asked for, and where those go."""

import logging
from typing import TYPE_CHECKING, Any

from llms import store
from llms.errors import Fatal
from llms.typing import ChatType, GenerateOutput

if TYPE_CHECKING:
    from llms.base import LLM

logger = logging.getLogger(__name__)


class Recall:
    """A batch of chats, each with the answers the store has for it.

    A store that cannot be used ends the run, unless nothing is looked up in it: then it goes on without one.

    Args:
        look_up: Whether to take answers from the store; new ones are put there either way.
    """

    def __init__(
        self, llm: "LLM", chats: list[ChatType], num_generations: int, options: dict[str, Any], look_up: bool
    ) -> None:
        self.llm = llm
        self.look_up = look_up
        self._numbers = range(num_generations)
        self._keys: list[list[str]] = []
        self._found: dict[str, store.StoredAnswer] = {}
        try:
            self._keys = [[store.key_of(llm, chat, options, each) for each in self._numbers] for chat in chats]
            if look_up:
                self._found = store.get({key for keys in self._keys for key in keys})
        except store.StoreError as error:
            self._keys = []
            self._give_up(error)
        # Generations with a seed are a sequence: to ask for some of them would repeat the first ones.
        self._whole = options.get("seed") is not None

    def missing(self, at: int) -> list[int]:
        """The generations of chat number `at` to ask for."""
        keys = self._keys[at] if self._keys else []
        known = [key in self._found for key in keys] or [False] * len(self._numbers)
        if all(known):
            return []
        return list(self._numbers) if self._whole else [each for each in self._numbers if not known[each]]

    def twin(self, at: int) -> object:
        """Equal for chats that are the same request, which is made once; each its own when nothing is looked up."""
        return tuple(self._keys[at]) if self._keys and self.look_up else at

    async def completed(self, at: int, new: GenerateOutput) -> GenerateOutput:
        """What was asked for together with what was there; new answers are durable when this returns.

        Raises:
            Fatal: If they cannot be stored, and answers are looked up.
        """
        missing = self.missing(at)
        if new.error or not self._keys:
            return new
        keys, fresh = self._keys[at], dict[str, store.StoredAnswer]()
        if missing:
            answers = store.StoredAnswer.of(self.llm, new)
            fresh = {keys[number]: answer for number, answer in zip(missing, answers, strict=True)}
            try:
                await store.put(fresh)
            except store.StoreError as error:
                self._give_up(error)
        if len(fresh) == len(keys):
            return new
        output = GenerateOutput.joined([(fresh.get(key) or self._found[key]).output() for key in keys])
        output.cached = not fresh
        if fresh:  # what was paid now is what counts
            output.usage, output.cost, output.seconds, output.attempts = new.usage, new.cost, new.seconds, new.attempts
        return output

    def _give_up(self, error: store.StoreError) -> None:
        if self.look_up:
            raise Fatal(str(error)) from None
        logger.warning("Answers are not stored: %s", error)
