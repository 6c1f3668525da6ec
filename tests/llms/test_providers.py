"""Every provider, the same questions over a real socket: what is sent, what comes back, what goes wrong.

A class is asked them by being a `RemoteLLM` in `llms/`. The format of its API is in `tests/support/api_profiles.py`;
one that speaks like OpenAI needs nothing there. What a class sends and what it makes of errors is asked of each. How
responses are read and connections are used is asked once for each implementation (`TRANSPORTS`): classes that inherit
both `agenerate` and the format of their responses run the same code.
"""

import asyncio
import contextlib
import json
import logging
import pickle
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import tomllib
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from copy import deepcopy
from dataclasses import astuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llms import AzureOpenAILLM, Fatal, LlamaServerLLM, LLMError, OpenAILLM, Rejected, Throttled, Transient, store
from llms.clients import event_loop, http
from llms.engine import request
from llms.limits import limiter
from llms.limits.usage import UsageCollector
from llms.typing import ChatType, GenerateOutput, Usage
from tests.support.api_profiles import KEY, Way, installed, place_of, remote, sample, ways
from tests.support.ports import reserve_port
from tests.support.wire import Wire

ROOT = Path(__file__).parents[2]
ALL = ways(*remote())
REMOTE = [way for way in ALL if installed(way.profile)]
WAYS = [*REMOTE, *ways(LlamaServerLLM)]
"""Those behind an API, and the one that speaks over a wire to a server of its own."""

TRANSPORTS = list(
    {(way.cls.agenerate, type(way.profile).reply): way for way in [*WAYS[::-1], *ways(OpenAILLM)]}.values()
)
"""One for each implementation of a request and format of a response."""

CHAT: ChatType = [{"role": "user", "content": "What's the capital of Spain?"}]
TURNS: ChatType = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "¿Capital de España? 🇪🇸"},
    {"role": "assistant", "content": "Madrid."},
    {"role": "user", "content": "And of France?"},
]
PIXEL = "R0lGODlhAQABAIAAAAAAAAgICCH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
IMAGE: ChatType = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": f"data:image/gif;base64,{PIXEL}"}},
        ],
    }
]
SCHEMA: dict[str, Any] = {
    "title": "User",
    "type": "object",
    "properties": {"name": {"type": "string"}, "number": {"type": "integer"}},
    "required": ["name", "number"],
    "additionalProperties": False,
}
RIGHT, WRONG = '{"name": "Ada", "number": 1}', '{"name": "Ada"}'
PATTERN = "[A-E][+-]?"


class Provider:
    """A class of models, how it speaks, and the wire it talks to; without a script every text is `Madrid.`"""

    def __init__(self, way: Way, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
        self.way, self.wire = way, wire
        self.cls, self.profile = way
        self.Options, self.modes = self.profile.options_of(self.cls), self.profile.modes(self.cls)
        self.url = wire.url.removesuffix("/v1")
        wire.answer = lambda request: self.reply(*["Madrid."] * self.profile.count(request.body))
        if self.cls is LlamaServerLLM:
            context = self.cls.model_fields["n_ctx"].default
            path = SimpleNamespace(num_tokens=context)  # no text that was cut could be asked for in what is left
            headers = {"Authorization": f"Bearer {KEY}"}
            server = SimpleNamespace(base_url=wire.url, headers=headers, token_path=lambda text: path)
            monkeypatch.setattr(self.cls, "_server", lambda self: server)

    def llm(self, url: str | None = None, **fields: Any) -> Any:
        """A model of this class that talks to the wire."""
        return self.cls(**self.way.fields(url or self.url) | fields)

    def reply(self, *texts: str | None, **more: Any) -> Any:
        return self.wire.Reply(self.profile.reply(*texts, **more), headers=self.profile.headers)

    def says(self, *texts: str | None, **more: Any) -> None:
        """What the next request is answered with."""
        self.wire.script(self.reply(*texts, **more))

    def echoes(self, delay: float = 0.0) -> None:
        """Answer with what the user said last."""

        def answer(request: Any) -> Any:
            reply = self.reply(self.profile.chat(request.body)[-1][1])
            reply.delay = random.uniform(0, delay)
            return reply

        self.wire.answer = answer

    def ask(self, chat: ChatType = CHAT, num_generations: int = 1, **fields: Any) -> GenerateOutput:
        return self.llm(**fields).generate([chat], num_generations)[0]

    def bodies(self) -> list[Any]:
        return [request.body for request in self.wire.requests]

    def failure(self, url: str | None = None, **fields: Any) -> LLMError:
        """Why a chat got no answer."""
        try:
            (output,) = self.llm(url, **fields).generate([CHAT])
        except Fatal as error:
            return error
        assert output == [None] and output.finish_reasons == ["error"] and output.error is not None, output
        return output.error


@contextlib.contextmanager
def serving() -> Iterator[Wire]:
    """A wire that is quick to close: there are a thousand of them."""
    server = Wire()
    threading.Thread(target=server.serve_forever, args=(0.002,), daemon=True).start()
    yield server
    server.hang_up()


@pytest.fixture
def wire() -> Iterator[Wire]:
    """A server that says what the test wants, and remembers what it was asked."""
    with serving() as server:
        yield server


@pytest.fixture(params=WAYS, ids=str)
def provider(request: pytest.FixtureRequest, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> Provider:
    """Each class in each of its ways."""
    return Provider(request.param, wire, monkeypatch)


@pytest.mark.parametrize("way", ALL, ids=str)
def test_is_asked_all_of_this(way):
    if way not in REMOTE:
        pytest.skip(f"where there is no `{way.profile.package}`")


def only(ways: list[Way]) -> pytest.MarkDecorator:
    """Those that have what is asked about."""
    return pytest.mark.parametrize("provider", ways, indirect=True, ids=str)


def some(cases: list[tuple[Way, Any]], name: str) -> pytest.MarkDecorator:
    """Each with its own cases."""
    ids = [f"{way}-{case}" for way, case in cases]
    return pytest.mark.parametrize(("provider", name), cases, indirect=["provider"], ids=ids)


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the engine waits between attempts; it passes at once."""
    asked: list[float] = []

    async def shortly(seconds: float) -> None:
        asked.append(seconds)
        await asyncio.sleep(min(seconds, 0.005))

    monkeypatch.setattr(request, "asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": shortly}))
    monkeypatch.setattr(limiter, "INITIAL_BACKOFF_S", 0.02)
    return asked


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is tried again."""
    monkeypatch.setattr(request, "MAX_ATTEMPTS", 1)
    monkeypatch.setattr(request, "MAX_THROTTLED", 1)


def harmless(error: LLMError) -> None:
    """It pickles, and holds no key."""
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error) and vars(again) == vars(error)
    for behind in (error.__cause__, error.__context__):
        assert behind is None or isinstance(behind, LLMError), "an SDK's own error holds the request"
    for shown in (str(error), repr(error), repr(vars(error))):
        assert KEY not in shown
    assert KEY.encode() not in pickle.dumps(error)


def chat(text: str) -> ChatType:
    return [{"role": "user", "content": text}]


# -------------------------------------------------------------------------------------------------------- what is sent


def test_a_chat_arrives_with_the_key_and_nothing_else(provider):
    assert provider.ask() == ["Madrid."]
    (request,) = provider.wire.requests
    assert request.method == "POST" and request.path.partition("?")[0].endswith(provider.profile.path)
    assert KEY in str(request.headers) and KEY not in request.path
    assert provider.profile.chat(request.body) == [("user", CHAT[0]["content"])]
    assert provider.profile.count(request.body) == 1


def test_every_option_is_sent_under_its_own_name_and_not_at_all_when_unset(provider):
    profile, options = provider.profile, provider.Options
    assert provider.ask() == ["Madrid."]
    bare = provider.wire.requests.pop().body
    for name in options.model_fields:
        value = sample(options, name, profile.samples)
        if name in profile.lacks:
            with pytest.raises(Fatal, match=name):
                provider.llm().generate([CHAT], **{name: value})
            continue
        provider.llm(max_schema_retries=0).generate([CHAT], **{name: value})
        request = provider.wire.requests.pop()
        body = request.body
        sent = {key: value for key, value in profile.options(body).items() if profile.options(bare).get(key) != value}
        assert sent == profile.expected(options(**{name: value})), name
        assert name != "extra_headers" or request.headers.items() >= value.items()
        assert profile.chat(body) == profile.chat(bare), name


def test_options_of_the_block_hold_until_a_call_says_otherwise(provider):
    options = provider.Options
    first, second = [name for name in ("max_new_tokens", "temperature", "top_p") if name in options.model_fields][:2]
    llm = provider.llm(generation_kwargs={first: "1", second: 1})
    llm.generate([CHAT])
    llm.generate([CHAT], **{first: 2})
    sent = [provider.profile.options(body) for body in provider.bodies()]
    for body, value in zip(sent, (1, 2), strict=True):
        expected = provider.profile.expected(options(**{first: value, second: 1}))
        assert {name: body[name] for name in expected} == expected


VARIABLES = {
    "ANTHROPIC_CUSTOM_HEADERS": ["X-Team: a", "X-Team: b"],
    "GOOGLE_CLOUD_LOCATION": ["us", "europe-west4"],
    "GOOGLE_CLOUD_PROJECT": ["p", "q"],
    "GOOGLE_CLOUD_QUOTA_PROJECT": ["p", "q"],
    "OPENAI_API_VERSION": ["2024-10-21", "v1"],
    "OPENAI_ORGANIZATION": ["org-a", "org-b"],
    "OPENAI_ORG_ID": ["org-a", "org-b"],
    "OPENAI_PROJECT_ID": ["a", "b"],
}
"""Variables that change requests of some provider."""
FIELDS = {
    "api_version": ["2024-10-21", "2025-01-01"],
    "default_headers": [{"X-Config": "a"}, {"X-Config": "b"}, {"X-Configs": "a"}],
    "location": ["us", "europe-west4"],
    "model": ["m", "n"],
    "organization": ["org-a", "org-b"],
    "project": ["p", "q"],
}
VOLATILE = {"api-key", "authorization", "x-api-key", "x-goog-api-key", "x-stainless-read-timeout"}
"""Headers that say who asks, and those that differ from one request to the next."""


@given(data=st.data())
@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
def test_requests_that_differ_have_keys_that_differ(provider, data):
    """In one byte of what is sent, but for the key: wherever it comes from, no answer is another's."""
    options: dict[str, list[Any]] = {"max_new_tokens": [1, 2], "temperature": [0, 1], "extra_body": [{"a": 1}]}
    kinds = {
        "field": {name: FIELDS[name] for name in FIELDS.keys() & provider.cls.model_fields.keys()},
        "option": {name: options[name] for name in options.keys() & provider.Options.model_fields.keys()},
        "variable": VARIABLES,
    }
    if provider.profile.package == "litellm":
        del kinds["field"]["model"]
    axes = {(kind, name): values for kind, named in kinds.items() for name, values in named.items()}
    base = data.draw(st.fixed_dictionaries({}, optional={axis: st.sampled_from(each) for axis, each in axes.items()}))
    found = {"base": asked_and_named(provider, base)}
    for axis, values in axes.items():
        for value in [each for each in [*values, None] if each != base.get(axis)]:
            found[f"{axis}: {value}"] = asked_and_named(provider, base | {axis: value})
    asked = {what: sent for what, (sent, _) in found.items()}
    named = {what: key for what, (_, key) in found.items()}
    assert len(set(asked.values())) > 3
    for one in found:
        for other in found:
            assert asked[one] == asked[other] or named[one] != named[other], (one, other)


def asked_and_named(provider: Provider, choice: dict[tuple[str, str], Any]) -> tuple[str, str]:
    """What is sent for a choice of fields, options and variables, but for the key; and under which key it is stored."""

    def chosen(kind: str) -> dict[str, Any]:
        return {name: value for (each, name), value in choice.items() if each == kind and value is not None}

    with pytest.MonkeyPatch.context() as environment:
        for name, value in chosen("variable").items():
            environment.setenv(name, value)
        llm = provider.llm(**chosen("field"))
        options = llm.options(chosen("option")).model_dump(exclude_unset=True)
        key = store.key_of(llm, CHAT, options, 0)
        assert llm.generate([CHAT], **options) == [["Madrid."]]
        assert store.key_of(llm, CHAT, options, 0) == key
    sent = provider.wire.requests.pop()
    headers = {name: value for name, value in sent.headers.items() if name not in VOLATILE}
    return json.dumps([sent.method, sent.path, headers, sent.body], sort_keys=True), key


def test_a_misspelt_option_is_refused_before_any_request(provider):
    for generate in (provider.llm().generate, provider.llm().generate_outputs):
        with pytest.raises(Fatal, match="no `max_new_token`: did you mean `max_new_tokens`"):
            generate([CHAT], max_new_token=3)
    assert not provider.wire.requests


def test_a_conversation_keeps_its_turns(provider):
    assert provider.ask(TURNS) == ["Madrid."]
    (body,) = provider.bodies()
    assert provider.profile.chat(body) == [(turn["role"], turn["content"]) for turn in TURNS]


def test_an_image_arrives_or_is_refused_by_name(provider):
    output = provider.ask(IMAGE)
    if provider.profile.images:
        assert output == ["Madrid."]
        assert PIXEL in json.dumps(provider.bodies())
        assert provider.profile.chat(provider.bodies()[0])[-1] == ("user", "What is this?")
    else:
        assert output == [None] and isinstance(output.error, Rejected) and "image" in str(output.error)
        assert not provider.wire.requests


# ----------------------------------------------------------------------------------------------------- what comes back


@only(TRANSPORTS)
def test_answers_come_in_the_order_of_the_chats(provider):
    provider.echoes(delay=0.03)
    texts = [f"chat {number}" for number in range(50)]
    assert provider.llm().generate([chat(text) for text in texts]) == [[text] for text in texts]


@only(TRANSPORTS)
def test_no_chats_are_no_requests(provider):
    assert provider.llm().generate([]) == [] == provider.llm().generate_outputs([])
    assert not provider.wire.requests


def test_gives_as_many_texts_as_asked_for_and_counts_each_token_once(provider):
    output = provider.ask(num_generations=3)
    assert output == ["Madrid."] * 3 and output.finish_reasons == ["stop"] * 3 and output.reasoning == [None] * 3
    requests, usage = len(provider.wire.requests), provider.profile.usage
    assert sum(map(provider.profile.count, provider.bodies())) == 3
    assert requests == -(-3 // (provider.cls.max_generations_per_request or 3))
    assert output.usage == Usage(
        usage.input_tokens * requests,
        usage.output_tokens * 3,
        usage.cache_read_input_tokens * requests,
        usage.reasoning_output_tokens * requests,
        usage.cache_creation_input_tokens * requests,
    )
    assert output.error is None and output.attempts == 1 and 0 < output.seconds < 10


def test_generations_come_in_order(provider):
    seed = "seed" in provider.Options.model_fields
    (name,) = provider.profile.expected(provider.Options(seed=7)) if seed else (None,)

    def answer(request: Any) -> Any:
        first = provider.profile.options(request.body).get(name, 7) - 7
        reply = provider.reply(*[f"text {first + at}" for at in range(provider.profile.count(request.body))])
        reply.delay = 0.05 * (3 - first)
        return reply

    provider.wire.answer = answer
    (output,) = provider.llm().generate([CHAT], 3, **({"seed": 7} if seed else {}))
    assert output == ([f"text {at}" for at in range(3)] if seed else ["text 0"] * 3)


@some([(way, said) for way in TRANSPORTS for said in way.profile.ended], "said")
def test_says_why_a_text_ended(provider, said):
    provider.says("Madr", ended=said)
    meant = provider.profile.ended[said]
    output = provider.ask()
    if meant == "error":
        assert output == ["Madrid."] and output.attempts == 2  # it says itself that something went wrong
    else:
        assert output == ["Madr"] and output.finish_reasons == [meant] and output.error is None


@only(TRANSPORTS)
def test_a_model_that_says_nothing_is_not_an_error(provider):
    provider.says(None)
    silent = provider.ask()
    assert silent in ([None], [""]) and silent.finish_reasons == ["stop"] and silent.error is None
    assert silent.usage == provider.profile.usage and len(provider.wire.requests) == 1


@only([way for way in TRANSPORTS if way.profile.refused()])
def test_a_model_that_declines_is_not_an_error(provider):
    provider.wire.script(provider.wire.Reply(provider.profile.refused()))
    output = provider.ask(structured_output={"schema": SCHEMA})
    assert output == [None] and output.finish_reasons == ["refusal"] and output.error is None
    assert len(provider.wire.requests) == 1


@only(TRANSPORTS)
def test_a_text_that_a_filter_took_is_none_and_says_so(provider):
    provider.wire.script(provider.wire.Reply(provider.profile.filtered()))
    output = asyncio.run(provider.llm().agenerate(CHAT))
    assert output in ([None], [""]) and output.error is None and len(provider.wire.requests) == 1
    assert "content_filter" not in provider.profile.ended.values() or output.finish_reasons == ["content_filter"]


@only([way for way in TRANSPORTS if way.profile.thinks])
def test_keeps_the_thinking_apart(provider):
    provider.says("Madrid.", thought="Spain … Madrid")
    output = provider.ask()
    assert output == ["Madrid."] and output.reasoning == ["Spain … Madrid"]
    assert output.usage == provider.profile.usage


@only(TRANSPORTS)
def test_what_was_answered_once_is_not_asked_again(provider):
    llm = provider.llm()
    (first,) = llm.generate_outputs([CHAT])
    (second,) = llm.generate_outputs([CHAT])
    assert first == second == ["Madrid."] and len(provider.wire.requests) == 1
    assert (first.cached, second.cached) == (False, True) and first.usage == second.usage == provider.profile.usage
    assert llm.generate_outputs([CHAT], 2) == [["Madrid."] * 2]
    assert sum(map(provider.profile.count, provider.bodies())) == 2
    llm.generate_outputs([CHAT], max_new_tokens=7)
    llm.model_copy(update={"use_cache": False}).generate_outputs([CHAT])
    assert len(provider.wire.requests) == 4


# -------------------------------------------------------------------------------------------- texts held to a structure


def in_mode(provider: Provider, mode: str, text: str) -> Any:
    """A reply with this text, in the place it has in this mode."""
    if mode != "tool":
        return provider.reply(text)
    ended = next((said for said, meant in provider.profile.ended.items() if meant == "tool_calls"), "stop")
    return provider.reply(None, arguments=text, ended=ended)


def held(provider: Provider, mode: str | None = None, schema: Any = SCHEMA, **fields: Any) -> Any:
    if mode and provider.cls is not LlamaServerLLM:
        fields["structured_mode"] = mode
    return provider.llm(structured_output={"format": "json", "schema": schema}, **fields)


@some([(way, mode) for way in WAYS for mode in way.profile.modes(way.cls)], "mode")
def test_is_held_to_a_schema_and_asked_again_with_what_is_wrong(provider, mode):
    provider.wire.script(in_mode(provider, mode, WRONG), in_mode(provider, mode, RIGHT))
    (output,) = held(provider, mode).generate([TURNS])
    assert output.error is None and [json.loads(text) for text in output] == [json.loads(RIGHT)]
    assert output.attempts == 2 and output.usage == provider.profile.usage + provider.profile.usage
    first, second = provider.bodies()
    place, turns = place_of(SCHEMA, first), provider.profile.chat(first)
    if mode in ("json_schema", "tool", "grammar"):
        assert place and place[0] == {"tool": "tools", "grammar": mode}.get(mode, provider.profile.schema_at)
    else:
        assert place is None and '"number"' in turns[0][1] and turns[0][1].startswith("Be brief.")
        assert provider.profile.asks_for_json(first) is (mode == "json_object")
    assert [role for role, _ in turns] == ["system", "user", "assistant", "user"]
    assert place_of(SCHEMA, second) == place
    *before, (answerer, wrong), (asker, objection) = provider.profile.chat(second)
    assert before == turns and (answerer, asker) == ("assistant", "user")
    assert json.loads(wrong) == json.loads(WRONG) and "'number' is a required property" in objection


@only(TRANSPORTS)
@pytest.mark.parametrize("retries", [0, 2])
def test_is_asked_again_so_often_and_no_more(provider, retries):
    provider.wire.answer = lambda request: in_mode(provider, provider.modes[0], WRONG)
    (output,) = held(provider, max_schema_retries=retries).generate([CHAT])
    assert output == [None] and isinstance(output.error, Rejected) and "'number'" in str(output.error)
    assert output.attempts == len(provider.wire.requests) == retries + 1
    assert output.usage == sum([provider.profile.usage] * (retries + 1), Usage())


@only(TRANSPORTS)
def test_a_bound_that_the_api_may_not_enforce_is_checked(provider):
    age = SCHEMA["properties"] | {"number": {"type": "integer", "minimum": 0}}
    mode = provider.modes[0]
    provider.wire.script(in_mode(provider, mode, '{"name": "Ada", "number": -1}'), in_mode(provider, mode, RIGHT))
    (output,) = held(provider, schema=SCHEMA | {"properties": age}).generate([CHAT])
    assert output.error is None and [json.loads(text) for text in output] == [json.loads(RIGHT)]
    assert output.attempts == 2 and output.usage == provider.profile.usage + provider.profile.usage


@only(TRANSPORTS)
def test_an_answer_that_was_cut_is_reported_with_the_cure(provider):
    cut = next(said for said, meant in provider.profile.ended.items() if meant == "length")
    provider.says(RIGHT[:9], ended=cut)
    (output,) = held(provider, provider.modes[-1]).generate([CHAT])
    assert output == [None] and "`max_new_tokens`" in str(output.error) and len(provider.wire.requests) == 1


@only(TRANSPORTS)
def test_every_row_may_have_a_schema_of_its_own(provider):
    other = SCHEMA | {"properties": {"grade": {"enum": ["A", "B"]}}, "required": ["grade"]}
    mode = provider.modes[0]

    def answer(request: Any) -> Any:
        if place_of(SCHEMA, request.body):
            return in_mode(provider, mode, RIGHT)
        return in_mode(provider, mode, '{"grade": "A"}') if place_of(other, request.body) else provider.reply("Free.")

    provider.wire.answer = answer
    given = [(CHAT, {"schema": SCHEMA}), (CHAT, {"format": "json", "schema": json.dumps(other)}), (CHAT, None), CHAT]
    outputs = provider.llm().generate([*given, (CHAT, {"schema": {"type": "nothing"}})])
    assert [json.loads(output[0]) for output in outputs[:2]] == [json.loads(RIGHT), {"grade": "A"}]
    assert outputs[2:4] == [["Free."], ["Free."]]
    assert outputs[4] == [None] and isinstance(outputs[4].error, Rejected) and len(provider.wire.requests) == 4


def test_a_pattern_is_sent_or_refused_before_any_request(provider):
    llm = provider.llm(structured_output={"format": "regex", "schema": PATTERN})
    if provider.cls is LlamaServerLLM or provider.cls._supports_regex:
        provider.says("I like it.")
        provider.says("B+")
        assert llm.load() is None and llm.generate([CHAT]) == [["B+"]]
        assert [PATTERN in json.dumps(body) for body in provider.bodies()] == [True, True]
    else:
        with pytest.raises(Fatal, match=f"`{provider.cls.__name__}` cannot be held to a regular expression.*`pattern`"):
            llm.load()
        assert not provider.wire.requests


@only([way for way in WAYS if "response_format" in way.profile.options_of(way.cls).model_fields])
def test_json_mode_is_as_the_seed_says(provider):
    llm = provider.llm()
    llm.generate([CHAT], response_format="json")
    llm.generate([CHAT], response_format="text")
    assert list(map(provider.profile.asks_for_json, provider.bodies())) == [True, False]
    theirs = {"type": "json_schema", "json_schema": {"name": "user", "schema": SCHEMA}}
    llm.generate([CHAT], response_format=theirs)
    assert place_of(SCHEMA, provider.bodies()[-1])[0] == provider.profile.schema_at


# ------------------------------------------------------------------------------------------------------ what goes wrong

TROUBLE: dict[str, tuple[int, str, type[LLMError]]] = {
    "400": (400, "", Rejected),
    "400 context": (400, "context", Rejected),
    "401": (401, "key", Fatal),
    "402": (402, "", Fatal),
    "403": (403, "", Fatal),
    "404 model": (404, "model", Fatal),
    "408": (408, "", Transient),
    "409": (409, "", Transient),
    "413": (413, "", Rejected),
    "422": (422, "", Rejected),
    "429": (429, "", Throttled),
    "429 spent": (429, "spent", Fatal),
    "500": (500, "", Transient),
    "499": (499, "", Rejected),
    "503": (503, "", Transient),
    "504": (504, "", Transient),
    "529": (529, "", Transient),
}
"""What a provider may say instead: status, what it means by that, and what we make of it."""

KNOWN = [(way, said) for way in WAYS for said in TROUBLE if said != "429 spent" or "spent" in way.profile.codes]


@some(KNOWN, "said")
def test_refusals_are_of_the_class_that_says_what_to_do(provider, said, once):
    status, what, kind = TROUBLE[said]
    profile = provider.profile
    kind = profile.kinds.get(said, kind)
    headers = {"Retry-After": "7"} | ({profile.request_id: "req-1"} if profile.request_id else {})
    provider.wire.answer = lambda request: provider.wire.Reply(profile.error(status, what), status, headers)
    error = provider.failure()
    assert type(error) is kind and error.status == status
    assert profile.words(status, what) in str(error) and str(status) in str(error) and provider.url in str(error)
    assert error.retry_after == (7 if profile.says_when else None)
    assert error.request_id == ("req-1" if profile.request_id else None)
    assert error.code == profile.codes.get(what, error.code)
    assert len(provider.wire.requests) == error.attempts == 1
    harmless(error)


BROKEN = {
    "cut off": '{"choices": [',
    "empty": "",
    "null": "null",
    "a list": "[]",
    "an empty object": "{}",
    "a text": '"busy"',
    "a page": "<html>Bad gateway</html>",
}


@some([(way, broken) for way in TRANSPORTS for broken in (*BROKEN, *["an error"] * way.profile.reads_errors)], "broken")
def test_an_answer_that_is_none_is_bad_weather(provider, broken, once):
    provider.wire.answer = lambda request: provider.wire.Reply(BROKEN.get(broken, provider.profile.error(529)))
    error = provider.failure()
    assert type(error) is Transient and len(provider.wire.requests) == 1
    assert error.status == 200 or not provider.profile.reads_errors
    assert provider.url in str(error)
    harmless(error)


@only([way for way in TRANSPORTS if way.profile.reads_errors])
def test_an_error_that_is_no_json(provider, once):
    page = provider.wire.Reply("<html>Bad gateway</html>", 502, {"Content-Type": "text/html"})
    provider.wire.answer = lambda request: page
    error = provider.failure()
    assert type(error) is Transient and error.status == 502 and "Bad gateway" in str(error)
    harmless(error)


@only([way for way in TRANSPORTS if way.profile.limits])
def test_limits_are_known_from_answers_and_from_refusals(provider):
    limits, reply = provider.profile.limits, provider.reply("Madrid.")
    reply.headers = reply.headers | limits | {"x-other": "1"}
    refusal = provider.wire.Reply(provider.profile.error(429), 429, limits)
    provider.wire.script(reply, refusal)
    output = asyncio.run(provider.llm().agenerate(CHAT))
    assert output.headers == limits and (output.seconds > 0 or provider.profile.package == "litellm")
    with pytest.raises(Throttled) as caught:
        asyncio.run(provider.llm().agenerate(CHAT))
    assert caught.value.headers == limits


@only([way for way in TRANSPORTS if way.profile.silence()])
def test_an_answer_without_choices_is_bad_weather(provider, once):
    provider.wire.answer = lambda request: provider.wire.Reply(provider.profile.silence())
    assert type(provider.failure()) is Transient


@only(TRANSPORTS)
def test_a_prompt_that_a_filter_stops_costs_only_its_own_answer(provider, once):
    status, body = provider.profile.blocked()
    provider.wire.script(provider.wire.Reply(body, status))
    bad, good = provider.llm(max_concurrency=1).generate([chat("Bad."), chat("Good.")])
    assert bad == [None] and good == ["Madrid."] and good.error is None
    assert type(bad.error) is Rejected if status != 200 else bad.finish_reasons == ["content_filter"]


@only(TRANSPORTS)
def test_a_server_that_takes_too_long(provider, once):
    provider.ask()
    provider.wire.answer = lambda request: provider.wire.Reply(delay=20)
    started = time.monotonic()
    error = provider.failure(timeout=0.1)
    assert type(error) is Transient and time.monotonic() - started < 10
    assert "within 0.1 s" in str(error) or "`timeout`" in str(error)
    harmless(error)


@only([way for way in TRANSPORTS if way in REMOTE])
def test_a_server_that_is_not_there(provider, once):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: refused, and nobody else gets the port
        error = provider.failure(f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert type(error) is Transient and error.attempts == 1
    harmless(error)


@only(REMOTE)
def test_an_address_that_is_none_is_said_at_once(provider, pauses):
    error = provider.failure("ftp://nonsense")
    assert type(error) is Fatal and "nonsense" in str(error) and "`base_url`" in str(error) and not pauses
    harmless(error)


@only(REMOTE)
def test_a_key_with_a_line_break_is_said_at_once_and_not_shown(provider, pauses):
    fields = provider.way.fields(provider.url)
    error = provider.failure(**{name: f"{KEY}\nX-Other: 1" for name, value in fields.items() if value == KEY})
    assert type(error) is Fatal and not provider.wire.requests and not pauses
    harmless(error)


@only(WAYS)
@pytest.mark.parametrize("status", [302, 307, 308])
def test_a_redirect_is_not_followed(provider, status, pauses):
    """Neither the key nor the headers of a gateway nor the prompt arrive at the host it points to."""
    more = {"default_headers": {"X-Gateway": KEY}} if "default_headers" in provider.cls.model_fields else {}
    with serving() as other:
        place = other.url.replace("127.0.0.1", "localhost")
        location = f"{place.replace('://', f'://me:{KEY}@')}/elsewhere?key={KEY}#{KEY}"
        provider.wire.answer = lambda request: provider.wire.Reply({}, status, {"Location": location})
        error = provider.failure(**more)
        assert not other.requests
    assert type(error) is Fatal and not pauses and len(provider.wire.requests) == 1
    assert f"redirects to `{place.removesuffix('/v1')}` ({status})" in str(error) and "`base_url`" in str(error)
    harmless(error)


def packed(size: int) -> bytes:
    """So many bytes of nothing, made a thousandth of by gzip."""
    packer = zlib.compressobj(wbits=31)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(size // 2**20)) + packer.flush()


@only(TRANSPORTS)
@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_an_answer_that_is_too_large_fails_alone_and_is_never_in_memory(provider, encoding, monkeypatch, pauses):
    monkeypatch.setattr(http, "MAX_RESPONSE_BYTES", 8 * 2**20)
    body = packed(256 * 2**20) if encoding == "gzip" else bytes(9 * 2**20)
    provider.llm().load()
    provider.wire.answer = lambda request: provider.wire.Reply(body, headers={"Content-Encoding": encoding})
    tracemalloc.start()
    try:
        error = provider.failure()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert type(error) is Rejected and "more than 8 MiB" in str(error) and not pauses and error.attempts == 1
    assert peak < 48 * 2**20
    provider.wire.answer = lambda request: provider.reply("Madrid.")
    assert provider.ask() == ["Madrid."]
    harmless(error)


@only(TRANSPORTS)
@pytest.mark.parametrize("wbits", [31, 15, -15], ids=["gzip", "deflate", "deflate without its header"])
def test_an_answer_that_is_compressed_is_read(provider, wbits):
    plain = json.dumps(provider.profile.reply("Madrid. " * 99)).encode()
    packer = zlib.compressobj(wbits=wbits)
    headers = {"Content-Encoding": "gzip" if wbits == 31 else "deflate"} | provider.profile.headers
    provider.wire.script(provider.wire.Reply(packer.compress(plain) + packer.flush(), headers=headers))
    assert provider.ask() == ["Madrid. " * 99]
    (request,) = provider.wire.requests
    assert provider.profile.package == "litellm" or request.headers["accept-encoding"] == "gzip, deflate"


@only([way for way in TRANSPORTS if way in REMOTE])
def test_a_cookie_of_one_key_is_not_sent_with_another(provider):
    provider.wire.answer = lambda request: provider.wire.Reply(
        provider.profile.reply("Madrid."), headers=provider.profile.headers | {"Set-Cookie": "whose=first; Path=/"}
    )
    fields = provider.way.fields(provider.url.replace("127.0.0.1", "localhost"))  # aiohttp keeps none of an IP address
    for key in ("sk-of-the-first-one", "sk-of-the-second"):
        provider.ask(**{name: key if value == KEY else value for name, value in fields.items()})
    assert [request.headers.get("cookie") for request in provider.wire.requests] == [None, None]


@only(TRANSPORTS)
@pytest.mark.parametrize("how", ["before", "in the middle"])
def test_a_server_that_hangs_up(provider, how, once):
    torn = {"body": "{}", "headers": {"Content-Length": "999", "Connection": "close"}}
    provider.wire.answer = lambda request: provider.wire.Reply(**{"drop": True} if how == "before" else torn)
    error = provider.failure(timeout=5)
    assert type(error) is Transient and error.attempts == 1
    harmless(error)


@only(TRANSPORTS)
@pytest.mark.parametrize("asked", [None, 0.1], ids=["when it likes", "after a while"])
def test_throttling_is_waited_out(provider, asked):
    headers = {"Retry-After": f"{asked}"} if asked else {}
    refusal = provider.wire.Reply(provider.profile.error(429), 429, headers)
    provider.wire.script(refusal, refusal)
    provider.llm().load()
    started = time.monotonic()
    output = provider.ask()
    assert output == ["Madrid."] and output.attempts == 3 and output.error is None
    if asked and provider.profile.says_when:
        assert 2 * asked <= time.monotonic() - started


@only(TRANSPORTS)
def test_bad_weather_passes(provider, pauses):
    broken = provider.wire.Reply(provider.profile.error(500), 500)
    provider.wire.script(broken, provider.wire.Reply(drop=True), provider.wire.Reply("{"))
    output = provider.ask()
    assert output == ["Madrid."] and output.attempts == 4 and len(pauses) == 3 and 0 < min(pauses) <= max(pauses) < 10
    assert len(provider.wire.requests) == 4  # none that an SDK sent by itself


@only(TRANSPORTS)
def test_a_fatal_error_stops_all_others(provider):
    provider.wire.answer = lambda request: provider.wire.Reply(provider.profile.error(401, "key"), 401)
    with pytest.raises(Fatal, match="401"):
        provider.llm(max_concurrency=4).generate([CHAT] * 100)
    assert len(provider.wire.requests) <= 8


def test_the_key_is_in_no_log_and_no_file(provider, caplog):
    caplog.set_level(logging.DEBUG)
    for status in (200, 500, 429, 400, 401):
        broken = provider.wire.Reply(provider.profile.error(status), status)
        provider.wire.script(*[broken] * (status != 200))
        with contextlib.suppress(Fatal):
            provider.llm().generate_outputs([chat(f"{status}")])
    assert len(provider.wire.requests) == 7 and KEY not in caplog.text
    files = [file for file in store.path().parent.rglob("*") if file.is_file()]
    assert files and not any(KEY.encode() in file.read_bytes() for file in files)


# ------------------------------------------------------------------------------------------- from wherever it is called


@pytest.mark.slow
@only(TRANSPORTS)
def test_five_hundred_requests_are_in_flight_at_once_and_stay_in_order(provider):
    everybody = threading.Barrier(500)

    def answer(request: Any) -> Any:
        everybody.wait(timeout=30)
        return provider.reply(provider.profile.chat(request.body)[-1][1])

    provider.wire.answer = answer
    texts = [f"{number}" for number in range(500)]
    outputs = provider.llm(timeout=60, max_concurrency=500).generate([chat(text) for text in texts])
    assert outputs == [[text] for text in texts] and provider.wire.peak == 500
    assert all(output.attempts == 1 for output in outputs)


@only(TRANSPORTS)
def test_connections_are_kept(provider):
    llm = provider.llm(max_concurrency=4)
    for _ in range(2):
        llm.generate([CHAT] * 20)
        assert len(provider.wire.connections) <= 4


@only(TRANSPORTS)
def test_connections_that_went_away_in_between_are_opened_again(provider):
    llm = provider.llm(max_concurrency=4)
    for _ in range(2):
        assert llm.generate([CHAT] * 8) == [["Madrid."]] * 8
        for connection in list(provider.wire.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@only(TRANSPORTS)
def test_equal_models_share_their_clients_whatever_their_time_outs(provider):
    provider.llm(timeout=20).generate([CHAT])
    clients = set(event_loop._loop_thread().clients)
    provider.llm(timeout=21).generate([CHAT])
    asyncio.run(provider.llm(timeout=22).agenerate(CHAT))
    assert set(event_loop._loop_thread().clients) == clients


SCRIPT = """
import importlib, json, sys

for module, name, fields in json.load(sys.stdin):
    llm = getattr(importlib.import_module(module), name)(**fields)
    print(*llm.generate([[{"role": "user", "content": "Capital of Spain?"}]] * 5)[4])
"""


@pytest.mark.slow
def test_a_script_ends_without_a_word_about_what_it_left_open(monkeypatch):
    with contextlib.ExitStack() as stack:
        asked = [Provider(way, stack.enter_context(serving()), monkeypatch) for way in TRANSPORTS if way in REMOTE]
        models = [(each.cls.__module__, each.cls.__name__, each.way.fields(each.url)) for each in asked]
        command = [sys.executable, "-W", "error::ResourceWarning", "-c", SCRIPT]
        done = subprocess.run(command, cwd=ROOT, input=json.dumps(models), capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr, done.returncode) == ("Madrid.\n" * len(asked), "", 0)


@only(TRANSPORTS)
def test_from_many_threads_at_once(provider):
    provider.echoes()
    llm = provider.llm()
    answers: dict[int, Any] = {}
    ask = lambda number: answers.update({number: llm.generate([chat(f"{number} {at}") for at in range(5)])})  # noqa: E731
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: [[f"{number} {at}"] for at in range(5)] for number in range(8)}


@only(TRANSPORTS)
def test_inside_a_running_loop_and_on_loops_of_the_callers_own(provider):
    provider.echoes()
    llm = provider.llm()

    async def notebook() -> Any:
        return llm.generate([chat("a"), chat("b")])

    async def script() -> Any:
        return await asyncio.gather(*(llm.agenerate(chat(str(number))) for number in range(10)))

    for _ in range(2):
        assert asyncio.run(notebook()) == [["a"], ["b"]]
        assert asyncio.run(script()) == [[str(number)] for number in range(10)]
    assert pickle.loads(pickle.dumps(llm)) == llm


def test_one_that_cannot_be_closed_keeps_no_other_open(monkeypatch):
    monkeypatch.setattr(event_loop, "SHUTDOWN_TIMEOUT_S", 0.2)
    told: list[str] = []
    event_loop.close()

    async def close(name: str) -> None:
        if name == "fails":
            raise OSError("gone already")
        if name == "hangs":
            await asyncio.sleep(60)
        told.append(f"{name} is closed")

    async def asks() -> None:
        for name in ("fails", "hangs", "good", "another"):
            event_loop.shared_client(name, lambda: name, close)  # noqa: B023
        try:
            await asyncio.sleep(60)
        finally:
            told.append("who asks is told first")

    def ask() -> None:
        with contextlib.suppress(CancelledError):
            event_loop.run(asks())

    asking = threading.Thread(target=ask)
    asking.start()
    while "good" not in event_loop._loop_thread().clients:
        time.sleep(0.01)
    thread = event_loop._loop_thread().thread
    started = time.monotonic()
    event_loop.close()
    asking.join(timeout=10)
    assert told == ["who asks is told first", "good is closed", "another is closed"]
    assert not thread.is_alive() and time.monotonic() - started < 5


MANY = """
import resource, sys

resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
from llms import OpenAILLM

llm = OpenAILLM(model="m", base_url=sys.argv[1], api_key="k", max_concurrency=300)
outputs = llm.generate([[{"role": "user", "content": "Hi"}]] * 300)
print({(*output, output.attempts) for output in outputs})
"""


@pytest.mark.slow
def test_more_requests_are_in_flight_than_files_may_be_open(wire):
    everybody = threading.Barrier(300)

    def answer(request: Any) -> Any:
        everybody.wait(timeout=60)
        return Wire.Reply()

    wire.answer = answer
    command = [sys.executable, "-c", MANY, wire.url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (done.stdout, wire.peak) == ("{('Madrid.', 1)}\n", 300), done.stderr


LIVES = """
import json, os, sys
from importlib import import_module

llms = {way: getattr(import_module(module), name)(**fields) for way, module, name, fields in json.load(sys.stdin)}
CHAT = [{"role": "user", "content": "What's the capital of Spain?"}]


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in SDKS or name.startswith("google.genai"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


SDKS = {"anthropic", "azure", "cohere", "groq", "litellm", "mistralai", "ollama", "openai", "together"}


def ask(life):
    said = {}
    for way, llm in llms.items():
        try:
            llm.load()
            said[way] = llm.generate([CHAT])[0][0]
        except Exception as error:
            said[way] = f"{type(error).__name__}: {error}"
    print(json.dumps({life: said}), flush=True)


def in_a_child(life):
    if not (child := os.fork()):
        ask(life)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


sys.meta_path.insert(0, missing := Missing())
in_a_child("no SDK")
sys.meta_path.remove(missing)
ask("parent")
in_a_child("child")
ask("parent again")
"""
"""Asks every model in a process without any SDK, in one that forks, in its child, and once more."""


@pytest.fixture(scope="module")
def lives() -> Iterator[Callable[[Provider], dict[str, str]]]:
    """What each said in each of its lives."""
    profiles = {way.profile.path: way.profile for way in REMOTE}

    def answer(request: Any) -> Any:
        path = request.path.partition("?")[0]
        return Wire.Reply(next(profiles[end] for end in profiles if path.endswith(end)).reply("Madrid."))

    with serving() as server:
        server.answer = answer
        url = server.url.removesuffix("/v1")
        done = subprocess.run(
            [sys.executable, "-c", LIVES],
            input=json.dumps([(f"{way}", way.cls.__module__, way.cls.__name__, way.fields(url)) for way in REMOTE]),
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    said: dict[str, dict[str, str]] = {}
    for line in done.stdout.splitlines():
        said |= json.loads(line)
    yield lambda provider: {life: texts[str(provider.way)] for life, texts in said.items()}


@pytest.mark.slow
@only(REMOTE)
def test_in_a_forked_child_and_afterwards_in_its_parent(provider, lives):
    texts = lives(provider)
    assert [texts[life] for life in ("parent", "child", "parent again")] == ["Madrid."] * 3


def test_a_missing_package_is_named_for_a_class_of_ones_own_too(monkeypatch):
    class Mine(AzureOpenAILLM):
        """In a module that no extra is named like."""

    monkeypatch.setitem(sys.modules, "azure.identity.aio", None)
    with pytest.raises(Fatal, match=r"`Mine` needs the `azure.identity.aio` package: .*'distilflow\[azure\]'"):
        Mine(model="m", base_url="http://here", azure_identity=True).load()


@pytest.mark.slow
@only(REMOTE)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(provider, lives):
    said = lives(provider)["no SDK"]
    if provider.profile.package is None:  # the direct wire needs none
        assert said == "Madrid."
    else:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        extra = provider.cls.__module__.rpartition(".")[2]
        assert extra in extras
        cure = rf"needs the `[\w.]+` package: `pip install 'distilflow\[{extra}\]'`\."
        assert re.fullmatch(rf"Fatal: `{provider.cls.__name__}` {cure}", said)


# ------------------------------------------------------------------------------------- a server that nobody here wrote

SPOKEN = {
    "AnthropicLLM": ("/anthropic", "claude-sonnet-5-5", "tool"),  # it does not know of `output_config`
    "AnyscaleLLM": ("", "gpt-4o", None),
    "CohereLLM": ("/cohere", "command-a-03-2025", None),
    "GroqLLM": ("/groq", "llama-3.3-70b-versatile", None),
    "InferenceEndpointsLLM": ("", "gpt-4o", None),
    "MistralLLM": ("/mistral", "mistral-small-latest", None),
    "OpenAILLM": ("/v1", "gpt-4o", None),
    "TogetherLLM": ("/together", "meta-llama/Llama-3.3-70B-Instruct-Turbo", None),
}
"""Where llmock speaks like whom, a model it knows there, and the way it holds that to a schema."""


@pytest.fixture(scope="module")
def llmock() -> Iterator[str]:
    """The address of a server that speaks like many."""
    pytest.importorskip("llmock")
    port = reserve_port()
    start = f"from llmock.cli import app; app(['serve', '--port', '{port}', '--log-level', 'error'])"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", start], **quiet) as server:
        try:
            for _ in range(300):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


@pytest.mark.parametrize("way", [way for way in REMOTE if str(way) in SPOKEN], ids=str)
def test_a_server_that_nobody_here_wrote_understands_it(way, llmock):
    path, name, mode = SPOKEN[str(way)]
    fields = {"api_key": KEY, "base_url": llmock + path, "model": name}
    (output,) = way.cls(**fields).generate([TURNS], 2, max_new_tokens=50, temperature=0.5)
    assert len(output) == 2 and all(output) and output.finish_reasons == ["stop"] * 2 and output.error is None
    assert output.usage.input_tokens > 0 and output.usage.output_tokens > 0
    (output,) = way.cls(**fields, structured_output={"schema": SCHEMA}, structured_mode=mode).generate([CHAT])
    assert json.loads(output[0]).keys() == {"name", "number"} and output.attempts == 1


# ---------------------------------------------------------------------------------------------------- a thirteenth one

THIRTEENTH = '''"""A provider that speaks like OpenAI."""

from pydantic import HttpUrl

from llms.openai import OpenAILLM


class ThirteenthLLM(OpenAILLM):
    """Models served by somebody else.

    Example:
        ```python
        from llms import ThirteenthLLM

        llm = ThirteenthLLM.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "Thirteenth LLM"
    _documentation_url = HttpUrl("https://docs.example.com/chat")
    _logo_url = HttpUrl("https://example.com/logo.png")
    _api_key_env = "THIRTEENTH_API_KEY"
    _base_url_env = None
    _default_base_url = "https://api.example.com/v1"
'''
"""All there is to write, besides the name in `llms/__init__.py`."""


@pytest.mark.slow
def test_a_thirteenth_provider_is_one_file_and_its_tests_are_there(tmp_path, record_property):
    shutil.copytree(ROOT / "llms", tmp_path / "llms")
    shutil.copytree(ROOT / "tests", tmp_path / "tests")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "llms" / "thirteenth.py").write_text(THIRTEENTH)
    with (tmp_path / "llms" / "__init__.py").open("a") as exports:
        exports.write('from llms.thirteenth import ThirteenthLLM\n__all__ += ["ThirteenthLLM"]\n')
    apart = "saved or load_reads or structure_given or unknown_way or forked or package"  # slow, and no different
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", f"ThirteenthLLM and not ({apart})"]
        + ["tests/llms/test_llms.py", "tests/llms/test_providers.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout
    appeared = int(re.search(r"(\d+) passed", done.stdout)[1])
    lines = len([line for line in THIRTEENTH.splitlines() if line.strip()])
    record_property("thirteenth", f"{lines} lines, {appeared} tests")
    assert lines < 25 and appeared > 50


@only([way for way in TRANSPORTS if way.profile.reads_errors])
def test_what_was_sent_without_an_answer_is_counted_and_what_was_not_sent_is_not(provider, monkeypatch):
    monkeypatch.setattr(request, "MAX_ATTEMPTS", 1)

    def ask(url: str | None, **fields: Any) -> Any:
        with UsageCollector().activate() as counted:
            failure = provider.failure(url, **fields)
        (used,) = counted.by_model.values()
        assert isinstance(failure, Transient) and used.requests == 1
        return failure, used.unanswered

    provider.ask()  # what it imports is imported
    provider.wire.requests.clear()
    if provider.cls is not LlamaServerLLM:  # its server is of this machine, and bills nothing
        provider.wire.answer = lambda request: provider.wire.Reply(delay=2)
        assert (ask(None, timeout=0.5)[0].timed_out, len(provider.wire.requests)) == (True, 1)
        failure, unanswered = ask(f"http://127.0.0.1:{reserve_port()}")
        assert failure.unsent and not failure.timed_out and unanswered == 0
    provider.wire.answer = lambda request: provider.wire.Reply(drop=True)
    failure, unanswered = ask(None)
    assert not failure.unsent and unanswered == 1


ODD_VALUES = st.sampled_from([None, True, -1, 0, 12.0, 1e308, "12", "", "x", "\ud83d", [], [None], {}, {"a": 1}, [[]]])


def change(reply: Any, draw: st.DataObject) -> Any:
    """Put something odd in one place of a reply, or leave that place out."""
    place, parents = reply, list[Any]()
    while isinstance(place, dict | list) and place and (not parents or draw.draw(st.booleans())):
        name = draw.draw(st.sampled_from(list(place) if isinstance(place, dict) else list(range(len(place)))))
        parents.append((place, name))
        place = place[name]
    holder, name = parents[-1]
    if draw.draw(st.booleans()):
        holder[name] = deepcopy(draw.draw(ODD_VALUES))
    else:
        del holder[name]
    return reply


@only(TRANSPORTS)
def test_no_reply_breaks_more_than_its_row_or_lowers_what_is_counted(provider, monkeypatch):
    monkeypatch.setattr(request, "MAX_ATTEMPTS", 1)
    llm = provider.llm()

    @settings(max_examples=50, deadline=None)
    @given(st.data(), st.integers(1, 3))
    def check(data, changes):
        reply = json.loads(json.dumps(provider.profile.reply("Madrid.")))
        for _ in range(changes):
            reply = change(reply, data) if reply else reply
        provider.wire.script(provider.wire.Reply(json.dumps(reply), headers=provider.profile.headers))
        with UsageCollector().activate() as counted:
            (output,) = llm.generate([CHAT])
        assert len(output) == 1 and (output.error is None or isinstance(output.error, LLMError))
        assert output == [None] if output.error else isinstance(output[0], str | None)
        (used,) = counted.by_model.values()
        assert used.requests == 1 and used.usage == output.usage
        assert all(isinstance(each, int) and each >= 0 for each in astuple(output.usage))

    check()
