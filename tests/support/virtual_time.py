"""Providers and clients on a clock that jumps: a minute takes no time, and what comes out is the same every time.

It is `simulate(main())` that runs such a clock, `Provider` that answers, and `work` that asks until all is answered.
"""

import asyncio
import heapq
import math
import random
import statistics
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from llms.limits.limiter import Limiter


class JumpingLoop(asyncio.SelectorEventLoop):
    """Does not sleep: the time is what somebody waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        select = self._selector.select  # type: ignore[attr-defined]

        def jump(timeout: float | None = None) -> Any:
            assert timeout is not None, "everybody waits and nobody will come"
            self.now += max(0.0, timeout)
            return select(0)

        self._selector.select = jump  # type: ignore[attr-defined]

    def time(self) -> float:
        return self.now


def simulate(main: Coroutine[Any, Any, Any]) -> Any:
    """Run on a loop that jumps."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(main)


def now() -> float:
    return asyncio.get_running_loop().time()


class Provider:
    """Answers after `latency()`, refuses by a bucket or a number in flight, or makes wait for a slot.

    Args:
        latency: Seconds an answer takes, drawn anew for each.
        per_second: Refill of the bucket; nobody is refused by rate without it.
        burst: The bucket.
        in_flight: More at once are refused.
        slots: More at once wait, first come first served.
        retry_after: What a refusal says.
        trip: Seconds there and back.
        headers: Say what is left in the bucket with every reply.
    """

    def __init__(
        self,
        latency: Callable[[], float] = lambda: 0.5,
        *,
        per_second: float | None = None,
        burst: float = 10,
        in_flight: int | None = None,
        slots: int | None = None,
        retry_after: float | None = 1.0,
        trip: float = 0.02,
        headers: bool = False,
    ) -> None:
        self.latency, self.per_second, self.burst, self.most = latency, per_second, burst, in_flight
        self.free = [0.0] * slots if slots else None
        self.retry_after, self.trip, self.says = retry_after, trip, headers
        self.level, self.filled_at = burst, 0.0
        self.arrivals: list[float] = []
        self.refused: list[float] = []
        self.accepted: list[float] = []
        self.seconds: list[float] = []
        self.in_flight = self.peak = 0

    async def ask(self) -> bool:
        """Whether it answered."""
        return (await self.reply())[0]

    async def reply(self) -> tuple[bool, dict[str, str]]:
        """Whether it answered, and the headers."""
        await asyncio.sleep(self.trip / 2)
        self.arrivals.append(now())
        if self._refuses():
            self.refused.append(now())
            headers = self._headers()
            await asyncio.sleep(self.trip / 2)
            return False, headers
        arrived = now()
        self.accepted.append(arrived)
        headers = self._headers()
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        done = now() + self.latency()
        if self.free is not None:
            done = max(now(), heapq.heappop(self.free)) + self.latency()
            heapq.heappush(self.free, done)
        await asyncio.sleep(done - now())
        self.seconds.append(now() - arrived)
        self.in_flight -= 1
        await asyncio.sleep(self.trip / 2)
        return True, headers

    def _refuses(self) -> bool:
        if self.most is not None and self.in_flight >= self.most:
            return True
        if self.per_second is None:
            return False
        self.level = min(self.burst, self.level + (now() - self.filled_at) * self.per_second)
        self.filled_at = now()
        if self.level < 1:
            return True
        self.level -= 1
        return False

    def _headers(self) -> dict[str, str]:
        if not self.says or not self.per_second:
            return {}
        return {
            "x-ratelimit-limit-requests": f"{self.burst:.0f}",
            "x-ratelimit-remaining-requests": f"{math.floor(self.level)}",
            "x-ratelimit-reset-requests": f"{(self.burst - self.level) / self.per_second:.3f}s",
        }

    @property
    def waste(self) -> float:
        """The share of the requests that was refused."""
        return len(self.refused) / len(self.arrivals)

    def share(self, since: float = 60.0) -> float:
        """How much of the allowed rate was used from then on; all of it, if nothing was left by then."""
        assert self.per_second
        later = sum(at > since for at in self.accepted)
        last = self.accepted[-1]
        return later / ((last - since) * self.per_second) if last > since + 5 else 1.0

    def p95(self, skip: int = 0) -> float:
        """Of the seconds answers took, in the order in which they came."""
        return statistics.quantiles(self.seconds[skip:], n=20)[18]


class Processor:
    """A client's one core: what is done on it is done one after the other."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.free_at = seconds, 0.0

    async def work(self) -> None:
        """Wait for it, and use it."""
        if self.seconds:
            self.free_at = max(now(), self.free_at) + self.seconds
            await asyncio.sleep(self.free_at - now())


def batches(rows: int) -> Iterator[int]:
    """Sizes of batches as the executor makes them."""
    total = 0
    while total < rows:
        size = min(max(8, total // 20), 1000, rows - total)
        total += size
        yield size


async def work(
    limiter: Limiter, provider: Provider, requests: int, every: float | None = None, cpu: float = 0.0
) -> float:
    """Every request until it is answered; how long that took.

    Args:
        limiter: Of the client.
        provider: Is asked.
        requests: How many, all at once if not in batches.
        every: Seconds between batches of growing size, as the executor starts them; 64 and 5,000 rows at most.
        cpu: Seconds of the client's only core for each request.
    """
    started, processor = now(), Processor(cpu / 2)

    async def one() -> None:
        while True:
            async with limiter.slot() as slot:
                await processor.work()
                answered, headers = await provider.reply()
                await processor.work()
                if answered:
                    return slot.on_success(headers=headers)
                slot.on_throttled(provider.retry_after, headers)

    async with asyncio.TaskGroup() as group:
        if every is None:
            for _ in range(requests):
                group.create_task(one())
        else:
            left: list[int] = []
            for size in batches(requests):
                while len(left) - left.count(0) >= 64 or sum(left) >= 5000:
                    await asyncio.sleep(every)
                left.append(size)
                for _ in range(size):
                    group.create_task(one()).add_done_callback(_counting(left, len(left) - 1))
                await asyncio.sleep(every)
    assert limiter.in_flight == limiter.waiting == 0
    assert limiter.counts.admitted == len(provider.arrivals)
    assert limiter.counts.throttled == len(provider.refused)
    assert limiter.counts.peak_in_flight <= limiter._concurrency.max_limit
    return now() - started


def _counting(left: list[int], batch: int) -> Callable[[Any], None]:
    def done(_: Any) -> None:
        left[batch] -= 1

    return done


def lognormal(seed: int, mean: float = 0.5) -> Callable[[], float]:
    """A long tail: sigma is 1."""
    draw = random.Random(seed)
    return lambda: mean * draw.lognormvariate(-0.5, 1.0)
