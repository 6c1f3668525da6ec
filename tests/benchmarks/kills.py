"""Runs that are killed at random moments, and what they ask again: their process, Prefect's server, a worker."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
from prefect import flow
from prefect.deployments import run_deployment

from flows import Distiset
from llms import store
from tests.benchmarks.provider import Provider, running
from tests.benchmarks.runs import IN_FLIGHT, ROOT, Place, command, digest, remote, run

POOL = "benchmark"
KILLS, SERVER_KILLS, WORKER_KILLS = 20, 6, 3


class Lives:
    """What a provider saw in each life of a run, and what was known by then."""

    def __init__(self, place: Place, provider: Provider, rows: int) -> None:
        self.place, self.provider = place, provider
        place.fresh()
        self.given = place.given("diamond", rows, url=provider.url)
        self.undisturbed = run(self.given)["digest"]
        prompts = provider.asked()
        assert set(prompts.values()) == {1}
        llm = remote(self.given)
        self.keys = {store.key_of(llm, [{"role": "user", "content": each}], {}, 0): each for each in prompts}
        provider.reset(latency=0.2, lognormal=True)
        place.fresh()
        self.given = place.given("diamond", rows, url=provider.url)
        self.stored, self.answered, self.seen = set[str](), set[str](), 0
        self.twice, self.repeats = 0, [0]

    def over(self) -> None:
        """A life is over: what was asked in it, that was in the store or answered before?"""
        log = self.provider.log()
        asked = {each.prompt for each in log[self.seen :]}
        self.twice += len(asked & self.stored)
        self.repeats.append(len(asked & self.answered))
        self.answered |= {each.prompt for each in log if each.status == "200"}
        self.seen = len(log)
        self.stored = {self.keys[key] for key in _stored() if key in self.keys}

    def until(self, moment: float, alive: Callable[[], bool]) -> None:
        """Wait until so many requests are answered, or the run has ended."""
        while self.provider.stats()["answered"] < moment and alive():
            time.sleep(0.02)

    def said(self, what: str, again: dict[str, Any]) -> str:
        """What became of it."""
        same = "identical" if again["digest"] == self.undisturbed else "DIFFERENT"
        return (
            f"{what}; {again['rows']} rows, {again['failures']} failures; the output is {same}; {self.twice} stored "
            f"answers asked again (0); {sum(self.repeats)} repeats of what was on the wire, at most "
            f"{max(self.repeats)} at once (<= {IN_FLIGHT})"
        )


def _stored() -> list[str]:
    if not store.path().exists():
        return []
    with sqlite3.connect(store.path()) as database:
        return [key for (key,) in database.execute("SELECT key FROM answers")]


@contextmanager
def lives(place: Place, rows: int) -> Iterator[Lives]:
    """A run to be disturbed, of which the end is known."""
    with running(latency=0.2, lognormal=True) as provider:
        yield Lives(place, provider, rows)


def kill(place: Place, rows: int) -> str:
    """`kill -9` of the flow at random moments, each time from where the last one left off."""
    draw = random.Random(9)
    with lives(place, rows) as lived:
        moments = sorted(draw.uniform(0, 3 * rows) for _ in range(KILLS))
        for moment in moments:
            with subprocess.Popen(command(lived.given), stdout=subprocess.DEVNULL, cwd=ROOT) as process:
                lived.until(moment, lambda process=process: process.poll() is None)
                os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.5)  # until the provider has noticed
            lived.over()
        again = run(lived.given)
        lived.over()
        return lived.said(f"{KILLS} kills of the flow in {rows} rows and 3 models", again)


def kill_server(place: Place, rows: int) -> str:
    """`kill -9` of Prefect's server at random moments; it comes back, and the command too if it did not live on."""
    draw, ended = random.Random(7), 0
    with lives(place, rows) as lived:
        for moment in sorted(draw.uniform(0, 3 * rows) for _ in range(SERVER_KILLS)):
            with subprocess.Popen(
                command(lived.given), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
            ) as process:
                lived.until(moment, lambda process=process: process.poll() is None)
                place.prefect.kill()
                time.sleep(draw.uniform(0, 3))
                place.prefect.start()
                if moment < 2.5 * rows:
                    lived.until(moment + 0.05 * rows, lambda process=process: process.poll() is None)
                    ended += process.poll() not in (None, 0)
                    process.kill()
                else:
                    ended += process.wait() != 0
            time.sleep(0.5)
            lived.over()
        again = run(lived.given)
        lived.over()
        return lived.said(
            f"{SERVER_KILLS} kills of Prefect's server in {rows} rows, {ended} of them ended the run", again
        )


@contextmanager
def worker() -> Iterator[subprocess.Popen[bytes]]:
    """A worker, gone with all that it started."""
    told = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    with subprocess.Popen(told, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT) as process:
        try:
            yield process
        finally:
            root = psutil.Process(process.pid)
            for each in [root, *root.children(recursive=True)]:
                each.kill()


def kill_worker(place: Place, rows: int) -> str:
    """`kill -9` of a worker with the flow it runs, at random moments; another worker takes the next run."""
    draw = random.Random(5)
    create = [sys.executable, "-m", "prefect", "work-pool", "create", POOL, "--type", "process"]
    subprocess.run(create, check=True, stdout=subprocess.DEVNULL)
    loaded = flow.from_source(source=f"{ROOT}", entrypoint="tests/benchmarks/runs.py:deployed")
    loaded.to_deployment(name=POOL, work_pool_name=POOL).apply()  # type: ignore[union-attr]
    with lives(place, rows) as lived:
        for moment in sorted(draw.uniform(0, 3 * rows) for _ in range(WORKER_KILLS)):
            with worker() as process:
                run_deployment(f"deployed/{POOL}", parameters={"given": lived.given}, timeout=0)
                lived.until(moment, lambda process=process: process.poll() is None)
            time.sleep(0.5)
            lived.over()
        with worker():
            run_deployment(f"deployed/{POOL}", parameters={"given": lived.given}, timeout=600)
        lived.over()
        dataset = Distiset.load(lived.given["output"])
        again = {"digest": digest(dataset), "rows": dataset.summary.rows, "failures": dataset.summary.failures}
        return lived.said(f"{WORKER_KILLS} kills of a worker in {rows} rows", again)
