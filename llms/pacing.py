"""How fast requests may follow each other: the user's rates, the provider's headers, and what refusals teach."""

import math
import re
import time
from collections.abc import Mapping
from datetime import datetime

OPENING = (300.0, 0.05)
"""The first requests: so many a second, and the seconds in which that doubles. 500 are out after 0.2 s, yet a provider
that refuses is heard, because a refusal takes no generation, before more than a handful has been sent in vain."""

RESUMING = (10.0, 0.5)
"""The same after a pause: the provider has just said that there were too many."""

FREE = 10_000.0
"""Requests per second from which on nothing is held back."""

CAUTION = 0.03
"""How far under a learned rate we start."""

SLOWEST = 1 / 30
"""Requests per second with which a provider that refuses everything is still asked."""

TOLD = (
    ("x-ratelimit-limit-{}", "x-ratelimit-remaining-{}", "x-ratelimit-reset-{}"),
    ("anthropic-ratelimit-{}-limit", "anthropic-ratelimit-{}-remaining", "anthropic-ratelimit-{}-reset"),
)
"""The headers in which providers say what is left of a limit, and when it is whole again."""

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


class Pace:
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

    def correct(self, amount: float) -> None:
        """It was more than was taken for it, or less."""
        self.ready_at += amount / self.rate

    def mirror(self, rate: float, left: float, whole: float, now: float) -> None:
        """Do as the provider's own bucket does: `left` of `whole` may go at once, the rest as it is refilled."""
        self.rate, self.tolerance = rate, whole / rate
        self.ready_at = now - (left - 1) / rate


class Tempo:
    """The pace nobody told us: a ramp at first and after a pause, then what the provider turned out to accept."""

    def __init__(self, now: float) -> None:
        self.learned: float | None = None
        self._accepted = self._seconds = 0.0
        self._ramp(now, *OPENING)

    def resume(self, now: float, rate: float = 0.0) -> None:
        """After a pause: feel the way up, from `rate` when it is known to be harmless."""
        first, doubling = RESUMING
        self._ramp(now, max(first, rate), doubling)

    def _ramp(self, now: float, rate: float, doubling: float) -> None:
        self._first, self._doubling, self._began = rate, doubling, now
        self.ready_at = now
        self.learned = None

    def learn(self, now: float, accepted: float, seconds: float, refused_at: float) -> None:
        """Between two refusals the provider accepted this much: that is its rate, whatever its window is.

        Where it does not save up what is not used during a pause, it is more: towards what was refused last. The rate
        rises slowly while it is close to what was learned, then faster and faster (like TCP's CUBIC).
        """
        kept = math.exp(-seconds / 60)
        self._accepted = self._accepted * kept + accepted
        self._seconds = self._seconds * kept + seconds
        refused = 0.0 if self.learned is None else 0.8 * min(self.rate(refused_at), 3 * self.learned)
        self.learned = max(self._accepted / max(self._seconds, 1e-3), refused, SLOWEST)
        self._doubling = min(max(seconds, 2.0), 15.0)
        self._began = self.ready_at = now

    def rate(self, now: float) -> float:
        """Requests per second at this moment."""
        age = (now - self._began) / self._doubling
        if self.learned is None:
            return self._first * 2.0 ** min(age, 60.0)
        return self.learned * (1 - CAUTION * (1 - age) ** 3)

    def take(self, now: float) -> None:
        """A request goes."""
        if self.ready_at == -math.inf:
            return
        rate = self.rate(now)
        self.ready_at = -math.inf if rate >= FREE else max(self.ready_at, now - 0.02) + 1 / rate


class Rates:
    """All of them together: the next request goes when each allows it.

    Args:
        rpm: Requests per minute, if there is a limit.
        tpm: Tokens per minute, if there is a limit.
        now: The time.
    """

    def __init__(self, rpm: float | None, tpm: float | None, now: float) -> None:
        self.tempo = Tempo(now)
        self._requests = [Pace(rpm / 60, now)] if rpm else []
        self._tokens = [Pace(tpm / 60, now)] if tpm else []
        self._told: dict[str, tuple[float, Pace]] = {}
        self._taken = (0, 0.0)

    def ready_at(self) -> float:
        """When the next may go."""
        ready_at = self.tempo.ready_at
        for pace in self._requests:
            ready_at = max(ready_at, pace.ready_at)
        for pace in self._tokens:
            ready_at = max(ready_at, pace.ready_at)
        return ready_at

    def take(self, now: float, tokens: float) -> tuple[int, float]:
        """A request goes; how many requests and tokens have gone so far."""
        self.tempo.take(now)
        for pace in self._requests:
            pace.take(now)
        for pace in self._tokens:
            pace.take(now, tokens)
        self._taken = (self._taken[0] + 1, self._taken[1] + tokens)
        return self._taken

    def correct(self, tokens: float) -> None:
        """A request cost so much more than it was admitted with, or less."""
        for pace in self._tokens:
            pace.correct(tokens)

    def listen(self, headers: Mapping[str, str], mark: tuple[int, float], now: float) -> None:
        """Mirror the provider's own buckets, less what went out after the request (`mark`) that is answered here."""
        for index, (kind, paces) in enumerate((("requests", self._requests), ("tokens", self._tokens))):
            newest, pace = self._told.get(kind, (0, None))
            if mark[0] < newest or not (said := told(headers, kind)):  # an older request's reply knows less
                continue
            rate, left, whole = said
            if pace is None:
                pace = Pace(rate, now)
                paces.append(pace)
            pace.mirror(rate, left - (self._taken[index] - mark[index]), whole, now)
            self._told[kind] = (mark[0], pace)


def told(headers: Mapping[str, str], kind: str) -> tuple[float, float, float] | None:
    """Refill per second, what is left and the whole of the limit on `kind`; `None` when the headers do not say.

    The window is not in the headers and differs (Groq's requests are per day), but what is missing is refilled
    until the reset, which gives the rate.
    """
    for names in TOLD:
        try:
            limit, remaining, reset = (headers[name.format(kind)] for name in names)
            whole, left, seconds = float(limit), float(remaining), _seconds(reset)
        except (KeyError, ValueError):
            continue
        if whole > left >= 0 and 0 < seconds < math.inf:
            return (whole - left) / seconds, left, whole
    return None


def _seconds(reset: str) -> float:
    """`6m0s`, `120ms`, `1.5` or a date of ISO 8601, as seconds from now."""
    parts = re.findall(r"([\d.]+)(ms|[dhms])", reset)
    if parts and "".join(number + unit for number, unit in parts) == reset:
        return sum(float(number) * _UNITS[unit] for number, unit in parts)
    try:
        return float(reset)
    except ValueError:
        return datetime.fromisoformat(reset).timestamp() - time.time()
