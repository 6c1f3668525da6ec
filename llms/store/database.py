"""Reading and writing stored answers; each is durable before it is returned.

Errors are not stored. Of a request only a hash is stored, because prompts can be confidential and the caller has them.
"""

import asyncio
import atexit
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from llms.store.answer import INSERT, SELECT, StoredAnswer, from_row, to_row
from llms.store.connection import (
    SQLITE_BUSY_TIMEOUT_S,
    AnswerRefused,
    OpenFile,
    check_writable,
    path,
    translate_errors,
)

logger = logging.getLogger(__name__)

COMMIT_DELAY_S = 0.005
"""Seconds to collect answers before a commit: a commit of a hundred costs as much as of one."""

CLOSE_TIMEOUT_S = SQLITE_BUSY_TIMEOUT_S + 5
"""Seconds that the end of the program waits for the last commit, which may wait for a lock of another program."""

READ_CHUNK = 500
"""Keys to read at a time; in between other threads get the lock."""

_ROW_ERRORS = (
    sqlite3.DataError,
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    OverflowError,
)
"""Errors that are about one row, not about the file."""


def prepare() -> None:
    """Open the store and check that it can be written, before anything is paid for; only once, until a write fails.

    It may wait for a lock, which the event loop should not do when the first answers come.

    Raises:
        StoreError: If it cannot be used.
    """
    with _lock:
        store = _store()
    store.check_writable()  # outside of our lock, which the event loop takes


async def put(answers: Mapping[str, StoredAnswer]) -> None:
    """Write answers by key in one transaction; when this returns they survive `kill -9`.

    Answers with the `finish_reason` `error` are skipped. The others are written even if this is cancelled.

    Raises:
        StoreError: If they could not be written.
    """
    rows = [to_row(key, answer) for key, answer in answers.items() if answer.finish_reason != "error"]
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    with _lock:
        _store().queue.put(_PendingWrite(INSERT, rows, loop, done))
    await done


def enqueue(statement: str, rows: list[tuple[Any, ...]]) -> None:
    """Execute a statement for these rows with the next commit, which nobody waits for; a failure is logged.

    Raises:
        StoreError: If the store cannot be opened.
    """
    with _lock:
        _store().queue.put(_PendingWrite(statement, rows))


def flush() -> None:
    """Wait until what was enqueued is committed.

    Raises:
        StoreError: If the store cannot be opened.
    """
    committed = threading.Event()
    with _lock:
        _store().queue.put(_PendingWrite(INSERT, [], on_end=committed.set))
    committed.wait(CLOSE_TIMEOUT_S)


def query(statement: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Return the rows that a statement selects.

    Raises:
        StoreError: If the store cannot be read.
    """
    with _lock:
        store = _store()
        with translate_errors(store.file):
            return store.current().reader.execute(statement, parameters).fetchall()


def get(keys: Iterable[str]) -> dict[str, StoredAnswer]:
    """Return the stored answers by key, at a few microseconds each.

    Raises:
        StoreError: If the store cannot be read.
    """
    every = list(keys)
    rows: list[tuple[Any, ...]] = []
    for start in range(0, len(every), READ_CHUNK):
        with _lock:
            store = _store()
            with translate_errors(store.file):
                rows += (
                    store.current().reader.execute(SELECT, (json.dumps(every[start : start + READ_CHUNK]),)).fetchall()
                )
    return dict(map(from_row, rows))


@dataclass(slots=True)
class _PendingWrite:
    """A statement to execute for rows, and whom to notify: a future on its loop, or a function."""

    statement: str
    rows: list[tuple[Any, ...]]
    loop: asyncio.AbstractEventLoop | None = None
    done: "asyncio.Future[None] | None" = None
    on_end: Callable[[], None] | None = None


class _Store:
    """An open store: a connection to read, and a connection and a thread to write."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._open: OpenFile | None = OpenFile(file)
        self._opening = threading.Lock()
        self._is_checked = False
        self.queue: SimpleQueue[_PendingWrite | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._write_loop, name="llms-store", daemon=True)
        self.thread.start()

    def current(self) -> OpenFile:
        """Return the file that is at the path now; a new one, with a warning, if somebody took the former away."""
        with self._opening:
            if self._open and not self._open.is_current():
                logger.warning(
                    "The store of answers `%s` was deleted, moved or replaced while it was in use. Answers go on into "
                    "the file that is there now; those from before are where the former file is.",
                    self.file,
                )
                self._open.abandon()
                self._open = None
            self._open = self._open or OpenFile(self.file)
            return self._open

    def check_writable(self) -> None:
        if not self._is_checked:
            check_writable(self.file)
            self._is_checked = True

    def _write_loop(self) -> None:
        while first := self.queue.get():
            time.sleep(COMMIT_DELAY_S)
            batch = [first, *self._drain_queue()]
            failures = self._write(batch)
            for loop in {each.loop for each in batch if each.loop}:  # each is woken once, not once per answer
                results = [
                    (each.done, error)
                    for each, error in zip(batch, failures, strict=True)
                    if each.done and each.loop is loop
                ]
                with suppress(RuntimeError):  # it is closed
                    loop.call_soon_threadsafe(_resolve, results)
            for each, error in zip(batch, failures, strict=True):
                if each.on_end:
                    each.on_end()
                if error and not each.done:
                    logger.warning("What a run has spent is not recorded: %s", error)

    def _drain_queue(self) -> Iterator[_PendingWrite]:
        try:
            while each := self.queue.get_nowait():
                yield each
            self.queue.put(None)  # the end, for `_write_loop`
        except Empty:
            pass

    def _write(self, batch: list[_PendingWrite]) -> list[Exception | None]:
        """Write a batch in one commit, or one by one if SQLite refuses a row of it; return what failed."""
        try:
            self._commit(batch)
        except AnswerRefused as error:
            return [error] if len(batch) == 1 else [failure for each in batch for failure in self._write([each])]
        except Exception as error:
            self._is_checked = False
            return [error] * len(batch)
        return [None] * len(batch)

    def _commit(self, writes: Iterable[_PendingWrite]) -> None:
        is_kept = False
        while not is_kept:
            opened = self.current()
            with translate_errors(self.file):
                opened.writer.execute("BEGIN IMMEDIATE")
                try:
                    for each in writes:
                        opened.writer.executemany(each.statement, each.rows)
                    opened.writer.execute("COMMIT")
                except BaseException as error:
                    if opened.writer.in_transaction:  # a full disk ends it
                        opened.writer.execute("ROLLBACK")
                    if isinstance(error, _ROW_ERRORS):
                        raise AnswerRefused(
                            f"An answer cannot be stored in `{self.file}`, because SQLite refuses it ({error}): run "
                            "with `use_cache=False`."
                        ) from None
                    raise
            is_kept = opened.is_current()  # else it is in a file that was taken away meanwhile

    def close(self) -> None:
        """Write what is queued, and close the file."""
        self.queue.put(None)
        self.thread.join(CLOSE_TIMEOUT_S)
        if self.thread.is_alive():
            logger.error("The last answers are not in the store `%s`, which another program locks.", self.file)
        elif self._open:
            self._open.close()


def _resolve(results: "list[tuple[asyncio.Future[None], Exception | None]]") -> None:
    for done, failure in results:
        if done.done():  # cancelled
            continue
        if failure:
            done.set_exception(failure)
        else:
            done.set_result(None)


_stores: dict[str | None, _Store] = {}
_lock = threading.Lock()


def _store() -> _Store:
    """Return the open store of this process for `DISTILFLOW_HOME`; `_lock` must be held."""
    home = os.getenv("DISTILFLOW_HOME")
    if home not in _stores:
        _stores[home] = _Store(path())
    return _stores[home]


@atexit.register
def close() -> None:
    """Write what is queued and close the file; the next use opens it again."""
    with _lock:
        _close()


def _close() -> None:
    while _stores:
        _stores.popitem()[1].close()


def _before_fork() -> None:
    _lock.acquire()
    _close()  # SQLite's locks belong to a process: a child with an inherited connection would believe it holds them


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(before=_before_fork, after_in_parent=_lock.release, after_in_child=_lock.release)
