"""LiteLLM: what it sends for us over a real socket to providers of several shapes, what comes back, what goes wrong.

It takes long to import, so it is no part of what the other tests need: they run where it is installed.
"""

import asyncio
import json
import logging
import os
import threading
from importlib.util import find_spec
from typing import Any

import pytest

from llms import Fatal, Rejected, Throttled, Transient
from llms.engine import request
from llms.errors import LLMError
from llms.litellm import LiteLLM
from llms.structured.openai_strict import strict_schema
from llms.typing import ChatType, Usage

if not find_spec("litellm"):  # `importorskip` would import it, which takes seconds
    pytest.skip("litellm is not installed", allow_module_level=True)

KEY = "sk-secret-of-the-test"
CHAT: ChatType = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "¿Capital de España? 🇪🇸"}]
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}},
    "required": ["name"],
    "additionalProperties": False,
}
SHAPE = {"name": "output", "strict": True}


@pytest.fixture(autouse=True)
def one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "MAX_ATTEMPTS", 1)


def lite(wire: Any, **fields: Any) -> LiteLLM:
    return LiteLLM(**{"model": "openai/gpt-4o", "base_url": wire.url, "api_key": KEY, "timeout": 20} | fields)


def sent(wire: Any, chat: ChatType = CHAT, fields: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """The body of the request that one chat becomes."""
    (output,) = lite(wire, **fields or {}).generate([chat], **options)
    assert output.error is None
    (request,) = wire.requests
    assert request.path == "/v1/chat/completions" and request.headers["authorization"] == f"Bearer {KEY}"
    return request.body


def failure(wire: Any, **fields: Any) -> LLMError:
    """Why one chat got no answer."""
    (output,) = lite(wire, **fields).generate([CHAT])
    assert output == [None] and output.finish_reasons == ["error"] and output.error is not None
    return output.error


@pytest.mark.parametrize(
    ("options", "members"),
    [
        ({}, {}),
        ({"max_new_tokens": 7}, {"max_tokens": 7}),
        ({"temperature": 0}, {"temperature": 0}),
        ({"temperature": "0.3", "top_p": 0.9}, {"temperature": 0.3, "top_p": 0.9}),
        ({"top_k": 5}, {"top_k": 5}),
        ({"stop": ["\n", "é"]}, {"stop": ["\n", "é"]}),
        ({"seed": 0}, {"seed": 0}),
        (
            {"frequency_penalty": -0.5, "presence_penalty": 1.5},
            {"frequency_penalty": -0.5, "presence_penalty": 1.5},
        ),
        ({"response_format": "json"}, {"response_format": {"type": "json_object"}}),
        ({"logprobs": True, "top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
        ({"logit_bias": {"50256": -100}}, {"logit_bias": {"50256": -100}}),
        ({"service_tier": "flex"}, {"service_tier": "flex"}),
        ({"extra_body": {"min_p": 0.1}}, {"min_p": 0.1}),
    ],
    ids=str,
)
def test_every_option_where_the_api_wants_it(options, members, wire):
    assert sent(wire, **options) == {"model": "gpt-4o", "messages": CHAT} | members


def test_reasoning_effort(wire):
    body = sent(wire, fields={"model": "openai/gpt-5"}, reasoning_effort="low", max_new_tokens=7)
    members = {"reasoning_effort": "low", "max_completion_tokens": 7}
    assert body == {"model": "gpt-5", "messages": CHAT} | members


def test_what_the_provider_lacks_is_refused_by_name(wire):
    with pytest.raises(Fatal, match=r"`perplexity/sonar` cannot be asked so: .*\['seed'\]"):
        lite(wire, model="perplexity/sonar").generate([CHAT], seed=7)
    assert not wire.requests


def test_four_ways_to_hold_it_to_a_schema(wire):
    wire.answer = lambda request: wire.Reply(wire.completion('{"name": "Ada"}'))
    fields = {"structured_output": {"format": "json", "schema": SCHEMA}}
    shape = SHAPE | {"schema": strict_schema(SCHEMA)}
    assert sent(wire, fields=fields)["response_format"] == {"type": "json_schema", "json_schema": shape}
    wire.requests.clear()
    tool = {"type": "function", "function": SHAPE | {"parameters": strict_schema(SCHEMA)}}
    assert sent(wire, fields=fields | {"structured_mode": "tool"})["tools"] == [tool]
    for mode, members in (("json_object", {"response_format": {"type": "json_object"}}), ("prompt", {})):
        wire.requests.clear()
        told = sent(wire, fields=fields | {"structured_mode": mode})
        system = told.pop("messages")[0]["content"]
        assert told == {"model": "gpt-4o"} | members and json.dumps(SCHEMA) in system


def test_the_strictest_way_its_provider_has(wire):
    fields: dict[str, Any] = {"structured_output": {"format": "json", "schema": SCHEMA}}
    modes = [
        lite(wire, model=model, **fields)._resolve_structured_mode()
        for model in ("openai/x", "cohere_chat/command-a", "petals/x")
    ]
    assert modes == ["json_schema", "tool", "prompt"]


def test_vllm_behind_it_is_held_to_a_regular_expression(wire):
    with pytest.raises(Fatal, match="regular expression"):
        lite(wire, structured_output={"schema": "[A-E]"}).load()
    wire.answer = lambda request: wire.Reply(wire.completion("B"))
    fields = {"model": "hosted_vllm/qwen3", "structured_output": {"schema": "[A-E]"}}
    body = sent(wire, fields=fields, extra_body={"min_p": 0.1})
    expected = {"structured_outputs": {"regex": "[A-E]"}, "min_p": 0.1}
    assert body == {"model": "qwen3", "messages": CHAT} | expected


def test_images_and_turns(wire):
    parts = [{"type": "text", "text": "Same?"}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    chat: ChatType = [*CHAT, {"role": "assistant", "content": "Madrid."}, {"role": "user", "content": parts}]
    assert sent(wire, chat)["messages"] == chat


def test_repeats_the_request_for_more_generations(wire):
    wire.answer = lambda request: wire.Reply(wire.completion(f"{request.body['seed']}"))
    (output,) = lite(wire).generate([CHAT], 3, seed=7)
    assert output == ["7", "8", "9"] and len(wire.requests) == 3


def test_another_shape_than_openais(wire):
    """Anthropic's, of which LiteLLM makes OpenAI's."""
    thought = {"type": "thinking", "thinking": "Spain…", "signature": "s"}
    usage = {"input_tokens": 9, "output_tokens": 4, "cache_read_input_tokens": 5, "cache_creation_input_tokens": 1}
    message = {"id": "m", "type": "message", "role": "assistant", "model": "m", "usage": usage}
    content = [thought, {"type": "text", "text": "Madrid."}]
    wire.answer = lambda request: wire.Reply(message | {"content": content, "stop_reason": "max_tokens"})
    llm = lite(wire, model="anthropic/claude-sonnet-4-5", base_url=wire.url.removesuffix("/v1"))
    (output,) = llm.generate([CHAT], max_new_tokens=2000, thinking={"type": "enabled", "budget_tokens": 1024})
    (request,) = wire.requests
    assert request.path == "/v1/messages" and request.body["max_tokens"] == 2000
    assert request.body["thinking"] == {"type": "enabled", "budget_tokens": 1024}
    assert request.body["system"] == [{"type": "text", "text": "Be brief."}]
    assert output == ["Madrid."] and output.reasoning == ["Spain…"] and output.finish_reasons == ["length"]
    usage_of_output = (output.usage.input_tokens, output.usage.output_tokens, output.usage.cache_read_input_tokens)
    assert usage_of_output == (15, 4, 5) and output.usage.cache_creation_input_tokens == 1


@pytest.mark.parametrize(
    ("reply", "texts", "reason"),
    [
        ({}, ["Madrid."], "stop"),
        ({"finish_reason": "length"}, ["Madrid."], "length"),
        ({"finish_reason": "content_filter"}, ["Madrid."], "content_filter"),
    ],
)
def test_reads_texts_usage_and_rate_limits(reply, texts, reason, wire):
    wire.answer = lambda request: wire.Reply(wire.completion(*texts, **reply))
    (output,) = lite(wire).generate([CHAT])
    assert output == texts and output.finish_reasons == [reason]
    assert output.usage == Usage(9, 4, cache_read_input_tokens=5, reasoning_output_tokens=2)


def test_no_text_is_none_with_its_reason(wire):
    wire.script(wire.Reply(wire.completion(None, finish_reason="content_filter")))
    (output,) = lite(wire).generate([CHAT])
    assert output == [None] and output.finish_reasons == ["content_filter"] and output.error is None


def test_its_price_is_used_where_we_know_none():
    usage = Usage(1_000_000, 1_000_000, cache_read_input_tokens=500_000)
    assert LiteLLM(model="openai/gpt-4o", api_key=KEY).cost(usage) == pytest.approx(1.25 + 0.625 + 10)
    assert LiteLLM(model="openai/gpt-4o", api_key=KEY, base_url="http://here").cost(usage) is None
    assert LiteLLM(model="openai/nobody-knows", api_key=KEY).cost(usage) is None
    assert LiteLLM(model="openai/x", api_key=KEY, price={"input": 1, "output": 2}).cost(usage) == 3


def test_what_is_missing(monkeypatch):
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "GROQ_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(Fatal, match="`LiteLLM` has no API key for `groq/x`: pass `api_key=` or set `GROQ_API_KEY`"):
        LiteLLM(model="groq/x").load()
    with pytest.raises(Fatal, match="`GOOGLE_API_KEY` or `GEMINI_API_KEY`"):
        LiteLLM(model="gemini/gemini-2.5-flash").load()
    with pytest.raises(Fatal, match="`no-such/x` names no provider: write `provider/model`"):
        LiteLLM(model="no-such/x").load()
    monkeypatch.setenv("GROQ_API_KEY", KEY)
    for model in ("groq/x", "ollama_chat/qwen3", "bedrock/anthropic.claude-3-haiku-20240307-v1:0"):
        LiteLLM(model=model).load()


def test_the_key_comes_from_the_providers_own_variable(wire, monkeypatch):
    monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-other")
    lite(wire, model="deepseek/deepseek-chat", api_key=None).generate([CHAT])
    assert wire.requests[0].headers["authorization"] == "Bearer sk-other"


def test_more_of_its_arguments(wire):
    lite(wire, model="gpt-4o", litellm_params={"custom_llm_provider": "hosted_vllm"}).generate([CHAT])
    assert wire.requests[0].body["model"] == "gpt-4o"


# ------------------------------------------------------------------------------------------------------ what goes wrong


def said(message: str, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "context_length_exceeded", Rejected),
        (401, "invalid_api_key", Fatal),
        (402, None, Fatal),
        (403, None, Fatal),
        (404, "model_not_found", Fatal),
        (409, None, Transient),
        (422, None, Rejected),
        (429, "rate_limit_exceeded", Throttled),
        (429, "insufficient_quota", Fatal),
        (500, None, Transient),
        (503, None, Transient),
        (529, None, Transient),
    ],
)
def test_errors_are_told_apart(status, code, kind, wire, monkeypatch, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(request, "MAX_THROTTLED", 1)
    wire.answer = lambda request: wire.Reply(said("what is wrong", code), status=status, headers={"Retry-After": "3"})
    if kind is Fatal:
        with pytest.raises(Fatal) as caught:
            lite(wire).generate([CHAT])
        error: LLMError = caught.value
    else:
        error = failure(wire)
    assert type(error) is kind and (error.status, error.retry_after) == (status, 3)
    assert "what is wrong" in str(error)
    assert len(wire.requests) == 1
    printed = "".join(capfd.readouterr())
    for shown in (str(error), repr(vars(error)), repr(error.__context__), printed, caplog.text):
        assert KEY not in shown
    assert "Give Feedback" not in printed


@pytest.mark.parametrize(
    "answer",
    [{"drop": True}, {"delay": 0.6}, {"body": '{"choices":'}, {"body": "{}"}, {"body": "null"}]
    + [{"body": {"choices": []}}, {"body": "{}", "headers": {"Content-Length": "999", "Connection": "close"}}],
    ids=str,
)
@pytest.mark.parametrize("model", ["openai/gpt-4o", "deepseek/deepseek-chat"])
def test_bad_weather(answer, model, wire):
    lite(wire, model=model).generate([CHAT])
    wire.answer = lambda request: wire.Reply(**answer)
    assert type(failure(wire, model=model, timeout=0.3)) is Transient


def test_300_are_really_in_flight_and_stay_in_order(wire):
    everybody = threading.Barrier(300)

    def answer(request: Any) -> Any:
        everybody.wait(timeout=90)
        return wire.Reply(wire.completion(request.body["messages"][0]["content"]))

    wire.answer = answer
    chats: list[ChatType] = [[{"role": "user", "content": f"{number}"}] for number in range(300)]
    outputs = lite(wire, timeout=120).generate(chats)
    assert [output[0] for output in outputs] == [f"{number}" for number in range(300)] and wire.peak == 300


def test_two_loops_and_a_thread(wire):
    llm = lite(wire)
    answers = [asyncio.run(llm.agenerate(CHAT)), asyncio.run(llm.agenerate(CHAT)), *llm.generate([CHAT])]
    thread = threading.Thread(target=lambda: answers.extend(llm.generate([CHAT])))
    thread.start()
    thread.join()
    assert answers == [["Madrid."]] * 4


def test_asks_nobody_but_the_provider(wire):
    lite(wire).generate([CHAT])
    assert os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] == "True"
    assert len(wire.requests) == 1
