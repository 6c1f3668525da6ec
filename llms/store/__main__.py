"""`python -m llms.store`: show, prune or clear the store of answers."""

import math
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llms.store.cli import format_time, make_parser, print_table
from llms.store.connection import StoreError, connect, path, translate_errors


def main() -> None:
    """Run the command line.

    Raises:
        SystemExit: If it fails; the message says why.
    """
    parser = make_parser("llms.store", "The answers you have paid for.", "answers", "model")
    given = parser.parse_args()
    file = path()
    if not file.exists():
        print(f"{file}: no answers yet")
        return
    try:
        match given.command:
            case "prune":
                _delete(file, given.older_than, given.only)
            case "clear" if not given.yes:
                raise SystemExit(f"This deletes every answer in `{file}`, which were paid for: add `--yes` to do so.")
            case "clear":
                _delete(file, -math.inf, None)
            case _:
                _show(file)
    except StoreError as error:
        raise SystemExit(str(error)) from None


def _show(file: Path) -> None:
    with _open(file) as connection:
        models = connection.execute(
            "SELECT model, provider, count(*), sum(input_tokens), sum(output_tokens), min(created), max(created) "
            "FROM answers GROUP BY model, provider ORDER BY count(*) DESC"
        ).fetchall()
    print(f"{file}: {sum(each[2] for each in models):,} answers, {_size(file) / 1e6:,.1f} MB")
    if models:
        head = ("model", "class", "answers", "tokens in", "tokens out", "oldest", "newest")
        print_table(
            head, [(*each[:2], *(f"{count:,}" for count in each[2:5]), *map(format_time, each[5:])) for each in models]
        )


def _delete(file: Path, seconds: float, model: str | None) -> None:
    before = _size(file)
    with _open(file) as connection:
        gone = connection.execute(
            "DELETE FROM answers WHERE created <= ?1 AND (?2 IS NULL OR model = ?2)", (time.time() - seconds, model)
        ).rowcount
        if model is None:
            connection.execute("DELETE FROM spending WHERE updated <= ?", (time.time() - seconds,))
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    print(f"{file}: {gone:,} answers deleted, {max(0, before - _size(file)) / 1e6:,.1f} MB freed")


@contextmanager
def _open(file: Path) -> Iterator[sqlite3.Connection]:
    with translate_errors(file):
        connection = connect(file)
        try:
            yield connection
        finally:
            connection.close()


def _size(file: Path) -> int:
    """Return the size on disk in bytes, with the write-ahead log."""
    parts = (file, file.with_name(f"{file.name}-wal"))
    return sum(each.stat().st_size for each in parts if each.exists())


if __name__ == "__main__":
    main()
