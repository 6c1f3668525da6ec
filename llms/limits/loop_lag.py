"""When this process was too busy to look: what was timed across that says nothing about the other side."""

import asyncio
import math

BEAT = 0.05
LATE = 0.1
"""Seconds by which a beat may be late."""

SHARE = 0.25
"""Of what was timed, from which on a stall falsifies it."""


class Stalls:
    """Notes when the running loop comes late, while it is watched."""

    def __init__(self) -> None:
        self._last, self._seconds = -math.inf, 0.0
        self._beat: asyncio.TimerHandle | None = None

    def watch(self, now: float) -> None:
        """Look out until the next beat; call it again to go on."""
        if self._beat is None:
            self._beat = asyncio.get_running_loop().call_at(now + BEAT, self._look, now + BEAT)

    def _look(self, due: float) -> None:
        self._beat = None
        now = asyncio.get_running_loop().time()
        if now - due > LATE:
            self._last, self._seconds = now, now - due

    def within(self, since: float, seconds: float) -> bool:
        """Whether a good part of what took so many seconds, since then, was our own doing."""
        return self._last >= since and self._seconds > SHARE * seconds
