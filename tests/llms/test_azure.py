"""Azure OpenAI in both its forms, beside Azure's own SDK, with keys, tokens and whoever `azure-identity` finds."""

import asyncio
import json
import os
import pickle
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncAzureOpenAI, AsyncOpenAI

from llms import Fatal, Rejected, Transient
from llms.azure import TOKEN_SCOPE, AzureOpenAILLM
from llms.clients import event_loop
from llms.engine import request
from llms.typing import ChatType

KEY = "azure-secret"
TOKEN = "entra-secret"
VERSION = "2024-10-21"
CHAT: ChatType = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "¿Capital de España? 🇪🇸"}]
SCHEMA = {"title": "Name", "type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


@pytest.fixture(autouse=True)
def nobody_of_the_developers(monkeypatch: pytest.MonkeyPatch) -> None:
    """No token, resource or identity of the developer's reaches a test."""
    for name in ("AZURE_OPENAI_AD_TOKEN", "AZURE_OPENAI_ENDPOINT", "OPENAI_API_VERSION"):
        monkeypatch.delenv(name, raising=False)


def root(wire: Any) -> str:
    return wire.url.removesuffix("/v1")


def azure(wire: Any, **fields: Any) -> AzureOpenAILLM:
    return AzureOpenAILLM(**{"model": "gpt-4", "base_url": root(wire), "api_key": KEY, "timeout": 20} | fields)


def sent_by_sdk(wire: Any, client: Any, **call: Any) -> Any:
    async def ask() -> None:
        async with client:
            await client.chat.completions.create(messages=CHAT, **{"model": "gpt-4"} | call)

    event_loop.run(ask())
    return wire.requests.pop()


def assert_same(ours: Any, theirs: Any, *headers: str) -> None:
    assert (ours.method, ours.path, ours.body) == (theirs.method, theirs.path, theirs.body)
    for header in ("host", "content-type", *headers):
        assert ours.headers.get(header) == theirs.headers.get(header)


# -------------------------------------------------------------------------------------------------------- the two forms

OPTIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"max_new_tokens": 7}, {"max_completion_tokens": 7}),
    ({"temperature": 0}, {"temperature": 0}),
    ({"top_p": 0.9}, {"top_p": 0.9}),
    ({"stop": "\n"}, {"stop": "\n"}),
    ({"seed": 7}, {"seed": 7}),
    ({"frequency_penalty": -0.5}, {"frequency_penalty": -0.5}),
    ({"presence_penalty": 1.5}, {"presence_penalty": 1.5}),
    ({"response_format": "json"}, {"response_format": {"type": "json_object"}}),
    ({"logprobs": True, "top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
    ({"logit_bias": {"5": -1}}, {"logit_bias": {"5": -1}}),
    ({"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
    ({"verbosity": "low"}, {"verbosity": "low"}),
    ({"service_tier": "flex"}, {"service_tier": "flex"}),
    ({"extra_body": {"data_sources": []}}, {"extra_body": {"data_sources": []}}),
]


def test_every_option_is_compared():
    assert {name for ours, _ in OPTIONS for name in ours} == AzureOpenAILLM.Options.model_fields.keys()


@pytest.mark.parametrize(("ours", "theirs"), OPTIONS, ids=lambda value: "-".join(value) or "nothing")
def test_a_deployment_is_asked_as_the_sdk_asks_it(ours, theirs, wire):
    client = AsyncAzureOpenAI(azure_endpoint=root(wire), api_version=VERSION, api_key=KEY, max_retries=0)
    expected = sent_by_sdk(wire, client, **theirs)
    assert azure(wire, api_version=VERSION).generate([CHAT], **ours) == [["Madrid."]]
    (request,) = wire.requests
    assert_same(request, expected, "api-key", "authorization")
    assert request.path == f"/openai/deployments/gpt-4/chat/completions?api-version={VERSION}"


@pytest.mark.parametrize(("ours", "theirs"), OPTIONS, ids=lambda value: "-".join(value) or "nothing")
def test_the_v1_api_is_asked_as_the_sdk_asks_it(ours, theirs, wire):
    client = AsyncOpenAI(base_url=f"{root(wire)}/openai/v1/", api_key=KEY, max_retries=0)
    expected = sent_by_sdk(wire, client, **theirs)
    assert azure(wire).generate([CHAT], **ours) == [["Madrid."]]
    (request,) = wire.requests
    assert_same(request, expected)
    assert request.path == "/openai/v1/chat/completions"
    assert request.headers["api-key"] == KEY and "authorization" not in request.headers


@pytest.mark.parametrize("name", ["gpt 4/ü", "gpt-4.1_mini", "a?b#c"])
def test_a_deployment_may_have_any_name(name, wire):
    client = AsyncAzureOpenAI(azure_endpoint=root(wire), api_version=VERSION, api_key=KEY, max_retries=0)
    expected = sent_by_sdk(wire, client, model=name)
    azure(wire, model=name, api_version=VERSION).generate([CHAT])
    assert_same(wire.requests[0], expected)


def test_the_environment_says_where_which_and_who(wire, monkeypatch):
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", f"{root(wire)}/")
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_VERSION", VERSION)
    expected = sent_by_sdk(wire, AsyncAzureOpenAI(max_retries=0))
    AzureOpenAILLM(model="gpt-4").generate([CHAT])
    assert_same(wire.requests.pop(), expected, "api-key", "authorization")
    AzureOpenAILLM(model="gpt-4", api_version="v1").generate([CHAT])
    assert wire.requests.pop().path == "/openai/v1/chat/completions"


@pytest.mark.parametrize("ending", ["", "/", "/openai/v1", "/openai/v1/"])
@pytest.mark.parametrize("version", [None, VERSION])
def test_the_address_is_the_same_with_and_without_its_path(ending, version, wire):
    azure(wire, base_url=root(wire) + ending, api_version=version).generate([CHAT])
    assert wire.requests[0].path.startswith("/openai/v1/chat" if version is None else "/openai/deployments/gpt-4/chat")


def test_without_an_endpoint_says_where_one_would_be():
    with pytest.raises(Fatal, match="`AzureOpenAILLM` has no address: pass `base_url=` or set `AZURE_OPENAI_ENDPOINT`"):
        AzureOpenAILLM(model="gpt-4", api_key=KEY).load()


def test_reads_what_the_sdk_reads(wire):
    reply = wire.completion("a", None, finish_reason="length") | {"prompt_filter_results": [{"prompt_index": 0}]}
    wire.answer = lambda request: wire.Reply(reply)

    async def ask() -> Any:
        async with AsyncAzureOpenAI(azure_endpoint=root(wire), api_version=VERSION, api_key=KEY) as client:
            return await client.chat.completions.create(messages=CHAT, model="gpt-4", n=2)  # type: ignore[arg-type]

    theirs = event_loop.run(ask())
    (ours,) = azure(wire, api_version=VERSION).generate([CHAT], 2)
    assert wire.requests[0].body == wire.requests[1].body
    assert ours == [choice.message.content for choice in theirs.choices]
    assert ours.finish_reasons == [choice.finish_reason for choice in theirs.choices]
    used = theirs.usage
    assert (ours.usage.input_tokens, ours.usage.output_tokens) == (used.prompt_tokens, used.completion_tokens)


def test_is_held_strictly_to_a_schema(wire):
    wire.answer = lambda request: wire.Reply(wire.completion('{"name": "Ada"}'))
    shape = {"name": "Name", "strict": True, "schema": SCHEMA | {"additionalProperties": False}}
    client = AsyncAzureOpenAI(azure_endpoint=root(wire), api_version=VERSION, api_key=KEY, max_retries=0)
    expected = sent_by_sdk(wire, client, response_format={"type": "json_schema", "json_schema": shape})
    azure(wire, api_version=VERSION, structured_output={"schema": SCHEMA}).generate([CHAT])
    assert_same(wire.requests[0], expected)


# ---------------------------------------------------------------------------------------------------------- the filters


def test_a_prompt_that_is_filtered_costs_only_its_own_row(wire):
    filtered = {
        "error": {
            "message": "The response was filtered due to the prompt triggering content management policy.",
            "type": None,
            "param": "prompt",
            "code": "content_filter",
            "status": 400,
            "innererror": {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {}},
        }
    }
    bad: ChatType = [{"role": "user", "content": "bad"}]
    wire.answer = lambda request: wire.Reply(*((filtered, 400) if request.body["messages"] == bad else ()))
    first, second = azure(wire, api_version=VERSION).generate([bad, CHAT])
    assert first == [None] and isinstance(first.error, Rejected) and first.error.code == "content_filter"
    assert second == ["Madrid."] and second.error is None and len(wire.requests) == 2


def test_a_completion_that_is_filtered_has_its_reason(wire):
    reply = wire.completion("", finish_reason="content_filter")
    del reply["choices"][0]["message"]["content"]
    reply["choices"][0]["content_filter_results"] = {"violence": {"filtered": True, "severity": "high"}}
    wire.script(wire.Reply(reply))
    (output,) = azure(wire).generate([CHAT])
    assert output == [None] and output.finish_reasons == ["content_filter"] and output.error is None


def test_a_deployment_that_is_not_there_stops_everything(wire):
    missing = {"error": {"code": "DeploymentNotFound", "message": "The API deployment does not exist."}}
    wire.answer = lambda request: wire.Reply(missing, status=404)
    with pytest.raises(Fatal, match="does not exist") as caught:
        azure(wire, api_version=VERSION).generate([CHAT])
    assert caught.value.code == "DeploymentNotFound"


# ------------------------------------------------------------------------------------------------------ keys and tokens


@pytest.mark.parametrize("version", [None, VERSION])
def test_a_token_is_sent_as_the_sdk_sends_it(version, wire):
    client = AsyncAzureOpenAI(azure_endpoint=root(wire), api_version=VERSION, azure_ad_token=TOKEN, max_retries=0)
    expected = sent_by_sdk(wire, client)
    azure(wire, api_key=None, azure_ad_token=TOKEN, api_version=version).generate([CHAT])
    (request,) = wire.requests
    assert request.headers["authorization"] == expected.headers["authorization"] == f"Bearer {TOKEN}"
    assert "api-key" not in request.headers


@pytest.mark.parametrize("passed", [{}, {"api_key": "passed-key"}, {"azure_ad_token": "passed-token"}])
@pytest.mark.parametrize("variables", [("KEY",), ("TOKEN",), ("KEY", "TOKEN")])
def test_what_is_passed_goes_before_the_environment_as_in_the_sdk(passed, variables, wire, monkeypatch):
    names = {"KEY": "AZURE_OPENAI_API_KEY", "TOKEN": "AZURE_OPENAI_AD_TOKEN"}
    for each in variables:
        monkeypatch.setenv(names[each], f"variable-{each}")
    client = AsyncAzureOpenAI(azure_endpoint=root(wire), api_version=VERSION, max_retries=0, **passed)
    expected = sent_by_sdk(wire, client)
    AzureOpenAILLM(model="gpt-4", base_url=root(wire), api_version=VERSION, **passed).generate([CHAT])
    assert_same(wire.requests[0], expected, "api-key", "authorization")


def test_a_token_shows_nowhere(wire):
    llm = azure(wire, api_key=None, azure_ad_token=TOKEN)
    for shown in (repr(llm), str(llm), llm.model_dump_json()):
        assert TOKEN not in shown
    wire.answer = lambda request: wire.Reply({"error": {"code": "401", "message": "Access denied."}}, status=401)
    with pytest.raises(Fatal, match="401") as caught:
        llm.generate([CHAT])
    assert TOKEN.encode() not in pickle.dumps(caught.value) and TOKEN not in repr(vars(caught.value))


def test_accounts_are_told_apart_by_their_key(wire):
    fields: list[dict[str, Any]] = [{}, {"api_key": "x"}, {"azure_ad_token": TOKEN}, {"azure_identity": True}]
    assert len({azure(wire, **each).rate_limit_scope() for each in fields}) == 4


@pytest.fixture
def managed_identity(wire: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A managed identity as an App Service has it: an address that hands out tokens, here the wire.

    `azure-identity` itself asks for them, over HTTP; they last as long as the list returned says.
    """
    for name in ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")
    monkeypatch.setenv("IDENTITY_ENDPOINT", f"{root(wire)}/msi/token")
    monkeypatch.setenv("IDENTITY_HEADER", "who-i-am")
    lasts = ["3600"]

    def answer(request: Any) -> Any:
        if not request.path.startswith("/msi/token"):
            return wire.Reply()
        number = sum(each.path.startswith("/msi/token") for each in wire.requests)
        until = str(int(time.time()) + int(lasts[0]))
        return wire.Reply(
            {"access_token": f"token-{number}", "expires_on": until, "resource": "r", "token_type": "Bearer"}
        )

    wire.answer = answer
    event_loop.close()  # the identity of another test is let go of
    return lasts


def asked_for_tokens(wire: Any) -> list[Any]:
    return [each for each in wire.requests if each.path.startswith("/msi/token")]


def test_signs_in_once_as_whoever_azure_identity_finds(wire, managed_identity):
    llm = azure(wire, api_key=None, azure_identity=True)
    llm.load()
    assert llm.generate([CHAT] * 100) == [["Madrid."]] * 100
    (token,) = asked_for_tokens(wire)
    assert TOKEN_SCOPE.removesuffix("/.default") in token.path.replace("%3A", ":").replace("%2F", "/")
    completions = [each for each in wire.requests if "chat" in each.path]
    assert {each.headers["authorization"] for each in completions} == {"Bearer token-1"}
    assert pickle.loads(pickle.dumps(llm)) == llm and "token-1" not in repr(llm)
    assert asyncio.run(llm.agenerate(CHAT)) == ["Madrid."]  # from another loop than the shared one
    assert len(asked_for_tokens(wire)) == 1


def test_a_token_that_ends_is_replaced(wire, managed_identity):
    llm = azure(wire, api_key=None, azure_identity=True)
    managed_identity[0] = "200"
    llm.generate([CHAT])
    managed_identity[0] = "3600"
    llm.generate([CHAT])
    llm.generate([CHAT])
    used = [each.headers["authorization"] for each in wire.requests if "chat" in each.path]
    assert used[0] != used[1] == used[2]


@pytest.mark.parametrize("how", ["unwell", "unreachable", "unknown"])
@pytest.mark.slow
def test_a_network_that_is_down_when_signing_in_is_bad_weather(how, wire, managed_identity, monkeypatch):
    monkeypatch.setattr(request, "MAX_ATTEMPTS", 1)
    answer = wire.answer
    wire.answer = lambda asked: wire.Reply({"error": "busy"}, 503) if "msi" in asked.path else answer(asked)
    addresses = {"unreachable": "http://127.0.0.1:9/msi/token", "unknown": "http://no.such.invalid/msi/token"}
    if how in addresses:
        monkeypatch.setenv("IDENTITY_ENDPOINT", addresses[how])
    (output,) = azure(wire, api_key=None, azure_identity=True).generate([CHAT])
    assert type(output.error) is Transient and "`azure-identity` cannot sign in to Azure" in str(output.error)
    assert output.error.retry_after and bool(asked_for_tokens(wire)) is (how == "unwell")


@pytest.mark.slow
def test_all_that_wait_are_told_of_one_failure(wire, managed_identity, monkeypatch):
    monkeypatch.setattr(request, "MAX_ATTEMPTS", 1)
    wire.answer = lambda request: wire.Reply({"error": "busy"}, status=503)
    outputs = azure(wire, api_key=None, azure_identity=True).generate([CHAT] * 20)
    assert {type(output.error) for output in outputs} == {Transient}
    assert len(wire.requests) <= 8  # azure-identity asks four times


@pytest.fixture
def command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Azure's command line, signed in: a token is in the file `token`, what is wrong instead in the file `wrong`.

    `azure-identity` asks it each time, and keeps nothing itself.
    """
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "AzureCliCredential")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    script = f"#!/bin/sh\ncd {tmp_path}\ntest -e wrong && cat wrong >&2 && exit 1\ncat token\n"
    (tmp_path / "az").write_text(script)
    (tmp_path / "az").chmod(0o755)
    event_loop.close()
    yield tmp_path
    event_loop.close()


def lasts(folder: Path, seconds: int) -> None:
    token = {"accessToken": "token-1", "expires_on": int(time.time()) + seconds}
    (folder / "token").write_text(json.dumps(token))


@pytest.mark.parametrize("wrong", ["Max retries exceeded with url: /token", "AADSTS50173: revoked"])
def test_a_token_that_is_still_good_is_used_while_there_is_no_other(wrong, wire, command_line):
    lasts(command_line, 200)
    llm = azure(wire, api_key=None, azure_identity=True)
    llm.generate([CHAT])
    (command_line / "wrong").write_text(wrong)
    assert llm.generate([CHAT] * 5) == [["Madrid."]] * 5
    assert {each.headers["authorization"] for each in wire.requests} == {"Bearer token-1"}


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ("Max retries exceeded with url: /token", Transient),
        ("('Connection aborted.', ConnectionResetError(104))", Transient),
        ("AADSTS50173: The provided grant has expired.", Fatal),
    ],
)
def test_a_token_that_has_ended_when_there_is_no_other(wrong, kind, wire, command_line, monkeypatch):
    monkeypatch.setattr(request, "MAX_ATTEMPTS", 1)
    lasts(command_line, 1)
    llm = azure(wire, api_key=None, azure_identity=True)
    llm.generate([CHAT])
    time.sleep(1.1)
    (command_line / "wrong").write_text(wrong)
    if kind is Fatal:
        with pytest.raises(Fatal, match="cannot sign in to Azure.*AADSTS50173"):
            llm.generate([CHAT])
    else:
        (output,) = llm.generate([CHAT])
        assert type(output.error) is Transient and wrong in str(output.error)


@pytest.mark.slow
def test_a_line_that_breaks_when_a_token_has_ended_is_bad_weather(wire, managed_identity, monkeypatch):
    """A credential that worked once is asked directly from then on, and its error comes as it is."""
    monkeypatch.setattr(request, "MAX_ATTEMPTS", 1)
    managed_identity[0] = "1"
    llm, answer = azure(wire, api_key=None, azure_identity=True), wire.answer
    llm.generate([CHAT])
    time.sleep(1.1)
    wire.answer = lambda asked: wire.Reply(drop=True) if "msi" in asked.path else answer(asked)
    (output,) = llm.generate([CHAT])
    assert type(output.error) is Transient


def test_who_cannot_sign_in_is_told_so_at_once(wire, managed_identity):
    wire.answer = lambda request: wire.Reply(json.dumps({"error": "no such identity"}), status=400)
    with pytest.raises(Fatal, match="`azure-identity` cannot sign in to Azure") as caught:
        azure(wire, api_key=None, azure_identity=True).generate([CHAT])
    assert "who-i-am" not in str(caught.value)


def test_says_which_package_is_missing(wire, monkeypatch):
    monkeypatch.setitem(sys.modules, "azure.identity.aio", None)
    with pytest.raises(Fatal, match=r"`AzureOpenAILLM` needs.*`pip install 'distilflow\[azure\]'`"):
        azure(wire, api_key=None, azure_identity=True).load()
