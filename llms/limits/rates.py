"""How fast requests may follow each other: the user's rates, the provider's headers, and what refusals teach.

Where nobody tells the rate, a few requests go first, and the others wait for as long as a refusal would take: then they
go, but never so fast that many are on their way when a bucket runs dry. After a refusal and its pause we feel the way
up to the next one. What was accepted between two refusals is the rate; it is kept, what the provider's bucket saved
during a pause is used, and more is tried ever more rarely, by going a little faster for a while.
"""

import math
import re
import time
from collections.abc import Mapping
from datetime import datetime

INITIAL_REQUESTS = 16
"""The first requests, sent before anything is known; most buckets that are small refuse one of them."""

INITIAL_SPACING_S = 0.002
"""Seconds between the first, so that a provider close by is heard before all of them are out."""

FIRST_REFUSAL_WAIT_S = 0.18
"""Seconds after the first in which a refusal, which takes no generation, would have come; the others wait for that."""

UNTHROTTLED_RPS = 4000.0
"""Requests per second after that, or what lets all go in an eighth of one: what is on its way when a bucket runs dry is
refused, so answers that came together are not followed by requests that go together."""

RESUME_RAMP = (10.0, 0.5)
"""After a pause: so many a second, and the seconds in which that doubles."""

SAFETY_MARGIN = 0.03
"""How far under a learned rate we start."""

MIN_RPS = 1 / 30
"""Requests per second with which a provider that refuses everything is still asked."""

REMAINING_HEADERS = (
    ("x-ratelimit-limit-{}", "x-ratelimit-remaining-{}", "x-ratelimit-reset-{}"),
    ("anthropic-ratelimit-{}-limit", "anthropic-ratelimit-{}-remaining", "anthropic-ratelimit-{}-reset"),
)
"""The headers in which providers say what is left of a limit, and when it is whole again."""

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
"""The headers in which they say no more than a limit, and the seconds that it is for. The last ones may be for longer
elsewhere: then they hold back too little, and refusals teach the rest."""

_UNIT_S = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


class RateBucket:
    """A rate and the moment from which the next may go; what it took is paid off after it went.

    Args:
        rate: How much per second.
        now: The time.
        tolerance: Seconds that may be caught up after a lull. Kept small, no minute holds more than its share.
    """

    def __init__(self, rate: float, now: float, tolerance: float = 0.25) -> None:
        self.rate = rate
        self.ready_at = now
        self.tolerance = tolerance

    def take(self, now: float, amount: float = 1.0) -> None:
        """Something goes."""
        self.ready_at = max(self.ready_at, now - self.tolerance) + amount / self.rate

    def adjust(self, amount: float) -> None:
        """It was more than was taken for it, or less."""
        self.ready_at += amount / self.rate

    def sync_with_provider(self, rate: float, left: float, whole: float, now: float) -> None:
        """Do as the provider's own bucket does: `left` of `whole` may go at once, the rest as it is refilled."""
        self.rate = rate * (1 - min(0.05, 0.5 / (whole - left)))  # what is left was rounded down
        self.tolerance = whole / rate
        self.ready_at = now - (left - 1) / rate

    def set_window(self, rate: float, window: float) -> None:
        """Keep to a limit on so many seconds: none of these holds more, whenever they begin."""
        self.rate, self.tolerance = rate, min(0.25, 0.02 * window)


class LearnedRate:
    """The pace nobody told us: a few at first, then a rush, and after refusals what the provider turned out to accept.

    Args:
        now: The time.
        most: Requests in flight, at most.
    """

    def __init__(self, now: float, max_in_flight: int) -> None:
        self.rps: float | None = None
        self.ready_at = now
        self._unthrottled_rps = max(UNTHROTTLED_RPS, 8.0 * max_in_flight)
        self._initial_left = INITIAL_REQUESTS  # of them are left
        self._ramp_rps = 0.0  # requests per second right after the pause, while nothing is learned
        self._curve_started_at = now  # the ramp, or what was learned
        self._doubling_s = RESUME_RAMP[1]
        self._bucket_size: float | None = None
        self._refilled_in_pause = 0.0  # what the provider's bucket gathered while we paused, and is safe to use
        self._accepted = self._seconds = 0.0

    def on_response(self, now: float) -> None:
        """An answer came: a refusal would have come before it."""
        if self._initial_left == 0 and not self._ramp_rps:
            self._initial_left = -1
            self.ready_at = min(self.ready_at, now)

    def resume(self, now: float, accepted: float, seconds: float = 0.0) -> None:
        """After a pause: feel the way up, from what was accepted where it is known in how many seconds.

        Args:
            now: The time.
            accepted: What went before the refusal, which is all that was in the bucket if it was the first.
            seconds: In which it went.
        """
        if self._bucket_size is None:
            self._bucket_size = accepted
        self._ramp_rps, self._doubling_s = RESUME_RAMP
        if seconds:
            self._ramp_rps, self._doubling_s = max(self._ramp_rps, accepted / seconds), min(max(0.5, seconds / 2), 10.0)
        self._curve_started_at = self.ready_at = now
        self.rps = None

    def learn(self, now: float, accepted: float, seconds: float, refused_at: float, below_concurrency: bool) -> None:
        """So much was accepted between two refusals: that is the provider's rate, whatever its window is.

        What was refilled during the pause is in it, but for what the bucket does not hold. The rate then rises slowly
        while it is close to what was learned, then faster and faster (like TCP's CUBIC).

        Args:
            now: The time.
            accepted: How many.
            seconds: From one refusal to the other, a pause included.
            refused_at: When the last one was.
            few: Were in flight: no limit on that is taken for a bucket.
        """
        known = self.rps is not None
        seconds, active, bucket = (
            max(seconds, 1e-3),
            max(refused_at - self._curve_started_at, 1e-3),
            self._bucket_size or 0.0,
        )
        rate = max(accepted / seconds, (accepted - bucket) / active, MIN_RPS)
        reached, slope, nominal = self._curve(active)
        if accepted > 0.8 * nominal:  # we went as fast as the curve, and what was above the rate emptied the bucket
            rate = max(rate, reached - math.sqrt(2 * slope * (bucket + 1)))
        rate = min(rate, max(accepted / seconds, reached))
        if self._seconds and abs(rate - self._accepted / self._seconds) * seconds > 2 + 0.15 * accepted:
            self._accepted = self._seconds = 0.0  # not what it was
        kept = math.exp(-seconds / 120)
        self._accepted = self._accepted * kept + rate * seconds
        self._seconds = self._seconds * kept + seconds
        self.rps = self._accepted / self._seconds
        patience = 0.7 * self._doubling_s if known else 2.0  # one bad moment does not make us hasty
        self._doubling_s = min(max(patience, 1.2 * seconds), max(30.0, 100 / self.rps))
        self._refilled_in_pause = 0.6 * min(bucket - 2, self.rps * (now - refused_at)) if below_concurrency else 0.0
        self._curve_started_at = self.ready_at = now

    def current_rps(self, now: float) -> float:
        """Requests per second at this moment."""
        return self._curve(now - self._curve_started_at)[0]

    def _curve(self, active: float) -> tuple[float, float, float]:
        """Requests per second, how fast that rises, and how many have gone, so many seconds after the pause."""
        age = active / self._doubling_s
        if self.rps is not None:
            off = age - 1
            rise = SAFETY_MARGIN * self.rps
            return (
                self.rps + rise * off**3,
                3 * rise * off**2 / self._doubling_s,
                self.rps * active + rise * self._doubling_s * (off**4 - 1) / 4,
            )
        if not self._ramp_rps:
            return self._unthrottled_rps, 0.0, self._unthrottled_rps * active
        rate, fold = self._ramp_rps * 2.0 ** min(age, 60.0), math.log(2) / self._doubling_s
        return min(self._unthrottled_rps, rate), rate * fold, (rate - self._ramp_rps) / fold

    def take(self, now: float) -> None:
        """A request goes."""
        if self.ready_at == -math.inf:
            return
        if self._initial_left > 0 and not self._ramp_rps:
            self._initial_left -= 1
            self.ready_at = now + (INITIAL_SPACING_S if self._initial_left else FIRST_REFUSAL_WAIT_S)
        else:
            rate = self.current_rps(now)
            if self._refilled_in_pause > 0 and self.rps is not None:
                self._refilled_in_pause -= 0.5
                rate *= 2
            self.ready_at = max(self.ready_at, now - (0.02 if self.rps is None else 0.1)) + 1 / rate


class RateLimits:
    """All of them together: the next request goes when each allows it.

    Args:
        rpm: Requests per minute, if there is a limit.
        tpm: Tokens per minute, if there is a limit.
        now: The time.
        most: Requests in flight, at most.
    """

    def __init__(self, rpm: float | None, tpm: float | None, now: float, max_in_flight: int) -> None:
        self.learned = LearnedRate(now, max_in_flight)
        self._request_buckets = [RateBucket(rpm / 60, now)] if rpm else []
        self._token_buckets = [RateBucket(tpm / 60, now)] if tpm else []
        self._provider_buckets: dict[str, tuple[float, RateBucket]] = {}
        self._totals = (0, 0.0)

    def ready_at(self) -> float:
        """When the next may go."""
        ready_at = self.learned.ready_at
        for pace in self._request_buckets:
            ready_at = max(ready_at, pace.ready_at)
        for pace in self._token_buckets:
            ready_at = max(ready_at, pace.ready_at)
        return ready_at

    def take(self, now: float, tokens: float) -> tuple[int, float]:
        """A request goes; how many requests and tokens have gone so far."""
        self.learned.take(now)
        for pace in self._request_buckets:
            pace.take(now)
        for pace in self._token_buckets:
            pace.take(now, tokens)
        self._totals = (self._totals[0] + 1, self._totals[1] + tokens)
        return self._totals

    def adjust(self, tokens: float) -> None:
        """A request cost so much more than it was admitted with, or less."""
        for pace in self._token_buckets:
            pace.adjust(tokens)

    def update_from_headers(
        self, headers: Mapping[str, str], totals_at_admission: tuple[int, float], now: float
    ) -> None:
        """Mirror the provider's own buckets, less what went out after the request (`mark`) that is answered here."""
        for index, (kind, paces) in enumerate((("requests", self._request_buckets), ("tokens", self._token_buckets))):
            newest, pace = self._provider_buckets.get(kind, (0, None))
            if totals_at_admission[0] < newest:  # an older request's reply knows less
                continue
            said = parse_remaining(headers, kind) or parse_limit(headers, kind)
            if not said[0]:
                continue
            if pace is None:
                pace = RateBucket(said[0], now)
                paces.append(pace)
            match said:
                case rate, left, whole:
                    pace.sync_with_provider(rate, left - (self._totals[index] - totals_at_admission[index]), whole, now)
                case rate, window:
                    pace.set_window(rate, window)
            self._provider_buckets[kind] = (totals_at_admission[0], pace)


def parse_remaining(headers: Mapping[str, str], kind: str) -> tuple[float, float, float] | None:
    """Refill per second, what is left and the whole of the limit on `kind`; `None` when the headers do not say.

    The window is not in the headers and differs (Groq's requests are per day), but what is missing is refilled
    until the reset, which gives the rate.
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
    """What the headers allow per second, and the seconds of the window they count it in; zeros when they do not say."""
    for name, window in LIMIT_HEADERS[kind]:
        try:
            whole = float(headers[name])
        except (KeyError, ValueError):
            continue
        if 0 < whole < math.inf:
            return whole / window, window
    return 0.0, 0.0


def _parse_reset(reset: str) -> float:
    """`6m0s`, `120ms`, `1.5` or a date of ISO 8601, as seconds from now."""
    parts = re.findall(r"([\d.]+)(ms|[dhms])", reset)
    if parts and "".join(number + unit for number, unit in parts) == reset:
        return sum(float(number) * _UNIT_S[unit] for number, unit in parts)
    try:
        return float(reset)
    except ValueError:
        return datetime.fromisoformat(reset).timestamp() - time.time()
