"""Child processes with graceful shutdown, on Ctrl-C or when one of them ends."""

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
"""For a process and its flow runs to end after SIGTERM, before SIGKILL."""

POLL_S = 0.1


class Processes:
    """Context manager that starts Prefect commands and shuts them down in reverse order.

    Each command has its own session, so that Ctrl-C reaches this process only, which shuts the others down in turn. A
    second Ctrl-C skips the graceful shutdown.
    """

    def __init__(self) -> None:
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._forced = False

    def __enter__(self) -> Self:
        self._previous_handlers = {each: signal.signal(each, _interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._previous_handlers:
            signal.signal(each, self._force)
        while self._running:
            self._shut_down(self._running.pop()[1])
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def prefect(
        self, name: str, *words: str, env: Mapping[str, str] | None = None, output: IO[Any] | None = None
    ) -> "subprocess.Popen[bytes]":
        """Start `python -m prefect …`, with its output on the terminal or in a file."""
        return self.start(name, [sys.executable, "-m", "prefect", *words], env, output)

    def start(
        self, name: str, command: list[str], env: Mapping[str, str] | None = None, output: IO[Any] | None = None
    ) -> "subprocess.Popen[bytes]":
        """Start a command, with its output on the terminal or in a file."""
        process = subprocess.Popen(
            command,
            env=os.environ | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            start_new_session=True,
        )
        self._running.append((name, process))
        return process

    def wait(self) -> str:
        """Wait until a process ends by itself, and return its name."""
        while True:
            for name, process in self._running:
                if process.poll() is not None:
                    return name
            time.sleep(POLL_S)

    def _shut_down(self, process: "subprocess.Popen[bytes]") -> None:
        """Terminate the descendants, so that flow runs report their state, then the process, then kill the rest."""
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
        deadline = time.monotonic() + SHUTDOWN_TIMEOUT_S
        while not ended() and time.monotonic() < deadline and not self._forced:
            time.sleep(POLL_S)

    def _force(self, number: int, frame: FrameType | None) -> None:
        self._forced = True


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
