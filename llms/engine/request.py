"""One request's life, on the shared loop: wait for a slot, call, classify, try again or record."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from llms.clients.errors import error_from_sdk
from llms.config import redaction
from llms.errors import BudgetExceeded, Fatal, LLMError, Rejected, Throttled, Transient
from llms.limits import budget
from llms.limits.limiter import Limiter, get_limiter
from llms.limits.shared_limit import shared_slot
from llms.typing import ChatType, GenerateOutput

if TYPE_CHECKING:
    from llms.base import AsyncLLM

MAX_ATTEMPTS = 9
"""How often a request is sent when the weather is bad: the pauses between them outlast the restart of a server."""

MAX_THROTTLED = 50
"""How often a provider may ask one request for patience; the limiter waits in between."""

MAX_TOTAL_BACKOFF_S = 600.0
"""Seconds a request waits in all between attempts in bad weather."""

Keep = Callable[[GenerateOutput], Awaitable[None]]
"""Makes an answer durable."""


class Deadline:
    """When an answer is given up: some time after its first request, however often it is asked for."""

    def __init__(self, llm: "AsyncLLM") -> None:
        self.seconds = llm.deadline
        self.end: float | None = None
        self.missed = f"`{type(llm).__name__}` had no answer within its `deadline` of {llm.deadline or 0:g} s."

    def begin(self) -> None:
        """The first request goes; later ones change nothing."""
        if self.seconds and self.end is None:
            self.end = asyncio.get_running_loop().time() + self.seconds

    def before(self, seconds: float) -> bool:
        """Whether it will have come in so many seconds."""
        return self.end is not None and asyncio.get_running_loop().time() + seconds >= self.end


async def answer(
    llm: "AsyncLLM",
    chat: ChatType,
    num_generations: int,
    options: dict[str, Any],
    keep: Keep,
    deadline: Deadline | None = None,
) -> GenerateOutput:
    """Answer one chat, however many attempts it takes; a failure is an output that says why.

    Args:
        keep: It is awaited before another request takes this one's place, so that no more than the requests in flight
            are ever without their answer on disk.
        deadline: Of the answer this request is for, where it is not the first one.

    Raises:
        Fatal: If no request can work.
    """
    deadline, limits = deadline or Deadline(llm), budget.active_budget()
    if not limits:
        return await _answer(llm, chat, num_generations, options, keep, deadline)
    try:
        async with asyncio.timeout_at(deadline.end):
            await limits.acquire()
    except BudgetExceeded as drained:  # an output, for now: what is in flight beside it is to finish
        return GenerateOutput.failed(drained, num_generations)
    except TimeoutError:
        return GenerateOutput.failed(Transient(deadline.missed, attempts=0), num_generations)
    outputs: list[GenerateOutput] = []
    try:
        outputs.append(await _answer(llm, chat, num_generations, options, keep, deadline))
        return outputs[0]
    finally:
        await limits.release(outputs)


async def _answer(
    llm: "AsyncLLM", chat: ChatType, num_generations: int, options: dict[str, Any], keep: Keep, deadline: Deadline
) -> GenerateOutput:
    admission = limiter(llm)
    attempts, refusals, storms, waited = 0, 0, 0, 0.0
    failure: LLMError = Transient(deadline.missed)
    again, pause = True, 0.0
    while again and not deadline.before(failure.retry_after or pause):
        if pause:
            waited += pause
            await asyncio.sleep(pause)
        try:
            async with (
                asyncio.timeout_at(deadline.end) as wait,
                admission.slot() as slot,
                shared_slot(llm.shared_limit) if llm.shared_limit else nullcontext(),
            ):
                wait.reschedule(None)
                deadline.begin()
                attempts += 1
                try:
                    output = await _asked(llm, chat, num_generations, options, deadline)
                except Exception as error:
                    failure = error_from_sdk(error, type(llm).__name__)
                    redaction.redact_error(failure, llm)
                else:
                    tokens = output.usage.input_tokens + output.usage.output_tokens
                    slot.on_success(output.seconds if llm.shared_limit else None, tokens, output.headers)
                    output.attempts, output.headers = attempts, None
                    await _kept(output, keep, llm)
                    return output
                if isinstance(failure, Throttled):  # the limiter makes it wait, and all others; it costs no attempt
                    refusals += 1
                    again, pause = refusals < MAX_THROTTLED, 0.0
                    slot.on_throttled(failure.retry_after, failure.headers)
                elif isinstance(failure, Transient):
                    storms += 1
                    pause = failure.retry_after or random.uniform(0.5, 1.0) * min(30.0, 2.0**storms / 4)
                    again = storms < MAX_ATTEMPTS and waited + pause <= MAX_TOTAL_BACKOFF_S
                    slot.on_failure(failure.retry_after if again else None)
                else:
                    again = False
        except TimeoutError:  # while it waited for its turn
            failure = Transient(deadline.missed + (f" The attempt before: {failure.message}" if attempts else ""))
            break
        if isinstance(failure, Fatal):  # not raised above, where an SDK's error would go along: that holds the key
            raise failure
    failure.attempts = attempts
    return GenerateOutput.failed(failure, num_generations)


async def _asked(
    llm: "AsyncLLM", chat: ChatType, num_generations: int, options: dict[str, Any], deadline: Deadline
) -> GenerateOutput:
    now, name = asyncio.get_running_loop().time(), type(llm).__name__
    ends = [end for end in (deadline.end, llm.timeout and now + llm.timeout) if end is not None]
    clock = asyncio.timeout_at(min(ends, default=None))
    try:
        async with clock:
            output = GenerateOutput.coerce(await llm.agenerate(chat, num_generations, **options), num_generations)
    except TimeoutError:
        if not clock.expired():
            raise
        if deadline.before(0):
            raise Transient(deadline.missed) from None
        raise Transient(f"`{name}` gave no answer within {llm.timeout:g} s (`timeout`).") from None
    if "error" in output.finish_reasons and not output.error:
        raise Transient(f"`{name}`: the provider said that the generation failed.")
    output.cost = llm.cost(output.usage) if output.cost is None else output.cost
    output.seconds = output.seconds or asyncio.get_running_loop().time() - now
    return output


async def _kept(output: GenerateOutput, keep: Keep, llm: "AsyncLLM") -> None:
    """Keep an answer; one that cannot be is an error of its own row, and was paid for."""
    try:
        await keep(output)
    except Fatal:
        raise
    except Exception as error:
        failure = error if isinstance(error, Rejected) else Rejected(f"{type(error).__name__}: {error}")
        redaction.redact_error(failure, llm)
        failure.attempts = output.attempts
        output.fail(failure)


def limiter(llm: "AsyncLLM") -> Limiter:
    """Who admits this model's requests, with all others of its account that were given the same limits."""
    return get_limiter(
        llm.rate_limit_scope(),
        max_in_flight=llm.max_concurrency,
        rpm=llm.requests_per_minute,
        tpm=llm.tokens_per_minute,
    )


async def summary(llm: "AsyncLLM") -> dict[str, Any]:
    """What its limiter knows."""
    return limiter(llm).summary()
