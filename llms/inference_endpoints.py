"""Hugging Face: models behind its router, and endpoints of one's own."""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Hashable, Mapping
from functools import lru_cache
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, Field, HttpUrl, ValidationError, model_validator

from llms.clients import chat_completions, tgi
from llms.clients.chat_template import render_chat
from llms.clients.errors import error_from_sdk
from llms.config.strict import StrictModel, format_validation_error
from llms.errors import Fatal, LLMError, Throttled, Transient
from llms.openai_compatible import ChatCompletionsLLM
from llms.options import ChatOptions, ExtraBody, MaxNewTokens, ReturnLogprobs, StopList, TopLogprobs
from llms.remote import StructuredMode
from llms.store.key import resolve_file
from llms.typing import ChatType, GenerateOutput

WAKE_RETRY_S = 15.0
"""Time after which an endpoint that is not running is asked again; the engine does so for a good while."""


class InferenceEndpointsLLM(ChatCompletionsLLM):
    """Models on Hugging Face: any that the router knows, or an endpoint of yours by its name or its URL.

    An endpoint that scaled to zero wakes by being asked, and is waited for. One that is paused stays so: to resume it
    costs money. Endpoints take chats, and regular expressions where vLLM serves them. With a `tokenizer_id` they are
    sent raw text, made by that tokenizer's chat template; there text-generation-inference keeps to any structure.

    Example:
        ```python
        from llms import InferenceEndpointsLLM

        llm = InferenceEndpointsLLM.load("BLOCK_NAME")
        llm.generate([[{"role": "user", "content": "What's the capital of Spain?"}]])
        ```
    """

    _block_type_name = "Inference Endpoints LLM"
    _documentation_url = HttpUrl("https://huggingface.co/docs/inference-providers/tasks/chat-completion")
    _logo_url = HttpUrl("https://cdn.simpleicons.org/huggingface")
    _api_key_env = "HF_TOKEN"
    _default_base_url = "https://router.huggingface.co"
    _path = "/v1"
    _supports_regex = True

    max_generations_per_request: ClassVar[int | None] = (
        1  # text-generation-inference ignores `n`, as do some behind the router
    )

    model_id: str | None = Field(
        default=None, description="Model to ask through the router, such as `openai/gpt-oss-20b`."
    )
    endpoint_name: str | None = Field(default=None, description="Name of your endpoint.")
    endpoint_namespace: str | None = Field(
        default=None, description="User or organization the endpoint belongs to; the token's own when empty."
    )
    base_url: str | None = Field(default=None, description="URL of your endpoint.")
    model: str = Field(
        default="", description="What the endpoint's server calls its model, where it wants to be told; most do not."
    )
    tokenizer_id: str | None = Field(
        default=None,
        description="Model on the Hub, or folder, whose chat template makes a text of a chat for raw text generation.",
    )

    class Options(ChatOptions):
        """Runtime parameters of chats."""

        max_new_tokens: MaxNewTokens = Field(default=None, serialization_alias="max_tokens")
        stop: StopList = None
        logprobs: ReturnLogprobs = None
        top_logprobs: TopLogprobs = None
        extra_body: ExtraBody = None

    @model_validator(mode="after")
    def _require_one_target(self) -> Self:
        given = [f"`{name}`" for name in ("model_id", "endpoint_name", "base_url") if getattr(self, name)]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"give exactly one of `model_id`, `endpoint_name` and `base_url`, not {found}.")
        if self.model_id and self.tokenizer_id:
            raise ValueError("the router of a `model_id` takes chats only: leave `tokenizer_id` empty.")
        return self

    @property
    def model_name(self) -> str:
        """The model if it is known, else its endpoint."""
        return self.model_id or self.model or self.endpoint_name or self.base_url or ""

    def prepare(self) -> None:
        """Check that there is a key and a way to hold texts to the `structured_output`; find endpoint and tokenizer.

        Raises:
            Fatal: Naming what is missing.
        """
        super().prepare()
        with contextlib.suppress(Throttled, Transient):  # the requests wait for it
            for key, find in self._pending_lookups():
                _lookups[key] = find()

    def options(self, kwargs: Mapping[str, Any]) -> StrictModel:
        """Validate the options of chats, or of raw text generation.

        Raises:
            Fatal: If a name is unknown or a value has the wrong type.
        """
        if not self.tokenizer_id:
            return super().options(kwargs)
        try:
            return tgi.TextOptions(**{**self.generation_kwargs, **kwargs})
        except ValidationError as error:
            raise Fatal(f"Runtime parameters of `{type(self).__name__}`: {format_validation_error(error)}") from None

    def cache_fields(self) -> dict[str, Any]:
        """Return the fields, with the content of a tokenizer's folder. Usually not overridden."""
        return super().cache_fields() | {"tokenizer_id": resolve_file(self.tokenizer_id)}

    async def agenerate(self, input: ChatType, num_generations: int = 1, **kwargs: Any) -> GenerateOutput:
        """Answer one chat, with one request."""
        options, headers = self.options(kwargs), await self._headers()
        for key, find in self._pending_lookups():
            _lookups[key] = await asyncio.to_thread(find)
        try:
            if not self.tokenizer_id:
                body = self._body(input, num_generations, options)
                return await chat_completions.complete(self._endpoint(), headers, body, self.timeout)
            template, special = _lookups[self.tokenizer_id]
            text = render_chat(template, self._with_schema_prompt(input), **special)
            body = tgi.encode(
                text, options, None if self._resolve_structured_mode() == "prompt" else self.structured_output
            )
            return await chat_completions.complete(self._server_url(), headers, body, self.timeout, tgi.decode)
        except Transient as error:
            if error.status != 503 or self.model_id:
                raise
            raise _not_running(error.message, **_details(error)) from None

    def _resolve_base_url(self) -> str:
        if self.endpoint_name:  # its page: the URL it runs at is looked up later
            return f"https://endpoints.huggingface.co/{self.endpoint_namespace or '~'}/endpoints/{self.endpoint_name}"
        return super()._resolve_base_url()

    def _server_url(self) -> str:
        return _lookups[self._endpoint_key()] if self.endpoint_name else self._resolve_base_url()

    def _endpoint(self) -> str:
        return f"{self._server_url()}{self._path}/chat/completions"

    def _resolve_api_key(self) -> str:
        """Return the key in force, or the token stored by `hf auth login`."""
        if self.api_key or os.getenv(self._api_key_env):
            return super()._resolve_api_key()
        return _cli_token(int(time.monotonic() // 60)) or super()._resolve_api_key()

    def _resolve_structured_mode(self) -> StructuredMode | Literal["regex"] | None:
        mode = super()._resolve_structured_mode()
        if mode == "regex" and self.model_id:
            raise Fatal("The router of a `model_id` takes no regular expression: use a JSON schema with a `pattern`.")
        if mode in ("tool", "json_object") and self.tokenizer_id:
            raise Fatal(f"Raw text generation has no `structured_mode={mode}`: leave it empty, or use `prompt`.")
        return mode

    def _body(self, chat: ChatType, num_generations: int, options: BaseModel) -> dict[str, Any]:
        body = super()._body(chat, num_generations, options) | {"model": self.model_id or self.model}
        return body if body["model"] else {name: value for name, value in body.items() if name != "model"}

    def _endpoint_key(self) -> Hashable:
        return (self._resolve_base_url(), hash(self.api_key))

    def _pending_lookups(self) -> list[tuple[Hashable, Callable[[], Any]]]:
        """Return the lookups that are due before the first request: what to find, and how."""
        needed: dict[Hashable, Callable[[], Any]] = {}
        if self.endpoint_name:
            needed[self._endpoint_key()] = self._find_endpoint
        if tokenizer := self.tokenizer_id:
            needed[tokenizer] = lambda: tgi.load_chat_template(tokenizer, self._resolve_api_key())
        return [(key, find) for key, find in needed.items() if key not in _lookups]

    def _find_endpoint(self) -> str:
        """Return the URL at which the endpoint of this name runs."""
        from huggingface_hub import get_inference_endpoint

        name, label = self.endpoint_name or "", f"endpoint {self.endpoint_name}"
        try:
            endpoint = get_inference_endpoint(name, namespace=self.endpoint_namespace, token=self._resolve_api_key())
        except Exception as error:
            raise error_from_sdk(error, label) from None
        state = endpoint.raw["status"]["state"]
        remedies = {"paused": f"`hf endpoints resume {name}` starts it, and its costs", "failed": "its logs say why"}
        if state in remedies:
            raise Fatal(f"The {label} is {state}: {remedies[state]}.")
        if not endpoint.url:
            raise _not_running(f"The {label} is {state}.")
        return endpoint.url.rstrip("/")


_lookups: dict[Hashable, Any] = {}
"""URLs of endpoints by name, and chat templates of tokenizers."""


def _not_running(message: str, retry_after: float | None = None, **facts: Any) -> Throttled:
    """Return the error for an endpoint that is not running: the engine waits, and tries again for a good while."""
    return Throttled(message, status=503, retry_after=retry_after or WAKE_RETRY_S, **facts)


def _details(error: LLMError) -> dict[str, Any]:
    return {name: getattr(error, name) for name in ("code", "request_id", "retry_after", "headers")}


@lru_cache(maxsize=1)
def _cli_token(minute: int) -> str | None:
    """Return the token of the command line, read once a minute: its file may be renewed."""
    from huggingface_hub import get_token

    return get_token()
