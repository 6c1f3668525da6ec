"""What is secret by its name or its place in a URL, and that it is hidden wherever it is."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from llms import OpenAILLM
from llms.config.redaction import hide_secrets, is_secret_name, redact, secrets_of

PLANTED = "sk-planted-4711-0815"
SECRET = [
    "api_key",
    "apiKey",
    "X-Api-Key",
    "token",
    "accessToken",
    "gateway_token",
    "hf-token",
    "password",
    "PGPASSWORD",
]
SECRET += [
    "client_secret",
    "Authorization",
    "proxy-authorization",
    "credentials",
    "aws_secret_access_key",
    "private_key",
]
SECRET += [
    "OPENAI_API_KEY",
    "OPENAI_API_KEY_2",
    "OPENAI_API_KEY2",
    "OPENAI_API_KEY_PROD",
    "COMETAPI_KEY",
    "HF_TOKEN_OLD",
]
HARMLESS = ["max_tokens", "budget_tokens", "stop_token_ids", "eos_token", "pad_token", "tokenizer", "prompt_cache_key"]
HARMLESS += ["key", "keys", "keep_alive", "secretary", "token_limit", "group_key", "model", "TOKENIZERS_PARALLELISM"]


@pytest.mark.parametrize(("name", "secret"), [(each, True) for each in SECRET] + [(each, False) for each in HARMLESS])
def test_a_secret_is_known_by_its_name(name: str, secret: bool) -> None:
    assert is_secret_name(name) == secret


def nested(leaf: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.sampled_from(["extra_body", "gateway", "headers", "a", "b"])
    return st.recursive(leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3))


PLACES = st.sampled_from(SECRET).flatmap(
    lambda name: st.sampled_from([PLANTED, [PLANTED], {"a": PLANTED}]).map(lambda value: {name: value})
) | st.sampled_from(
    [
        f"https://me:{PLANTED}@host/v1",
        f"see https://host/v1?a=1&key={PLANTED}#x",
        f"//h?X-Amz-Signature={PLANTED}",
        {"key": PLANTED},
    ]
)


@given(nested(PLACES | st.sampled_from([1, None, True, "plain"])))
def test_a_secret_is_hidden_wherever_it_is(value: Any) -> None:
    hidden = hide_secrets(value)
    assert PLANTED not in json.dumps(hidden)
    assert hide_secrets(hidden) == hidden


@given(
    nested(st.sampled_from([1, 0.5, None, True, "plain", "https://host/v1?a=1", {"max_tokens": 3}, {"key": "topic"}]))
)
def test_what_is_no_secret_stays(value: Any) -> None:
    assert hide_secrets(value) == value


def test_columns_and_properties_of_a_schema_may_be_called_anything() -> None:
    schema = {"type": "object", "properties": {"password": {"type": "string"}}, "$defs": {"token": {"type": "null"}}}
    value = {"input_mappings": {"token": "column", "key": "a column with a long name"}, "schema": schema}
    assert hide_secrets(value) == value


def test_a_secret_of_a_body_or_a_second_key_is_not_repeated_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY_2", "sk-the-second-key")
    body = {"gateway": [{"token": PLANTED}]}
    llm = OpenAILLM(
        model="m", default_headers={"X-Gateway": SecretStr("sk-of-a-header")}, generation_kwargs={"extra_body": body}
    )
    for secret in (PLANTED, "sk-the-second-key", "sk-of-a-header"):
        assert redact(f"what is wrong is {secret}", secrets_of(llm)) == "what is wrong is ***"
