"""llama.cpp's own server in this process: the model that needs no key, GPU, compiler or download."""

import asyncio
import logging
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, HttpUrl

from llms import chat_completions, demo, local
from llms.base import AsyncLLM, StructuredLLM
from llms.chat_completions import ChatOptions
from llms.errors import Fatal
from llms.packages import package
from llms.typing import ChatType, GenerateOutput

logger = logging.getLogger(__name__)


@dataclass
class _Server:
    """A running server and the key it was given: others on this machine cannot ask it."""

    server: Any
    key: str

    @property
    def url(self) -> str:
        return f"{self.server.listening_address}/v1"


class LlamaServerLLM(AsyncLLM, StructuredLLM):
    """Any GGUF model, served by llama.cpp inside this process; a small demo model when none is named.

    The server starts on first use (a tenth of a second), batches continuously, holds answers to JSON schemas and ends
    with the process. Equal blocks share one.

    Example:
        ```python
        from llms import LlamaServerLLM

        llm = LlamaServerLLM.load("BLOCK_NAME")
        llm.generate([[{"role": "user", "content": "What's the capital of Spain?"}]])
        ```
    """

    _block_type_name = "Llama Server LLM"
    _documentation_url = HttpUrl("https://github.com/ggml-org/llama.cpp/tree/master/tools/server")
    _logo_url = HttpUrl("https://cdn.simpleicons.org/meta")

    model_path: Path | None = Field(
        default=None, description="Path of a GGUF file; the packaged demo model when empty."
    )
    n_ctx: int = Field(default=1024, gt=0, description="Tokens of context of one chat, its answer included.")
    n_parallel: int = Field(default=8, gt=0, description="Chats answered at the same time.")
    n_gpu_layers: int = Field(default=-1, ge=-1, description="Layers on the GPU, where there is one; -1 means all.")
    n_threads: int | None = Field(
        default=None,
        gt=0,
        description="Threads to compute with; llama.cpp's choice when empty, one for the demo model.",
    )
    max_concurrency: int = Field(
        default=32, gt=0, description="Chats sent to the server at once; the others wait here."
    )
    timeout: float = Field(default=600.0, gt=0, description="Seconds to wait for one answer, its turn included.")

    class Options(ChatOptions):
        """Runtime parameters."""

        max_new_tokens: int | None = Field(
            default=None, gt=0, serialization_alias="max_tokens", description="Tokens to generate at most."
        )
        top_k: int | None = Field(default=None, ge=0, description="Sample from this many tokens; 0 means all.")
        min_p: float | None = Field(default=None, ge=0, le=1, description="Least probability beside the likeliest's.")
        repetition_penalty: float | None = Field(
            default=None, serialization_alias="repeat_penalty", description="Against repeating; 1 is none."
        )

    @property
    def model_name(self) -> str:
        """The file's name without its ending, or the demo model's."""
        return self.model_path.stem if self.model_path else demo.NAME

    def ready(self) -> None:
        """Start the server, if it is not up yet."""
        self._server()

    def unload(self) -> None:
        """Stop the server and free its memory."""
        local.free(self._key())

    async def agenerate(self, input: ChatType, num_generations: int = 1, **kwargs: Any) -> GenerateOutput:
        """Answer one chat `num_generations` times, each with a seed of its own when one is given."""
        options = self.options(kwargs)
        seed = getattr(options, "seed", None)
        seeds = [None if seed is None else seed + each for each in range(num_generations)]
        server = await asyncio.to_thread(self._server)
        return GenerateOutput.joined(
            await asyncio.gather(
                *(
                    chat_completions.complete(
                        server.url,
                        {"Authorization": f"Bearer {server.key}"},
                        chat_completions.encode(
                            self, self.model_name, input, 1, options.model_copy(update={"seed": seed})
                        ),
                        self.timeout,
                    )
                    for seed in seeds
                )
            )
        )

    def _key(self) -> tuple[object, ...]:
        return (type(self), self.model_path, self.n_ctx, self.n_parallel, self.n_gpu_layers, self.n_threads)

    def _server(self) -> _Server:
        return local.engine(self._key(), self._start)

    def _start(self) -> _Server:
        xllamacpp = package("xllamacpp", self)
        path = self.model_path or demo.GGUF
        if not path.is_file():
            raise Fatal(f"`LlamaServerLLM` finds no file `{path}`: `model_path` is the path of a GGUF file.")
        if self.model_path is None:
            logger.warning("No model named: `%s` answers, a demo that knows next to nothing.", demo.NAME)
        key = secrets.token_urlsafe()
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = self.n_ctx * self.n_parallel
        params.n_parallel = self.n_parallel
        params.n_gpu_layers = self.n_gpu_layers
        params.cpuparams.n_threads = self.n_threads or (-1 if self.model_path else 1)
        params.verbosity = 0
        params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, [key]
        try:
            return _Server(xllamacpp.Server(params), key)
        except (RuntimeError, ValueError) as error:
            raise Fatal(f"llama.cpp cannot serve `{path}`: {error}") from None
