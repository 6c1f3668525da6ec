"""Admission of requests to one account, endpoint and model: first come first served, as many and as fast as it takes.

    async with limiter_of(key).place(tokens=900) as place:
        output = await ask()
        place.succeeded(tokens=output.usage.input_tokens + output.usage.output_tokens)

A refusal is told with `place.throttled(retry_after)`, bad weather with `place.failed()`; whoever needs no request (a
hit in a cache) needs no place.
"""

import asyncio
import math
from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from llms.limits.concurrency import MIN_IN_FLIGHT_FOR_CUT, ConcurrencyController, LimitChange
from llms.limits.loop_lag import LoopLagMonitor
from llms.limits.rates import RateLimits

INITIAL_BACKOFF_S = 0.5
"""Seconds to wait after a refusal that does not say how long; doubles with every episode without a success between."""

MAX_BACKOFF_S = 30.0
TIMER_TOLERANCE_S = 1e-6
"""Seconds by which a timer may be early."""


class ThrottleEpisode(NamedTuple):
    """A refusal that was news, until its pause is over."""

    started_at: float
    over_concurrency: bool
    in_flight: int
    accepted: int
    seconds: float


@dataclass(slots=True)
class LimiterCounts:
    """What happened, for the run's summary."""

    admitted: int = 0
    throttled: int = 0
    failed: int = 0
    episodes: int = 0
    peak_in_flight: int = 0
    seconds_paused: float = 0.0


class Slot:
    """One request's place in flight: entered when it is its turn, left whatever happens."""

    __slots__ = ("_admitted_at", "_epoch", "_found", "_future", "_limiter", "_mark", "tokens")

    def __init__(self, limiter: "Limiter", tokens: float | None) -> None:
        self._limiter = limiter
        self.tokens = tokens

    async def __aenter__(self) -> "Slot":
        limiter = self._limiter
        loop = asyncio.get_running_loop()
        if limiter._try_admit(self, loop.time()):
            return self
        self._future = loop.create_future()
        limiter._waiting.append(self)
        try:
            await self._future
        except asyncio.CancelledError:
            if not self._future.cancelled():  # its turn came while it was being cancelled: on to the next
                limiter._release()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._limiter._release()

    def on_success(
        self, seconds: float | None = None, tokens: float | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """An answer came.

        Args:
            seconds: How long it took; since the place was given, when not told.
            tokens: What the request really cost, against the estimate it was admitted with.
            headers: The reply's, with names in lower case or a mapping that folds them.
        """
        self._limiter._on_success(self, seconds, tokens, headers)

    def on_throttled(self, retry_after: float | None = None, headers: Mapping[str, str] | None = None) -> None:
        """The provider asked for patience; nobody is admitted for `retry_after` seconds."""
        self._limiter._on_throttled(self, retry_after, headers)

    def on_failure(self, retry_after: float | None = None) -> None:
        """The server or the network failed: the limit does not grow for a moment, nobody goes for `retry_after` s."""
        self._limiter._on_failure(retry_after)


class Limiter:
    """Who may go, on one event loop. O(1) per request: a queue of futures, one timer, no polling.

    Args:
        most: Requests in flight at once, at most.
        start: How many at first; `most` when not told. All but the first few wait a fifth of a second for a refusal, so
            a provider that refuses needs no lower start; one that queues (a server of one's own) is spared by a low
            one, from which the limit doubles per round of answers.
        rpm: Requests per minute, evenly spread.
        tpm: Tokens per minute, evenly spread.
    """

    def __init__(
        self,
        max_in_flight: int = 500,
        *,
        initial_in_flight: int | None = None,
        rpm: float | None = None,
        tpm: float | None = None,
    ) -> None:
        now = asyncio.get_running_loop().time()
        self.counts = LimiterCounts()
        self.in_flight = 0
        self._concurrency = ConcurrencyController(max_in_flight, initial_in_flight or max_in_flight)
        self._rates, self._loop_lag = RateLimits(rpm, tpm, now, max_in_flight), LoopLagMonitor()
        self._waiting: deque[Slot] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._paused_until = -math.inf
        self._started_at = self._epoch_started_at = now
        self._epoch = self._throttled_streak = 0
        self._sent_in_epoch = 0  # in this epoch
        self._mean_tokens = 0.0  # tokens of a request, as they came so far
        self._episode: ThrottleEpisode | None = None
        self.history: deque[LimitChange] = deque([LimitChange(0.0, self.limit, "start")], maxlen=1000)

    @property
    def limit(self) -> int:
        """How many may be in flight now."""
        return self._concurrency.limit

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return sum(not place._future.done() for place in self._waiting)

    def slot(self, tokens: float | None = None) -> Slot:
        """A place among the requests in flight, as an async context manager.

        Args:
            tokens: An estimate of what the request costs; what requests usually cost here, when not told.
        """
        return Slot(self, tokens)

    def summary(self) -> dict[str, Any]:
        """The counts, the limit, the learned rate, and the history of the limit; plain data."""
        learned = self._rates.learned.rps
        return {
            **asdict(self.counts),
            "limit": self.limit,
            "learned_rpm": learned and round(60 * learned, 1),
            "history": [change._asdict() for change in self.history],
        }

    def _try_admit(self, slot: Slot, now: float) -> bool:
        """Admit it at once, if nobody waits and all limits allow."""
        while self._waiting and self._waiting[0]._future.done():  # cancelled
            self._waiting.popleft()
        if self._waiting or self.in_flight >= self._concurrency.limit:
            return False
        ready_at = self._ready_at()
        if ready_at > now + TIMER_TOLERANCE_S:
            self._schedule_dispatch(ready_at)
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
        slot._mark = self._rates.take(now, slot.tokens)
        slot._epoch, slot._found, slot._admitted_at = self._epoch, self.in_flight, now

    def _ready_at(self) -> float:
        """When pauses and rates allow the next request."""
        return max(self._paused_until, self._rates.ready_at())

    def _release(self) -> None:
        self.in_flight -= 1
        if self._waiting:
            self._dispatch()

    def _dispatch(self) -> None:
        """Admit from the head of the queue whoever may go now; see to it that the next is woken in time."""
        waiting = self._waiting
        now = asyncio.get_running_loop().time()
        while waiting and self.in_flight < self._concurrency.limit:
            if waiting[0]._future.done():  # cancelled
                waiting.popleft()
                continue
            ready_at = self._ready_at()
            if ready_at > now + TIMER_TOLERANCE_S:
                self._schedule_dispatch(ready_at)
                return
            slot = waiting.popleft()
            self._admit(slot, now)
            slot._future.set_result(None)

    def _schedule_dispatch(self, when: float) -> None:
        if self._timer is not None:
            if self._timer.when() <= when:  # early is fine: it is set again
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(when, self._on_timer)

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
            self._rates.update_from_headers(headers, slot._mark, now)
        taken = now - slot._admitted_at if seconds is None else seconds
        ending = not self._waiting and self.in_flight < 0.9 * slot._found  # the slow ones of those before
        silent = ending or self._loop_lag.distorts(slot._admitted_at, taken)
        if reason := self._concurrency.on_success(now, taken, slot._found, silent):
            self._record_change(now, reason)

    def _on_throttled(self, slot: Slot, retry_after: float | None, headers: Mapping[str, str] | None) -> None:
        now = asyncio.get_running_loop().time()
        self.counts.throttled += 1
        if headers:
            self._rates.update_from_headers(headers, slot._mark, now)
        if slot._epoch == self._epoch:
            self._start_episode(now)
        elif self._episode and slot._epoch == self._epoch - 1:
            episode = self._episode
            self._episode = episode._replace(in_flight=episode.in_flight - 1, accepted=episode.accepted - 1)
        own = min(MAX_BACKOFF_S, INITIAL_BACKOFF_S * 2.0 ** min(self._throttled_streak - 1, 10))
        # What the provider says is believed once; refused again after it, we wait as if it had said nothing.
        self._pause(
            now, own if retry_after is None else max(retry_after, own) if self._throttled_streak > 1 else retry_after
        )

    def _pause(self, now: float, seconds: float) -> None:
        """Nobody is admitted for so long."""
        until = now + seconds
        if until > self._paused_until:
            self.counts.seconds_paused += until - max(now, self._paused_until)
            self._paused_until = until

    def _start_episode(self, now: float) -> None:
        """The first refusal of a request that was sent after the last cut: everybody else's belongs to it."""
        held_back = self._rates.learned.current_rps(now) * (now - self._epoch_started_at) < 4 * self._sent_in_epoch
        full = self.in_flight >= MIN_IN_FLIGHT_FOR_CUT and (
            self.counts.episodes == 0 or (self.in_flight >= 0.9 * self.limit and not held_back)
        )
        if full:  # too many at once; while the tempo holds us back, it is the rate
            self._record_change(now, self._concurrency.on_throttled(now, self.in_flight))
        self._episode = ThrottleEpisode(
            now, full, self.in_flight - 1, self._sent_in_epoch - 1, now - self._epoch_started_at
        )
        self.counts.episodes += 1
        self._throttled_streak += 1
        self._epoch += 1
        self._sent_in_epoch, self._epoch_started_at = 0, now

    def _end_episode(self, episode: ThrottleEpisode, now: float) -> None:
        """The pause is over: go on at the rate the provider accepted, or feel the way up to it."""
        self._episode = None
        tempo, first = self._rates.learned, self.counts.episodes == 1
        if (
            first and episode.over_concurrency and MIN_IN_FLIGHT_FOR_CUT <= episode.in_flight < self.limit
        ):  # by now we know how many were refused
            self._record_change(now, self._concurrency.on_throttled(now, episode.in_flight))
        if episode.accepted > 0 and not first and not episode.over_concurrency:
            tempo.learn(
                now, episode.accepted, episode.seconds, episode.started_at, episode.in_flight < MIN_IN_FLIGHT_FOR_CUT
            )
        elif first or episode.over_concurrency or tempo.rps is None:
            tempo.resume(now, episode.accepted, 0.0 if first else episode.seconds)

    def _on_failure(self, retry_after: float | None) -> None:
        now = asyncio.get_running_loop().time()
        self.counts.failed += 1
        self._concurrency.on_failure(now)
        self._pause(now, retry_after or 0.0)

    def _record_change(self, now: float, reason: str) -> None:
        """Remember that the limit moved; growth only from a tenth on."""
        if (
            reason != "growth"
            or self.limit >= 1.1 * self.history[-1].limit
            or self.limit == self._concurrency.max_limit
        ):
            self.history.append(LimitChange(round(now - self._started_at, 3), self.limit, reason))


_limiters: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, Limiter]] = WeakKeyDictionary()


def get_limiter(
    key: Hashable,
    *,
    max_in_flight: int = 500,
    initial_in_flight: int | None = None,
    rpm: float | None = None,
    tpm: float | None = None,
) -> Limiter:
    """The limiter of this key with these settings on the running loop, made on first use and shared from then on.

    With other settings it is another one, which knows nothing of this one's requests.

    Raises:
        RuntimeError: If no event loop is running.
    """
    running = asyncio.get_running_loop()
    if (limiters := _limiters.get(running)) is None:
        for loop in [loop for loop in _limiters if loop.is_closed()]:  # a timer or a waiter may hold on to its loop
            del _limiters[loop]
        limiters = _limiters[running] = {}
    key = (key, max_in_flight, initial_in_flight, rpm, tpm)
    if key not in limiters:
        limiters[key] = Limiter(max_in_flight, initial_in_flight=initial_in_flight, rpm=rpm, tpm=tpm)
    return limiters[key]
