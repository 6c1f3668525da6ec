"""Validation: jsonschema's verdicts and Python's patterns, with an end, and without holding up other requests."""

import json
import re
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema.validators import validator_for

from llms import OpenAILLM, Rejected
from llms.structured import validation
from llms.structured.validation import TOO_SLOW, validation_error
from llms.typing import GenerateOutput

CHAT = [{"role": "user", "content": "?"}]
EXPLODES, TEXT = "^(a|aa)+$", "a" * 60 + "!"
"""A pattern, and a text on which it takes longer than the age of the universe."""

names = st.text("ab1_", min_size=1, max_size=3)
patterns = st.sampled_from(["^a", "b$", r"\d", "[^a]", "^(a|b)+$", "(?i)A", "a{1,2}$", "."])
leaves = st.one_of(st.none(), st.integers(-2, 2), st.text("ab1", max_size=3))
rules = st.one_of(
    st.booleans(), st.builds(lambda p: {"type": "string", "pattern": p}, patterns), st.just({"type": "integer"})
)
schemas = st.fixed_dictionaries(
    {"type": st.sampled_from(["object", ["object", "string"]])},
    optional={
        "$schema": st.sampled_from(
            ["https://json-schema.org/draft/2020-12/schema", "http://json-schema.org/draft-07/schema#"]
        ),
        "properties": st.dictionaries(names, rules, max_size=2),
        "patternProperties": st.dictionaries(patterns, rules, max_size=2),
        "additionalProperties": rules,
        "unevaluatedProperties": rules,
        "propertyNames": st.builds(lambda p: {"pattern": p}, patterns),
        "allOf": st.lists(st.fixed_dictionaries({"patternProperties": st.dictionaries(patterns, rules)}), max_size=1),
    },
)


@given(schemas, st.one_of(leaves, st.dictionaries(names, leaves, max_size=3)))
def test_verdicts_are_those_of_jsonschema(schema: dict[str, Any], value: Any) -> None:
    found = validation_error({"format": "json", "schema": schema}, json.dumps(value))
    assert (found is None) == validator_for(schema)(schema).is_valid(value), found


@pytest.mark.parametrize(
    "pattern", ["a{e}", "(?:ab){i}", "x{d<=1}", r"\\{e}", r"[{s]+", "a{2}", "a{,2}", r"\N{DIGIT ONE}", "(?i)ab"]
)
def test_texts_match_as_in_python(pattern: str) -> None:
    texts = ["a", "aa", "ab", "AB", "a{e}", "ab{i}", "abc", "x{d<=1}", "x", "", "\\", "\\{e}", "{e}", "{s", "1", "b"]
    matching = [text for text in texts if re.fullmatch(pattern, text)]
    structure: Any = {"format": "regex", "schema": pattern}
    assert [text for text in texts if validation_error(structure, text) is None] == matching


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string", "pattern": EXPLODES}, TEXT),
        ({"items": {"pattern": EXPLODES}}, [TEXT] * 100),
        ({"patternProperties": {EXPLODES: True}}, {TEXT: 1}),
        ({"patternProperties": {EXPLODES: True}, "additionalProperties": False}, {TEXT: 1}),
        ({"unevaluatedProperties": False, "patternProperties": {EXPLODES: True}}, {TEXT: 1}),
        ({"propertyNames": {"pattern": EXPLODES}}, {TEXT: 1}),
        (
            {"$schema": "https://json-schema.org/draft/2020-12/schema", "items": {"$ref": "#"}, "pattern": EXPLODES},
            [[TEXT]],
        ),
    ],
)
@pytest.mark.timeout(60)
def test_a_check_has_an_end(monkeypatch: pytest.MonkeyPatch, schema: dict[str, Any], value: Any) -> None:
    monkeypatch.setattr(validation, "VALIDATION_TIMEOUT_S", 0.1)
    assert validation_error({"format": "json", "schema": schema}, json.dumps(value)) == TOO_SLOW
    assert validation_error({"format": "regex", "schema": EXPLODES}, TEXT) == TOO_SLOW


@pytest.mark.timeout(120)
def test_a_slow_check_holds_up_no_other_request(wire: Any) -> None:
    """Its row fails with a sentence, while others are asked and answered."""
    answers = {"slow": json.dumps({"text": TEXT}), "quick": "fine"}
    wire.answer = lambda request: wire.Reply(wire.completion(answers[request.body["model"]]))
    schema = {"type": "object", "properties": {"text": {"type": "string", "pattern": EXPLODES}}, "required": ["text"]}
    slow = OpenAILLM(
        model="slow", base_url=wire.url, api_key="k", structured_output={"schema": schema}, max_schema_retries=0
    )
    outputs: list[GenerateOutput] = []
    checking = Thread(target=lambda: outputs.extend(slow.generate([CHAT])))
    checking.start()
    quick = OpenAILLM(model="quick", base_url=wire.url, api_key="k")
    for number in range(5):
        assert quick.generate([[{"role": "user", "content": f"{number}"}]]) == [["fine"]]
    assert not outputs, "the check of the slow one ended before"
    checking.join()
    (output,) = outputs
    assert output == [None] and isinstance(output.error, Rejected) and TOO_SLOW in str(output.error)
