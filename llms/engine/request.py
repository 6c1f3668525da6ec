"""One request to a model: wait for a slot, call the model, classify an error, retry or give up."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from llms.clients.errors import error_from_sdk
from llms.config import redaction
from llms.engine.awaiting import finish
from llms.engine.charge import amount_of, coerce_paid, estimate_request
from llms.engine.model import AsyncModel, Model
from llms.errors import BudgetExceeded, Fatal, LLMError, Rejected, Throttled, Transient
from llms.limits import budget
from llms.limits.budget import Reservation
from llms.limits.limiter import Limiter, get_limiter
from llms.limits.shared_limit import shared_slot
from llms.limits.usage import active_step, record_usage
from llms.store import StoredAnswer
from llms.typing import ChatType, GenerateOutput, ModelUsage

MAX_ATTEMPTS = 9
"""Attempts of a request that meets transient errors; their backoff outlasts the restart of a server."""

MAX_THROTTLED = 50
"""Times that a provider may throttle one request; the limiter waits in between."""

MAX_TIMEOUTS = 2
"""Attempts of a request that bring no answer within the `timeout`: a slow provider generates, and bills, each."""

MAX_BACKOFF_S = 30.0
"""Seconds between two attempts, at most, where the provider names no time."""

MAX_TOTAL_BACKOFF_S = 600.0
"""Seconds between all attempts of a request, at most."""

M = TypeVar("M", bound=Model)


class RequestCache(Protocol):
    """The place of a request's generations in the store; they are durable when a method that stores them returns."""

    async def persist(self, output: GenerateOutput, errors: Mapping[int, str], only: int | None = None) -> None:
        """Store the generations of an output, or only one; `errors` says how some of them break their structure."""

    async def find_retry(self, index: int, chat: ChatType) -> StoredAnswer | None:
        """Return the stored answer to a chat that asks for the generation at this index again."""

    async def persist_retry(self, index: int, chat: ChatType, answer: GenerateOutput, error: str) -> None:
        """Store an answer to such a chat that breaks its structure."""


OnOutput = Callable[[GenerateOutput], Coroutine[Any, Any, None]]
"""Handles an output before the slot of its request is released."""


@dataclass(slots=True)
class Deadline:
    """The time by which an answer must be there, counted from its first request and shared by all later ones.

    Attributes:
        seconds: Seconds from the first request on; unlimited if `None`.
        message: The message of the error when it has passed.
        at: The time on the event loop's clock, once it is counted.
    """

    seconds: float | None = None
    message: str = ""
    at: float | None = None

    @classmethod
    def of(cls, llm: AsyncModel) -> "Deadline":
        """Return the deadline of an answer of this model."""
        return cls(
            llm.deadline, f"`{type(llm).__name__}` had no answer within its `deadline` of {llm.deadline or 0:g} s."
        )

    def start(self) -> None:
        """Start the clock; later calls have no effect."""
        if self.seconds and self.at is None:
            self.at = asyncio.get_running_loop().time() + self.seconds

    def passes_within(self, seconds: float) -> bool:
        """Return whether it will have passed in so many seconds."""
        return self.at is not None and asyncio.get_running_loop().time() + seconds >= self.at


class _NoCache:
    async def persist(self, output: GenerateOutput, errors: Mapping[int, str], only: int | None = None) -> None:
        pass

    async def find_retry(self, index: int, chat: ChatType) -> StoredAnswer | None:
        return None

    async def persist_retry(self, index: int, chat: ChatType, answer: GenerateOutput, error: str) -> None:
        pass


@dataclass(slots=True)
class Request(Generic[M]):
    """Generations to ask one model for.

    Attributes:
        llm: The model, with the `structured_output` of this chat if that has one of its own.
        chat: The conversation to continue.
        num_generations: Generations to ask for.
        options: Runtime parameters that are set, by name.
        cache: Stores generations. That is awaited before the slot of the request is released, so that never more
            answers are missing on disk than requests are in flight.
        deadline: The deadline of the answer that the request is for.
    """

    llm: M
    chat: ChatType
    num_generations: int
    options: dict[str, Any]
    cache: RequestCache = field(default_factory=_NoCache)
    deadline: Deadline = field(default_factory=Deadline)


async def send(request: Request[AsyncModel], on_output: OnOutput | None = None) -> GenerateOutput:
    """Send a request until it is answered or given up; a failure is an output with an `error`.

    Args:
        request: The request.
        on_output: Handles the output in place of `request.cache.persist`, which it calls itself.

    Raises:
        Fatal: If no request can work.
    """
    limits, deadline = budget.active_budget(), request.deadline
    if not limits:
        return await _send_with_retries(request, on_output, None)
    try:
        async with asyncio.timeout_at(deadline.at):
            (reservation,) = await limits.reserve(active_step(), request.llm.model_name, [estimate_request(request)])
    except BudgetExceeded as error:  # returned, not raised: requests in flight beside it are to finish
        return GenerateOutput.failed(error, request.num_generations)
    except TimeoutError:
        return GenerateOutput.failed(Transient(deadline.message, attempts=0), request.num_generations)
    try:
        return await _send_with_retries(request, on_output, reservation)
    except BudgetExceeded as error:
        return GenerateOutput.failed(error, request.num_generations)
    finally:
        reservation.release()


class _Unaffordable(Exception):
    """Raised when the budget no longer allows a request that is about to be sent."""


async def _send_with_retries(
    request: Request[AsyncModel], on_output: OnOutput | None, reservation: Reservation | None
) -> GenerateOutput:
    llm, deadline, limiter = request.llm, request.deadline, limiter_of(request.llm)
    attempts, throttled, transient, timed_out, total_backoff = 0, 0, 0, 0, 0.0
    failure: LLMError = Transient(deadline.message)
    retry, backoff = True, 0.0
    while retry and not deadline.passes_within(failure.retry_after or backoff):
        if backoff:
            total_backoff += backoff
            await asyncio.sleep(backoff)
        try:
            async with (
                asyncio.timeout_at(deadline.at) as wait,
                limiter.slot() as slot,
                shared_slot(llm.shared_limit) if llm.shared_limit else nullcontext(),
            ):
                wait.reschedule(None)
                if reservation and not reservation.confirm():
                    raise _Unaffordable
                deadline.start()
                attempts += 1
                try:
                    output = await _attempt(request, reservation)
                except Exception as error:
                    failure = error_from_sdk(error, type(llm).__name__)
                    redaction.redact_error(failure, llm)
                else:
                    tokens = output.usage.input_tokens + output.usage.output_tokens
                    slot.on_success(output.seconds if llm.shared_limit else None, tokens, output.headers)
                    output.attempts, output.headers = attempts, None
                    await _persist(request, output, on_output)
                    return output
                if isinstance(failure, Throttled):  # the limiter delays this and all other requests
                    throttled += 1
                    retry, backoff = throttled < MAX_THROTTLED, 0.0
                    slot.on_throttled(failure.retry_after, failure.headers)
                elif isinstance(failure, Transient):
                    transient += 1
                    timed_out += failure.timed_out
                    backoff = failure.retry_after or random.uniform(0.5, 1.0) * min(MAX_BACKOFF_S, 2.0**transient / 4)
                    is_patient = transient < MAX_ATTEMPTS and timed_out < MAX_TIMEOUTS
                    retry = is_patient and total_backoff + backoff <= MAX_TOTAL_BACKOFF_S
                    slot.on_failure(failure.retry_after if retry else None)
                elif isinstance(failure, Fatal):  # outside `except`, where no SDK's error with a key is its context
                    raise failure
                else:
                    retry = False
        except _Unaffordable:  # what others cost has changed while it waited for its slot, which it does not keep
            if reservation:
                await reservation.renew()
        except TimeoutError:  # it waited for a slot until its deadline
            failure = Transient(deadline.message + (f" The attempt before: {failure.message}" if attempts else ""))
            break
    failure.attempts = attempts
    return GenerateOutput.failed(failure, request.num_generations)


async def _attempt(request: Request[AsyncModel], reservation: Reservation | None) -> GenerateOutput:
    """Call the model once, and count what that took, whatever comes of it."""
    try:
        output = await _call_model(request)
    except BaseException as error:
        failure = error_from_sdk(error, "") if isinstance(error, Exception) else None
        billed = failure is None or failure.may_be_billed  # it was cancelled, or nothing came back
        record_usage(request.llm.model_name, ModelUsage(1, unanswered=int(billed)))
        if reservation and billed:
            reservation.charge(estimate_request(request).input, answered=False)
        raise
    record_usage(request.llm.model_name, ModelUsage.of(output))
    if reservation:
        reservation.charge(amount_of(request.llm, request.chat, output))
    if "error" in output.finish_reasons and not output.error:
        raise Transient(f"`{type(request.llm).__name__}`: the provider said that the generation failed.")
    return output


async def _call_model(request: Request[AsyncModel]) -> GenerateOutput:
    """Call the model once, within its `timeout` and the deadline."""
    llm, num_generations, deadline = request.llm, request.num_generations, request.deadline
    start, name = asyncio.get_running_loop().time(), type(llm).__name__
    ends = [end for end in (deadline.at, llm.timeout and start + llm.timeout) if end is not None]
    timeout = asyncio.timeout_at(min(ends, default=None))
    try:
        async with timeout:
            generations = await llm.agenerate(request.chat, num_generations, **request.options)
    except TimeoutError:
        if not timeout.expired():
            raise
        if deadline.passes_within(0):
            raise Transient(deadline.message) from None
        message = f"`{name}` gave no answer within {llm.timeout:g} s (`timeout`)."
        raise Transient(message, timed_out=True) from None
    output = coerce_paid(generations, num_generations)
    output.cost = llm.cost(output.usage) if output.cost is None else output.cost
    output.seconds = output.seconds or asyncio.get_running_loop().time() - start
    return output


async def _persist(request: Request[AsyncModel], output: GenerateOutput, on_output: OnOutput | None) -> None:
    """Persist an output; if that fails, only its own row fails, and its cost still counts."""
    try:
        if on_output:
            await finish(on_output(output))  # an answer that was paid for is kept
        else:
            await request.cache.persist(output, {})
    except Fatal:
        raise
    except Exception as error:
        failure = error if isinstance(error, Rejected) else Rejected(f"{type(error).__name__}: {error}")
        redaction.redact_error(failure, request.llm)
        failure.attempts = output.attempts
        output.fail(failure)


def limiter_of(llm: AsyncModel) -> Limiter:
    """Return the limiter of all models with this one's rate limit scope and limits."""
    return get_limiter(
        llm.rate_limit_scope(),
        max_in_flight=llm.max_concurrency,
        rpm=llm.requests_per_minute,
        tpm=llm.tokens_per_minute,
    )


async def limiter_stats(llm: AsyncModel) -> dict[str, Any]:
    """Return the statistics of a model's limiter."""
    return limiter_of(llm).summary()
