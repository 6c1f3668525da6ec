"""Files and folders on disk: private to the user, synced, and exchanged in one step."""

import ctypes
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_EXCHANGE = 2
"""Flag of Linux's `renameat2` (`RENAME_EXCHANGE`) and macOS's `renamex_np` (`RENAME_SWAP`)."""

_AT_FDCWD = -100
"""Linux: paths are relative to the working directory."""

_SYNC_MODE = os.O_RDONLY if os.name == "posix" else os.O_RDWR


def make_folder(path: Path) -> None:
    """Make a folder that its owner alone may enter."""
    path.mkdir(mode=0o700, exist_ok=True)


def create_file(path: Path) -> Path:
    """Create a file that its owner alone may read, for whoever opens it to write it, and return its path."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    return path


def write_text(path: Path, text: str) -> None:
    """Write a file that its owner alone may read."""
    create_file(path).write_text(text, encoding="utf-8")


def exists(path: Path) -> bool:
    """Return whether something is there, be it a link to nothing.

    Raises:
        OSError: If there cannot be: the name is too long, or a folder above it is a file or closed.
    """
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def walk(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Yield each path under a folder with whether it is a folder, deepest first; links are not followed."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:  # deleted by the run that is writing it
        return
    for entry in entries:
        is_folder = entry.is_dir(follow_symlinks=False)
        if is_folder:
            yield from walk(Path(entry.path))
        yield Path(entry.path), is_folder


def sync_tree(folder: Path) -> None:
    """Wait until each file and folder under a folder, and the folder itself, would survive a power cut."""
    for path, is_folder in walk(folder):
        sync_folder(path) if is_folder else sync_file(path)
    sync_folder(folder)


def sync_file(path: Path) -> None:
    """Wait until a file's content would survive a power cut."""
    descriptor = os.open(path, _SYNC_MODE)
    try:
        os.fsync(descriptor)  # an error is raised and not tried again: a second call would report success
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder would survive a power cut, where its file system can say so."""
    if os.name != "posix":
        return
    try:
        sync_file(path)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # a file system that syncs no folders
            raise


def exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; return False where the system or the file system cannot."""
    if sys.platform not in ("linux", "darwin"):
        return False
    library = ctypes.CDLL(None)
    names = os.fsencode(one), os.fsencode(other)
    try:
        if sys.platform == "linux":
            return library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE) == 0
        return library.renamex_np(*names, _EXCHANGE) == 0
    except AttributeError:  # a C library before 2018
        return False
