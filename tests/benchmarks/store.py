"""What it costs to keep answers: 20,000 puts with 500 in flight, the same number of gets, and the file they make.

    python -m tests.benchmarks.store

Prints microseconds of wall time and of CPU time (all threads) for each, of texts of about 600 characters.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from llms import OpenAILLM, store
from llms.typing import ChatType, GenerateOutput, Usage

ANSWERS, IN_FLIGHT = 20_000, 500
TEXT = "The capital of Spain is Madrid, which lies in the middle of the country. " * 8


@contextmanager
def measured(what: str) -> Iterator[None]:
    """Print what one of `ANSWERS` costs inside."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{what:<42} {wall / ANSWERS * 1e6:8.1f} µs wall  {cpu / ANSWERS * 1e3:8.4f} ms CPU")


def answer(number: int) -> store.StoredAnswer:
    """One that is like no other."""
    output = GenerateOutput([f"{number}: {TEXT}"], finish_reasons=["stop"], usage=Usage(120, 140), seconds=1.5)
    return store.StoredAnswer.from_output(LLM, output)[0]


async def requests(one: Callable[[int], Awaitable[None]]) -> None:
    """Do `one` for every number, `IN_FLIGHT` of them at a time."""
    numbers = count()

    async def work() -> None:
        while (number := next(numbers)) < ANSWERS:
            await one(number)

    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))


LLM = OpenAILLM(model="gpt-5", api_key="none")  # type: ignore[arg-type]


def main() -> None:
    """Measure."""
    with tempfile.TemporaryDirectory() as folder:
        chats: list[ChatType] = [
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"{number}: {TEXT}"}]
            for number in range(ANSWERS)
        ]
        os.environ["DISTILFLOW_HOME"] = folder
        with measured("key"):
            keys = [store.key_of(LLM, chat, {"temperature": 0.7, "max_new_tokens": 500}, 0) for chat in chats]

        async def put(number: int) -> None:
            await store.put({keys[number]: answer(number)})

        async def paced(number: int) -> None:
            await asyncio.sleep(0.2)
            await put(number)

        store.get(keys[:1])  # opens the file
        with measured("get, one at a time, empty"):
            for key in keys:
                store.get([key])
        with measured(f"put, {IN_FLIGHT} in flight, as fast as it goes"):
            asyncio.run(requests(put))
        os.environ["DISTILFLOW_HOME"] = str(Path(folder) / "paced")
        with measured(f"the wait alone, {IN_FLIGHT} in flight, 0.2 s each"):
            asyncio.run(requests(lambda number: asyncio.sleep(0.2)))
        with measured(f"the wait and put, {IN_FLIGHT} in flight, 0.2 s each"):
            asyncio.run(requests(paced))
        with measured("get, one at a time"):
            for key in keys:
                store.get([key])
        with measured("get, 100 at a time"):
            found = sum(len(store.get(keys[start : start + 100])) for start in range(0, ANSWERS, 100))
        assert found == ANSWERS
        file = store.path()
        store.close()
        print(f"{file.stat().st_size / ANSWERS:.0f} bytes of file per answer of {len(TEXT)} characters")


if __name__ == "__main__":
    main()
