"""One request's life, on the shared loop: wait for a place, call, classify, try again or record."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from llms import budget, secrets
from llms.errors import Drained, Fatal, Rejected, Throttled, Transient
from llms.limiter import Limiter, limiter_of
from llms.replies import from_sdk
from llms.shared_limit import shared
from llms.typing import ChatType, GenerateOutput

if TYPE_CHECKING:
    from llms.base import AsyncLLM

ATTEMPTS = 5
"""How often a request is sent when the weather is bad."""

REFUSALS = 50
"""How often a provider may ask one request for patience; the limiter waits in between."""

PATIENCE = 600.0
"""Seconds a request waits in all between attempts in bad weather."""

Keep = Callable[[GenerateOutput], Awaitable[None]]
"""Makes an answer durable."""


async def answer(
    llm: "AsyncLLM", chat: ChatType, num_generations: int, options: dict[str, Any], keep: Keep
) -> GenerateOutput:
    """Answer one chat, however many attempts it takes; a failure is an output that says why.

    Args:
        keep: It is awaited before another request takes this one's place, so that no more than the requests in flight
            are ever without their answer on disk.

    Raises:
        Fatal: If no request can work.
    """
    limits = budget.enforced()
    if not limits:
        return await _answer(llm, chat, num_generations, options, keep)
    try:
        await limits.admit()
    except Drained as drained:  # an output, for now: what is in flight beside it is to finish
        return GenerateOutput.failed(drained, num_generations)
    outputs: list[GenerateOutput] = []
    try:
        outputs.append(await _answer(llm, chat, num_generations, options, keep))
        return outputs[0]
    finally:
        await limits.leave(outputs)


async def _answer(
    llm: "AsyncLLM", chat: ChatType, num_generations: int, options: dict[str, Any], keep: Keep
) -> GenerateOutput:
    admission = limiter(llm)
    attempts, refusals, storms, waited = 0, 0, 0, 0.0
    end: float | None = None
    while True:
        attempts += 1
        async with admission.place() as place, shared(llm.shared_limit) if llm.shared_limit else nullcontext():
            end = end or (llm.deadline and time.monotonic() + llm.deadline)
            try:
                output = await _asked(llm, chat, num_generations, options, end)
            except Exception as error:
                failure = from_sdk(error, type(llm).__name__)
                secrets.hide(failure, llm)
                if failure is error and isinstance(error, Fatal):
                    raise
            else:
                tokens = output.usage.input_tokens + output.usage.output_tokens
                place.succeeded(output.seconds if llm.shared_limit else None, tokens, output.headers)
                output.attempts, output.headers = attempts, None
                await keep(output)
                return output
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
        if not again or (end and time.monotonic() + pause >= end):
            failure.attempts = attempts
            return GenerateOutput.failed(failure, num_generations)
        waited += pause
        await asyncio.sleep(pause)


async def _asked(
    llm: "AsyncLLM", chat: ChatType, num_generations: int, options: dict[str, Any], end: float | None
) -> GenerateOutput:
    started = time.monotonic()
    try:
        async with asyncio.timeout(end and max(0.0, end - started)):
            output = GenerateOutput.of(await llm.agenerate(chat, num_generations, **options))
    except TimeoutError:
        if not end or time.monotonic() < end:
            raise
        raise Transient(f"`{type(llm).__name__}` had no answer within its `deadline` of {llm.deadline:g} s.") from None
    if len(output) != num_generations:
        raise Rejected(f"{len(output)} generations came where {num_generations} were asked for.")
    output.cost = llm.cost(output.usage) if output.cost is None else output.cost
    output.seconds = output.seconds or time.monotonic() - started
    return output


def limiter(llm: "AsyncLLM") -> Limiter:
    """Who admits this model's requests, together with all others of its account."""
    return limiter_of(llm.account(), most=llm.max_concurrency, rpm=llm.requests_per_minute, tpm=llm.tokens_per_minute)
