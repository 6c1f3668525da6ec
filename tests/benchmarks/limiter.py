"""The limiter beside a bare semaphore: one client loop, a server in a process of its own that counts.

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
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any
from urllib.request import urlopen

import aiohttp
from aiohttp import web

from llms.limiter import Limiter, Place

MOST = 500
LATENCY = 0.5
RPM = 600
CAPACITY = 64


class Server:
    """Answers after a while, refuses, or lets wait; and counts."""

    def __init__(self, kind: str, burst: float, headers: bool) -> None:
        self.kind, self.headers = kind, headers
        self.random = random.Random(7)
        self.slots = asyncio.Semaphore(CAPACITY)
        self.burst = self.level = burst
        self.filled_at: float | None = None
        self.counts = {"requests": 0, "refused": 0, "peak": 0, "in_flight": 0}

    async def post(self, request: web.Request) -> web.Response:
        """One completion."""
        await request.read()
        counts = self.counts
        counts["requests"] += 1
        headers = {}
        if self.kind == "refusing":
            now = time.monotonic()
            filled = (now - (self.filled_at or now)) * RPM / 60
            self.level, self.filled_at = min(self.burst, self.level + filled), now
            admitted = self.level >= 1
            self.level -= admitted
            if self.headers:
                headers = {
                    "x-ratelimit-limit-requests": f"{self.burst:.0f}",
                    "x-ratelimit-remaining-requests": f"{math.floor(self.level)}",
                    "x-ratelimit-reset-requests": f"{60 * (self.burst - self.level) / RPM:.3f}s",
                }
            if not admitted:
                counts["refused"] += 1
                return web.Response(status=429, headers=headers | {"retry-after": "1"})
        counts["in_flight"] += 1
        counts["peak"] = max(counts["peak"], counts["in_flight"])
        try:
            if self.kind == "queueing":
                async with self.slots:
                    await asyncio.sleep(LATENCY)
            elif self.kind == "lognormal":
                await asyncio.sleep(LATENCY * self.random.lognormvariate(-0.5, 1.0))
            else:
                await asyncio.sleep(LATENCY)
        finally:
            counts["in_flight"] -= 1
        return web.json_response({"choices": [{"message": {"content": "Madrid."}}]}, headers=headers)

    async def get(self, _: web.Request) -> web.Response:
        """The counts."""
        return web.json_response(self.counts)


async def serve(kind: str, burst: float, headers: bool) -> None:
    """Serve until the process is ended; the port is the first line that is printed."""
    server = Server(kind, burst, headers)
    application = web.Application()
    application.add_routes([web.post("/{path:.*}", server.post), web.get("/", server.get)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=2048).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


async def ask(url: str, requests: int, limited: bool) -> dict[str, Any]:
    """All requests, each until it is answered; the bare loop waits a second after a refusal."""
    limiter, semaphore = Limiter(MOST), asyncio.Semaphore(MOST)
    answered = 0
    body = {"model": "m", "messages": [{"role": "user", "content": "What is the capital of Spain? " * 20}]}

    def place() -> AbstractAsyncContextManager[Place | None]:
        return limiter.place() if limited else semaphore  # type: ignore[return-value]

    async def one(session: aiohttp.ClientSession) -> None:
        nonlocal answered
        while True:
            async with place() as mine, session.post(url, json=body) as response:
                await response.read()
                if response.status == 200:
                    answered += 1
                    if mine:
                        mine.succeeded(headers=response.headers)
                    return
                if mine:
                    mine.throttled(float(response.headers["retry-after"]), response.headers)
            if not limited:
                await asyncio.sleep(1)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(requests):
                group.create_task(one(session))
        seconds = time.perf_counter() - started
        async with session.get(url) as response:
            counts = await response.json()
    result = {"seconds": round(seconds, 2), "lost": requests - answered, **counts}
    return result | ({"limiter": limiter.summary()} if limited else {})


@contextmanager
def running(kind: str, burst: float = 1, headers: bool = False) -> Iterator[tuple[str, Callable[[], dict[str, int]]]]:
    """A server of this kind in a process of its own: its address, and what it has counted so far."""
    command = [sys.executable, "-m", "tests.benchmarks.limiter", kind, "--serve", "--burst", str(burst)]
    with subprocess.Popen([*command, *["--headers"] * headers], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"

        def counts() -> dict[str, int]:
            with urlopen(url) as response:
                return json.load(response)

        try:
            yield url, counts
        finally:
            server.terminate()


def measure(kind: str, arguments: argparse.Namespace, limited: bool) -> dict[str, Any]:
    """Start a server of this kind, ask it, end it."""
    with running(kind, arguments.burst, arguments.headers) as (url, _):
        return asyncio.run(ask(url, arguments.requests, limited))


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
    """Milliseconds of CPU per acquire and release while `waiting` wait for 64 places."""
    limiter = Limiter(64)
    limiter._rates.tempo.ready_at = -math.inf  # the opening is a matter of time, not of CPU
    semaphore = asyncio.Semaphore(64)
    left = requests

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            if limited:
                async with limiter.place() as place:
                    await asyncio.sleep(0)
                    place.succeeded(0.5)
            else:
                async with semaphore:
                    await asyncio.sleep(0)

    before = time.process_time()
    await asyncio.gather(*(worker() for _ in range(64 + waiting)))
    return 1000 * (time.process_time() - before) / requests


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("kinds", nargs="+", choices=["fixed", "lognormal", "refusing", "queueing", "cpu"])
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--burst", type=float, default=RPM / 60, help="what a refusing server takes at once")
    parser.add_argument("--headers", action="store_true", help="let a refusing server say what is left")
    parser.add_argument("--no-bare", dest="bare", action="store_false", help="the limiter only")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        asyncio.run(serve(given.kinds[0], given.burst, given.headers))
        raise SystemExit
    for each in given.kinds:
        if each == "cpu":
            for waiters in (0, 64, 1024, 8192):
                ours, theirs = (min(asyncio.run(cpu(waiters, limited)) for _ in range(3)) for limited in (True, False))
                print(f"{waiters} waiting: {ours:.4f} ms of CPU, semaphore {theirs:.4f}", flush=True)
        else:
            report(each, given)
