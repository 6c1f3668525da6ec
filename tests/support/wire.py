"""A provider's server for tests: answers as scripted, and keeps what it was asked."""

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Request:
    """What came over the wire; the names of headers are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Reply:
    """What goes back: a dictionary as JSON, a text or bytes as they are; `None` is one completion that honours `n`."""

    body: dict[str, Any] | str | bytes | None = None
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
        payload = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
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


@contextmanager
def listening() -> Iterator[Wire]:
    """A server that answers until the block ends."""
    server = Wire()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.hang_up()
