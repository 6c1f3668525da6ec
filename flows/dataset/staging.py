"""A dataset's folder is written beside its place, and takes it in one step when it is complete."""

import json
import logging
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from flows.dataset.disk import (
    create_file,
    exchange,
    exists,
    make_folder,
    sync_file,
    sync_folder,
    sync_tree,
    walk,
    write_text,
)
from flows.errors import ConfigurationError
from llms import store

logger = logging.getLogger(__name__)

MARKER = ".distilflow"
"""File in a folder that is ours to replace and delete. It is empty while the dataset is written; then it says which
folder the dataset replaces, by inode. It is deleted when that folder is."""

COMPLETE = re.compile(r"replaces (\d+)\n")
NOTHING = 0

TOP_FILES = {"run.json", "README.md", "errors.parquet", MARKER}
_LAST = {"run.json": 1, MARKER: 2}
SHARD = re.compile(r"(wider-)?(part|train|test)-\d{5,}\.(parquet|jsonl)")


class Staging:
    """The folder `<output>.partial`, which `promote` moves to `output`; what is not ours is never deleted.

    It holds a lock on `output` from its creation until `promote` or `release`. A folder that an earlier process was
    killed in is mended first: a complete dataset takes its place, an incomplete one is deleted.

    Args:
        output: Place of the dataset; if it is a link, the place that it points to.

    Raises:
        ConfigurationError: If another run is writing it, or if it, or what is beside it, is no dataset's.
    """

    def __init__(self, output: Path) -> None:
        check_output(output)
        self.output = _resolve(output)
        self.partial, self._former, self._lock_file = _neighbours(self.output)
        with _refusing(output):
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self._lock, self._locked = _lock(self._lock_file, output)
            try:
                self._recover()
                self.clear()
            except BaseException:
                self.release()
                raise

    def clear(self) -> None:
        """Begin anew, with nothing in the folder."""
        _remove(self.partial)
        make_folder(self.partial)
        write_text(self.partial / MARKER, "")

    def promote(self) -> Path:
        """Put the folder in its place, for readers in one step, and return the place.

        Raises:
            ConfigurationError: If what is there now is no dataset; the same command goes on from here.
        """
        try:
            sync_tree(self.partial)
            self._mark_complete()
            try:
                check_output(self.output)
            except ConfigurationError as error:
                raise ConfigurationError(
                    f"{error} The new dataset is complete in `{self.partial}`: the same command puts it in its place."
                ) from None
            self._swap()
        finally:
            self.release()
        return self.output

    def release(self) -> None:
        """Let others write the output; a folder that is not promoted stays."""
        with suppress(OSError):  # Windows does not delete a file that is open
            if os.path.samestat(self._locked, self._lock_file.lstat()):
                self._lock_file.unlink()
        self._lock.release()

    def _mark_complete(self) -> None:
        replaced = self.output.stat().st_ino if exists(self.output) else NOTHING
        if replaced != _replaced(self.partial):
            write_text(self.partial / MARKER, f"replaces {replaced}\n")
            sync_file(self.partial / MARKER)

    def _swap(self) -> None:
        if not exists(self.output):
            self.partial.rename(self.output)
        elif not exchange(self.partial, self.output):
            self.output.rename(self._former)
            self.partial.rename(self.output)
        sync_folder(self.output.parent)
        self._tidy()

    def _tidy(self) -> None:
        """Delete the dataset that was replaced, and then the marker that says which one it was."""
        for each in (self.partial, self._former):
            if exists(each) and each.lstat().st_ino == _replaced(self.output):
                _remove(each)
                if exists(each):
                    logger.warning("`%s` keeps what was in the dataset before, and was not of it.", each)
        (self.output / MARKER).unlink()

    def _recover(self) -> None:
        """Finish the move of a process that was killed in `promote`."""
        if _replaced(self.partial) is not None:
            if exists(self.output):  # else it was moved aside already, and is the folder that the marker names
                self._mark_complete()
            self._swap()
        elif (self.output / MARKER).is_file():
            self._tidy()


def check_output(output: Path) -> None:
    """Check that an output folder is free, or holds an earlier dataset, and that nothing foreign is in the way.

    Raises:
        ConfigurationError: If something is.
    """
    with _refusing(output):
        place = _resolve(output)
        if Path(os.path.realpath(store.path())).is_relative_to(os.path.realpath(place)):
            raise ConfigurationError(f"`{output}` holds the store of answers: choose another `output`.")
        if os.path.ismount(place):
            raise ConfigurationError(f"`{output}` is where a disk is mounted: choose a folder in it.")
        partial, former, lock_file = _neighbours(place)
        _check_lock_file(lock_file)
        if exists(place) and (foreign := next(_foreign_paths(place), None)):
            raise ConfigurationError(
                f"`{output}` {_holds(foreign, place)}, which is not a dataset's: choose another `output`."
            )
        replaced = _replaced(place) if exists(place) else _replaced(partial)
        for each in (partial, former):
            if not exists(each):
                continue
            is_former_dataset = each.lstat().st_ino == replaced
            is_ours = is_former_dataset or each == partial and ((each / MARKER).is_file() or _is_empty(each))
            if foreign := next(_foreign_paths(each), None if is_ours else each):
                raise ConfigurationError(
                    f"`{each}` {_holds(foreign, each)}, which is in the way and not of an unfinished run: move it "
                    "elsewhere, or choose another `output`."
                )


def list_files(folder: Path) -> list[Path]:
    """Return a dataset's files, without what others have put between them."""
    foreign = set(_foreign_paths(folder))
    marker = folder / MARKER
    return [path for path, is_folder in walk(folder) if not is_folder and path not in foreign and path != marker]


def _holds(foreign: Path, folder: Path) -> str:
    if foreign == folder:
        return "is a folder of its own" if folder.is_dir() and not folder.is_symlink() else "is a file"
    return f"holds `{foreign.relative_to(folder)}`"


@contextmanager
def _refusing(output: Path) -> Iterator[None]:
    """Turn errors of the system into sentences."""
    try:
        yield
    except OSError as error:
        where = f" (`{error.filename}`)" if error.filename and error.filename != str(output) else ""
        raise ConfigurationError(
            f"`{output}` cannot be written: {error.strerror or error}{where}. Choose another `output`."
        ) from error


def _resolve(output: Path) -> Path:
    """Return the folder that a path names: of a link, where it points to."""
    if "\0" in str(output):
        raise ConfigurationError(f"`{str(output)!r}` holds a NUL, which no path may: choose another `output`.")
    place = Path(os.path.realpath(output)) if output.is_symlink() else output
    if place.name in ("", ".."):
        raise ConfigurationError(f"`{output}` has no name of its own: name a folder, such as `{output / 'dataset'}`.")
    if place.is_symlink():
        raise ConfigurationError(f"`{output}` is a link that leads to itself: choose another `output`.")
    return place


def _neighbours(place: Path) -> tuple[Path, Path, Path]:
    """Return the paths beside an output: the unfinished dataset, the one that is replaced, and the lock."""
    return (
        place.with_name(f"{place.name}.partial"),
        place.with_name(f"{place.name}.former"),
        place.with_name(f".{place.name}.lock"),
    )


def _lock(file: Path, output: Path) -> tuple[FileLock, os.stat_result]:
    """Lock the output folder; the operating system releases the lock when the process ends.

    Raises:
        ConfigurationError: If another run has the lock.
    """
    lock = FileLock(file, mode=0o600, thread_local=False)
    while True:
        create_file(file)
        with suppress(FileNotFoundError):  # the run that had it ended in between, and deleted the file
            before = file.lstat()
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise ConfigurationError(
                    f"another run is writing `{output}`: wait until it has ended, or choose another `output`."
                ) from None
            if os.path.samestat(before, file.lstat()):
                return lock, before
        lock.release()


def _check_lock_file(file: Path) -> None:
    if exists(file) and (not stat.S_ISREG((found := file.lstat()).st_mode) or found.st_size):
        raise ConfigurationError(
            f"`{file}` is in the way: it is not the empty file that locks an `output`. Move it elsewhere, or choose "
            "another `output`."
        )


def _replaced(folder: Path) -> int | None:
    """Return the inode of the folder that a complete dataset replaces; `None` if it is in its place, or incomplete."""
    try:
        complete = COMPLETE.fullmatch((folder / MARKER).read_text(errors="replace"))
    except OSError:
        return None
    return int(complete[1]) if complete else None


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())


def _foreign_paths(folder: Path) -> Iterator[Path]:
    """Yield what is in a folder and not of a dataset there, complete or not; of no dataset's folder, all of it."""
    if folder.is_symlink() or not folder.is_dir():
        yield folder
        return
    run = _read_run(folder)
    leaves, files = run.get("leaves"), run.get("files")
    is_ours = bool(leaves) or (folder / MARKER).is_file()
    for path, is_folder in walk(folder):
        name, leaf = path.relative_to(folder).as_posix(), path.parent
        if is_folder:
            known = leaf == folder and (leaves is None or path.name in leaves)
        elif leaf == folder:
            known = name in TOP_FILES
        elif isinstance(files, list):
            known = name in files
        else:  # of a run that was killed, or before the files were listed
            known = leaf.parent == folder and (leaves is None or leaf.name in leaves) and SHARD.fullmatch(path.name)
        if not (is_ours and known) or path.is_symlink():
            yield path


def _read_run(folder: Path) -> dict[str, Any]:
    """Return the content of `run.json`; nothing if there is none yet."""
    with suppress(OSError, ValueError):
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        if isinstance(run, dict) and isinstance(run.get("leaves"), dict):
            return run
    return {}


def _remove(folder: Path) -> None:
    """Delete a dataset's files, and the folders that are empty then; what tells that it is one goes last."""
    if not exists(folder) or folder.is_symlink():
        return
    foreign = set(_foreign_paths(folder))
    ours = [(path, is_folder) for path, is_folder in walk(folder) if path not in foreign]
    for path, is_folder in sorted(ours, key=lambda each: _LAST.get(each[0].name, 0)):
        _remove_if_empty(path) if is_folder else path.unlink(missing_ok=True)
    _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # it holds what is not ours
        folder.rmdir()
