"""Hugging Face: its router, endpoints by URL and by name, and raw text, beside what `huggingface_hub` does."""

import asyncio
import json
import pickle
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import AsyncInferenceClient
from pydantic import ValidationError

from llms import Fatal, Rejected, Transient, inference_endpoints
from llms.clients import event_loop
from llms.clients.tgi import TextOptions
from llms.inference_endpoints import InferenceEndpointsLLM
from llms.limits import limiter
from llms.typing import ChatType, Usage

KEY = "hf_secret"
CHAT: ChatType = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "¿Capital de España? 🇪🇸"}]
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
IMAGE: ChatType = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PIXEL}}]}]
SCHEMA = {"title": "Name", "type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
PATTERN = "[A-E][+-]?"
TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}<assistant>"
TEXT = "<system>Be brief.</s><user>¿Capital de España? 🇪🇸</s><assistant>"


@pytest.fixture(autouse=True)
def nothing_found_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No endpoint or template of another test is known, and no token of the developer's is cached."""
    monkeypatch.setattr(inference_endpoints, "_lookups", {})
    inference_endpoints._cli_token.cache_clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(inference_endpoints, "WAKE_RETRY_S", 0.02)


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    """A folder with a chat template."""
    config = {"add_bos_token": True, "bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    return str(tmp_path)


def root(wire: Any) -> str:
    return wire.url.removesuffix("/v1")


def endpoint(wire: Any, **fields: Any) -> InferenceEndpointsLLM:
    return InferenceEndpointsLLM(**{"base_url": root(wire), "api_key": KEY, "timeout": 20} | fields)


def sent_by_sdk(wire: Any, call: str, *args: Any, **options: Any) -> Any:
    """The SDK's request, and how it reads the reply."""

    async def ask() -> Any:
        async with AsyncInferenceClient(model=root(wire), token=KEY) as client:
            return await getattr(client, call)(*args, **options)

    reply = event_loop.run(ask())
    return wire.requests.pop(), reply


def assert_same(ours: Any, theirs: Any) -> None:
    assert (ours.method, ours.path, ours.body) == (theirs.method, theirs.path, theirs.body)
    for header in ("authorization", "content-type", "host"):
        assert ours.headers[header] == theirs.headers[header]


# ----------------------------------------------------------------------------------------------------- the three places


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({}, "none"),
        ({"model_id": "m", "base_url": "http://h"}, "`model_id` and `base_url`"),
        ({"endpoint_name": "e", "base_url": "http://h"}, "`endpoint_name` and `base_url`"),
    ],
)
def test_is_in_exactly_one_place(fields, found):
    message = f"give exactly one of `model_id`, `endpoint_name` and `base_url`, not {found}."
    with pytest.raises(ValidationError, match=message):
        InferenceEndpointsLLM(**fields)


def test_the_router_takes_no_raw_text(tokenizer):
    with pytest.raises(ValidationError, match="leave `tokenizer_id` empty"):
        InferenceEndpointsLLM(model_id="m", tokenizer_id=tokenizer)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"model_id": "openai/gpt-oss-20b"}, "openai/gpt-oss-20b"),
        ({"endpoint_name": "mine"}, "mine"),
        ({"base_url": "https://h"}, "https://h"),
        ({"base_url": "https://h", "model": "served"}, "served"),
    ],
)
def test_rows_are_labelled_with_what_is_known_of_the_model(fields, name):
    llm = InferenceEndpointsLLM(**fields, api_key=KEY)
    assert llm.model_name == name
    assert pickle.loads(pickle.dumps(llm)) == llm
    assert len({llm.rate_limit_scope(), InferenceEndpointsLLM(**fields, api_key="hf_other").rate_limit_scope()}) == 2


def test_the_router_is_asked_for_a_model_by_its_name(wire, monkeypatch):
    monkeypatch.setattr(InferenceEndpointsLLM, "_default_base_url", root(wire))
    InferenceEndpointsLLM(model_id="openai/gpt-oss-20b", api_key=KEY).generate([CHAT], temperature=0.3)
    provider = huggingface_hub.inference._providers.get_provider_helper("auto", "conversational", "openai/gpt-oss-20b")
    prepared = provider.prepare_request(
        inputs=CHAT, parameters={"temperature": 0.3}, headers={}, model="openai/gpt-oss-20b", api_key=KEY
    )
    (request,) = wire.requests
    assert prepared.url == f"https://router.huggingface.co{request.path}" and prepared.json == request.body
    assert prepared.headers["authorization"] == request.headers["authorization"]


def test_bad_weather_at_the_router_is_weather(wire, monkeypatch):
    monkeypatch.setattr(InferenceEndpointsLLM, "_default_base_url", root(wire))
    wire.answer = lambda request: wire.Reply("", status=503)
    with pytest.raises(Transient):
        event_loop.run(InferenceEndpointsLLM(model_id="m", api_key=KEY).agenerate(CHAT))


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/", "/served/here"])
def test_the_address_of_an_endpoint_is_read_as_the_sdk_reads_it(ending, wire):
    async def ask() -> None:
        async with AsyncInferenceClient(base_url=root(wire) + ending, api_key=KEY) as client:
            await client.chat_completion(CHAT)

    event_loop.run(ask())
    theirs = wire.requests.pop()
    endpoint(wire, base_url=root(wire) + ending).generate([CHAT])
    assert wire.requests[0].path == theirs.path


# ---------------------------------------------------------------------------------------------------------------- chats

OPTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "max_new_tokens": (7, {"max_tokens": 7}),
    "temperature": (0, {"temperature": 0}),
    "top_p": (0.9, {"top_p": 0.9}),
    "stop": ("\n", {"stop": ["\n"]}),
    "seed": (7, {"seed": 7}),
    "frequency_penalty": (-0.5, {"frequency_penalty": -0.5}),
    "presence_penalty": (1.5, {"presence_penalty": 1.5}),
    "response_format": ("json", {"response_format": {"type": "json_object"}}),
    "logprobs": (True, {"logprobs": True}),
    "top_logprobs": (2, {"top_logprobs": 2}),
    "extra_body": ({"top_k": 5}, {"extra_body": {"top_k": 5}}),
}


def test_every_option_is_compared():
    assert OPTIONS.keys() == InferenceEndpointsLLM.Options.model_fields.keys()
    assert TEXT_OPTIONS.keys() == TextOptions.model_fields.keys()


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("chat", [CHAT, IMAGE], ids=["text", "image"])
def test_an_endpoint_is_asked_as_the_sdk_asks_it(option, chat, wire):
    value, call = OPTIONS[option]
    expected, _ = sent_by_sdk(wire, "chat_completion", chat, **call)
    assert expected.body.pop("model") == "dummy" and expected.body.pop("stream") is False  # ours says neither
    assert endpoint(wire).generate([chat], **{option: value}) == [["Madrid."]]
    assert_same(wire.requests[0], expected)


@pytest.mark.parametrize("reason", ["stop", "eos_token", "stop_sequence", "length", "tool_calls", "content_filter"])
def test_reads_an_endpoints_chat_as_the_sdk_does(reason, wire):
    reply = wire.completion("Madrid.", finish_reason=reason, reasoning_content="hm")
    wire.answer = lambda request: wire.Reply(reply)
    _, theirs = sent_by_sdk(wire, "chat_completion", CHAT)
    (output,) = endpoint(wire).generate([CHAT])
    assert output == [theirs.choices[0].message.content] and output.reasoning == ["hm"]
    assert output.finish_reasons == [{"eos_token": "stop", "stop_sequence": "stop"}.get(reason, reason)]
    used = theirs.usage
    assert (output.usage.input_tokens, output.usage.output_tokens) == (used.prompt_tokens, used.completion_tokens)


def test_an_endpoint_that_wants_to_be_told_its_model_is(wire):
    endpoint(wire, model="served").generate([CHAT])
    assert wire.requests[0].body["model"] == "served"


def test_a_server_that_ignores_n_is_asked_again(wire):
    wire.answer = lambda request: wire.Reply(wire.completion("Madrid."))
    (output,) = endpoint(wire).generate([CHAT], num_generations=3)
    assert output == ["Madrid."] * 3 and len(wire.requests) == 3


@pytest.mark.parametrize(
    ("structure", "text", "member"),
    [
        (
            SCHEMA,
            '{"name": "Ada"}',
            {"response_format": {"type": "json_schema", "json_schema": {"name": "Name", "schema": SCHEMA}}},
        ),
        (PATTERN, "A+", {"structured_outputs": {"regex": PATTERN}}),
    ],
)
def test_an_endpoint_is_held_to_a_structure_as_vllm_does_it(structure, text, member, wire):
    wire.script(wire.Reply(wire.completion(text)))
    assert endpoint(wire, structured_output={"schema": structure}).generate([CHAT]) == [[text]]
    assert wire.requests[0].body == {"messages": CHAT} | member


def test_the_router_is_held_to_no_regular_expression():
    llm = InferenceEndpointsLLM(model_id="m", api_key=KEY, structured_output={"schema": PATTERN})  # type: ignore[arg-type]
    with pytest.raises(Fatal, match="takes no regular expression: use a JSON schema with a `pattern`"):
        llm.load()


# ------------------------------------------------------------------------------------------------------------- raw text

TEXT_OPTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "max_new_tokens": (7, {"max_new_tokens": 7}),
    "temperature": (0.3, {"temperature": 0.3}),
    "top_p": (0.9, {"top_p": 0.9}),
    "stop": ("\n", {"stop": ["\n"]}),
    "seed": (7, {"seed": 7}),
    "top_k": (5, {"top_k": 5}),
    "typical_p": (0.9, {"typical_p": 0.9}),
    "repetition_penalty": (1.1, {"repetition_penalty": 1.1}),
    "frequency_penalty": (0.5, {"frequency_penalty": 0.5}),
    "do_sample": (True, {"do_sample": True}),
    "truncate": (100, {"truncate": 100}),
    "watermark": (True, {"watermark": True}),
    "top_n_tokens": (2, {"top_n_tokens": 2}),
    "adapter_id": ("lora", {"adapter_id": "lora"}),
}


def generated(text: str, finish_reason: str = "eos_token", **details: Any) -> dict[str, Any]:
    details = {"finish_reason": finish_reason, "generated_tokens": 4, "prefill": [], "tokens": [], "seed": 7} | details
    return {"generated_text": text, "details": details}


@pytest.fixture
def tgi(wire: Any) -> Any:
    """The wire, answering as text-generation-inference does."""
    wire.answer = lambda request: wire.Reply(json.dumps([generated("Madrid.")]), headers={"X-Prompt-Tokens": "9"})
    return wire


@pytest.mark.parametrize("option", TEXT_OPTIONS)
def test_raw_text_is_sent_as_the_sdk_sends_it(option, tgi, tokenizer):
    value, call = TEXT_OPTIONS[option]
    expected, _ = sent_by_sdk(tgi, "text_generation", TEXT, details=True, return_full_text=False, **call)
    assert endpoint(tgi, tokenizer_id=tokenizer).generate([CHAT], **{option: value}) == [["Madrid."]]
    assert_same(tgi.requests[0], expected)


@pytest.mark.parametrize(("kind", "schema", "text"), [("json", SCHEMA, '{"name": "Ada"}'), ("regex", PATTERN, "A+")])
def test_the_grammar_holds_to_a_structure(kind, schema, text, wire, tokenizer):
    wire.answer = lambda request: wire.Reply(generated(text))
    options = {"details": True, "return_full_text": False, "grammar": {"type": kind, "value": schema}}
    expected, _ = sent_by_sdk(wire, "text_generation", TEXT, **options)
    llm = endpoint(wire, tokenizer_id=tokenizer, structured_output={"schema": schema})
    assert llm.generate([CHAT]) == [[text]]
    assert_same(wire.requests[0], expected)


@pytest.mark.parametrize(
    ("said", "meant"), [("eos_token", "stop"), ("stop_sequence", "stop"), ("length", "length"), ("new", None)]
)
def test_reads_what_the_sdk_reads(said, meant, wire, tokenizer):
    wire.answer = lambda request: wire.Reply(generated("Madrid.", said), headers={"X-Prompt-Tokens": "9"})
    _, reply = sent_by_sdk(wire, "text_generation", TEXT, details=True)
    (output,) = endpoint(wire, tokenizer_id=tokenizer).generate([CHAT])
    assert output == [reply.generated_text] and output.finish_reasons == [meant] and output.logprobs == [None]
    assert output.usage == Usage(9, reply.details.generated_tokens)


def test_reads_the_likeliest_tokens(wire, tokenizer):
    first = {"id": 1, "text": "Mad", "logprob": -0.1, "special": False}
    other = {"id": 2, "text": "Bar", "logprob": -2.0, "special": False}
    wire.script(wire.Reply(generated("Mad", tokens=[first], top_tokens=[[first, other]])))
    (output,) = endpoint(wire, tokenizer_id=tokenizer).generate([CHAT], top_n_tokens=2)
    assert output.logprobs == [[[{"token": "Mad", "logprob": -0.1}, {"token": "Bar", "logprob": -2.0}]]]


def test_a_temperature_of_zero_is_greedy(tgi, tokenizer):
    endpoint(tgi, tokenizer_id=tokenizer).generate([CHAT], temperature=0)
    assert tgi.requests[0].body["parameters"] == {"do_sample": False, "details": True, "return_full_text": False}


def test_options_of_the_other_wire_are_refused_by_name(wire, tokenizer):
    with pytest.raises(Fatal, match="has no `presence_penalty`"):
        endpoint(wire, tokenizer_id=tokenizer).generate([CHAT], presence_penalty=1)
    with pytest.raises(Fatal, match="has no `typical_p`"):
        endpoint(wire).generate([CHAT], typical_p=0.5)
    assert not wire.requests


def test_raw_text_takes_no_images_and_no_tools(wire, tokenizer):
    (output,) = endpoint(wire, tokenizer_id=tokenizer).generate([IMAGE])
    assert isinstance(output.error, Rejected) and "image_url" in str(output.error) and not wire.requests
    structured = {"structured_output": {"schema": SCHEMA}, "structured_mode": "tool"}
    with pytest.raises(Fatal, match="no `structured_mode=tool`"):
        endpoint(wire, tokenizer_id=tokenizer, **structured).load()


def test_a_prompt_alone_holds_raw_text_too(wire, tokenizer):
    wire.answer = lambda request: wire.Reply(generated('{"name": "Ada"}'))
    structured = {"structured_output": {"schema": SCHEMA}, "structured_mode": "prompt"}
    endpoint(wire, tokenizer_id=tokenizer, **structured).generate([CHAT])
    body = wire.requests[0].body
    assert "JSON schema" in body["inputs"] and "grammar" not in body["parameters"]


def test_a_tokenizer_without_a_template_is_refused(wire, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(Fatal, match="has no chat template"):
        endpoint(wire, tokenizer_id=str(tmp_path)).load()


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_tokenizer_is_read_from_the_hub(place, tgi, monkeypatch):
    files = {
        "tokenizer_config.json": {"eos_token": "</s>", "chat_template": [{"name": "default", "template": TEMPLATE}]},
        "chat_template.jinja": TEMPLATE,
    }
    answer = tgi.answer

    def hub(request: Any) -> Any:
        if "/resolve/" not in request.path:
            return answer(request)
        name, last = request.path.rpartition("/")[2], {"Connection": "close"}  # a HEAD has no body to read on from
        if name == "chat_template.jinja" and place != name:
            return tgi.Reply("", status=404, headers=last | {"X-Error-Code": "EntryNotFound"})
        content = files[name] if isinstance(files[name], str) else json.dumps(files[name])
        return tgi.Reply(content, headers=last | {"ETag": f'"{name}"', "X-Repo-Commit": "c" * 40})

    tgi.answer = hub
    monkeypatch.setattr(tgi.RequestHandlerClass, "do_HEAD", tgi.RequestHandlerClass.do_POST, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", root(tgi))
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", root(tgi) + "/{repo_id}/resolve/{revision}/{filename}"
    )
    llm = endpoint(tgi, tokenizer_id="org/model")
    assert llm.generate([CHAT, CHAT]) == [["Madrid."]] * 2
    asked = [request for request in tgi.requests if request.path == "/"]
    assert [request.body["inputs"] for request in asked] == [TEXT] * 2


def test_a_tokenizer_that_is_not_on_the_hub_is_said_to_be_missing(wire, monkeypatch):
    missing = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
    wire.answer = lambda request: wire.Reply("", status=401, headers=missing)
    monkeypatch.setattr(wire.RequestHandlerClass, "do_HEAD", wire.RequestHandlerClass.do_POST, raising=False)
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        root(wire) + "/{repo_id}/resolve/{revision}/{filename}",
    )
    with pytest.raises(Fatal, match="org/model") as caught:
        endpoint(wire, tokenizer_id="org/model").load()
    assert KEY not in str(caught.value)


# ---------------------------------------------------------------------------------------------------- endpoints by name


def described(wire: Any, state: str, url: str | None = "") -> dict[str, Any]:
    """What the API says of an endpoint."""
    there = {"url": root(wire) if url == "" else url}
    return {
        "name": "mine",
        "type": "protected",
        "healthRoute": "/health",
        "model": {"repository": "org/model", "framework": "pytorch", "revision": "main", "task": "text-generation"},
        "status": {"state": state, "createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z"}
        | (there if there["url"] else {}),
    }


@pytest.fixture
def api(wire: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The API of endpoints, which says in turn what `api.states` holds, then that it runs; it answers chats too."""
    monkeypatch.setattr(huggingface_hub.constants, "INFERENCE_ENDPOINTS_ENDPOINT", f"{root(wire)}/v2")
    wire.states = []

    def answer(request: Any) -> Any:
        if not request.path.startswith("/v2/"):
            return wire.Reply()
        state = wire.states.pop(0) if wire.states else "running"
        return wire.Reply(described(wire, state, None if state == "initializing" else ""))

    wire.answer = answer
    return wire


def named(**fields: Any) -> InferenceEndpointsLLM:
    return InferenceEndpointsLLM(**{"endpoint_name": "mine", "endpoint_namespace": "us", "api_key": KEY} | fields)


def test_an_endpoint_is_found_by_its_name_once(api):
    llm = named()
    llm.load()
    assert llm.generate([CHAT] * 20) == [["Madrid."]] * 20 and named().generate([CHAT]) == [["Madrid."]]
    first, *others = api.requests
    assert (first.path, first.headers["authorization"]) == ("/v2/endpoint/us/mine", f"Bearer {KEY}")
    assert {request.path for request in others} == {"/v1/chat/completions"}
    assert "model" not in others[0].body
    assert pickle.loads(pickle.dumps(llm)) == llm


def test_an_endpoint_is_found_from_whatever_loop_asks(api):
    assert asyncio.run(named().agenerate(CHAT)) == ["Madrid."]


def test_answers_of_a_named_endpoint_are_remembered(api):
    assert named().generate_outputs([CHAT]) == [["Madrid."]]
    asked = len(api.requests)
    (again,) = named().generate_outputs([CHAT])
    assert again.cached and len(api.requests) == asked


def test_an_endpoint_that_starts_is_waited_for(api):
    api.states = ["initializing", "initializing", "initializing", "running"]
    (output,) = named().generate([CHAT])
    assert output == ["Madrid."] and output.error is None and output.attempts == 3


@pytest.mark.parametrize(("state", "cure"), [("paused", "`hf endpoints resume mine`"), ("failed", "its logs")])
def test_an_endpoint_that_is_paused_stays_so_and_is_said_to_be(state, cure, api):
    api.states = [state]
    with pytest.raises(Fatal, match=f"endpoint mine is {state}: {cure}"):
        named().generate([CHAT])
    assert len(api.requests) == 1


def test_an_endpoint_nobody_knows_is_fatal(api):
    api.answer = lambda request: api.Reply({"error": "no such endpoint"}, status=404)
    with pytest.raises(Fatal, match="endpoint mine.*404"):
        named().load()


@pytest.mark.parametrize("fields", [{}, {"endpoint_name": None, "endpoint_namespace": None, "base_url": True}])
def test_an_endpoint_that_sleeps_is_woken_and_waited_for(fields, api, monkeypatch):
    monkeypatch.setattr(limiter, "MAX_BACKOFF_S", 0.05)
    asleep = 12  # more often than bad weather is borne
    answer = api.answer

    def waking(request: Any) -> Any:
        chats = sum(each.path.startswith("/v1") for each in api.requests)
        return api.Reply("", status=503) if request.path.startswith("/v1") and chats <= asleep else answer(request)

    api.answer = waking
    (output,) = named(**fields | ({"base_url": root(api)} if fields else {})).generate([CHAT])
    assert output == ["Madrid."] and output.error is None and output.attempts == asleep + 1


# ----------------------------------------------------------------------------------------------------------------- keys


def test_the_token_of_the_command_line_is_used(wire, tmp_path, monkeypatch):
    (tmp_path / "token").write_text(KEY)
    endpoint(wire, api_key=None).generate([CHAT])
    assert wire.requests.pop().headers["authorization"] == f"Bearer {KEY}"
    monkeypatch.setenv("HF_TOKEN", "hf_variable")
    endpoint(wire, api_key=None).generate([CHAT])
    assert wire.requests.pop().headers["authorization"] == "Bearer hf_variable"


def test_without_a_token_says_which_variable_would_hold_it(wire):
    with pytest.raises(Fatal, match="`InferenceEndpointsLLM` has no API key: pass `api_key=` or set `HF_TOKEN`"):
        endpoint(wire, api_key=None).load()


def test_errors_of_the_server_are_read(wire, tokenizer):
    said = {"error": "Input validation error: `inputs` must have less than 1024 tokens", "error_type": "validation"}
    wire.answer = lambda request: wire.Reply(said, status=422)
    (output,) = endpoint(wire, tokenizer_id=tokenizer).generate([CHAT])
    assert isinstance(output.error, Rejected) and "less than 1024 tokens" in str(output.error)
