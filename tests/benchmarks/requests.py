"""A whole flow beside a bare aiohttp loop with a semaphore: the same rows, the same server, in the same run.

    python -m tests.benchmarks.requests --rows 10000
    python -m tests.benchmarks.requests --rows 4000 --kind lognormal

The server (of `tests.benchmarks.limiter`, in a process of its own) takes 500 ms per request, or as long on average
with a long tail, and counts. The flow is `LoadDataFromFiles >> TextGeneration` with `OpenAILLM`, its answers stored
and its dataset written. Prints seconds of wall time and of this process's CPU, their ratio, and what the server saw;
then the same flow once more, which asks nothing.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from flows import Pipeline, server
from llms import OpenAILLM
from tasks import LoadDataFromFiles, TextGeneration
from tests.benchmarks.limiter import running

IN_FLIGHT = 500


async def bare(url: str, rows: int) -> None:
    """What anybody would write."""
    places = asyncio.Semaphore(IN_FLIGHT)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(number: int) -> str:
            body = {"model": "m", "messages": [{"role": "user", "content": f"question {number}"}]}
            async with places, session.post(f"{url}/chat/completions", json=body) as response:
                return (await response.json())["choices"][0]["message"]["content"]

        await asyncio.gather(*(ask(number) for number in range(rows)))


def timed(work: Any) -> tuple[float, float]:
    """Seconds of wall time and of CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--kind", choices=["fixed", "lognormal"], default="fixed")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, server.available():
        os.environ["DISTILFLOW_HOME"] = folder
        data = Path(folder) / "data.jsonl"
        data.write_text("".join(json.dumps({"instruction": f"question {n}"}) + "\n" for n in range(given.rows)))
        with running(given.kind) as (url, counts):
            wall, cpu = timed(lambda: asyncio.run(bare(url, given.rows)))
            print(f"bare loop: {wall:.2f} s, {cpu:.1f} CPU-s, peak {counts()['peak']}")
        with running(given.kind) as (url, counts):
            with Pipeline(name="benchmark") as pipeline:
                llm = OpenAILLM(model="m", base_url=url, api_key="k", max_concurrency=IN_FLIGHT)
                LoadDataFromFiles(data_files=data) >> TextGeneration(llm=llm)

            def flow() -> None:
                dataset = pipeline.run(output=Path(folder) / "out")
                assert dataset.summary.rows == given.rows
                print(f"  (the run itself {dataset.summary.seconds:.2f} s)")

            for name in ("flow", "the same again"):
                before = counts()["requests"]
                ours, ours_cpu = timed(flow)
                seen = counts()
                asked = seen["requests"] - before
                print(
                    f"{name}: {ours:.2f} s, {ours_cpu:.1f} CPU-s, {ours / wall:.2f} x the bare loop, "
                    f"{asked} requests, peak {seen['peak']}"
                )


if __name__ == "__main__":
    main()
