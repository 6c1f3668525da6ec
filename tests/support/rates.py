"""Measuring a rate that several processes share."""

import asyncio
import time

from llms.limits.shared_limit import shared_slot


async def admission_times(name: str, requests: int, seconds: float, times: list[float] | None = None) -> list[float]:
    """When each of so many requests was admitted, in so many seconds from the first."""
    times = [] if times is None else times

    async def one() -> None:
        async with shared_slot(name):
            times.append(time.time())

    tasks = [asyncio.create_task(one()) for _ in range(requests)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.wait(tasks, timeout=seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return times


def assert_rate(times: list[float], rate: float, burst: float, start: float, end: float) -> None:
    """Assert that the rate was held, within 5 % and a request at either end: all the time, or for a third of it.

    A busy machine stalls for seconds, in which nobody asks, and whose permits are then used. So for no time at all may
    more be asked than the rate allows and a burst, twice: what Prefect let gather, and what had been taken by then.
    """
    third, counts = (end - start) / 3, []
    for begin, length in [(start, end - start), *((start + part * third, third) for part in range(3))]:
        counts.append((sum(begin <= at < begin + length for at in times), rate * length))
    told = ", ".join(f"{count} instead of {due:.1f}" for count, due in counts)
    assert any(0.95 * due - 1 <= count <= 1.05 * due + 1 for count, due in counts), told
    for length in (1.0, third, end - start):
        most = max(sum(at <= each < at + length for each in times) for at in times)
        assert most <= rate * length + 2 * burst + 1, f"{most} in {length:.1f} s"
