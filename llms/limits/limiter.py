"""Admission control of the requests to one account, endpoint and model: first in, first out.

    async with get_limiter(key).slot(tokens=900) as slot:
        output = await ask()
        slot.on_success(tokens=output.usage.input_tokens + output.usage.output_tokens)

Report a refusal (429) with `slot.on_throttled(retry_after)`, a transient error with `slot.on_failure()`.
"""

import asyncio
import math
from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import asdict
from typing import Any
from weakref import WeakKeyDictionary

from llms.errors import Fatal
from llms.limits.concurrency import MIN_IN_FLIGHT_FOR_CUT, ConcurrencyController, LimitChange
from llms.limits.loop_lag import LoopLagMonitor
from llms.limits.rates import RateLimits
from llms.limits.throttling import (
    MAX_PAUSE_S,
    REPORTED_PAUSE_S,
    LimiterCounts,
    ThrottleEpisode,
    describe_key,
    report_pause,
)

INITIAL_BACKOFF_S = 0.5
"""Pause after a refusal without `Retry-After`; doubles with every episode until a success."""

MAX_BACKOFF_S = 30.0
TIMER_TOLERANCE_S = 1e-6
"""Time by which the loop's timers may be early."""


class Slot:
    """Admission of one request, as an async context manager: waits on entry, is released on exit."""

    __slots__ = ("_admitted_at", "_epoch", "_future", "_in_flight", "_limiter", "_totals", "tokens")

    def __init__(self, limiter: "Limiter", tokens: float | None) -> None:
        self._limiter = limiter
        self.tokens = tokens

    async def __aenter__(self) -> "Slot":
        limiter = self._limiter
        if limiter._try_admit(self, asyncio.get_running_loop().time()):
            return self
        self._future = asyncio.get_running_loop().create_future()
        limiter._queue.append(self)
        try:
            await self._future
        except asyncio.CancelledError:
            if not self._future.cancelled():  # admitted while it was being cancelled: pass it on
                limiter._release()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind and issubclass(kind, Fatal):  # not to the next one before the requests beside this one are cancelled
            asyncio.get_running_loop().call_soon(self._limiter._release)
        else:
            self._limiter._release()

    def on_success(
        self, seconds: float | None = None, tokens: float | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Report an answer.

        Args:
            seconds: Latency; since admission when not given.
            tokens: Actual usage, against the estimate it was admitted with.
            headers: The response's, with names in lower case or a mapping that folds them.
        """
        self._limiter._on_success(self, seconds, tokens, headers)

    def on_throttled(self, retry_after: float | None = None, headers: Mapping[str, str] | None = None) -> None:
        """Report a refusal: nobody is admitted for `retry_after` seconds, `MAX_PAUSE_S` at most."""
        self._limiter._on_throttled(self, retry_after, headers)

    def on_failure(self, retry_after: float | None = None) -> None:
        """Report a transient error: the limit holds for a moment, nobody is admitted for `retry_after` seconds."""
        self._limiter._on_failure(retry_after)


class Limiter:
    """Admission control on one event loop. O(1) per request: a queue of futures, one timer, no polling.

    Args:
        max_in_flight: Upper bound of requests in flight.
        initial: The limit at first; `max_in_flight` when not given. Requests but the first few wait a fifth of a second
            for a refusal, so a provider that refuses needs no lower start. A low one spares a provider that queues (a
            server of one's own); from there the limit doubles per round of answers.
        rpm: Requests per minute, evenly spread.
        tpm: Tokens per minute, evenly spread.
        name: What is told of it in the log.
    """

    def __init__(
        self,
        max_in_flight: int = 500,
        *,
        initial: int | None = None,
        rpm: float | None = None,
        tpm: float | None = None,
        name: str = "The provider",
    ) -> None:
        now = asyncio.get_running_loop().time()
        self.counts, self._name = LimiterCounts(), name
        self.in_flight = 0
        self._concurrency = ConcurrencyController(max_in_flight, initial or max_in_flight)
        self._rates, self._loop_lag = RateLimits(rpm, tpm, now, max_in_flight), LoopLagMonitor()
        self._queue: deque[Slot] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._paused_until = -math.inf
        self._started_at = self._epoch_started_at = now
        self._epoch = self._throttled_streak = 0  # an epoch ends with each episode
        self._sent_in_epoch = 0
        self._mean_tokens = 0.0  # of a request
        self._episode: ThrottleEpisode | None = None
        self.history: deque[LimitChange] = deque([LimitChange(0.0, self.limit, "start")], maxlen=1000)

    @property
    def limit(self) -> int:
        """The current limit on requests in flight."""
        return self._concurrency.limit

    @property
    def waiting(self) -> int:
        """Requests that wait for admission."""
        return sum(not slot._future.done() for slot in self._queue)

    def slot(self, tokens: float | None = None) -> Slot:
        """Return a slot to enter.

        Args:
            tokens: Estimated usage of the request; the mean so far when not given.
        """
        return Slot(self, tokens)

    def summary(self) -> dict[str, Any]:
        """Return the counts, the limit, the learned rate, and the history of the limit, as plain data."""
        learned = self._rates.learned.rps
        return {
            **asdict(self.counts),
            "limit": self.limit,
            "learned_rpm": learned and round(60 * learned, 1),
            "history": [change._asdict() for change in self.history],
        }

    def _try_admit(self, slot: Slot, now: float) -> bool:
        """Admit the slot at once, if nobody waits and all limits allow."""
        while self._queue and self._queue[0]._future.done():  # cancelled
            self._queue.popleft()
        if self._queue or self.in_flight >= self._concurrency.limit or not self._is_ready(now):
            return False
        self._admit(slot, now)
        return True

    def _admit(self, slot: Slot, now: float) -> None:
        if self._episode:
            self._end_episode(self._episode, now)
        self._loop_lag.watch(now)
        self.counts.admitted += 1
        self.in_flight += 1
        self._sent_in_epoch += 1
        self.counts.peak_in_flight = max(self.counts.peak_in_flight, self.in_flight)
        if slot.tokens is None:
            slot.tokens = self._mean_tokens
        slot._totals = self._rates.take(now, slot.tokens)
        slot._epoch, slot._in_flight, slot._admitted_at = self._epoch, self.in_flight, now

    def _is_ready(self, now: float) -> bool:
        """Whether pauses and rates allow a request now; if not, schedule a dispatch for when they do."""
        ready_at = max(self._paused_until, self._rates.ready_at())
        if ready_at <= now + TIMER_TOLERANCE_S:
            return True
        if self._timer is None or self._timer.when() > ready_at:  # an early timer is set again
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_at(ready_at, self._on_timer)
        return False

    def _release(self) -> None:
        self.in_flight -= 1
        if self._queue:
            self._dispatch()

    def _dispatch(self) -> None:
        """Admit slots from the head of the queue, as the limits allow."""
        now, queue = asyncio.get_running_loop().time(), self._queue
        while queue and self.in_flight < self._concurrency.limit:
            if queue[0]._future.done():  # cancelled
                queue.popleft()
                continue
            if not self._is_ready(now):
                return
            slot = queue.popleft()
            self._admit(slot, now)
            slot._future.set_result(None)

    def _on_timer(self) -> None:
        self._timer = None
        self._dispatch()

    def _on_success(
        self, slot: Slot, seconds: float | None, tokens: float | None, headers: Mapping[str, str] | None
    ) -> None:
        now = asyncio.get_running_loop().time()
        self._loop_lag.watch(now)
        self._rates.learned.on_response(now)
        if slot._epoch == self._epoch:
            self._throttled_streak = 0
        if tokens is not None:
            self._mean_tokens += (tokens - self._mean_tokens) * (0.05 if self._mean_tokens else 1.0)
            self._rates.adjust(tokens - (slot.tokens or 0.0))
        if headers:
            self._rates.update_from_headers(headers, slot._totals, now)
        latency = now - slot._admitted_at if seconds is None else seconds
        draining = not self._queue and self.in_flight < 0.9 * slot._in_flight  # the slow ones are left
        distorted = draining or self._loop_lag.distorts(slot._admitted_at, latency)
        if reason := self._concurrency.on_success(now, latency, slot._in_flight, distorted):
            self._record_change(now, reason)

    def _on_throttled(self, slot: Slot, retry_after: float | None, headers: Mapping[str, str] | None) -> None:
        now = asyncio.get_running_loop().time()
        self.counts.throttled += 1
        if headers:
            self._rates.update_from_headers(headers, slot._totals, now)
        if slot._epoch == self._epoch:
            self._start_episode(now)
        elif self._episode and slot._epoch == self._epoch - 1:
            episode = self._episode
            self._episode = episode._replace(in_flight=episode.in_flight - 1, accepted=episode.accepted - 1)
        pause = min(MAX_BACKOFF_S, INITIAL_BACKOFF_S * 2.0 ** min(self._throttled_streak - 1, 10))
        if retry_after is not None:  # believed once; refused again after it, we back off in any case
            pause = max(retry_after, pause) if self._throttled_streak > 1 else retry_after
        self._pause(now, pause)

    def _pause(self, now: float, seconds: float) -> None:
        until = now + min(seconds, MAX_PAUSE_S)
        if until > self._paused_until:
            added = until - max(now, self._paused_until)
            self.counts.seconds_paused += added
            self._paused_until = until
            if added > REPORTED_PAUSE_S:  # and not for those refused beside it, which hardly add to it
                report_pause(self._name, seconds, until - now)

    def _start_episode(self, now: float) -> None:
        """Handle the first refusal of a request sent in this epoch; other refusals join its episode."""
        rate_bound = self._rates.learned.current_rps(now) * (now - self._epoch_started_at) < 4 * self._sent_in_epoch
        over_concurrency = self.in_flight >= MIN_IN_FLIGHT_FOR_CUT and (
            self.counts.episodes == 0 or (self.in_flight >= 0.9 * self.limit and not rate_bound)
        )
        if over_concurrency:  # where the learned rate binds, the refusal is about the rate
            self._record_change(now, self._concurrency.on_throttled(now, self.in_flight))
        self._episode = ThrottleEpisode(
            now, over_concurrency, self.in_flight - 1, self._sent_in_epoch - 1, now - self._epoch_started_at
        )
        self.counts.episodes += 1
        self._throttled_streak += 1
        self._epoch += 1
        self._sent_in_epoch, self._epoch_started_at = 0, now

    def _end_episode(self, episode: ThrottleEpisode, now: float) -> None:
        """After the pause, resume at the rate the provider accepted, or ramp up to it."""
        self._episode = None
        learned, first = self._rates.learned, self.counts.episodes == 1
        over_concurrency, few = episode.over_concurrency, episode.in_flight < MIN_IN_FLIGHT_FOR_CUT
        if first and over_concurrency and not few and episode.in_flight < self.limit:  # now all refusals are counted
            self._record_change(now, self._concurrency.on_throttled(now, episode.in_flight))
        if episode.accepted > 0 and not first and not over_concurrency:
            learned.learn(now, episode.accepted, episode.seconds, episode.started_at, few)
        elif first or over_concurrency or learned.rps is None:
            learned.resume(now, episode.accepted, 0.0 if first else episode.seconds)

    def _on_failure(self, retry_after: float | None) -> None:
        now = asyncio.get_running_loop().time()
        self.counts.failed += 1
        self._concurrency.on_failure(now)
        self._pause(now, retry_after or 0.0)

    def _record_change(self, now: float, reason: str) -> None:
        """Append to the history; growth below a tenth is left out."""
        grown = self.limit >= 1.1 * self.history[-1].limit or self.limit == self._concurrency.max_limit
        if reason != "growth" or grown:
            self.history.append(LimitChange(round(now - self._started_at, 3), self.limit, reason))


_limiters: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, Limiter]] = WeakKeyDictionary()


def get_limiter(
    key: Hashable, *, max_in_flight: int = 500, rpm: float | None = None, tpm: float | None = None
) -> Limiter:
    """Return the limiter of this key and these settings on the running loop, made on first use.

    Other settings make another one, which does not count this one's requests.
    """
    running = asyncio.get_running_loop()
    if (limiters := _limiters.get(running)) is None:
        for loop in [loop for loop in _limiters if loop.is_closed()]:  # a timer or a waiter may keep its loop alive
            del _limiters[loop]
        limiters = _limiters[running] = {}
    full_key = (key, max_in_flight, rpm, tpm)
    if full_key not in limiters:
        limiters[full_key] = Limiter(max_in_flight, rpm=rpm, tpm=tpm, name=describe_key(key))
    return limiters[full_key]
