"""What the tests share: a Prefect server, a real model server, and a wire that says what it is told to."""

import json
import os
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

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
import xllamacpp  # noqa: E402
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings  # noqa: E402
from prefect.testing.utilities import prefect_test_harness  # noqa: E402

from llms import demo  # noqa: E402
from llms.clients import event_loop  # noqa: E402

event_loop._allow_files()  # the wire is in this process too, with as many connections

PROVIDERS = ("ANTHROPIC_", "AZURE_OPENAI_", "GOOGLE_", "HF_TOKEN", "OLLAMA_", "OPENAI_")
"""How variables begin that a provider's SDK reads."""


@pytest.fixture(autouse=True)
def no_keys_of_the_developer(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, address or proxy from the environment reaches a test."""
    for name in os.environ:
        ending = name.upper().endswith(("_API_KEY", "_API_URL", "_BASE_URL", "_PROXY"))
        if (ending and not name.startswith("PREFECT_")) or name.startswith(PROVIDERS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", os.devnull)
    monkeypatch.setenv("HF_TOKEN_PATH", os.devnull)


@pytest.fixture(autouse=True)
def an_empty_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
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


@dataclass
class OpenAIServer:
    """Where an OpenAI-compatible server is, and its key."""

    base_url: str
    api_key: str


@pytest.fixture(scope="session")
def openai_server() -> Iterator[OpenAIServer]:
    """llama.cpp's own server with the demo model: nobody here wrote how it speaks."""
    params = xllamacpp.CommonParams()
    params.model.path = str(demo.GGUF)
    params.n_ctx, params.n_parallel = 4096, 4
    params.cpuparams.n_threads = 1
    params.verbosity = 0
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, ["key-of-the-test"]
    server = xllamacpp.Server(params)
    yield OpenAIServer(f"{server.listening_address}/v1", "key-of-the-test")
    del server


@dataclass
class Request:
    """What came over the wire; the names of headers are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Reply:
    """What goes back: a dictionary as JSON, a text as it is; `None` is one completion that honours `n`."""

    body: dict[str, Any] | str | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drop: bool = False


class Wire(ThreadingHTTPServer):
    """Answers like OpenAI, or as scripted, and remembers what it was asked.

    `wire.script(reply, …)` says what to answer next; after that, and without, `wire.answer(request)` decides.
    """

    request_queue_size = 1024
    daemon_threads = True
    block_on_close = False
    Reply = Reply

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.requests: list[Request] = []
        self.replies: deque[Reply] = deque()
        self.answer: Callable[[Request], Reply] = lambda request: Reply()
        self.in_flight = self.peak = 0
        self.lock = threading.Lock()
        self.connections: set[Any] = set()

    def script(self, *replies: Reply) -> None:
        """What the next requests are answered with, one each."""
        self.replies.extend(replies)

    @staticmethod
    def completion(*texts: str | None, finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
        """A reply with these texts, in the shape of OpenAI's."""
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [
                {
                    "index": index,
                    "message": {"role": "assistant", "content": text, **message},
                    "finish_reason": finish_reason,
                }
                for index, text in enumerate(texts)
            ],
            "usage": {
                "prompt_tokens": 9,
                "completion_tokens": 4 * len(texts),
                "total_tokens": 9 + 4 * len(texts),
                "prompt_tokens_details": {"cached_tokens": 5},
                "completion_tokens_details": {"reasoning_tokens": 2},
            },
        }

    def hang_up(self) -> None:
        """Stop listening, and close what is open."""
        self.shutdown()
        self.server_close()
        for connection in list(self.connections):
            self.shutdown_request(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may go whenever they like."""


class _Handler(BaseHTTPRequestHandler):
    server: Wire
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def do_POST(self) -> None:
        wire = self.server
        text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, json.loads(text or "null"))
        with wire.lock:
            wire.requests.append(request)
            wire.in_flight += 1
            wire.peak = max(wire.peak, wire.in_flight)
            reply = wire.replies.popleft() if wire.replies else None
        try:
            reply = reply or wire.answer(request)
            time.sleep(reply.delay)
        finally:
            with wire.lock:
                wire.in_flight -= 1
        if reply.drop:
            self.close_connection = True
            return
        body = wire.completion(*["Madrid."] * (request.body.get("n") or 1)) if reply.body is None else reply.body
        payload = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(reply.status)
        usual = {"Content-Type": "application/json", "Content-Length": str(len(payload))}
        for name, value in (usual | reply.headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(payload)
        self.wfile.flush()

    do_GET = do_POST

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def wire() -> Iterator[Wire]:
    """A server that says what the test wants, and remembers what it was asked."""
    server = Wire()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.hang_up()
