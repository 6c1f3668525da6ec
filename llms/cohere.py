"""Cohere: the Command models, over the second version of its Chat API."""

import asyncio
import time
from typing import Any, ClassVar

from pydantic import BaseModel, Field, HttpUrl

from llms.clients import event_loop
from llms.clients.errors import error_from_sdk, rate_limit_headers
from llms.clients.http import REQUEST_HEADERS, guard_response
from llms.config.extras import import_optional
from llms.config.strict import StrictModel
from llms.errors import Fatal, LLMError, Throttled, Transient
from llms.options import (
    ExtraBody,
    FrequencyPenalty,
    MaxNewTokens,
    PresencePenalty,
    ResponseFormat,
    ReturnLogprobs,
    Seed,
    StopList,
    Temperature,
    TopKOrAll,
    TopP,
)
from llms.remote import RemoteLLM, StructuredMode
from llms.structured.output import with_schema_prompt
from llms.typing import ChatType, FinishReason, GenerateOutput, Logprobs, Usage

FINISH_REASONS: dict[str, FinishReason] = {
    "COMPLETE": "stop",
    "STOP_SEQUENCE": "stop",
    "MAX_TOKENS": "length",
    "TOOL_CALL": "tool_calls",
    "ERROR": "error",
    "TIMEOUT": "error",
}

ENFORCED_KEYWORDS = {"type", "properties", "required", "items", "enum", "const", "anyOf", "$ref", "$defs"}
IGNORED_KEYWORDS = {"title", "description"}
"""Keywords of a JSON schema that the API enforces, and that it ignores; it may refuse others."""

STRING_FORMATS = {"date-time", "date", "time", "uuid"}
"""Formats of texts that the API enforces."""


class CohereLLM(RemoteLLM):
    """Chat models served by Cohere.

    Example:
        ```python
        from llms import CohereLLM

        llm = CohereLLM.load("BLOCK_NAME")
        llm.generate([[{"role": "user", "content": "What's the capital of Spain?"}]])
        ```
    """

    _block_type_name = "Cohere LLM"
    _documentation_url = HttpUrl("https://docs.cohere.com/v2/reference/chat")
    _logo_url = HttpUrl("https://cdn.simpleicons.org/cohere")
    packages: ClassVar[tuple[str, ...]] = ("cohere",)
    _provider: ClassVar[str | None] = "cohere"
    _api_key_env: ClassVar[str] = "CO_API_KEY"
    _other_api_key_envs: ClassVar[tuple[str, ...]] = ("COHERE_API_KEY",)
    _base_url_env: ClassVar[str | None] = "CO_API_URL"
    _default_base_url: ClassVar[str | None] = "https://api.cohere.com"
    _structured_modes: ClassVar[tuple[StructuredMode, ...]] = ("json_schema", "json_object", "prompt")

    max_generations_per_request: ClassVar[int | None] = 1

    class Options(StrictModel):
        """Runtime parameters; what is unset is not sent."""

        max_new_tokens: MaxNewTokens = Field(
            default=None, serialization_alias="max_tokens", description="Tokens to generate at most, thinking included."
        )
        temperature: Temperature = None
        top_p: TopP = Field(
            default=None, serialization_alias="p", description="Sample from this much probability mass; 0.99 at most."
        )
        top_k: TopKOrAll = Field(
            default=None,
            serialization_alias="k",
            description="Sample from this many likeliest tokens; from all when 0.",
        )
        stop: StopList = Field(default=None, serialization_alias="stop_sequences")
        seed: Seed = None
        frequency_penalty: FrequencyPenalty = None
        presence_penalty: PresencePenalty = None
        response_format: ResponseFormat | None = Field(  # `| None` once more: so the schema of saved blocks has it
            default=None,
            description='`"json"` for any JSON object (say so in the prompt too), or the API\'s own dictionary.',
        )
        logprobs: ReturnLogprobs = None
        thinking: dict[str, Any] | None = Field(
            default=None,
            description='Whether a reasoning model thinks first: `{"type": "disabled"}`, or '
            '`{"type": "enabled", "token_budget": 500}`.',
        )
        safety_mode: str | None = Field(default=None, description="`CONTEXTUAL`, `STRICT` or `OFF`.")
        priority: int | None = Field(default=None, description="How early it is handled under load; 0 is earliest.")
        extra_body: ExtraBody = Field(
            default=None, description="More members for the request's body, for what has no name here."
        )
        extra_headers: dict[str, str] | None = Field(
            default=None, description="More headers for the request; no secrets."
        )

    def prepare(self) -> None:
        """Check for the package, too."""
        super().prepare()
        self._sdk()

    async def agenerate(self, input: ChatType, num_generations: int = 1, **kwargs: Any) -> GenerateOutput:
        """Answer one chat with one generation, the API's limit per request."""
        return await event_loop.run_on_loop(self._complete(self._build_request(input, self.options(kwargs))))

    async def _complete(self, request: dict[str, Any]) -> GenerateOutput:
        url = f"{self._resolve_base_url()}/v2/chat"
        chat = self._client().with_raw_response.chat
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self.timeout):
                reply = await chat(**request)
            output = decode(reply.data)
        except TimeoutError:
            raise Transient(f"`{url}` gave no answer within {self.timeout:g} s.", timed_out=True) from None
        except (AttributeError, LookupError, TypeError) as error:  # the SDK checks no reply, and trips over some
            raise Transient(f"`{url}` answered no message: {error}", status=200) from None
        except Exception as error:
            raise _fatal_if_quota_spent(error_from_sdk(error, url)) from None
        output.seconds, output.headers = time.perf_counter() - started, rate_limit_headers(reply.headers)
        return output

    def _build_request(self, chat: ChatType, options: BaseModel) -> dict[str, Any]:
        """Return the SDK's arguments."""
        given = options.model_dump(by_alias=True, exclude_none=True, exclude_unset=True)
        names = {"extra_body": "additional_body_parameters", "extra_headers": "additional_headers"}
        more = {names[name]: given.pop(name) for name in names if name in given}
        messages = [
            message for message in self._with_schema_prompt(chat) if message["content"]
        ]  # the API takes no empty ones
        request = {"model": self.model, "messages": messages, **self._encode_structured_output(), **given}
        return request | {"request_options": more} if more else request

    def _with_schema_prompt(self, chat: ChatType) -> ChatType:
        """Return the chat with the schema in it, in every mode: limited to JSON alone, a model may not stop."""
        return with_schema_prompt(chat, self._json_schema()) if self._resolve_structured_mode() else chat

    def _encode_structured_output(self) -> dict[str, Any]:
        """Return the member that constrains the answer to a schema, or to any JSON."""
        mode = self._resolve_structured_mode()
        if mode not in ("json_schema", "json_object"):
            return {}
        schema = narrow_schema(self._json_schema()) if mode == "json_schema" else None
        return {"response_format": {"type": "json_object"} | ({"json_schema": schema} if schema else {})}

    def _client(self) -> Any:
        """Return the SDK client of this process for this address and key."""
        sdk, url, key = self._sdk(), self._resolve_base_url(), self._resolve_api_key()

        def build() -> Any:
            # 0 is no limit to aiohttp: admission is the engine's, and a queue for connections spends the time-out.
            # Retries and the time-out are ours too.
            limits = import_optional("httpx", self).Limits(max_connections=0)
            http_client = sdk.DefaultAioHttpClient(
                timeout=None, limits=limits, headers=REQUEST_HEADERS, event_hooks={"response": [guard_response]}
            )
            return sdk.AsyncClientV2(key, base_url=url, max_retries=0, httpx_client=http_client)

        return event_loop.shared_client(
            (type(self).__name__, url, key), build, lambda client: client.__aexit__(None, None, None)
        )

    def _sdk(self) -> Any:
        import_optional("httpx_aiohttp", self)  # the faster transport, an extra of the SDK's own
        import_optional(
            "cohere.client_v2", self
        )  # which `cohere` imports late: it takes long, so not on the event loop
        return import_optional("cohere", self)


def _fatal_if_quota_spent(failure: LLMError) -> LLMError:
    """Return the failure; `Fatal` for a trial key's monthly quota: a 429 like any other, yet no waiting mends it."""
    if isinstance(failure, Throttled) and "/ month" in failure.message:
        message = f"{failure.message} A production key has no such limit."
        return Fatal(message, status=failure.status, request_id=failure.request_id)
    return failure


def decode(reply: Any) -> GenerateOutput:
    """Decode a response: its text, reasoning, finish reason and usage."""
    parts = reply.message.content or []
    texts = [part.text for part in parts if part.type == "text"]
    thoughts = [part.thinking for part in parts if part.type == "thinking"]
    usage = reply.usage
    charged = usage and (usage.billed_units or usage.tokens)  # `tokens` counts what the API adds to a chat, too
    counts = (charged.input_tokens, charged.output_tokens, usage.cached_tokens) if charged else ()
    read, written, cached = [int(count or 0) for count in counts] or (0, 0, 0)
    return GenerateOutput(
        ["".join(texts) or None],
        finish_reasons=[FINISH_REASONS.get(reply.finish_reason)],
        reasoning=["".join(thoughts) or None],
        logprobs=[_logprobs(reply.logprobs)],
        usage=Usage(read, written, min(read, cached)),
    )


def _logprobs(chunks: Any) -> Logprobs | None:
    """Return the log probability of each chunk: a token, or a few that make one character."""
    return [[{"token": each.text or "", "logprob": sum(each.logprobs or ())}] for each in chunks] if chunks else None


def narrow_schema(schema: dict[str, Any]) -> dict[str, Any] | None:
    """Narrow a schema to the keywords the API enforces; `None` if it accepts no such schema.

    It wants an object, and a required member of every object.
    """
    try:
        narrowed = _narrow(schema)
    except (AttributeError, TypeError, ValueError):
        return None
    return narrowed if narrowed.get("type") == "object" else None


def _narrow(schema: dict[str, Any]) -> dict[str, Any]:
    kept = {("anyOf" if key == "oneOf" else key): value for key, value in schema.items()}
    narrowed = {key: value for key, value in kept.items() if key in ENFORCED_KEYWORDS | IGNORED_KEYWORDS}
    if not narrowed.keys() & {"type", "anyOf", "$ref", "enum", "const"} or isinstance(kept.get("type"), list):
        raise ValueError("no type, or several")
    if not kept.get("$ref", "#/$defs/").startswith("#/$defs/"):
        raise ValueError("a reference to elsewhere")
    if kept.get("type") == "object" and not kept.get("required"):
        raise ValueError("an object of nothing in particular")
    for key in ("properties", "$defs"):
        if key in kept:
            narrowed[key] = {name: _narrow(each) for name, each in kept[key].items()}
    if "items" in kept:
        narrowed["items"] = _narrow(kept["items"])
    if "anyOf" in kept:
        narrowed["anyOf"] = [_narrow(each) for each in kept["anyOf"]]
    return narrowed | ({"format": kept["format"]} if kept.get("format") in STRING_FORMATS else {})
