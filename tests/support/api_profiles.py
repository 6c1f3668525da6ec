"""How each API speaks: what it replies and refuses with, and where in a request the chat and the options are.

There is one for each shape of API, not one for each provider: whoever speaks like OpenAI needs nothing here.
"""

import json
import pkgutil
import re
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from inspect import isabstract
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

import llms
from llms import LLM, LLMError, RemoteLLM, Throttled
from llms.any_llm import model_classes
from llms.typing import FinishReason, Usage

KEY = "sk-secret-of-the-test"
"""A key that no output may hold."""


class ApiProfile:
    """OpenAI's chat completions, and everything else that speaks like them."""

    name = ""
    """Which of the ways of its class it is, where that has several."""
    package: str | None = None
    """What has to be installed for it, besides the core."""
    path = "/chat/completions"
    """How the path of every request ends."""
    usage = Usage(9, 4, 5, 2, 1)
    """What the usage of a reply with one text comes to."""
    details: dict[str, dict[str, int]] = {
        "prompt_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    """What it says of its tokens besides how many there are; its SDK knows no more."""
    ended: dict[str | None, FinishReason | None] = {
        "stop": "stop",
        "length": "length",
        "content_filter": "content_filter",
        "tool_calls": "tool_calls",
        "function_call": "tool_calls",
        "eos": "stop",
        "something new": None,
        None: None,
    }
    """What it says of how a text ended, and what that means."""
    codes: dict[str, str] = {
        "context": "context_length_exceeded",
        "filter": "content_filter",
        "key": "invalid_api_key",
        "model": "model_not_found",
        "spent": "insufficient_quota",
    }
    """Its own names for what is wrong; a quota that is spent has none everywhere."""
    request_id: str | None = "x-request-id"
    """The header with the provider's name of a request, where its SDK shows it."""
    says_when = True
    """Whether `Retry-After` can be seen."""
    limits: dict[str, str] = {"x-ratelimit-limit-requests": "50", "x-ratelimit-remaining-requests": "49"}
    """Headers about rate limits, where its SDK shows them."""
    reads_errors = True
    """Whether what is no answer is known with its status and text; LiteLLM has words of its own for it."""
    thinks = True
    """Whether there is a place for what the model thought."""
    turns = True
    """Whether a chat arrives as its messages."""
    images = True
    schema_at = "response_format"
    """The member of a body that holds a JSON schema."""
    samples: dict[str, Any] = {}
    """Values of options that are not as simple as they look."""
    lacks: tuple[str, ...] = ()
    """Options of its class that are not this API's."""
    kinds: dict[str, type[LLMError]] = {}
    """What a refusal means here, where that is not what it means elsewhere."""
    headers: dict[str, str] = {}
    """The headers of a reply that are part of the answer."""
    patterns = ""
    """Where a text can be held to a regular expression, if not everywhere."""
    key_env: str | None = None
    """The variable of its key, where that is not the same for all models of its class."""
    needs_key = True
    needed: dict[str, Any] = {}
    """Fields that its class wants, although none of them is required by itself."""

    def options_of(self, cls: type[Any]) -> type[BaseModel]:
        """The options of this way."""
        return cls.Options

    def modes(self, cls: type[Any]) -> list[str]:
        """The ways this class is held to a schema, the strictest first."""
        return list(cls._structured_modes) if issubclass(cls, RemoteLLM) else ["grammar"]

    def fields(self, url: str) -> dict[str, Any]:
        """The fields of a model that is to talk to `url`, where the wire is, and has a key."""
        return {"base_url": f"{url}/v1", "api_key": KEY}

    def reply(
        self,
        *texts: str | None,
        ended: str | None = "stop",
        thought: str | None = None,
        arguments: str | None = None,
        refused: bool = False,
    ) -> dict[str, Any]:
        """A reply with these texts, each of which ended like this; or with the arguments of a tool instead."""
        more: dict[str, Any] = {"reasoning_content": thought} if thought else {}
        if arguments:
            more["tool_calls"] = [
                {"id": "call-1", "type": "function", "function": {"name": "output", "arguments": arguments}}
            ]
        if refused:
            more["refusal"] = "I won't."
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [
                {
                    "index": index,
                    "message": {"role": "assistant", "content": text, **more},
                    "finish_reason": ended,
                }
                for index, text in enumerate(texts)
            ],
            "usage": {
                "prompt_tokens": 9,
                "completion_tokens": 4 * len(texts),
                "total_tokens": 9 + 4 * len(texts),
                **self.details,
            },
        }

    def silence(self) -> dict[str, Any] | None:
        """A reply that is valid and has no text at all in it, not even an empty list of them."""
        return self.reply() | {"choices": []}

    def refused(self) -> dict[str, Any] | None:
        """A reply in which the model declines, where the API has a place for that."""
        return self.reply(None, refused=True)

    def filtered(self) -> dict[str, Any]:
        """A reply whose text a filter took away."""
        return self.reply(None, ended="content_filter")

    def blocked(self) -> tuple[int, dict[str, Any]]:
        """What a prompt that a filter stops is answered with."""
        return 400, self.error(400, "filter")

    def error(self, status: int, what: str = "") -> dict[str, Any]:
        """The body of a refusal."""
        code = self.codes.get(what)
        return {"error": {"message": self.words(status, what), "type": "some_error", "param": None, "code": code}}

    def words(self, status: int, what: str) -> str:
        """What a refusal says."""
        return {"context": "prompt is too long: it exceeds the maximum context length"}.get(what, f"no, says {status}")

    def chat(self, body: dict[str, Any]) -> list[tuple[str, str]]:
        """The roles and texts of the chat in a request."""
        return [(message["role"], said(message["content"])) for message in body["messages"]]

    def count(self, body: dict[str, Any]) -> int:
        """How many texts a request asks for."""
        return body.get("n") or 1

    def options(self, body: dict[str, Any]) -> dict[str, Any]:
        """The options in a request, under the names they have there."""
        return {name: value for name, value in body.items() if name not in ("model", "messages", "n")}

    def expected(self, options: BaseModel) -> dict[str, Any]:
        """What `options` finds in a request that these were asked for with, and no others."""
        sent = options.model_dump(by_alias=True, exclude_unset=True, exclude={"extra_headers"})
        return sent | sent.pop("extra_body", {})

    def asks_for_json(self, body: dict[str, Any]) -> bool:
        """Whether a request asks for JSON of whatever kind."""
        return body.get("response_format") == {"type": "json_object"}


class _Totals(ApiProfile):
    """As OpenAI, but it says no more than how many tokens there were."""

    usage = Usage(9, 4)
    details = {}


class _Groq(ApiProfile):
    """Groq does not say what it wrote to a cache."""

    usage = Usage(9, 4, 5, 2)
    details = {
        "prompt_tokens_details": {"cached_tokens": 5},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }


class _VLLM(ApiProfile):
    """A server of vLLM says what its cache held, if it is told to, and no more."""

    usage = Usage(9, 4, 5)
    details = {"prompt_tokens_details": {"cached_tokens": 5}}


class _Llama(ApiProfile):
    """llama.cpp's server in this process, for which the wire stands in; its grammars begin with what they are of."""

    def fields(self, url: str) -> dict[str, Any]:
        return {"model_path": f"{url.rpartition(':')[2]}.gguf"}  # the limits of a model are another's in another test


class _Anthropic(ApiProfile):
    """Anthropic's messages: a list of blocks, and input that is counted without what a cache held."""

    package = "anthropic"
    path = "/v1/messages"
    usage = Usage(9, 4, 5, 2, 1)
    ended = {
        "end_turn": "stop",
        "stop_sequence": "stop",
        "max_tokens": "length",
        "model_context_window_exceeded": "length",
        "refusal": "refusal",
        "tool_use": "tool_calls",
        "pause_turn": "tool_calls",
        "something new": None,
        None: None,
    }
    codes = {
        "context": "invalid_request_error",
        "filter": "invalid_request_error",
        "key": "authentication_error",
        "model": "not_found_error",
        "spent": "enforced_spend_limit_reached",
    }
    request_id = "request-id"
    schema_at = "output_config"

    def fields(self, url: str) -> dict[str, Any]:
        return {"base_url": url, "api_key": KEY}

    def reply(
        self,
        *texts: str | None,
        ended: str | None = "end_turn",
        thought: str | None = None,
        arguments: str | None = None,
        refused: bool = False,
    ) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "text", "text": text} for text in texts if text is not None]
        if thought:
            content.insert(0, {"type": "thinking", "thinking": thought, "signature": "s"})
        if arguments:
            content.append({"type": "tool_use", "id": "toolu-1", "name": "output", "input": json.loads(arguments)})
        return {
            "id": "msg-1",
            "type": "message",
            "role": "assistant",
            "model": "m",
            "content": content,
            "stop_reason": ended,
            "stop_sequence": None,
            "usage": {
                "input_tokens": 3,
                "cache_read_input_tokens": 5,
                "cache_creation_input_tokens": 1,
                "output_tokens": 4,
                "output_tokens_details": {"thinking_tokens": 2},
            },
        }

    def silence(self) -> None:
        return None

    def refused(self) -> dict[str, Any]:
        return self.reply(ended="refusal")

    filtered = refused

    def error(self, status: int, what: str = "") -> dict[str, Any]:
        usual = {429: "rate_limit_error", 529: "overloaded_error"}.get(status, "some_error")
        error = {"type": self.codes.get(what, usual), "message": self.words(status, what)}
        if what == "spent":
            error |= {"type": "rate_limit_error", "error_code": self.codes[what]}
        return {"type": "error", "error": error, "request_id": "req-1"}

    def chat(self, body: dict[str, Any]) -> list[tuple[str, str]]:
        system = [("system", said(body["system"]))] if body.get("system") else []
        return system + super().chat(body)

    def count(self, body: dict[str, Any]) -> int:
        return 1

    def options(self, body: dict[str, Any]) -> dict[str, Any]:
        apart = ("model", "messages", "system", "output_config")
        return {name: value for name, value in body.items() if name not in apart} | body.get("output_config", {})

    def asks_for_json(self, body: dict[str, Any]) -> bool:
        return False


class _Cohere(ApiProfile):
    """Cohere's second chat: parts, numbers that are floats, and more tokens than are billed."""

    package = "cohere"
    path = "/v2/chat"
    usage = Usage(9, 4, 5)
    ended = {
        "COMPLETE": "stop",
        "STOP_SEQUENCE": "stop",
        "MAX_TOKENS": "length",
        "TOOL_CALL": "tool_calls",
        "ERROR": "error",
        "TIMEOUT": "error",
        "OF_NEXT_YEAR": None,
    }
    codes = {}

    def fields(self, url: str) -> dict[str, Any]:
        return {"base_url": url, "api_key": KEY}

    def reply(
        self,
        *texts: str | None,
        ended: str | None = "COMPLETE",
        thought: str | None = None,
        arguments: str | None = None,
        refused: bool = False,
    ) -> dict[str, Any]:
        content = [{"type": "text", "text": text} for text in texts if text is not None]
        if thought:
            content.insert(0, {"type": "thinking", "thinking": thought})
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if arguments:
            message["tool_calls"] = [
                {"id": "call-1", "type": "function", "function": {"name": "output", "arguments": arguments}}
            ]
        return {
            "id": "1",
            "finish_reason": ended,
            "message": message,
            "usage": {
                "billed_units": {"input_tokens": 9.0, "output_tokens": 4.0},
                "tokens": {"input_tokens": 71.0, "output_tokens": 5.0},
                "cached_tokens": 5.0,
            },
        }

    def silence(self) -> None:
        return None

    def refused(self) -> None:
        return None

    def filtered(self) -> dict[str, Any]:
        return self.reply(ended="ERROR")

    def error(self, status: int, what: str = "") -> dict[str, Any]:
        return {"message": self.words(status, what), "id": "1"}

    def count(self, body: dict[str, Any]) -> int:
        return 1

    def options(self, body: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in body.items() if name not in ("model", "messages", "stream")}


class _Ollama(ApiProfile):
    """Ollama's chat: most options in a box of their own, and nothing in the headers."""

    package = "ollama"
    path = "/api/chat"
    usage = Usage(9, 4)
    ended = {"stop": "stop", "length": "length", "something new": None, None: None}
    codes = {}
    limits = {}
    schema_at = "format"
    needs_key = False

    def fields(self, url: str) -> dict[str, Any]:
        return {"base_url": url, "api_key": KEY}

    def reply(
        self,
        *texts: str | None,
        ended: str | None = "stop",
        thought: str | None = None,
        arguments: str | None = None,
        refused: bool = False,
    ) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": texts[0]}
        if thought:
            message["thinking"] = thought
        if arguments:
            message["tool_calls"] = [{"function": {"name": "output", "arguments": json.loads(arguments)}}]
        return {
            "model": "m",
            "created_at": "2026-11-22T00:00:00Z",
            "message": message,
            "done": True,
            "done_reason": ended,
            "prompt_eval_count": 9,
            "eval_count": 4,
        }

    def silence(self) -> None:
        return None

    def refused(self) -> None:
        return None

    def filtered(self) -> dict[str, Any]:
        return self.reply(None)

    def error(self, status: int, what: str = "") -> dict[str, Any]:
        return {"error": self.words(status, what)}

    def count(self, body: dict[str, Any]) -> int:
        return 1

    def options(self, body: dict[str, Any]) -> dict[str, Any]:
        apart = {"model", "messages", "stream", "tools", "options"}
        return {name: value for name, value in body.items() if name not in apart} | (body.get("options") or {})

    def expected(self, options: BaseModel) -> dict[str, Any]:
        sent = super().expected(options)
        if "response_format" in sent:
            sent = {"format": sent["response_format"]}
        return sent | sent.pop("options", {})

    def asks_for_json(self, body: dict[str, Any]) -> bool:
        return body.get("format") == "json"


class _Gemini(ApiProfile):
    """Gemini's generateContent: candidates, parts, and thoughts that are counted apart."""

    package = "google.genai"
    path = ":generateContent"
    usage = Usage(9, 4, 5, 2)
    ended = {
        "STOP": "stop",
        "MAX_TOKENS": "length",
        "SAFETY": "content_filter",
        "RECITATION": "content_filter",
        "PROHIBITED_CONTENT": "content_filter",
        "BLOCKLIST": "content_filter",
        "SPII": "content_filter",
        "MALFORMED_FUNCTION_CALL": "error",
    }
    codes = {"key": "API_KEY_INVALID"}
    limits = {}
    schema_at = "generationConfig"
    samples = {
        "reasoning_effort": "low",
        "response_format": "json",
        "safety_settings": {"HARM_CATEGORY_HARASSMENT": "BLOCK_NONE"},
        "service_tier": "flex",
        "thinking": {"include_thoughts": True},
    }

    def fields(self, url: str) -> dict[str, Any]:
        return {"base_url": url, "api_key": KEY}

    def reply(
        self,
        *texts: str | None,
        ended: str | None = "STOP",
        thought: str | None = None,
        arguments: str | None = None,
        refused: bool = False,
    ) -> dict[str, Any]:
        candidates = []
        for index, text in enumerate(texts):
            parts: list[dict[str, Any]] = [] if text is None else [{"text": text}]
            if thought:
                parts.insert(0, {"text": thought, "thought": True})
            if arguments:
                parts.append({"functionCall": {"name": "output", "args": json.loads(arguments)}})
            content = {"role": "model", "parts": parts} if parts else {"role": "model"}
            candidates.append({"index": index, "content": content, "finishReason": ended})
        return {
            "candidates": candidates,
            "usageMetadata": {
                "promptTokenCount": 9,
                "candidatesTokenCount": 4 * len(texts) - 2,
                "thoughtsTokenCount": 2,
                "cachedContentTokenCount": 5,
                "totalTokenCount": 9 + 4 * len(texts),
            },
            "modelVersion": "m",
        }

    def silence(self) -> dict[str, Any]:
        return {"usageMetadata": {"promptTokenCount": 9, "totalTokenCount": 9}}

    def refused(self) -> None:
        return None

    def filtered(self) -> dict[str, Any]:
        return self.reply(None, ended="SAFETY")

    def blocked(self) -> tuple[int, dict[str, Any]]:
        return 200, self.silence() | {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}

    def error(self, status: int, what: str = "") -> dict[str, Any]:
        error: dict[str, Any] = {"code": status, "message": self.words(status, what), "status": "SOME_STATUS"}
        if what in self.codes:
            info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": self.codes[what]}
            error["details"] = [info | {"domain": "googleapis.com"}]
        return {"error": error}

    def chat(self, body: dict[str, Any]) -> list[tuple[str, str]]:
        system = body.get("systemInstruction")
        roles = {"model": "assistant"}
        turns = [(roles.get(each["role"], each["role"]), said(each["parts"])) for each in body["contents"]]
        return ([("system", said(system["parts"]))] if system else []) + turns

    def count(self, body: dict[str, Any]) -> int:
        return body.get("generationConfig", {}).get("candidateCount") or 1

    def options(self, body: dict[str, Any]) -> dict[str, Any]:
        config = body.get("generationConfig", {})
        if thinking := config.get("thinkingConfig"):  # its members may be spelled either way
            config |= {"thinkingConfig": {camel(name): value for name, value in thinking.items()}}
        apart = ("candidateCount", "contents", "generationConfig", "systemInstruction")
        return {name: value for name, value in (body | config).items() if name not in apart}

    def expected(self, options: BaseModel) -> dict[str, Any]:
        sent = super().expected(options)
        if "response_format" in sent:
            sent = {"response_mime_type": "application/json"}
        if stop := sent.pop("stop", None):
            sent["stop_sequences"] = [stop] if isinstance(stop, str) else stop
        if settings := sent.pop("safety_settings", None):
            pairs = settings.items() if isinstance(settings, dict) else map(dict.values, settings)
            sent["safety_settings"] = [{"category": name, "threshold": value} for name, value in pairs]
        if level := sent.pop("reasoning_effort", None):
            sent["thinking_config"] = {"thinkingLevel": level.upper()}
        if thinking := sent.pop("thinking", None):
            sent["thinking_config"] = {camel(name): value for name, value in thinking.items()}
        return {camel(name): value for name, value in sent.items()}

    def asks_for_json(self, body: dict[str, Any]) -> bool:
        return body.get("generationConfig", {}).get("responseMimeType") == "application/json"


class _GeminiToken(_Gemini):
    """Gemini with a project and an access token, not in express mode."""

    name = "token"

    def fields(self, url: str) -> dict[str, Any]:
        return {"base_url": url, "credentials": KEY, "project": "p", "location": "l"}


class _Deployment(ApiProfile):
    """Azure's older form: the model is part of the address, together with a version."""

    name = "deployment"
    path = "/openai/deployments/m/chat/completions"

    def fields(self, url: str) -> dict[str, Any]:
        return {"base_url": url, "api_key": KEY, "api_version": "2024-10-21"}


class _Endpoint(_Totals):
    """An endpoint of one's own, which may be asleep and is waited for."""

    patterns = "endpoints, not the router"
    kinds = {"503": Throttled}
    needed = {"model_id": "m"}


class _TextGeneration(_Endpoint):
    """The raw text generation of TGI: the chat is one text, and half of the usage is in the headers."""

    name = "text"
    path = "/"
    usage = Usage(9, 4)
    ended = {"eos_token": "stop", "stop_sequence": "stop", "length": "length", "something new": None}
    codes = {}
    patterns = ""
    thinks = False
    turns = False
    images = False
    schema_at = "parameters"
    headers = {"x-prompt-tokens": "9"}

    def options_of(self, cls: type[Any]) -> type[BaseModel]:
        return type(cls(**self.fields("http://localhost")).options({}))

    def modes(self, cls: type[Any]) -> list[str]:
        return ["json_schema", "prompt"]

    def fields(self, url: str) -> dict[str, Any]:
        return {"base_url": url, "api_key": KEY, "tokenizer_id": str(_tokenizer())}

    def reply(
        self,
        *texts: str | None,
        ended: str | None = "eos_token",
        thought: str | None = None,
        arguments: str | None = None,
        refused: bool = False,
    ) -> Any:
        details = {"finish_reason": ended, "generated_tokens": 4, "seed": None, "prefill": [], "tokens": []}
        return [{"generated_text": texts[0], "details": details}]

    def silence(self) -> None:
        return None

    def refused(self) -> None:
        return None

    def filtered(self) -> Any:
        return self.reply(None)

    def error(self, status: int, what: str = "") -> dict[str, Any]:
        return {"error": self.words(status, what), "error_type": "some_error"}

    def chat(self, body: dict[str, Any]) -> list[tuple[str, str]]:
        turns = re.findall(r"<\|(\w+)\|>(.*?)(?=<\||$)", body["inputs"], re.DOTALL)
        assert turns.pop() == ("assistant", "")
        return turns

    def count(self, body: dict[str, Any]) -> int:
        return 1

    def options(self, body: dict[str, Any]) -> dict[str, Any]:
        always = ("details", "return_full_text", "grammar")
        return {name: value for name, value in body["parameters"].items() if name not in always}

    def expected(self, options: BaseModel) -> dict[str, Any]:
        return options.model_dump(exclude_unset=True)


@cache
def _tokenizer() -> Path:
    """A tokenizer with nothing but a chat template."""
    template = "{% for each in messages %}<|{{ each.role }}|>{{ each.content }}{% endfor %}<|assistant|>"
    folder = Path(tempfile.mkdtemp())
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


class _LiteLLM(ApiProfile):
    """LiteLLM, told by the name of the model to speak like OpenAI."""

    package = "litellm"
    ended = ApiProfile.ended | {"something new": "stop", None: "stop"}  # its own reading
    codes = {name: ApiProfile.codes[name] for name in ("context", "filter", "spent")}  # it keeps no others
    lacks = ("thinking",)
    patterns = "`hosted_vllm/…`"
    key_env = "OPENAI_API_KEY"
    needed = {"model": "openai/m"}
    reads_errors = False

    def fields(self, url: str) -> dict[str, Any]:
        return super().fields(url) | self.needed


class _File(ApiProfile):
    """A model in a file, which is named or fetched."""

    needed = {"model_path": "m"}


API_PROFILES: dict[str, tuple[type[ApiProfile], ...]] = {
    "AnthropicLLM": (_Anthropic,),
    "AnyscaleLLM": (_VLLM,),
    "AzureOpenAILLM": (ApiProfile, _Deployment),
    "CohereLLM": (_Cohere,),
    "GroqLLM": (_Groq,),
    "InferenceEndpointsLLM": (_Endpoint, _TextGeneration),
    "LiteLLM": (_LiteLLM,),
    "LlamaCppLLM": (_File,),
    "LlamaServerLLM": (_Llama,),
    "MistralLLM": (_Totals,),
    "OllamaLLM": (_Ollama,),
    "TogetherLLM": (_Totals,),
    "VertexAILLM": (_Gemini, _GeminiToken),
}
"""The classes that do not speak like OpenAI, or not only."""


class Way(NamedTuple):
    """One of the ways in which a class of models speaks to its API."""

    cls: type[Any]
    profile: ApiProfile

    def __str__(self) -> str:
        return "-".join(filter(None, (self.cls.__name__, self.profile.name)))

    def fields(self, url: str) -> dict[str, Any]:
        """The fields of a model that talks to `url` in this way."""
        required = {name: "m" for name, field in self.cls.model_fields.items() if field.is_required()}
        return required | self.profile.fields(url)


def ways(*classes: type[LLM]) -> list[Way]:
    """All ways of these classes; whoever speaks like OpenAI has that one."""
    return [Way(cls, profile()) for cls in classes for profile in API_PROFILES.get(cls.__name__, (ApiProfile,))]


def profile_of(cls: type[LLM]) -> ApiProfile:
    """How a class speaks, in the first of its ways."""
    return ways(cls)[0].profile


def some(cls: type[LLM], **fields: Any) -> Any:
    """A model of that class, with something in every field that must have one."""
    required = {name: "m" for name, field in cls.model_fields.items() if field.is_required()}
    needed = {} if fields.keys() & {"base_url"} else profile_of(cls).needed
    return cls(**required | needed | fields)


def installed(profile: ApiProfile) -> bool:
    """Whether there is all that is needed to speak it."""
    try:
        return profile.package is None or find_spec(profile.package) is not None
    except ModuleNotFoundError:
        return False


SAMPLES = (1, 0.5, "x", True, {"a": 1}, {"a": "b"}, ["x"])


def sample(options: type[BaseModel], name: str, known: dict[str, Any] | None = None) -> Any:
    """A value that an option takes.

    Args:
        known: Values of options that are not as simple as they look.
    """
    named = enumerated(options.model_json_schema()["properties"][name])
    for value in (known[name],) if known and name in known else (*named, *SAMPLES):
        try:
            options(**{name: value})
        except ValidationError:
            continue
        return value
    raise AssertionError(f"no sample for `{name}` of `{options.__qualname__}`")


def enumerated(schema: dict[str, Any]) -> Iterator[Any]:
    """The values that a JSON schema names."""
    yield from schema.get("enum", [])
    if "const" in schema:
        yield schema["const"]
    for each in schema.get("anyOf", []):
        yield from enumerated(each)


def said(content: Any) -> str:
    """The text of a message, whether it comes whole or in parts."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content or [])


def camel(name: str) -> str:
    """`max_output_tokens` as Google spells it."""
    first, *rest = name.split("_")
    return first + "".join(word.title() for word in rest)


def place_of(schema: dict[str, Any], within: Any, path: tuple[Any, ...] = ()) -> tuple[Any, ...] | None:
    """Where in a request a JSON schema of these properties is."""
    if isinstance(within, str) and within.startswith("# {"):
        within = json.loads(within[2:].splitlines()[0])
    if (
        isinstance(within, dict)
        and "properties" in within
        and within["properties"].keys() == schema["properties"].keys()
    ):
        return path
    members = within.items() if isinstance(within, dict) else enumerate(within) if isinstance(within, list) else ()
    found = (place_of(schema, value, (*path, name)) for name, value in members)
    return next((each for each in found if each is not None), None)


def shipped() -> list[type[LLM]]:
    """Every class of models that ships with this."""
    for module in pkgutil.iter_modules(llms.__path__, "llms."):
        import_module(module.name)
    found = [cls for cls in model_classes().values() if cls.__module__.startswith("llms.") and not isabstract(cls)]
    return sorted(found, key=lambda cls: cls.__name__.lower())


def remote() -> list[type[RemoteLLM]]:
    """Those behind an API."""
    return [cls for cls in shipped() if issubclass(cls, RemoteLLM)]
