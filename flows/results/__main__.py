"""`python -m flows.results`: list, prune and clear cached step results."""

import math
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from prefect.filesystems import LocalFileSystem
from prefect.results import get_default_result_storage, resolve_result_storage

from flows.results import KEY_PREFIX, BatchResultSerializer
from flows.runtime import server
from llms.store.cli import format_time, make_parser, print_table

RESULT_FILE_NAME = re.compile("[0-9a-f]{32}")

SERIALIZER_MARK = f'"serializer":{{"type":"{BatchResultSerializer().type}"'.encode()
"""Bytes in the header of a result's file, and of no other file: inside a text quotes are escaped."""

HEADER_BYTES = 32_768
"""Upper bound of the header: before the mark is only the path, of at most 4,096 bytes, each up to six in JSON."""


@dataclass
class StoredResult:
    """A result on disk.

    Attributes:
        step: Name of the step.
        file: Path of the result.
        size: Bytes.
        written: Time of writing, in seconds since 1970.
    """

    step: str
    file: Path
    size: int
    written: float


def main() -> None:
    """Run the command.

    Raises:
        SystemExit: If it fails, with the reason.
    """
    parser = make_parser("flows.results", "What steps made of each batch, kept for other runs.", "results", "step")
    parser.add_argument(
        "--storage",
        metavar="FOLDER | BLOCK",
        help="the `result_storage` of your runs: a folder, or a saved block; where Prefect's settings say when empty",
    )
    arguments = parser.parse_args()
    folder = _results_folder(_storage(arguments.storage))
    try:
        match arguments.command:
            case "prune":
                _delete(folder, arguments.older_than, arguments.only)
            case "clear" if not arguments.yes:
                raise SystemExit(
                    f"This deletes every result in `{folder}`; steps do those batches again, with the answers that are "
                    "in the store: add `--yes` to do so."
                )
            case "clear":
                _delete(folder, -math.inf, None)
            case _:
                _show(folder)
    except OSError as error:
        raise SystemExit(f"`{error.filename}`: {error.strerror}. Do it as the user who runs the pipelines.") from None


def _storage(named: str | None) -> Any:
    """Return the named result storage, or Prefect's default."""
    if named and Path(named).is_dir():
        return LocalFileSystem(basepath=named)
    with server.available():
        try:
            return resolve_result_storage(named) if named else get_default_result_storage()
        except ValueError as error:
            raise SystemExit(f"`{named}` is no folder, and no saved block: {error}") from None


def _results_folder(storage: Any) -> Path:
    """Return the folder of the results on a local disk.

    Raises:
        SystemExit: If the storage is remote.
    """
    if isinstance(storage, LocalFileSystem):
        return Path(storage.basepath or ".").expanduser().resolve() / KEY_PREFIX
    prefix = storage._resolve_path(KEY_PREFIX) if hasattr(storage, "_resolve_path") else KEY_PREFIX
    raise SystemExit(
        f"Results are kept by a block `{storage._block_type_name}`, not on a disk of this machine: have the rules of "
        f"that storage delete them, such as a lifecycle rule of the bucket. All their names begin with `{prefix}/`."
    )


def _stored_results(folder: Path) -> Iterator[StoredResult]:
    """Iterate lazily over the results; other files are skipped."""
    for file in sorted(folder.glob("*/*")):
        with suppress(FileNotFoundError):  # another process deletes, too
            if RESULT_FILE_NAME.fullmatch(file.name) and file.is_file() and SERIALIZER_MARK in _read_header(file):
                stat = file.stat()
                yield StoredResult(file.parent.name, file, stat.st_size, stat.st_mtime)


def _read_header(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(HEADER_BYTES)


def _show(folder: Path) -> None:
    stored = list(_stored_results(folder))
    print(f"{folder}: {len(stored):,} results, {sum(each.size for each in stored) / 1e6:,.1f} MB")
    rows: list[tuple[str, ...]] = []
    for step, group in groupby(stored, attrgetter("step")):
        of_step = list(group)
        written = [each.written for each in of_step]
        size = f"{sum(each.size for each in of_step) / 1e6:,.1f}"
        rows.append((step, f"{len(of_step):,}", size, format_time(min(written)), format_time(max(written))))
    if rows:
        print_table(("step", "results", "MB", "oldest", "newest"), rows)


def _delete(folder: Path, min_age_s: float, step: str | None) -> None:
    """Delete results older than `min_age_s`; a run that looks for one of them runs its batch again.

    Folders stay, even empty: a run may be about to write there.
    """
    deleted = freed = 0
    before = time.time() - min_age_s
    for each in _stored_results(folder):
        if each.written <= before and step in (None, each.step):
            each.file.unlink(missing_ok=True)
            deleted, freed = deleted + 1, freed + each.size
    print(f"{folder}: {deleted:,} results deleted, {freed / 1e6:,.1f} MB freed")


if __name__ == "__main__":
    main()
