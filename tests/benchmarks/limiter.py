"""The limiter beside a bare semaphore: one client loop, and the provider of `tests.benchmarks.provider`.

    python -m tests.benchmarks.limiter fixed lognormal queueing cpu
    python -m tests.benchmarks.limiter refusing --requests 900
    python -m tests.benchmarks.limiter refusing --requests 300 --burst 600 --headers

Prints, for each: seconds with `asyncio.Semaphore(500)` and with the limiter and their ratio, requests that were
refused as the server counted them, the share of the allowed rate that was used, and the peak in flight at the server.
`cpu` prints milliseconds of CPU per acquire and release with so many waiting.
"""

import argparse
import asyncio
import json
import math
import time
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp

from llms.limits.limiter import Limiter, Slot
from tests.benchmarks.provider import running

MOST = 500
LATENCY = 0.5
RPM = 600
WEATHER: dict[str, dict[str, Any]] = {
    "fixed": {},
    "lognormal": {"lognormal": True},
    "refusing": {"rpm": RPM},
    "queueing": {"capacity": 64},
}


async def ask(url: str, requests: int, limited: bool) -> dict[str, Any]:
    """All requests, each until it is answered; the bare loop waits a second after a refusal."""
    limiter, semaphore = Limiter(MOST), asyncio.Semaphore(MOST)
    answered = 0
    body = {"model": "m", "messages": [{"role": "user", "content": "What is the capital of Spain? " * 20}]}

    def slot() -> AbstractAsyncContextManager[Slot | None]:
        return limiter.slot() if limited else semaphore  # type: ignore[return-value]

    async def one(session: aiohttp.ClientSession) -> None:
        nonlocal answered
        while True:
            async with slot() as mine, session.post(f"{url}/chat/completions", json=body) as response:
                await response.read()
                if response.status == 200:
                    answered += 1
                    if mine:
                        mine.on_success(headers=response.headers)
                    return
                if mine:
                    mine.on_throttled(float(response.headers["retry-after"]), response.headers)
            if not limited:
                await asyncio.sleep(1)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(requests):
                group.create_task(one(session))
        seconds = time.perf_counter() - started
    result = {"seconds": round(seconds, 2), "lost": requests - answered}
    return result | ({"limiter": limiter.summary()} if limited else {})


def measure(kind: str, arguments: argparse.Namespace, limited: bool) -> dict[str, Any]:
    """Start a provider of this kind, ask it, end it."""
    weather = dict(WEATHER[kind])
    if kind == "refusing":
        weather |= {"burst": arguments.burst, "headers": arguments.headers}
    with running(latency=LATENCY, **weather) as provider:
        result = asyncio.run(ask(provider.url, arguments.requests, limited))
        return result | {name: provider.stats()[name] for name in ("requests", "refused", "peak")}


def report(kind: str, arguments: argparse.Namespace) -> None:
    """Both loops, one after the other, and what they come to."""
    ours = measure(kind, arguments, limited=True)
    summary = ours.pop("limiter")
    line: dict[str, Any] = {"kind": kind, "limiter": ours}
    if kind == "refusing":
        allowed = max(0.0, arguments.requests - arguments.burst) * 60 / RPM + LATENCY
        line["share"] = round(allowed / ours["seconds"], 3)
        line["wasted"] = round(ours["refused"] / arguments.requests, 4)
    if arguments.bare:
        bare = measure(kind, arguments, limited=False)
        line |= {"bare": bare, "ratio": round(ours["seconds"] / bare["seconds"], 3)}
    summary["history"] = [tuple(change.values()) for change in summary["history"][-12:]]
    print(json.dumps(line), json.dumps(summary), sep="\n  ", flush=True)


async def cpu(waiting: int, limited: bool, requests: int = 20_000) -> float:
    """Milliseconds of CPU per acquire and release while `waiting` wait for 64 slots."""
    limiter = Limiter(64)
    limiter._rates.learned.ready_at = -math.inf  # the opening is a matter of time, not of CPU
    semaphore = asyncio.Semaphore(64)
    left = requests

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            if limited:
                async with limiter.slot() as slot:
                    await asyncio.sleep(0)
                    slot.on_success(0.5)
            else:
                async with semaphore:
                    await asyncio.sleep(0)

    before = time.process_time()
    await asyncio.gather(*(worker() for _ in range(64 + waiting)))
    return 1000 * (time.process_time() - before) / requests


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("kinds", nargs="+", choices=[*WEATHER, "cpu"])
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--burst", type=float, default=RPM / 60, help="what a refusing server takes at once")
    parser.add_argument("--headers", action="store_true", help="let a refusing server say what is left")
    parser.add_argument("--no-bare", dest="bare", action="store_false", help="the limiter only")
    given = parser.parse_args()
    for each in given.kinds:
        if each == "cpu":
            for waiters in (0, 64, 1024, 8192):
                ours, theirs = (min(asyncio.run(cpu(waiters, limited)) for _ in range(3)) for limited in (True, False))
                print(f"{waiters} waiting: {ours:.4f} ms of CPU, semaphore {theirs:.4f}", flush=True)
        else:
            report(each, given)
