"""Wire format of OpenAI's chat completions, which most providers speak, over aiohttp.

The SDKs cost ten times the CPU of the request they send. Tests make the same calls through them and compare.
"""

import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
from pydantic import BaseModel

from llms.clients import event_loop
from llms.clients.errors import error_from_response, error_message, rate_limit_headers
from llms.clients.http import environment_proxy, open_session
from llms.config import redaction
from llms.errors import Fatal, Transient
from llms.typing import ChatType, FinishReason, GenerateOutput, Logprobs, TokenLogprob, Usage

FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "model_length": "length",
    "content_filter": "content_filter",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "error": "error",
    "abort": "error",
}
"""Finish reasons of all servers, in our vocabulary."""


ReplyDecoder = Callable[[Any, Mapping[str, str]], GenerateOutput]
"""Decodes a response from its JSON and its headers."""


async def complete(
    url: str, headers: dict[str, str], body: dict[str, Any], timeout: float, decoder: ReplyDecoder | None = None
) -> GenerateOutput:
    """Send a request and decode its response.

    Args:
        url: The full URL.
        headers: With the key among them.
        body: From `encode`.
        timeout: Seconds to wait.
        decoder: For a response that is not a chat completion.

    Raises:
        LLMError: Of the class that tells what to do; it never holds the headers.
    """
    return await event_loop.run_on_loop(_complete(url, headers, body, timeout, decoder))


async def _complete(
    url: str, headers: dict[str, str], body: dict[str, Any], timeout: float, decoder: ReplyDecoder | None
) -> GenerateOutput:
    session = event_loop.shared_client("aiohttp", open_session, lambda session: session.close())
    started = time.perf_counter()
    try:
        async with session.post(
            url, json=body, headers=headers, proxy=environment_proxy(url), timeout=aiohttp.ClientTimeout(total=timeout)
        ) as response:
            text = await response.text(errors="replace")
    except TimeoutError:
        failure = Transient(f"`{url}` gave no answer within {timeout:g} s.", timed_out=True)
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
        failure = Fatal(f"`{url}` is not an address: `base_url` is one, `https://` included.")
    except aiohttp.ClientError as error:
        detail = redaction.redact(f"{error}", ())  # a proxy that refuses is named with its login
        unsent = isinstance(error, aiohttp.ClientConnectorError)
        failure = Transient(f"`{url}`: {type(error).__name__}: {detail}", unsent=unsent)
    except ValueError as error:  # a key with a line break, a login in the URL: no request was sent
        failure = Fatal(f"`{url}` cannot be asked: {error}")
    else:
        output = _parse_response(response, text, url, decoder)
        output.seconds = time.perf_counter() - started
        return output
    raise failure  # not above, where aiohttp's error would go along: it holds the headers, and the proxy's login


def _parse_response(
    response: aiohttp.ClientResponse, text: str, url: str, decoder: ReplyDecoder | None
) -> GenerateOutput:
    if response.status != 200:
        raise error_from_response(response.status, response.headers, text, url)
    try:
        reply = json.loads(text)
        output = decoder(reply, response.headers) if decoder else decode(reply)
    except (AttributeError, LookupError, TypeError, ValueError):
        message, code = error_message(text)
        request_id = response.headers.get("x-request-id")
        raise Transient(
            f"`{url}` answered no completion: {message}", status=200, code=code, request_id=request_id
        ) from None
    output.headers = rate_limit_headers(response.headers)
    return output


def encode(
    model: str, chat: ChatType, num_generations: int, options: BaseModel, structured: dict[str, Any]
) -> dict[str, Any]:
    """Return the body of a request; unset options are left out.

    Args:
        structured: From `encode_structured_output`.
    """
    body: dict[str, Any] = {"model": model, "messages": chat}
    if num_generations > 1:
        body["n"] = num_generations
    body |= structured
    body |= options.model_dump(by_alias=True, exclude_none=True, exclude_unset=True)
    return body | body.pop("extra_body", {})


def encode_structured_output(
    mode: str,
    schema: dict[str, Any] | str,
    strict: Callable[[dict[str, Any]], dict[str, Any] | None] | None = None,
) -> dict[str, Any]:
    """Return the members of a request's body that constrain the answer to a structure.

    Args:
        mode: `json_schema`, `tool`, `json_object`, `prompt` or `regex`.
        schema: The JSON schema, or the regular expression.
        strict: Narrows a schema to those the API can enforce strictly; `None` if it has no such form.
    """
    if isinstance(schema, str):
        return {"structured_outputs": {mode: schema}}  # the servers of vLLM
    name = re.sub("[^a-zA-Z0-9_-]", "_", schema.get("title") or "output")[:64]
    narrowed = strict(schema) if strict else None
    shape = {"name": name, "strict": True} if narrowed else {"name": name}
    match mode:
        case "json_schema":
            return {"response_format": {"type": mode, "json_schema": shape | {"schema": narrowed or schema}}}
        case "tool":
            function = {"type": "function", "function": shape | {"parameters": narrowed or schema}}
            return {"tools": [function], "tool_choice": {"type": "function", "function": {"name": name}}}
        case "json_object":
            return {"response_format": {"type": mode}}
        case _:
            return {}


def decode(reply: dict[str, Any]) -> GenerateOutput:
    """Decode a response: the texts in the order of its choices, and their usage together."""
    if not reply["choices"]:
        raise LookupError("no choices")
    choices = sorted(reply["choices"], key=lambda choice: choice.get("index") or 0)
    messages = [choice["message"] for choice in choices]
    usage = reply.get("usage") or {}
    input_details = usage.get("prompt_tokens_details") or {}
    return GenerateOutput(
        [_message_text(message) for message in messages],
        finish_reasons=[
            "refusal" if message.get("refusal") else FINISH_REASONS.get(choice.get("finish_reason") or "")
            for choice, message in zip(choices, messages, strict=True)
        ],
        reasoning=[_reasoning(message) for message in messages],
        logprobs=[_logprobs(choice) for choice in choices],
        usage=Usage(
            input_tokens=usage.get("prompt_tokens") or 0,
            output_tokens=usage.get("completion_tokens") or 0,
            cache_read_input_tokens=input_details.get("cached_tokens") or 0,
            reasoning_output_tokens=(usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0,
            cache_creation_input_tokens=input_details.get("cache_write_tokens") or 0,
        ),
    )


def _message_text(message: dict[str, Any]) -> str | None:
    """Return the text of a message or of its parts, or the arguments of the tool it had to call."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part.get("type") == "text") or None
    if not content and (calls := message.get("tool_calls")):
        arguments = calls[0]["function"]["arguments"]
        return arguments if isinstance(arguments, str) else json.dumps(arguments)
    return content


def _reasoning(message: dict[str, Any]) -> str | None:
    """Return the reasoning of a message, from whichever member the provider has for it."""
    if isinstance(content := message.get("content"), list):
        thoughts = [part.get("thinking") for part in content if part.get("type") == "thinking"]
        texts = [each if isinstance(each, str) else _message_text({"content": each}) for each in thoughts if each]
        return "".join(text for text in texts if text) or None
    return message.get("reasoning_content") or message.get("reasoning")


def _logprobs(choice: dict[str, Any]) -> Logprobs | None:
    logprobs = choice.get("logprobs") or {}
    if positions := logprobs.get("content"):
        return [_chosen_first(position) for position in positions]
    if tokens := logprobs.get("tokens"):  # Together's shape
        pairs = zip(tokens, logprobs["token_logprobs"], strict=True)
        return [[{"token": token, "logprob": logprob}] for token, logprob in pairs]
    return None


def _chosen_first(position: dict[str, Any]) -> list[TokenLogprob]:
    others = [each for each in position.get("top_logprobs") or [] if each["token"] != position["token"]]
    return [{"token": each["token"], "logprob": each["logprob"]} for each in (position, *others)]
