"""Lag of the event loop: a latency measured while this process was too busy says nothing about the provider."""

import asyncio
import math

INTERVAL_S = 0.05
LAG_THRESHOLD_S = 0.1
"""Delay of a tick above which the loop counts as lagging."""

MAX_LAG_SHARE = 0.25
"""Share of a measured time that may be lag."""


class LoopLagMonitor:
    """Records the latest lag of the running loop, while it is watched."""

    def __init__(self) -> None:
        self._lagged_at, self._lag = -math.inf, 0.0
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, now: float) -> None:
        """Watch until the next tick; call again to continue."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(now + INTERVAL_S, self._tick, now + INTERVAL_S)

    def _tick(self, due: float) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        if now - due > LAG_THRESHOLD_S:
            self._lagged_at, self._lag = now, now - due

    def distorts(self, since: float, seconds: float) -> bool:
        """Whether lag makes up a good part of `seconds` measured from `since`."""
        return self._lagged_at >= since and self._lag > MAX_LAG_SHARE * seconds
