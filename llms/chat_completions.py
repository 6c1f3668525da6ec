"""The wire most providers speak: OpenAI's chat completions, over aiohttp.

The SDKs cost ten times the CPU of the request they send; their hot path is this one. A test sends the same calls
through the SDK and compares.
"""

import json
import math
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Annotated, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from pydantic import BaseModel, BeforeValidator, Field

from llms import loop
from llms.base import StructuredLLM
from llms.errors import Fatal, LLMError, Transient, from_status
from llms.strict import Strict
from llms.typing import ChatType, FinishReason, GenerateOutput, Usage

FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "length": "length",
    "model_length": "length",
    "content_filter": "content_filter",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "error": "error",
}
"""What servers say, in our one vocabulary."""


def _spelled_out(value: Any) -> Any:
    """`"json"` and `"text"` as the API wants them."""
    return {"type": {"json": "json_object"}.get(value, value)} if isinstance(value, str) else value


ResponseFormat = Annotated[dict[str, Any], BeforeValidator(_spelled_out)]
"""`"json"`, `"text"`, or the API's own dictionary."""


class ChatOptions(Strict):
    """The sampling options of OpenAI's chat completions; what is unset is not sent."""

    max_new_tokens: int | None = Field(
        default=None,
        gt=0,
        serialization_alias="max_completion_tokens",
        description="Tokens to generate at most, reasoning included.",
    )
    temperature: float | None = Field(default=None, ge=0, description="How freely to sample; 0 is greedy.")
    top_p: float | None = Field(default=None, gt=0, le=1, description="Sample from this much probability mass.")
    stop: str | list[str] | None = Field(default=None, description="Texts at which generation ends.")
    seed: int | None = Field(default=None, description="Makes sampling repeatable, as far as the provider can.")
    frequency_penalty: float | None = Field(default=None, description="Against words already used often.")
    presence_penalty: float | None = Field(default=None, description="Against words already used at all.")
    response_format: ResponseFormat | None = Field(
        default=None,
        description='`"json"` for any JSON object (say so in the prompt too), or the API\'s own dictionary.',
    )


async def complete(url: str, headers: dict[str, str], body: dict[str, Any], timeout: float) -> GenerateOutput:
    """Send one request to `{url}/chat/completions` and read the reply.

    Raises:
        LLMError: Of the class the failure belongs to; it never holds the headers.
    """
    return await loop.hop(_complete(f"{url}/chat/completions", headers, body, timeout))


async def _complete(url: str, headers: dict[str, str], body: dict[str, Any], timeout: float) -> GenerateOutput:
    session = loop.shared("aiohttp", _session, lambda session: session.close())
    started = time.perf_counter()
    try:
        async with session.post(
            url, json=body, headers=headers, proxy=_proxy(url), timeout=aiohttp.ClientTimeout(total=timeout)
        ) as response:
            text = await response.text(errors="replace")
    except TimeoutError:
        raise Transient(f"`{url}` gave no answer within {timeout:g} s.") from None
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
        raise Fatal(f"`{url}` is not an address: `base_url` is one, `https://` included.") from None
    except aiohttp.ClientError as error:
        raise Transient(f"`{url}`: {type(error).__name__}: {error}") from None
    except ValueError as error:  # a key with a line break, a login in the URL: no request was sent
        raise Fatal(f"`{url}` cannot be asked: {error}") from None
    seconds = time.perf_counter() - started
    if response.status != 200:
        raise failure(response.status, dict(response.headers), text, url)
    try:
        output = decode(json.loads(text))
    except (AttributeError, LookupError, TypeError, ValueError):
        message, code = _said(text)
        request_id = response.headers.get("x-request-id")
        raise Transient(
            f"`{url}` answered no completion: {message}", status=200, code=code, request_id=request_id
        ) from None
    output.seconds, output.headers = seconds, _rates(response.headers)
    return output


def encode(llm: StructuredLLM, model: str, chat: ChatType, num_generations: int, options: BaseModel) -> dict[str, Any]:
    """The body of one chat completion; an option that is unset is not in it."""
    body: dict[str, Any] = {"model": model, "messages": chat}
    if num_generations > 1:
        body["n"] = num_generations
    if held_to := _response_format(llm):
        body["response_format"] = held_to
    body |= options.model_dump(by_alias=True, exclude_none=True, exclude_unset=True)
    return body | body.pop("extra_body", {})


def _response_format(llm: StructuredLLM) -> dict[str, Any] | None:
    match llm.structured_output:
        case None:
            return None
        case {"format": "json", "schema": dict(schema)}:
            name = re.sub("[^a-zA-Z0-9_-]", "_", schema.get("title") or "output")[:64]
            return {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}
        case _:
            raise Fatal(
                f"`{type(llm).__name__}` cannot be held to a regular expression: use a JSON schema with a `pattern`."
            )


def decode(reply: dict[str, Any]) -> GenerateOutput:
    """A reply's texts in the order of its choices, with why each ended and what they cost together."""
    if not reply["choices"]:
        raise LookupError("no choices")
    choices = sorted(reply["choices"], key=lambda choice: choice.get("index") or 0)
    messages = [choice["message"] for choice in choices]
    usage = reply.get("usage") or {}
    return GenerateOutput(
        [message.get("content") for message in messages],
        finish_reasons=[
            "refusal" if message.get("refusal") else FINISH_REASONS.get(choice.get("finish_reason") or "")
            for choice, message in zip(choices, messages, strict=True)
        ],
        reasoning=[message.get("reasoning_content") or message.get("reasoning") for message in messages],
        usage=Usage(
            input_tokens=usage.get("prompt_tokens") or 0,
            output_tokens=usage.get("completion_tokens") or 0,
            cache_read_input_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
            reasoning_output_tokens=(usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0,
        ),
    )


def failure(status: int, headers: dict[str, str], text: str, url: str) -> LLMError:
    """What a reply that is not 200 means."""
    message, code = _said(text)
    folded = {name.lower(): value for name, value in headers.items()}
    return from_status(
        status,
        f"`{url}` answered {status}: {message}",
        code=code,
        request_id=folded.get("x-request-id"),
        retry_after=_retry_after(folded),
        headers=_rates(folded),
    )


def _rates(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that tell of rate limits, names in lower case."""
    return {name.lower(): value for name, value in headers.items() if "ratelimit" in name.lower()}


def _said(text: str) -> tuple[str, str | None]:
    """The message and the code in an error's body, whatever shape it has."""
    try:
        body = json.loads(text)
    except ValueError:
        return text[:500].strip() or "nothing", None
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return str(error)[:500], None
    code = error.get("code") or error.get("type")
    return str(error.get("message") or error)[:500], str(code) if code else None


def _retry_after(headers: dict[str, str]) -> float | None:
    """Seconds a reply asks us to wait: milliseconds, seconds or a date; `None` when it does not, or makes no sense."""
    for name, seconds in (
        ("retry-after-ms", lambda value: float(value) / 1000),
        ("retry-after", float),
        ("retry-after", lambda value: parsedate_to_datetime(value).timestamp() - time.time()),
    ):
        try:
            wait = seconds(headers[name])
        except (KeyError, OverflowError, ValueError):
            continue
        return max(0.0, wait) if math.isfinite(wait) else None
    return None


def _session() -> aiohttp.ClientSession:
    # No limit: admission is the engine's, and a request that queues for a connection spends its time-out there.
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))


@lru_cache(maxsize=100)
def _proxy(url: str) -> str | None:
    """The proxy the environment names. Not `trust_env`, which also reads `~/.netrc`: a login there bars our key."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)
