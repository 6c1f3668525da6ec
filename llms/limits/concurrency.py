"""How many requests may be in flight: grown while all is well, cut on a refusal, held where more would only queue.

Where more would only queue is found as TCP Vegas and BBR do it. The first answers of a run come to requests that found
next to nobody in flight: that is what an answer takes. When it takes more than twice that, the limit goes down to what
the server can work on (answers per second times what one takes) and a bit. It is a trial: if fewer answers come now, it
was no queue but longer answers, and that is what one takes. A server that answers as fast as alone again is given more,
round by round.
"""

import math
from typing import NamedTuple

DECREASE_FACTOR = 0.8
"""What remains of the limit after a refusal."""

MIN_IN_FLIGHT_FOR_CUT = 40
"""A refusal with fewer in flight than this is more likely about their rate."""

CUBIC_C = 0.02
"""Growth after a cut is `STEEPNESS * seconds ** 3` around the place where it was made (CUBIC): flat there."""

HOLD_AFTER_ERROR_S = 1.0
"""Seconds without growth after bad weather."""

BASELINE_MAX_IN_FLIGHT = 8
"""Requests that find no more than this in flight, themselves included, are taken to wait for nobody."""

SAMPLE_SIZE = 32
"""Answers that are looked at together."""

QUEUEING_RATIO = 2.0
"""An answer that takes so many times what it takes alone has waited."""

HEADROOM = 1.5
"""The limit where a server queues, over what it can work on: no slot idles while an answer travels."""

RECOVERY_RATIO = 1.25
"""The limit grows again where an answer takes less than so many times what it takes alone."""

PROBE_BACKOFF_S = 30.0
"""Seconds before the next trial after one that failed; twice as many each time."""

MIN_LATENCY_S = 0.05
"""Seconds below which no answer has waited: it is our own machine that takes them."""


class LimitChange(NamedTuple):
    """The limit was moved."""

    seconds: float
    limit: int
    reason: str


class LatencyWindow:
    """How long answers took, and how many were in flight."""

    def __init__(self) -> None:
        self.count = 0
        self.in_flight = self.latency = self.log_mean = self.log_variance = 0.0

    def add(self, in_flight: int, latency: float, memory: int = 256) -> None:
        """A request that found `in_flight`, itself included, took so long."""
        self.count += 1
        weight = 1 / min(self.count, memory)
        self.in_flight += weight * (in_flight - self.in_flight)
        self.latency += weight * (latency - self.latency)
        off = (
            math.log(max(latency, MIN_LATENCY_S)) - self.log_mean
        )  # in logarithms, a long tail does not drown the rest
        self.log_mean += weight * off
        self.log_variance = (1 - weight) * (self.log_variance + weight * off * off)

    @property
    def throughput(self) -> float:
        """Answers per second (Little's law)."""
        return self.in_flight / max(self.latency, MIN_LATENCY_S)


class ConcurrencyController:
    """The limit, and what moves it.

    Args:
        most: The limit is never above.
        start: Where it begins; it grows by one per success, so doubles per round, until the first refusal.
    """

    def __init__(self, max_limit: int, start: int) -> None:
        self.max_limit = max_limit
        self.limit = max(1, min(start, max_limit))
        self._limit_at_cut: float | None = None
        self._plateau_s = self._growth_s = 0.0
        self._last_growth_at = self._hold_until = -math.inf
        self._baseline, self._window = LatencyWindow(), LatencyWindow()
        self._window_started_at, self._window_answers = 0.0, 0  # since when we look, and the answers since then
        self._probe: LatencyWindow | None = None  # what was before
        self._probe_started_at = -math.inf  # requests sent before say nothing about the limit as it is
        self._probe_backoff, self._next_probe_at = PROBE_BACKOFF_S, -math.inf
        self._saturated = False  # more would only queue
        self._fast_streak = 0  # answers in a row that took hardly more than alone

    def on_success(self, now: float, latency: float, in_flight_at_admission: int, ignore_latency: bool) -> str | None:
        """An answer came to a request.

        Args:
            now: The time.
            seconds: What it took.
            found: How many were in flight when it was admitted, itself included.
            ending: What comes now are the slow ones, which say nothing about the others.

        Returns:
            Why the limit moved, if it did.
        """
        self._window_answers += 1
        if (
            in_flight_at_admission <= BASELINE_MAX_IN_FLIGHT and not self._saturated
        ):  # else the limit may be as low, and has to find its way up
            self._baseline.add(in_flight_at_admission, latency, 4 * BASELINE_MAX_IN_FLIGHT)
        elif not ignore_latency and now - latency >= self._probe_started_at:
            if not self._window.count:
                self._window_started_at, self._window_answers = now, 0
            self._window.add(in_flight_at_admission, latency)
            if self._window.count >= (SAMPLE_SIZE if self._probe is None else max(SAMPLE_SIZE, 2 * self.limit)):
                look, self._window = self._window, LatencyWindow()
                if self._baseline.count >= BASELINE_MAX_IN_FLIGHT - 1 and (reason := self._evaluate_window(now, look)):
                    return reason
        return "growth" if not self._saturated and self._grow(now, in_flight_at_admission) else None

    def on_throttled(self, now: float, in_flight: int) -> str:
        """Cut: the caller sees to it that this is once per episode."""
        self._limit_at_cut = min(self.limit, in_flight)
        self.limit = max(1, int(DECREASE_FACTOR * self._limit_at_cut))
        self._plateau_s = ((self._limit_at_cut - self.limit) / CUBIC_C) ** (1 / 3)
        self._growth_s, self._last_growth_at = 0.0, now
        return "throttled"

    def on_failure(self, now: float) -> None:
        """Bad weather: no growth for a while."""
        self._hold_until = now + HOLD_AFTER_ERROR_S

    def _grow(self, now: float, in_flight_at_admission: int) -> bool:
        before = self.limit
        passed, self._last_growth_at = min(now - self._last_growth_at, 1.0), now
        if (
            self.limit >= self.max_limit or now < self._hold_until or 2 * in_flight_at_admission < self.limit
        ):  # half used: nothing learned
            return False
        if self._limit_at_cut is None:
            self.limit += 1
        else:
            self._growth_s += passed
            curve = self._limit_at_cut + CUBIC_C * (self._growth_s - self._plateau_s) ** 3
            self.limit = min(self.max_limit, max(self.limit, min(self.limit + 1, int(curve))))
        return self.limit > before

    def _evaluate_window(self, now: float, window: LatencyWindow) -> str | None:
        """Why the limit moved after so many answers."""
        alone, before = self._baseline, self._probe
        if before is not None:
            self._probe = None
            came = self._window_answers / max(
                now - self._window_started_at, 1e-3
            )  # the quick ones of the trial came first
            if min(came, window.throughput) < 0.85 * before.throughput:  # fewer come: that is what an answer takes now
                self._baseline, self._saturated = window, False
                self._probe_backoff *= 2
                self._next_probe_at = now + self._probe_backoff
                return None
        slower = window.log_mean - alone.log_mean
        noise = 3 * math.sqrt(
            max(alone.log_variance, window.log_variance)
            * (1 / min(alone.count, 4 * BASELINE_MAX_IN_FLIGHT) + 1 / window.count)
        )
        self._fast_streak = self._fast_streak + window.count if slower < math.log(RECOVERY_RATIO) else 0
        if slower < -noise:
            self._baseline = window
        if self._saturated and self._fast_streak > self.limit < 2 * window.in_flight:  # a whole round, and it was used
            self._fast_streak = 0
            self.limit = min(self.max_limit, math.ceil(RECOVERY_RATIO * self.limit))
            return "growth"
        if slower > math.log(QUEUEING_RATIO) + noise and now >= self._next_probe_at:
            limit = max(1, round(HEADROOM * window.throughput * max(alone.latency, MIN_LATENCY_S)))
            if limit < self.limit:
                self._probe, self._saturated, self._probe_started_at, self._limit_at_cut = window, True, now, None
                self.limit = limit
                return "queueing"
        return None
