"""One request's life, on the shared loop: wait for a place, call, classify, try again or record."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from llms import loop
from llms.errors import Fatal, LLMError, Rejected, Throttled, Transient
from llms.limiter import Limiter, limiter_of
from llms.recall import Recall
from llms.typing import ChatType, GenerateOutput

if TYPE_CHECKING:
    from llms.base import LLM, AsyncLLM

ATTEMPTS = 5
"""How often a request is sent when the weather is bad."""

REFUSALS = 50
"""How often a provider may ask one request for patience; the limiter waits in between."""

PATIENCE = 600.0
"""Seconds a request waits in all between attempts in bad weather."""


async def answer_all(
    llm: "AsyncLLM", chats: list[ChatType], num_generations: int, options: dict[str, Any], look_up: bool
) -> list[GenerateOutput]:
    """Answer every chat concurrently and in order; a fatal error stops them all.

    Args:
        look_up: Take from the store what was answered before; a chat that occurs twice is then asked once.
    """
    recall = await asyncio.to_thread(Recall, llm, chats, num_generations, options, look_up)
    limiter = _limiter(llm)

    async def one(at: int) -> GenerateOutput:
        if missing := recall.missing(at):
            return await answer(llm, limiter, chats[at], len(missing), options, partial(recall.completed, at))
        return await recall.completed(at, GenerateOutput())

    requests: dict[object, asyncio.Task[GenerateOutput]] = {}
    try:
        async with asyncio.TaskGroup() as group:
            for at in range(len(chats)):
                if (twin := recall.twin(at)) not in requests:
                    requests[twin] = group.create_task(one(at))
    except* Fatal as fatal:
        raise fatal.exceptions[0] from None
    return [requests[recall.twin(at)].result() for at in range(len(chats))]


def answer_batch(
    llm: "LLM", chats: list[ChatType], num_generations: int, options: dict[str, Any]
) -> list[GenerateOutput]:
    """Have an engine that takes a whole batch answer what the store does not, in the caller's thread."""
    recall = Recall(llm, chats, num_generations, options, llm.use_cache)
    asked: dict[int, list[int]] = {}  # how many generations: of which chats
    for at in range(len(chats)):
        asked.setdefault(len(recall.missing(at)), []).append(at)
    new = dict.fromkeys(asked.pop(0, []), GenerateOutput())
    for count, group in asked.items():
        new |= zip(group, llm.generate_isolated([chats[at] for at in group], count, options), strict=True)

    async def completed() -> list[GenerateOutput]:
        return await asyncio.gather(*(recall.completed(at, new[at]) for at in range(len(chats))))

    return loop.run(completed())


async def answer(
    llm: "AsyncLLM",
    limiter: Limiter,
    chat: ChatType,
    num_generations: int,
    options: dict[str, Any],
    keep: Callable[[GenerateOutput], Awaitable[GenerateOutput]],
) -> GenerateOutput:
    """Answer one chat, however many attempts it takes; a failure is an output that says why.

    Args:
        keep: Makes an answer durable. It is awaited before another request takes this one's place, so that no more
            than the requests in flight are ever without their answer on disk.

    Raises:
        Fatal: If no request can work.
    """
    attempts, refusals, storms, waited = 0, 0, 0, 0.0
    while True:
        attempts += 1
        async with limiter.place() as place:
            try:
                output = await _asked(llm, chat, num_generations, options)
            except Fatal:
                raise
            except Exception as error:
                failure = error if isinstance(error, LLMError) else _classified(llm, error)
            else:
                place.succeeded(tokens=output.usage.input_tokens + output.usage.output_tokens, headers=output.headers)
                output.attempts, output.headers = attempts, None
                return await keep(output)
            if isinstance(failure, Throttled):
                place.throttled(failure.retry_after, failure.headers)
            elif isinstance(failure, Transient):
                place.failed()
        if isinstance(failure, Throttled):  # the limiter makes it wait, and all others; it costs no attempt
            refusals += 1
            again, pause = refusals < REFUSALS, 0.0
        else:
            storms += isinstance(failure, Transient)
            pause = failure.retry_after or random.uniform(0.5, 1.0) * min(30.0, 2.0**storms / 4)
            again = isinstance(failure, Transient) and storms < ATTEMPTS and waited + pause <= PATIENCE
        if not again:
            failure.attempts = attempts
            return GenerateOutput.failed(failure, num_generations)
        waited += pause
        await asyncio.sleep(pause)


async def _asked(llm: "AsyncLLM", chat: ChatType, num_generations: int, options: dict[str, Any]) -> GenerateOutput:
    started = time.perf_counter()
    output = GenerateOutput.of(await llm.agenerate(chat, num_generations, **options))
    if len(output) != num_generations:
        raise Rejected(f"{len(output)} generations came where {num_generations} were asked for.")
    output.cost = llm.cost(output.usage)
    output.seconds = output.seconds or time.perf_counter() - started
    return output


async def limits(llm: "AsyncLLM") -> dict[str, Any]:
    """What the limiter of this model has seen and done."""
    return _limiter(llm).summary()


def _limiter(llm: "AsyncLLM") -> Limiter:
    return limiter_of(llm.account(), most=llm.max_concurrency, rpm=llm.requests_per_minute, tpm=llm.tokens_per_minute)


def _classified(llm: "AsyncLLM", error: Exception) -> LLMError:
    """An exception nobody mapped: weather when it looks like weather, this request's own fault otherwise."""
    message = f"`{type(llm).__name__}`: {type(error).__name__}: {error}"
    return Transient(message) if isinstance(error, OSError | TimeoutError) else Rejected(message)
