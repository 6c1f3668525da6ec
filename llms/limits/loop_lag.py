"""When this process was too busy to look: what was timed across that says nothing about the other side."""

import asyncio
import math

INTERVAL_S = 0.05
LAG_THRESHOLD_S = 0.1
"""Seconds by which a beat may be late."""

MAX_LAG_SHARE = 0.25
"""Of what was timed, from which on a stall falsifies it."""


class LoopLagMonitor:
    """Notes when the running loop comes late, while it is watched."""

    def __init__(self) -> None:
        self._lagged_at, self._lag = -math.inf, 0.0
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, now: float) -> None:
        """Look out until the next beat; call it again to go on."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(now + INTERVAL_S, self._tick, now + INTERVAL_S)

    def _tick(self, due: float) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        if now - due > LAG_THRESHOLD_S:
            self._lagged_at, self._lag = now, now - due

    def distorts(self, since: float, seconds: float) -> bool:
        """Whether a good part of what took so many seconds, since then, was our own doing."""
        return self._lagged_at >= since and self._lag > MAX_LAG_SHARE * seconds
