"""Fixtures of all tests; the machinery behind them is in `tests/support`."""

import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` leaves it ignored, by children too

for _name in list(os.environ):  # no key, address or proxy of the developer reaches a test
    if _name.upper().endswith(("_API_KEY", "_API_URL", "_BASE_URL", "_PROXY")) or _name.startswith(
        ("ANTHROPIC_", "AZURE_OPENAI_", "GOOGLE_", "HF_TOKEN", "OLLAMA_", "OPENAI_", "PREFECT_PROFILE")
    ):
        del os.environ[_name]

_root = Path(__file__).parents[1]
_home = tempfile.TemporaryDirectory(prefix="prefect-")
os.environ |= {  # before Prefect reads them; the processes that tests start inherit them
    "DISTILFLOW_HOME": _home.name,
    "DO_NOT_TRACK": "1",
    "HF_TOKEN_PATH": os.devnull,
    "NETRC": os.devnull,
    "OMP_NUM_THREADS": "1",
    "PREFECT_HOME": _home.name,
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PYTHONPATH": os.pathsep.join(
        [f"{_root}", f"{_root / 'tests/support/startup'}", *filter(None, [os.getenv("PYTHONPATH")])]
    ),
}
os.environ.setdefault("TEST_RUN_HOME", _home.name)  # of the process that starts the others of pytest-xdist

import pytest  # noqa: E402
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings  # noqa: E402

from llms.clients import event_loop  # noqa: E402
from llms.limits import limiter  # noqa: E402
from tests.support.openai_server import OpenAIServer, running  # noqa: E402
from tests.support.prefect_server import PrefectServer, harness  # noqa: E402
from tests.support.wire import Wire, listening  # noqa: E402

event_loop._raise_file_limit()  # the wire is in this process too, with as many connections

_numbers = count()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """As many as told, or two more than cores, at most four, as tests wait for servers; a few files need none more."""
    places = {Path(each.partition("::")[0]) for each in config.args}
    files = sum(len([*place.rglob("test_*.py")]) if place.is_dir() else 1 for place in places)
    most = int(os.getenv("PYTEST_XDIST_AUTO_NUM_WORKERS") or min((os.cpu_count() or 1) + 2, 4))
    processes = min(files // 8, most)
    return processes if processes > 1 else 0


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the files that take long, so that all processes end together."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow, tests = Counter(), Counter()
        for item in items:
            tests[item.path] += 1
            slow[item.path] += item.get_closest_marker("slow") is not None
        items.sort(key=lambda item: (-slow[item.path], -tests[item.path]))


@pytest.fixture(scope="session")
def results_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of Prefect's results, told to Prefect once: its settings take 30 ms to change."""
    folder = tmp_path_factory.mktemp("prefect") / "results"
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: folder}):
        yield folder


@pytest.fixture(autouse=True)
def empty_caches(results_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer of one test is another's, no result, and no limit: the ports of their servers come again."""
    limiter._limiters.clear()
    shutil.rmtree(results_folder, ignore_errors=True)
    home = results_folder.with_name(f"home-{next(_numbers)}")
    monkeypatch.setenv("DISTILFLOW_HOME", str(home))
    monkeypatch.setenv("PREFECT_LOCAL_STORAGE_PATH", str(results_folder))  # for processes that are started


@pytest.fixture(scope="session")
def prefect_server(results_folder: Path) -> Iterator[None]:
    """A Prefect server of the tests' own, with an empty database."""
    with harness(results_folder.with_name("database")):
        yield


@pytest.fixture(scope="module")
def server(prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A Prefect server with all its services.

    The one of all tests comes first: begun while this one's address is set, it would lose its own with it.
    """
    with PrefectServer(tmp_path_factory.mktemp("prefect")) as server:
        yield server


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
