"""What a run may spend: it stops there, loses nothing, and goes on with more."""

import asyncio
import json
from typing import ClassVar

import pytest

from flows import Pipeline
from flows.errors import ConfigurationError
from llms import LLM, AsyncLLM, BudgetExceeded, LlamaServerLLM, OpenAILLM, Price, Transient
from llms.clients import event_loop
from llms.limits.budget import MAX_UNMEASURED_IN_FLIGHT, Budget
from llms.typing import ChatType, GenerateOutput, Usage
from tasks import LoadDataFromDicts, TextGeneration
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("prefect_server")
PRICE = {"input": 1_000_000, "output": 0}  # of the wire: nine tokens of input a request, so nine dollars


def run(wire, rows=60, llm=None, folder=None, **limits):
    llm = llm or OpenAILLM(model="m", base_url=wire.url, api_key="k", price=Price(**PRICE))
    with Pipeline(name="budget") as pipeline:
        data = LoadDataFromDicts(data=[{"instruction": f"question {each}"} for each in range(rows)])
        data >> TextGeneration(llm=llm)
    return pipeline.run(output=folder, **limits)


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "most"), [({"max_cost": 180}, 20), ({"max_tokens_total": 130}, 10)])
def test_a_run_stops_at_its_limit_and_goes_on_with_more(wire, tmp_path, limit, most):
    with pytest.raises(
        BudgetExceeded, match=f"`{next(iter(limit))}={next(iter(limit.values()))}`.*with more goes on"
    ) as stop:
        run(wire, folder=tmp_path / "out", **limit)
    assert len(wire.requests) == most  # to the dollar: all requests cost the same here
    facts = json.loads((tmp_path / "out.partial" / "run.json").read_text())
    assert facts["state"] == "drained" and facts["budget"] == limit
    told = facts["summary"]
    assert (told["input_tokens"], told["output_tokens"]) == (9 * most, 4 * most), "batches that broke are paid for too"
    notes = getattr(stop.value, "__notes__", [])  # which batches are whole by then is the threads' affair
    assert any("rows made before that are in" in note for note in notes) == (facts["summary"]["rows"] > 0)
    dataset = run(wire, folder=tmp_path / "out")
    assert dataset.summary.rows == 60 and len(wire.requests) == 60
    assert len({request.body["messages"][0]["content"] for request in wire.requests}) == 60


def test_whole_batches_behind_the_one_that_broke_are_paid_for_too(wire, tmp_path):
    class Overtaken(TextGeneration):
        def format_input(self, row):
            if row["instruction"] == "question 0":
                wait_until(lambda: len(wire.requests) == 10)
            return super().format_input(row)

    with Pipeline(name="budget") as pipeline:
        data = LoadDataFromDicts(data=[{"instruction": f"question {each}"} for each in range(11)], batch_size=1)
        data >> Overtaken(llm=OpenAILLM(model="m", base_url=wire.url, api_key="k"))
    with pytest.raises(BudgetExceeded):
        pipeline.run(output=tmp_path / "out", max_tokens_total=130)
    told = json.loads((tmp_path / "out.partial" / "run.json").read_text())["summary"]
    assert (told["input_tokens"], told["output_tokens"], told["rows"]) == (90, 40, 0)


@pytest.mark.slow
def test_what_is_in_flight_is_finished(wire, tmp_path):
    wire.answer = lambda request: wire.Reply(delay=0.2)
    with pytest.raises(BudgetExceeded):
        run(wire, max_cost=90)
    assert len(wire.requests) == 10
    run(wire)
    assert len(wire.requests) == 60  # all that was paid for is in the store


def test_answers_of_the_store_cost_nothing(wire):
    run(wire, rows=30)
    assert run(wire, rows=30, max_cost=0.01).summary.rows == 30 == len(wire.requests)


def test_a_limit_on_dollars_needs_prices(wire):
    llm = OpenAILLM(model="m", base_url=wire.url, api_key="k")
    with pytest.raises(ConfigurationError, match="`max_cost`.*`m`.*`text_generation`.*`price`.*`max_tokens_total`"):
        run(wire, llm=llm, max_cost=1)
    assert not wire.requests


def test_models_of_this_machine_cost_nothing(wire):
    assert run(wire, rows=3, llm=LlamaServerLLM(), max_cost=1).summary.cost == 0


def test_one_request_more_is_no_request_less():
    """Those that wait are admitted one by one as others end; the limit is never passed."""
    budget, seen, spent = Budget(max_tokens=100), [], 0

    async def one() -> None:
        nonlocal spent
        await budget.acquire()
        seen.append(budget._in_flight)
        await asyncio.sleep(0)
        spent += 5
        await budget.release([GenerateOutput(["x"], usage=Usage(2, 3))])

    async def all_of_them() -> list[BaseException | None]:
        return await asyncio.gather(*(one() for _ in range(50)), return_exceptions=True)

    outcomes = event_loop.run(all_of_them())
    assert spent == 100 and sum(isinstance(each, BudgetExceeded) for each in outcomes) == 30
    assert max(seen[:MAX_UNMEASURED_IN_FLIGHT]) == MAX_UNMEASURED_IN_FLIGHT


def test_whoever_gives_up_waiting_leaves_the_turn_to_the_next():
    async def check() -> None:
        budget = Budget(max_tokens=1000)
        for _ in range(MAX_UNMEASURED_IN_FLIGHT):
            await budget.acquire()
        waiting = [asyncio.create_task(budget.acquire()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await budget.release([GenerateOutput(["x"], usage=Usage(1, 1))])
        await asyncio.gather(*waiting[1:])
        assert waiting[0].cancelled() and budget._in_flight == MAX_UNMEASURED_IN_FLIGHT - 1 + 2

    event_loop.run(check())


def test_a_failure_that_nobody_was_billed_for_says_nothing_of_what_one_costs():
    """Else the first ones that fail would let all others go at once."""

    async def check() -> None:
        budget, failed = Budget(max_tokens=100), GenerateOutput.failed(Transient("away"), 1)
        for _ in range(3):
            await budget.acquire()
            await budget.release([failed])
        waiting = [asyncio.create_task(budget.acquire()) for _ in range(50)]
        await asyncio.sleep(0)
        assert budget._in_flight == MAX_UNMEASURED_IN_FLIGHT
        for _ in range(50):  # a run in which all fail comes to its end
            await budget.release([failed])
        assert await asyncio.gather(*waiting) == [1] * 50 and budget._in_flight == 0
        await budget.acquire()
        paid = GenerateOutput([None], usage=Usage(40, 0), error=Transient("cut"))  # a failure, too
        await budget.release([paid])
        assert await budget.acquire() == 1
        with pytest.raises(BudgetExceeded):  # a third one of 40 would pass the limit
            await asyncio.wait_for(asyncio.gather(budget.acquire(), budget.release([paid])), 10)

    event_loop.run(check())


def test_those_that_would_begin_together_begin_as_far_as_they_fit():
    async def check() -> None:
        budget = Budget(max_tokens=100)
        assert await budget.acquire(50) == MAX_UNMEASURED_IN_FLIGHT
        await budget.release(
            [GenerateOutput(["x"], usage=Usage(1, 4))] * MAX_UNMEASURED_IN_FLIGHT, MAX_UNMEASURED_IN_FLIGHT
        )
        assert await budget.acquire(50) == (100 - 5 * MAX_UNMEASURED_IN_FLIGHT) // 5
        assert await asyncio.wait_for(asyncio.gather(budget.acquire(50), budget.release([], 12)), 10) == [12, None]

    event_loop.run(check())


class Batch(LLM):
    """An engine of a user's own, at a dollar a chat, that remembers how many it was asked at once."""

    sizes: ClassVar[list[int]] = []

    @property
    def model_name(self) -> str:
        return "batch"

    def cost(self, usage: Usage) -> float:
        return usage.input_tokens

    def generate(self, inputs: list[ChatType], num_generations: int = 1) -> list[GenerateOutput]:
        self.sizes.append(len(inputs))
        return [GenerateOutput(["x"] * num_generations, usage=Usage(1, 0)) for _ in inputs]


def chats(count: int) -> list[ChatType]:
    return [[{"role": "user", "content": f"question {each}"}] for each in range(count)]


def test_an_engine_that_takes_a_batch_stops_at_the_limit_too(wire, tmp_path):
    Batch.sizes.clear()
    with pytest.raises(BudgetExceeded, match="`max_cost=25`"):
        run(wire, rows=200, llm=Batch(), folder=tmp_path / "out", max_cost=25)
    assert sum(Batch.sizes) == 25
    assert run(wire, rows=200, llm=Batch(), folder=tmp_path / "out").summary.rows == 200
    assert sum(Batch.sizes) == 200  # what was paid for is in the store


def test_an_engine_that_takes_a_batch_is_asked_as_much_as_fits_and_tells_what_was_spent():
    Batch.sizes.clear()
    with pytest.raises(BudgetExceeded) as caught, Budget(max_cost=30).activate():
        Batch().generate_outputs(chats(100))
    assert Batch.sizes == [MAX_UNMEASURED_IN_FLIGHT, 30 - MAX_UNMEASURED_IN_FLIGHT]
    assert len(caught.value.paid_outputs) == sum(each.cost for each in caught.value.paid_outputs) == 30


def test_without_a_limit_it_is_asked_all_at_once_and_its_cost_is_known():
    Batch.sizes.clear()
    assert [output.cost for output in Batch().generate_outputs(chats(20))] == [1] * 20
    assert Batch.sizes == [20]


class Sampler(AsyncLLM):
    """A model of a user's own, whose `cost` is known."""

    @property
    def model_name(self) -> str:
        return "sampler"

    def cost(self, usage: Usage) -> float:
        return 1.0

    async def agenerate(self, input: ChatType, num_generations: int = 1) -> GenerateOutput:
        return GenerateOutput(["x"] * num_generations)


def test_a_model_of_ones_own_is_counted(wire):
    with pytest.raises(BudgetExceeded):
        run(wire, rows=60, llm=Sampler(), max_cost=25)


def test_what_a_run_had_spent_when_it_stopped_is_told():
    with pytest.raises(BudgetExceeded) as caught, Budget(max_cost=20).activate():
        Sampler().generate_outputs(chats(60))
    assert len(caught.value.paid_outputs) == 20 and all(each.cost == 1.0 for each in caught.value.paid_outputs)
