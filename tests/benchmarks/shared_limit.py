"""What it costs to share a limit through Prefect, and how well it is held; a real server of Prefect counts.

    python -m tests.benchmarks.shared_limit
    python -m tests.benchmarks.shared_limit --rates 2 10 100 --processes 1 2 --seconds 20

Prints, for each rate (requests a second) and number of processes: the rate that was held by all together and its share
of the limit, the smallest share that one process got of what is fair, HTTP requests to Prefect for each of ours, and
milliseconds of CPU for each of ours (at low rates it is what looking at the limit costs, twice a second).
"""

import argparse
import json
import os
import subprocess
import sys

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.settings import PREFECT_API_URL
from prefect.testing.utilities import prefect_test_harness

SETTLED = 4.0
"""Seconds until a burst that had gathered is gone, and everybody has begun."""

WORKER = """
import asyncio, json, sys, time
import httpx
from llms.clients import event_loop
from llms.limits.shared_limit import shared_slot

name, seconds, trips, times = sys.argv[1], float(sys.argv[2]), [], []
send = httpx.AsyncHTTPTransport.handle_async_request

async def count(self, request):
    trips.append(time.time())
    return await send(self, request)

httpx.AsyncHTTPTransport.handle_async_request = count

async def one():
    async with shared_slot(name):
        times.append(time.time())

async def main():
    tasks = [asyncio.create_task(one()) for _ in range(int(sys.argv[3]))]
    cpu = time.process_time()
    await asyncio.wait(tasks, timeout=seconds)
    cpu = time.process_time() - cpu
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return cpu

print(json.dumps({"cpu": event_loop.run(main()), "times": times, "trips": trips}))
"""


def measure(rate: float, processes: int, seconds: float) -> str:
    """One line of the table."""
    name = f"rate of {rate} for {processes}"
    with get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(
            GlobalConcurrencyLimitCreate(name=name, limit=max(2, round(rate)), slot_decay_per_second=rate)
        )
    command = [sys.executable, "-c", WORKER, name, str(seconds), str(int(rate * seconds * 2) + 100)]
    env = os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value() or ""}
    workers = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    results = [json.loads(worker.communicate()[0]) for worker in workers]
    start = max(each["times"][0] for each in results) + SETTLED
    end = min(each["times"][-1] for each in results)
    counts = [sum(start <= at < end for at in each["times"]) for each in results]
    held, requests = sum(counts) / (end - start), sum(len(each["times"]) for each in results)
    fair = min(counts) / (sum(counts) / processes)
    trips = sum(len(each["trips"]) for each in results) / requests
    cpu = 1000 * sum(each["cpu"] for each in results) / requests
    return f"{rate:8.1f} {processes:9} {held:8.2f} {held / rate:7.1%} {fair:10.1%} {trips:9.2f} {cpu:7.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[2.0, 10.0, 100.0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=30.0)
    arguments = parser.parse_args()
    with prefect_test_harness(server_startup_timeout=120):
        print(
            f"{'rate':>8} {'processes':>9} {'held':>8} {'share':>7} {'least fair':>10} {'trips/req':>9} {'ms/req':>7}"
        )
        for rate in arguments.rates:
            for processes in arguments.processes:
                print(measure(rate, processes, arguments.seconds), flush=True)


if __name__ == "__main__":
    main()
