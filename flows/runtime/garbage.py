"""Garbage collection in a thread of its own, for a Prefect server on SQLite.

Freeing a cursor waits until its connection is idle, and a connection may be waiting for the lock that another one holds
until the event loop goes on. Collected on the thread of that loop, as Python does, such a cursor stops the server until
SQLite gives up, after a minute.
"""

import gc
import threading
import time

POLL_S = 0.2
YOUNG_OBJECTS = 100_000
"""Looking more often, among all that a server imports, takes a third of its start."""
FULL_COLLECTION_EVERY = 10


def collect_in_a_thread() -> None:
    """Collect garbage in a thread, for as long as the process lives, and nowhere else."""
    gc.disable()
    threading.Thread(target=_collect, name="garbage", daemon=True).start()


def _collect() -> None:
    collections = 0
    while True:
        time.sleep(POLL_S)
        if gc.get_count()[0] > YOUNG_OBJECTS:
            collections += 1
            gc.collect(2 if collections % FULL_COLLECTION_EVERY == 0 else 1)
