"""llama.cpp's own server with the demo model: nobody here wrote how it speaks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import xllamacpp

from llms import demo


@dataclass
class OpenAIServer:
    """Where an OpenAI-compatible server is, and its key."""

    base_url: str
    api_key: str


@contextmanager
def running() -> Iterator[OpenAIServer]:
    """A server that answers until the block ends."""
    params = xllamacpp.CommonParams()
    params.model.path = str(demo.GGUF)
    params.n_ctx, params.n_parallel = 4096, 4
    params.cpuparams.n_threads = 1
    params.verbosity = 0
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, ["key-of-the-test"]
    server = xllamacpp.Server(params)
    yield OpenAIServer(f"{server.listening_address}/v1", "key-of-the-test")
    del server
