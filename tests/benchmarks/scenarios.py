"""The request engine under load and in bad weather: whole flows against a provider that counts, each a line of figures.

    python -m tests.benchmarks.scenarios fixed lognormal instant
    python -m tests.benchmarks.scenarios refusing refusing-headers refusing-burst refusing-burst-headers --together
    python -m tests.benchmarks.scenarios kill --rows 500

A flow is `LoadDataFromFiles >> TextGeneration` with `OpenAILLM`, its answers stored and its dataset written. Each
scenario runs in a process of its own, with an empty store; all use one Prefect server, a temporary one unless
`PREFECT_API_URL` is set. What should come out stands behind each figure in parentheses.
"""

import argparse
import asyncio
import os
import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from prefect.settings import PREFECT_API_URL

from flows.runtime import server
from llms import store
from llms.typing import ChatType
from tests.benchmarks import limiter
from tests.benchmarks import store as stores
from tests.benchmarks.provider import running
from tests.benchmarks.requests import IN_FLIGHT, Place, Took, alone, bare, chats, command, flow, model, sdk, timed

LATENCY = 0.5
RPM = 600
KILLS = 20


def beside(place: Place, rows: int, repeats: int, **weather: Any) -> str:
    """Wall time of a bare loop, of the bare SDK and of the flow: medians, and of the ratios within a round."""
    data, rounds = place.data(rows), list[dict[str, Took]]()
    with running(latency=LATENCY, **weather) as provider:
        for _ in range(repeats):
            output = place.fresh()
            ways: dict[str, Callable[[], object]] = {
                "bare": lambda: asyncio.run(bare(provider.url, rows)),
                "sdk": lambda: asyncio.run(sdk(provider.url, rows)),
                "flow": lambda output=output: flow(data, output, model(provider.url)),
            }
            took = dict[str, Took]()
            for name, way in ways.items():
                provider.reset(latency=LATENCY, **weather)
                took[name] = timed(way)
            rounds.append(took)
        seen = provider.stats()

    def median(figure: Callable[[dict[str, Took]], float]) -> float:
        return statistics.median(figure(each) for each in rounds)

    ratio = median(lambda took: took["flow"].wall / took["bare"].wall)
    walls = ", ".join(
        f"{name} {median(lambda took, name=name: took[name].wall):.2f} s "
        f"({median(lambda took, name=name: took[name].cpu):.1f} CPU-s)"
        for name in rounds[0]
    )
    return f"{ratio:.3f} x the bare loop (<= 1.15): {walls}; {seen['requests']} requests, peak {seen['peak']}"


def instant(place: Place, rows: int) -> str:
    """Milliseconds of CPU per row, of this process alone, after a tenth of the rows to warm up."""
    few, asked = place.data(rows // 10), chats(rows)
    with running() as provider:
        llm = model(provider.url)

        def cost(work: Callable[[], object]) -> float:
            return 1000 * timed(work).cpu / rows

        flow(few, place.fresh(), llm)
        figures = {"flow": cost(partial(flow, place.data(rows), place.fresh(), llm))}
        place.fresh()
        figures["engine"] = cost(lambda: llm.generate_outputs(asked))
        for name, way in (("bare loop", bare), ("sdk", sdk), ("default sdk", partial(sdk, default=True))):
            asyncio.run(way(provider.url, rows // 10))
            figures[name] = 5 * cost(lambda way=way: asyncio.run(way(provider.url, rows // 5)))
    figures["admission"] = min(asyncio.run(limiter.cpu(1024, True)) for _ in range(3))
    figures["store"] = cost(lambda: _kept(asked))
    place.fresh()
    said = ", ".join(f"{name} {figure:.3f}" for name, figure in figures.items())
    return f"ms of CPU per row (flow <= 0.7, admission <= 0.05, store <= 0.1): {said}"


def _kept(asked: list[ChatType]) -> None:
    """The keys, a look, a put: what the store does for a request that is new."""
    llm = stores.LLM
    keys = [store.key_of(llm, chat, {}, 0) for chat in asked]
    store.get(keys)

    async def put() -> None:
        for start in range(0, len(keys), IN_FLIGHT):
            some = range(start, min(start + IN_FLIGHT, len(keys)))
            await asyncio.gather(*(store.put({keys[each]: stores.answer(each)}) for each in some))

    asyncio.run(put())


def refusing(place: Place, rows: int, burst: float, headers: bool = False, rtt: float = 0.0) -> str:
    """The share of the allowed rate that is used after the first minute, and what is refused."""
    with running(latency=LATENCY, rpm=RPM, burst=burst, headers=headers, rtt=rtt) as provider:
        dataset = flow(place.data(rows), place.fresh(), model(provider.url))
        seen, log = provider.stats(), provider.log()
    began = min(each.began for each in log)
    accepted = [each.began - began for each in log if each.status == "200"]
    last = max(accepted)
    later = sum(when > 60 for when in accepted)
    share = f"{later / ((last - 60) * RPM / 60):.1%}" if later else "none left"
    whole = max(0.0, rows - burst) * 60 / RPM / last
    return (
        f"burst {burst:g}{', headers' * headers}: {share} of the rate after the first minute (>= 95 %), {whole:.1%} "
        f"of it in all; {seen['refused']} refused, {seen['refused'] / seen['requests']:.1%} (< 2 %); "
        f"{rows - dataset.summary.rows} rows lost (0); {dataset.summary.seconds:.1f} s"
    )


def queueing(place: Place, rows: int) -> str:
    """How long a server that never refuses lets requests wait, and how much of its best it gives."""
    capacity = 64
    with running(latency=LATENCY, capacity=capacity) as provider:
        flow(place.data(rows), place.fresh(), model(provider.url))
        log = provider.log()
    began = min(each.began for each in log)
    ends = sorted(each.began + each.seconds - began for each in log)
    parts = {"all": log, "after the first quarter": log[len(log) // 4 :]}
    waits = ", ".join(
        f"{statistics.quantiles([each.seconds for each in part], n=20)[18] / LATENCY:.2f} x ({name})"
        for name, part in parts.items()
    )
    return f"p95 over unloaded {waits} (<= 2); {rows / ends[-1] / (capacity / LATENCY):.1%} of its best rate (>= 95 %)"


def weather(place: Place, rows: int) -> str:
    """5 % 500s, 2 % resets, 1 % hangs."""
    with running(latency=0.05, errors=0.05, resets=0.02, hangs=0.01) as provider:
        summary = flow(place.data(rows), place.fresh(), model(provider.url, timeout=5.0)).summary
        seen = provider.stats()
    return (
        f"{rows - summary.rows} of {rows} rows lost (0), {seen['repeats']} repeats (0); "
        f"{summary.seconds:.1f} s; {seen['status']}"
    )


def poison(place: Place, rows: int) -> str:
    """One row that is always answered with 400."""
    with running(latency=0.05, poison=f"question {rows // 3}.") as provider:
        data = place.data(rows)
        dataset = flow(data, place.fresh(), model(provider.url), template="{{ instruction }}.")
        seen = provider.stats()
    errors = [(error["error"], error["attempts"], error["origin"]) for error in dataset.errors]
    return f"{dataset.summary.rows} rows ({rows - 1}), errors {errors} (one); {seen['requests']} requests ({rows})"


def again(place: Place, rows: int) -> str:
    """A finished run once more, in a new process, beside the same of one row."""
    few, data = place.data(1), place.data(rows)
    with running() as provider:
        told = {"base_url": provider.url}
        for each in (few, data):
            alone(each, place.folder / f"out-{each.stem}", told)
        before = provider.stats()["requests"]
        start, whole = (alone(each, place.folder / f"out-{each.stem}", told) for each in (few, data))
        asked = provider.stats()["requests"] - before
    return (
        f"{asked} requests (0), {whole['wall'] - start['wall']:.1f} s beyond start-up (<= 5): "
        f"{whole['wall']:.1f} s, of which the run {whole['seconds']:.1f}; one row {start['wall']:.1f} s"
    )


def changed(place: Place, rows: int) -> str:
    """What is asked after one thing was changed, each time from the same finished run."""
    data, out = place.data(rows), place.fresh()
    one = place.folder / "one.jsonl"
    one.write_text(data.read_text().replace('"question 0"', '"another question"') + '{"instruction": "one more"}\n')
    everything = {f"question {number}": 1 for number in range(rows)}
    with running() as provider:
        url = provider.url
        schema = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
        held = {"format": "json", "schema": schema}
        changes: dict[str, tuple[Any, dict[str, int]]] = {
            "nothing": (partial(flow, data, out, model(url)), {}),
            "key": (partial(flow, data, out, model(url, api_key="other")), {}),
            "one row, one more": (partial(flow, one, out, model(url)), {"another question": 1, "one more": 1}),
            "system prompt": (partial(flow, data, out, model(url), system_prompt="Be brief."), everything),
            "base_url": (partial(flow, data, out, model(url.replace("/v1", "/v2"))), everything),
            "model": (partial(flow, data, out, model(url, model="other")), everything),
            "option": (partial(flow, data, out, model(url, generation_kwargs={"temperature": 0.5})), everything),
            "schema": (partial(flow, data, out, model(url, structured_output=held)), everything),
            "two generations": (partial(flow, data, out, model(url), num_generations=2), everything),
        }
        flow(data, out, model(url))
        right = dict[str, str]()
        for name, (run, expected) in changes.items():
            provider.reset(malformed=0.0)
            run()
            asked = provider.asked()
            right[name] = f"{asked.total()}" + ("" if asked == expected else " WRONG")
    return f"{rows} rows; asked again: " + ", ".join(f"{name} {asked}" for name, asked in right.items())


def memory(place: Place, rows: int) -> str:
    """Peak memory of a tenth of the rows and of all, each in a process of its own."""
    with running() as provider:
        few, many = (
            alone(place.data(each), place.fresh(), {"base_url": provider.url})["peak_mb"] for each in (rows // 10, rows)
        )
    return f"{rows // 10} rows {few} MB, {rows} rows {many} MB: {many / few - 1:+.1%} (< 10 %)"


def kill(place: Place, rows: int) -> str:
    """`kill -9` at random moments, each time from where the last one left off, and what the provider saw then."""
    data, in_flight, draw = place.data(rows), 100, random.Random(9)
    with running(latency=0.2, lognormal=True) as provider:
        told = {"base_url": provider.url, "max_concurrency": in_flight}
        llm = model(provider.url)
        keys = {store.key_of(llm, chat, {}, 0): f"{chat[0]['content']}" for chat in chats(rows)}
        undisturbed = alone(data, place.fresh(), told, digest=True)["digest"]
        provider.reset(latency=0.2, lognormal=True)
        output, stored, answered, seen = place.fresh(), set[str](), set[str](), 0
        twice, repeats = 0, list[int]()

        def life() -> None:
            nonlocal stored, answered, seen, twice
            log = provider.log()
            asked = {each.prompt for each in log[seen:]}
            twice += len(asked & stored)
            repeats.append(len(asked & answered))
            answered |= {each.prompt for each in log if each.status == "200"}
            stored, seen = {keys[key] for key in _stored()}, len(log)

        for moment in sorted(draw.uniform(0, rows) for _ in range(KILLS)):
            with subprocess.Popen(command(data, output, told), stdout=subprocess.DEVNULL) as process:
                while provider.stats()["answered"] < moment and process.poll() is None:
                    time.sleep(0.01 * draw.random())
                os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.5)  # until the provider has noticed
            life()
        same = alone(data, output, told, digest=True)["digest"] == undisturbed
        life()
    return (
        f"{KILLS} kills in {rows} rows: the output is {'identical' if same else 'DIFFERENT'}; {twice} stored answers "
        f"asked again (0); {sum(repeats)} repeats, at most {max(repeats)} after a kill (<= {in_flight} in flight)"
    )


def _stored() -> list[str]:
    if not store.path().exists():
        return []
    with sqlite3.connect(store.path()) as database:
        return [key for (key,) in database.execute("SELECT key FROM answers")]


SCENARIOS: dict[str, tuple[Callable[..., str], int]] = {
    "fixed": (beside, 10_000),
    "lognormal": (partial(beside, lognormal=True), 10_000),
    "instant": (instant, 10_000),
    "refusing": (partial(refusing, burst=10), 900),
    "refusing-far": (partial(refusing, burst=10, rtt=0.15), 900),
    "refusing-headers": (partial(refusing, burst=10, headers=True), 900),
    "refusing-burst": (partial(refusing, burst=RPM), 1_500),
    "refusing-burst-headers": (partial(refusing, burst=RPM, headers=True), 1_500),
    "queueing": (queueing, 10_000),
    "weather": (weather, 10_000),
    "poison": (poison, 1_000),
    "again": (again, 10_000),
    "changed": (changed, 100),
    "memory": (memory, 100_000),
    "kill": (kill, 2_000),
}
"""Each with the rows it takes when nobody says."""


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="+", choices=[*SCENARIOS, "all"], metavar="NAME", help=", ".join(SCENARIOS))
    parser.add_argument("--rows", type=int, help="instead of each scenario's own number")
    parser.add_argument("--repeats", type=int, default=1, help="rounds of `fixed` and `lognormal`; medians are printed")
    parser.add_argument("--together", action="store_true", help="at the same time: for those that only wait")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    names = list(SCENARIOS) if "all" in given.names else given.names
    if given.here:
        run, rows = SCENARIOS[names[0]]
        told = {"repeats": given.repeats} if names[0] in ("fixed", "lognormal") else {}
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, server.available():
            print(f"{names[0]}: {run(Place(folder), given.rows or rows, **told)}", flush=True)
            store.close()
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        os.environ |= {"PREFECT_HOME": home, "PREFECT_LOGGING_LEVEL": "ERROR", "DO_NOT_TRACK": "1"}
        with server.available():
            os.environ["PREFECT_API_URL"] = PREFECT_API_URL.value() or ""
            more = ["--here", "--repeats", f"{given.repeats}", *(["--rows", f"{given.rows}"] if given.rows else [])]
            processes = list[subprocess.Popen[bytes]]()
            for name in names:
                processes.append(subprocess.Popen([sys.executable, "-m", "tests.benchmarks.scenarios", name, *more]))
                if not given.together:
                    processes[-1].wait()
            for process in processes:
                process.wait()


if __name__ == "__main__":
    main()
