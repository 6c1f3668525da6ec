"""A batch of requests: answers from the store, answers shared with equal requests in flight, and new ones."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from llms.clients import event_loop
from llms.config import redaction
from llms.engine.awaiting import gather_or_cancel
from llms.engine.cache import CacheLookup, PartCache
from llms.engine.charge import amount_of, coerce_paid, estimate_request
from llms.engine.model import AsyncModel, Model, mixes_schemas
from llms.engine.request import Deadline, M, Request
from llms.engine.schema_retry import generate_valid, retry_invalid
from llms.errors import BudgetExceeded, Fatal, LLMError, Rejected
from llms.limits import budget
from llms.limits.budget import Reservation
from llms.limits.usage import active_step, record_usage
from llms.store.claims import Claims
from llms.structured.output import canonical_schema
from llms.typing import FormattedInput, GenerateOutput, ModelUsage, split_input


def make_requests(
    llm: M, inputs: Iterable[FormattedInput], num_generations: int, options: dict[str, Any]
) -> list[Request[M] | GenerateOutput]:
    """Return a request per input; a failed output for one with a structure that the model cannot follow."""
    llms: dict[str, M] = {}
    requests: list[Request[M] | GenerateOutput] = []
    for chat, structure in map(split_input, inputs):
        try:
            schema = canonical_schema(structure)
            if schema not in llms:
                llms[schema] = llm if structure is None else llm.with_structured_output(structure)
            requests.append(Request(llms[schema], chat, num_generations, options))
        except Rejected as error:
            requests.append(GenerateOutput.failed(error, num_generations))
    return requests


async def generate_async(
    llm: AsyncModel, requests: Sequence[Request[AsyncModel]], use_cache: bool
) -> list[GenerateOutput]:
    """Answer requests concurrently and in order; a fatal error stops them all.

    Args:
        llm: The model; a request whose chat has a structure of its own has a copy of it.
        requests: The requests.
        use_cache: Whether to take answers from the store; equal requests are then sent once.

    Raises:
        Fatal: If no request can work.
        BudgetExceeded: If the run may spend no more; answers in flight are stored by then.
    """
    lookup = await asyncio.to_thread(CacheLookup, requests, use_cache)
    keys = [lookup.request_key(index) for index in range(len(requests))]
    tasks: dict[object, asyncio.Task[GenerateOutput]] = {}
    fatal: Fatal | None = None
    try:
        async with (
            Claims(filter(None, map(lookup.claim_key, range(len(requests))))) as claims,
            asyncio.TaskGroup() as group,
        ):
            for index, key in enumerate(keys):
                if key not in tasks:
                    tasks[key] = group.create_task(_single_flight(llm, lookup, claims, index))
    except* Fatal as group:
        fatal = next(each for each in group.exceptions if isinstance(each, Fatal))
    done = [task.result() for task in tasks.values() if not task.cancelled() and not task.exception()]
    fatal = fatal or next((each.error for each in done if isinstance(each.error, BudgetExceeded)), None)
    if fatal:  # raised here, outside `except*`: with the group as its context, it would not pickle
        raise fatal
    first = {key: task.result() for key, task in tasks.items()}
    return _count_cached(llm, [first.pop(key, None) or tasks[key].result().replay() for key in keys])


def generate_sync(llm: Model, requests: Sequence[Request[Model]], use_cache: bool) -> list[GenerateOutput]:
    """Have a model that takes whole batches answer what is not stored, in the caller's thread.

    Under a budget the batch is split into parts that fit in.

    Args:
        llm: The model; a request whose chat has a structure of its own has a copy of it.
        requests: The requests.
        use_cache: Whether to take answers from the store.

    Raises:
        Fatal: If no request can work.
        BudgetExceeded: If the run may spend no more; answers that came before are stored by then.
    """
    lookup = CacheLookup(requests, use_cache)
    new: dict[int, GenerateOutput] = {}
    groups: dict[tuple[int, int], list[int]] = {}  # by model, of which there is one per structure, and generations
    for index, request in enumerate(requests):
        if missing := len(lookup.missing(index)):
            groups.setdefault((0 if mixes_schemas(llm) else id(request.llm), missing), []).append(index)
    limits = budget.active_budget()
    for (_, count), group in groups.items():
        group_llm = llm if mixes_schemas(llm) else requests[group[0]].llm
        while group:
            part, slots = group, list[Reservation]()
            if limits:
                estimates = [estimate_request(requests[index]) for index in group]
                slots = event_loop.run(limits.reserve(active_step(), group_llm.model_name, estimates))
                part = group[: len(slots)]
            group, outputs = group[len(part) :], list[GenerateOutput]()
            try:
                outputs += _generate_isolating_errors(llm, [requests[index] for index in part], count)
            except Fatal as error:
                outputs += [GenerateOutput.failed(_as_row_error(error, group_llm, llm), count) for _ in part]
            finally:
                for output in outputs:
                    record_usage(group_llm.model_name, ModelUsage.of(output))
                if slots:
                    event_loop.run(_settle(slots, [requests[index] for index in part], outputs))
            new |= zip(part, outputs, strict=True)
            event_loop.run(_persist_all(lookup, part, outputs))
    merged = [lookup.merge_cached(index, new.get(index, GenerateOutput())) for index in range(len(requests))]
    return _count_cached(llm, merged)


async def _settle(
    slots: Sequence[Reservation], requests: Sequence[Request[Model]], outputs: Sequence[GenerateOutput]
) -> None:
    """Charge what a batch took, and give back what was set aside for it; without outputs it has failed."""
    for slot, request, output in zip(slots, requests, outputs, strict=False):
        slot.charge(amount_of(request.llm, request.chat, output))
    for slot in slots:
        slot.release()


def _count_cached(llm: Model, outputs: list[GenerateOutput]) -> list[GenerateOutput]:
    """Return the outputs, after counting those that were not asked for."""
    if cached := sum(output.cached for output in outputs):
        record_usage(llm.model_name, ModelUsage(cached=cached))
    return outputs


def _generate_isolating_errors(
    llm: Model, requests: Sequence[Request[Model]], num_generations: int
) -> list[GenerateOutput]:
    """Call `generate`; if it raises, call it once per chat, so that only the chat that causes the error fails."""
    batch_llm, options = requests[0].llm, requests[0].options
    try:
        if mixes_schemas(llm):
            outputs = llm.generate_together([(each.llm, each.chat) for each in requests], num_generations, **options)
        else:
            outputs = batch_llm.generate([each.chat for each in requests], num_generations, **options)
    except Fatal as error:
        redaction.redact_error(error, batch_llm)
        raise
    except Exception as error:
        if len(requests) > 1:
            return [_generate_isolating_errors(llm, [each], num_generations)[0] for each in requests]
        return [_failed(batch_llm, error, num_generations)]
    if outputs is None or len(outputs) != len(requests):
        count = "nothing" if outputs is None else f"{len(outputs)} outputs"
        raise Fatal(f"`{type(llm).__name__}.generate` returned {count} for {len(requests)} chats: one each is due.")
    return [_with_cost(batch_llm, output, num_generations) for output in outputs]


def _with_cost(llm: Model, generations: Any, num_generations: int) -> GenerateOutput:
    """Return an output of `generate` with its cost; a failed one if it is invalid."""
    try:
        output = coerce_paid(generations, num_generations)
    except ValueError as error:
        return _failed(llm, error, num_generations)
    output.cost = llm.cost(output.usage) if output.cost is None else output.cost
    return output


def _failed(llm: Model, error: Exception, num_generations: int) -> GenerateOutput:
    failure = error if isinstance(error, LLMError) else Rejected(f"{type(error).__name__}: {error}")
    redaction.redact_error(failure, llm)
    return GenerateOutput.failed(failure, num_generations)


async def _persist_all(lookup: CacheLookup, indices: Sequence[int], outputs: Sequence[GenerateOutput]) -> None:
    """Store the outputs of these requests in one commit."""
    pairs = [(index, output) for index, output in zip(indices, outputs, strict=True) if not output.error]
    missing = {index: lookup.missing(index) for index, _ in pairs}
    await asyncio.gather(*(lookup.persist(index, missing[index], each, {}, None) for index, each in pairs))


def _as_row_error(error: Fatal, request_llm: Model, llm: Model) -> Rejected:
    """Return the error of a row whose own structure the model cannot follow; raise one that concerns all rows.

    The message tells them apart: it names what is to be changed.
    """
    if request_llm is llm or "`structured_output`" not in error.message:
        raise error
    return Rejected(error.message, attempts=0)


_in_flight: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[object, asyncio.Future[Fatal | None]]]
_in_flight = WeakKeyDictionary()
"""Requests in flight on each loop, by key, whatever their batch: an equal request waits for their answer, or fails with
them if no request can work."""


async def _single_flight(llm: AsyncModel, lookup: CacheLookup, claims: Claims, index: int) -> GenerateOutput:
    """Answer a request, unless an equal one is in flight here or in another process: then wait for its answer."""
    in_flight = _in_flight.setdefault(asyncio.get_running_loop(), {})
    key = lookup.request_key(index)
    while lookup.missing(index) and isinstance(key, tuple) and (other := in_flight.get(key)):
        if fatal := await asyncio.shield(other):
            raise Fatal(fatal.message)
        await asyncio.to_thread(lookup.refresh, index)
    if not lookup.missing(index):
        return lookup.merge_cached(index, GenerateOutput())
    if not isinstance(key, tuple):
        return lookup.merge_cached(index, await _generate_missing(llm, lookup, index))
    in_flight[key] = done = asyncio.get_running_loop().create_future()
    fatal = None
    try:
        if (claim := lookup.claim_key(index)) and await claims.wait(claim):
            await asyncio.to_thread(lookup.refresh, index)
        new = await _generate_missing(llm, lookup, index) if lookup.missing(index) else GenerateOutput()
        return lookup.merge_cached(index, new)
    except Fatal as error:
        fatal = error
        raise
    finally:
        del in_flight[key]
        done.set_result(fatal)


async def _generate_missing(llm: AsyncModel, lookup: CacheLookup, index: int) -> GenerateOutput:
    """Ask for the generations that are not stored, in as many requests as the API needs for that."""
    request, missing, invalid = lookup.requests[index], lookup.missing(index), lookup.invalid(index)

    async def generate(numbers: list[int]) -> GenerateOutput:
        seed, options = request.options.get("seed"), request.options
        if seed is not None and numbers[0]:
            options = {**options, "seed": seed + numbers[0]}
        cache, deadline = PartCache(lookup, index, numbers), Deadline.of(request.llm)
        part = Request(request.llm, request.chat, len(numbers), options, cache, deadline)
        try:
            if stored := invalid.get(numbers[0]):
                return await retry_invalid(part, stored.to_free_output(), f"{stored.schema_error}")
            return await generate_valid(part)
        except Fatal as error:
            return GenerateOutput.failed(_as_row_error(error, request.llm, llm), len(numbers))

    absent = [number for number in missing if number not in invalid]
    size = request.llm.max_generations_per_request or max(len(absent), 1)
    parts = [absent[start : start + size] for start in range(0, len(absent), size)] + [[each] for each in invalid]
    if len(parts) == 1:
        return await generate(parts[0])
    output = GenerateOutput.join(await gather_or_cancel(map(generate, parts)))
    numbers = [number for part in parts for number in part]
    output.reorder(sorted(range(len(numbers)), key=numbers.__getitem__))
    return output
