"""From a batch of chats to their answers: those the store has, those another batch asks for, those still to ask."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from llms import budget, correction, loop
from llms.errors import Drained, Fatal
from llms.recall import Recall
from llms.typing import ChatType, GenerateOutput

if TYPE_CHECKING:
    from llms.base import LLM, AsyncLLM


async def answer_all(
    requests: "Sequence[tuple[AsyncLLM, ChatType]]", num_generations: int, options: dict[str, Any], look_up: bool
) -> list[GenerateOutput]:
    """Answer every chat concurrently and in order; a fatal error stops them all.

    Args:
        requests: Of each chat, the model that is to answer it.
        look_up: Take from the store what was answered before; a chat that occurs twice is then asked once.

    Raises:
        Fatal: If no request can work.
        Drained: If the run may spend no more; what was in flight is in the store by then.
    """
    recall = await asyncio.to_thread(Recall, requests, num_generations, options, look_up)
    tasks: dict[object, asyncio.Task[GenerateOutput]] = {}
    fatal: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            for at in range(len(requests)):
                if (twin := recall.twin(at)) not in tasks:
                    tasks[twin] = group.create_task(_answered_once(recall, at, options))
    except* Fatal as group:
        fatal = group.exceptions[0]
    if fatal:  # not raised above, where the group it is in would become its context: it is to pickle
        raise fatal
    for task in tasks.values():
        if isinstance(drained := task.result().error, Drained):
            raise drained
    first = {twin: task.result() for twin, task in tasks.items()}
    return [first.pop(twin, None) or tasks[twin].result().again() for twin in map(recall.twin, range(len(requests)))]


def answer_batch(
    requests: "Sequence[tuple[LLM, ChatType]]", num_generations: int, options: dict[str, Any], look_up: bool
) -> list[GenerateOutput]:
    """Have engines that take a whole batch answer what the store does not, in the caller's thread.

    Raises:
        Fatal: If no request can work.
    """
    recall = Recall(requests, num_generations, options, look_up)
    new = [GenerateOutput() for _ in requests]
    asked: dict[tuple[int, int], list[int]] = {}  # by model, of which there is one per structure, and how many
    for at, (llm, _) in enumerate(requests):
        if missing := len(recall.missing(at)):
            asked.setdefault((id(llm), missing), []).append(at)
    limits = budget.enforced()
    for (_, count), group in asked.items():
        llm, outputs = requests[group[0]][0], list[GenerateOutput]()
        if limits:
            loop.run(limits.admit())
        try:
            outputs += llm.generate_isolated([requests[at][1] for at in group], count, options)
        finally:
            if limits:
                loop.run(limits.leave(outputs))
        for at, output in zip(group, outputs, strict=True):
            new[at] = output

    async def keep() -> None:
        answered = [at for group in asked.values() for at in group if not new[at].error]
        places = {at: {number: place for place, number in enumerate(recall.missing(at))} for at in answered}
        await asyncio.gather(*(recall.keep(at, places[at], new[at]) for at in answered))

    loop.run(keep())
    return [recall.completed(at, output) for at, output in enumerate(new)]


_asking: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[object, asyncio.Event]] = WeakKeyDictionary()
"""What is being asked on a loop, whatever batch it is in: an equal request waits for that answer."""


async def _answered_once(recall: Recall, at: int, options: dict[str, Any]) -> GenerateOutput:
    """Answer one chat, unless an equal one is being answered: then take that one's answer from the store."""
    asking = _asking.setdefault(asyncio.get_running_loop(), {})
    twin = recall.twin(at)
    while recall.missing(at) and isinstance(twin, tuple) and (other := asking.get(twin)):
        await other.wait()
        await asyncio.to_thread(recall.look_again, at)
    if not recall.missing(at):
        return recall.completed(at, GenerateOutput())
    if not isinstance(twin, tuple):
        return recall.completed(at, await _answered(recall, at, options))
    asking[twin] = mine = asyncio.Event()
    try:
        return recall.completed(at, await _answered(recall, at, options))
    finally:
        del asking[twin]
        mine.set()


async def _answered(recall: Recall, at: int, options: dict[str, Any]) -> GenerateOutput:
    """Ask for the generations the store does not have, in as many requests as the API needs for that."""
    llm, chat = recall.requests[at]
    missing = recall.missing(at)
    most = llm.generations_at_once or len(missing)  # type: ignore[attr-defined]

    async def part(numbers: list[int]) -> GenerateOutput:
        async def keep(places: Sequence[int], output: GenerateOutput) -> None:
            await recall.keep(at, {numbers[place]: place for place in places}, output)

        seed = options.get("seed")
        seeded = options if seed is None or not numbers[0] else {**options, "seed": seed + numbers[0]}
        return await correction.answer(llm, chat, len(numbers), seeded, keep)

    if most >= len(missing):
        return await part(missing)
    parts = [missing[start : start + most] for start in range(0, len(missing), most)]
    return GenerateOutput.joined(await asyncio.gather(*map(part, parts)))
