"""Providers whose API has OpenAI's shape: what their own SDKs send and read is what we send and read."""

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from enum import Enum
from typing import Any, get_args, get_type_hints

import groq.types
import openai.types
import pytest
from groq import AsyncGroq
from huggingface_hub.inference._generated.types.chat_completion import ChatCompletionOutputUsage
from mistralai.client import Mistral
from mistralai.client.models.usageinfo import UsageInfo
from openai import AsyncOpenAI
from openai.lib._pydantic import to_strict_json_schema
from pydantic import BaseModel, Field
from together import AsyncTogether
from together.types.chat.chat_completion_usage import ChatCompletionUsage

from llms import Fatal, Rejected
from llms.anyscale import AnyscaleLLM
from llms.azure import AzureOpenAILLM
from llms.clients import event_loop
from llms.groq import GroqLLM
from llms.inference_endpoints import InferenceEndpointsLLM
from llms.mistral import MistralLLM
from llms.openai import OpenAILLM
from llms.structured.openai_strict import strict_schema
from llms.structured.output import with_schema_prompt
from llms.together import TogetherLLM
from llms.typing import ChatType, Usage
from tests.support.api_profiles import profile_of
from tests.support.ports import reserve_port

KEY = "sk-secret"
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
CHAT: ChatType = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "¿Capital de España? 🇪🇸"}]
CHATS: dict[str, ChatType] = {
    "text": CHAT,
    "turns": [
        *CHAT,
        {"role": "assistant", "content": "Madrid."},
        {"role": "user", "content": "And of France?"},
    ],
    "image": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
            ],
        }
    ],
}
SCHEMA: dict[str, Any] = {
    "title": "User profile",
    "type": "object",
    "properties": {"name": {"type": "string"}, "id": {"type": "integer"}},
    "required": ["name"],
}
PATTERN = "[A-E][+-]?"


def with_openai(root: str, **call: Any) -> Any:
    return AsyncOpenAI(base_url=f"{root}/v1", api_key=KEY, max_retries=0).chat.completions.create(**call)


def with_together(root: str, **call: Any) -> Any:
    return AsyncTogether(base_url=root, api_key=KEY, max_retries=0).chat.completions.create(**call)


def with_groq(root: str, **call: Any) -> Any:
    return AsyncGroq(base_url=root, api_key=KEY, max_retries=0).chat.completions.create(**call)


def with_mistral(root: str, **call: Any) -> Any:
    return Mistral(server_url=root, api_key=KEY).chat.complete_async(**call)


@dataclass
class Provider:
    """A model class, a call through the provider's SDK, and of each option a value and what the SDK calls all that."""

    cls: Any
    sdk: Any
    options: dict[str, tuple[Any, dict[str, Any]]]


SAMPLING: dict[str, tuple[Any, dict[str, Any]]] = {
    "temperature": (0, {"temperature": 0}),
    "top_p": (0.9, {"top_p": 0.9}),
    "stop": (["\n", "é"], {"stop": ["\n", "é"]}),
    "seed": (7, {"seed": 7}),
    "response_format": ("json", {"response_format": {"type": "json_object"}}),
    "reasoning_effort": ("low", {"reasoning_effort": "low"}),
    "extra_body": ({"other": {"a": None}}, {"extra_body": {"other": {"a": None}}}),
}
PENALTIES = {
    "frequency_penalty": (-0.5, {"frequency_penalty": -0.5}),
    "presence_penalty": (1.5, {"presence_penalty": 1.5}),
}
MAX_TOKENS = {"max_new_tokens": (7, {"max_tokens": 7})}
LOGPROBS = {"logprobs": (True, {"logprobs": True}), "top_logprobs": (2, {"top_logprobs": 2})}

PROVIDERS = [
    Provider(
        AnyscaleLLM,
        with_openai,
        SAMPLING
        | PENALTIES
        | MAX_TOKENS
        | LOGPROBS
        | {
            "logit_bias": ({"50256": -100}, {"logit_bias": {"50256": -100}}),
            "top_k": (5, {"extra_body": {"top_k": 5}}),
            "min_p": (0.1, {"extra_body": {"min_p": 0.1}}),
            "repetition_penalty": (1.1, {"extra_body": {"repetition_penalty": 1.1}}),
            "chat_template_kwargs": (
                {"thinking": False},
                {"extra_body": {"chat_template_kwargs": {"thinking": False}}},
            ),
        },
    ),
    Provider(
        TogetherLLM,
        with_together,
        SAMPLING
        | PENALTIES
        | MAX_TOKENS
        | {
            "stop": ("\n", {"stop": ["\n"]}),
            "top_k": (5, {"top_k": 5}),
            "min_p": (0.1, {"min_p": 0.1}),
            "repetition_penalty": (1.1, {"repetition_penalty": 1.1}),
            "logprobs": (2, {"logprobs": 2}),
            "logit_bias": ({"105": 21.4}, {"logit_bias": {"105": 21.4}}),
            "reasoning": ({"enabled": False}, {"reasoning": {"enabled": False}}),
            "context_length_exceeded_behavior": ("truncate", {"context_length_exceeded_behavior": "truncate"}),
            "chat_template_kwargs": ({"thinking": False}, {"chat_template_kwargs": {"thinking": False}}),
            "safety_model": ("guard", {"safety_model": "guard"}),
        },
    ),
    Provider(
        GroqLLM,
        with_groq,
        SAMPLING
        | {
            "max_new_tokens": (7, {"max_completion_tokens": 7}),
            "stop": ("\n", {"stop": "\n"}),
            "reasoning_format": ("parsed", {"reasoning_format": "parsed"}),
            "include_reasoning": (False, {"include_reasoning": False}),
            "service_tier": ("flex", {"service_tier": "flex"}),
        },
    ),
    Provider(
        MistralLLM,
        with_mistral,
        {name: option for name, option in SAMPLING.items() if name != "extra_body"}
        | PENALTIES
        | MAX_TOKENS
        | LOGPROBS
        | {
            "min_new_tokens": (2, {"min_tokens": 2}),
            "seed": (7, {"random_seed": 7}),
            "top_k": (5, {"top_k": 5}),
            "repetition_penalty": (1.1, {"repetition_penalty": 1.1}),
            "prompt_mode": ("reasoning", {"prompt_mode": "reasoning"}),
            "safe_prompt": (True, {"safe_prompt": True}),
            "service_tier": ("standard_only", {"service_tier": "standard_only"}),
        },
    ),
]


def each(providers=PROVIDERS):
    return pytest.mark.parametrize("provider", providers, ids=lambda provider: provider.cls.__name__)


def root(wire: Any) -> str:
    return wire.url.removesuffix("/v1")


def model(provider: Provider, wire: Any, **fields: Any) -> Any:
    return provider.cls(**{"model": "m", "base_url": root(wire), "api_key": KEY, "timeout": 20} | fields)


def asked(provider: Provider, wire: Any, **call: Any) -> Any:
    """The reply as the SDK reads it, and the request it sent."""

    async def ask() -> Any:
        return await provider.sdk(root(wire), model="m", **call)

    reply = event_loop.run(ask())
    return reply, wire.requests.pop()


def assert_same(ours: Any, theirs: Any) -> None:
    for spelled_out in (theirs.body, *theirs.body["messages"]):  # Mistral's SDK sends what goes without saying
        assert spelled_out.pop("stream", False) is False and spelled_out.pop("prefix", False) is False
    assert (ours.method, ours.path, ours.body) == (theirs.method, theirs.path, theirs.body)
    for header in ("authorization", "content-type", "host"):
        assert ours.headers[header] == theirs.headers[header]


# ------------------------------------------------------------------------------------------------------- what they send


@each()
def test_every_option_is_compared(provider):
    assert provider.options.keys() | {"extra_body"} == provider.cls.Options.model_fields.keys()


@each()
@pytest.mark.parametrize("chat", CHATS)
def test_sends_every_chat_as_the_sdk_does(provider, chat, wire):
    _, theirs = asked(provider, wire, messages=CHATS[chat])
    assert model(provider, wire).generate([CHATS[chat]]) == [["Madrid."]]
    assert_same(wire.requests[0], theirs)


@pytest.mark.parametrize(
    ("provider", "option"),
    [pytest.param(each, option, id=f"{each.cls.__name__}-{option}") for each in PROVIDERS for option in each.options],
)
def test_sends_every_option_as_the_sdk_does(provider, option, wire):
    value, call = provider.options[option]
    _, theirs = asked(provider, wire, messages=CHAT, **call)
    model(provider, wire).generate([CHAT], **{option: value})
    assert_same(wire.requests[0], theirs)


@each()
def test_sends_all_options_together_as_the_sdk_does(provider, wire):
    ours = {option: value for option, (value, _) in provider.options.items()}
    call: dict[str, Any] = {}
    for _, theirs in provider.options.values():
        extra = call.get("extra_body", {}) | theirs.get("extra_body", {})
        call |= theirs | ({"extra_body": extra} if extra else {})
    _, theirs = asked(provider, wire, messages=CHAT, **call)
    model(provider, wire, generation_kwargs=ours).generate([CHAT])
    assert_same(wire.requests[0], theirs)


@each([each for each in PROVIDERS if each.cls is not GroqLLM])
def test_asks_for_several_generations_at_once_as_the_sdk_does(provider, wire):
    _, theirs = asked(provider, wire, messages=CHAT, n=3)
    assert model(provider, wire).generate([CHAT], num_generations=3) == [["Madrid."] * 3]
    assert_same(wire.requests[0], theirs)


def test_groq_is_asked_again_for_every_generation(wire):
    llm = GroqLLM(model="m", base_url=root(wire), api_key=KEY)
    (output,) = llm.generate([CHAT], num_generations=3, seed=5)
    assert output == ["Madrid."] * 3 and output.usage == Usage(27, 12, 15, 6)
    assert sorted(request.body["seed"] for request in wire.requests) == [5, 6, 7]
    assert not any("n" in request.body for request in wire.requests)


@each()
@pytest.mark.parametrize("mode", [None, "json_schema", "tool", "json_object", "prompt"])
def test_sends_a_structure_as_the_sdk_does(provider, mode, wire):
    narrowed = strict_schema(SCHEMA)
    shape = {"name": "User_profile", "strict": True} if provider.cls is MistralLLM else {"name": "User_profile"}
    schema = narrowed if provider.cls is MistralLLM else SCHEMA
    function = {"type": "function", "function": shape | {"parameters": schema}}
    call: dict[Any, Any] = {
        "json_schema": {"response_format": {"type": "json_schema", "json_schema": shape | {"schema": schema}}},
        "tool": {"tools": [function], "tool_choice": {"type": "function", "function": {"name": "User_profile"}}},
        "json_object": {"response_format": {"type": "json_object"}},
    }
    chat = with_schema_prompt(CHAT, SCHEMA) if mode in ("json_object", "prompt") else CHAT
    text = '{"name": "Ada", "id": 1}'
    wire.answer = lambda request: wire.Reply(wire.completion(text))
    _, theirs = asked(provider, wire, messages=chat, **call.get(mode or "json_schema", {}))
    held = model(provider, wire, structured_output={"schema": SCHEMA}, structured_mode=mode)
    assert held.generate([CHAT]) == [[text]]
    assert_same(wire.requests[0], theirs)


@pytest.mark.parametrize("code", ["json_validate_failed", "tool_use_failed"])
def test_what_groq_calls_a_bad_request_is_an_answer_that_missed_its_schema(code, wire):
    missed = {"message": "Failed to generate JSON.", "type": "invalid_request_error", "code": code}
    refusal = wire.Reply({"error": missed | {"failed_generation": '{"name"'}}, 400)
    wire.script(refusal, wire.Reply(wire.completion('{"name": "Ada", "id": 1}')))
    held = {"structured_output": {"schema": SCHEMA}, "max_schema_retries": 2}
    llm = GroqLLM(model="m", base_url=root(wire), api_key=KEY, **held)
    (output,) = llm.generate([CHAT])
    assert output == ['{"name": "Ada", "id": 1}'] and output.error is None and output.attempts == 2
    wire.requests.clear()
    wire.answer = lambda request: refusal
    (output,) = llm.generate([CHAT])
    assert type(output.error) is Rejected and len(wire.requests) == 3
    (output,) = GroqLLM(model="m", base_url=root(wire), api_key=KEY).generate([CHAT])
    assert type(output.error) is Rejected and output.error.code == code and len(wire.requests) == 4


@each([each for each in PROVIDERS if each.cls is not AnyscaleLLM])
def test_a_regular_expression_is_refused_when_it_is_loaded(provider, wire):
    with pytest.raises(Fatal, match=f"`{provider.cls.__name__}` cannot be held to a regular expression"):
        model(provider, wire, structured_output={"schema": PATTERN}).load()


def test_vllm_holds_to_a_regular_expression(wire):
    anyscale = next(each for each in PROVIDERS if each.cls is AnyscaleLLM)
    wire.script(wire.Reply(wire.completion("A+")), wire.Reply(wire.completion("F")), wire.Reply(wire.completion("B")))
    _, theirs = asked(anyscale, wire, messages=CHAT, extra_body={"structured_outputs": {"regex": PATTERN}})
    (output,) = model(anyscale, wire, structured_output={"schema": PATTERN}).generate([CHAT])
    assert output == ["B"] and output.attempts == 2
    assert_same(wire.requests[0], theirs)
    assert wire.requests[1].body["structured_outputs"] == {"regex": PATTERN}


@pytest.mark.parametrize(
    ("cls", "option"),
    [
        (GroqLLM, "logprobs"),
        (GroqLLM, "logit_bias"),
        (GroqLLM, "frequency_penalty"),
        (GroqLLM, "top_k"),
        (TogetherLLM, "top_logprobs"),
        (TogetherLLM, "service_tier"),
        (TogetherLLM, "reasoning_format"),
        (MistralLLM, "logit_bias"),
        (MistralLLM, "min_p"),
        (AnyscaleLLM, "service_tier"),
        (AnyscaleLLM, "safe_prompt"),
        (OpenAILLM, "top_k"),
    ],
)
def test_an_option_the_provider_lacks_is_refused_by_name(cls, option, wire):
    with pytest.raises(Fatal, match=f"has no `{option}`"):
        cls(model="m", base_url=wire.url, api_key=KEY).generate([CHAT], **{option: 1})
    assert not wire.requests


@each()
@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
def test_the_address_is_the_same_with_and_without_its_path(provider, ending, wire):
    path = f"{provider.cls._path.removesuffix('/v1')}{ending}" if ending.startswith("/v1") else ending
    model(provider, wire, base_url=root(wire) + path).generate([CHAT])
    assert wire.requests[0].path == f"{provider.cls._path}/chat/completions"


@each([each for each in PROVIDERS if each.cls._base_url_env])
def test_the_address_comes_from_the_environment(provider, wire, monkeypatch):
    monkeypatch.setenv(provider.cls._base_url_env, root(wire))
    assert model(provider, wire, base_url=None).generate([CHAT]) == [["Madrid."]]


@each()
def test_more_headers_are_sent(provider, wire):
    model(provider, wire, default_headers={"X-Team": "ours"}).generate([CHAT])
    assert wire.requests[0].headers["x-team"] == "ours"


# ------------------------------------------------------------------------------------------- OpenAI's strict schemas


class Colour(Enum):
    RED, BLUE = "red", "blue"


class Address(BaseModel):
    street: str
    planet: Colour = Field(default=None, description="Of its sky.")


class Person(BaseModel):
    """Somebody."""

    home: Address = Field(description="Where they sleep.")
    work: Address = Field(title="At work")
    nick: str | None = Field(None, description="What friends say.")


class Node(BaseModel):
    value: Colour = Field(description="What it holds.")
    then: "Node | None" = Field(description="What follows.")


class Forest(BaseModel):
    trees: list[Node]
    first: Node = Field(description="The oldest.")


@pytest.mark.parametrize("kind", [Address, Person, Node, Forest], ids=lambda kind: kind.__name__)
def test_a_strict_schema_is_the_one_of_openais_own_helper(kind):
    assert strict_schema(kind.model_json_schema()) == to_strict_json_schema(kind)


def beside(schema: Any) -> list[Any]:
    """Every reference with something beside it."""
    members = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    found = [each for member in members for each in beside(member)]
    return found + ([schema] if isinstance(schema, dict) and "$ref" in schema and len(schema) > 1 else [])


def test_a_described_reference_in_a_circle_stays_one_without_its_description():
    reference = {"$ref": "#/$defs/A", "description": "Another."}
    link = {"anyOf": [reference, {"type": "null"}]}
    schema = {
        "type": "object",
        "properties": {"a": reference, "again": {"anyOf": [{"$ref": "#", "title": "All"}, {"type": "null"}]}},
        "$defs": {"A": {"type": "object", "properties": {"next": link}}},
    }
    narrowed = strict_schema(schema)
    assert narrowed and not beside(narrowed) and narrowed["properties"]["a"]["description"] == "Another."
    assert narrowed["properties"]["again"]["anyOf"][0] == {"$ref": "#"}


@pytest.mark.parametrize("more", [{"minLength": 3}, {"enum": ["a"]}, {"unknown": True}], ids=str)
def test_a_reference_that_is_narrowed_beside_it_has_no_strict_form(more):
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"} | more}, "$defs": {"A": {"type": "string"}}}
    assert strict_schema(schema) is None
    schema["properties"]["a"] = {"$ref": "#/$defs/nobody", "title": "A"}
    assert strict_schema(schema) is None


# ------------------------------------------------------------------------------------------------ who pays for OpenAI's


@pytest.mark.parametrize("variables", [{}, {"OPENAI_ORG_ID": "org-env", "OPENAI_PROJECT_ID": "proj-env"}], ids=str)
@pytest.mark.parametrize("passed", [{}, {"organization": "org-1"}, {"project": "proj-1"}], ids=str)
def test_organization_and_project_are_sent_as_the_sdk_sends_them(variables, passed, wire, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    client = AsyncOpenAI(base_url=wire.url, api_key=KEY, max_retries=0, **passed)

    async def ask() -> Any:
        return await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}])

    event_loop.run(ask())
    llm = OpenAILLM(model="m", base_url=wire.url, api_key=KEY, **passed)
    llm.generate([CHAT])
    theirs, ours = wire.requests
    for header in ("openai-organization", "openai-project"):
        assert ours.headers.get(header) == theirs.headers.get(header)
    assert ("openai-project" in ours.headers) is bool(variables or "project" in passed)
    other = llm.model_copy(update={"organization": "org-2"})
    assert other.rate_limit_scope() != llm.rate_limit_scope() == llm.model_copy().rate_limit_scope()


# ------------------------------------------------------------------------------------------------------- what they read


def completion(choices: list[dict[str, Any]], usage: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": index, **choice} for index, choice in enumerate(choices)],
        "usage": usage,
        **more,
    }


def choice(text: Any, finish_reason: str, **more: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text, **more}, "finish_reason": finish_reason}


USED = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "Spain "}, {"type": "text", "text": "…"}]}

USAGES = {
    AzureOpenAILLM: openai.types.CompletionUsage,
    GroqLLM: groq.types.CompletionUsage,
    InferenceEndpointsLLM: ChatCompletionOutputUsage,
    MistralLLM: UsageInfo,
    OpenAILLM: openai.types.CompletionUsage,
    TogetherLLM: ChatCompletionUsage,
}


def members(kind: Any) -> set[str]:
    """All that a type of an SDK knows, however deep."""
    if parts := get_args(kind):
        return {name for part in parts for name in members(part)}
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        known = {name: field.annotation for name, field in kind.model_fields.items()}
    else:
        known = get_type_hints(kind) if is_dataclass(kind) else {}
    return known.keys() | {name for each in known.values() for name in members(each)}


@pytest.mark.parametrize("cls", USAGES, ids=lambda cls: cls.__name__)
def test_usage_is_in_the_tests_what_it_is_in_the_types_of_the_sdk(cls):
    """And so in the table of providers in `llms/README.md`."""
    said = {name for part in profile_of(cls).details.values() for name in part}
    assert said == members(USAGES[cls]) & {"cached_tokens", "cache_write_tokens", "reasoning_tokens"}


REPLIES: list[Any] = [
    # the provider, its reply, what we make of why it ended and what it thought
    (TogetherLLM, completion([choice("a", "eos"), choice("b", "length")], USED, prompt=[]), ["stop", "length"], None),
    (TogetherLLM, completion([choice("a", "stop", reasoning="hm")], USED, prompt=[]), ["stop"], ["hm"]),
    (TogetherLLM, completion([choice(None, "tool_calls", tool_calls=[CALL])], USED), ["tool_calls"], None),
    (
        GroqLLM,
        completion(
            [choice("a", "stop", reasoning="hm")],
            USED
            | {"queue_time": 0.1, "prompt_time": 0.2, "completion_time": 0.3, "total_time": 0.5}
            | {"prompt_tokens_details": {"cached_tokens": 3}, "completion_tokens_details": {"reasoning_tokens": 2}},
            x_groq={"id": "req_1"},
            system_fingerprint="fp",
            service_tier="on_demand",
        ),
        ["stop"],
        ["hm"],
    ),
    (GroqLLM, completion([choice("", "length")], USED), ["length"], None),
    (MistralLLM, completion([choice("a", "model_length"), choice("b", "error")], USED), ["length", "error"], None),
    (
        MistralLLM,
        completion(
            [choice([THOUGHT, {"type": "text", "text": "Ma"}, {"type": "text", "text": "drid."}], "stop")], USED
        ),
        ["stop"],
        ["Spain …"],
    ),
    (MistralLLM, completion([choice([THOUGHT], "length")], USED), ["length"], ["Spain …"]),
    (AnyscaleLLM, completion([choice("a", "stop", reasoning_content="hm")], USED), ["stop"], ["hm"]),
    (AnyscaleLLM, completion([choice(None, "content_filter")], USED), ["content_filter"], None),
    (AnyscaleLLM, completion([choice("a", "abort")], USED), ["error"], None),
]


def text_of(content: Any) -> str | None:
    """The text the SDK read, whatever it is in."""
    if isinstance(content, list):
        return "".join(part.text for part in content if part.type == "text") or None
    return content


@pytest.mark.parametrize(("cls", "reply", "reasons", "reasoning"), REPLIES)
def test_reads_what_the_sdk_reads(cls, reply, reasons, reasoning, wire):
    provider = next(each for each in PROVIDERS if each.cls is cls)
    wire.answer = lambda request: wire.Reply(reply)
    theirs, _ = asked(provider, wire, messages=CHAT)
    output = event_loop.run(model(provider, wire).agenerate(CHAT, len(reasons)))
    calls = [choice.message.tool_calls for choice in theirs.choices]
    texts = [
        text_of(choice.message.content) if not called else called[0].function.arguments
        for choice, called in zip(theirs.choices, calls, strict=True)
    ]
    assert output == texts
    assert output.finish_reasons == reasons and output.reasoning == (reasoning or [None] * len(reasons))
    used = output.usage
    assert (used.input_tokens, used.output_tokens) == (theirs.usage.prompt_tokens, theirs.usage.completion_tokens)
    if details := getattr(theirs.usage, "prompt_tokens_details", None):
        assert used.cache_read_input_tokens == details.cached_tokens
        assert used.reasoning_output_tokens == theirs.usage.completion_tokens_details.reasoning_tokens


def test_reads_togethers_logprobs(wire):
    said = {"token_ids": [1, 2], "tokens": ["Mad", "rid"], "token_logprobs": [-0.1, -0.2]}
    wire.script(wire.Reply(completion([choice("Madrid", "eos") | {"logprobs": said}], USED)))
    (output,) = TogetherLLM(model="m", base_url=wire.url, api_key=KEY).generate([CHAT], logprobs=True)
    assert wire.requests[0].body["logprobs"] == 1
    assert output.logprobs == [[[{"token": "Mad", "logprob": -0.1}], [{"token": "rid", "logprob": -0.2}]]]


@pytest.mark.parametrize(
    ("cls", "headers"),
    [
        (GroqLLM, {"x-ratelimit-limit-requests": "14400", "x-ratelimit-reset-requests": "2m59.56s"}),
        (TogetherLLM, {"x-ratelimit-limit": "60", "x-ratelimit-reset": "1", "x-tokenlimit-limit": "900"}),
        (MistralLLM, {"x-ratelimit-limit-req-minute": "60", "x-ratelimit-limit-tokens-minute": "9000"}),
    ],
)
def test_hands_on_what_is_said_of_rate_limits(cls, headers, wire):
    wire.script(wire.Reply(headers={name.title(): value for name, value in headers.items()}))
    llm = cls(model="m", base_url=wire.url, api_key=KEY)
    assert event_loop.run(llm.agenerate(CHAT)).headers == headers


@pytest.mark.parametrize(
    ("cls", "status", "body", "kind", "code"),
    [
        (
            MistralLLM,
            400,
            {"object": "error", "message": "no", "type": "invalid_model", "code": "1500"},
            Rejected,
            "1500",
        ),
        (MistralLLM, 422, {"detail": [{"loc": ["body"], "msg": "no", "type": "missing"}]}, Rejected, None),
        (MistralLLM, 401, {"detail": "Unauthorized: no"}, Fatal, None),
        (
            GroqLLM,
            413,
            {"error": {"message": "no", "type": "tokens", "code": "rate_limit_exceeded"}},
            Rejected,
            "rate_limit_exceeded",
        ),
        (GroqLLM, 400, {"error": {"message": "no", "code": "json_validate_failed"}}, Rejected, "json_validate_failed"),
        (TogetherLLM, 402, {"error": {"message": "no", "type": "credit_limit", "code": None}}, Fatal, "credit_limit"),
        (
            AnyscaleLLM,
            400,
            {"object": "error", "message": "no", "type": "BadRequestError", "code": 400},
            Rejected,
            "BadRequestError",
        ),
    ],
)
def test_reads_what_went_wrong(cls, status, body, kind, code, wire):
    wire.answer = lambda request: wire.Reply(body, status=status)
    llm = cls(model="m", base_url=wire.url, api_key=KEY)
    with pytest.raises(kind, match="no") as caught:
        event_loop.run(llm.agenerate(CHAT))
    assert type(caught.value) is kind and (caught.value.status, caught.value.code) == (status, code)


# ------------------------------------------------------------------------------------------------- what is theirs alone


def test_anyscale_says_that_its_public_endpoints_closed():
    with pytest.raises(Fatal, match="pass `base_url=` or set `ANYSCALE_BASE_URL`.*closed its public endpoints"):
        AnyscaleLLM(model="m", api_key=KEY).load()
    with pytest.raises(Fatal, match="api.endpoints.anyscale.com` answers no more.*a service of your own"):
        AnyscaleLLM(model="m", api_key=KEY, base_url="https://api.endpoints.anyscale.com/v1").load()


@pytest.mark.parametrize(("cls", "name"), [(GroqLLM, "openai/gpt-oss-20b"), (MistralLLM, "mistral-small-latest")])
def test_knows_its_list_price_at_its_own_address_only(cls, name):
    usage = Usage(1_000_000, 1_000_000)
    assert (cls(model=name, api_key=KEY).cost(usage) or 0) > 0
    assert cls(model=name, api_key=KEY, base_url=f"{cls._default_base_url}{cls._path}").cost(usage)
    assert cls(model=name, api_key=KEY, base_url="http://localhost").cost(usage) is None


# ---------------------------------------------------------------------------------- a server that speaks as they all do


@pytest.fixture(scope="session")
def llmock() -> Iterator[str]:
    """llmock, which nobody here wrote, refuses a call as each provider does and says how it was dealt with."""
    port = reserve_port()
    program = "from llmock.cli import app; app()"
    server = subprocess.Popen(
        [sys.executable, "-c", program, "serve", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{url}/_llmock/verdict", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, "llmock did not start"
                time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait(10)


@pytest.mark.parametrize(
    ("cls", "path", "name"),
    [
        (TogetherLLM, "/together", "meta-llama/Llama-3.3-70B-Instruct-Turbo"),
        (GroqLLM, "/groq", "llama-3.3-70b-versatile"),
        (MistralLLM, "/mistral", "mistral-small-latest"),
        (AnyscaleLLM, "", "gpt-4o-mini"),
        (InferenceEndpointsLLM, "", "gpt-4o-mini"),
    ],
)
def test_is_answered_by_a_server_of_somebody_elses(cls, path, name, llmock):
    llm = cls(model=name, base_url=f"{llmock}{path}", api_key="hf_key")
    outputs = llm.generate([CHATS["text"], CHATS["turns"]] * 5, num_generations=2, temperature=0.5, max_new_tokens=50)
    assert len(outputs) == 10
    for output in outputs:
        assert output.error is None and len(output) == 2 and all(output)
        assert output.finish_reasons == ["stop", "stop"]
        assert output.usage.input_tokens > 0 and output.usage.output_tokens > 0
