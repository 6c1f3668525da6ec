"""Claims on requests, so that several processes that share a store ask for the same answer once.

Around the requests of a batch:

    async with Claims(keys) as claims:
        if await claims.wait(key):  # until it is ours, or another process has stored an answer
            ...  # look it up

A process claims all keys of a batch in one transaction, and gives them back in one. Another one that needs one of them
waits until it is answered or given back. A claim ends by itself when its process is gone, or `LEASE_S` after it was
last renewed.
"""

import asyncio
import json
import os
import secrets
import socket
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from llms.store.connection import StoreError, connect, path, translate_errors

LEASE_S = 60.0
"""Seconds until a claim ends that nobody renews: its process is on another machine, or stands still."""

FIRST_POLL_S, LAST_POLL_S = 0.05, 1.0
"""Seconds between looks at claims of others: twice as many each time."""

_TOKEN = secrets.token_hex(4)
_AMONG = "IN (SELECT value FROM json_each(?))"


class Claims:
    """Claims of this process on the keys of a batch, while it is entered.

    A store that cannot be used claims nothing and makes nobody wait: storing the answers will say what is wrong.

    Args:
        keys: Keys of answers that are not stored.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._file = path()
        self._ours = set[str]()
        self._answered = set[str]()
        self._waiting = {key: asyncio.Event() for key in keys}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._waiting:
            await self._claim()
            self._task = asyncio.create_task(self._keep())
        return self

    async def wait(self, key: str) -> bool:
        """Wait until a key is ours or answered, and return whether it is answered."""
        if event := self._waiting.get(key):
            await event.wait()
        return key in self._answered

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task:
            self._task.cancel()
        if self._ours:
            await asyncio.shield(asyncio.to_thread(_release, self._file, self._ours))

    async def _claim(self) -> None:
        """Claim what others have given back, and let go on whoever waits for it or for an answer that is there."""
        try:
            ours, answered = await asyncio.to_thread(_claim, self._file, list(self._waiting))
        except StoreError:
            ours, answered = set(self._waiting), set[str]()
        self._ours |= ours
        self._answered |= answered
        for key in ours | answered:
            self._waiting.pop(key).set()

    async def _keep(self) -> None:
        """Look again and again at what others have, and renew what is ours."""
        delay, renewed = FIRST_POLL_S, time.monotonic()
        while True:
            await asyncio.sleep(delay if self._waiting else LEASE_S / 3)
            delay = min(2 * delay, LAST_POLL_S)
            if self._waiting:
                await self._claim()
            if time.monotonic() - renewed >= LEASE_S / 3:
                await asyncio.to_thread(_renew, self._file, self._ours)
                renewed = time.monotonic()


def _claim(file: Path, keys: list[str]) -> tuple[set[str], set[str]]:
    """Claim keys that nobody has and that are not answered; return those, and the answered ones."""
    now, owner = time.time(), _owner()
    with _opened(file) as connection:
        connection.execute("BEGIN IMMEDIATE")
        rows = connection.execute(f"SELECT key, owner, expires FROM claims WHERE key {_AMONG}", (json.dumps(keys),))
        taken = {key for key, other, expires in rows if expires > now and other != owner and _is_alive(other)}
        free = set(keys) - taken
        rows = connection.execute(f"SELECT key FROM answers WHERE key {_AMONG}", (json.dumps(keys),))
        answered = {key for (key,) in rows}
        ours = free - answered
        connection.executemany("REPLACE INTO claims VALUES (?, ?, ?)", [(key, owner, now + LEASE_S) for key in ours])
        connection.execute("COMMIT")
    return ours, answered


def _renew(file: Path, keys: Iterable[str]) -> None:
    _change(file, "UPDATE claims SET expires = ? WHERE owner = ?", time.time() + LEASE_S, keys=keys)


def _release(file: Path, keys: Iterable[str]) -> None:
    _change(file, "DELETE FROM claims WHERE owner = ?", keys=keys)


def _change(file: Path, statement: str, *values: float, keys: Iterable[str]) -> None:
    try:
        with _opened(file) as connection:
            connection.execute(f"{statement} AND key {_AMONG}", (*values, _owner(), json.dumps(list(keys))))
    except StoreError:  # they end by themselves
        pass


@contextmanager
def _opened(file: Path) -> Iterator[sqlite3.Connection]:
    """Open the store for a moment: no connection has to be closed before a fork, nor opened anew for another file."""
    with translate_errors(file), closing(connect(file)) as connection:
        connection.execute("PRAGMA synchronous = NORMAL")  # after a power cut nobody claims anything
        yield connection


def _owner() -> str:
    return json.dumps([socket.gethostname(), os.getpid(), _TOKEN])


def _is_alive(owner: str) -> bool:
    """Return whether a process may still work; one on another machine may."""
    host, process, _ = json.loads(owner)
    if host != socket.gethostname() or os.name == "nt":  # where signal 0 is not a question
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return True
