"""The whole request engine on a clock that jumps: everything that happens is drawn from a seed, crashes included.

`run(seed)` asks a provider in bad weather for some chats, through the limiter, retries, re-asks, budget and store. At
random moments the process dies, and another one goes on with what was durable by then. Real are the code of the engine,
its limiter, its budget and its keys; the clock, the provider and the file of the store are simulated.
"""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar
from unittest.mock import patch

from llms import AsyncLLM, BudgetExceeded, Fatal, LLMError, Rejected, Throttled, Transient, store
from llms.base import StructuredLLM
from llms.engine import batch, cache, schema_retry
from llms.engine.request import Request, limiter_of
from llms.limits.budget import Budget
from llms.limits.limiter import Limiter
from llms.limits.usage import UsageCollector
from llms.store import StoredAnswer, StoreError
from llms.typing import ChatType, GenerateOutput, ModelUsage, Usage
from tests.support.virtual_time import JumpingLoop

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0}}, "required": ["n"]}

GOOD, BAD, CUT = '{"n": 1}', '{"n": -1}', '{"n": 1'


class Crash(BaseException):
    """Ends a process, as `kill -9` does."""


class CrashingLoop(JumpingLoop):
    """Crashes before a step: between any two awaits that let others run."""

    def __init__(self, crash_at: int | None) -> None:
        super().__init__()
        self.steps, self.crash_at = 0, crash_at

    def _run_once(self) -> None:
        self.steps += 1
        if self.steps == self.crash_at:
            raise Crash
        super()._run_once()  # type: ignore[misc]


@dataclass
class MemoryStore:
    """The file of the store: what is committed survives a crash, what is on its way does not."""

    draw: random.Random
    answers: dict[str, StoredAnswer] = field(default_factory=dict)
    spending: list[ModelUsage] = field(default_factory=list)
    acknowledged: dict[str, StoredAnswer] = field(default_factory=dict)
    queue: list[tuple[Mapping[str, StoredAnswer], asyncio.Future[None] | None, ModelUsage | None]] = field(
        default_factory=list
    )
    is_full: Callable[[], bool] = lambda: False
    is_dead: bool = False
    refused: int = 0

    def get(self, keys: Iterable[str]) -> dict[str, StoredAnswer]:
        return {key: self.answers[key] for key in keys if key in self.answers}

    async def put(self, answers: Mapping[str, StoredAnswer]) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        kept = {key: each for key, each in answers.items() if each.finish_reason != "error"}
        self._enqueue(kept, done, None)
        await done
        self.acknowledged |= kept

    def spend(self, used: ModelUsage) -> None:
        self._enqueue({}, None, used)

    def _enqueue(self, *write: Any) -> None:
        if not self.queue:
            asyncio.get_running_loop().call_later(self.draw.choice([0.0, 0.005, 0.5]), self._commit)
        self.queue.append(write)  # type: ignore[arg-type]

    def _commit(self) -> None:
        writes, self.queue = self.queue, []
        failed = self.is_full()
        for answers, done, used in writes:
            if not failed and not self.is_dead:
                self.answers |= answers
                self.spending += [used] if used else []
            if done and not done.done():
                done.set_exception(StoreError("no room")) if failed else done.set_result(None)
            self.refused += failed and bool(answers)


@dataclass
class Provider:
    """Generates, refuses, fails, resets, hangs and miscounts, as drawn."""

    draw: random.Random
    weather: float
    growth: float
    is_structured: bool
    in_flight: int = 0
    generated: int = 0
    delivered: Counter[str] = field(default_factory=Counter)  # generations by chat
    usage: Usage = field(default_factory=Usage)
    dearest: int = 0
    most_in_flight: int = 0
    fatal_at: int = 0

    async def answer(self, chat: ChatType, num_generations: int) -> GenerateOutput:
        draw = self.draw
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(draw.choice([0.0, 0.1, draw.expovariate(1), draw.lognormvariate(0, 1)]))
            if draw.random() < self.weather:
                await self._misbehave()
            return self._generate(chat, num_generations)
        finally:
            self.in_flight -= 1

    async def _misbehave(self) -> None:
        match self.draw.choice(["429", "429 later", "500", "reset", "hang", "unsent", "400", "odd"]):
            case "429":
                raise Throttled("slow down", status=429)
            case "429 later":
                raise Throttled("slow down", status=429, retry_after=self.draw.uniform(0, 30))
            case "500":
                raise Transient("broken", status=500)
            case "reset":
                raise Transient("connection reset")
            case "unsent":
                raise Transient("connection refused", unsent=True)
            case "400" if self.draw.random() < 0.2:
                raise Rejected("no such thing", status=400)
            case "odd" if self.draw.random() < 0.2:
                raise ValueError("not what was expected")
            case "hang":
                await asyncio.sleep(10_000)

    def _generate(self, chat: ChatType, num_generations: int) -> GenerateOutput:
        draw = self.draw
        self.generated += 1
        if self.generated == self.fatal_at:
            raise Fatal("no credit", status=402)
        texts = [draw.choice([GOOD, GOOD, BAD]) if self.is_structured else "text" for _ in range(num_generations)]
        is_cut = self.is_structured and draw.random() < 0.03
        tokens = int(10 * (1 + self.growth * self.generated) * draw.lognormvariate(0, 0.5)) + 1
        written: Any = draw.choice([tokens, tokens, tokens, float(tokens), f"{tokens}"])
        usage = draw.choice([Usage(5, written), Usage(5, written), Usage(-1, written)])
        output = GenerateOutput(
            [CUT] * num_generations if is_cut else texts,
            finish_reasons=["length" if is_cut else "stop"] * num_generations,
            usage=usage,
        )
        counted = usage.normalized()
        self.usage = self.usage + counted
        self.dearest = max(self.dearest, counted.input_tokens + counted.output_tokens)
        self.delivered[json.dumps(chat)] += num_generations
        return output


class SimulatedLLM(AsyncLLM, StructuredLLM):
    """Asks the provider of the simulation."""

    provider: ClassVar[Any] = None

    @property
    def model_name(self) -> str:
        return "simulated"

    async def agenerate(
        self, input: ChatType, num_generations: int = 1, max_new_tokens: int | None = None
    ) -> GenerateOutput:
        return await SimulatedLLM.provider.answer(input, num_generations)


class SpendingCollector(UsageCollector):
    """Collects usage, and has the store keep it, as a run does."""

    def __init__(self, memory: MemoryStore) -> None:
        super().__init__("step")
        self._memory = memory

    def add(self, step: str, model: str, used: ModelUsage) -> None:
        super().add(step, model, used)
        if used.requests:
            self._memory.spend(used)


@dataclass
class Simulation:
    """What came of a seed: processes that ran and crashed, rows at the end, and whether the budget was spent."""

    seed: int
    processes: int = 0
    crashes: int = 0
    answered: int = 0
    failed: int = 0
    drained: int = 0


async def _immediately(function: Callable[..., Any], *args: Any) -> Any:
    """Stands for `asyncio.to_thread`: a thread would wait for real time."""
    await asyncio.sleep(0)
    return function(*args)


class _Asyncio:
    """The module, but for its threads."""

    to_thread = staticmethod(_immediately)

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)


def run(seed: int) -> Simulation:
    """Simulate processes that ask for the same chats until one ends by itself, and check what must hold.

    Raises:
        AssertionError: If something does not; it names the seed.
    """
    draw = random.Random(seed)
    random.seed(seed)  # the engine draws its pauses
    memory = MemoryStore(draw)
    result = Simulation(seed)
    structured = draw.random() < 0.5
    llm = SimulatedLLM(
        max_concurrency=draw.choice([1, 3, 20]),
        timeout=draw.choice([None, 5.0, 30.0]) or 60.0,
        deadline=draw.choice([None, None, 100.0]),
        structured_output={"format": "json", "schema": SCHEMA} if structured else None,
    )
    provider = Provider(draw, draw.choice([0.0, 0.1, 0.4]), draw.choice([0, 0, 0.5, 3]), structured)
    provider.fatal_at = draw.choice([0, 0, 0, draw.randint(1, 40)])
    SimulatedLLM.provider = provider
    texts = [f"question {draw.randint(0, 30)}" for _ in range(draw.randint(1, 25))]
    generations, size = draw.choice([1, 1, 3]), draw.choice([1, 4, 25])
    chats: list[ChatType] = [[{"role": "user", "content": text}] for text in texts]
    batches = [chats[start : start + size] for start in range(0, len(chats), size)]
    limit = draw.choice([None, None, draw.randint(20, 2000)])
    full_at = draw.choice([0, 0, 0, 0, draw.randint(1, 10)])
    commits = 0

    def is_full() -> bool:
        nonlocal commits
        commits += 1
        return commits == full_at

    memory.is_full = is_full
    crashes = draw.randint(0, 3)
    threads = _Asyncio()
    stored = patch.multiple(store, get=memory.get, put=memory.put, prepare=lambda: None)
    inline = [patch.object(module, "asyncio", threads) for module in (batch, cache, schema_retry)]
    with stored, inline[0], inline[1], inline[2], patch.object(batch, "Claims", _NoClaims):
        while True:
            result.processes += 1
            crash_at = draw.randint(1, 400) if result.crashes < crashes else None
            outcome = _run_process(seed, llm, batches, generations, limit, memory, provider, crash_at)
            if outcome is None:
                result.crashes += 1
                continue
            if isinstance(outcome, Fatal) and not isinstance(outcome, BudgetExceeded):
                continue  # the credit is there again, and so is room on the disk: the same command goes on
            break
    if isinstance(outcome, BudgetExceeded):
        result.drained = 1
        return result
    for output in outcome:
        assert len(output) == generations and bool(output.error) or None not in output, f"seed {seed}: a row is lost"
        result.failed += bool(output.error)
        result.answered += not output.error
    return result


def _run_process(
    seed: int,
    llm: SimulatedLLM,
    batches: list[list[ChatType]],
    generations: int,
    limit: int | None,
    memory: MemoryStore,
    provider: Provider,
    crash_at: int | None,
) -> list[GenerateOutput] | LLMError | None:
    """Run one process; return its outputs, or the error that ended it; `None` if it crashed."""
    loop = CrashingLoop(crash_at)
    asyncio.set_event_loop(loop)
    usage, budget = SpendingCollector(memory), Budget(max_tokens=limit)
    memory.is_dead, memory.queue, memory.refused, provider.most_in_flight = False, [], 0, 0
    before, delivered_before = provider.usage, provider.delivered.copy()
    keys = {store.key_of(llm, chat, {}, number) for part in batches for chat in part for number in range(generations)}
    kept_before = {key for key in keys if key in memory.answers}

    limiters: list[Limiter] = []

    async def main() -> list[GenerateOutput] | LLMError:
        async def one(part: list[ChatType]) -> list[GenerateOutput]:
            try:
                return await batch.generate_async(llm, [Request(llm, chat, generations, {}) for chat in part], True)
            except BudgetExceeded:
                raise
            except Fatal:
                for each in parts:  # as `AsyncLLM` does
                    each.cancel()
                raise

        limiters.append(limiter := limiter_of(llm))
        with budget.activate(), usage.activate():
            parts = [asyncio.create_task(one(part)) for part in batches]
            done = await asyncio.gather(*parts, return_exceptions=True)
        await asyncio.sleep(1)  # what ends with a fatal error gives its place back a little later
        assert limiter.in_flight == limiter.waiting == 0, f"seed {seed}: somebody waits for ever: {limiter.in_flight}"
        assert budget._in_flight == 0, f"seed {seed}: a part of the budget is set aside for ever"
        errors = [each for each in done if isinstance(each, Exception)]
        for error in errors:
            if not isinstance(error, LLMError):
                raise error
        fatal = [each for each in errors if not isinstance(each, BudgetExceeded)]
        return fatal[0] if fatal else errors[0] if errors else [each for part in done for each in part]

    task = loop.create_task(main())
    try:
        outcome = loop.run_until_complete(task)
        loop.run_until_complete(asyncio.sleep(1))  # what nobody waited for is committed
    except Crash:
        outcome = None
    totals = usage.by_model.get("simulated", ModelUsage())
    in_flight = sum(each.in_flight for each in limiters) + memory.refused
    _check_spending(seed, totals, provider.usage, before, budget, limit, provider)
    for key, answer in memory.acknowledged.items():
        assert key in memory.answers, f"seed {seed}: an answer is lost that was acknowledged: {answer.text}"
    again = provider.delivered - delivered_before
    for chat, count in again.items():
        done = json.loads(chat)
        needed = [store.key_of(llm, done, {}, number) for number in range(generations)]
        kept = [key for key in needed if key in kept_before and not memory.answers[key].schema_error]
        assert count <= generations - len(kept) or len(done) > 1, f"seed {seed}: paid twice: {done}"
    stored = sum(key in memory.answers for key in keys - kept_before)
    first = sum(count for chat, count in again.items() if len(json.loads(chat)) == 1)
    assert first - stored <= in_flight * generations, f"seed {seed}: {first - stored} answers are lost in a crash"
    _kill(loop, memory)
    return outcome


def _check_spending(
    seed: int, totals: ModelUsage, after: Usage, before: Usage, budget: Budget, limit: int | None, provider: Provider
) -> None:
    delivered = (after.input_tokens - before.input_tokens, after.output_tokens - before.output_tokens)
    counted = (totals.usage.input_tokens, totals.usage.output_tokens)
    assert counted == delivered, f"seed {seed}: {counted} tokens are counted, {delivered} were delivered"
    if limit is not None:
        assert budget.spent.tokens >= sum(delivered), f"seed {seed}: the budget has missed an answer"
        most = provider.most_in_flight * max(provider.dearest, 1) + totals.unanswered * 100
        assert budget.spent.tokens <= limit + most, f"seed {seed}: {budget.spent.tokens} of {limit} are spent"


def _kill(loop: CrashingLoop, memory: MemoryStore) -> None:
    """End what is left of a process, without effects."""
    memory.is_dead, loop.crash_at = True, None
    left = asyncio.all_tasks(loop)
    for each in left:
        each.cancel()
    with suppress(BaseException):
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    asyncio.set_event_loop(None)
    loop.close()


class _NoClaims:
    """There is one process at a time."""

    def __init__(self, keys: Iterable[str]) -> None:
        list(keys)

    async def __aenter__(self) -> "_NoClaims":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def wait(self, key: str) -> bool:
        return False


if __name__ == "__main__":
    count, started = int(sys.argv[1]), time.process_time()
    total = Counter[str]()
    for number in range(count):
        total.update({name: value for name, value in asdict(run(number)).items() if name != "seed"})
    minutes = (time.process_time() - started) / 60
    print(f"{count:,} seeds, {count / minutes:,.0f} per minute of CPU: {dict(total)}")
