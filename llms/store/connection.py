"""Connections to the store's SQLite file: its path, its schema, its errors."""

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from llms.store.private_files import make_private_file, make_private_folder

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be moved or deleted
    fcntl = None

VERSION = 3
"""Version of the schema, in the file's `user_version`."""

SQLITE_BUSY_TIMEOUT_S = 30.0
"""Seconds to wait for another process that writes."""

_CREATE = (
    """
    CREATE TABLE IF NOT EXISTS answers (
        key TEXT PRIMARY KEY, text TEXT, finish_reason TEXT, reasoning TEXT,
        input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
        cache_read_input_tokens INTEGER NOT NULL, reasoning_output_tokens INTEGER NOT NULL,
        seconds REAL NOT NULL, model TEXT NOT NULL, provider TEXT NOT NULL, created REAL NOT NULL
    )
    """,
    "CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL, expires REAL NOT NULL)",
    "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value)",
    """
    CREATE TABLE IF NOT EXISTS spending (
        run TEXT NOT NULL, attempt INTEGER NOT NULL, step TEXT NOT NULL, model TEXT NOT NULL,
        requests INTEGER NOT NULL, unanswered INTEGER NOT NULL, input_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL, cache_read_input_tokens INTEGER NOT NULL,
        reasoning_output_tokens INTEGER NOT NULL, cache_creation_input_tokens INTEGER NOT NULL,
        cost REAL, seconds REAL NOT NULL, updated REAL NOT NULL, PRIMARY KEY (run, attempt, step, model)
    )
    """,
)
"""Tables: answers, requests in flight (`llms.store.claims`), facts about the file, and what runs have spent."""

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


class AnswerRefused(StoreError):
    """SQLite refuses an answer for what is in it; others can be stored."""


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
    """Return a connection to the store in a file, which is created if missing, for its user alone.

    Raises:
        StoreError: If the file cannot be used, or a newer distilflow wrote it.
    """
    with translate_errors(file):
        make_private_folder(file.parent)
        with _locked(file.parent):
            if not file.exists():
                for each in _logs(file):
                    each.unlink(missing_ok=True)  # SQLite would take the logs of a deleted file for this one's
                make_private_file(file)
            for each in (file, *_logs(file)):  # older versions let others read them
                if each.exists():
                    make_private_file(each)
        connection = sqlite3.connect(file, timeout=SQLITE_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            _set_up(connection, file)
        except BaseException:
            connection.close()
            raise
    return connection


def check_writable(file: Path) -> None:
    """Commit a small row, so that a full disk, a lock or missing rights are found before an answer is paid for.

    Raises:
        StoreError: If it cannot be committed.
    """
    with translate_errors(file), closing(connect(file)) as connection:
        connection.execute("REPLACE INTO meta VALUES ('checked', ?)", (time.time(),))


class OpenFile:
    """A connection to read and one to write, both to the file that is at a path when it is made.

    Raises:
        StoreError: If the file cannot be used.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.reader, self.writer = connect(file), connect(file)
        self._identity, self._log_identity = _identity(file), _identity(_logs(file)[0])

    def is_current(self) -> bool:
        """Return whether the file is still the one at its path: it may be deleted, moved or replaced."""
        return _identity(self.file) == self._identity

    def close(self) -> None:
        """Close the connections."""
        if not self.is_current():
            self.abandon()
            return
        self.reader.close()
        self.writer.close()

    def abandon(self) -> None:
        """Complete a file that is no longer at its path, and leave the path to another.

        The connections stay open: the last one that is closed deletes the logs at the path, which may be another's.
        """
        with suppress(sqlite3.Error):
            self.reader.execute("PRAGMA wal_checkpoint")
        with _locked(self.file.parent), suppress(OSError):
            if _identity(_logs(self.file)[0]) == self._log_identity:
                for each in _logs(self.file):
                    each.unlink(missing_ok=True)
        kept = (self.reader, self.writer)  # by a thread, because at the end of Python all else is closed
        threading.Thread(target=lambda _: threading.Event().wait(), args=(kept,), daemon=True).start()


def _identity(file: Path) -> tuple[int, int] | None:
    """Return what tells a file from another one of its name."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _logs(file: Path) -> tuple[Path, Path]:
    """Return the paths of the write-ahead log and its index, which SQLite puts beside the file itself."""
    real = file.resolve()
    return real.with_name(f"{real.name}-wal"), real.with_name(f"{real.name}-shm")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock between processes on a folder."""
    if fcntl is None or not folder.is_dir():
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _set_up(connection: sqlite3.Connection, file: Path) -> None:
    connection.text_factory = _decode
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise _error(file, "is of a newer distilflow", "install that", f"format {version}, this one knows {VERSION}")
    mode = _enable_wal(connection)
    if mode != "wal":
        raise _error(file, "is on a disk that several processes cannot share", "use a local one", f"`{mode}`")
    # A commit waits for the disk, so that it survives a power cut too; there is one for all answers of 5 ms.
    connection.execute("PRAGMA synchronous = FULL")
    if version < VERSION:
        connection.execute("BEGIN IMMEDIATE")
        (version,) = connection.execute("PRAGMA user_version").fetchone()  # another process may have been first
        for statement in _CREATE:
            connection.execute(statement)
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
