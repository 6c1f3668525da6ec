"""One provider for the tests and the benchmarks: a server in a process of its own, with weather, that counts.

    with running(latency=0.5, errors=0.05) as provider:
        llm = OpenAILLM(model="m", base_url=provider.url, api_key="k")
        …
        provider.stats()["requests"]

It speaks OpenAI's chat completions. The weather of a request follows from its body and from how often that body was
sent before, so the same requests meet the same weather again. What is counted is counted here, never by who asks.
"""

import asyncio
import json
import math
import os
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from urllib.request import ProxyHandler, Request, build_opener

from aiohttp import web

RESET = struct.pack("ii", 1, 0)
"""To linger for no time at all: the connection is reset, not closed."""


@dataclass(slots=True)
class Weather:
    """What the provider does to requests; shares are of one."""

    latency: float = 0.0
    """Seconds per answer: the mean where the tail is long."""
    rtt: float = 0.0
    """Seconds that every reply is under way, a refusal too."""
    lognormal: bool = False
    """A long tail, sigma 1, instead of the same latency for all."""
    capacity: int = 0
    """Answers made at the same time; the others wait, and nobody is refused. As many as come, if 0."""
    rpm: float = 0.0
    """Requests a minute; those above are refused with 429. As many as come, if 0."""
    burst: float = 1.0
    """Requests that are accepted at once after a lull."""
    retry_after: float = 1.0
    """What a refusal says to wait, in seconds."""
    headers: bool = False
    """Say what is left of the rate with every reply."""
    errors: float = 0.0
    """Share of 500s."""
    resets: float = 0.0
    """Share of connections that are reset."""
    hangs: float = 0.0
    """Share that is never answered."""
    malformed: float = 0.0
    """Share of bodies that are no JSON."""
    truncated: float = 0.0
    """Share of bodies that break off."""
    length: float = 0.0
    """Share of answers that end because they are too long; not weather, but the same for every attempt."""
    poison: str = "\0"
    """A prompt with this in it is always answered with 400."""
    quota: int = -1
    """Answers that are paid for: after them no request can work. As many as come, if negative."""


class Seen(NamedTuple):
    """A request as the provider saw it."""

    prompt: str
    status: str
    began: float
    seconds: float


class Service:
    """Answers, refuses, breaks or lets wait; and writes down what it did."""

    def __init__(self, weather: Weather) -> None:
        self.begin(weather)

    def begin(self, weather: Weather) -> None:
        """Start anew, as if nobody had asked yet."""
        self.weather = weather
        self.slots = asyncio.Semaphore(weather.capacity) if weather.capacity else nullcontext()
        self.level, self.filled_at = weather.burst, time.monotonic()
        self.sent: Counter[bytes] = Counter()
        self.answered: set[bytes] = set()
        self.seen: list[Seen] = []
        self.in_flight = self.peak = self.repeats = 0

    async def post(self, request: web.Request) -> web.StreamResponse:
        """One completion."""
        body = await request.read()
        asked = json.loads(body)
        prompt = str(asked["messages"][-1]["content"])
        began, seen = time.monotonic(), self.seen  # `begin` may come in between
        self.sent[body] += 1
        self.repeats += body in self.answered
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        status = "gone"  # unless it is still there when we are done
        try:
            status, response = await self._answer(request, body, prompt, asked)
        finally:
            self.in_flight -= 1
            seen.append(Seen(prompt, status, began, time.monotonic() - began))
        if status == "200":
            self.answered.add(body)
        return response

    async def _answer(
        self, request: web.Request, body: bytes, prompt: str, asked: dict[str, Any]
    ) -> tuple[str, web.StreamResponse]:
        weather = self.weather
        if weather.rtt:
            await asyncio.sleep(weather.rtt)
        said, admitted = self._bucket() if weather.rpm else ({}, True)
        if not admitted:
            return "429", _refused(429, "slow down", said | {"retry-after": f"{weather.retry_after:g}"})
        if weather.poison in prompt:
            return "400", _refused(400, "this prompt is not allowed")
        if 0 <= weather.quota <= len(self.answered):
            await asyncio.sleep(weather.latency)
            return "quota", _refused(429, "you have no credit left", code="insufficient_quota")
        draw, again = Random(body), Random(body + b"%d" % self.sent[body])
        fate = self._fate(again.random())
        if fate == "hang":
            await asyncio.Event().wait()  # until they hang up
        seconds = weather.latency * (again.lognormvariate(-0.5, 1.0) if weather.lognormal else 1.0)
        async with self.slots:
            await asyncio.sleep(seconds)
        if fate == "500":
            return fate, _refused(500, "something broke", said)
        if fate == "reset":
            _hang_up(request, reset=True)
        long = draw.random() < weather.length
        text = "{" * 9 if fate == "malformed" else _completion(asked, prompt, "length" if long else "stop")
        if fate == "truncated":
            half = web.StreamResponse(headers=said | {"content-length": str(2 * len(text.encode()))})
            await half.prepare(request)
            await half.write(text.encode())
            _hang_up(request, reset=False)
            return fate, half
        return fate, web.Response(text=text, content_type="application/json", headers=said)

    def _fate(self, draw: float) -> str:
        """What becomes of a request: one of the kinds of bad weather, or `200`."""
        weather = self.weather
        shares = (
            ("500", weather.errors),
            ("reset", weather.resets),
            ("hang", weather.hangs),
            ("malformed", weather.malformed),
            ("truncated", weather.truncated),
        )
        for fate, share in shares:
            if draw < share:
                return fate
            draw -= share
        return "200"

    def _bucket(self) -> tuple[dict[str, str], bool]:
        """What is said of the rate, and whether there is one left."""
        weather, now = self.weather, time.monotonic()
        self.level = min(weather.burst, self.level + (now - self.filled_at) * weather.rpm / 60)
        self.filled_at = now
        admitted = self.level >= 1
        self.level -= admitted
        said = {
            "x-ratelimit-limit-requests": f"{weather.burst:.0f}",
            "x-ratelimit-remaining-requests": f"{math.floor(self.level)}",
            "x-ratelimit-reset-requests": f"{60 * (weather.burst - self.level) / weather.rpm:.3f}s",
        }
        return said if weather.headers else {}, admitted

    async def stats(self, _: web.Request) -> web.Response:
        """The counts, and how long answers took."""
        statuses = Counter(each.status for each in self.seen)
        seconds = sorted(each.seconds for each in self.seen if each.status == "200")
        cuts = statistics.quantiles(seconds, n=20) if len(seconds) > 1 else seconds * 19
        return web.json_response(
            {
                "requests": sum(self.sent.values()),
                "status": statuses,
                "answered": len(self.answered),
                "repeats": self.repeats,
                "refused": statuses["429"],
                "in_flight": self.in_flight,
                "peak": self.peak,
                "p50": cuts[9] if cuts else None,
                "p95": cuts[18] if cuts else None,
            }
        )

    async def log(self, _: web.Request) -> web.Response:
        """Every request that is over, in the order in which they ended."""
        return web.json_response(self.seen)

    async def reset(self, request: web.Request) -> web.Response:
        """Begin anew, with other weather if any is sent; requests under way are counted in what was before."""
        self.begin(Weather(**await request.json()) if request.can_read_body else self.weather)
        return web.Response()


def _completion(asked: dict[str, Any], prompt: str, finish_reason: str) -> str:
    text = f"The answer to {prompt[:200]}."
    if "response_format" in asked:
        text = json.dumps({"answer": text})
    count = asked.get("n") or 1
    choices = [
        {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
        for index in range(count)
    ]
    usage = {"prompt_tokens": 9, "completion_tokens": 4 * count, "total_tokens": 9 + 4 * count}
    return json.dumps({"object": "chat.completion", "model": "m", "created": 1, "choices": choices, "usage": usage})


def _refused(status: int, message: str, headers: dict[str, str] | None = None, code: str | None = None) -> web.Response:
    return web.json_response({"error": {"message": message, "code": code}}, status=status, headers=headers)


def _hang_up(request: web.Request, reset: bool) -> None:
    if transport := request.transport:
        if reset:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            transport.abort()
        else:
            transport.close()


async def serve(weather: Weather) -> None:
    """Serve until whoever started it ends; the port is the first line that is printed."""
    service = Service(weather)
    application = web.Application(client_max_size=1 << 24)
    application.add_routes(
        [
            web.post("/{version}/chat/completions", service.post),
            web.get("/stats", service.stats),
            web.get("/log", service.log),
            web.post("/reset", service.reset),
        ]
    )
    runner = web.AppRunner(application, access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
    print(runner.addresses[0][1], flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    await asyncio.Event().wait()


class Provider:
    """A running provider, from the outside."""

    def __init__(self, port: int) -> None:
        self._address = f"http://127.0.0.1:{port}"
        self._opener = build_opener(ProxyHandler({}))
        self.url = f"{self._address}/v1"

    def stats(self) -> dict[str, Any]:
        """What it has counted since it was started or reset."""
        return self._said("stats")

    def log(self) -> list[Seen]:
        """Every request that is over."""
        return [Seen(*each) for each in self._said("log")]

    def asked(self) -> Counter[str]:
        """How often each prompt was sent; requests under way are not in it."""
        return Counter(each.prompt for each in self.log())

    def reset(self, **weather: Any) -> None:
        """Forget everything, and have this weather from now on."""
        body = json.dumps(asdict(Weather(**weather))).encode()
        with self._opener.open(Request(f"{self._address}/reset", data=body, method="POST")):
            pass

    def _said(self, what: str) -> Any:
        with self._opener.open(f"{self._address}/{what}") as response:
            return json.load(response)


@contextmanager
def running(**weather: Any) -> Iterator[Provider]:
    """A provider with this weather (see `Weather`) in a process of its own, gone with this one."""
    command = [sys.executable, "-m", "tests.benchmarks.provider", json.dumps(asdict(Weather(**weather)))]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as server:
        assert server.stdout
        try:
            yield Provider(int(server.stdout.readline()))
        finally:
            server.kill()


if __name__ == "__main__":
    asyncio.run(serve(Weather(**json.loads(sys.argv[1]))))
