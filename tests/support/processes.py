"""The processes of a run: all of them have its Prefect's home in their environment."""

import os
import signal
from contextlib import suppress
from pathlib import Path


def processes_of(home: Path) -> list[int]:
    """The processes whose Prefect lives there."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"PREFECT_HOME={home}".encode() in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
        except OSError:
            continue
    return found


def kill_processes_of(home: Path) -> None:
    """Kill them all."""
    for pid in processes_of(home):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
