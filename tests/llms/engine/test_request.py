"""One request's life: equal ones are made once, each has its deadline, n answers come however the API gives them."""

import asyncio
import pickle
import random
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from llms import AsyncLLM, Fatal, OpenAILLM, Price, Rejected, Throttled, Transient
from llms.clients import event_loop
from llms.engine import request
from llms.limits.usage import UsageCollector
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


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for better weather is soon over: the part of the pause that is drawn is small."""
    monkeypatch.setattr(random, "uniform", lambda low, high: low / 50)


def test_an_answer_has_its_deadline():
    (output,) = Slow(seconds=30, deadline=0.1).generate(CHATS[:1])
    assert isinstance(output.error, Transient) and "`deadline` of 0.1 s" in str(output.error)
    assert len(Slow.asked) == 1 == output.attempts


def test_the_deadline_covers_all_attempts():
    (output,) = Slow(failures=100, deadline=0.6).generate(CHATS[:1])
    assert str(output.error) == "bad weather" and 1 <= output.attempts < request.MAX_ATTEMPTS


def test_a_deadline_begins_with_the_first_request_not_in_the_queue():
    """The last of them waits longer than anyone's deadline."""
    outputs = Slow(seconds=0.25, deadline=3.0, max_concurrency=1).generate(CHATS[:15])
    assert outputs == [["x"]] * 15
    assert Slow.asked[-1] - Slow.asked[0] > 3.0


class Scripted(AsyncLLM):
    """Does what it is told to, one thing after the other; then it answers."""

    does: ClassVar[list[Callable[[], Any]]] = []
    asked: ClassVar[int] = 0

    @property
    def model_name(self) -> str:
        return "scripted"

    async def agenerate(self, input: ChatType, num_generations: int = 1) -> GenerateOutput:
        type(self).asked += 1
        if not self.does:
            return GenerateOutput(["x"] * num_generations)
        done = self.does.pop(0)()
        return await done if asyncio.iscoroutine(done) else done


def scripted(monkeypatch: pytest.MonkeyPatch, *does: Callable[[], Any], **fields: Any) -> Scripted:
    event_loop.close()  # what its limiter has learned from another script
    monkeypatch.setattr(Scripted, "does", list(does))
    monkeypatch.setattr(Scripted, "asked", 0)
    return Scripted(**fields)


def raising(error: Exception) -> Callable[[], Any]:
    def do() -> Any:
        raise error

    return do


def test_the_deadline_holds_while_it_waits_for_its_turn_again(monkeypatch):
    """The limiter has everybody wait for longer, after a refusal that does not say for how long."""
    (output,) = scripted(monkeypatch, raising(Throttled("slow down")), deadline=0.1).generate(CHATS[:1])
    assert isinstance(output.error, Transient) and output.attempts == 1 == Scripted.asked
    assert "`deadline` of 0.1 s" in str(output.error) and "slow down" in str(output.error)


def test_a_refusal_that_lasts_longer_than_the_deadline_is_not_waited_out(monkeypatch):
    (output,) = scripted(monkeypatch, raising(Throttled("slow down", retry_after=3600)), deadline=60).generate(
        CHATS[:1]
    )
    assert isinstance(output.error, Throttled) and output.attempts == 1


@pytest.mark.usefixtures("short_pauses")
def test_a_model_of_ones_own_that_takes_too_long_is_asked_again(monkeypatch):
    slow = lambda: asyncio.sleep(600)  # noqa: E731
    assert scripted(monkeypatch, slow, timeout=0.1).generate(CHATS[:1]) == [["x"]]
    assert Scripted.asked == 2


@pytest.mark.usefixtures("short_pauses")
def test_a_model_that_always_takes_too_long_is_not_paid_nine_times(monkeypatch):
    slow = lambda: asyncio.sleep(600)  # noqa: E731
    with UsageCollector().activate() as usage:
        (output,) = scripted(monkeypatch, *[slow] * 20, timeout=0.01).generate(CHATS[:1])
    assert isinstance(output.error, Transient) and "within 0.01 s (`timeout`)" in str(output.error)
    assert Scripted.asked == output.attempts == request.MAX_TIMEOUTS
    (used,) = usage.by_model.values()
    assert used.requests == used.unanswered == request.MAX_TIMEOUTS


def test_without_a_timeout_a_model_of_ones_own_has_all_the_time_it_wants(monkeypatch):
    assert Scripted().timeout is None
    own = raising(TimeoutError())  # its own, which is weather like any other
    monkeypatch.setattr(random, "uniform", lambda low, high: 0.001)
    assert scripted(monkeypatch, own).generate(CHATS[:1]) == [["x"]] and Scripted.asked == 2


def test_the_restart_of_a_server_is_survived(monkeypatch):
    """Half a minute, whatever is drawn."""
    pauses: list[float] = []

    async def shortly(seconds: float) -> None:
        pauses.append(seconds)

    names = {**vars(asyncio), "sleep": shortly}  # other threads sleep as ever
    monkeypatch.setattr(request, "asyncio", SimpleNamespace(**names))
    monkeypatch.setattr(random, "uniform", lambda low, high: low)
    (output,) = scripted(monkeypatch, *[raising(Transient("starting"))] * 20).generate(CHATS[:1])
    assert output.error and len(pauses) == request.MAX_ATTEMPTS - 1 and sum(pauses) > 40


# --- what odd models do -----------------------------------------------------------------------------------------------

ODD: dict[str, Callable[[], Any]] = {
    "a number": lambda: [42],
    "nothing": lambda: None,
    "two for one": lambda: ["x", "y"],
    "no list": lambda: 42,
    "too many reasons": lambda: GenerateOutput(["x"], finish_reasons=["stop", "stop"]),
    "no reason": lambda: GenerateOutput(["x"], finish_reasons=[7]),  # type: ignore[list-item]
    "no usage": lambda: GenerateOutput(["x"], usage={"input_tokens": 1}),  # type: ignore[arg-type]
    "half a token": lambda: GenerateOutput(["x"], usage=Usage(0.5, 1)),  # type: ignore[arg-type]
    "no cost": lambda: GenerateOutput(["x"], cost="cheap"),  # type: ignore[arg-type]
    "no headers": lambda: GenerateOutput(["x"], headers={"x-ratelimit-limit-requests": None}),  # type: ignore[dict-item]
    "probabilities that are no JSON": lambda: GenerateOutput(["x"], logprobs=[[{1}]]),  # type: ignore[list-item]
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("cached", [True, False])
def test_an_odd_answer_costs_one_row(odd, cached, monkeypatch):
    llm = scripted(monkeypatch, ODD[odd], max_concurrency=1, use_cache=cached)
    bad, *good = llm.generate_outputs(CHATS[:5])
    assert isinstance(bad.error, Rejected) and bad == [None] and bad.finish_reasons == ["error"]
    assert good == [["x"]] * 4


@pytest.mark.usefixtures("short_pauses")
def test_a_generation_that_failed_at_the_provider_is_asked_for_again_and_then_recorded(wire):
    broken = wire.Reply(wire.completion("half a", finish_reason="error"))
    wire.script(broken, broken)
    (output,) = model(wire).generate(CHATS[:1])
    assert output == ["Madrid."] and output.attempts == 3
    wire.answer = lambda request: broken
    (output,) = model(wire).generate(CHATS[:1])
    assert isinstance(output.error, Transient) and "the generation failed" in str(output.error)
    assert output == [None] and output.attempts == request.MAX_ATTEMPTS


class Unauthorized(Exception):
    """As an SDK says it, with the request and its key."""

    status_code = 401

    def __init__(self) -> None:
        super().__init__("no such key")
        self.key = "sk-secret"


def test_what_no_request_survives_stops_the_run_whichever_sdk_says_it(monkeypatch):
    llm = scripted(monkeypatch, raising(Unauthorized()), max_concurrency=1)
    with pytest.raises(Fatal, match="401.*no such key") as caught:
        llm.generate(CHATS)
    assert Scripted.asked == 1
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    assert b"sk-secret" not in pickle.dumps(caught.value)


def test_what_was_paid_before_a_run_stopped_is_told(monkeypatch):
    paid = lambda: GenerateOutput(["x"], usage=Usage(5, 1), cost=0.25)  # noqa: E731
    with pytest.raises(Fatal), UsageCollector().activate() as usage:
        scripted(monkeypatch, paid, paid, raising(Fatal("no credit")), max_concurrency=1).generate(CHATS[:5])
    (used,) = usage.by_model.values()
    assert (used.requests, used.usage, used.cost, used.unanswered) == (3, Usage(10, 2), 0.5, 0)


class OneAtATime(Slow):
    """An API without an `n`."""

    max_generations_per_request: ClassVar[int | None] = 1

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
