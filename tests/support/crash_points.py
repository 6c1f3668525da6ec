"""Kill a function at every place where it changes a file, one place after the other."""

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

CHANGES = {
    "os.chmod",
    "os.link",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.symlink",
    "os.truncate",
    "sqlite3.connect",
}
"""Audit events of what changes files, beside `open`; `os.replace` is `os.rename`, and `os.unlink` `os.remove`."""

SYSTEM_CALLS = {"renameat2", "renamex_np"}
"""Functions of the C library that change files; looking one up is an event, calling it is none."""

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def for_each_crash_point(folder: Path, function: Callable[..., object], *arguments: object) -> Iterator[int]:
    """Run a function in a process that is killed at its first change of a file, then at its second, and so on.

    It is killed before the change; where a file is opened for writing, also when the file is there and empty. The loop
    ends after the run that ended by itself. What the loop's body finds is what the kill has left; the next run starts
    with what the body leaves.

    Args:
        folder: Only changes of files in this folder count, `folder` itself included.
        function: A function at the top of a module; it is imported by a new process, once, and forked for each run.
        *arguments: Its arguments, which can be pickled.

    Yields:
        Number of the kill, from 1.

    Raises:
        AssertionError: If the function raises an error.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, folder, function, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        for number in count(1):
            ours.send(number)
            match ours.recv():
                case "killed":
                    yield number
                case "ended":
                    assert number > 1, "the function changes no file"
                    return
                case failure:
                    raise AssertionError(f"at its crash point {number}: {failure}")
    finally:
        ours.close()
        process.join(60)


def _serve(connection: Connection, folder: Path, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    while True:
        try:
            number = connection.recv()
        except EOFError:
            return
        if not (child := os.fork()):
            _run(connection, os.path.realpath(folder), number, function, arguments)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != 1:  # then the child has told why
            connection.send({0: "ended", -signal.SIGKILL: "killed"}.get(status, f"it ended with {status}"))


def _run(connection: Connection, folder: str, number: int, function: Callable[..., object], arguments: Any) -> None:
    numbers = count(1)
    busy = False

    def hook(event: str, values: tuple[Any, ...]) -> None:
        nonlocal busy
        if busy or not _changes(event, values, folder):
            return
        if next(numbers) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        if event == "open" and next(numbers) == number:
            busy = True
            os.open(values[0], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        sys.addaudithook(hook)
        function(*arguments)
    except BaseException:
        busy = True
        connection.send(traceback.format_exc())
        os._exit(1)
    os._exit(0)


def _changes(event: str, values: tuple[Any, ...], folder: str) -> bool:
    """Tell whether an event changes a file in the folder."""
    if event == "ctypes.dlsym":
        return values[1] in SYSTEM_CALLS
    if event == "open":
        writes = isinstance(values[2], int) and values[2] & WRITING
        return bool(writes) and _is_in(values[0], folder)
    if event not in CHANGES:
        return False
    if event != "os.truncate" and isinstance(values[-1], int) and values[-1] >= 0:
        return True  # the path is relative to a folder that is open, as `shutil.rmtree` has them
    return any(_is_in(each, folder) for each in values[:2])


def _is_in(path: object, folder: str) -> bool:
    if not isinstance(path, str | bytes | os.PathLike):  # a descriptor
        return False
    text = os.path.abspath(os.fsdecode(path).removeprefix("file:").partition("?")[0])
    return text == folder or text.startswith(f"{folder}{os.sep}")
