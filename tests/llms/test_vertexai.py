"""Gemini on Vertex AI: what its SDK sends for us over a real socket, what comes back, and what goes wrong."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from llms import Fatal, Rejected, Throttled, Transient
from llms.clients import event_loop, http
from llms.engine import request
from llms.errors import LLMError
from llms.typing import ChatType, Usage
from llms.vertexai import VertexAILLM

pytest.importorskip("google.genai")

KEY = "AIza-secret"
CHAT: ChatType = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "¿Capital de España? 🇪🇸"}]
CONTENTS = [{"role": "user", "parts": [{"text": "¿Capital de España? 🇪🇸"}]}]
SYSTEM = {"parts": [{"text": "Be brief."}]}
PIXEL = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
FILTERS = [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]


def candidate(*texts: str, index: int = 0, finish: str | None = "STOP", **members: Any) -> dict[str, Any]:
    content = {"role": "model", "parts": [{"text": text} for text in texts]}
    return {"content": content, "finishReason": finish, "index": index} | members


def reply(*candidates: dict[str, Any], **members: Any) -> dict[str, Any]:
    """What the API answers; the shape is that of its own documentation."""
    usage = {"promptTokenCount": 9, "candidatesTokenCount": 4 * len(candidates), "trafficType": "ON_DEMAND"}
    return {"candidates": list(candidates), "usageMetadata": usage, "modelVersion": "gemini-3-flash"} | members


def said(status: int, message: str, *details: dict[str, Any]) -> dict[str, Any]:
    return {"error": {"code": status, "message": message, "status": "SOME_STATUS", "details": list(details)}}


@pytest.fixture(autouse=True)
def speaks_like_gemini(wire: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROJECT", "LOCATION"):
        monkeypatch.delenv(f"GOOGLE_CLOUD_{name}", raising=False)
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", "/nonexistent")
    monkeypatch.setattr(request, "MAX_ATTEMPTS", 1)

    def answer(request: Any) -> Any:
        count = request.body["generationConfig"].get("candidateCount", 1)
        return wire.Reply(reply(*(candidate("Madrid.", index=at) for at in range(count))))

    wire.answer = answer


def gemini(wire: Any, **fields: Any) -> VertexAILLM:
    base_url = f"http://127.0.0.1:{wire.server_port}"
    return VertexAILLM(**{"model": "gemini-3-flash", "base_url": base_url, "api_key": KEY, "timeout": 20} | fields)


def sent(wire: Any, chat: ChatType = CHAT, fields: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """The body of the request that one chat becomes."""
    (output,) = gemini(wire, **fields or {}).generate([chat], **options)
    assert output.error is None
    (request,) = wire.requests
    return request.body


def failure(wire: Any, **fields: Any) -> LLMError:
    """Why one chat got no answer."""
    (output,) = gemini(wire, **fields).generate([CHAT])
    assert output == [None] and output.finish_reasons == ["error"] and output.error is not None
    return output.error


@pytest.mark.parametrize(
    ("options", "config"),
    [
        ({"max_new_tokens": 7}, {"maxOutputTokens": 7}),
        ({"temperature": 0}, {"temperature": 0}),
        ({"temperature": "0.3"}, {"temperature": 0.3}),
        ({"top_p": 0.9, "top_k": 5}, {"topP": 0.9, "topK": 5}),
        ({"stop": "\n"}, {"stopSequences": ["\n"]}),
        ({"stop": ["\n", "é"]}, {"stopSequences": ["\n", "é"]}),
        ({"seed": 0}, {"seed": 0}),
        ({"frequency_penalty": -0.5, "presence_penalty": 1.5}, {"frequencyPenalty": -0.5, "presencePenalty": 1.5}),
        ({"response_format": "json"}, {"responseMimeType": "application/json"}),
        ({"response_format": "text"}, {"responseMimeType": "text/plain"}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
            {"responseMimeType": "application/json", "responseJsonSchema": SCHEMA},
        ),
        ({"response_format": {"response_mime_type": "text/x.enum"}}, {"responseMimeType": "text/x.enum"}),
        ({"logprobs": True, "top_logprobs": 2}, {"responseLogprobs": True, "logprobs": 2}),
        ({"reasoning_effort": "low"}, {"thinkingConfig": {"thinking_level": "LOW"}}),
        (
            {"thinking": {"thinking_budget": 0, "include_thoughts": True}},
            {"thinkingConfig": {"thinking_budget": 0, "include_thoughts": True}},
        ),
        ({"extra_body": {"generationConfig": {"mediaResolution": "x"}}}, {"mediaResolution": "x"}),
    ],
    ids=str,
)
def test_every_option_where_the_api_wants_it(options, config, wire):
    body = sent(wire, **options)
    assert body == {"contents": CONTENTS, "systemInstruction": SYSTEM, "generationConfig": config}


@pytest.mark.parametrize(
    ("options", "members"),
    [
        ({}, {}),
        ({"safety_settings": {"HARM_CATEGORY_HARASSMENT": "BLOCK_NONE"}}, {"safetySettings": FILTERS}),
        ({"labels": {"team": "data"}}, {"labels": {"team": "data"}}),
        ({"service_tier": "flex"}, {"serviceTier": "flex"}),
        ({"extra_body": {"cachedContent": "c"}}, {"cachedContent": "c"}),
    ],
    ids=str,
)
def test_options_beside_the_generation_config(options, members, wire):
    expected = {"contents": CONTENTS, "systemInstruction": SYSTEM, "generationConfig": {}}
    assert sent(wire, **options) == expected | members


def test_a_schema_a_mode_and_a_prompt(wire):
    wire.answer = lambda request: wire.Reply(reply(candidate('{"name": "Ada"}')))
    structure = {"structured_output": {"format": "json", "schema": SCHEMA}}
    config = {"responseMimeType": "application/json"}
    assert sent(wire, fields=structure)["generationConfig"] == config | {"responseJsonSchema": SCHEMA}
    for mode, held in (("json_object", config), ("prompt", {})):
        wire.requests.clear()
        told = sent(wire, fields=structure | {"structured_mode": mode})
        (part,) = told.pop("systemInstruction")["parts"]
        assert told == {"contents": CONTENTS, "generationConfig": held}
        assert part["text"].startswith("Be brief.") and json.dumps(SCHEMA) in part["text"]


def test_roles_turns_and_images_become_geminis(wire):
    parts = [
        {"type": "text", "text": "Same?"},
        {"type": "image_url", "image_url": {"url": f"data:image/gif;base64,{PIXEL}"}},
        {"type": "image_url", "image_url": {"url": "gs://bucket/cat.png"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/cat?v=1"}},
    ]
    chat: ChatType = [*CHAT, {"role": "assistant", "content": "Madrid."}, {"role": "user", "content": parts}]
    body = sent(wire, chat)
    assert body["systemInstruction"] == SYSTEM
    assert [each["role"] for each in body["contents"]] == ["user", "model", "user"]
    assert body["contents"][2]["parts"] == [
        {"text": "Same?"},
        {"inlineData": {"mime_type": "image/gif", "data": PIXEL.replace("/", "_")}},  # the SDK's alphabet: safe in URLs
        {"fileData": {"mime_type": "image/png", "file_uri": "gs://bucket/cat.png"}},
        {"fileData": {"file_uri": "https://example.com/cat?v=1"}},
    ]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_audio", "input_audio": {}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,!!"}},
        {"type": "image_url", "image_url": {"url": "data:text/plain,cat"}},
    ],
    ids=["sound", "not Base64", "not in Base64"],
)
def test_what_it_cannot_take_is_refused_on_its_row(part, wire):
    refused, answered = gemini(wire).generate([[{"role": "user", "content": [part]}], CHAT])
    assert isinstance(refused.error, Rejected) and answered == ["Madrid."]
    assert len(wire.requests) == 1


def test_several_generations_come_with_one_request_in_order(wire):
    wire.answer = lambda request: wire.Reply(reply(*(candidate(f"{at}", index=at) for at in (2, 0, 1))))
    (output,) = gemini(wire).generate([CHAT], 3)
    assert output == ["0", "1", "2"] and output.usage == Usage(9, 12)
    assert wire.requests[0].body["generationConfig"] == {"candidateCount": 3}


def test_more_than_the_api_brings_at_once(wire):
    assert gemini(wire).generate([CHAT], 10) == [["Madrid."] * 10]
    counts = [request.body["generationConfig"]["candidateCount"] for request in wire.requests]
    assert sorted(counts) == [2, 8]


def test_reads_thoughts_usage_and_likelihoods(wire):
    answer = candidate("Mad", "rid.")
    answer["content"]["parts"].insert(0, {"text": "Spain…", "thought": True})
    answer["logprobsResult"] = {
        "chosenCandidates": [{"token": "Mad", "logProbability": -0.1}, {"token": "rid.", "logProbability": -0.2}],
        "topCandidates": [
            {"candidates": [{"token": "Mad", "logProbability": -0.1}]},
            {"candidates": [{"token": "ame", "logProbability": -2.5}, {"token": "rid.", "logProbability": -0.2}]},
        ],
    }
    usage = {
        "promptTokenCount": 9,
        "cachedContentTokenCount": 5,
        "candidatesTokenCount": 4,
        "thoughtsTokenCount": 3,
        "toolUsePromptTokenCount": 1,
    }
    wire.script(wire.Reply(reply(answer, usageMetadata=usage)))
    (output,) = gemini(wire).generate([CHAT])
    assert output == ["Madrid."] and output.reasoning == ["Spain…"] and output.finish_reasons == ["stop"]
    assert output.usage == Usage(10, 7, cache_read_input_tokens=5, reasoning_output_tokens=3)
    assert output.logprobs == [
        [
            [{"token": "Mad", "logprob": -0.1}],
            [{"token": "rid.", "logprob": -0.2}, {"token": "ame", "logprob": -2.5}],
        ]
    ]


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("SAFETY", "content_filter"),
        ("RECITATION", "content_filter"),
        ("SOMETHING_NEW", "content_filter"),
        ("OTHER", "error"),
        ("MALFORMED_FUNCTION_CALL", "error"),
        ("FINISH_REASON_UNSPECIFIED", None),
        (None, None),
    ],
)
def test_no_text_is_none_with_its_reason(finish, reason, wire):
    wire.script(wire.Reply(reply({"finishReason": finish})))
    (output,) = gemini(wire).generate([CHAT])
    assert output == [None] and output.finish_reasons == [reason]
    assert type(output.error) is (Transient if reason == "error" else type(None))


def test_a_prompt_that_was_blocked(wire):
    blocked = {"promptFeedback": {"blockReason": "OTHER"}, "usageMetadata": {"promptTokenCount": 9}}
    wire.script(wire.Reply(blocked))
    (output,) = gemini(wire).generate([CHAT], 3)
    assert output == [None] * 3 and output.finish_reasons == ["content_filter"] * 3
    assert output.usage == Usage(9) and output.error is None


def test_fewer_candidates_than_asked_for(wire):
    wire.script(wire.Reply(reply(candidate("Madrid."))))
    output = asyncio.run(gemini(wire).agenerate(CHAT, 2))
    assert output == ["Madrid.", None] and output.finish_reasons == ["stop", "error"]


# ------------------------------------------------------------------------------------------------- who asks, and where


def test_the_key_of_express_mode_needs_no_project(wire, monkeypatch):
    gemini(wire).generate([CHAT])
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "elsewhere")  # what is passed goes before what the environment says
    gemini(wire).generate([CHAT])
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT")
    monkeypatch.setenv("GOOGLE_API_KEY", "AIza-other")
    gemini(wire, api_key=None).generate([CHAT])
    for asked, key in zip(wire.requests, [KEY, KEY, "AIza-other"], strict=True):
        assert asked.path == "/v1beta1/publishers/google/models/gemini-3-flash:generateContent"
        assert asked.headers["x-goog-api-key"] == key and "authorization" not in asked.headers


def test_a_token_asks_for_a_project(wire, monkeypatch):
    monkeypatch.setenv("GOOGLE_API_KEY", "AIza-other")
    monkeypatch.setenv("GOOGLE_CLOUD_LOCATION", "europe-west4")
    gemini(wire, api_key=None, credentials="ya29.secret", project="mine").generate([CHAT])
    (request,) = wire.requests
    where = "projects/mine/locations/europe-west4/publishers/google/models"
    assert request.path == f"/v1beta1/{where}/gemini-3-flash:generateContent"
    assert request.headers["authorization"] == "Bearer ya29.secret" and "x-goog-api-key" not in request.headers


def test_the_application_default_credentials(wire, monkeypatch, tmp_path):
    """Such as `gcloud auth application-default login` leaves in a file."""
    user = {"type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "r"}
    (tmp_path / "adc.json").write_text(json.dumps(user))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "adc.json"))
    with pytest.raises(Fatal, match="`VertexAILLM` has no project: pass `project=` or set `GOOGLE_CLOUD_PROJECT`"):
        gemini(wire, api_key=None).load()
    gemini(wire, api_key=None, project="mine").load()
    gemini(wire, api_key=None, project="mine", credentials=json.dumps(user)).load()


def test_what_is_missing(wire):
    with pytest.raises(Fatal, match="gcloud auth application-default login.*`api_key=` or set `GOOGLE_API_KEY`"):
        gemini(wire, api_key=None).load()
    with pytest.raises(Fatal, match="`credentials` are neither an access token nor the JSON") as caught:
        gemini(wire, api_key=None, credentials='{"private_key": "secret"}').load()
    assert "secret" not in str(caught.value) + repr(caught.value.__context__)
    with pytest.raises(Fatal, match="regular expression"):
        gemini(wire, structured_output={"schema": "[A-E]"}).load()


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({"project": "p"}, "https://aiplatform.googleapis.com"),
        ({"project": "p", "location": "europe-west4"}, "https://europe-west4-aiplatform.googleapis.com"),
        ({"project": "p", "location": "eu"}, "https://aiplatform.eu.rep.googleapis.com"),
        ({"api_key": KEY, "location": "eu"}, "https://aiplatform.googleapis.com"),
    ],
)
def test_asks_where_the_sdk_would(fields, url, wire):
    from google import genai
    from google.oauth2.credentials import Credentials

    llm = VertexAILLM(model="gemini-2.5-flash", **fields)
    login = {"api_key": KEY} if "api_key" in fields else {**fields, "credentials": Credentials(token="x")}
    client = genai.Client(enterprise=True, **login)
    assert llm._resolve_base_url() == url == (client._api_client._http_options.base_url or "").rstrip("/")
    cost = llm.cost(Usage(1_000_000))
    assert cost is not None and 0.01 < cost < 10
    assert gemini(wire, model="gemini-2.5-flash").cost(Usage(1)) is None


def test_a_login_that_is_refused(wire, monkeypatch):
    from google.auth import exceptions
    from google.oauth2.credentials import Credentials

    def refuse(error: Exception) -> Any:
        def refresh(self: Any, request: Any) -> None:
            raise error

        monkeypatch.setattr(Credentials, "refresh", refresh)

    user = json.dumps({"type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "r"})
    fields = {"api_key": None, "project": "mine", "credentials": user}
    refuse(exceptions.RefreshError("invalid_grant: Token has been expired or revoked."))
    with pytest.raises(Fatal, match="login refuses the credentials: invalid_grant"):
        gemini(wire, **fields).generate([CHAT])
    refuse(exceptions.TransportError("no network"))
    assert type(failure(wire, **fields)) is Transient


# ------------------------------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, said(400, "input token count exceeds"), Rejected),
        (400, said(400, "API key not valid", {"reason": "API_KEY_INVALID"}), Fatal),
        (401, said(401, "expired"), Fatal),
        (403, said(403, "API not enabled"), Fatal),
        (404, said(404, "no such model"), Fatal),
        (
            429,
            said(429, "quota", {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "53s"}),
            Throttled,
        ),
        (499, said(499, "cancelled"), Rejected),
        (500, said(500, "internal"), Transient),
        (503, said(503, "overloaded"), Transient),
        (504, said(504, "deadline"), Transient),
        (502, "<html>Bad gateway</html>", Transient),
    ],
)
def test_errors_are_told_apart(status, body, kind, wire, monkeypatch):
    monkeypatch.setattr(request, "MAX_THROTTLED", 1)
    kind_of_text = {"Content-Type": "text/html"} if isinstance(body, str) else {}
    wire.answer = lambda request: wire.Reply(body, status=status, headers=kind_of_text)
    if kind is Fatal:
        with pytest.raises(Fatal) as caught:
            gemini(wire).generate([CHAT])
        error: LLMError = caught.value
    else:
        error = failure(wire)
    assert type(error) is kind and error.status == status and str(status) in str(error)
    assert error.retry_after == (53 if status == 429 else None)
    assert (body["error"]["message"] if isinstance(body, dict) else "Bad gateway") in str(error)
    assert KEY not in str(error) + repr(vars(error)) + repr(error.__context__)
    assert len(wire.requests) == 1


def test_a_server_that_is_not_there(wire, monkeypatch):
    slept: list[float] = []
    nap = asyncio.sleep

    async def sleep(seconds: float, *rest: Any) -> Any:
        slept.extend([seconds] if seconds >= 1 else [])
        return await nap(0, *rest)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    wire.hang_up()
    assert type(failure(wire)) is Transient
    assert not slept  # the SDK, left alone, would have


# -------------------------------------------------------------------------------------------------- how many, and where


def test_a_new_token_keeps_the_connections(wire):
    event_loop.close()
    for token in ("ya29.first", "ya29.second"):
        gemini(wire, api_key=None, credentials=token, project="p").generate([CHAT])
    sessions = [
        value for value, _ in event_loop._loop_thread().clients.values() if isinstance(value, aiohttp.ClientSession)
    ]
    assert len(sessions) == 1 and len(wire.requests) == 2


def test_a_login_in_netrc_does_not_reach_google(wire, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password of-theirs")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    gemini(wire).generate([CHAT])
    assert "authorization" not in wire.requests[0].headers


def test_goes_through_the_proxy_of_the_environment(wire, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", wire.url.removesuffix("/v1"))
    http.environment_proxy.cache_clear()
    assert gemini(wire, base_url="http://google.invalid").generate([CHAT]) == [["Madrid."]]
    assert wire.requests[0].path.startswith("http://google.invalid/")


def test_a_server_nobody_here_wrote(llmock, monkeypatch):
    monkeypatch.setenv("GOOGLE_GENAI_API_VERSION", "v1beta")  # it speaks the developers' version of the API only
    fields = {"base_url": llmock.base_url("gemini"), "api_key": KEY, "timeout": 20}
    (output,) = VertexAILLM(model="models/gemini-2.5-flash", **fields).generate([CHAT])
    assert output[0] and output.finish_reasons == ["stop"] and output.usage.input_tokens and output.usage.output_tokens
    llmock.rate_limit(times=2, retry_after=0.1)
    (output,) = VertexAILLM(model="models/gemini-2.5-flash", **fields).generate([CHAT])
    assert output[0] and output.attempts == 3
    llmock.assert_resilient()
