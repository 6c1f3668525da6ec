"""How a process that runs a pipeline keeps its memory: few places for what is freed, and rare looks for rubbish."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

ARENAS = 2
"""Places where the C library keeps what threads have freed. By default there are eight for each core, and what is free
in one is lost to all others; under Python's one lock more than two are of no use."""

M_ARENA_MAX = -8
"""What glibc's `mallopt` calls their number."""

with suppress(AttributeError, OSError, TypeError):  # another C library, another system
    ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)  # at import: once there are many threads it is too late


@contextmanager
def sparing() -> Iterator[None]:
    """Keep Python from looking for rubbish all the time: a run makes many objects and no circles.

    With the usual thresholds the collector takes more than a third of a run's CPU, most of it in going through what
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
