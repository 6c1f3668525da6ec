"""Processes that end together: on Ctrl-C, or as soon as one of them has ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import FrameType
from typing import IO, Any, Self

SHUTDOWN_TIMEOUT_S = 45.0
"""Seconds a process has to end by itself, its runs included."""


class Processes:
    """Starts Prefect's commands, and ends them in the opposite order when the `with` ends, however it does.

    Each has a session of its own: a Ctrl-C is ours, and reaches the others when it is their turn. A second one is
    patient no more.
    """

    def __init__(self) -> None:
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._impatient = False

    def __enter__(self) -> Self:
        self._former = {each: signal.signal(each, _interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._former:
            signal.signal(each, self._force)
        while self._running:
            self._end(self._running.pop()[1])
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def prefect(
        self, name: str, *words: str, env: Mapping[str, str] | None = None, output: IO[Any] | None = None
    ) -> "subprocess.Popen[bytes]":
        """Start `python -m prefect …`: its output goes on the terminal, or where it is told to."""
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", *words],
            env=os.environ | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            start_new_session=True,
        )
        self._running.append((name, process))
        return process

    def wait(self) -> str:
        """Wait until one of them ends by itself; its name."""
        while True:
            for name, process in self._running:
                if process.poll() is not None:
                    return name
            time.sleep(0.2)

    def _end(self, process: "subprocess.Popen[bytes]") -> None:
        """Ask what it started to end, so that runs say what became of them; then itself; then insist."""
        runs = descendants(process.pid)
        for pid in runs:
            _send(pid, signal.SIGTERM)
        self._wait_until(lambda: not any(_alive(pid) for pid in runs))
        process.terminate()
        self._wait_until(lambda: process.poll() is not None)
        for pid in filter(_alive, [*runs, process.pid]):
            _send(pid, signal.SIGKILL)
        process.wait()

    def _wait_until(self, ended: Callable[[], bool]) -> None:
        late = time.monotonic() + SHUTDOWN_TIMEOUT_S
        while not ended() and time.monotonic() < late and not self._impatient:
            time.sleep(0.1)

    def _force(self, number: int, frame: FrameType | None) -> None:
        self._impatient = True


def descendants(pid: int) -> list[int]:
    """The processes that this one started, and those that they started."""
    try:
        said = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True).stdout
    except FileNotFoundError:  # in a small container, which takes them along when it ends
        return []
    parents = {int(child): int(parent) for child, parent in map(str.split, said.splitlines())}
    found = [pid]
    for each in found:  # grows as it goes
        found.extend(child for child, parent in parents.items() if parent == each)
    return found[1:]


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
