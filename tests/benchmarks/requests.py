"""The ways to ask: a bare aiohttp loop with a semaphore, the bare OpenAI SDK, and a whole flow of ours.

    python -m tests.benchmarks.requests '{"data": "rows.jsonl", "output": "out", "llm": {"model": "m", …}}'

runs a flow in a process of its own and prints what it came to; `tests.benchmarks.scenarios` puts all of them side by
side.
"""

import asyncio
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import openai

from flows import Distiset, Pipeline
from flows.runtime import server
from llms import OpenAILLM, store
from llms.typing import ChatType
from tasks import LoadDataFromFiles, TextGeneration

IN_FLIGHT = 500


class Took(NamedTuple):
    """Seconds of wall time, and of this process's CPU."""

    wall: float
    cpu: float


def timed(work: Callable[[], object]) -> Took:
    """What it takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Took(time.perf_counter() - wall, time.process_time() - cpu)


class Place:
    """A folder of this process's own, with a store in it.

    Args:
        folder: An empty one.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.stores = 0
        self.fresh()

    def fresh(self) -> Path:
        """Forget all answers and all results; where a dataset may go."""
        store.close()
        self.stores += 1
        self.home = self.folder / f"store-{self.stores}"
        os.environ["DISTILFLOW_HOME"] = str(self.home)
        return self.home / "out"

    def data(self, rows: int) -> Path:
        """A file of so many instructions."""
        file = self.folder / f"{rows}.jsonl"
        file.write_text("".join(json.dumps({"instruction": f"question {number}"}) + "\n" for number in range(rows)))
        return file


def chats(rows: int) -> list[ChatType]:
    """The same instructions as chats."""
    return [[{"role": "user", "content": f"question {number}"}] for number in range(rows)]


async def _all(ask: Callable[[ChatType], Awaitable[str | None]], rows: int, in_flight: int) -> None:
    places = asyncio.Semaphore(in_flight)

    async def one(chat: ChatType) -> str | None:
        async with places:
            return await ask(chat)

    await asyncio.gather(*(one(chat) for chat in chats(rows)))


async def bare(url: str, rows: int, in_flight: int = IN_FLIGHT) -> None:
    """What anybody would write."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(messages: ChatType) -> str:
            body = {"model": "m", "messages": messages}
            async with session.post(f"{url}/chat/completions", json=body) as response:
                return (await response.json())["choices"][0]["message"]["content"]

        await _all(ask, rows, in_flight)


async def sdk(url: str, rows: int, in_flight: int = IN_FLIGHT, default: bool = False) -> None:
    """The SDK with its aiohttp transport and no retries, or as it comes."""
    told: dict[str, Any] = {} if default else {"http_client": openai.DefaultAioHttpClient(), "max_retries": 0}
    async with openai.AsyncOpenAI(base_url=url, api_key="k", **told) as client:

        async def ask(messages: ChatType) -> str | None:
            reply = await client.chat.completions.create(model="m", messages=messages)  # type: ignore[arg-type]
            return reply.choices[0].message.content

        await _all(ask, rows, in_flight)


def model(url: str, **fields: Any) -> OpenAILLM:
    """The model that answers at this address."""
    return OpenAILLM(**{"model": "m", "base_url": url, "api_key": "k", "max_concurrency": IN_FLIGHT} | fields)


def flow(data: Path, output: Path, llm: OpenAILLM, **fields: Any) -> Distiset:
    """Rows from a file, answered, in a dataset: what a user would write."""
    with Pipeline(name="benchmark") as pipeline:
        LoadDataFromFiles(data_files=data) >> TextGeneration(llm=llm, **fields)
    return pipeline.run(output=output, result_storage=store.path().parent / "results")


def digest(dataset: Distiset) -> str:
    """What is in the rows, but for what is different every time: how long it took, and how often it was tried."""
    state = hashlib.sha256()
    for row in dataset["default"]["train"]:
        facts = row["text_generation_metadata"]
        row["text_generation_metadata"] = {
            name: facts[name] for name in sorted(facts) if name not in ("seconds", "attempts", "cached")
        }
        state.update(json.dumps(row, sort_keys=True).encode())
    return state.hexdigest()


def command(data: Path, output: Path, llm: dict[str, Any], **given: Any) -> list[str]:
    """The command that runs a flow in a process of its own."""
    given |= {"data": str(data), "output": str(output), "llm": llm}
    return [sys.executable, "-m", "tests.benchmarks.requests", json.dumps(given)]


def alone(data: Path, output: Path, llm: dict[str, Any], **given: Any) -> dict[str, Any]:
    """A flow in a process of its own, until it ends: what it printed, and its `wall` seconds."""
    started = time.perf_counter()
    done = subprocess.run(command(data, output, llm, **given), check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1]) | {"wall": time.perf_counter() - started}


def main(given: dict[str, Any]) -> None:
    """Run a flow and print what it came to."""
    llm = given.pop("llm")
    hashed = given.pop("digest", False)
    with server.available():
        dataset = flow(Path(given.pop("data")), Path(given.pop("output")), model(llm.pop("base_url"), **llm), **given)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    summary = dataset.summary
    figures = {"rows": summary.rows, "failures": summary.failures, "seconds": summary.seconds, "peak_mb": round(peak)}
    figures |= {"cpu": round(time.process_time(), 2), **({"digest": digest(dataset)} if hashed else {})}
    print(json.dumps(figures))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
