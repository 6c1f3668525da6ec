"""Cohere over its own SDK: what is sent, what comes back, what goes wrong, how many at once."""

import json
import pickle
from inspect import signature
from typing import Any

import cohere
import jsonschema
import pytest
from cohere.v2.client import AsyncV2Client
from pydantic import BaseModel

from llms import Fatal, LLMError, Rejected, Throttled, Transient
from llms.clients import event_loop
from llms.cohere import CohereLLM, narrow_schema
from llms.structured.output import with_schema_prompt
from llms.typing import ChatType, GenerateOutput, Usage

KEY = "co-secret"
CHAT: ChatType = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "¿Capital de España? 🇪🇸"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
ADA = '{"name": "Ada", "age": 36}'
LIMITS = {"x-trial-endpoint-call-limit": "20", "x-endpoint-monthly-call-limit": "1000"}


def message(*parts: Any, finish_reason: str = "COMPLETE", **more: Any) -> dict[str, Any]:
    """A reply in the shape of Cohere's; a text stands for a part with it."""
    content = [{"type": "text", "text": each} if isinstance(each, str) else each for each in parts]
    return {
        "id": "c14c80c3",
        "finish_reason": finish_reason,
        "message": {"role": "assistant", "content": content},
        "usage": {
            "billed_units": {"input_tokens": 9.0, "output_tokens": 4.0},
            "tokens": {"input_tokens": 75.0, "output_tokens": 4.0},
        },
    } | more


@pytest.fixture
def command(wire: Any) -> Any:
    """The scripted server, speaking like Cohere."""
    wire.answer = lambda request: wire.Reply(message("Madrid."))
    return wire


def model(wire: Any, **fields: Any) -> CohereLLM:
    url = wire.url.removesuffix("/v1")
    return CohereLLM(**{"model": "command-a-03-2025", "base_url": url, "api_key": KEY, "timeout": 20} | fields)


def ask(wire: Any, chat: ChatType = CHAT, options: Any = (), **fields: Any) -> GenerateOutput:
    """One request, without the engine above it."""
    return event_loop.run(model(wire, **fields).agenerate(chat, **dict(options)))


def sent(wire: Any, chat: ChatType = CHAT, options: Any = (), **fields: Any) -> dict[str, Any]:
    """The body of one request."""
    ask(wire, chat, options, **fields)
    return wire.requests[-1].body


def failure(wire: Any, **fields: Any) -> LLMError:
    with pytest.raises(LLMError) as caught:
        ask(wire, **fields)
    error = caught.value
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and vars(again) == vars(error)
    for shown in (str(error), repr(error), repr(vars(error)), repr(error.__cause__), repr(error.__context__)):
        assert KEY not in shown
    return error


# ------------------------------------------------------------------------------------------------------ what is sent


def test_what_is_sent(command):
    body = sent(command)
    (request,) = command.requests
    assert (request.method, request.path) == ("POST", "/v2/chat")
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["content-type"] == "application/json"
    assert body == {"model": "command-a-03-2025", "messages": CHAT, "stream": False}


THINKING = {"type": "enabled", "token_budget": 100}
OPTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    # option: (value, what it adds to the body)
    "max_new_tokens": (7, {"max_tokens": 7}),
    "temperature": ("0", {"temperature": 0.0}),
    "top_p": (0.9, {"p": 0.9}),
    "top_k": (0, {"k": 0}),
    "stop": ("\n", {"stop_sequences": ["\n"]}),
    "seed": (0, {"seed": 0}),
    "frequency_penalty": (0.5, {"frequency_penalty": 0.5}),
    "presence_penalty": (1, {"presence_penalty": 1.0}),
    "response_format": ("json", {"response_format": {"type": "json_object"}}),
    "logprobs": (True, {"logprobs": True}),
    "thinking": (THINKING, {"thinking": THINKING}),
    "safety_mode": ("OFF", {"safety_mode": "OFF"}),
    "priority": (3, {"priority": 3}),
    "extra_body": ({"documents": ["d"]}, {"documents": ["d"]}),
    "extra_headers": ({"x-project": "x"}, {}),
}


@pytest.mark.parametrize("name", CohereLLM.Options.model_fields)
def test_an_option_reaches_the_wire_and_nothing_else_does(name, command):
    value, members = OPTIONS[name]
    assert sent(command, options={name: value}) == sent(command) | members
    assert name != "extra_headers" or value.items() <= command.requests[0].headers.items()


def test_every_wire_name_is_one_the_sdk_knows():
    names = {field.serialization_alias or name for name, field in CohereLLM.Options.model_fields.items()}
    assert names - {"extra_body", "extra_headers"} <= signature(AsyncV2Client.chat).parameters.keys()


@pytest.mark.parametrize(
    "given", ["text", {"type": "json_object", "json_schema": {"type": "object", "required": ["a"]}}]
)
def test_their_own_response_format(given, command):
    body = sent(command, options={"response_format": given})
    assert body["response_format"] == ({"type": "text"} if given == "text" else given)


@pytest.mark.parametrize("name", ["reasoning_effort", "top_logprobs", "service_tier"])
def test_what_the_api_lacks_is_refused_by_name(name, command):
    with pytest.raises(Fatal, match=name):
        ask(command, options={name: 1})


def test_several_generations_are_several_requests(command):
    (output,) = model(command).generate([CHAT], num_generations=3)
    assert output == ["Madrid."] * 3 and len(command.requests) == 3
    assert output.usage == Usage(27, 12)


def test_either_name_of_the_key_will_do_and_the_sdks_first_goes_before(command, monkeypatch):
    monkeypatch.setenv("COHERE_API_KEY", "other")
    sent(command, api_key=None)
    sent(command)
    monkeypatch.setenv("CO_API_KEY", "key")
    sent(command, api_key=None)
    used = [each.headers["authorization"][7:] for each in command.requests]
    assert used == ["other", KEY, cohere.AsyncClientV2()._client_wrapper._get_token()] == ["other", KEY, "key"]


# ------------------------------------------------------------------------------------------------------------- chats


def test_a_chat_of_several_turns_with_an_image(command):
    image = {"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0lGODlh", "detail": "low"}}
    turns: ChatType = [
        CHAT[0],
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": [{"type": "text", "text": "What is this?"}, image]},
    ]
    assert sent(command, turns)["messages"] == [*turns[:2], *turns[3:]]  # the API takes no empty message


def test_a_model_that_takes_no_images_says_so(command):
    text = "image content is not supported for this model"
    command.answer = lambda request: command.Reply({"message": text}, status=400)
    error = failure(command)
    assert type(error) is Rejected and text in str(error)


# --------------------------------------------------------------------------------------------------- structured output


def held_to(schema: Any, **fields: Any) -> dict[str, Any]:
    return {"structured_output": {"format": "json", "schema": schema}} | fields


KEPT = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


@pytest.mark.parametrize(
    ("mode", "format"),
    [
        (None, {"type": "json_object", "json_schema": KEPT}),
        ("json_object", {"type": "json_object"}),
        ("prompt", None),
    ],
)
def test_the_whole_schema_is_said_and_what_the_api_can_enforce_is_sent(mode, format, command):
    body = sent(command, **held_to(SCHEMA, structured_mode=mode))
    assert body.pop("response_format", None) == format
    assert body == sent(command) | {"messages": with_schema_prompt(CHAT, SCHEMA)}


class Address(BaseModel):
    city: str


class Person(BaseModel):
    name: str
    home: Address | None
    nicknames: list[str]


@pytest.mark.parametrize(
    ("whole", "kept"),
    [
        ({"type": "string", "format": "uuid", "pattern": "^a"}, {"type": "string", "format": "uuid"}),
        ({"type": "string", "format": "email"}, {"type": "string"}),
        ({"type": "array", "items": {"type": "number", "maximum": 1}, "minItems": 1}, {"type": "array"}),
        ({"oneOf": [{"type": "null"}, {"enum": ["a"]}]}, {"anyOf": [{"type": "null"}, {"enum": ["a"]}]}),
        ({"const": 3, "x-note": 1}, {"const": 3}),
    ],
)
def test_what_the_api_cannot_enforce_is_left_out(whole, kept):
    schema = {"type": "object", "properties": {"a": whole}, "required": ["a"]}
    found = narrow_schema(schema)
    assert found and found["properties"]["a"].items() >= kept.items()
    assert found["properties"]["a"].keys() - kept.keys() <= {"items"}
    assert "maximum" not in json.dumps(found)


def test_a_pydantic_class_is_sent_whole():
    schema = Person.model_json_schema()
    assert narrow_schema(schema) == schema


def test_what_is_left_out_makes_no_text_wrong():
    narrowed = narrow_schema(SCHEMA) or {}
    jsonschema.validate(json.loads(ADA), narrowed)
    jsonschema.validate({"name": "x" * 10, "age": -1}, narrowed)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"type": "string"}},
        {"type": "object", "properties": {"a": {"type": "string"}}},
        {"type": "object", "properties": {"a": {}}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"type": ["string", "null"]}}, "required": ["a"]},
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"type": "object", "properties": {"a": True}, "required": ["a"]},
    ],
    ids=["a list", "nothing required", "no type", "types", "open object", "itself", "anything"],
)
def test_a_schema_the_api_does_not_take_is_said_only(schema, command):
    body = sent(command, **held_to(schema))
    assert body["response_format"] == {"type": "json_object"} and json.dumps(schema) in body["messages"][0]["content"]


def test_a_regular_expression_is_refused(command):
    with pytest.raises(Fatal, match="regular expression"):
        model(command, structured_output={"format": "regex", "schema": "a+"}).load()


# ------------------------------------------------------------------------------------------------------------- answers


def answered(wire: Any, body: dict[str, Any]) -> GenerateOutput:
    wire.answer = lambda request: wire.Reply(body)
    return ask(wire)


@pytest.mark.parametrize(
    ("reason", "ours"),
    [
        ("COMPLETE", "stop"),
        ("STOP_SEQUENCE", "stop"),
        ("MAX_TOKENS", "length"),
        ("TOOL_CALL", "tool_calls"),
        ("ERROR", "error"),
        ("TIMEOUT", "error"),
        ("OF_NEXT_YEAR", None),
    ],
)
def test_why_it_ended(reason, ours, wire):
    output = answered(wire, message("Madrid.", finish_reason=reason))
    assert output == ["Madrid."] and output.finish_reasons == [ours]


def test_thoughts_are_kept_apart(wire):
    output = answered(wire, message({"type": "thinking", "thinking": "Spain …"}, "Mad", "rid."))
    assert output == ["Madrid."] and output.reasoning == ["Spain …"]


@pytest.mark.parametrize("content", [None, [], [{"type": "text", "text": ""}], [{"type": "thinking", "thinking": "…"}]])
def test_no_text_is_none(content, wire):
    output = answered(wire, message(finish_reason="MAX_TOKENS", message={"role": "assistant", "content": content}))
    assert output == [None] and output.finish_reasons == ["length"] and output.error is None


@pytest.mark.parametrize(
    ("usage", "ours"),
    [
        ({"billed_units": {"input_tokens": 9.0, "output_tokens": 4.0}, "tokens": {"input_tokens": 75.0}}, Usage(9, 4)),
        ({"tokens": {"input_tokens": 75.0, "output_tokens": 4.0}, "cached_tokens": 64.0}, Usage(75, 4, 64)),
        ({"billed_units": {"input_tokens": 9.0}, "cached_tokens": 64.0}, Usage(9, 0, 9)),
        ({}, Usage()),
        (None, Usage()),
    ],
    ids=["charged", "not charged", "cached more than charged", "empty", "none"],
)
def test_usage_is_what_is_charged_for(usage, ours, wire):
    assert answered(wire, message("Madrid.", usage=usage)).usage == ours


def test_how_likely_each_piece_was(wire):
    pieces = [
        {"text": "Mad", "token_ids": [1], "logprobs": [-0.25]},
        {"text": "é", "token_ids": [2, 3], "logprobs": [-1, -0.5]},
    ]
    (found,) = answered(wire, message("Madé", logprobs=pieces)).logprobs
    assert found == [[{"token": "Mad", "logprob": -0.25}], [{"token": "é", "logprob": -1.5}]]


def test_what_it_cost(command):
    assert model(command).cost(ask(command).usage) is None  # not the provider's own address
    dollars = CohereLLM(model="command-a", api_key=KEY).cost(Usage(1_000_000, 1_000_000))  # type: ignore[arg-type]
    assert dollars and dollars > 1


# ----------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("status", "text", "ours"),
    [
        (400, "invalid request: too many tokens: size limit exceeded by 11326 tokens", Rejected),
        (401, "invalid api token", Fatal),
        (402, "please add or update your payment method", Fatal),
        (403, "not yours", Fatal),
        (404, "model 'command-0' not found", Fatal),
        (408, "too slow", Transient),
        (409, "again", Transient),
        (413, "too large", Rejected),
        (422, "no", Rejected),
        (429, "limited to 20 API calls / minute", Throttled),
        (429, "You are using a Trial key, which is limited to 1000 API calls / month.", Fatal),
        (499, "cancelled", Rejected),
        (500, "oops", Transient),
        (503, "away", Transient),
        (529, "overloaded", Transient),
    ],
)
def test_a_refused_request(status, text, ours, command):
    headers = {"x-request-id": "req_1", "retry-after": "7"}
    command.answer = lambda request: command.Reply({"id": "1", "message": text}, status=status, headers=headers)
    error = failure(command)
    assert type(error) is ours and len(command.requests) == 1  # the SDK does not try again by itself
    assert (error.status, error.request_id) == (status, "req_1")
    assert error.retry_after == (None if ours is Fatal and status == 429 else 7)
    assert text in str(error) and "/v2/chat" in str(error)


# ------------------------------------------------------------------------------ a server that nobody here wrote: llmock


def test_a_real_server_answers(llmock):
    llm = CohereLLM(model="command-a")  # it is where, and under the key, that the environment says
    outputs = llm.generate([CHAT] * 20, num_generations=2, max_new_tokens=99, temperature=0.5, stop=["\n"])
    assert all(len(output) == 2 and all(output) and output.finish_reasons == ["stop"] * 2 for output in outputs)
    assert all(output.usage.input_tokens > 0 and output.usage.output_tokens > 0 for output in outputs)


def test_a_real_server_keeps_to_a_schema(llmock):
    (output,) = CohereLLM(model="command-a", **held_to(Person)).generate([CHAT])
    assert output.error is None and Person.model_validate_json(output[0] or "")


def test_a_real_servers_limits_are_kept(llmock):
    llm = CohereLLM(model="command-a", api_key="key of this test")  # type: ignore[arg-type]
    llmock.rate_limit(times=2, retry_after=0.2)
    (output,) = llm.generate([CHAT])
    assert output[0] and output.attempts == 3
    llmock.context_overflow()
    (output,) = llm.generate([CHAT])
    assert type(output.error) is Rejected and "maximum context length" in str(output.error)
