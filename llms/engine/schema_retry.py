"""Answers held to a structure: each text is checked, and asked for again with what is wrong with it."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from llms.engine import request
from llms.errors import Rejected
from llms.structured.validation import validation_error
from llms.typing import ChatType, GenerateOutput, StructuredOutputType

if TYPE_CHECKING:
    from llms.base import AsyncLLM

Keep = Callable[[Sequence[int], GenerateOutput], Awaitable[None]]
"""Makes the generations at these places of an output durable."""

FENCED = re.compile(r"```\w*\n(.*?)```", re.DOTALL)


async def answer(
    llm: "AsyncLLM", chat: ChatType, num_generations: int, options: dict[str, Any], keep: Keep
) -> GenerateOutput:
    """Answer one chat with texts that keep to the model's `structured_output`, where it has one.

    A text that does not is `None`, and the output's error says why. The model's `deadline` is for all of it.
    """
    deadline = request.Deadline(llm)
    structure: StructuredOutputType | None = getattr(llm, "structured_output", None)
    texts: list[str | None] = []
    wrong: dict[int, str] = {}

    async def judge(output: GenerateOutput) -> None:
        if structure:
            texts.extend(output)
            wrong.update(_judged(structure, output))
        await keep([at for at in range(len(output)) if at not in wrong], output)

    output = await request.answer(llm, chat, num_generations, options, judge, deadline)
    if wrong:
        ask = partial(request.answer, llm, num_generations=1, options=options, deadline=deadline)
        await asyncio.gather(*(_mend(llm, chat, ask, keep, output, at, texts[at], wrong[at]) for at in wrong))
    return output


async def _mend(
    llm: "AsyncLLM",
    chat: ChatType,
    ask: Callable[..., Awaitable[GenerateOutput]],
    keep: Keep,
    output: GenerateOutput,
    at: int,
    text: str | None,
    wrong: str,
) -> None:
    """Ask for the generation at this place again, until it is right or there were attempts enough."""
    structure: StructuredOutputType = llm.structured_output  # type: ignore[attr-defined]
    judged: dict[int, str] = {}

    async def judge(again: GenerateOutput) -> None:
        nonlocal text
        text = again[0]
        judged.update(_judged(structure, again))
        output.replace_generation(at, again)
        if not judged:
            await keep([at], output)

    for _ in range(llm.max_schema_retries):  # type: ignore[attr-defined]
        if output.finish_reasons[at] == "length":
            wrong = "it was cut short; raise `max_new_tokens`"
            break
        chat = _objected(chat, text, wrong)
        judged.clear()
        again = await ask(chat, keep=judge)
        if again.error:
            output.error = again.error
            return
        if not judged:
            return
        wrong = judged[0]
    output.finish_reasons[at] = "error"
    output.error = Rejected(
        f"None of {output.attempts} answers keeps to the `structured_output`, the last one {text!r:.200}: {wrong}.",
        attempts=output.attempts,
    )


def _judged(structure: StructuredOutputType, output: GenerateOutput) -> dict[int, str]:
    """What is wrong with which texts; the others are cut down to the part that keeps to the structure."""
    wrong: dict[int, str] = {}
    for at, text in enumerate(output):
        if text is None and output.finish_reasons[at] in ("content_filter", "refusal"):
            continue  # a model that declines does so in no structure
        output[at], what = _fitting(structure, text)
        if what:
            wrong[at] = what
    return wrong


def _fitting(structure: StructuredOutputType, text: str | None) -> tuple[str | None, str | None]:
    """The part of a text that keeps to the structure, or else what is wrong with it.

    Models that are only told to answer in JSON like to wrap it in words or a code fence.
    """
    if text is None:
        return None, "it is empty"
    wrong = validation_error(structure, text)
    if wrong and structure["format"] == "json":
        within = [*FENCED.findall(text), text[text.find("{") : text.rfind("}") + 1]]
        if found := next(
            (each.strip() for each in within if each.strip() and not validation_error(structure, each)), None
        ):
            return found, None
    return (None, wrong) if wrong else (text, None)


def _objected(chat: ChatType, text: str | None, wrong: str) -> ChatType:
    objection = f"That answer cannot be used: {wrong}. Answer again, in full, with this put right and nothing else."
    return [*chat, {"role": "assistant", "content": text or ""}, {"role": "user", "content": objection}]
