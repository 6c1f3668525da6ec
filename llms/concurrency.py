"""How many requests may be in flight: grown while all is well, cut on a refusal, held where more would only queue."""

import math

CUT = 0.8
"""What remains of the limit after a refusal."""

FEW = 40
"""A refusal with fewer in flight than this is more likely about their rate: the cut does not go far below."""

STEEPNESS = 0.02
"""Growth after a cut is `STEEPNESS * seconds ** 3` around the place where it was made (CUBIC): flat there."""

HOLD = 60.0
"""Seconds at the knee of a server that queues, before more is tried again."""

CALM = 1.0
"""Seconds without growth after bad weather."""


class Level:
    """Latency while so many were in flight, in logarithms: a long tail does not drown the rest."""

    def __init__(self) -> None:
        self.count = 0
        self.in_flight = self.seconds = self.variance = 0.0
        self.last = -math.inf

    def add(self, in_flight: int, seconds: float, now: float) -> None:
        """A request that found `in_flight`, itself included, took so long."""
        self.count = min(self.count + 1, 256)
        weight = 1 / self.count
        off = math.log(max(seconds, 1e-6)) - self.seconds
        self.seconds += weight * off
        self.variance = (1 - weight) * (self.variance + weight * off * off)
        self.in_flight += weight * (math.log(in_flight) - self.in_flight)
        self.last = now

    def fresh(self, now: float) -> bool:
        """Whether it tells about the server as it is."""
        return now - self.last < 60.0 + 4 * math.exp(self.seconds)


class Concurrency:
    """The limit, and what moves it.

    Args:
        most: The limit is never above.
        start: Where it begins; it grows by one per success, so doubles per round, until the first refusal.
    """

    def __init__(self, most: int, start: int) -> None:
        self.most = most
        self.limit = max(1, min(start, most))
        self._peak: float | None = None
        self._flat_at = self._age = 0.0
        self._moved_at = self._calm_at = -math.inf
        self._levels = [Level() for _ in range(most.bit_length() + 1)]
        self._successes = 0

    def succeeded(self, now: float, seconds: float, found: int, ending: bool) -> str | None:
        """An answer came to a request.

        Args:
            now: The time.
            seconds: What it took.
            found: How many were in flight when it was admitted, itself included.
            ending: Nobody waits: what comes now are the slow ones, which say nothing about the others.

        Returns:
            Why the limit moved, if it did.
        """
        if not ending:
            self._levels[min(found, self.most).bit_length()].add(found, seconds, now)
            self._successes += 1
            if self._successes % 16 == 0 and (knee := self._knee(now)):
                self._peak, self._flat_at, self._age, self._moved_at = knee, HOLD, 0.0, now
                self.limit = knee
                return "queueing"
        return "growth" if self._grow(now, found) else None

    def throttled(self, now: float, in_flight: int) -> str:
        """Cut: the caller sees to it that this is once per episode."""
        self._peak = min(self.limit, max(in_flight, FEW))
        self.limit = max(1, int(CUT * self._peak))
        self._flat_at = ((self._peak - self.limit) / STEEPNESS) ** (1 / 3)
        self._age, self._moved_at = 0.0, now
        return "throttled"

    def failed(self, now: float) -> None:
        """Bad weather: no growth for a while."""
        self._calm_at = now + CALM

    def _grow(self, now: float, found: int) -> bool:
        before = self.limit
        passed, self._moved_at = min(now - self._moved_at, 1.0), now
        if self.limit >= self.most or now < self._calm_at or 2 * found < self.limit:  # half used: nothing learned
            return False
        if self._peak is None:
            self.limit += 1
        else:
            self._age += passed
            curve = self._peak + STEEPNESS * (self._age - self._flat_at) ** 3
            self.limit = min(self.most, max(self.limit, min(self.limit + 1, int(curve))))
        return self.limit > before

    def _knee(self, now: float) -> int | None:
        """Where more would only queue: latency rose, throughput did not. Twice that, to be on the safe side."""
        levels = [level for level in self._levels if level.count >= 4 and level.fresh(now)]
        if not levels or (top := levels[-1]).count < 16:
            return None
        for lower in levels[:-1]:
            slower, more = top.seconds - lower.seconds, top.in_flight - lower.in_flight
            noise = math.sqrt(max(lower.variance, 0.01) / lower.count + max(top.variance, 0.01) / top.count)
            if more > math.log(2) and slower > 3.5 * noise and more - slower < math.log(1.18):
                knee = max(1, round(2 * math.exp(lower.in_flight)))
                if knee >= self.limit:
                    return None
                for index in range(knee.bit_length() + 1, len(self._levels)):
                    self._levels[index] = Level()  # asked anew when the limit comes back there
                return knee
        return None
