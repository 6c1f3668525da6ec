"""Engines in this process's memory: one for equal settings, shared by every block, batch and thread."""

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

from llms.base import StructuredLLM
from llms.typing import Usage

T = TypeVar("T")

EngineKey = tuple[object, ...]
"""Identifies an engine; the class of its model comes first."""


class LocalLLM(StructuredLLM, ABC):
    """A model whose engine is in this process. Blocks with the same `_engine_key` share one."""

    @abstractmethod
    def _engine_key(self) -> EngineKey:
        """Identify the engine of this block. Override this in subclasses."""

    def unload(self) -> None:
        """Free the model's memory, once nobody uses it any more."""
        free_engine(self._engine_key())

    def cost(self, usage: Usage) -> float | None:
        """Return 0: it runs here."""
        return 0.0


_engines: dict[tuple[int, EngineKey], Any] = {}
_building: dict[tuple[int, object], threading.Lock] = {}


def shared_engine(key: EngineKey, build: Callable[[], T]) -> T:
    """Return the engine for `key`, built once however many threads ask; a forked child builds its own.

    An engine that is up waits for none that is built. Of one class, one is built at a time: libraries set globals
    while they load.
    """
    mine = (os.getpid(), key)
    if (found := _engines.get(mine)) is None:
        with _building.setdefault((os.getpid(), key[0]), threading.Lock()):
            if (found := _engines.get(mine)) is None:
                found = _engines[mine] = build()
    return found


def free_engine(key: EngineKey) -> None:
    """Drop the engine for `key`; calls in progress keep it until they return."""
    _engines.pop((os.getpid(), key), None)
