"""Ollama: open models on a machine of one's own, or on ollama.com."""

import asyncio
import os
import re
from base64 import b64decode
from typing import Any, ClassVar, Literal

import aiohttp
from pydantic import Field, HttpUrl

from llms.clients import event_loop
from llms.clients.chat_completions import encode_structured_output
from llms.clients.errors import error_from_response, error_from_sdk
from llms.clients.http import open_session
from llms.clients.images import parse_data_url
from llms.config.extras import import_optional
from llms.config.strict import StrictModel
from llms.errors import Fatal, Rejected, Transient
from llms.options import ChatOptions, MaxNewTokens, MinP, ReturnLogprobs, TopKOrAll, TopLogprobs
from llms.remote import RemoteLLM, StructuredMode
from llms.typing import ChatType, FinishReason, GenerateOutput, Logprobs, Message, Usage

FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "load": "error", "unload": "error"}
"""The server's finish reasons in our vocabulary; `load` and `unload` answer an empty chat."""

DEFAULT_PORT = 11434
"""Port a server listens on by default."""

TOP_LEVEL_OPTIONS = ("keep_alive", "logprobs", "think", "top_logprobs")
"""Runtime parameters at the top level of a request; all others go into its `options`."""


class OllamaLLM(RemoteLLM):
    """Open models served by Ollama, on this machine or any other (set `base_url` or `OLLAMA_HOST`).

    Example:
        ```python
        from llms import OllamaLLM

        llm = OllamaLLM.load("BLOCK_NAME")
        llm.generate([[{"role": "user", "content": "What's the capital of Spain?"}]])
        ```
    """

    _block_type_name = "Ollama LLM"
    _documentation_url = HttpUrl("https://docs.ollama.com/api/chat")
    _logo_url = HttpUrl("https://cdn.simpleicons.org/ollama")
    packages: ClassVar[tuple[str, ...]] = ("ollama",)
    _api_key_env: ClassVar[str] = "OLLAMA_API_KEY"
    _base_url_env: ClassVar[str | None] = "OLLAMA_HOST"
    _default_base_url: ClassVar[str | None] = f"http://127.0.0.1:{DEFAULT_PORT}"
    _structured_modes: ClassVar[tuple[StructuredMode, ...]] = ("json_schema", "json_object", "prompt")
    max_generations_per_request: ClassVar[int | None] = 1

    class Options(ChatOptions):
        """Runtime parameters."""

        max_new_tokens: MaxNewTokens = Field(
            default=None, serialization_alias="num_predict", description="Tokens to generate at most."
        )
        top_k: TopKOrAll = Field(default=None, description="Sample from this many likeliest tokens.")
        min_p: MinP = Field(default=None, description="Sample from tokens at least this likely, beside the likeliest.")
        repeat_penalty: float | None = Field(default=None, description="Against repetition; 1 is none.")
        num_ctx: int | None = Field(
            default=None,
            gt=0,
            description="Tokens the model sees at once; the server cuts longer chats without a word.",
        )
        options: dict[str, Any] | None = Field(
            default=None, description="More of the server's options, as it calls them: `mirostat`, `num_gpu` …"
        )
        logprobs: ReturnLogprobs = None
        top_logprobs: TopLogprobs = None
        think: bool | Literal["low", "medium", "high"] | None = Field(
            default=None, description="Whether a reasoning model thinks first, or how much."
        )
        keep_alive: float | str | None = Field(
            default=None, description="How long the model stays in memory afterwards: seconds, or a text like `10m`."
        )

    def prepare(self) -> None:
        """Check for the packages; no key is needed.

        Raises:
            Fatal: Naming what is missing.
        """
        import_optional("ollama", self)
        import_optional("httpx_aiohttp", self)
        super().prepare()

    def cost(self, usage: Usage) -> float | None:
        """Return the dollars for this usage: none on a server of one's own; unknown for ollama.com's."""
        if self.price:
            return self.price.cost(usage)
        return None if "ollama.com" in self._resolve_base_url() or self.model.endswith("cloud") else 0.0

    async def agenerate(self, input: ChatType, num_generations: int = 1, **kwargs: Any) -> GenerateOutput:
        """Answer one chat with one generation, the API's limit per request."""
        return await event_loop.run_on_loop(self._complete(self._build_request(input, self.options(kwargs))))

    async def _complete(self, request: dict[str, Any]) -> GenerateOutput:
        url = self._resolve_base_url()
        client = event_loop.shared_client(
            ("ollama", url, self._resolve_api_key()), self._client, lambda client: client.close()
        )
        try:
            async with asyncio.timeout(self.timeout):
                return _decode(await client.chat(**request))
        except TimeoutError:
            raise Transient(f"`{url}` gave no answer within {self.timeout:g} s.", timed_out=True) from None
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise Transient(f"`{url}` answered no completion: {type(error).__name__}: {error}", status=200) from None
        except Exception as error:
            failure = error_from_sdk(error, url)
            if isinstance(error.__cause__, aiohttp.ClientConnectorError) and url == self._default_base_url:
                failure = Fatal(f"No Ollama server at `{url}`: start it with `ollama serve`, or pass `base_url=`.")
            elif failure.status == 404 and "model" in failure.message:
                failure = Fatal(f"{failure.message}. Get it with `ollama pull {self.model}`.", status=404)
            raise failure from None

    def _client(self) -> Any:
        httpx_aiohttp, url = import_optional("httpx_aiohttp", self), self._resolve_base_url()

        async def raise_for_status(response: Any) -> None:  # because the SDK's exception has no headers
            if response.is_error:
                await response.aread()
                raise error_from_response(response.status_code, response.headers, response.text, url)

        return import_optional("ollama", self).AsyncClient(
            host=url,
            timeout=None,  # ours
            headers={"Authorization": f"Bearer {key}"} if (key := self._resolve_api_key()) else None,
            transport=httpx_aiohttp.AiohttpTransport(client=open_session()),
            event_hooks={"response": [raise_for_status]},
        )

    def _configured_base_url(self) -> str:
        """Return the base URL, given as Ollama's own programs take it: `host`, `host:port`, `:port`, a URL."""
        address = super()._configured_base_url()
        if "://" in address:
            return address
        host, slash, path = address.partition("/")
        host = host if re.search(r":\d+$", host) else f"{host}:{DEFAULT_PORT}"
        return f"http://{'127.0.0.1' if host.startswith(':') else ''}{host}{slash}{path}"

    def _resolve_api_key(self) -> str:
        return super()._resolve_api_key() if self.api_key or os.getenv(self._api_key_env) else ""

    def _build_request(self, chat: ChatType, options: StrictModel) -> dict[str, Any]:
        """Return the SDK's arguments."""
        given = encode_structured_output(self._resolve_structured_mode() or "", self._json_schema())
        given |= options.model_dump(by_alias=True, exclude_none=True)
        response_format, more = given.pop("response_format", {"type": "text"}), given.pop("options", {})
        top_level = {name: given.pop(name) for name in TOP_LEVEL_OPTIONS if name in given}
        return {
            "model": self.model,
            "messages": [_encode_message(each) for each in self._with_schema_prompt(chat)],
            "format": _encode_format(response_format),
            "options": given | more or None,
        } | top_level


def _encode_format(response_format: dict[str, Any]) -> Any:
    """Encode a `response_format` of OpenAI's for the server; any other dictionary is a schema."""
    match response_format:
        case {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return "json"
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            return schema
        case _:
            return response_format


def _encode_message(message: Message) -> dict[str, Any]:
    """Encode a message for the server, with its images beside its text."""
    content = message["content"]
    if isinstance(content, str):
        return {"role": message["role"], "content": content}
    texts = [part["text"] for part in content if part.get("type") == "text"]
    images = [_image_bytes(part) for part in content if part.get("type") != "text"]
    return {"role": message["role"], "content": "\n".join(texts), "images": images}


def _image_bytes(part: dict[str, Any]) -> bytes:
    """Return the bytes of an image: the SDK would take a text for the path of a file, and send that file."""
    match part:
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            if image := parse_data_url(url):
                return b64decode(image[1])
            raise Rejected("`OllamaLLM` fetches no images: put them in the chat as `data:image/png;base64,…`.")
        case _:
            raise Rejected(f"`OllamaLLM` takes texts and images, not `{part.get('type')}` parts.")


def _decode(reply: Any) -> GenerateOutput:
    message = reply.message
    return GenerateOutput(
        [message.content or None],
        finish_reasons=[FINISH_REASONS.get(reply.done_reason or "")],
        reasoning=[message.thinking or None],
        logprobs=[_logprobs(reply.logprobs or []) or None],
        usage=Usage(input_tokens=reply.prompt_eval_count or 0, output_tokens=reply.eval_count or 0),
    )


def _logprobs(positions: Any) -> Logprobs:
    """Encode each position as its chosen token and the likeliest others."""
    others = [[each for each in chosen.top_logprobs or [] if each.token != chosen.token] for chosen in positions]
    return [
        [{"token": each.token, "logprob": each.logprob} for each in (chosen, *rest)]
        for chosen, rest in zip(positions, others, strict=True)
    ]
