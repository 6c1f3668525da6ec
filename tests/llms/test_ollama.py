"""Ollama: what its SDK sends for us over a real socket, what comes back, and what goes wrong."""

import json
import time
from typing import Any

import pytest

from llms import Fatal, Rejected, Throttled, Transient
from llms.engine import request
from llms.errors import LLMError
from llms.ollama import OllamaLLM
from llms.typing import ChatType, Usage

pytest.importorskip("ollama")
pytest.importorskip("httpx_aiohttp")

KEY = "sk-secret"
CHAT: ChatType = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "¿Capital de España? 🇪🇸"}]
PIXEL = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


def reply(text: str | None = "Madrid.", **members: Any) -> dict[str, Any]:
    """What the server answers; the shape is that of its own documentation."""
    message = {"role": "assistant", "content": text, **members.pop("message", {})}
    return {
        "model": "qwen3",
        "created_at": "2026-11-22T10:00:00Z",
        "message": message,
        "done": True,
        "done_reason": "stop",
        "total_duration": 191583709,
        "load_duration": 4245,
        "prompt_eval_count": 9,
        "eval_count": 4,
    } | members


def image(url: str) -> ChatType:
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    return [{"role": "user", "content": parts}]


@pytest.fixture(autouse=True)
def speaks_like_ollama(wire: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    monkeypatch.setattr(request, "MAX_ATTEMPTS", 1)
    wire.answer = lambda request: wire.Reply(reply())


def ollama(wire: Any, **fields: Any) -> OllamaLLM:
    return OllamaLLM(**{"model": "qwen3", "base_url": f"http://127.0.0.1:{wire.server_port}", "timeout": 20} | fields)


def sent(wire: Any, chat: ChatType = CHAT, fields: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """The body of the request that one chat becomes, without what every body has."""
    (output,) = ollama(wire, **fields or {}).generate([chat], **options)
    assert output.error is None
    (request,) = wire.requests
    assert (request.method, request.path) == ("POST", "/api/chat")
    assert (request.body.pop("model"), request.body.pop("stream"), request.body.pop("tools")) == ("qwen3", False, [])
    return request.body


def failure(wire: Any, **fields: Any) -> LLMError:
    """Why one chat got no answer."""
    (output,) = ollama(wire, **fields).generate([CHAT])
    assert output == [None] and output.finish_reasons == ["error"] and output.error is not None
    return output.error


@pytest.mark.parametrize(
    ("options", "body"),
    [
        ({}, {}),
        ({"max_new_tokens": 7}, {"options": {"num_predict": 7}}),
        ({"temperature": 0}, {"options": {"temperature": 0}}),
        ({"temperature": "0.3"}, {"options": {"temperature": 0.3}}),
        ({"top_p": 0.9, "top_k": 5, "min_p": 0.1}, {"options": {"top_p": 0.9, "top_k": 5, "min_p": 0.1}}),
        ({"stop": "\n"}, {"options": {"stop": "\n"}}),
        ({"stop": ["\n", "é"]}, {"options": {"stop": ["\n", "é"]}}),
        ({"seed": 0}, {"options": {"seed": 0}}),
        (
            {"frequency_penalty": -0.5, "presence_penalty": 1.5, "repeat_penalty": 1.1},
            {"options": {"frequency_penalty": -0.5, "presence_penalty": 1.5, "repeat_penalty": 1.1}},
        ),
        ({"num_ctx": 8192}, {"options": {"num_ctx": 8192}}),
        ({"options": {"mirostat": 2, "top_k": 3}, "top_k": 5}, {"options": {"top_k": 3, "mirostat": 2}}),
        ({"response_format": "json"}, {"format": "json"}),
        ({"response_format": "text"}, {}),
        ({"response_format": SCHEMA}, {"format": SCHEMA}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
            {"format": SCHEMA},
        ),
        ({"logprobs": True, "top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
        ({"think": False}, {"think": False}),
        ({"think": "low"}, {"think": "low"}),
        ({"keep_alive": 0}, {"keep_alive": 0}),
        ({"keep_alive": "10m"}, {"keep_alive": "10m"}),
    ],
    ids=str,
)
def test_every_option_where_the_server_wants_it(options, body, wire):
    assert sent(wire, **options) == {"messages": CHAT} | body


def test_a_schema_a_mode_and_a_prompt(wire):
    wire.answer = lambda request: wire.Reply(reply('{"name": "Ada"}'))
    structure = {"structured_output": {"format": "json", "schema": SCHEMA}}
    assert sent(wire, fields=structure) == {"messages": CHAT, "format": SCHEMA}
    for mode, body in (("json_object", {"format": "json"}), ("prompt", {})):
        wire.requests.clear()
        told = sent(wire, fields=structure | {"structured_mode": mode})
        system = told.pop("messages")[0]["content"]
        assert told == body and system.startswith("Be brief.") and json.dumps(SCHEMA) in system


def test_no_forced_tools_and_no_patterns(wire):
    for fields in ({"structured_mode": "tool", "structured_output": {"schema": SCHEMA}},):
        with pytest.raises(Fatal, match="`OllamaLLM` has no `structured_mode=tool`"):
            ollama(wire, **fields).generate([CHAT])
    with pytest.raises(Fatal, match="regular expression"):
        ollama(wire, structured_output={"schema": "[A-E]"}).generate([CHAT])
    assert not wire.requests


def test_images_go_beside_the_text(wire):
    (message,) = sent(wire, image(f"data:image/gif;base64,{PIXEL}"))["messages"]
    assert message == {"role": "user", "content": "What is this?", "images": [PIXEL]}


def test_several_turns(wire):
    chat: ChatType = [*CHAT, {"role": "assistant", "content": "Madrid."}, {"role": "user", "content": "Sure?"}]
    assert sent(wire, chat)["messages"] == chat


@pytest.mark.parametrize(
    "chat",
    [
        image("https://example.com/cat.png"),
        image("data:image/png;base64,!!"),
        image("data:text/plain,cat"),
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
    ],
    ids=["by address", "not Base64", "not in Base64", "sound"],
)
def test_what_it_cannot_take_is_refused_on_its_row(chat, wire):
    wire.requests.clear()
    refused, answered = ollama(wire).generate([chat, CHAT])
    assert isinstance(refused.error, Rejected) and answered == ["Madrid."]
    assert len(wire.requests) == 1


def test_no_file_is_read_for_an_image(wire, tmp_path, monkeypatch):
    (tmp_path / "secrets12345").write_text("secret")
    monkeypatch.chdir(tmp_path)
    (message,) = sent(wire, image("data:image/png;base64,secrets12345"))["messages"]
    assert message["images"] == ["secrets12345"]  # what was said, not what the file of that name holds


def test_reads_text_thoughts_usage_and_likelihoods(wire):
    places = [
        {"token": "Mad", "logprob": -0.1, "top_logprobs": [{"token": "Mad", "logprob": -0.1}]},
        {"token": "rid", "logprob": -0.2, "top_logprobs": [{"token": "ame", "logprob": -2.5}]},
    ]
    wire.script(wire.Reply(reply(message={"thinking": "Spain…"}, logprobs=places, done_reason="length")))
    (output,) = ollama(wire).generate([CHAT])
    assert output == ["Madrid."] and output.reasoning == ["Spain…"] and output.finish_reasons == ["length"]
    assert output.usage == Usage(input_tokens=9, output_tokens=4) and output.cost == 0
    assert output.logprobs == [
        [
            [{"token": "Mad", "logprob": -0.1}],
            [{"token": "rid", "logprob": -0.2}, {"token": "ame", "logprob": -2.5}],
        ]
    ]


@pytest.mark.parametrize(
    ("members", "reason"),
    [({"done_reason": "stop"}, "stop"), ({"done_reason": "load"}, "error"), ({"done_reason": None}, None)],
)
def test_no_text_is_none_with_its_reason(members, reason, wire):
    empty = reply("", **members)
    del empty["prompt_eval_count"], empty["eval_count"]  # left out when nothing, or what was cached, was evaluated
    wire.script(wire.Reply(empty))
    (output,) = ollama(wire).generate([CHAT])
    assert output == [None] and output.finish_reasons == [reason] and output.usage == Usage()
    assert type(output.error) is (Transient if reason == "error" else type(None))


def test_repeats_the_request_for_more_generations(wire):
    wire.answer = lambda request: wire.Reply(reply(f"{request.body['options']['seed']}"))
    (output,) = ollama(wire).generate([CHAT], 3, seed=7)
    assert output == ["7", "8", "9"] and output.usage == Usage(27, 12) and len(wire.requests) == 3


def test_what_ollama_com_asks_is_not_known(wire):
    assert ollama(wire).cost(Usage(1, 1)) == 0
    assert ollama(wire, price={"input": 1, "output": 1}).cost(Usage(500_000, 500_000)) == 1
    assert OllamaLLM(model="gpt-oss:120b", base_url="https://ollama.com").cost(Usage(1, 1)) is None
    assert ollama(wire, model="gpt-oss:120b-cloud").cost(Usage(1, 1)) is None


@pytest.mark.parametrize(
    "spelling",
    ["myhost", "myhost/", "myhost:80", "myhost/ollama", "myhost:80/ollama", ":80", "[::1]", "[::1]:80", "0.0.0.0"]
    + ["http://myhost:80", "https://myhost:443/ollama"],
)
def test_the_address_is_read_as_its_sdk_reads_it(spelling, monkeypatch):
    from ollama._client import _parse_host

    monkeypatch.setenv("OLLAMA_HOST", spelling)
    assert OllamaLLM(model="qwen3")._resolve_base_url() == _parse_host(spelling)


@pytest.mark.parametrize("spelling", ["127.0.0.1:{}", "localhost:{}", "http://127.0.0.1:{}", "127.0.0.1:{}/", ":{}"])
def test_the_address_in_all_its_spellings(spelling, wire, monkeypatch):
    monkeypatch.setenv("OLLAMA_HOST", spelling.format(wire.server_port))
    assert OllamaLLM(model="qwen3").generate([CHAT]) == [["Madrid."]]


def test_a_key_is_sent_where_there_is_one(wire, monkeypatch):
    ollama(wire).generate([CHAT])
    ollama(wire, api_key=KEY).generate([CHAT])
    monkeypatch.setenv("OLLAMA_API_KEY", "sk-other")
    ollama(wire).generate([CHAT])
    ollama(wire, api_key=KEY).generate([CHAT])
    keys = [request.headers.get("authorization") for request in wire.requests]
    assert keys == [None, f"Bearer {KEY}", "Bearer sk-other", f"Bearer {KEY}"]


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"error": "invalid format"}, Rejected),
        (401, {"error": "unauthorized"}, Fatal),
        (404, "404 page not found", Fatal),
        (429, {"error": "too many requests"}, Throttled),
        (500, {"error": "model runner has unexpectedly stopped"}, Transient),
        (503, {"error": "server busy, please try again"}, Transient),
        (502, "<html>Bad gateway</html>", Transient),
    ],
)
def test_errors_are_told_apart(status, body, kind, wire, monkeypatch):
    monkeypatch.setattr(request, "MAX_THROTTLED", 1)
    wire.answer = lambda request: wire.Reply(body, status=status, headers={"Retry-After": "3"})
    if kind is Fatal:
        with pytest.raises(Fatal) as caught:
            ollama(wire, api_key=KEY).generate([CHAT])
        error: LLMError = caught.value
    else:
        error = failure(wire, api_key=KEY)
    assert type(error) is kind and (error.status, error.retry_after) == (status, 3) and str(status) in str(error)
    assert (body["error"] if isinstance(body, dict) else "") in str(error)
    assert KEY not in str(error) + repr(vars(error)) + repr(error.__context__)


def test_a_model_that_was_not_pulled(wire):
    wire.script(wire.Reply({"error": "model 'qwen3' not found"}, status=404))
    with pytest.raises(Fatal, match="model 'qwen3' not found. Get it with `ollama pull qwen3`"):
        ollama(wire).generate([CHAT])


def test_a_server_that_is_not_running(wire, monkeypatch):
    wire.hang_up()
    assert type(failure(wire)) is Transient
    monkeypatch.setattr(OllamaLLM, "_default_base_url", f"http://127.0.0.1:{wire.server_port}")
    with pytest.raises(Fatal, match="No Ollama server at .*: start it with `ollama serve`"):
        OllamaLLM(model="qwen3").generate([CHAT])


def test_ready_is_cheap(wire):
    llm = ollama(wire)
    llm.load()
    started = time.perf_counter()
    for _ in range(100):
        llm.load()
    assert time.perf_counter() - started < 0.5
