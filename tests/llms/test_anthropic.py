"""Claude over Anthropic's own SDK: what is sent, what comes back, what goes wrong, how many at once."""

import json
import pickle
from typing import Any, get_args

import anthropic
import pytest
from anthropic.types import StopReason
from anthropic.types.message_create_params import MessageCreateParamsBase

from llms import Fatal, LLMError, Rejected, Throttled, Transient
from llms.anthropic import DEFAULT_MAX_TOKENS, FINISH_REASONS, SAMPLING_OPTIONS, AnthropicLLM
from llms.clients import event_loop
from llms.errors import FATAL_CODES
from llms.typing import ChatType, GenerateOutput, Usage

KEY = "sk-ant-secret"
CHAT: ChatType = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "¿Capital de España? 🇪🇸"}]
PIXEL = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
}
ADA = '{"name": "Ada", "age": 36}'
LIMITS = {"anthropic-ratelimit-requests-limit": "50", "anthropic-ratelimit-requests-remaining": "49"}


def message(*blocks: Any, stop_reason: str | None = "end_turn", **usage: Any) -> dict[str, Any]:
    """A reply in the shape of Anthropic's; a text stands for a text block."""
    content = [{"type": "text", "text": each} if isinstance(each, str) else each for each in blocks]
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-5-5",
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 9, "output_tokens": 4} | usage,
    }


def mistake(kind: str, text: str, **details: Any) -> dict[str, Any]:
    """An error in the shape of Anthropic's."""
    return {"type": "error", "error": {"type": kind, "message": text, "details": details}, "request_id": "req_1"}


@pytest.fixture
def claude(wire: Any) -> Any:
    """The scripted server, speaking like Anthropic."""
    wire.answer = lambda request: wire.Reply(message("Madrid."))
    return wire


def model(wire: Any, **fields: Any) -> AnthropicLLM:
    url = wire.url.removesuffix("/v1")
    return AnthropicLLM(**{"model": "claude-sonnet-5-5", "base_url": url, "api_key": KEY, "timeout": 20} | fields)


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


def test_what_is_sent(claude):
    body = sent(claude)
    (request,) = claude.requests
    assert (request.method, request.path) == ("POST", "/v1/messages")
    assert request.headers["authorization"] == f"Bearer {KEY}" and "x-api-key" not in request.headers
    assert request.headers["anthropic-version"] == "2026-10-21"
    assert request.headers["content-type"] == "application/json"
    assert body == {
        "model": "claude-sonnet-5-5",
        "max_tokens": DEFAULT_MAX_TOKENS,
        "system": "Be brief.",
        "messages": [CHAT[1]],
    }


THINKING = {"type": "enabled", "budget_tokens": 1024}
OPTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    # option: (value, what it adds to the body)
    "max_new_tokens": (7, {"max_tokens": 7}),
    "temperature": ("0.3", {"temperature": 0.3}),
    "top_p": (0.9, {"top_p": 0.9}),
    "top_k": (5, {"top_k": 5}),
    "stop": ("\n", {"stop_sequences": ["\n"]}),
    "reasoning_effort": ("low", {"output_config": {"effort": "low"}}),
    "thinking": (THINKING, {"thinking": THINKING}),
    "cache_control": ({"type": "ephemeral"}, {"cache_control": {"type": "ephemeral"}}),
    "service_tier": ("standard_only", {"service_tier": "standard_only"}),
    "speed": ("fast", {"speed": "fast"}),
    "inference_geo": ("us", {"inference_geo": "us"}),
    "metadata": ({"user_id": "u"}, {"metadata": {"user_id": "u"}}),
    "extra_body": ({"mcp_servers": []}, {"mcp_servers": []}),
    "extra_headers": ({"anthropic-beta": "x"}, {}),
}


@pytest.mark.parametrize("name", AnthropicLLM.Options.model_fields)
def test_an_option_reaches_the_wire_and_nothing_else_does(name, claude):
    value, members = OPTIONS[name]
    assert sent(claude, options={name: value}) == sent(claude) | members
    header = {"anthropic-version": "2023-06-01" if name in SAMPLING_OPTIONS else "2026-10-21"}
    header |= value if name == "extra_headers" else {}
    assert header.items() <= claude.requests[0].headers.items()


def test_every_wire_name_is_one_the_sdk_knows_but_those_it_dropped():
    names = {field.serialization_alias or name for name, field in AnthropicLLM.Options.model_fields.items()}
    names -= {"effort", "extra_body", "extra_headers"}
    assert names - MessageCreateParamsBase.__annotations__.keys() == set(SAMPLING_OPTIONS)


def test_sampling_goes_with_more_members_and_headers(claude):
    options = {"temperature": 0, "extra_body": {"a": 1}, "extra_headers": {"anthropic-beta": "x"}}
    body, (request,) = sent(claude, options=options), claude.requests
    assert (body["temperature"], body["a"]) == (0, 1)
    assert (request.headers["anthropic-version"], request.headers["anthropic-beta"]) == ("2023-06-01", "x")


def test_a_model_that_refuses_the_temperature_says_so(claude):
    text = "`temperature` is not supported for this model."
    claude.answer = lambda request: claude.Reply(mistake("invalid_request_error", text), status=400)
    error = failure(claude, generation_kwargs={"temperature": 1})
    assert type(error) is Rejected and text in str(error)


def test_many_tokens_may_be_asked_for(claude):
    assert sent(claude, options={"max_new_tokens": 128_000})["max_tokens"] == 128_000


@pytest.mark.parametrize("name", ["seed", "logprobs", "frequency_penalty", "response_format"])
def test_what_the_api_lacks_is_refused_by_name(name, claude):
    with pytest.raises(Fatal, match=name):
        ask(claude, options={name: 1})


def test_several_generations_are_several_requests(claude):
    (output,) = model(claude).generate([CHAT], num_generations=3)
    assert output == ["Madrid."] * 3 and len(claude.requests) == 3
    assert output.usage == Usage(27, 12)


def test_a_token_of_a_gateway_is_a_key_too(claude, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "token")
    sent(claude, api_key=None)
    sent(claude)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "key")
    sent(claude, api_key=None)
    assert [each.headers["authorization"][7:] for each in claude.requests] == ["token", KEY, "key"]


# ------------------------------------------------------------------------------------------------------------- chats


def user(*parts: Any) -> ChatType:
    return [{"role": "user", "content": list(parts)}]


def test_a_chat_of_several_turns(claude):
    turns: ChatType = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hello."},
        {"role": "system", "content": "Be rude."},
        {"role": "user", "content": "Bye"},
    ]
    body = sent(claude, [CHAT[0], *turns])
    assert body["system"] == "Be brief."
    assert body["messages"] == [turns[0], *turns[2:]]  # the API takes no empty message


def test_several_system_messages_are_one(claude):
    cached = {"type": "text", "text": "B", "cache_control": {"type": "ephemeral"}}
    leading: ChatType = [{"role": "system", "content": "A"}, {"role": "system", "content": [cached]}]
    assert sent(claude, [*leading, CHAT[1]])["system"] == [{"type": "text", "text": "A"}, cached]


@pytest.mark.parametrize(
    ("url", "source"),
    [
        (f"data:image/gif;base64,{PIXEL}", {"type": "base64", "media_type": "image/gif", "data": PIXEL}),
        ("https://example.org/a.png", {"type": "url", "url": "https://example.org/a.png"}),
    ],
    ids=["data", "address"],
)
def test_images(url, source, claude):
    text, document = {"type": "text", "text": "What?"}, {"type": "document", "source": {"type": "text", "data": "x"}}
    image = {"type": "image_url", "image_url": {"url": url, "detail": "low"}}
    (turn,) = sent(claude, user(text, image, document))["messages"]
    assert turn["content"] == [text, {"type": "image", "source": source}, document]


def test_an_image_that_is_none_costs_its_own_chat_only(claude):
    broken = user({"type": "image_url", "image_url": {"url": "data:image/gif,GIF89a"}})
    bad, good = model(claude).generate([broken, CHAT])
    assert type(bad.error) is Rejected and "data:image/png;base64" in str(bad.error)
    assert good == ["Madrid."] and len(claude.requests) == 1


# --------------------------------------------------------------------------------------------------- structured output


def held_to(schema: Any, **fields: Any) -> dict[str, Any]:
    return {"structured_output": {"format": "json", "schema": schema}} | fields


def test_the_apis_own_mode_with_what_it_cannot_enforce_in_words(claude):
    body = sent(claude, options={"reasoning_effort": "low"}, **held_to(SCHEMA))
    config = body.pop("output_config")
    assert config["effort"] == "low" and config["format"]["type"] == "json_schema"
    schema = config["format"]["schema"]
    assert schema == anthropic.transform_schema(SCHEMA) and schema["additionalProperties"] is False
    assert "maxLength" not in schema["properties"]["name"] and "9" in schema["properties"]["name"]["description"]
    assert body == sent(claude)  # and nothing else


def test_a_tool_it_must_call(claude):
    body = sent(claude, **held_to(SCHEMA, structured_mode="tool"))
    (tool,) = body["tools"]
    assert tool["strict"] and tool["input_schema"] == anthropic.transform_schema(SCHEMA)
    assert body["tool_choice"] == {"type": "tool", "name": tool["name"], "disable_parallel_tool_use": True}
    assert "output_config" not in body


TREE = {"type": "object", "properties": {"of": {"type": "array", "items": {"$ref": "#/$defs/Tree"}}}}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"nick": {"type": ["string", "null"]}}},
        {"type": "object", "properties": {"any": {}}},
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {"type": "object", "properties": {"a": {"$ref": "#/definitions/A"}}, "definitions": {"A": {"type": "null"}}},
        {"type": "object", "properties": {"of": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}},
        {"$defs": {"Tree": TREE}, **TREE},
        {"$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"anyOf": [{"$ref": "#/$defs/A"}]}}, **SCHEMA},
    ],
    ids=["types", "no type", "open object", "definitions", "itself", "recursive", "circle"],
)
def test_a_schema_the_api_has_no_form_for_is_a_tools(schema, claude):
    body = sent(claude, **held_to(schema))
    assert body["tools"][0]["input_schema"] == schema and "strict" not in body["tools"][0]
    assert body["tool_choice"]["type"] == "tool" and "output_config" not in body


def test_words_only(claude):
    body = sent(claude, **held_to(SCHEMA, structured_mode="prompt"))
    assert body["system"].startswith("Be brief.\n\n") and json.dumps(SCHEMA) in body["system"]
    assert body.keys() == sent(claude).keys()


def test_a_regular_expression_is_refused(claude):
    with pytest.raises(Fatal, match="regular expression"):
        model(claude, structured_output={"format": "regex", "schema": "a+"}).load()


def test_what_the_tool_was_called_with_is_the_answer(claude):
    call = {"type": "tool_use", "id": "t", "name": "answer", "input": {"name": "Ñ", "age": 3}}
    claude.answer = lambda request: claude.Reply(message(call, stop_reason="tool_use"))
    (output,) = model(claude, **held_to(SCHEMA, structured_mode="tool")).generate([CHAT])
    assert output == ['{"name": "Ñ", "age": 3}'] and output.finish_reasons == ["tool_calls"]


def test_no_answer_is_asked_for_again_without_an_empty_message(claude):
    claude.script(claude.Reply(message()), claude.Reply(message(ADA)))
    (output,) = model(claude, **held_to(SCHEMA)).generate([CHAT])
    assert output == [ADA]
    assert [turn["role"] for turn in claude.requests[1].body["messages"]] == ["user", "user"]


# ------------------------------------------------------------------------------------------------------------- answers


def answered(wire: Any, body: dict[str, Any]) -> GenerateOutput:
    wire.answer = lambda request: wire.Reply(body)
    return ask(wire)


@pytest.mark.parametrize(
    ("reason", "ours"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("pause_turn", "tool_calls"),
        ("refusal", "refusal"),
        ("of next year", None),
        (None, None),
    ],
)
def test_why_it_ended(reason, ours, wire):
    output = answered(wire, message("Madrid.", stop_reason=reason))
    assert output == ["Madrid."] and output.finish_reasons == [ours]


def test_every_reason_the_sdk_knows_has_a_name():
    assert set(get_args(StopReason)) == FINISH_REASONS.keys()


def test_thoughts_are_kept_apart(wire):
    thought = {"type": "thinking", "thinking": "Spain …", "signature": "x"}
    hidden = {"type": "redacted_thinking", "data": "x"}
    output = answered(wire, message(thought, hidden, "Mad", {"type": "of_next_year"}, "rid."))
    assert output == ["Madrid."] and output.reasoning == ["Spain …"]


@pytest.mark.parametrize("blocks", [(), ("",), ({"type": "thinking", "thinking": "Hm", "signature": "x"},)])
def test_no_text_is_none(blocks, wire):
    output = answered(wire, message(*blocks, stop_reason="max_tokens"))
    assert output == [None] and output.finish_reasons == ["length"] and output.error is None


def test_a_refusal_is_an_outcome(wire):
    details = {"type": "refusal", "category": "frontier_llm", "explanation": "no"}
    wire.answer = lambda request: wire.Reply(message(stop_reason="refusal") | {"stop_details": details})
    (output,) = model(wire, **held_to(SCHEMA)).generate([CHAT])
    assert output == [None] and output.finish_reasons == ["refusal"] and output.error is None
    assert len(wire.requests) == 1


def test_input_includes_what_came_from_the_cache_and_went_there(wire):
    details = {"output_tokens_details": {"thinking_tokens": 3}}
    cached = {"cache_read_input_tokens": 100, "cache_creation_input_tokens": 20}
    output = answered(wire, message("Madrid.", **cached, **details))
    assert output.usage == Usage(129, 4, 100, 3, 20)
    nothing = {"cache_read_input_tokens": None, "cache_creation_input_tokens": None, "output_tokens_details": None}
    assert answered(wire, message("Madrid.", **nothing)).usage == Usage(9, 4)


def test_what_it_cost(claude):
    output = ask(claude)
    assert model(claude).cost(output.usage) is None  # not the provider's own address
    dollars = AnthropicLLM(model="claude-sonnet-4-5", api_key=KEY).cost(Usage(1_000_000, 1_000_000))  # type: ignore[arg-type]
    assert dollars and dollars > 1


# ----------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("status", "kind", "text", "ours"),
    [
        (400, "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum", Rejected),
        (401, "authentication_error", "invalid bearer token", Fatal),
        (402, "billing_error", "no credit", Fatal),
        (403, "permission_error", "not yours", Fatal),
        (404, "not_found_error", "model: claude-0", Fatal),
        (408, "timeout_error", "too slow", Transient),
        (409, "conflict_error", "again", Transient),
        (413, "invalid_request_error", "too large", Rejected),
        (422, "invalid_request_error", "no", Rejected),
        (429, "rate_limit_error", "slow down", Throttled),
        (500, "api_error", "oops", Transient),
        (503, "api_error", "away", Transient),
        (504, "timeout_error", "too slow", Transient),
        (529, "overloaded_error", "Overloaded", Transient),
    ],
)
def test_a_refused_request(status, kind, text, ours, claude):
    headers = {"request-id": "req_1", "retry-after": "7"}
    claude.answer = lambda request: claude.Reply(mistake(kind, text), status=status, headers=headers)
    error = failure(claude)
    assert type(error) is ours and len(claude.requests) == 1  # the SDK does not try again by itself
    assert (error.status, error.code, error.request_id, error.retry_after) == (status, kind, "req_1", 7)
    assert text in str(error) and "/v1/messages" in str(error)


@pytest.mark.parametrize("code", sorted(each for each in FATAL_CODES if each.endswith("spend_limit_reached")))
def test_no_waiting_mends_a_limit_on_spending(code, claude):
    body = mistake("rate_limit_error", "limit reached", error_code=code)
    claude.answer = lambda request: claude.Reply(body, status=429, headers={"retry-after": "3600"})
    error = failure(claude)
    assert type(error) is Fatal and (error.status, error.code) == (429, code)


def test_an_error_in_an_answer_of_status_200_has_its_code(claude):
    body = json.dumps(mistake("overloaded_error", "no"))
    claude.answer = lambda request: claude.Reply(body, headers={"request-id": "req_1"})
    error = failure(claude)
    assert (type(error), error.status, error.request_id, error.code) == (Transient, 200, "req_1", "overloaded_error")


# ------------------------------------------------------------------------------ a server that nobody here wrote: llmock


def test_a_real_server_answers(llmock):
    llm = AnthropicLLM(model="claude-sonnet-4-6")  # it is where, and under the key, that the environment says
    outputs = llm.generate([CHAT] * 20, num_generations=2, max_new_tokens=99, temperature=0.5, stop=["\n"])
    assert all(len(output) == 2 and all(output) and output.finish_reasons == ["stop"] * 2 for output in outputs)
    assert all(output.usage.input_tokens > 0 and output.usage.output_tokens > 0 for output in outputs)


def test_a_real_server_cuts_short(llmock):
    (output,) = AnthropicLLM(model="claude-sonnet-4-6").generate([CHAT], max_new_tokens=1)
    assert output.finish_reasons == ["length"]


def test_a_real_server_calls_the_tool_it_is_given(llmock):
    llm = AnthropicLLM(model="claude-sonnet-4-6", **held_to(SCHEMA, structured_mode="tool"))
    (output,) = llm.generate([CHAT])
    assert output.error is None and json.loads(output[0] or "").keys() == {"name", "age"}


def test_a_real_servers_limits_are_kept(llmock):
    llmock.limits(rpm=600)
    llm = AnthropicLLM(model="claude-sonnet-4-6", api_key="key of this test")  # type: ignore[arg-type]
    assert "anthropic-ratelimit-requests-remaining" in (event_loop.run(llm.agenerate(CHAT)).headers or {})
    llmock.rate_limit(times=2, retry_after=0.2)
    (output,) = llm.generate([CHAT])
    assert output[0] and output.attempts == 3
    llmock.context_overflow()
    (output,) = llm.generate([CHAT])
    assert type(output.error) is Rejected and "maximum context length" in str(output.error)
