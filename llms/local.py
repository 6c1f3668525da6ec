"""Engines in this process's memory: one for equal settings, shared by every block, batch and thread."""

import os
import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")

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
