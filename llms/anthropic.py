"""Anthropic: Claude, over the Messages API."""

import asyncio
import json
import os
import re
import time
from collections.abc import Callable
from itertools import takewhile
from typing import Any, ClassVar

from pydantic import BaseModel, Field, HttpUrl, SecretStr

from llms.clients import event_loop
from llms.clients.errors import error_from_sdk, error_message, rate_limit_headers
from llms.clients.http import REQUEST_HEADERS, guard_response
from llms.clients.images import parse_data_url
from llms.config.extras import import_optional
from llms.config.strict import StrictModel
from llms.errors import Transient
from llms.options import ExtraBody, MaxNewTokens, PositiveTopK, ReasoningEffort, StopList, Temperature, TopP
from llms.remote import RemoteLLM, StructuredMode
from llms.typing import ChatType, FinishReason, GenerateOutput, Usage

DEFAULT_MAX_TOKENS = 4096
"""Default of `max_new_tokens`: the API wants a number, and every Claude accepts this one."""

SAMPLING_OPTIONS = ("temperature", "top_p", "top_k")
"""Options that the API takes under its old version only, and the SDK no longer has."""

SAMPLING_HEADERS = {"anthropic-version": "2023-06-01"}

HEADERS_ENV = "ANTHROPIC_CUSTOM_HEADERS"
"""Variable of more headers, which the SDK reads."""

FINISH_REASONS: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "pause_turn": "tool_calls",
    "refusal": "refusal",
}

TOOL_NAME = "answer"
"""Name of the tool to call, for schemas that the API's own mode does not accept."""


class AnthropicLLM(RemoteLLM):
    """Claude models served by Anthropic, or by a gateway that speaks its Messages API (set `base_url`).

    Example:
        ```python
        from llms import AnthropicLLM

        llm = AnthropicLLM.load("BLOCK_NAME")
        llm.generate([[{"role": "user", "content": "What's the capital of Spain?"}]])
        ```
    """

    _block_type_name = "Anthropic LLM"
    _documentation_url = HttpUrl("https://platform.claude.com/docs/en/api/messages")
    _logo_url = HttpUrl("https://cdn.simpleicons.org/anthropic")
    packages: ClassVar[tuple[str, ...]] = ("anthropic",)
    _provider: ClassVar[str | None] = "anthropic"
    _api_key_env: ClassVar[str] = "ANTHROPIC_API_KEY"
    _other_api_key_envs: ClassVar[tuple[str, ...]] = ("ANTHROPIC_AUTH_TOKEN",)
    _base_url_env: ClassVar[str | None] = "ANTHROPIC_BASE_URL"
    _default_base_url: ClassVar[str | None] = "https://api.anthropic.com"
    _structured_modes: ClassVar[tuple[StructuredMode, ...]] = ("json_schema", "tool", "prompt")

    max_generations_per_request: ClassVar[int | None] = 1

    class Options(StrictModel):
        """Runtime parameters; what is unset is not sent."""

        max_new_tokens: MaxNewTokens = Field(
            default=None,
            serialization_alias="max_tokens",
            description=f"Tokens to generate at most, thinking included; {DEFAULT_MAX_TOKENS} when empty.",
        )
        temperature: Temperature = Field(
            default=None,
            description="How freely to sample; 0 is greedy. Like `top_p` and `top_k` it is sent under the API's old "
            "version, the only one that has it; the newest models refuse it.",
        )
        top_p: TopP = None
        top_k: PositiveTopK = None
        stop: StopList = Field(default=None, serialization_alias="stop_sequences")
        reasoning_effort: ReasoningEffort = Field(
            default=None,
            serialization_alias="effort",
            description="How much a model puts into its answer: `low`, `medium`, `high`, `xhigh`, `max`.",
        )
        thinking: dict[str, Any] | None = Field(
            default=None,
            description='Whether to think first: `{"type": "adaptive"}`, `{"type": "disabled"}`, or '
            '`{"type": "enabled", "budget_tokens": 2048}`, with fewer of them than `max_new_tokens`.',
        )
        cache_control: dict[str, Any] | None = Field(
            default=None,
            description='Keeps the prompt for requests that begin alike: `{"type": "ephemeral", "ttl": "1h"}`; a '
            "content part may have its own.",
        )
        service_tier: str | None = Field(default=None, description="`auto` or `standard_only`.")
        speed: str | None = Field(default=None, description="`standard` or `fast`, for models that have both.")
        inference_geo: str | None = Field(default=None, description="Where in the world the model is to run.")
        metadata: dict[str, Any] | None = Field(default=None, description="`user_id`: an opaque name of the end user.")
        extra_body: ExtraBody = Field(
            default=None, description="More members for the request's body, for what has no name here."
        )
        extra_headers: dict[str, str] | None = Field(
            default=None, description="More headers for the request, such as `anthropic-beta`; no secrets."
        )

    def prepare(self) -> None:
        """Check for the package, too."""
        super().prepare()
        import_optional("anthropic", self)

    def cache_fields(self) -> dict[str, Any]:
        """Return the fields, with the headers that the SDK takes from the environment. Usually not overridden."""
        headers = os.getenv(HEADERS_ENV)
        return super().cache_fields() | ({"custom_headers": SecretStr(headers)} if headers else {})

    async def agenerate(self, input: ChatType, num_generations: int = 1, **kwargs: Any) -> GenerateOutput:
        """Answer one chat with one generation, the API's limit per request."""
        return await event_loop.run_on_loop(self._complete(self._build_request(input, self.options(kwargs))))

    async def _complete(self, request: dict[str, Any]) -> GenerateOutput:
        url = f"{self._resolve_base_url()}/v1/messages"
        create = self._client().messages.with_raw_response.create
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self.timeout):
                reply = (await create(**request)).http_response
        except TimeoutError:
            raise Transient(f"`{url}` gave no answer within {self.timeout:g} s.", timed_out=True) from None
        except Exception as error:
            raise error_from_sdk(error, url) from None
        try:
            output = decode(reply.json())
        except (AttributeError, LookupError, TypeError, ValueError):
            message, code = error_message(reply.text)
            request_id = reply.headers.get("request-id")
            raise Transient(
                f"`{url}` answered no message: {message}", status=200, code=code, request_id=request_id
            ) from None
        output.seconds, output.headers = time.perf_counter() - started, rate_limit_headers(reply.headers)
        return output

    def _build_request(self, chat: ChatType, options: BaseModel) -> dict[str, Any]:
        """Return the SDK's arguments."""
        given = options.model_dump(by_alias=True, exclude_none=True, exclude_unset=True)
        request = {
            "model": self.model,
            "max_tokens": DEFAULT_MAX_TOKENS,
            **encode(self._with_schema_prompt(chat)),
            **self._encode_structured_output(),
        }
        if effort := given.pop("effort", None):
            request["output_config"] = request.get("output_config", {}) | {"effort": effort}
        if sampling := {name: given.pop(name) for name in SAMPLING_OPTIONS if name in given}:
            given["extra_body"] = sampling | given.get("extra_body", {})
            given["extra_headers"] = SAMPLING_HEADERS | given.get("extra_headers", {})
        return request | given

    def _encode_structured_output(self) -> dict[str, Any]:
        """Return the members that constrain the answer to a schema: the API's own mode, or a tool to call."""
        mode = self._resolve_structured_mode()
        if mode not in ("json_schema", "tool"):
            return {}
        narrowed = narrow_schema(self._json_schema(), import_optional("anthropic", self).transform_schema)
        if narrowed and mode == "json_schema":
            return {"output_config": {"format": {"type": mode, "schema": narrowed}}}
        tool = {"name": TOOL_NAME, "input_schema": narrowed or self._json_schema()} | (
            {"strict": True} if narrowed else {}
        )
        return {"tools": [tool], "tool_choice": {"type": "tool", "name": TOOL_NAME, "disable_parallel_tool_use": True}}

    def _client(self) -> Any:
        """Return the SDK client of this process for this address and key."""
        sdk, url, key = import_optional("anthropic", self), self._resolve_base_url(), self._resolve_api_key()

        def build() -> Any:
            # 0 is no limit to aiohttp: admission is the engine's, and a queue for connections spends the time-out.
            # Retries and the time-out are ours too.
            limits = import_optional("httpx2", self).Limits(max_connections=0)
            http_client = sdk.DefaultAioHttpClient(
                timeout=None, limits=limits, headers=REQUEST_HEADERS, event_hooks={"response": [guard_response]}
            )
            return sdk.AsyncAnthropic(api_key=key, base_url=url, timeout=None, max_retries=0, http_client=http_client)

        named = (type(self).__name__, url, key, os.getenv(HEADERS_ENV))
        return event_loop.shared_client(named, build, lambda client: client.close())


def encode(chat: ChatType) -> dict[str, Any]:
    """Encode a chat for the API: leading system messages apart, images in its own shape, no empty message."""
    leading = list(takewhile(lambda message: message["role"] == "system", chat))
    messages = [
        {"role": message["role"], "content": _encode_content(message["content"])}
        for message in chat[len(leading) :]
        if message["content"]
    ]
    system = [_encode_content(message["content"]) for message in leading if message["content"]]
    if len(system) > 1:  # as one
        system = [[block for content in system for block in _as_blocks(content)]]
    return {"system": system[0], "messages": messages} if system else {"messages": messages}


def _encode_content(content: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    return content if isinstance(content, str) else [_encode_part(part) for part in content]


def _as_blocks(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _encode_part(part: dict[str, Any]) -> dict[str, Any]:
    """Encode an image; texts, and parts in the API's own shape already, are unchanged."""
    if part.get("type") != "image_url":
        return part
    url: str = part["image_url"]["url"]
    if not (image := parse_data_url(url)):
        return {"type": "image", "source": {"type": "url", "url": url}}
    media_type, data = image
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}


def decode(reply: dict[str, Any]) -> GenerateOutput:
    """Decode a response: its text, reasoning, finish reason and usage."""
    blocks: list[dict[str, Any]] = reply["content"] or []
    texts = [block["text"] for block in blocks if block["type"] == "text"]
    thoughts = [block["thinking"] for block in blocks if block["type"] == "thinking"]
    arguments = [json.dumps(block["input"], ensure_ascii=False) for block in blocks if block["type"] == "tool_use"]
    usage = reply["usage"]
    read, written = usage.get("cache_read_input_tokens") or 0, usage.get("cache_creation_input_tokens") or 0
    return GenerateOutput(
        ["".join(texts) or next(iter(arguments), None)],
        finish_reasons=[FINISH_REASONS.get(reply.get("stop_reason") or "")],
        reasoning=["".join(thoughts) or None],
        usage=Usage(
            input_tokens=usage["input_tokens"] + read + written,  # theirs is without the cache
            output_tokens=usage["output_tokens"],
            cache_read_input_tokens=read,
            reasoning_output_tokens=(usage.get("output_tokens_details") or {}).get("thinking_tokens") or 0,
            cache_creation_input_tokens=written,
        ),
    )


def narrow_schema(
    schema: dict[str, Any], transform: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any] | None:
    """Narrow a schema to one the API's own mode accepts, which enforces types but no bounds; `None` if impossible.

    Args:
        transform: The SDK's, which moves keywords the API cannot enforce into descriptions. It fails on a list of types
            or none, closes an object of anything, and passes what the API refuses: cycles, references but to `$defs`.
    """
    try:
        narrowed = transform(schema)
    except (AssertionError, AttributeError, TypeError, ValueError):
        return None
    text = json.dumps(narrowed)
    if '"properties": {}' in text or re.search(r'"\$ref": "(?!#/\$defs/)', text):
        return None
    return None if _has_cycle(narrowed.get("$defs", {})) else narrowed


def _has_cycle(defs: dict[str, Any]) -> bool:
    references = {name: set(re.findall(r'"#/\$defs/([^"]+)"', json.dumps(each))) for name, each in defs.items()}
    for _ in defs:
        references = {
            name: names.union(*(references.get(each, ()) for each in names)) for name, names in references.items()
        }
    return any(name in names for name, names in references.items())
