"""Files and folders that only their user can read: answers can be confidential."""

import stat
from contextlib import suppress
from pathlib import Path

_USER_ONLY = stat.S_IRUSR | stat.S_IWUSR


def make_private_folder(folder: Path) -> None:
    """Make a folder and its missing parents for their user alone; one that is there stays as it is."""
    if not folder.is_dir():
        make_private_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def make_private_file(file: Path) -> None:
    """Make an empty file for its user alone, or take a file that is there away from others.

    A file that its group may write is shared on purpose, and stays the group's. Another user's file stays as it is.
    """
    file.touch(mode=_USER_ONLY)
    mode = stat.S_IMODE(file.stat().st_mode)
    allowed = _USER_ONLY | (stat.S_IRGRP | stat.S_IWGRP if mode & stat.S_IWGRP else 0)
    if mode & ~allowed:
        with suppress(PermissionError):
            file.chmod(mode & allowed)
