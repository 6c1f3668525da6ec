"""Memory of a process that runs a pipeline: few malloc arenas, few garbage collections."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

MAX_MALLOC_ARENAS = 2
"""Arenas in which the C library keeps freed memory. Its default is eight per core, and memory free in one is lost to
the others; under Python's one lock more than two are of no use."""

M_ARENA_MAX = -8
"""Number of the parameter in glibc's `mallopt`."""

with suppress(AttributeError, OSError, TypeError):  # another C library, another system
    ctypes.CDLL(None).mallopt(M_ARENA_MAX, MAX_MALLOC_ARENAS)  # at import: once there are many threads it is too late


@contextmanager
def reduced_gc() -> Iterator[None]:
    """Make the garbage collector run rarely: a run makes many objects and few cycles.

    With the default thresholds the collector takes more than a third of a run's CPU, most of it in traversing what
    was imported before.
    """
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
