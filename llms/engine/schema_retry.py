"""Structured output: every text is validated, and an invalid one is asked for again with the error as feedback."""

import asyncio
import re

from llms.engine.awaiting import gather_or_cancel
from llms.engine.model import AsyncModel, ConstrainedModel, is_constrained
from llms.engine.request import Request, send
from llms.errors import Rejected
from llms.structured.validation import TOO_SLOW, validation_error
from llms.typing import ChatType, GenerateOutput, StructuredOutputType

CODE_FENCE = re.compile(r"```\w*\n(.*?)```", re.DOTALL)


async def generate_valid(request: Request[AsyncModel]) -> GenerateOutput:
    """Answer a request with texts that match the model's `structured_output`, if it has one.

    A text that never does is `None`, and the output's `error` says why. The deadline is for all attempts together.

    Raises:
        Fatal: If no request can work.
    """
    llm = request.llm
    if not is_constrained(llm):
        return await send(request)
    errors: dict[int, str] = {}

    async def validate(output: GenerateOutput) -> None:
        try:
            errors.update(await asyncio.to_thread(_validate, llm.structured_output, output))
        except Rejected as error:  # it cannot be checked, but it was paid for
            await request.cache.persist(output, dict.fromkeys(range(len(output)), error.message))
            raise
        await request.cache.persist(output, errors)

    output = await send(request, validate)
    if errors:
        await gather_or_cancel(_reask(request, llm, output, index, errors[index]) for index in errors)
    return output


async def retry_invalid(request: Request[AsyncModel], output: GenerateOutput, error: str) -> GenerateOutput:
    """Ask for a stored generation that breaks its structure again, as often as that has not been done yet.

    Args:
        request: The request it was generated for, with one generation.
        output: The generation.
        error: What is wrong with it.

    Raises:
        Fatal: If no request can work.
    """
    if is_constrained(request.llm):
        await _reask(request, request.llm, output, 0, error)
    return output


async def _reask(
    request: Request[AsyncModel], llm: ConstrainedModel, output: GenerateOutput, index: int, error: str
) -> None:
    """Ask for one generation of an output again until it is valid or `max_schema_retries` are used up.

    Every answer is stored, so that it is never paid for twice: a valid one in place of the generation, an invalid one
    under the chat that it answers.
    """
    chat, problem = request.chat, {index: error}
    for _ in range(llm.max_schema_retries):
        if output.finish_reasons[index] == "length":
            problem[index] = "it was cut short; raise `max_new_tokens`"
            break
        chat = _with_error_feedback(chat, output[index], problem[index])
        if (stored := await request.cache.find_retry(index, chat)) and stored.schema_error:
            output.replace_generation(index, stored.to_free_output())
            problem[index] = stored.schema_error
            continue

        async def validate(answer: GenerateOutput, chat: ChatType = chat) -> None:
            errors = await asyncio.to_thread(_validate, llm.structured_output, answer)
            output.replace_generation(index, answer)
            if not errors:
                problem.clear()
                await request.cache.persist(output, {}, only=index)
            else:
                problem[index] = errors[0]
                await request.cache.persist_retry(index, chat, answer, errors[0])

        retry = Request(request.llm, chat, 1, request.options, deadline=request.deadline)
        answer = await send(retry, validate)
        if answer.error:
            output[index], output.error = None, answer.error
            return
        if not problem:
            return
    output.error = Rejected(
        f"None of {output.attempts} answers keeps to the `structured_output`, the last one "
        f"{output[index]!r:.200}: {problem[index]}.",
        attempts=output.attempts,
    )
    output[index], output.finish_reasons[index] = None, "error"


def _validate(structure: StructuredOutputType, output: GenerateOutput) -> dict[int, str]:
    """Return the errors of invalid texts by index; cut the others down to the part that is valid."""
    errors: dict[int, str] = {}
    for index, text in enumerate(output):
        if text is None and output.finish_reasons[index] in ("content_filter", "refusal"):
            continue  # a refusal has no structure
        valid, error = _extract_valid(structure, text)
        if error:
            errors[index] = error
        else:
            output[index] = valid
    return errors


def _extract_valid(structure: StructuredOutputType, text: str | None) -> tuple[str | None, str | None]:
    """Return the valid part of a text, or else what is wrong with it.

    Models that are only prompted for JSON tend to wrap it in words or a code fence.
    """
    if text is None:
        return None, "it is empty"
    error = validation_error(structure, text)
    if error and error != TOO_SLOW and structure["format"] == "json":
        candidates = [*CODE_FENCE.findall(text), text[text.find("{") : text.rfind("}") + 1]]
        for candidate in filter(None, map(str.strip, candidates)):
            found = validation_error(structure, candidate)
            if not found:
                return candidate, None
            if found == TOO_SLOW:
                return None, found
    return (None, error) if error else (text, None)


def _with_error_feedback(chat: ChatType, text: str | None, error: str) -> ChatType:
    feedback = f"That answer cannot be used: {error}. Answer again, in full, with this put right and nothing else."
    return [*chat, {"role": "assistant", "content": text or ""}, {"role": "user", "content": feedback}]
