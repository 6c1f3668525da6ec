"""llama.cpp's own server in this process: the model that needs no key, GPU, compiler or download."""

import asyncio
import logging
import secrets
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, HttpUrl

from llms import demo, local
from llms.base import AsyncLLM
from llms.clients import chat_completions
from llms.config.extras import import_optional
from llms.config.strict import StrictModel
from llms.errors import Fatal
from llms.local.base import EngineKey, LocalLLM
from llms.local.llama_cpp.server import LlamaServer
from llms.options import ChatOptions, MaxNewTokens, MinP, TopKOrAll
from llms.structured.gbnf import compile_grammar
from llms.structured.validation import validation_error
from llms.typing import ChatType, GenerateOutput, HiddenState

logger = logging.getLogger(__name__)


class LlamaServerLLM(AsyncLLM, LocalLLM):
    """Any GGUF model, served by llama.cpp inside this process; a small demo model when none is named.

    The server starts on first use (a tenth of a second), batches continuously, holds answers to JSON schemas and
    patterns, and ends with the process. Equal blocks share one.

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
    timeout: float = Field(default=600.0, gt=0, description="Seconds to wait for one answer, its turn included.")  # type: ignore[override]

    packages: ClassVar[tuple[str, ...]] = ("xllamacpp",)
    max_generations_per_request: ClassVar[int | None] = 1

    class Options(ChatOptions):
        """Runtime parameters."""

        max_new_tokens: MaxNewTokens = Field(
            default=None, serialization_alias="max_tokens", description="Tokens to generate at most."
        )
        top_k: TopKOrAll = None
        min_p: MinP = None
        repetition_penalty: float | None = Field(
            default=None, serialization_alias="repeat_penalty", description="Against repeating; 1 is none."
        )

    @property
    def model_name(self) -> str:
        """The file's name without its ending, or the demo model's."""
        return self.model_path.stem if self.model_path else demo.NAME

    def prepare(self) -> None:
        """Start the server, if it is not up yet.

        Raises:
            Fatal: If there is no such file, or the `structured_output` cannot be compiled.
        """
        if self.structured_output:
            compile_grammar(self.structured_output)
        self._server()

    async def agenerate(self, input: ChatType, num_generations: int = 1, **kwargs: Any) -> GenerateOutput:
        """Answer one chat `num_generations` times.

        The server constrains a text to a structure, but does not complete it within `max_new_tokens`, or the context
        where that is empty: one that is cut is requested once more, with a grammar of texts that are short enough.

        Raises:
            Fatal: If `max_new_tokens` is too small for the `structured_output`.
        """
        server = await asyncio.to_thread(self._server)
        options = self.options(kwargs)
        complete = partial(self._complete, server, input, num_generations, options)
        if not self.structured_output:
            return await complete({})
        grammar = compile_grammar(self.structured_output)
        max_tokens = options.model_dump()["max_new_tokens"] or self.n_ctx
        path = await asyncio.to_thread(server.token_path, grammar.shortest_text)
        if max_tokens < path.num_tokens:
            raise Fatal(
                f"`structured_output` needs `max_new_tokens` of {path.num_tokens} or more: {max_tokens} is too small."
            )
        output = await complete({"grammar": str(grammar)})
        room = min(max_tokens, self.n_ctx - output.usage.input_tokens)
        if await asyncio.to_thread(self._is_cut, output) and room >= path.num_tokens:
            shorter = await complete(grammar.closing_request(room, path))
            shorter.usage, shorter.seconds = output.usage + shorter.usage, output.seconds + shorter.seconds
            return shorter
        return output

    async def _complete(
        self,
        server: LlamaServer,
        chat: ChatType,
        num_generations: int,
        options: StrictModel,
        constraint: dict[str, Any],
    ) -> GenerateOutput:
        body = chat_completions.encode(self.model_name, chat, num_generations, options, {}) | constraint
        if constraint:  # the server takes one of them
            body.pop("response_format", None)
        return await chat_completions.complete(
            f"{server.base_url}/chat/completions", server.headers, body, self.timeout
        )

    def _is_cut(self, output: GenerateOutput) -> bool:
        """Return whether a text was cut before it satisfied the structure."""
        structure = self.structured_output
        return any(
            reason == "length" and structure and validation_error(structure, text or "")
            for text, reason in zip(output, output.finish_reasons, strict=True)
        )

    def prepare_hidden_states(self) -> None:
        """Start the server of hidden states, and no other."""
        self._hidden_state_server()

    def get_last_hidden_state(self, inputs: list[ChatType]) -> list[HiddenState]:
        """Compute the last hidden state of every chat under its template, `[num_tokens, hidden_size]` each.

        Raises:
            Rejected: If a chat does not fit in the context.
        """
        server = self._hidden_state_server()
        with ThreadPoolExecutor(self.n_parallel) as threads:
            return list(threads.map(server.hidden_state, inputs))

    def unload(self) -> None:
        """Stop the servers and free their memory."""
        super().unload()
        local.free_engine((*self._engine_key(), "hidden states"))

    def _engine_key(self) -> EngineKey:
        return (type(self), self.model_path, self.n_ctx, self.n_parallel, self.n_gpu_layers, self.n_threads)

    def _server(self) -> LlamaServer:
        return local.shared_engine(self._engine_key(), self._start)

    def _hidden_state_server(self) -> LlamaServer:
        return local.shared_engine((*self._engine_key(), "hidden states"), partial(self._start, hidden_states=True))

    def _start(self, hidden_states: bool = False) -> LlamaServer:
        xllamacpp = import_optional("xllamacpp", self)
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
        if hidden_states:  # of every token, as they are, and as exact as the weights
            params.embedding, params.embd_normalize = True, -1
            params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_NONE
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
            params.n_batch = params.n_ubatch = self.n_ctx
        try:
            return LlamaServer(xllamacpp.Server(params), key)
        except (RuntimeError, ValueError) as error:
            raise Fatal(
                f"llama.cpp cannot serve `{path}`: {error}. Where it is a GGUF file of a model that it knows, memory "
                "ran out: lower `n_ctx`, `n_parallel` or `n_gpu_layers`, or take a smaller quantization."
            ) from None
