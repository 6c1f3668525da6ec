"""Fixtures of all tests; the machinery behind them is in `tests/support`."""

import os
import signal
import tempfile
from collections.abc import Iterator

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` leaves it ignored, by children too

_home = tempfile.TemporaryDirectory(prefix="prefect-")
os.environ |= {  # before Prefect reads them; the processes that tests start inherit them
    "DISTILFLOW_HOME": _home.name,
    "DO_NOT_TRACK": "1",
    "OMP_NUM_THREADS": "1",
    "PREFECT_HOME": _home.name,
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}
for _name in ("PREFECT_API_KEY", "PREFECT_API_URL", "PREFECT_PROFILE"):
    os.environ.pop(_name, None)

import pytest  # noqa: E402
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings  # noqa: E402
from prefect.testing.utilities import prefect_test_harness  # noqa: E402

from llms.clients import event_loop  # noqa: E402
from tests.support.openai_server import OpenAIServer, running  # noqa: E402
from tests.support.wire import Wire, listening  # noqa: E402

event_loop._raise_file_limit()  # the wire is in this process too, with as many connections

PROVIDERS = ("ANTHROPIC_", "AZURE_OPENAI_", "GOOGLE_", "HF_TOKEN", "OLLAMA_", "OPENAI_")
"""How variables begin that a provider's SDK reads."""


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, address or proxy from the environment reaches a test."""
    for name in os.environ:
        ending = name.upper().endswith(("_API_KEY", "_API_URL", "_BASE_URL", "_PROXY"))
        if (ending and not name.startswith("PREFECT_")) or name.startswith(PROVIDERS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", os.devnull)
    monkeypatch.setenv("HF_TOKEN_PATH", os.devnull)


@pytest.fixture(autouse=True)
def empty_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No answer of one test is another's, and no result."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("DISTILFLOW_HOME", str(home))
    monkeypatch.setenv("PREFECT_LOCAL_STORAGE_PATH", str(home / "results"))  # for processes that are started
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: home / "results"}):
        yield


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A Prefect server of the tests' own, with an empty database."""
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def openai_server() -> Iterator[OpenAIServer]:
    """llama.cpp's own server with the demo model."""
    with running() as server:
        yield server


@pytest.fixture
def wire() -> Iterator[Wire]:
    """A provider's server that answers as scripted, and keeps what it was asked."""
    with listening() as server:
        yield server
