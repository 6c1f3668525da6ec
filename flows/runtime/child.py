"""Python processes that end with the one that started them, however that one ends: `kill -9` included."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

SHUTDOWN_TIMEOUT_S = 30.0
"""For a process and its own children to end after SIGTERM, before SIGKILL, once their parent is gone."""


def start(module: str, *words: str, garbage_thread: bool = False, **options: Any) -> "subprocess.Popen[bytes]":
    """Start `python -m module …` in a session of its own, which Ctrl-C does not reach; it ends when this process does.

    Its standard input is a pipe that nobody writes to, and whose end the system tells it when this process is gone.

    Args:
        module: Such as `prefect`.
        words: Its arguments.
        garbage_thread: Whether it collects garbage in a thread, as a Prefect server on SQLite has to.
        options: Of `subprocess.Popen`.
    """
    setup = [(__file__, "end_with_parent")]
    if garbage_thread:
        setup.append((str(Path(__file__).with_name("garbage.py")), "collect_in_a_thread"))
    calls = "\n".join(f"runpy.run_path({file!r})[{function!r}]()" for file, function in setup)
    code = f"import runpy\n{calls}\nrunpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    process = subprocess.Popen[bytes](
        [sys.executable, "-c", code, *words], stdin=subprocess.PIPE, start_new_session=True, **options
    )
    if process.stdin and hasattr(os, "register_at_fork"):  # a forked process that lives on would keep the pipe open
        os.register_at_fork(after_in_child=process.stdin.close)
    return process


def end_with_parent() -> None:
    """End this process and its descendants once standard input, the pipe of `start`, ends."""
    pipe = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    threading.Thread(target=_await_end, args=(pipe,), name="parent", daemon=True).start()


def _await_end(pipe: int) -> None:
    os.read(pipe, 1)
    for pid in [*descendants(os.getpid()), os.getpid()]:
        send_signal(pid, signal.SIGTERM)
    time.sleep(SHUTDOWN_TIMEOUT_S)
    for pid in [*descendants(os.getpid()), os.getpid()]:
        send_signal(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """Return the ids of a process's children, and of theirs."""
    try:
        listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True).stdout
    except FileNotFoundError:  # in a small container, which ends them with itself
        return []
    parents = {int(child): int(parent) for child, parent in map(str.split, listing.splitlines())}
    found = [pid]
    for each in found:  # grows while it is iterated
        found.extend(child for child, parent in parents.items() if parent == each)
    return found[1:]


def send_signal(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
