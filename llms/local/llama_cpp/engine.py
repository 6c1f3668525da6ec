"""A GGUF model in this process: texts to tokens, and many texts written at once in one context of llama.cpp."""

import ctypes
import logging
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llms.errors import Fatal, Rejected
from llms.local.automaton import Compiler, Guide
from llms.local.sampling import Sampler
from llms.typing import FinishReason, HiddenState

EXIT_TIMEOUT_S = 5.0
"""Seconds that the end of the process waits for a token that a thread still computes."""


@dataclass
class TokenSequence:
    """One text in the making: what it begins with, what it must keep to, and what there is of it.

    Attributes:
        prompt: The tokens before it.
        limit: How many tokens it has at most.
        stop: Texts at which it ends; they are not part of it.
    """

    prompt: list[int]
    max_tokens: int
    sampler: Sampler
    guide: Guide | None = None
    stop: tuple[bytes, ...] = ()
    tokens: list[int] = field(default_factory=list)
    output: bytearray = field(default_factory=bytearray)
    finish_reason: FinishReason | None = None
    error: Rejected | None = None
    num_computed: int = 0

    def __str__(self) -> str:
        return self.output.decode(errors="replace")

    @property
    def uncomputed_tokens(self) -> list[int]:
        """The tokens that the model has not seen yet."""
        return self.prompt[self.num_computed :] if self.num_computed < len(self.prompt) else self.tokens[-1:]


class LlamaEngine:
    """One model and one context with a sequence per text. Threads take turns; freed when nobody holds it any more."""

    def __init__(
        self, llama: Any, path: Path, *, n_ctx: int, n_parallel: int, n_batch: int, n_gpu_layers: int, n_threads: int
    ) -> None:
        """Load `path`.

        Args:
            llama: The `llama_cpp` package.
            path: A GGUF file.
            n_ctx: Tokens of one chat, its answer included.
            n_parallel: Texts that are written at once.
            n_batch: Tokens that are computed at once.
            n_gpu_layers: Layers on the GPU; -1 means all.
            n_threads: Threads to compute with.

        Raises:
            Fatal: If llama.cpp cannot load it.
        """
        self._llama, self.n_ctx, self._n_parallel = llama, n_ctx, n_parallel
        self._n_batch, self._n_threads = max(n_batch, n_parallel), n_threads
        self._lock, self._closing = threading.Lock(), threading.Event()
        llama.llama_backend_init()
        params = llama.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers if n_gpu_layers >= 0 else 0x7FFFFFFF
        self._model = llama.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise Fatal(f"llama.cpp cannot load `{path}`: {_trouble_with(path)}")
        self._vocab = llama.llama_model_get_vocab(self._model)
        self._n_vocab: int = llama.llama_vocab_n_tokens(self._vocab)
        try:
            self._context = self._new_context(n_ctx * n_parallel, n_parallel, self._n_batch)
        except Fatal:
            llama.llama_model_free(self._model)
            raise
        self._memory = llama.llama_get_memory(self._context)
        self._batch = llama.llama_batch_init(self._n_batch, 0, 1)
        self._ends = np.array([t for t in range(self._n_vocab) if llama.llama_vocab_is_eog(self._vocab, t)], np.int32)
        weakref.finalize(self, _free, llama, self._lock, self._closing, self._model, self._context, self._batch)

    @property
    def template(self) -> str | None:
        """The chat template in the file."""
        template = self._llama.llama_model_chat_template(self._model, None)
        return template.decode() if template else None

    def special(self, name: str) -> str:
        """The text of the `bos` or the `eos` token; nothing where the model has none."""
        token = getattr(self._llama, f"llama_vocab_{name}")(self._vocab)
        return self._llama.llama_vocab_get_text(self._vocab, token).decode() if token >= 0 else ""

    def tokenize(self, prompt: str) -> list[int]:
        """The tokens of a chat that its template has spelled out, special ones included."""
        if self._llama.llama_vocab_get_add_bos(self._vocab):
            prompt = prompt.removeprefix(self.special("bos"))  # it is put there again
        text = prompt.encode(errors="replace")
        tokens = (self._llama.llama_token * (len(text) + 16))()
        count = self._llama.llama_tokenize(self._vocab, text, len(text), tokens, len(tokens), True, True)
        return list(tokens[:count])

    @cached_property
    def compiler(self) -> Compiler:
        """What compiles structures for this model's tokens."""
        pieces: dict[bytes, list[int]] = {}
        ends = set(self._ends.tolist())
        for token in range(self._n_vocab):
            if token not in ends and (piece := self._piece(token)):
                pieces.setdefault(piece, []).append(token)
        return Compiler(pieces, int(self._ends[0]) if ends else self._n_vocab)

    def write(self, texts: list[TokenSequence]) -> None:
        """Write all `texts` to their ends: as many at once as the context has sequences, each new one as one ends.

        Raises:
            RuntimeError: If llama.cpp cannot compute.
        """
        with self._computing():
            self._llama.llama_memory_clear(self._memory, True)
            waiting = deque(texts)
            live: dict[int, TokenSequence] = {}
            idle = list(range(self._n_parallel))
            while (waiting or live) and not self._closing.is_set():
                while waiting and idle:
                    live[idle.pop()] = waiting.popleft()
                for sequence, place in self._compute(live):
                    text = live[sequence]
                    self._take(text, place)
                    if text.finish_reason:
                        del live[sequence]
                        self._llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)
                        idle.append(sequence)

    def hidden_states(self, prompts: list[list[int]]) -> list[HiddenState]:
        """The last hidden state of every token of every prompt."""
        llama, longest = self._llama, max(map(len, prompts), default=1)
        size = llama.llama_model_n_embd(self._model)
        states: list[HiddenState] = []
        with self._computing():
            context = self._new_context(longest, 1, longest, embeddings=True)
            batch = llama.llama_batch_init(longest, 0, 1)
            try:
                for prompt in prompts:
                    if self._closing.is_set():
                        break
                    llama.llama_memory_clear(llama.llama_get_memory(context), True)
                    batch.n_tokens = 0
                    for position, token in enumerate(prompt):
                        _add(batch, token, position, 0, True)
                    self._decode(context, batch)
                    rows = [llama.llama_get_embeddings_ith(context, place) for place in range(len(prompt))]
                    states.append(np.stack([np.ctypeslib.as_array(row, shape=(size,)) for row in rows]))
            finally:
                llama.llama_batch_free(batch)
                llama.llama_free(context)
        return states

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Take one's turn. Where the process is about to end it is the last one, and nobody sees what is half done."""
        with self._lock:
            yield
        if self._closing.is_set():
            threading.Event().wait()

    def _new_context(self, n_ctx: int, n_seq: int, n_batch: int, embeddings: bool = False) -> Any:
        params = self._llama.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.no_perf = n_ctx, n_seq, True
        params.kv_unified = False  # a common one is a tenth faster, but a text would depend on those beside it
        params.n_batch, params.n_ubatch = n_batch, min(512, n_batch)
        params.n_threads = params.n_threads_batch = self._n_threads
        if embeddings:  # as exact as the weights: what attention remembers is rounded to sixteen bits otherwise
            params.embeddings, params.pooling_type = True, self._llama.LLAMA_POOLING_TYPE_NONE
            params.type_k = params.type_v = self._llama.GGML_TYPE_F32
            params.flash_attn_type = self._llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        context = self._llama.llama_init_from_model(self._model, params)
        if not context:
            raise Fatal(f"llama.cpp has no memory for {n_ctx} tokens: lower `n_ctx`, `n_parallel` or `n_gpu_layers`.")
        return context

    def _compute(self, live: dict[int, TokenSequence]) -> list[tuple[int, int]]:
        """Let the model read what it has not seen of each text; the sequences it read to the end, and their places."""
        self._batch.n_tokens = 0
        ready = []
        for sequence, text in sorted(
            live.items(), key=lambda each: len(each[1].uncomputed_tokens)
        ):  # who writes goes first
            room = self._n_batch - self._batch.n_tokens
            unread = text.uncomputed_tokens
            for at, token in enumerate(unread[:room], start=1):
                place = _add(self._batch, token, text.num_computed, sequence, at == len(unread))
                text.num_computed += 1
                if at == len(unread):
                    ready.append((sequence, place))
        self._decode(self._context, self._batch)
        return ready

    def _take(self, text: TokenSequence, place: int) -> None:
        """Choose a text's next token by the scores at `place` of the batch."""
        guide = text.guide
        allowed = guide.allowed_tokens() if guide else None
        if guide and allowed is not None and guide.is_accepting:
            if not len(allowed):
                text.finish_reason = "stop"
                return
            allowed = np.concatenate([allowed, self._ends])
        scores = self._llama.llama_get_logits_ith(self._context, place)
        token = text.sampler.sample(np.ctypeslib.as_array(scores, shape=(self._n_vocab,)), allowed)
        text.tokens.append(token)
        if token in self._ends:
            text.finish_reason = "stop"
            return
        if guide:
            guide.advance(token)
        piece = self._piece(token)
        text.output += piece
        for stop in text.stop:
            if (at := text.output.find(stop, max(0, len(text.output) - len(piece) - len(stop)))) >= 0:
                del text.output[at:]
                text.finish_reason = "stop"
        if len(text.tokens) >= text.max_tokens and not text.finish_reason:
            text.finish_reason = "stop" if guide and guide.is_accepting else "length"

    def _decode(self, context: Any, batch: Any) -> None:
        if code := self._llama.llama_decode(context, batch):
            raise RuntimeError(f"llama.cpp cannot compute {batch.n_tokens} tokens (`llama_decode` gave {code}).")

    def _piece(self, token: int) -> bytes:
        """The bytes a token stands for; none where it is special."""
        buffer = ctypes.create_string_buffer(32)
        size = self._llama.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = self._llama.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[:size]


def set_verbose(verbose: bool) -> None:
    """Let llama.cpp say all it does, or nothing: its package takes warnings for errors, and errors for details."""
    logging.getLogger("llama-cpp-python").setLevel(logging.DEBUG if verbose else logging.CRITICAL)


def _add(batch: Any, token: int, position: int, sequence: int, scored: bool) -> int:
    place = batch.n_tokens
    batch.token[place], batch.pos[place], batch.logits[place] = token, position, scored
    batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
    batch.n_tokens = place + 1
    return place


def _trouble_with(path: Path) -> str:
    """What may be wrong with a file that llama.cpp does not load, and what to do: it gives no reason itself."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            return "it is no GGUF file."
    return (
        "this version does not know such a model, the file is damaged, or there is no memory for it: lower "
        "`n_gpu_layers`, or take a smaller quantization. With `verbose=True` llama.cpp says what it is."
    )


def _free(llama: Any, lock: threading.Lock, closing: threading.Event, model: Any, context: Any, batch: Any) -> None:
    closing.set()
    if lock.acquire(timeout=EXIT_TIMEOUT_S):  # a thread that computes would be left without its memory
        llama.llama_batch_free(batch)
        llama.llama_free(context)
        llama.llama_model_free(model)
