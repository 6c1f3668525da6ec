"""Rate limits: the user's, those of the provider's headers, and a rate learned from refusals.

Where no rate is known, a few requests go first and the others wait as long as a refusal would take. Then they go, but
never so fast that many are under way when a bucket runs dry. After a refusal and its pause the rate ramps up to the
next refusal. The requests accepted between two refusals give the rate. It is kept, refills of the provider's bucket
during a pause are used, and a slightly higher rate is probed ever more rarely.
"""

import math
import re
import time
from collections.abc import Mapping
from datetime import datetime

INITIAL_REQUESTS = 16
"""Requests sent before anything is known; most small buckets refuse one of them."""

INITIAL_SPACING_S = 0.002
"""Interval between the initial requests, so that a provider close by answers before all of them are sent."""

FIRST_REFUSAL_WAIT_S = 0.18
"""Wait after the initial requests: a refusal, which takes no generation, would have come by then."""

UNTHROTTLED_RPS = 4000.0
"""Requests per second until the first refusal, or the rate that sends all in an eighth of a second. Requests under way
when a bucket runs dry are refused, so answers that came together are not followed by requests that go together."""

RESUME_RAMP = (10.0, 0.5)
"""Ramp after a pause: initial requests per second, and the seconds in which they double."""

SAFETY_MARGIN = 0.03
"""Share by which the rate starts below the learned one."""

MIN_RPS = 1 / 30
"""Requests per second to a provider that refuses everything."""

REMAINING_HEADERS = (
    ("x-ratelimit-limit-{}", "x-ratelimit-remaining-{}", "x-ratelimit-reset-{}"),
    ("anthropic-ratelimit-{}-limit", "anthropic-ratelimit-{}-remaining", "anthropic-ratelimit-{}-reset"),
)
"""Headers that give a limit, what remains of it, and when it is restored."""

LIMIT_HEADERS = {
    "requests": (
        ("x-ratelimit-limit-req-minute", 60.0),  # Mistral
        ("x-trial-endpoint-call-limit", 60.0),  # Cohere
        ("x-ratelimit-limit-dynamic", 1.0),  # Together, where it is above the next
        ("x-ratelimit-limit", 1.0),
    ),
    "tokens": (
        ("x-ratelimit-limit-tokens-minute", 60.0),
        ("x-tokenlimit-limit-dynamic", 1.0),
        ("x-tokenlimit-limit", 1.0),
    ),
}
"""Headers that give a limit only, and its window in seconds. Elsewhere the window of the last ones may be longer: then
they hold back too little, and refusals teach the rest."""

_UNIT_S = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


class RateBucket:
    """A rate limit as a GCRA bucket: what was taken delays the next.

    Args:
        rate: Amount per second.
        now: Seconds on the loop's clock.
        tolerance: Burst in seconds that may be caught up after a lull. Kept small, no minute exceeds its share.
    """

    def __init__(self, rate: float, now: float, tolerance: float = 0.25) -> None:
        self.rate = rate
        self.ready_at = now
        self.tolerance = tolerance

    def take(self, now: float, amount: float = 1.0) -> None:
        """Take an amount."""
        self.ready_at = max(self.ready_at, now - self.tolerance) + amount / self.rate

    def adjust(self, amount: float) -> None:
        """Take an amount more, or return it if negative, once the actual usage is known."""
        self.ready_at += amount / self.rate

    def sync_with_provider(self, rate: float, remaining: float, limit: float, now: float) -> None:
        """Mirror the provider's own bucket: `remaining` of `limit` may go at once, the rest as it is refilled."""
        self.rate = rate * (1 - min(0.05, 0.5 / (limit - remaining)))  # `remaining` was rounded down
        self.tolerance = limit / rate
        self.ready_at = now - (remaining - 1) / rate

    def set_window(self, rate: float, window: float) -> None:
        """Keep to a limit per window of so many seconds: no window exceeds it, whenever it starts."""
        self.rate, self.tolerance = rate, min(0.25, 0.02 * window)


class LearnedRate:
    """A rate that nobody told: a few requests, then a fast ramp, and after refusals the rate the provider accepted.

    Args:
        now: Seconds on the loop's clock.
        max_in_flight: Upper bound of requests in flight.
    """

    def __init__(self, now: float, max_in_flight: int) -> None:
        self.rps: float | None = None  # once learned
        self.ready_at = now
        self._unthrottled_rps = max(UNTHROTTLED_RPS, 8.0 * max_in_flight)
        self._initial_left = INITIAL_REQUESTS
        self._ramp_rps = 0.0  # right after the pause, while nothing is learned
        self._curve_started_at = now  # of the ramp, or of the learned rate
        self._doubling_s = RESUME_RAMP[1]
        self._bucket_size: float | None = None
        self._refilled = 0.0  # by the provider during our pause, and safe to use
        self._accepted = self._seconds = 0.0

    def on_response(self, now: float) -> None:
        """End the initial wait: a refusal would have come before this answer."""
        if self._initial_left == 0 and not self._ramp_rps:
            self._initial_left = -1
            self.ready_at = min(self.ready_at, now)

    def resume(self, now: float, accepted: float, seconds: float = 0.0) -> None:
        """After a pause, ramp up, from the accepted rate where its seconds are known.

        Args:
            now: Seconds on the loop's clock.
            accepted: Requests sent before the refusal; the size of the bucket if it was the first.
            seconds: Time in which they were sent.
        """
        if self._bucket_size is None:
            self._bucket_size = accepted
        self._ramp_rps, self._doubling_s = RESUME_RAMP
        if seconds:
            self._ramp_rps = max(self._ramp_rps, accepted / seconds)
            self._doubling_s = min(max(0.5, seconds / 2), 10.0)
        self._curve_started_at = self.ready_at = now
        self.rps = None

    def learn(self, now: float, accepted: float, seconds: float, refused_at: float, below_concurrency: bool) -> None:
        """Learn the provider's rate, whatever its window, from the requests accepted between two refusals.

        Refills during the pause are part of it, up to the size of the bucket. The rate then rises slowly while it is
        close to the learned one, then ever faster (CUBIC).

        Args:
            now: Seconds on the loop's clock.
            accepted: Requests accepted.
            seconds: Time from one refusal to the other, a pause included.
            refused_at: Time of the last refusal.
            below_concurrency: Whether few were in flight: a limit on concurrency is no bucket.
        """
        known = self.rps is not None
        seconds, active = max(seconds, 1e-3), max(refused_at - self._curve_started_at, 1e-3)
        bucket_size = self._bucket_size or 0.0
        rate = max(accepted / seconds, (accepted - bucket_size) / active, MIN_RPS)
        reached, slope, nominal = self._curve(active)
        if accepted > 0.8 * nominal:  # we followed the curve, and the excess over the rate emptied the bucket
            rate = max(rate, reached - math.sqrt(2 * slope * (bucket_size + 1)))
        rate = min(rate, max(accepted / seconds, reached))
        if self._seconds and abs(rate - self._accepted / self._seconds) * seconds > 2 + 0.15 * accepted:
            self._accepted = self._seconds = 0.0  # the provider's rate has changed
        decay = math.exp(-seconds / 120)
        self._accepted = self._accepted * decay + rate * seconds
        self._seconds = self._seconds * decay + seconds
        self.rps = self._accepted / self._seconds
        doubling = 0.7 * self._doubling_s if known else 2.0  # one bad moment does not make us hasty
        self._doubling_s = min(max(doubling, 1.2 * seconds), max(30.0, 100 / self.rps))
        refilled = 0.6 * min(bucket_size - 2, self.rps * (now - refused_at))
        self._refilled = refilled if below_concurrency else 0.0
        self._curve_started_at = self.ready_at = now

    def current_rps(self, now: float) -> float:
        """Return the requests per second at this moment."""
        return self._curve(now - self._curve_started_at)[0]

    def _curve(self, active: float) -> tuple[float, float, float]:
        """Return the rate, its slope and the requests sent, so many seconds after the pause."""
        age = active / self._doubling_s
        if self.rps is not None:
            offset = age - 1
            rise = SAFETY_MARGIN * self.rps
            return (
                self.rps + rise * offset**3,
                3 * rise * offset**2 / self._doubling_s,
                self.rps * active + rise * self._doubling_s * (offset**4 - 1) / 4,
            )
        if not self._ramp_rps:
            return self._unthrottled_rps, 0.0, self._unthrottled_rps * active
        rate, growth = self._ramp_rps * 2.0 ** min(age, 60.0), math.log(2) / self._doubling_s
        return min(self._unthrottled_rps, rate), rate * growth, (rate - self._ramp_rps) / growth

    def take(self, now: float) -> None:
        """Send a request."""
        if self.ready_at == -math.inf:
            return
        if self._initial_left > 0 and not self._ramp_rps:
            self._initial_left -= 1
            self.ready_at = now + (INITIAL_SPACING_S if self._initial_left else FIRST_REFUSAL_WAIT_S)
        else:
            rate = self.current_rps(now)
            if self._refilled > 0 and self.rps is not None:
                self._refilled -= 0.5
                rate *= 2
            self.ready_at = max(self.ready_at, now - (0.02 if self.rps is None else 0.1)) + 1 / rate


class RateLimits:
    """All rate limits together: the next request goes when each allows it.

    Args:
        rpm: Requests per minute, if there is a limit.
        tpm: Tokens per minute, if there is a limit.
        now: Seconds on the loop's clock.
        max_in_flight: Upper bound of requests in flight.
    """

    def __init__(self, rpm: float | None, tpm: float | None, now: float, max_in_flight: int) -> None:
        self.learned = LearnedRate(now, max_in_flight)
        self._request_buckets = [RateBucket(rpm / 60, now)] if rpm else []
        self._token_buckets = [RateBucket(tpm / 60, now)] if tpm else []
        self._provider_buckets: dict[str, tuple[float, RateBucket]] = {}
        self._totals = (0, 0.0)

    def ready_at(self) -> float:
        """Return the time from which the next request may go."""
        ready_at = self.learned.ready_at
        for bucket in self._request_buckets:
            ready_at = max(ready_at, bucket.ready_at)
        for bucket in self._token_buckets:
            ready_at = max(ready_at, bucket.ready_at)
        return ready_at

    def take(self, now: float, tokens: float) -> tuple[int, float]:
        """Send a request; return the totals of requests and tokens sent so far."""
        self.learned.take(now)
        for bucket in self._request_buckets:
            bucket.take(now)
        for bucket in self._token_buckets:
            bucket.take(now, tokens)
        self._totals = (self._totals[0] + 1, self._totals[1] + tokens)
        return self._totals

    def adjust(self, tokens: float) -> None:
        """Correct the estimate a request was admitted with by so many tokens."""
        for bucket in self._token_buckets:
            bucket.adjust(tokens)

    def update_from_headers(self, headers: Mapping[str, str], totals: tuple[int, float], now: float) -> None:
        """Mirror the provider's own buckets.

        Args:
            headers: The response's.
            totals: `take` of the answered request: what was sent since then, the headers do not count.
            now: Seconds on the loop's clock.
        """
        for index, (kind, buckets) in enumerate((("requests", self._request_buckets), ("tokens", self._token_buckets))):
            newest, bucket = self._provider_buckets.get(kind, (0, None))
            if totals[0] < newest:  # the reply to an older request is out of date
                continue
            parsed = parse_remaining(headers, kind) or parse_limit(headers, kind)
            if not parsed[0]:
                continue
            if bucket is None:
                bucket = RateBucket(parsed[0], now)
                buckets.append(bucket)
            match parsed:
                case rate, remaining, limit:
                    bucket.sync_with_provider(rate, remaining - (self._totals[index] - totals[index]), limit, now)
                case rate, window:
                    bucket.set_window(rate, window)
            self._provider_buckets[kind] = (totals[0], bucket)


def parse_remaining(headers: Mapping[str, str], kind: str) -> tuple[float, float, float] | None:
    """Return the refill per second, the remaining amount and the limit on `kind`; `None` without such headers.

    The headers do not give the window, which differs (Groq counts requests per day). But all that is used is refilled
    by the reset, which gives the rate.
    """
    for names in REMAINING_HEADERS:
        try:
            limit, remaining, reset = (headers[name.format(kind)] for name in names)
            whole, left, seconds = float(limit), float(remaining), _parse_reset(reset)
        except (KeyError, ValueError):
            continue
        if whole > left >= 0 and 0 < seconds < math.inf:
            return (whole - left) / seconds, left, whole
    return None


def parse_limit(headers: Mapping[str, str], kind: str) -> tuple[float, float]:
    """Return the amount of `kind` allowed per second, and the window in seconds; zeros without such headers."""
    for name, window in LIMIT_HEADERS[kind]:
        try:
            limit = float(headers[name])
        except (KeyError, ValueError):
            continue
        if 0 < limit < math.inf:
            return limit / window, window
    return 0.0, 0.0


def _parse_reset(reset: str) -> float:
    """Return `6m0s`, `120ms`, `1.5` or a date of ISO 8601 as seconds from now."""
    parts = re.findall(r"([\d.]+)(ms|[dhms])", reset)
    if parts and "".join(number + unit for number, unit in parts) == reset:
        return sum(float(number) * _UNIT_S[unit] for number, unit in parts)
    try:
        return float(reset)
    except ValueError:
        return datetime.fromisoformat(reset).timestamp() - time.time()
