"""Child processes with graceful shutdown, on Ctrl-C or when one of them ends."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import IO, Any, Self

SHUTDOWN_TIMEOUT_S = 45.0
"""For a process and its flow runs to end after SIGTERM, before SIGKILL."""

POLL_S = 0.1


class Processes:
    """Context manager that starts Prefect commands and shuts them down in reverse order.

    Each command has its own session, so that Ctrl-C reaches this process only, which shuts the others down in turn. A
    second Ctrl-C skips the graceful shutdown. Where this process is killed, the others end themselves.
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
        self,
        name: str,
        *words: str,
        env: Mapping[str, str] | None = None,
        output: IO[Any] | None = None,
        garbage_thread: bool = False,
    ) -> "subprocess.Popen[bytes]":
        """Start `python -m prefect …`, with its output on the terminal or in a file."""
        from flows.runtime import child  # imports all of `flows`: not before something is to be started

        process = child.start(
            "prefect",
            *words,
            garbage_thread=garbage_thread,
            env=os.environ | (env or {}),
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
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
        from flows.runtime.child import descendants, send_signal

        runs = descendants(process.pid)
        for pid in runs:
            send_signal(pid, signal.SIGTERM)
        self._wait_until(lambda: not any(_alive(pid) for pid in runs))
        process.terminate()
        self._wait_until(lambda: process.poll() is not None)
        for pid in filter(_alive, [*runs, process.pid]):
            send_signal(pid, signal.SIGKILL)
        process.wait()

    def _wait_until(self, ended: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SHUTDOWN_TIMEOUT_S
        while not ended() and time.monotonic() < deadline and not self._forced:
            time.sleep(POLL_S)

    def _force(self, number: int, frame: FrameType | None) -> None:
        self._forced = True


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
