"""URLs of models: a secret in one is refused before it is recorded anywhere."""

import pytest
from pydantic import ValidationError

from llms import Fatal, OpenAILLM, RemoteLLM
from llms.config.urls import is_loopback, origin
from tests.support.api_profiles import remote, some

PLANTED = "sk-planted-4711-0815"
URLS = [f"https://me:{PLANTED}@host/v1", f"https://{PLANTED}@host", f"me:{PLANTED}@host:8000"]
URLS += [f"https://host/v1?key={PLANTED}", f"https://host/v1#{PLANTED}", "https://host/v1?"]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("cls", remote(), ids=lambda cls: cls.__name__)
def test_a_secret_in_an_address_is_refused_at_once(cls: type[RemoteLLM], url: str) -> None:
    with pytest.raises(ValidationError, match="base_url\n.*an address") as error:
        some(cls, base_url=url)
    assert PLANTED not in str(error.value)


@pytest.mark.parametrize("url", URLS)
def test_a_secret_in_the_environments_address_is_refused_too(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk")
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(Fatal, match="`OPENAI_BASE_URL`: an address") as error:
        OpenAILLM(model="m").load()
    assert PLANTED not in str(error.value)


def test_origins_are_compared_with_scheme_and_port() -> None:
    same = ["https://Host/v1", "https://host", "https://host:443/v1/"]
    assert {origin(url) for url in same} == {"https://host:443"}
    assert (
        len({origin(url) for url in ("https://host", "http://host", "https://host:8443", "https://host.example")}) == 4
    )


@pytest.mark.parametrize(
    ("url", "is_here"),
    [
        ("http://localhost:8000/v1", True),
        ("http://127.0.0.2", True),
        ("http://[::1]:80/v1", True),
        ("localhost:11434", True),
        ("http://localhost.example", False),
        ("http://127.0.0.1.example", False),
        ("http://10.0.0.1", False),
        ("http://[nonsense", False),
    ],
)
def test_what_is_this_machine(url: str, is_here: bool) -> None:
    assert is_loopback(url) == is_here
