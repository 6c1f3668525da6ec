"""Waiting for what other processes do, and tools that may be missing."""

import inspect
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TypeVar

import pytest

T = TypeVar("T")
PROCESS_LOGS: dict[str, Path] = {}
"""The logs of the servers and workers that run just now."""


def wait_until(condition: Callable[[], T], seconds: float = 120.0, interval: float = 0.1) -> T:
    """Wait until a condition holds and return its value; when it does not, tell the ends of all logs."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            text = f"{condition!r}"
            with suppress(OSError, TypeError):
                text = inspect.getsource(condition).strip()
            raise AssertionError(f"not within {seconds:g} s: {text}\n{log_ends(1000)}")
        time.sleep(interval)
    return value


def log_ends(characters: int) -> str:
    """The ends of the logs of all servers and workers that run just now."""
    ends = [f"{name}: …{path.read_text(errors='replace')[-characters:]}" for name, path in PROCESS_LOGS.items()]
    return "\n".join(ends)


def skip_or_fail(reason: str) -> NoReturn:
    """Skip the test for want of a tool; in CI, where it should be, fail."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
