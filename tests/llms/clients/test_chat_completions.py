"""The direct wire to OpenAI and all who speak like it: what the SDK sends, what goes wrong, how many at once."""

import asyncio
import contextlib
import json
import pickle
import socket
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any

import jsonschema
import openai
import pytest
from openai import AsyncOpenAI

from llms import Fatal, LLMError, OpenAILLM, Rejected, Throttled, Transient
from llms.clients import errors, event_loop
from llms.clients.chat_completions import complete
from llms.engine import request
from llms.limits import limiter
from llms.structured.openai_strict import strict_schema
from llms.typing import ChatType, GenerateOutput, Usage

KEY = "sk-secret"
NOW = 1_800_000_000.0
CHAT: ChatType = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "¿Capital de España? 🇪🇸"}]
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
IMAGE: ChatType = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
        ],
    }
]
SCHEMA: dict[str, Any] = {
    "title": "User profile",
    "type": "object",
    "properties": {"name": {"type": "string"}, "nickname": {"enum": [None, "Bob"]}, "id": {"type": "integer"}},
    "required": ["name", "nickname", "id"],
    "additionalProperties": False,
}


def openai_llm(wire: Any, **fields: Any) -> OpenAILLM:
    return OpenAILLM(**{"model": "gpt-4", "base_url": wire.url, "api_key": KEY, "timeout": 20} | fields)


def failure(wire: Any, **fields: Any) -> LLMError:
    """Why one chat got no answer."""
    (output,) = openai_llm(wire, **fields).generate([CHAT])
    assert output == [None] and output.finish_reasons == ["error"] and output.error is not None
    return output.error


def fatal(wire: Any, **fields: Any) -> Fatal:
    """Why no chat can get an answer."""
    with pytest.raises(Fatal) as caught:
        openai_llm(wire, **fields).generate([CHAT])
    return caught.value


def harmless(error: LLMError) -> None:
    """It pickles, and holds no key."""
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error) and vars(again) == vars(error)
    for shown in (str(error), repr(error), repr(vars(error)), str(error.__cause__), repr(error.__context__)):
        assert KEY not in shown
    assert KEY.encode() not in pickle.dumps(error)


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the engine waits between attempts; it passes at once, and so does what the limiter adds to a refusal."""
    monkeypatch.setattr(limiter, "MAX_BACKOFF_S", 0.02)
    asked: list[float] = []

    async def shortly(seconds: float) -> None:
        asked.append(seconds)
        await asyncio.sleep(min(seconds, 0.005))

    monkeypatch.setattr(request, "asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": shortly}))
    return asked


# ------------------------------------------------------------------------------------------------ the SDK as the oracle


STRICT = {"name": "User_profile", "strict": True, "schema": strict_schema(SCHEMA)}

SAME_CALLS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # what it is about: (fields of the model, runtime parameters, what the SDK calls all that)
    "nothing": ({}, {}, {}),
    "max_new_tokens": ({}, {"max_new_tokens": 7}, {"max_completion_tokens": 7}),
    "temperature": ({}, {"temperature": 0.3}, {"temperature": 0.3}),
    "temperature of zero": ({}, {"temperature": 0}, {"temperature": 0}),
    "temperature as text": ({}, {"temperature": "0.3"}, {"temperature": 0.3}),
    "top_p": ({}, {"top_p": 0.9}, {"top_p": 0.9}),
    "one stop": ({}, {"stop": "\n"}, {"stop": "\n"}),
    "two stops": ({}, {"stop": ["\n", "é"]}, {"stop": ["\n", "é"]}),
    "seed": ({}, {"seed": 0}, {"seed": 0}),
    "frequency_penalty": ({}, {"frequency_penalty": -0.5}, {"frequency_penalty": -0.5}),
    "presence_penalty": ({}, {"presence_penalty": 1.5}, {"presence_penalty": 1.5}),
    "JSON mode": ({}, {"response_format": "json"}, {"response_format": {"type": "json_object"}}),
    "text mode": ({}, {"response_format": "text"}, {"response_format": {"type": "text"}}),
    "their own response format": (
        {},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}},
    ),
    "reasoning_effort": ({}, {"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
    "extra_body": (
        {},
        {"extra_body": {"top_k": 5, "temperature": 0.1}, "temperature": 0.9},
        {"extra_body": {"top_k": 5, "temperature": 0.1}, "temperature": 0.9},
    ),
    "extra_body with null": ({}, {"extra_body": {"a": {"b": None}}}, {"extra_body": {"a": {"b": None}}}),
    "everything from generation_kwargs": (
        {"generation_kwargs": {"temperature": 0.3, "seed": 7, "stop": ["a"]}},
        {"seed": 8},
        {"temperature": 0.3, "seed": 8, "stop": ["a"]},
    ),
    "structured output": (
        {"structured_output": {"format": "json", "schema": SCHEMA}},
        {},
        {"response_format": {"type": "json_schema", "json_schema": STRICT}},
    ),
}


def sent_by_sdk(wire: Any, chat: ChatType, **options: Any) -> Any:
    async def call() -> None:
        async with AsyncOpenAI(base_url=wire.url, api_key=KEY, max_retries=0) as client:
            await client.chat.completions.create(model="gpt-4", messages=chat, **options)  # type: ignore[arg-type]

    event_loop.run(call())
    return wire.requests.pop()


def assert_same(ours: Any, theirs: Any) -> None:
    assert (ours.method, ours.path, ours.body) == (theirs.method, theirs.path, theirs.body)
    for header in ("authorization", "content-type", "host"):
        assert ours.headers[header] == theirs.headers[header]


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("chat", [CHAT, IMAGE], ids=["text", "image"])
@pytest.mark.parametrize("call", SAME_CALLS)
def test_sends_what_the_sdk_sends(call, chat, n, wire):
    fields, parameters, theirs = SAME_CALLS[call]
    text = json.dumps({"name": "Ada", "nickname": None, "id": 1}) if "structured_output" in fields else "Madrid."
    wire.answer = lambda request: wire.Reply(wire.completion(*[text] * n))
    expected = sent_by_sdk(wire, chat, **theirs, **({"n": n} if n > 1 else {}))
    (output,) = openai_llm(wire, **fields).generate([chat], n, **parameters)
    (request,) = wire.requests
    assert_same(request, expected)
    assert output == [text] * n


def test_reads_what_the_sdk_reads(wire):
    wire.answer = lambda request: wire.Reply(wire.completion("a", None, "c", finish_reason="length"))
    (ours,) = openai_llm(wire).generate([CHAT], 3)

    async def call() -> Any:
        async with AsyncOpenAI(base_url=wire.url, api_key=KEY, max_retries=0) as client:
            return await client.chat.completions.create(model="gpt-4", messages=CHAT, n=3)  # type: ignore[arg-type]

    theirs = event_loop.run(call())
    assert ours == [choice.message.content for choice in theirs.choices]
    assert ours.finish_reasons == [choice.finish_reason for choice in theirs.choices]
    usage = theirs.usage
    assert ours.usage == Usage(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.prompt_tokens_details.cached_tokens,
        usage.completion_tokens_details.reasoning_tokens,
    )


def test_choices_are_sorted_by_their_index(wire):
    reply = wire.completion("a", "b", "c")
    reply["choices"].reverse()
    wire.script(wire.Reply(reply))
    assert openai_llm(wire).generate([CHAT], 3) == [["a", "b", "c"]]


def test_a_reply_without_usage_costs_nothing(wire):
    wire.script(wire.Reply({"choices": [{"message": {"content": "Madrid."}}]}))
    (output,) = openai_llm(wire).generate([CHAT])
    assert output == ["Madrid."] and output.usage == Usage() and output.finish_reasons == [None]


def test_a_slash_at_the_end_of_the_address_does_not_matter(wire):
    openai_llm(wire, base_url=f"{wire.url}/").generate([CHAT])
    assert wire.requests[0].path == "/v1/chat/completions"


def test_address_and_key_come_from_the_sdks_own_variables(wire, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", wire.url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    assert OpenAILLM(model="gpt-4").generate([CHAT]) == [["Madrid."]]
    assert wire.requests[0].headers["authorization"] == "Bearer sk-other"


def test_names_of_schemas_are_such_as_the_api_takes(wire):
    schema = {"title": "Benutzerübersicht für " + "x" * 80, "type": "object"}
    wire.answer = lambda request: wire.Reply(wire.completion("{}"))
    openai_llm(wire, structured_output={"schema": schema}).generate([CHAT])
    openai_llm(wire, structured_output={"schema": {"title": "", "type": "object"}}).generate([CHAT])
    names = [request.body["response_format"]["json_schema"]["name"] for request in wire.requests]
    assert names == ["Benutzer_bersicht_f_r_" + "x" * 42, "output"]


def test_a_pattern_is_refused_with_the_cure_before_any_request(wire):
    llm = openai_llm(wire, structured_output={"format": "regex", "schema": "[A-E]"})
    with pytest.raises(Fatal, match="`OpenAILLM` cannot be held to a regular expression.*`pattern`"):
        llm.generate([CHAT])
    assert not wire.requests


def test_a_login_in_netrc_does_not_bar_the_key(wire, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("default login me password mine\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert openai_llm(wire).generate([CHAT]) == [["Madrid."]]
    assert wire.requests[0].headers["authorization"] == f"Bearer {KEY}"


def test_goes_through_the_proxy_of_the_environment(wire, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", wire.url.removesuffix("/v1"))
    monkeypatch.setenv("NO_PROXY", "here.invalid")
    assert openai_llm(wire, base_url="http://nowhere.invalid/v1").generate([CHAT]) == [["Madrid."]]
    assert wire.requests[0].headers["host"] == "nowhere.invalid"
    assert type(failure(wire, base_url="http://here.invalid/v1")) is Transient


# ------------------------------------------------------------------------------------------------------ what goes wrong


def said(message: str, code: str | None, kind: str = "invalid_request_error") -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


@pytest.mark.parametrize(
    ("status", "body", "kind", "code"),
    [
        (400, said("too long", "context_length_exceeded"), Rejected, "context_length_exceeded"),
        (400, said("bad value", None), Rejected, "invalid_request_error"),
        (422, said("unprocessable", None), Rejected, "invalid_request_error"),
        (401, said("wrong key", "invalid_api_key"), Fatal, "invalid_api_key"),
        (402, said("pay first", None), Fatal, "invalid_request_error"),
        (403, said("not here", "unsupported_country"), Fatal, "unsupported_country"),
        (404, said("no such model", "model_not_found"), Fatal, "model_not_found"),
        (429, said("empty wallet", "insufficient_quota"), Fatal, "insufficient_quota"),
        (408, said("too late", None), Transient, "invalid_request_error"),
        (409, said("conflict", None), Transient, "invalid_request_error"),
        (500, said("oh", None, "server_error"), Transient, "server_error"),
        (503, said("overloaded", None, "server_error"), Transient, "server_error"),
        (502, "<html>Bad gateway</html>", Transient, None),
        (400, {"message": "flat", "code": "x"}, Rejected, "x"),
        (400, {"error": "a text"}, Rejected, None),
        (400, '["a list"]', Rejected, None),
        (400, "", Rejected, None),
    ],
)
def test_errors_are_told_apart_by_status_and_code(status, body, kind, code, wire):
    wire.answer = lambda request: wire.Reply(body, status=status, headers={"X-Request-Id": "req-1"})
    error = fatal(wire) if kind is Fatal else failure(wire)
    assert type(error) is kind
    assert (error.status, error.code, error.request_id) == (status, code, "req-1")
    assert str(status) in str(error) and wire.url in str(error)
    assert (body["error"]["message"] if code and isinstance(body.get("error"), dict) else "") in str(error)
    assert len(wire.requests) == error.attempts == (request.MAX_ATTEMPTS if kind is Transient else 1)
    harmless(error)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 422, 429, 500, 502, 503])
def test_the_sdk_would_have_retried_the_same_errors(status, wire):
    wire.answer = lambda request: wire.Reply(said("no", None), status=status, headers={"Retry-After-Ms": "1"})

    async def call() -> None:
        async with AsyncOpenAI(base_url=wire.url, api_key=KEY, max_retries=1) as client:
            with pytest.raises(openai.APIStatusError):
                await client.chat.completions.create(model="gpt-4", messages=CHAT)  # type: ignore[arg-type]

    event_loop.run(call())
    theirs = len(wire.requests) > 1
    wire.requests.clear()
    wire.script(wire.Reply(said("no", None), status=status, headers={"Retry-After-Ms": "1"}))
    wire.answer = lambda request: wire.Reply()
    with contextlib.suppress(Fatal):
        openai_llm(wire).generate([CHAT])
    assert (len(wire.requests) > 1) is theirs


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "1"}, 1),
        ({"Retry-After": "0.25"}, 0.25),
        ({"retry-after-ms": "250", "Retry-After": "60"}, 0.25),
        ({"Retry-After": formatdate(NOW + 1, usegmt=True)}, 1),
    ],
    ids=["seconds", "part of a second", "milliseconds", "date"],
)
def test_waits_as_long_as_it_is_asked_to_and_then_succeeds(headers, seconds, wire, monkeypatch):
    monkeypatch.setattr(errors, "time", SimpleNamespace(time=lambda: NOW))
    wire.script(wire.Reply(said("slow down", "rate_limit_exceeded"), status=429, headers=headers))
    llm, started = openai_llm(wire), time.monotonic()
    (output,) = llm.generate([CHAT])
    assert output == ["Madrid."] and output.attempts == 2 and output.error is None
    assert seconds <= time.monotonic() - started
    assert llm.limiter_stats()["seconds_paused"] == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["soon", "", "nan", "inf", "-1", "0", "Wed, 99 Foo 2026"])
def test_nonsense_about_when_to_come_back_is_passed_over(value, wire):
    wire.script(wire.Reply(said("slow down", None), status=429, headers={"Retry-After": value}))
    llm = openai_llm(wire)
    (output,) = llm.generate([CHAT])
    assert output == ["Madrid."] and output.attempts == 2
    assert llm.limiter_stats()["seconds_paused"] < 0.1


def test_throttling_is_waited_out_however_often(wire):
    wire.script(*[wire.Reply(said("slow down", None), status=429, headers={"Retry-After": "0.02"})] * 20)
    (output,) = openai_llm(wire).generate([CHAT])
    assert output == ["Madrid."] and output.attempts == 21


def test_all_wait_when_one_is_refused(wire):
    wire.script(wire.Reply(said("slow down", None), status=429, headers={"Retry-After": "1"}))
    llm = openai_llm(wire)
    outputs = llm.generate([CHAT] * 200)
    assert all(output == ["Madrid."] for output in outputs)
    known = llm.limiter_stats()
    assert (known["admitted"], known["throttled"], known["episodes"]) == (201, 1, 1)
    assert known["seconds_paused"] == pytest.approx(1)


def test_patience_ends(wire, monkeypatch):
    monkeypatch.setattr(request, "MAX_THROTTLED", 3)
    wire.answer = lambda request: wire.Reply(said("slow down", None), status=429, headers={"Retry-After": "0.02"})
    error = failure(wire)
    assert isinstance(error, Throttled) and (error.status, error.attempts, error.retry_after) == (429, 3, 0.02)
    harmless(error)


def test_patience_ends_with_a_broken_server_too(wire, pauses):
    wire.answer = lambda request: wire.Reply("", status=503, headers={"Retry-After": "86400"})
    assert isinstance(failure(wire), Transient)
    assert pauses == [] and len(wire.requests) == 1


def test_being_throttled_costs_no_attempt(wire):
    throttled = wire.Reply(said("slow down", None), status=429, headers={"Retry-After": "0.02"})
    wire.script(*[throttled] * request.MAX_ATTEMPTS, *[wire.Reply("", status=500)] * (request.MAX_ATTEMPTS - 1))
    (output,) = openai_llm(wire).generate([CHAT])
    assert output == ["Madrid."] and output.attempts == 2 * request.MAX_ATTEMPTS


def test_bad_weather_passes(wire, pauses):
    wire.script(wire.Reply("", status=500), wire.Reply(drop=True), wire.Reply("", status=503))
    (output,) = openai_llm(wire).generate([CHAT])
    assert output == ["Madrid."] and output.attempts == 4 and output.error is None
    assert len(pauses) == 3 and min(pauses) > 0 and max(pauses) < 10


def test_a_server_that_takes_too_long(wire):
    wire.answer = lambda request: wire.Reply(delay=0.5)
    error = failure(wire, timeout=0.05)
    assert type(error) is Transient and "within 0.05 s" in str(error) and error.attempts == request.MAX_TIMEOUTS
    harmless(error)


def test_a_server_that_is_not_there(wire):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: refused, and nobody else gets the port
        error = failure(wire, base_url=f"http://127.0.0.1:{unused.getsockname()[1]}/v1")
    assert type(error) is Transient and error.attempts == request.MAX_ATTEMPTS
    harmless(error)


def test_a_server_that_hangs_up(wire):
    wire.answer = lambda request: wire.Reply(drop=True)
    error = failure(wire)
    assert type(error) is Transient and error.attempts == request.MAX_ATTEMPTS <= len(wire.requests)
    harmless(error)


def test_a_server_whose_answer_breaks_off(wire):
    wire.script(wire.Reply("{}", headers={"Content-Length": "999", "Connection": "close"}))
    (output,) = openai_llm(wire).generate([CHAT])
    assert output == ["Madrid."] and output.attempts == 2


@pytest.mark.parametrize(
    "body",
    ['{"choices": [', "", "null", "[]", "{}", '{"choices": null}', '{"choices": []}', '{"choices": [{"index": 0}]}']
    + [json.dumps(said("overloaded", "overloaded"))],
)
def test_an_answer_that_is_none(body, wire):
    wire.answer = lambda request: wire.Reply(body, headers={"X-Request-Id": "req-1"})
    error = failure(wire)
    assert type(error) is Transient and (error.status, error.request_id) == (200, "req-1")
    assert wire.url in str(error) and error.attempts == request.MAX_ATTEMPTS
    if "overloaded" in body:
        assert error.code == "overloaded" and "overloaded" in str(error)
    harmless(error)


@pytest.mark.parametrize("address", ["127.0.0.1:8000/v1", "localhost/v1", "ftp://127.0.0.1/v1", "http://", "nonsense"])
def test_an_address_that_is_none_is_said_at_once(address, wire, pauses):
    error = fatal(wire, base_url=address)
    assert address.rstrip("/") in str(error) and "`base_url`" in str(error) and not pauses
    harmless(error)


def test_a_key_with_a_line_break_is_said_at_once_and_not_shown(wire, pauses):
    error = fatal(wire, api_key=f"{KEY}\nX-Other: 1")
    assert not wire.requests and not pauses
    harmless(error)


def test_the_login_of_a_proxy_that_refuses_is_not_shown(wire, monkeypatch, pauses):
    monkeypatch.setenv("HTTPS_PROXY", wire.url.replace("http://", f"http://me:{KEY}@").removesuffix("/v1"))
    monkeypatch.delenv("NO_PROXY", raising=False)
    url = f"https://nowhere.test/{wire.server_port}"
    with pytest.raises(Transient, match=r"ClientHttpProxyError.*http://\*\*\*@127") as caught:
        event_loop.run(complete(url, {}, {"model": "m", "messages": CHAT}, 5))
    harmless(caught.value)
    harmless(failure(wire, base_url=url))


def test_a_rejected_chat_costs_only_its_own_answer(wire):
    def answer(request: Any) -> Any:
        bad = request.body["messages"][0]["content"] == "13"
        return wire.Reply(said("no", "content_filter"), status=400) if bad else wire.Reply()

    wire.answer = answer
    outputs = openai_llm(wire).generate([[{"role": "user", "content": str(number)}] for number in range(20)])
    assert [number for number, output in enumerate(outputs) if output.error] == [13]
    assert outputs[13].error.code == "content_filter" and len(wire.requests) == 20


def test_a_fatal_error_stops_all_others_at_once(wire):
    patient = threading.Event()

    def answer(request: Any) -> Any:
        if request.body["messages"][0]["content"] == "3":
            return wire.Reply(said("wrong key", "invalid_api_key"), status=401)
        patient.wait(100)
        return wire.Reply()

    wire.answer = answer
    started = time.perf_counter()
    with pytest.raises(Fatal, match="wrong key"):
        openai_llm(wire, max_concurrency=8).generate(
            [[{"role": "user", "content": str(number)}] for number in range(200)]
        )
    assert time.perf_counter() - started < 90, "it waited for the others"
    patient.set()
    for _ in range(3):  # the places of those that were stopped are free
        assert openai_llm(wire, max_concurrency=8).generate([CHAT]) == [["Madrid."]]
    asked = [request.body["messages"] for request in wire.requests]
    assert asked.count(CHAT) == 3 and len(asked) - 3 <= 16, "the others went on"


def test_one_call_can_be_made_by_hand(wire):
    output = event_loop.run(complete(wire.url, {"Authorization": f"Bearer {KEY}"}, {"model": "m", "messages": CHAT}, 5))
    assert isinstance(output, GenerateOutput) and output == ["Madrid."] and output.seconds > 0


# --------------------------------------------------------------------------------------------------------- many at once


@pytest.mark.slow
def test_five_hundred_requests_are_in_flight_at_once(wire):
    everybody = threading.Barrier(500)

    def answer(request: Any) -> Any:
        everybody.wait(timeout=120)
        return wire.Reply()

    wire.answer = answer
    outputs = openai_llm(wire, timeout=150).generate([CHAT] * 500)
    assert outputs == [["Madrid."]] * 500 and wire.peak == 500
    assert all(output.attempts == 1 for output in outputs)


def test_connections_are_kept(wire):
    llm = openai_llm(wire, max_concurrency=4)
    llm.generate([CHAT] * 100)
    assert len(wire.connections) <= 4
    llm.generate([CHAT] * 100)
    assert len(wire.connections) <= 4 and len(wire.requests) == 200


# ------------------------------------------------------------------------------------------------------- the real thing


def test_a_real_server_knows_the_capital_of_spain(openai_server):
    llm = OpenAILLM(model="demo", base_url=openai_server.base_url, api_key=openai_server.api_key)
    chat: ChatType = [{"role": "user", "content": "What's the capital of Spain?"}]
    (output,) = llm.generate([chat], num_generations=2, temperature=0, max_new_tokens=40)
    assert len(output) == 2 and all("Madrid" in (text or "") for text in output)
    assert output.finish_reasons == ["stop", "stop"]
    assert output.usage.input_tokens > 0 and 0 < output.usage.output_tokens <= 80


def test_a_real_server_stops_where_it_is_told_to(openai_server):
    llm = OpenAILLM(model="demo", base_url=openai_server.base_url, api_key=openai_server.api_key)
    chat: ChatType = [{"role": "user", "content": "Write a short story about a dragon that saves a princess."}]
    (output,) = llm.generate([chat], temperature=0, max_new_tokens=5)
    assert output.finish_reasons == ["length"] and output.usage.output_tokens == 5


def test_a_real_server_holds_to_a_schema(openai_server):
    schema = SCHEMA | {"properties": {**SCHEMA["properties"], "name": {"type": "string", "maxLength": 20}}}
    llm = OpenAILLM(
        model="demo",
        base_url=openai_server.base_url,
        api_key=openai_server.api_key,
        structured_output={"format": "json", "schema": schema},  # type: ignore[arg-type]
    )
    chat: ChatType = [{"role": "user", "content": "Create a user profile for the following marathon"}]
    (output,) = llm.generate([chat], temperature=0, max_new_tokens=200)
    jsonschema.validate(json.loads(output[0] or ""), schema)


def test_a_real_server_refuses_a_wrong_key_and_it_is_not_shown(openai_server):
    with pytest.raises(Fatal, match="401") as caught:
        OpenAILLM(model="demo", base_url=openai_server.base_url, api_key=KEY).generate([CHAT])
    harmless(caught.value)


SCRIPT = """
import logging, sys
from llms import OpenAILLM

logging.getLogger("asyncio").setLevel(logging.ERROR)  # which under `-X dev` says when the machine is slow

llm = OpenAILLM(model="demo", base_url=sys.argv[1], api_key=sys.argv[2])
chat = [{"role": "user", "content": "What's the capital of Spain?"}]
print(*llm.generate([chat] * 5, temperature=0, max_new_tokens=40)[4])
"""


@pytest.mark.slow
def test_a_script_ends_without_a_word_about_what_it_left_open(openai_server):
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error::ResourceWarning", "-W", "ignore::DeprecationWarning"]
        + ["-c", SCRIPT, openai_server.base_url, openai_server.api_key],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == "" and done.returncode == 0
    assert done.stdout == "The capital of Spain is Madrid.\n"
