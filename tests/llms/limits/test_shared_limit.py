"""A limit shared by processes: against real servers of Prefect, which count."""

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from llms.clients import event_loop
from llms.errors import Fatal
from llms.limits import shared_limit
from llms.limits.shared_limit import SharedLimit, shared_slot
from tests.support.prefect_server import PrefectServer, ask_server
from tests.support.rates import admission_times, assert_rate
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[3]


def api(method: str, path: str, **body: Any) -> Any:
    """What Prefect's API says."""
    reply = ask_server(method, f"{PREFECT_API_URL.value()}/v2/concurrency_limits/{path}", body or None)
    reply.raise_for_status()
    return reply.json() if reply.content else None


def create(name: str, limit: int, per_second: float = 0.0, **facts: Any) -> str:
    """Make a limit; its name."""
    return api("POST", "", name=name, limit=limit, slot_decay_per_second=per_second, **facts)["name"]


def active_slots(name: str) -> int:
    return api("GET", name)["active_slots"]


def settled(count: Callable[[], int]) -> int:
    """The count, once it has not changed for a second."""
    seen = [count()]

    def rests() -> bool:
        time.sleep(1)
        seen.append(count())
        return seen[-1] == seen[-2]

    wait_until(rests)
    return seen[-1]


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str, int]]:
    """What went over the wire to Prefect: method, last part of the path, status."""
    counts = Counter[tuple[str, str, int]]()
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def count(self: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        reply = await send(self, request)
        counts[request.method, request.url.path.rsplit("/", 1)[-1], reply.status_code] += 1
        return reply

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", count)
    return counts


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Every test has clients of its own."""
    event_loop.close()
    yield
    event_loop.close()


PREAMBLE = """
import asyncio, json, sys, time
from llms.clients import event_loop
from llms.limits import shared_limit
from llms.limits.shared_limit import shared_slot
name, arguments = sys.argv[1], sys.argv[2:]
"""

GRANTED = """
from tests.support.rates import admission_times
print(json.dumps(event_loop.run(admission_times(name, 1000, float(arguments[0])))))
"""


def process(script: str, *arguments: object) -> "subprocess.Popen[str]":
    """Run it in a process of its own, against the same Prefect."""
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + script, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value() or ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.slow
def test_a_rate_is_held_with_few_trips_and_without_bursts(trips: Counter[Any]) -> None:
    name = create("rate", 30, 30.0)
    times = event_loop.run(admission_times(name, 1000, 16.0))
    assert_rate(times, 30.0, 30, times[0] + 3, times[0] + 15)
    assert trips["POST", "increment", 423] == 0
    assert sum(trips.values()) < len(times) / 3
    seconds = [sum(at <= each < at + 1 for each in times) for at in times]
    assert sorted(seconds)[len(seconds) // 2] <= 1.5 * 30, "usually there are none"


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(("rate", "seconds"), [(2.0, 36.0), (10.0, 20.0)])
@pytest.mark.slow
def test_two_processes_share_a_rate(rate: float, seconds: float) -> None:
    name = create(f"rate of {rate}", int(rate), rate)
    both = [process(GRANTED, name, seconds) for _ in range(2)]
    first, second = [json.loads(each.communicate()[0]) for each in both]
    start, end = max(first[0], second[0]) + 2, min(first[-1], second[-1])
    assert end - start > seconds / 2
    assert_rate(first + second, rate, rate, start, end)
    for times in (first, second):
        assert sum(start <= at < end for at in times) > 0.2 * rate * (end - start), "starved"


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.slow
def test_two_processes_share_slots(wire: Any) -> None:
    """The one that comes later gets its turn, and there are never more in flight than slots."""
    wire.answer = lambda request: wire.Reply(delay=0.2)
    name = create("slots", 5)
    script = """
import aiohttp
shared_limit.LEASE_KEEP_S = 1.0
url, who, requests = arguments
print("imported", flush=True)
input()
async def main():
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        async def one():
            async with shared_slot(name), session.post(url, json={"who": who}) as reply:
                assert reply.status == 200
        for _ in range(int(requests)):
            group.create_task(one())
event_loop.run(main())
"""
    first, second = process(script, name, wire.url, "first", 250), process(script, name, wire.url, "second", 50)
    for each in (first, second):
        assert each.stdout and each.stdout.readline() == "imported\n"
    for each, requests in ((first, 0), (second, 10)):
        wait_until(lambda requests=requests: len(wire.requests) >= requests)
        assert each.stdin and each.stdin.write("\n")
        each.stdin.flush()
    assert [first.wait(), second.wait()] == [0, 0]
    who = [request.body["who"] for request in wire.requests]
    assert Counter(who) == {"first": 250, "second": 50}
    assert wire.peak == 5
    assert who[-1] == "first" or who.index("second") < 240
    assert active_slots(name) == 0, "not given back at the end"


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.slow
def test_slots_nobody_uses_go_back(trips: Counter[Any]) -> None:
    name = create("idle", 20)

    async def busy(requests: int) -> int:
        async def one() -> None:
            async with shared_slot(name):
                await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as group:
            for _ in range(requests):
                group.create_task(one())
        return await asyncio.to_thread(active_slots, name)

    assert 0 < event_loop.run(busy(2000)) <= 20
    assert sum(trips.values()) < 100
    wait_until(lambda: active_slots(name) == 0, 30)
    asked = sum(trips.values())
    time.sleep(2)
    assert sum(trips.values()) == asked, "an idle process asks nothing"
    assert event_loop.run(busy(20)) > 0


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.slow
def test_a_limit_is_edited_while_it_is_used() -> None:
    async def main(name: str, **edit: float) -> list[float]:
        times: list[float] = []
        work = asyncio.create_task(admission_times(name, 2000, 16.0, times))
        while not times:
            await asyncio.sleep(0.01)
        await asyncio.sleep(times[0] + 4 - time.time())
        await asyncio.to_thread(api, "PATCH", name, **edit)
        return await work

    times = event_loop.run(main(create("edited rate", 10, 10.0), limit=40, slot_decay_per_second=40.0))
    assert sum(at < times[0] + 3.5 for at in times) < 60
    later = [sum(times[0] + at <= each < times[0] + at + 3 for each in times) for at in (6, 9, 12)]
    assert any(90 < count < 150 for count in later), later
    times = event_loop.run(main(create("rate no more", 2, 2.0), limit=40, slot_decay_per_second=0))
    assert len(times) == 2000


@pytest.mark.slow
def test_what_is_missing_is_said_with_its_cure(prefect_server: None) -> None:
    async def use(name: str) -> None:
        async with shared_slot(name):
            raise AssertionError

    with pytest.raises(Fatal, match="`prefect gcl create missing --limit 2 --slot-decay-per-second 2`"):
        event_loop.run(use("missing"))
    with pytest.raises(Fatal, match="`prefect gcl update off --enable`"):
        event_loop.run(use(create("off", 2, active=False)))
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}), pytest.raises(Fatal, match="server start"):
        event_loop.run(use("unreachable"))
    with temporary_settings({PREFECT_API_URL: None}), pytest.raises(Fatal, match="PREFECT_API_URL=http"):
        event_loop.run(use("unreachable"))

    async def twice() -> None:
        results = await asyncio.gather(use("later"), use("later"), return_exceptions=True)
        assert [type(each) for each in results] == [Fatal, Fatal]
        create("later", 1)
        async with shared_slot("later"):
            pass

    event_loop.run(twice())


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("per_second", [0.0, 5.0])
@pytest.mark.slow
def test_a_cancelled_waiter_leaves_its_turn_to_the_next(per_second: float) -> None:
    name = create(f"cancelled {per_second}", 2, per_second)

    async def main() -> None:
        order: list[int] = []

        async def one(at: int) -> None:
            async with shared_slot(name):
                order.append(at)
                await asyncio.sleep(0.05)

        tasks = [asyncio.create_task(one(at)) for at in range(50)]
        while len(order) < 3:
            await asyncio.sleep(0.01)
        for task in tasks[10:40]:
            task.cancel()
        await asyncio.wait(tasks)
        limit: SharedLimit = event_loop.shared_client(
            ("shared limit", name), lambda: SharedLimit(name), SharedLimit.close
        )
        assert order == [*range(10), *range(40, 50)]
        assert limit.in_flight == 0 and not limit._waiters

        # the turn comes in the same moment as the end
        slots, limit._slots, limit._permits = max(1, limit._slots), 0, 0
        task = asyncio.create_task(one(50))
        await asyncio.sleep(0)
        limit._slots = slots
        limit._grant(bool(per_second))
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() and limit.in_flight == 0
        await asyncio.wait_for(one(51), 60)
        assert order[-1] == 51

    event_loop.run(main())


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_it_works_in_a_forked_process() -> None:
    script = """
import os
async def use():
    async with shared_slot(name):
        await asyncio.sleep(0.1)
event_loop.run(use())
if child := os.fork():
    assert os.waitpid(child, 0)[1] == 0
    event_loop.run(use())
else:
    event_loop.run(use())
    event_loop.close()
    os._exit(0)
"""
    name = create("forked", 2)
    assert process(script, name).wait() == 0
    assert active_slots(name) == 0


async def in_turn(name: str, requests: int, meanwhile: Callable[[], Awaitable[None]]) -> None:
    """Hold a slot while something happens, then make so many requests."""
    async with shared_slot(name):
        await meanwhile()
    for _ in range(requests):
        async with shared_slot(name):
            pass


@pytest.mark.parametrize("longer", [0.0, 2 * shared_limit.LEASE_S])
@pytest.mark.slow
def test_a_restart_of_the_server_is_weather(
    server: PrefectServer, longer: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However long it takes; the clock is put forward for what is longer than a lease."""
    monkeypatch.setattr(shared_limit, "LEASE_KEEP_S", 1.0)

    async def restart() -> None:
        limit: SharedLimit = event_loop.shared_client(
            ("shared limit", name), lambda: SharedLimit(name), SharedLimit.close
        )
        clock = limit._clock
        await asyncio.to_thread(server.stop)
        await asyncio.sleep(4)
        limit._clock = lambda: clock() + longer
        await asyncio.to_thread(server.start)

    with temporary_settings({PREFECT_API_URL: server.url}):
        name = create(f"restarted {longer}", 1)
        event_loop.run(in_turn(name, 3, restart))
        assert len([each for each in caplog.records if each.name == shared_limit.__name__]) <= 1
        event_loop.close()
        assert active_slots(name) == 0, "the server forgot the lease, and kept its slot"


@pytest.mark.slow
def test_slots_a_busy_server_takes_back_unheard_go_back_once(
    server: PrefectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_limit, "PREFECT_TIMEOUT_S", 1.0)
    send, busy = httpx.AsyncHTTPTransport.handle_async_request, list[threading.Timer]()
    database = sqlite3.connect(server.home / "prefect.db", isolation_level=None, check_same_thread=False)

    async def locked(self: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("decrement-with-lease") and not busy:
            database.execute("BEGIN IMMEDIATE")
            busy.append(threading.Timer(4, database.execute, ["ROLLBACK"]))
            busy[0].start()
        return await send(self, request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", locked)
    with temporary_settings({PREFECT_API_URL: server.url}):
        name = create("busy", 3)
        api("POST", "increment", names=[name], slots=2, mode="concurrency")  # somebody else's
        assert event_loop.run(admission_times(name, 1, 30.0))
        wait_until(lambda: bool(busy) and not busy[0].is_alive())
        assert settled(lambda: active_slots(name)) == 2


@pytest.mark.slow
def test_slots_of_a_killed_process_come_back(server: PrefectServer) -> None:
    script = """
async def hold():
    async with shared_slot(name):
        print("in", flush=True)
        await asyncio.sleep(600)
event_loop.run(hold())
"""
    with temporary_settings({PREFECT_API_URL: server.url}):
        name = create("killed", 1)
        holder = process(script, name)
        assert holder.stdout and holder.stdout.readline() == "in\n"
        assert active_slots(name) == 1
        holder.kill()
        holder.wait()
        assert event_loop.run(asyncio.wait_for(admission_times(name, 1, 150.0), 160))
