"""What a run may spend: it stops there, loses nothing, and goes on with more."""

import asyncio
import json
import math
import random
from collections import Counter
from typing import ClassVar

import pytest

from flows import Pipeline
from flows.errors import ConfigurationError
from llms import LLM, AsyncLLM, BudgetExceeded, LlamaServerLLM, OpenAILLM, Price
from llms.clients import event_loop
from llms.limits.budget import Budget, Reservation
from llms.limits.cost import MAX_UNMEASURED_IN_FLIGHT, Amount, Estimate
from llms.limits.usage import UsageCollector
from llms.typing import ChatType, GenerateOutput, ModelUsage, Usage
from tasks import LoadDataFromDicts, TextGeneration
from tests.support.virtual_time import simulate
from tests.support.waiting import wait_until

needs_server = pytest.mark.usefixtures("prefect_server")
PRICE = {"input": 1_000_000, "output": 0}  # of the wire: nine tokens of input a request, so nine dollars

UNKNOWN = Estimate()


def run(wire, rows=60, llm=None, folder=None, **limits):
    llm = llm or OpenAILLM(model="m", base_url=wire.url, api_key="k", price=Price(**PRICE))
    with Pipeline(name="budget") as pipeline:
        data = LoadDataFromDicts(data=[{"instruction": f"question {each}"} for each in range(rows)])
        data >> TextGeneration(llm=llm)
    return pipeline.run(output=folder, **limits)


@needs_server
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


@needs_server
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


@needs_server
@pytest.mark.slow
def test_what_is_in_flight_is_finished(wire, tmp_path):
    wire.answer = lambda request: wire.Reply(delay=0.2)
    with pytest.raises(BudgetExceeded):
        run(wire, max_cost=90)
    assert len(wire.requests) == 10
    run(wire)
    assert len(wire.requests) == 60  # all that was paid for is in the store


@needs_server
def test_answers_of_the_store_cost_nothing(wire):
    run(wire, rows=30)
    assert run(wire, rows=30, max_cost=0.01).summary.rows == 30 == len(wire.requests)


@needs_server
def test_a_limit_on_dollars_needs_prices(wire):
    llm = OpenAILLM(model="m", base_url=wire.url, api_key="k")
    with pytest.raises(ConfigurationError, match="`max_cost`.*`m`.*`text_generation`.*`price`.*`max_tokens_total`"):
        run(wire, llm=llm, max_cost=1)
    assert not wire.requests


@needs_server
def test_models_of_this_machine_cost_nothing(wire):
    assert run(wire, rows=3, llm=LlamaServerLLM(), max_cost=1).summary.cost == 0


async def reserve(budget: Budget, count: int = 1, estimate: Estimate = UNKNOWN, step: str = "s") -> list[Reservation]:
    return await budget.reserve(step, "m", [estimate] * count)


def spend(*reservations: Reservation, tokens: float, cost: float = 0.0) -> None:
    for reservation in reservations:
        reservation.charge(Amount(cost, tokens))
        reservation.release()


def test_one_request_more_is_no_request_less():
    """Those that wait are admitted one by one as others end; the limit is never passed."""
    budget, seen, spent = Budget(max_tokens=100), [], 0

    async def one() -> None:
        nonlocal spent
        (reservation,) = await reserve(budget)
        seen.append(budget._in_flight)
        await asyncio.sleep(0)
        spent += 5
        spend(reservation, tokens=5)

    async def all_of_them() -> list[BaseException | None]:
        return await asyncio.gather(*(one() for _ in range(50)), return_exceptions=True)

    outcomes = event_loop.run(all_of_them())
    assert spent == 100 and sum(isinstance(each, BudgetExceeded) for each in outcomes) == 30
    assert max(seen[:MAX_UNMEASURED_IN_FLIGHT]) == MAX_UNMEASURED_IN_FLIGHT


def test_whoever_gives_up_waiting_leaves_the_turn_to_the_next():
    async def check() -> None:
        budget = Budget(max_tokens=1000)
        first = await reserve(budget, MAX_UNMEASURED_IN_FLIGHT)
        waiting = [asyncio.create_task(reserve(budget)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        spend(first[0], tokens=2)
        spend(first[1], tokens=2)
        await asyncio.gather(*waiting[1:])
        assert waiting[0].cancelled() and budget._in_flight == MAX_UNMEASURED_IN_FLIGHT

    event_loop.run(check())


def test_a_failure_that_nobody_was_billed_for_says_nothing_of_what_one_costs():
    """Else the first ones that fail would let all others go at once."""

    async def check() -> None:
        budget = Budget(max_tokens=100)
        for _ in range(3):
            spend(*await reserve(budget), tokens=0)
        waiting = [asyncio.create_task(reserve(budget)) for _ in range(50)]
        for ended in range(50):  # a run in which all fail comes to its end
            await asyncio.sleep(0)
            assert budget._in_flight == min(MAX_UNMEASURED_IN_FLIGHT, 50 - ended)
            spend(*await waiting[ended], tokens=0)
        paid, other = await reserve(budget, 2)
        spend(paid, tokens=40)
        with pytest.raises(BudgetExceeded, match="80 tokens spent.*of `s` to `m`"):  # a third of 40 would pass it
            third = asyncio.create_task(reserve(budget, estimate=Estimate(Amount(tokens=0))))
            await asyncio.sleep(0)
            spend(other, tokens=40)
            await asyncio.wait_for(third, 10)

    event_loop.run(check())


def test_those_that_would_begin_together_begin_as_far_as_they_fit():
    async def check() -> None:
        budget = Budget(max_tokens=100)
        first = await reserve(budget, 50)
        assert len(first) == MAX_UNMEASURED_IN_FLIGHT
        spend(*first, tokens=5)
        second = await reserve(budget, 50)
        assert len(second) == (100 - 5 * MAX_UNMEASURED_IN_FLIGHT) // 5
        waiting = asyncio.create_task(reserve(budget, 50))
        await asyncio.sleep(0)
        for each in second:
            each.release()
        assert len(await asyncio.wait_for(waiting, 10)) == 12

    event_loop.run(check())


def test_a_step_that_has_asked_nothing_yet_begins_with_a_few_whatever_others_cost():
    async def check() -> None:
        budget = Budget(max_tokens=100_000)
        for _ in range(20):
            spend(*await reserve(budget, 50, step="cheap"), tokens=10)
        assert len(await reserve(budget, 500, step="dear")) == MAX_UNMEASURED_IN_FLIGHT

    event_loop.run(check())


def test_the_longest_answer_that_is_allowed_is_set_aside_until_one_is_measured():
    async def check() -> None:
        budget, estimate = Budget(max_tokens=1000), Estimate(Amount(tokens=10), Amount(tokens=410))
        first = await reserve(budget, 8, estimate)
        assert len(first) == 2
        spend(*first, tokens=20)
        assert len(await reserve(budget, 50, estimate)) == MAX_UNMEASURED_IN_FLIGHT

    event_loop.run(check())


def test_a_prompt_that_is_longer_than_usual_is_expected_to_cost_more():
    async def check() -> None:
        budget = Budget(max_tokens=1000)
        spend(*await reserve(budget, 5, Estimate(Amount(tokens=10), Amount(tokens=10))), tokens=20)
        with pytest.raises(BudgetExceeded):
            await reserve(budget, 1, Estimate(Amount(tokens=900), Amount(tokens=900)))
        spend(*await reserve(budget, 1, Estimate(Amount(tokens=880), Amount(tokens=880))), tokens=890)

    event_loop.run(check())


def test_once_an_answer_costs_far_more_than_expected_the_next_ones_are_expected_to_as_well():
    async def check() -> None:
        budget = Budget(max_tokens=10_000)
        for _ in range(30):
            spend(*await reserve(budget, 4), tokens=10)
        spend(*await reserve(budget), tokens=1000)
        assert len(await reserve(budget, 500)) == (10_000 - 30 * 40 - 1000) // 1000

    event_loop.run(check())


def test_rows_that_have_begun_are_finished_before_others_begin():
    """The last step's requests go first when the budget is short."""

    async def check() -> None:
        budget = Budget(max_tokens=100)
        (held,) = await reserve(budget, step="first")
        spend(*await reserve(budget, step="first"), tokens=30)
        spend(*await reserve(budget, step="last"), tokens=30)
        waiting = {name: asyncio.create_task(reserve(budget, step=name)) for name in ("first", "last")}
        await asyncio.sleep(0)
        spend(held, tokens=0)
        done, _ = await asyncio.wait(waiting.values(), return_when=asyncio.FIRST_COMPLETED)
        assert done == {waiting["last"]}
        spend(*waiting["last"].result(), tokens=30)
        with pytest.raises(BudgetExceeded):
            await waiting["first"]

    event_loop.run(check())


@pytest.mark.parametrize("odd", [-1000.0, math.nan, math.inf, -math.inf])
def test_an_odd_figure_never_raises_what_is_left(odd):
    async def check() -> None:
        budget = Budget(max_cost=1, max_tokens=100)
        for _ in range(5):
            spend(*await reserve(budget), tokens=odd, cost=odd)
        assert budget.spent == (0, 0)
        spend(*await reserve(budget), tokens=10, cost=0.1)
        assert budget.spent == (0.1, 10)

    event_loop.run(check())


def test_what_earlier_attempts_have_spent_counts():
    async def check() -> None:
        budget = Budget(max_cost=1.0, earlier={("s", "m"): ModelUsage(7, cost=0.7)}, attempts=2)
        spend(*await reserve(budget, 50), tokens=1, cost=0.1)
        with pytest.raises(BudgetExceeded, match=r"`max_cost=1` \(\$1 spent in two attempts;"):
            await reserve(budget)

    event_loop.run(check())


def run_schedule(seed: int) -> tuple[float, float, int, float]:
    """Spend a budget at random; return the limit, what was spent, the most in flight, and the dearest answer."""
    draw = random.Random(seed)
    limit = 10 ** draw.uniform(2, 6)
    concurrency, budget = draw.choice([1, 8, 50, 500]), Budget(max_tokens=int(limit))
    steps = [
        (draw.choice(["same", "normal", "growing", "jump"]), limit * 10 ** draw.uniform(-4, -1))
        for _ in range(draw.randint(1, 4))
    ]
    slots, most, dearest, count = asyncio.Semaphore(concurrency), 0, 0.0, Counter[int]()

    def cost(step: int) -> float:
        kind, mean = steps[step]
        count[step] += 1
        match kind:
            case "normal":
                return mean * draw.lognormvariate(-0.5, 1)
            case "growing":
                return mean * (1 + count[step] / 20)
            case "jump":
                return mean * (30 if count[step] > 60 else 1)
            case _:
                return mean

    async def one(step: int) -> None:
        nonlocal most, dearest
        try:
            (reservation,) = await budget.reserve(f"{step}", "m", [Estimate()])
        except BudgetExceeded:
            return
        while True:
            async with slots:
                if reservation.confirm():
                    most = max(most, sum(each.sent.requests for each in budget._requests.values()))
                    spent = cost(step)
                    await asyncio.sleep(draw.uniform(0.1, 2))
                    if draw.random() < 0.05:  # cancelled
                        reservation.charge(Amount(tokens=draw.uniform(-10, 0)), answered=False)
                    else:
                        dearest = max(dearest, spent)
                        reservation.charge(Amount(tokens=spent))
                    return reservation.release()
            try:
                await reservation.renew()
            except BudgetExceeded:
                return

    async def all_of_them() -> None:
        rows = draw.randint(50, 2000)
        await asyncio.gather(*(one(step) for _ in range(rows) for step in range(len(steps))))

    simulate(all_of_them())
    assert budget._in_flight == 0 and not any(each.waiters for each in budget._requests.values())
    return budget.limits["max_tokens_total"] or 0, budget.spent.tokens, most, dearest


@pytest.mark.parametrize("seed", range(20))
def test_a_limit_is_exceeded_by_those_in_flight_at_the_dearest_so_far_at_most(seed):
    limit, spent, most, dearest = run_schedule(seed)
    assert spent <= limit + most * dearest


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


@needs_server
def test_an_engine_that_takes_a_batch_stops_at_the_limit_too(wire, tmp_path):
    Batch.sizes.clear()
    with pytest.raises(BudgetExceeded, match="`max_cost=25`"):
        run(wire, rows=200, llm=Batch(), folder=tmp_path / "out", max_cost=25)
    assert sum(Batch.sizes) == 25
    assert run(wire, rows=200, llm=Batch(), folder=tmp_path / "out").summary.rows == 200
    assert sum(Batch.sizes) == 200  # what was paid for is in the store


def test_an_engine_that_takes_a_batch_is_asked_as_much_as_fits_and_tells_what_was_spent():
    Batch.sizes.clear()
    with pytest.raises(BudgetExceeded), Budget(max_cost=30).activate(), UsageCollector().activate() as usage:
        Batch().generate_outputs(chats(100))
    assert Batch.sizes == [MAX_UNMEASURED_IN_FLIGHT, 30 - MAX_UNMEASURED_IN_FLIGHT]
    assert usage.by_model["batch"].requests == usage.by_model["batch"].cost == 30


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


@needs_server
def test_a_model_of_ones_own_is_counted(wire):
    with pytest.raises(BudgetExceeded):
        run(wire, rows=60, llm=Sampler(), max_cost=25)


def test_what_a_run_had_spent_when_it_stopped_is_told():
    with pytest.raises(BudgetExceeded), Budget(max_cost=20).activate(), UsageCollector().activate() as usage:
        Sampler().generate_outputs(chats(60))
    assert usage.by_model["sampler"].requests == usage.by_model["sampler"].cost == 20
