"""Adaptive limit on requests in flight: AIMD with CUBIC growth on refusals, TCP Vegas on queueing.

Slow start doubles the limit per round trip until the first refusal (429), which cuts it; then it grows along CUBIC's
curve. A server that queues instead of refusing is found by latency, as in TCP Vegas and BBR. The baseline is the
latency of the first answers, whose requests met next to no others in flight. Where the latency exceeds twice the
baseline, the limit is probed at the server's capacity (throughput times baseline latency) plus headroom. If throughput
falls under the probe, answers are longer and nothing queued: their latency is the new baseline. A server whose latency
is back at the baseline is given more, round by round.
"""

import math
from typing import NamedTuple

DECREASE_FACTOR = 0.8
"""Multiplies the limit after a refusal."""

MIN_IN_FLIGHT_FOR_CUT = 40
"""With fewer in flight, a refusal is more likely about the rate."""

CUBIC_C = 0.02
"""After a cut the limit grows by `CUBIC_C * seconds ** 3` around the limit at the cut, where the curve is flat."""

HOLD_AFTER_ERROR_S = 1.0
"""Seconds without growth after a transient error."""

BASELINE_MAX_IN_FLIGHT = 8
"""A request admitted with at most this many in flight, itself included, counts into the baseline latency."""

SAMPLE_SIZE = 32
"""Answers per latency window."""

QUEUEING_RATIO = 2.0
"""Latency over baseline above which requests queue."""

HEADROOM = 1.5
"""Limit over capacity where a server queues, so that no slot of its idles while an answer travels."""

RECOVERY_RATIO = 1.25
"""Latency over baseline below which a queueing server is given more."""

PROBE_BACKOFF_S = 30.0
"""Seconds before the next probe after a failed one; doubles each time."""

MIN_LATENCY_S = 0.05
"""Latencies below are those of this machine."""


class LimitChange(NamedTuple):
    """A change of the limit: seconds since the start, the new limit, and why."""

    seconds: float
    limit: int
    reason: str


class LatencyWindow:
    """Running means of latency and requests in flight over a window of answers."""

    def __init__(self) -> None:
        self.count = 0
        self.in_flight = self.latency = self.log_mean = self.log_variance = 0.0

    def add(self, in_flight: int, latency: float, memory: int = 256) -> None:
        """Add an answer: its latency, and the requests in flight at its admission, itself included."""
        self.count += 1
        weight = 1 / min(self.count, memory)
        self.in_flight += weight * (in_flight - self.in_flight)
        self.latency += weight * (latency - self.latency)
        deviation = math.log(max(latency, MIN_LATENCY_S)) - self.log_mean  # logarithms: a long tail weighs little
        self.log_mean += weight * deviation
        self.log_variance = (1 - weight) * (self.log_variance + weight * deviation * deviation)

    @property
    def throughput(self) -> float:
        """Answers per second (Little's law)."""
        return self.in_flight / max(self.latency, MIN_LATENCY_S)


class ConcurrencyController:
    """Moves the limit on requests in flight by the outcome of each request.

    Args:
        max_limit: Upper bound of the limit.
        initial_limit: The limit at first; it grows by one per success, so doubles per round, until the first refusal.
    """

    def __init__(self, max_limit: int, initial_limit: int) -> None:
        self.max_limit = max_limit
        self.limit = max(1, min(initial_limit, max_limit))
        self._limit_at_cut: float | None = None
        self._plateau_s = self._growth_s = 0.0  # CUBIC: seconds from the cut to the flat part, and seconds grown
        self._last_growth_at = self._hold_until = -math.inf
        self._baseline, self._window = LatencyWindow(), LatencyWindow()
        self._window_started_at, self._window_answers = 0.0, 0
        self._before_probe: LatencyWindow | None = None  # while a probe runs
        self._probe_started_at = -math.inf  # requests sent earlier say nothing about the limit as it is
        self._probe_backoff, self._next_probe_at = PROBE_BACKOFF_S, -math.inf
        self._saturated = False  # more requests would only queue
        self._fast_streak = 0  # answers in a row with a latency near the baseline

    def on_success(self, now: float, latency: float, in_flight_at_admission: int, ignore_latency: bool) -> str | None:
        """Record an answer.

        Args:
            now: Seconds on the loop's clock.
            latency: Seconds the answer took.
            in_flight_at_admission: Requests in flight when it was admitted, itself included.
            ignore_latency: Whether the latency is not representative: the slow ones at the end, a lagging loop.

        Returns:
            Why the limit changed, if it did.
        """
        self._window_answers += 1
        if in_flight_at_admission <= BASELINE_MAX_IN_FLIGHT and not self._saturated:  # else a low limit stays low
            self._baseline.add(in_flight_at_admission, latency, 4 * BASELINE_MAX_IN_FLIGHT)
        elif not ignore_latency and now - latency >= self._probe_started_at:
            if not self._window.count:
                self._window_started_at, self._window_answers = now, 0
            self._window.add(in_flight_at_admission, latency)
            size = SAMPLE_SIZE if self._before_probe is None else max(SAMPLE_SIZE, 2 * self.limit)
            if self._window.count >= size:
                window, self._window = self._window, LatencyWindow()
                known = self._baseline.count >= BASELINE_MAX_IN_FLIGHT - 1
                if known and (reason := self._evaluate_window(now, window)):
                    return reason
        return "growth" if not self._saturated and self._grow(now, in_flight_at_admission) else None

    def on_throttled(self, now: float, in_flight: int) -> str:
        """Cut the limit; the caller calls once per episode of refusals."""
        self._limit_at_cut = min(self.limit, in_flight)
        self.limit = max(1, int(DECREASE_FACTOR * self._limit_at_cut))
        self._plateau_s = ((self._limit_at_cut - self.limit) / CUBIC_C) ** (1 / 3)
        self._growth_s, self._last_growth_at = 0.0, now
        return "throttled"

    def on_failure(self, now: float) -> None:
        """Stop growth for a while after a transient error."""
        self._hold_until = now + HOLD_AFTER_ERROR_S

    def _grow(self, now: float, in_flight_at_admission: int) -> bool:
        before = self.limit
        passed, self._last_growth_at = min(now - self._last_growth_at, 1.0), now
        if self.limit >= self.max_limit or now < self._hold_until or 2 * in_flight_at_admission < self.limit:
            return False  # a limit that is half used is not known to be too low
        if self._limit_at_cut is None:
            self.limit += 1
        else:
            self._growth_s += passed
            target = self._limit_at_cut + CUBIC_C * (self._growth_s - self._plateau_s) ** 3
            self.limit = min(self.max_limit, max(self.limit, min(self.limit + 1, int(target))))
        return self.limit > before

    def _evaluate_window(self, now: float, window: LatencyWindow) -> str | None:
        """Compare a full window with the baseline; return why the limit changed, if it did."""
        baseline, before = self._baseline, self._before_probe
        if before is not None:
            self._before_probe = None
            throughput = self._window_answers / max(now - self._window_started_at, 1e-3)  # the quick ones came first
            if min(throughput, window.throughput) < 0.85 * before.throughput:  # answers are longer, nothing queued
                self._baseline, self._saturated = window, False
                self._probe_backoff *= 2
                self._next_probe_at = now + self._probe_backoff
                return None
        slowdown = window.log_mean - baseline.log_mean
        variance = max(baseline.log_variance, window.log_variance)
        noise = 3 * math.sqrt(variance * (1 / min(baseline.count, 4 * BASELINE_MAX_IN_FLIGHT) + 1 / window.count))
        self._fast_streak = self._fast_streak + window.count if slowdown < math.log(RECOVERY_RATIO) else 0
        if slowdown < -noise:
            self._baseline = window
        if self._saturated and self._fast_streak > self.limit < 2 * window.in_flight:  # a whole round, and it was used
            self._fast_streak = 0
            self.limit = min(self.max_limit, math.ceil(RECOVERY_RATIO * self.limit))
            return "growth"
        if slowdown > math.log(QUEUEING_RATIO) + noise and now >= self._next_probe_at:
            limit = max(1, round(HEADROOM * window.throughput * max(baseline.latency, MIN_LATENCY_S)))
            if limit < self.limit:
                self._before_probe, self._saturated = window, True
                self._probe_started_at, self._limit_at_cut = now, None
                self.limit = limit
                return "queueing"
        return None
