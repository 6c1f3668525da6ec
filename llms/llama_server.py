"""llama.cpp's own server in this process: the model that needs no key, GPU, compiler or download."""

import asyncio
import json
import logging
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import numpy as np
from pydantic import Field, HttpUrl

from llms import demo, local
from llms.base import AsyncLLM
from llms.clients import chat_completions
from llms.clients.errors import error_message
from llms.config.extras import import_optional
from llms.config.strict import StrictModel
from llms.errors import Fatal, Rejected
from llms.local.base import LocalLLM
from llms.options import ChatOptions, MaxNewTokens, MinP, TopKOrAll
from llms.structured.gbnf import TokenPath, compile_grammar
from llms.structured.validation import validation_error
from llms.typing import ChatType, GenerateOutput, HiddenState

logger = logging.getLogger(__name__)


@dataclass
class _Server:
    """A running server and the key it was given: others on this machine cannot ask it."""

    server: Any
    key: str
    token_paths: dict[str, TokenPath] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"{self.server.listening_address}/v1"

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Ask one of the server's own questions; no proxy stands in between.

        Raises:
            Rejected: If it refuses.
        """
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        request = Request(f"{self.server.listening_address}{path}", json.dumps(body).encode(), headers)
        try:
            with build_opener(ProxyHandler({})).open(request) as reply:
                return json.load(reply)
        except HTTPError as error:
            message, _ = error_message(error.read().decode(errors="replace"))
            raise Rejected(f"llama.cpp refuses this chat: {message}", status=error.code) from None

    def token_path(self, text: str) -> TokenPath:
        """The tokens by which the model surely writes a text, where nothing else is allowed and the longest come first.

        They are found once.
        """
        if text not in self.token_paths:
            self.token_paths[text] = self._find_token_path(text.encode())
        return self.token_paths[text]

    def _find_token_path(self, text: bytes) -> TokenPath:
        known: dict[bytes, int] = {}
        at = steps = 0
        while at < len(text):
            longest = max((piece for piece in known if text.startswith(piece, at)), key=len, default=b"")
            if not longest and (new := self._tokens(text[at:]).items() - known.items()):
                known |= dict(new)
                at = steps = 0  # what came before may go differently now
                continue
            at, steps = at + max(1, len(longest)), steps + 1
        return TokenPath(steps, {token: len(piece) for piece, token in known.items()})

    def _tokens(self, text: bytes) -> dict[bytes, int]:
        """The tokens that the model reads a text as, by what they spell."""
        body = {"content": text.decode(errors="ignore"), "add_special": False, "with_pieces": True}
        pieces = [(each["piece"], each["id"]) for each in self.post("/tokenize", body)["tokens"]]
        return {piece.encode() if isinstance(piece, str) else bytes(piece): token for piece, token in pieces if piece}


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
            Fatal: If there is no such file, or texts cannot be held to the `structured_output`.
        """
        if self.structured_output:
            compile_grammar(self.structured_output)
        self._server()

    async def agenerate(self, input: ChatType, num_generations: int = 1, **kwargs: Any) -> GenerateOutput:
        """Answer one chat `num_generations` times.

        The server holds a text to a structure, but does not close it within `max_new_tokens`, or the context where that
        is empty: one that was cut is asked for once more, with only those texts allowed that are surely short enough.

        Raises:
            Fatal: If `max_new_tokens` is too small for the `structured_output`.
        """
        server = await asyncio.to_thread(self._server)
        options = self.options(kwargs)
        ask = partial(self._ask, server, input, num_generations, options)
        if not self.structured_output:
            return await ask({})
        grammar = compile_grammar(self.structured_output)
        limit = options.model_dump()["max_new_tokens"] or self.n_ctx
        way = await asyncio.to_thread(server.token_path, grammar.shortest_text)
        if limit < way.num_tokens:
            raise Fatal(
                f"`structured_output` needs `max_new_tokens` of {way.num_tokens} or more: {limit} is too small."
            )
        output = await ask({"grammar": str(grammar)})
        room = min(limit, self.n_ctx - output.usage.input_tokens)
        if self._is_cut_short(output) and room >= way.num_tokens:
            again = await ask(grammar.closing_request(room, way))
            again.usage, again.seconds = output.usage + again.usage, output.seconds + again.seconds
            return again
        return output

    async def _ask(
        self, server: _Server, chat: ChatType, num_generations: int, options: StrictModel, held_to: dict[str, Any]
    ) -> GenerateOutput:
        body = chat_completions.encode(self.model_name, chat, num_generations, options, {}) | held_to
        if held_to:  # the server takes one of them
            body.pop("response_format", None)
        headers = {"Authorization": f"Bearer {server.key}"}
        return await chat_completions.complete(f"{server.url}/chat/completions", headers, body, self.timeout)

    def _is_cut_short(self, output: GenerateOutput) -> bool:
        """Whether a text was cut before it kept to the structure."""
        structure = self.structured_output
        texts = zip(output, output.finish_reasons, strict=True)
        return any(
            reason == "length" and structure and validation_error(structure, text or "") for text, reason in texts
        )

    def prepare_hidden_states(self) -> None:
        """Start the server that gives hidden states, and no other."""
        self._hidden_state_server()

    def _hidden_state_server(self) -> _Server:
        return local.shared_engine((*self._engine_key(), "hidden states"), partial(self._start, hidden_states=True))

    def get_last_hidden_state(self, inputs: list[ChatType]) -> list[HiddenState]:
        """The last hidden state of every chat, as its template spells it out: `[num_tokens, hidden_size]` each.

        Raises:
            Rejected: If a chat does not fit in the context.
        """
        server = self._hidden_state_server()

        def state(chat: ChatType) -> HiddenState:
            spelled_out = server.post("/apply-template", {"messages": chat})["prompt"]
            (reply,) = server.post("/embeddings", {"content": spelled_out})
            return np.asarray(reply["embedding"], dtype=np.float32)

        with ThreadPoolExecutor(self.n_parallel) as threads:
            return list(threads.map(state, inputs))

    def unload(self) -> None:
        """Stop the server and free its memory."""
        super().unload()
        local.free_engine((*self._engine_key(), "hidden states"))

    def _engine_key(self) -> tuple[object, ...]:
        return (type(self), self.model_path, self.n_ctx, self.n_parallel, self.n_gpu_layers, self.n_threads)

    def _server(self) -> _Server:
        return local.shared_engine(self._engine_key(), self._start)

    def _start(self, hidden_states: bool = False) -> _Server:
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
            return _Server(xllamacpp.Server(params), key)
        except (RuntimeError, ValueError) as error:
            raise Fatal(
                f"llama.cpp cannot serve `{path}`: {error}. Where it is a GGUF file of a model that it knows, memory "
                "ran out: lower `n_ctx`, `n_parallel` or `n_gpu_layers`, or take a smaller quantization."
            ) from None
