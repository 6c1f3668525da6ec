"""`python -m llms.store`: what the store of answers holds, and ways to make it smaller."""

import argparse
import math
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llms.store.file import StoreError, connect, explained, path

SECONDS = {"h": 3600, "d": 86400, "w": 604800}


def main() -> None:
    """Do what the command line says.

    Raises:
        SystemExit: If it cannot be done; the message says why.
    """
    parser = argparse.ArgumentParser(prog="python -m llms.store", description="The answers you have paid for.")
    commands = parser.add_subparsers(dest="command", metavar="prune | clear")
    prune = commands.add_parser("prune", help="delete old answers")
    prune.add_argument(
        "--older-than", type=_age, required=True, metavar="30d", help="hours, days or weeks: 12h, 30d, 4w"
    )
    prune.add_argument("--model", metavar="NAME", help="of this model only")
    clear = commands.add_parser("clear", help="delete all answers")
    clear.add_argument("--yes", action="store_true", help="do so")
    given = parser.parse_args()
    file = path()
    if not file.exists():
        print(f"{file}: no answers yet")
        return
    try:
        match given.command:
            case "prune":
                _delete(file, given.older_than, given.model)
            case "clear" if not given.yes:
                raise SystemExit(f"This deletes every answer in `{file}`, which were paid for: add `--yes` to do so.")
            case "clear":
                _delete(file, -math.inf, None)
            case _:
                _show(file)
    except StoreError as error:
        raise SystemExit(str(error)) from None


def _age(text: str) -> int:
    if not (match := re.fullmatch(r"(\d+)([hdw])", text)):
        raise argparse.ArgumentTypeError(f"`{text}` is no age: write hours, days or weeks, like 12h, 30d or 4w")
    return int(match[1]) * SECONDS[match[2]]


def _show(file: Path) -> None:
    with _open(file) as connection:
        models = connection.execute(
            "SELECT model, provider, count(*), sum(input_tokens), sum(output_tokens), min(created), max(created) "
            "FROM answers GROUP BY model, provider ORDER BY count(*) DESC"
        ).fetchall()
    print(f"{file}: {sum(each[2] for each in models):,} answers, {_size(file) / 1e6:,.1f} MB")
    head = ("model", "class", "answers", "tokens in", "tokens out", "oldest", "newest")
    table = [head, *((*each[:2], *(f"{count:,}" for count in each[2:5]), *map(_day, each[5:])) for each in models)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table if models else []:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _delete(file: Path, seconds: float, model: str | None) -> None:
    before = _size(file)
    with _open(file) as connection:
        gone = connection.execute(
            "DELETE FROM answers WHERE created <= ?1 AND (?2 IS NULL OR model = ?2)", (time.time() - seconds, model)
        ).rowcount
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    print(f"{file}: {gone:,} answers deleted, {max(0, before - _size(file)) / 1e6:,.1f} MB freed")


@contextmanager
def _open(file: Path) -> Iterator[sqlite3.Connection]:
    with explained(file):
        connection = connect(file)
        try:
            yield connection
        finally:
            connection.close()


def _size(file: Path) -> int:
    """Bytes on disk, with what SQLite has not yet put into its place."""
    parts = (file, file.with_name(f"{file.name}-wal"))
    return sum(each.stat().st_size for each in parts if each.exists())


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


if __name__ == "__main__":
    main()
