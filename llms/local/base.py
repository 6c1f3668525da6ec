"""Engines in this process's memory: one for equal settings, shared by every block, batch and thread."""

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

from llms.base import StructuredLLM
from llms.errors import Fatal, Rejected
from llms.typing import ChatType, Usage

T = TypeVar("T")

EngineKey = tuple[object, ...]
"""What tells one engine from another; the class of its model comes first."""


class LocalLLM(StructuredLLM, ABC):
    """A model whose engine is in this process. Blocks with the same `_key` share one.

    One that answers chats with different structures in one batch has a `generate_together` beside its `generate`.
    """

    @abstractmethod
    def _engine_key(self) -> EngineKey:
        """What tells one engine from another."""

    def unload(self) -> None:
        """Free the model's memory, once nobody uses it any more."""
        free_engine(self._engine_key())

    def cost(self, usage: Usage) -> float | None:
        """Nothing: it runs here."""
        return 0.0

    def _of_each(self, requests: Sequence[tuple[Self, ChatType]], hold: Callable[[Self], T]) -> dict[int, T | Rejected]:
        """What `hold` gives for every block that is asked, by the block's `id`; why not, where it cannot hold it.

        Raises:
            Fatal: If it cannot hold this block itself, rather than one that a row's own structure made of it.
        """
        found: dict[int, T | Rejected] = {}
        for llm in {id(llm): llm for llm, _ in requests}.values():
            try:
                found[id(llm)] = hold(llm)
            except Fatal as error:
                if llm is self:
                    raise
                found[id(llm)] = Rejected(error.message, attempts=0)
        return found


def raise_if_rejected(held: T | Rejected) -> T:
    """What a block is held to.

    Raises:
        Rejected: If it cannot be.
    """
    if isinstance(held, Rejected):
        raise held
    return held


_engines: dict[tuple[int, EngineKey], Any] = {}
_building: dict[tuple[int, object], threading.Lock] = {}


def shared_engine(key: EngineKey, build: Callable[[], T]) -> T:
    """The engine for `key`, built once however many threads ask; a forked child builds its own.

    One that is up waits for none that is built. Of the same class, one is built at a time: libraries set what is global
    while they load.
    """
    mine = (os.getpid(), key)
    if (found := _engines.get(mine)) is None:
        with _building.setdefault((os.getpid(), key[0]), threading.Lock()):
            if (found := _engines.get(mine)) is None:
                found = _engines[mine] = build()
    return found


def free_engine(key: EngineKey) -> None:
    """Let go of the engine for `key`; whoever still answers with it keeps it until the answer is there."""
    _engines.pop((os.getpid(), key), None)
