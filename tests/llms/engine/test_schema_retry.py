"""Answers held to a structure: checked, asked for again, and reported when nothing helps."""

import json
import urllib.request
from typing import Any

import pytest

from llms import OpenAILLM, Price, Rejected, Transient
from llms.structured.output import with_schema_prompt

CHAT = [{"role": "user", "content": "Who is Ada?"}]
OTHER = '{"name": "Bob", "age": 1}'
GOOD, BAD = '{"name": "Ada", "age": 36}', '{"name": "Ada", "age": -1}'


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
}


def model(wire, **fields) -> OpenAILLM:
    return OpenAILLM(model="m", base_url=wire.url, api_key="k", **{"structured_output": {"schema": SCHEMA}, **fields})


def says(wire, *texts, **facts):
    wire.script(*(wire.Reply(wire.completion(text, **facts)) for text in texts))


def test_a_good_answer_is_asked_for_once(wire):
    says(wire, GOOD)
    assert model(wire).generate([CHAT]) == [[GOOD]]
    assert len(wire.requests) == 1


def test_a_bad_answer_is_asked_for_again_with_what_is_wrong(wire):
    says(wire, BAD, GOOD)
    (output,) = model(wire, price=Price(input=1, output=1)).generate([CHAT])
    assert output == [GOOD] and output.attempts == 2 and output.error is None
    *before, answer, objection = wire.requests[1].body["messages"]
    assert before == CHAT and answer == {"role": "assistant", "content": BAD}
    assert "$.age" in objection["content"] and "-1 is less than the minimum of 0" in objection["content"]
    assert output.usage.input_tokens == 18 and output.usage.output_tokens == 8
    assert output.cost == pytest.approx(26e-6)


def test_asked_again_at_most_so_often(wire):
    wire.answer = lambda request: wire.Reply(wire.completion(BAD))
    for retries in (0, 1, 3):
        wire.requests.clear()
        (output,) = model(wire, max_schema_retries=retries).generate([CHAT])
        assert len(wire.requests) == retries + 1 == output.attempts
        assert output == [None] and output.finish_reasons == ["error"]
        assert isinstance(output.error, Rejected) and "$.age" in str(output.error) and BAD in str(output.error)
        assert output.usage.input_tokens == 9 * (retries + 1)  # it was paid for


def test_only_the_bad_generation_is_asked_for_again(wire):
    wire.script(wire.Reply(wire.completion(GOOD, "no JSON", GOOD)), wire.Reply(wire.completion(GOOD)))
    (output,) = model(wire).generate([CHAT], 3)
    assert output == [GOOD] * 3
    assert [request.body.get("n") for request in wire.requests] == [3, None]


def test_an_answer_that_was_cut_is_reported_not_paid_for_again(wire):
    says(wire, '{"name": "Ad', finish_reason="length")
    (output,) = model(wire).generate([CHAT])
    assert len(wire.requests) == 1 and "`max_new_tokens`" in str(output.error)


def test_a_refusal_is_an_outcome(wire):
    says(wire, None, refusal="I cannot help with that.")
    (output,) = model(wire).generate([CHAT])
    assert output == [None] and output.finish_reasons == ["refusal"] and output.error is None
    assert len(wire.requests) == 1


@pytest.mark.parametrize("text", [f"```json\n{GOOD}\n```", f"Sure! Here it is:\n{GOOD}\nAnything else?"])
def test_what_is_wrapped_around_the_json_is_taken_off(wire, text):
    says(wire, text)
    assert model(wire).generate([CHAT]) == [[GOOD]]


def test_bad_answers_are_in_the_store_too_and_none_is_paid_for_twice(wire):
    says(wire, BAD, GOOD)
    llm = model(wire)
    assert llm.generate_outputs([CHAT]) == [[GOOD]]
    (again,) = llm.generate_outputs([CHAT])
    assert again == [GOOD] and again.cached and len(wire.requests) == 2
    wire.answer = lambda request: wire.Reply(wire.completion(BAD))
    other = [{"role": "user", "content": "Who is Bob?"}]
    for _ in range(2):  # the same command goes on with the count of attempts
        (failed,) = llm.generate_outputs([other])
        assert failed == [None] and failed.attempts == 3 and "None of 3 answers" in str(failed.error)
        assert len(wire.requests) == 5
    (failed,) = model(wire, max_schema_retries=4).generate_outputs([other])
    assert failed.attempts == 5 and len(wire.requests) == 7
    wire.answer = lambda request: wire.Reply(wire.completion(GOOD))
    assert model(wire, max_schema_retries=5).generate_outputs([other]) == [[GOOD]] == llm.generate_outputs([other])
    assert len(wire.requests) == 8
    assert llm.generate([other]) == [[GOOD]] and len(wire.requests) == 9, "without the cache all is asked anew"


def test_of_several_generations_only_what_is_missing_or_bad_is_asked_for(wire):
    llm = model(wire, max_schema_retries=0)
    wire.script(wire.Reply(wire.completion(GOOD, BAD, GOOD)))
    assert llm.generate_outputs([CHAT], 3)[0].error
    wire.answer = lambda request: wire.Reply(wire.completion(*[OTHER] * (request.body.get("n") or 1)))
    (output,) = model(wire, max_schema_retries=1).generate_outputs([CHAT], 5)
    assert output == [GOOD, OTHER, GOOD, OTHER, OTHER]
    assert [request.body.get("n") for request in wire.requests] == [3, 2, None]


def test_an_answer_that_was_cut_is_not_paid_for_again_by_the_same_command(wire):
    says(wire, '{"name": "Ad', finish_reason="length")
    for _ in range(2):
        (output,) = model(wire).generate_outputs([CHAT])
        assert len(wire.requests) == 1 and "`max_new_tokens`" in str(output.error)


def test_every_chat_may_have_its_own_structure(wire):
    wire.answer = lambda request: wire.Reply(wire.completion(GOOD))
    other = {"type": "object", "properties": {"name": {"const": "Bob"}}}
    inputs = [CHAT, (CHAT, None), (CHAT, {"schema": other}), (CHAT, {"format": "json", "schema": json.dumps(other)})]
    first, second, third, fourth = model(wire).generate(inputs)
    assert first == second == [GOOD]
    assert third.error and fourth.error and "'Bob' was expected" in str(third.error)


def test_a_structure_that_is_none_costs_its_own_row_only(wire):
    says(wire, GOOD)
    bad, good = model(wire).generate([(CHAT, {"schema": {"type": "objekt"}}), CHAT])
    assert isinstance(bad.error, Rejected) and "objekt" in str(bad.error) and bad.attempts == 0
    assert good == [GOOD] and len(wire.requests) == 1


@pytest.mark.parametrize(
    ("mode", "sent"),
    [
        ("json_schema", {"response_format"}),
        ("tool", {"tools", "tool_choice"}),
        ("json_object", {"response_format"}),
        ("prompt", set()),
    ],
)
def test_every_mode(wire, mode, sent):
    reply = wire.completion(GOOD)
    if mode == "tool":
        call = {"id": "1", "type": "function", "function": {"name": "output", "arguments": GOOD}}
        reply = wire.completion(None, tool_calls=[call])
    wire.script(wire.Reply(reply))
    assert model(wire, structured_mode=mode).generate([CHAT]) == [[GOOD]]
    body = wire.requests[0].body
    assert body.keys() - {"model", "messages"} == sent
    said = json.dumps(SCHEMA) in body["messages"][0]["content"]
    assert said == (mode in ("json_object", "prompt"))


def test_the_schema_is_said_after_what_the_system_says():
    chat = with_schema_prompt([{"role": "system", "content": "Be brief."}, *CHAT], SCHEMA)
    assert chat[0]["content"].startswith("Be brief.\n\n") and len(chat) == 2


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        ({"$ref": "#/$defs/nowhere"}, "nowhere"),
        ({"$ref": "http://127.0.0.1:9/schema.json"}, "127.0.0.1:9"),
    ],
    ids=["a dangling $ref", "a remote $ref"],
)
def test_a_structure_that_no_text_can_be_held_against_costs_its_own_row(wire, monkeypatch, broken, what):
    fetched: list[Any] = []
    monkeypatch.setattr(urllib.request, "urlopen", lambda *words, **_: fetched.append(words))
    wire.answer = lambda request: wire.Reply(wire.completion(GOOD))
    schema = {"type": "object", "properties": {"name": broken}}
    bad, good = model(wire, price=Price(input=1, output=1)).generate([(CHAT, {"schema": schema}), CHAT])
    assert good == [GOOD] and not good.error
    assert bad == [None] and isinstance(bad.error, Rejected) and bad.finish_reasons == ["error"]
    assert "`structured_output` cannot be checked" in str(bad.error) and what in str(bad.error)
    assert bad.usage.input_tokens == 9 and bad.cost  # it was paid for
    assert not fetched and len(wire.requests) == 2
    assert model(wire).generate_outputs([(CHAT, {"schema": schema})])[0].error and len(wire.requests) == 3


def test_a_schema_may_refer_to_the_languages_own(wire):
    says(wire, '{"type": "object"}', '{"type": "objekt"}')
    own = {"$ref": "https://json-schema.org/draft/2020-12/schema"}
    good, bad = (model(wire, max_schema_retries=0, structured_output={"schema": own}).generate([CHAT])[0] for _ in "12")
    assert good == ['{"type": "object"}'] and "objekt" in str(bad.error)


def test_one_deadline_is_for_all_that_an_answer_takes(wire):
    """What is asked for again is part of the same answer."""
    wire.answer = lambda request: wire.Reply(wire.completion(BAD), delay=0.4)
    (output,) = model(wire, deadline=1.0, max_schema_retries=50).generate([CHAT])
    assert isinstance(output.error, Transient) and "`deadline` of 1 s" in str(output.error)
    assert 1 <= len(wire.requests) <= 3
