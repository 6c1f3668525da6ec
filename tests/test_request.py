"""One request's life: equal ones are made once, each has its deadline, n answers come however the API gives them."""

import asyncio
import threading
from typing import ClassVar

import pytest

from llms import AsyncLLM, OpenAILLM, Price, Transient
from llms.typing import ChatType, GenerateOutput, Usage

CHATS: list[ChatType] = [[{"role": "user", "content": f"question {each}"}] for each in range(50)]


def model(wire, **fields) -> OpenAILLM:
    return OpenAILLM(model="m", base_url=wire.url, api_key="k", **fields)


def test_equal_chats_of_a_batch_are_asked_and_paid_for_once(wire):
    llm = model(wire, price=Price(input=1, output=1))
    first, other, second = llm.generate_outputs([CHATS[0], CHATS[1], CHATS[0]])
    assert len(wire.requests) == 2
    assert first == second == other == ["Madrid."]
    assert not first.cached and first.cost and second.cached and second.usage == Usage() and not second.cost


def test_equal_chats_of_batches_in_flight_are_asked_once(wire):
    """Eight threads, each with the same fifty chats at the same time."""
    wire.answer = lambda request: wire.Reply(delay=0.3)
    outputs: list[list[GenerateOutput]] = []
    ready = threading.Barrier(8)

    def ask() -> None:
        ready.wait()
        outputs.append(model(wire).generate_outputs(CHATS))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wire.requests) == 50
    assert outputs == [[["Madrid."]] * 50] * 8
    assert sum(output.cached for each in outputs for output in each) == 7 * 50


def test_who_waits_for_an_equal_request_that_fails_asks_itself(wire):
    wire.script(wire.Reply({"error": {"message": "too long"}}, status=400, delay=0.3))
    outputs: list[GenerateOutput] = []
    threads = [
        threading.Thread(target=lambda: outputs.extend(model(wire).generate_outputs(CHATS[:1]))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(bool(output.error) for output in outputs) == [False, False, True]
    assert len(wire.requests) == 2


def test_generate_always_asks(wire):
    model(wire).generate([CHATS[0]] * 3)
    assert len(wire.requests) == 3


class Slow(AsyncLLM):
    """Takes as long as it is told, or fails a while."""

    seconds: float = 0.0
    failures: int = 0
    asked: ClassVar[list[float]] = []

    @property
    def model_name(self) -> str:
        return "slow"

    async def agenerate(self, input: ChatType, num_generations: int = 1) -> GenerateOutput:
        self.asked.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.seconds)
        if len(self.asked) <= self.failures:
            raise Transient("bad weather")
        return GenerateOutput(["x"] * num_generations)


@pytest.fixture(autouse=True)
def nothing_asked():
    Slow.asked.clear()


def test_an_answer_has_its_deadline():
    (output,) = Slow(seconds=30, deadline=0.1).generate(CHATS[:1])
    assert isinstance(output.error, Transient) and "`deadline` of 0.1 s" in str(output.error)
    assert len(Slow.asked) == 1 == output.attempts


def test_the_deadline_covers_all_attempts():
    (output,) = Slow(failures=100, deadline=0.6).generate(CHATS[:1])
    assert str(output.error) == "bad weather" and 1 <= output.attempts < 5


def test_a_deadline_begins_with_the_first_request_not_in_the_queue():
    outputs = Slow(seconds=0.05, deadline=1.0, max_concurrency=1).generate(CHATS[:40])
    assert outputs == [["x"]] * 40


class OneAtATime(Slow):
    """An API without an `n`."""

    generations_at_once: ClassVar[int | None] = 1

    async def agenerate(self, input: ChatType, num_generations: int = 1, seed: int | None = None) -> GenerateOutput:
        assert num_generations == 1
        self.asked.append(seed or 0)
        if len(self.asked) == self.failures:
            raise ValueError("no")
        return GenerateOutput([f"{seed}"], usage=Usage(5, 1))


def test_several_answers_of_an_api_that_gives_one_at_a_time():
    (output,) = OneAtATime().generate(CHATS[:1], 3, seed=7)
    assert output == ["7", "8", "9"] and output.usage == Usage(15, 3)


def test_when_one_of_several_fails_the_others_are_kept():
    llm = OneAtATime(failures=2)
    (output,) = llm.generate_outputs(CHATS[:1], 3)
    assert output.error and len(Slow.asked) == 3
    (again,) = llm.generate_outputs(CHATS[:1], 3)
    assert again == ["None"] * 3 and len(Slow.asked) == 4
