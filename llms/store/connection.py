"""Connections to the store's SQLite file: its path, its schema, its errors."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VERSION = 3
"""Version of the schema, in the file's `user_version`."""

SQLITE_BUSY_TIMEOUT_S = 30.0
"""Seconds to wait for another process that writes."""

_CREATE = """
    CREATE TABLE IF NOT EXISTS answers (
        key TEXT PRIMARY KEY, text TEXT, finish_reason TEXT, reasoning TEXT,
        input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
        cache_read_input_tokens INTEGER NOT NULL, reasoning_output_tokens INTEGER NOT NULL,
        seconds REAL NOT NULL, model TEXT NOT NULL, provider TEXT NOT NULL, created REAL NOT NULL
    )
"""
_CREATE_SPENDING = """
    CREATE TABLE IF NOT EXISTS spending (
        run TEXT NOT NULL, attempt INTEGER NOT NULL, step TEXT NOT NULL, model TEXT NOT NULL,
        requests INTEGER NOT NULL, unanswered INTEGER NOT NULL, input_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL, cache_read_input_tokens INTEGER NOT NULL,
        reasoning_output_tokens INTEGER NOT NULL, cache_creation_input_tokens INTEGER NOT NULL,
        cost REAL, seconds REAL NOT NULL, updated REAL NOT NULL, PRIMARY KEY (run, attempt, step, model)
    )
"""
_ADDED_COLUMNS = {
    2: ("cache_creation_input_tokens INTEGER NOT NULL DEFAULT 0", "logprobs TEXT"),
    3: ("schema_error TEXT",),
}
"""Columns by the version that added them; an older file gets them when it is opened."""

_KNOWN_ERRORS = {
    sqlite3.SQLITE_BUSY: ("is locked by another program", "end that program"),
    sqlite3.SQLITE_LOCKED: ("is locked by another program", "end that program"),
    sqlite3.SQLITE_CORRUPT: ("is damaged", "move it away"),
    sqlite3.SQLITE_NOTADB: ("is no database", "move it away"),
    sqlite3.SQLITE_FULL: ("finds no room on its disk", "make room"),
}
_OTHER_ERROR = ("cannot be used", "make its folder writable")


class StoreError(Exception):
    """The store cannot be used; the message says which file, why, and what to do. The caller may go on without."""


def path() -> Path:
    """Return the path of the file: `answers.db` in the folder `DISTILFLOW_HOME`, or in `~/.distilflow`.

    The folder must be on a local disk: SQLite's shared memory does not work over a network.
    """
    return Path(os.getenv("DISTILFLOW_HOME") or "~/.distilflow").expanduser().absolute() / "answers.db"


@contextmanager
def translate_errors(file: Path) -> Iterator[None]:
    """Raise errors of SQLite and the disk as `StoreError`."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        raise _error(file, *_KNOWN_ERRORS.get(code, _OTHER_ERROR), str(error)) from None


def _error(file: Path, what: str, cure: str, details: str) -> StoreError:
    return StoreError(
        f"The store of answers `{file}` {what} ({details}): {cure}, set `DISTILFLOW_HOME` to another folder, "
        "or run with `use_cache=False`."
    )


def connect(file: Path) -> sqlite3.Connection:
    """Return a connection to the store in a file, which is created if missing.

    Raises:
        StoreError: If the file cannot be used, or a newer distilflow wrote it.
    """
    with translate_errors(file):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        connection = sqlite3.connect(file, timeout=SQLITE_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            _set_up(connection, file)
        except BaseException:
            connection.close()
            raise
    return connection


def _set_up(connection: sqlite3.Connection, file: Path) -> None:
    connection.text_factory = _decode
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise _error(file, "is of a newer distilflow", "install that", f"format {version}, this one knows {VERSION}")
    mode = _enable_wal(connection)
    if mode != "wal":
        raise _error(file, "is on a disk that several processes cannot share", "use a local one", f"`{mode}`")
    # A commit is in the kernel's cache and survives `kill -9`. A power cut may lose the last commits, never the file;
    # to survive that too, every commit would have to wait for the disk.
    connection.execute("PRAGMA synchronous = NORMAL")
    if version < VERSION:
        connection.execute("BEGIN IMMEDIATE")
        (version,) = connection.execute("PRAGMA user_version").fetchone()  # another process may have been first
        connection.execute(_CREATE)
        connection.execute(_CREATE_SPENDING)
        for column in (column for added, columns in _ADDED_COLUMNS.items() if version < added for column in columns):
            connection.execute(f"ALTER TABLE answers ADD COLUMN {column}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")


def _enable_wal(connection: sqlite3.Connection) -> str:
    """Switch to WAL and return the mode; retry while busy, as SQLite's timeout does not cover this statement."""
    end = time.monotonic() + SQLITE_BUSY_TIMEOUT_S
    while True:
        try:
            return connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(0.01)


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "surrogatepass")  # see `database._encode`
