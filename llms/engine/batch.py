"""From a batch of chats to their answers: those the store has, those another batch asks for, those still to ask."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from llms.clients import event_loop
from llms.config import redaction
from llms.engine import schema_retry
from llms.engine.cache import Recall
from llms.errors import BudgetExceeded, Fatal, LLMError, Rejected
from llms.limits import budget
from llms.typing import ChatType, GenerateOutput, Usage

if TYPE_CHECKING:
    from llms.base import LLM, AsyncLLM


async def answer_all(
    own: "AsyncLLM",
    requests: "Sequence[tuple[AsyncLLM, ChatType]]",
    num_generations: int,
    options: dict[str, Any],
    look_up: bool,
) -> list[GenerateOutput]:
    """Answer every chat concurrently and in order; a fatal error stops them all.

    Args:
        own: The model that is asked; those that a row's own structure made of it are in `requests`.
        requests: Of each chat, the model that is to answer it.
        look_up: Take from the store what was answered before; a chat that occurs twice is then asked once.

    Raises:
        Fatal: If no request can work.
        BudgetExceeded: If the run may spend no more; what was in flight is in the store by then.
    """
    recall = await asyncio.to_thread(Recall, requests, num_generations, options, look_up)
    tasks: dict[object, asyncio.Task[GenerateOutput]] = {}
    fatal: Fatal | None = None
    try:
        async with asyncio.TaskGroup() as group:
            for at in range(len(requests)):
                if (twin := recall.twin(at)) not in tasks:
                    tasks[twin] = group.create_task(_answered_once(own, recall, at, options))
    except* Fatal as group:
        fatal = next(each for each in group.exceptions if isinstance(each, Fatal))
    done = [task.result() for task in tasks.values() if not task.cancelled() and not task.exception()]
    fatal = fatal or next((each.error for each in done if isinstance(each.error, BudgetExceeded)), None)
    if fatal:  # not raised above, where the group it is in would become its context: it is to pickle
        raise _with_spending(fatal, done)
    first = {twin: task.result() for twin, task in tasks.items()}
    return [first.pop(twin, None) or tasks[twin].result().replay() for twin in map(recall.twin, range(len(requests)))]


def answer_batch(
    own: "LLM",
    requests: "Sequence[tuple[LLM, ChatType]]",
    num_generations: int,
    options: dict[str, Any],
    look_up: bool,
) -> list[GenerateOutput]:
    """Have engines that take a whole batch answer what the store does not, in the caller's thread.

    Under a budget the batch is asked in parts that fit in.

    Raises:
        Fatal: If no request can work.
        BudgetExceeded: If the run may spend no more; what was answered before is in the store by then.
    """
    recall = Recall(requests, num_generations, options, look_up)
    new: dict[int, GenerateOutput] = {}
    asked: dict[tuple[int, int], list[int]] = {}  # by model, of which there is one per structure, and how many
    for at, (llm, _) in enumerate(requests):
        if missing := len(recall.missing(at)):
            asked.setdefault((0 if _together(own) else id(llm), missing), []).append(at)
    limits = budget.active_budget()
    try:
        for (_, count), group in asked.items():
            llm = own if _together(own) else requests[group[0]][0]
            while group:
                part = group[: event_loop.run(limits.acquire(len(group)))] if limits else group
                group, outputs = group[len(part) :], list[GenerateOutput]()
                try:
                    outputs += _isolated(own, [requests[at] for at in part], count, options)
                except Fatal as error:
                    outputs += [GenerateOutput.failed(_of_its_row(error, llm, own), count) for _ in part]
                finally:
                    if limits:
                        event_loop.run(limits.release(outputs, len(part)))
                new |= zip(part, outputs, strict=True)
                event_loop.run(_keep_all(recall, part, outputs))
    except Fatal as error:
        _with_spending(error, new.values())
        raise
    return [recall.completed(at, new.get(at, GenerateOutput())) for at in range(len(requests))]


def _together(llm: "LLM") -> bool:
    """Whether chats with different structures are one batch: not where a class of the user's own has a `generate`."""
    return next("generate_together" in vars(cls) for cls in type(llm).__mro__ if "generate" in vars(cls))


def _isolated(
    own: "LLM", requests: "Sequence[tuple[LLM, ChatType]]", num_generations: int, options: dict[str, Any]
) -> list[GenerateOutput]:
    """`generate`, where a chat that makes it raise is found and fails alone."""
    llm, chats = requests[0][0], [chat for _, chat in requests]
    try:
        if _together(own):
            outputs = own.generate_together(requests, num_generations, **options)  # type: ignore[attr-defined]
        else:
            outputs = llm.generate(chats, num_generations, **options)
    except Fatal as error:
        redaction.redact_error(error, llm)
        raise
    except Exception as error:
        if len(chats) > 1:  # find the chat that did it: the others have their answers
            return [_isolated(own, [request], num_generations, options)[0] for request in requests]
        return [_failed(llm, error, num_generations)]
    if outputs is None or len(outputs) != len(chats):
        count = "nothing" if outputs is None else f"{len(outputs)} outputs"
        raise Fatal(f"`{type(llm).__name__}.generate` returned {count} for {len(chats)} chats: one each is due.")
    return [_billed(llm, output, num_generations) for output in outputs]


def _billed(llm: "LLM", texts: Any, num_generations: int) -> GenerateOutput:
    """An output of `generate`, with what it cost; one that holds what it should not is a failure."""
    try:
        output = GenerateOutput.coerce(texts, num_generations)
    except ValueError as error:
        return _failed(llm, error, num_generations)
    output.cost = llm.cost(output.usage) if output.cost is None else output.cost
    return output


def _failed(llm: "LLM", error: Exception, num_generations: int) -> GenerateOutput:
    reason = error if isinstance(error, LLMError) else Rejected(f"{type(error).__name__}: {error}")
    redaction.redact_error(reason, llm)
    return GenerateOutput.failed(reason, num_generations)


async def _keep_all(recall: Recall, part: Sequence[int], outputs: Sequence[GenerateOutput]) -> None:
    """Put what came for these requests into the store, in one go."""
    good = [(at, output) for at, output in zip(part, outputs, strict=True) if not output.error]
    places = {at: {number: place for place, number in enumerate(recall.missing(at))} for at, _ in good}
    await asyncio.gather(*(recall.keep(at, places[at], output) for at, output in good))


def _of_its_row(error: Fatal, llm: "LLM", own: "LLM") -> Rejected:
    """What a model cannot do because of a structure that only one row asks for; what is wrong for all is raised.

    Which of them it is, the message says: it names what is to be changed.
    """
    if llm is own or "`structured_output`" not in error.message:
        raise error
    return Rejected(error.message, attempts=0)


def _with_spending(error: Fatal, outputs: Iterable[GenerateOutput]) -> Fatal:
    """The error that stops a batch, with what the answers took that had come by then."""
    asked = [each for each in outputs if not each.cached and not (each.usage == Usage() and each.error)]
    error.paid_outputs = [GenerateOutput(usage=each.usage, cost=each.cost, seconds=each.seconds) for each in asked]
    return error


_asking: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[object, asyncio.Event]] = WeakKeyDictionary()
"""What is being asked on a loop, whatever batch it is in: an equal request waits for that answer."""


async def _answered_once(own: "AsyncLLM", recall: Recall, at: int, options: dict[str, Any]) -> GenerateOutput:
    """Answer one chat, unless an equal one is being answered: then take that one's answer from the store."""
    asking = _asking.setdefault(asyncio.get_running_loop(), {})
    twin = recall.twin(at)
    while recall.missing(at) and isinstance(twin, tuple) and (other := asking.get(twin)):
        await other.wait()
        await asyncio.to_thread(recall.look_again, at)
    if not recall.missing(at):
        return recall.completed(at, GenerateOutput())
    if not isinstance(twin, tuple):
        return recall.completed(at, await _answered(own, recall, at, options))
    asking[twin] = mine = asyncio.Event()
    try:
        return recall.completed(at, await _answered(own, recall, at, options))
    finally:
        del asking[twin]
        mine.set()


async def _answered(own: "AsyncLLM", recall: Recall, at: int, options: dict[str, Any]) -> GenerateOutput:
    """Ask for the generations the store does not have, in as many requests as the API needs for that."""
    llm, chat = recall.requests[at]
    missing = recall.missing(at)
    most = llm.max_generations_per_request or len(missing)  # type: ignore[attr-defined]

    async def part(numbers: list[int]) -> GenerateOutput:
        async def keep(places: Sequence[int], output: GenerateOutput) -> None:
            await recall.keep(at, {numbers[place]: place for place in places}, output)

        seed = options.get("seed")
        seeded = options if seed is None or not numbers[0] else {**options, "seed": seed + numbers[0]}
        try:
            return await schema_retry.answer(llm, chat, len(numbers), seeded, keep)
        except Fatal as error:
            return GenerateOutput.failed(_of_its_row(error, llm, own), len(numbers))

    if most >= len(missing):
        return await part(missing)
    parts = [missing[start : start + most] for start in range(0, len(missing), most)]
    return GenerateOutput.join(await asyncio.gather(*map(part, parts)))
