"""How many requests may be in flight: grown while all is well, cut on a refusal, held where more would only queue.

Where more would only queue is found as TCP Vegas and BBR do it. The first answers of a run come to requests that found
next to nobody in flight: that is what an answer takes. When it takes more than twice that, the limit goes down to what
the server can work on (answers per second times what one takes) and a bit. It is a trial: if fewer answers come now, it
was no queue but longer answers, and that is what one takes. A server that answers as fast as alone again is given more,
round by round.
"""

import math
from typing import NamedTuple

CUT = 0.8
"""What remains of the limit after a refusal."""

FEW = 40
"""A refusal with fewer in flight than this is more likely about their rate."""

STEEPNESS = 0.02
"""Growth after a cut is `STEEPNESS * seconds ** 3` around the place where it was made (CUBIC): flat there."""

CALM = 1.0
"""Seconds without growth after bad weather."""

FIRST = 8
"""Requests that find no more than this in flight, themselves included, are taken to wait for nobody."""

WINDOW = 32
"""Answers that are looked at together."""

SLOWER = 2.0
"""An answer that takes so many times what it takes alone has waited."""

ROOM = 1.5
"""The limit where a server queues, over what it can work on: no slot idles while an answer travels."""

SLACK = 1.25
"""The limit grows again where an answer takes less than so many times what it takes alone."""

DOUBT = 30.0
"""Seconds before the next trial after one that failed; twice as many each time."""

QUICK = 0.05
"""Seconds below which no answer has waited: it is our own machine that takes them."""


class Change(NamedTuple):
    """The limit was moved."""

    seconds: float
    limit: int
    reason: str


class Sample:
    """How long answers took, and how many were in flight."""

    def __init__(self) -> None:
        self.count = 0
        self.in_flight = self.seconds = self.log = self.variance = 0.0

    def add(self, in_flight: int, seconds: float, memory: int = 256) -> None:
        """A request that found `in_flight`, itself included, took so long."""
        self.count += 1
        weight = 1 / min(self.count, memory)
        self.in_flight += weight * (in_flight - self.in_flight)
        self.seconds += weight * (seconds - self.seconds)
        off = math.log(max(seconds, QUICK)) - self.log  # in logarithms, a long tail does not drown the rest
        self.log += weight * off
        self.variance = (1 - weight) * (self.variance + weight * off * off)

    @property
    def rate(self) -> float:
        """Answers per second (Little's law)."""
        return self.in_flight / max(self.seconds, QUICK)


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
        self._alone, self._now = Sample(), Sample()
        self._looked_at, self._came = 0.0, 0  # since when we look, and the answers since then
        self._trial: Sample | None = None  # what was before
        self._since = -math.inf  # requests sent before say nothing about the limit as it is
        self._doubt, self._next_trial_at = DOUBT, -math.inf
        self._full = False  # more would only queue
        self._easy = 0  # answers in a row that took hardly more than alone

    def succeeded(self, now: float, seconds: float, found: int, ending: bool) -> str | None:
        """An answer came to a request.

        Args:
            now: The time.
            seconds: What it took.
            found: How many were in flight when it was admitted, itself included.
            ending: What comes now are the slow ones, which say nothing about the others.

        Returns:
            Why the limit moved, if it did.
        """
        self._came += 1
        if found <= FIRST and not self._full:  # else the limit may be as low, and has to find its way up
            self._alone.add(found, seconds, 4 * FIRST)
        elif not ending and now - seconds >= self._since:
            if not self._now.count:
                self._looked_at, self._came = now, 0
            self._now.add(found, seconds)
            if self._now.count >= (WINDOW if self._trial is None else max(WINDOW, 2 * self.limit)):
                look, self._now = self._now, Sample()
                if self._alone.count >= FIRST - 1 and (reason := self._looked(now, look)):
                    return reason
        return "growth" if not self._full and self._grow(now, found) else None

    def throttled(self, now: float, in_flight: int) -> str:
        """Cut: the caller sees to it that this is once per episode."""
        self._peak = min(self.limit, in_flight)
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

    def _looked(self, now: float, look: Sample) -> str | None:
        """Why the limit moved after so many answers."""
        alone, before = self._alone, self._trial
        if before is not None:
            self._trial = None
            came = self._came / max(now - self._looked_at, 1e-3)  # the quick ones of the trial came first
            if min(came, look.rate) < 0.85 * before.rate:  # fewer come: that is what an answer takes now
                self._alone, self._full = look, False
                self._doubt *= 2
                self._next_trial_at = now + self._doubt
                return None
        slower = look.log - alone.log
        noise = 3 * math.sqrt(max(alone.variance, look.variance) * (1 / min(alone.count, 4 * FIRST) + 1 / look.count))
        self._easy = self._easy + look.count if slower < math.log(SLACK) else 0
        if slower < -noise:
            self._alone = look
        if self._full and self._easy > self.limit < 2 * look.in_flight:  # a whole round, and it was used
            self._easy = 0
            self.limit = min(self.most, math.ceil(SLACK * self.limit))
            return "growth"
        if slower > math.log(SLOWER) + noise and now >= self._next_trial_at:
            limit = max(1, round(ROOM * look.rate * max(alone.seconds, QUICK)))
            if limit < self.limit:
                self._trial, self._full, self._since, self._peak = look, True, now, None
                self.limit = limit
                return "queueing"
        return None
