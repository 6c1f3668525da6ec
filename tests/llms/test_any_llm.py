"""Secrets in the text that names a model, which Prefect would keep in clear."""

import json

import pytest

from llms.any_llm import find_secret


@pytest.mark.parametrize(
    "name", ["api_key", "default_headers", "azure_ad_token", "token", "clientSecret", "X-Auth-Token"]
)
def test_a_secret_is_found_however_deep_it_is(name: str) -> None:
    options = json.dumps({"extra_body": {"gateway": [{name: "sk-planted-4711"}]}})
    for text in (f"OpenAILLM model=m generation_kwargs={options}", f"OpenAILLM model=m generation_kwargs='{options}'"):
        assert find_secret(text) == name
    assert find_secret(json.dumps({"block_type_slug": "openai-llm", "generation_kwargs": json.loads(options)})) == name


def test_what_is_no_secret_is_not_found() -> None:
    options = json.dumps({"max_new_tokens": 3, "stop": ["password: ", "a=b"], "extra_body": {"eos_token": "<s>"}})
    for text in (
        f"OpenAILLM model=m generation_kwargs={options}",
        "OpenAILLM model=token",
        "api_key=x",
        "openai-llm/token",
    ):
        assert find_secret(text) is None
