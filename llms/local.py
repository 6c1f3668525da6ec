"""Engines in this process's memory: one for equal settings, shared by every block, batch and thread."""

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from llms.base import StructuredLLM
from llms.typing import Usage

T = TypeVar("T")


class LocalLLM(StructuredLLM, ABC):
    """A model whose engine is in this process. Blocks with the same `_key` share one."""

    @abstractmethod
    def _key(self) -> Hashable:
        """What tells one engine from another."""

    def unload(self) -> None:
        """Free the model's memory, once nobody uses it any more."""
        free(self._key())

    def cost(self, usage: Usage) -> float | None:
        """Nothing: it runs here."""
        return 0.0


_engines: dict[Hashable, Any] = {}
_building = threading.Lock()


def engine(key: Hashable, build: Callable[[], T]) -> T:
    """The engine for `key`, built once however many threads ask; a forked child builds its own."""
    with _building:
        mine = (os.getpid(), key)
        if mine not in _engines:
            _engines[mine] = build()
        return _engines[mine]


def free(key: Hashable) -> None:
    """Let go of the engine for `key`; whoever still answers with it keeps it until the answer is there."""
    with _building:
        _engines.pop((os.getpid(), key), None)
