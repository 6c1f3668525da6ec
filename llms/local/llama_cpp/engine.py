"""llama.cpp in this process: chats to tokens, and many sequences decoded at once in one context."""

import ctypes
import logging
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llms.clients.chat_template import render_chat
from llms.errors import Fatal, Rejected
from llms.local.automaton import Automaton, Compiler, Guide
from llms.local.generation import TokenSequence
from llms.local.sampling import Sampler
from llms.typing import ChatType, HiddenState, StructuredOutputType

EXIT_TIMEOUT_S = 5.0
"""How long the end of the process waits for a token that a thread still computes."""


@dataclass
class Slot:
    """A sequence while it is decoded, under its id in the KV cache.

    Attributes:
        stop: Texts at which it ends, encoded.
        output: Bytes of the text so far.
        num_computed: Tokens that the model has computed already.
    """

    sequence: TokenSequence
    sampler: Sampler
    guide: Guide | None
    stop: tuple[bytes, ...]
    output: bytearray = field(default_factory=bytearray)
    num_computed: int = 0

    @property
    def uncomputed_tokens(self) -> list[int]:
        """Tokens that the model has not computed yet: of the prompt, or the last one sampled."""
        prompt = self.sequence.prompt
        return prompt[self.num_computed :] if self.num_computed < len(prompt) else self.sequence.tokens[-1:]


class LlamaEngine:
    """One model and one context with a KV cache per sequence. Threads take turns; freed when nobody holds it.

    Attributes:
        context_length: Tokens of one chat, its answer included.
        max_new_tokens: `None`: all that the context has room for.
    """

    max_new_tokens = None

    def __init__(
        self, llama: Any, path: Path, *, n_ctx: int, n_parallel: int, n_batch: int, n_gpu_layers: int, n_threads: int
    ) -> None:
        """Load `path`.

        Args:
            llama: The `llama_cpp` package.
            path: A GGUF file.
            n_ctx: Tokens of one chat, its answer included.
            n_parallel: Sequences decoded at once.
            n_batch: Tokens computed at once.
            n_gpu_layers: Layers on the GPU; -1 means all.
            n_threads: Threads to compute with.

        Raises:
            Fatal: If llama.cpp cannot load it.
        """
        self._llama, self.context_length, self._n_parallel = llama, n_ctx, n_parallel
        self._n_batch, self._n_threads = max(n_batch, n_parallel), n_threads
        self._lock, self._closing = threading.Lock(), threading.Event()
        llama.llama_backend_init()
        params = llama.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers if n_gpu_layers >= 0 else 0x7FFFFFFF
        self._model = llama.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise Fatal(f"llama.cpp cannot load `{path}`: {_diagnose(path)}")
        self._vocab = llama.llama_model_get_vocab(self._model)
        self._n_vocab: int = llama.llama_vocab_n_tokens(self._vocab)
        try:
            self._context = self._new_context(n_ctx * n_parallel, n_parallel, self._n_batch)
        except Fatal:
            llama.llama_model_free(self._model)
            raise
        self._memory = llama.llama_get_memory(self._context)
        self._batch = llama.llama_batch_init(self._n_batch, 0, 1)
        is_eog = llama.llama_vocab_is_eog
        self._end_tokens = np.array([token for token in range(self._n_vocab) if is_eog(self._vocab, token)], np.int32)
        weakref.finalize(self, _free, llama, self._lock, self._closing, self._model, self._context, self._batch)

    @property
    def chat_template(self) -> str | None:
        """The chat template in the file."""
        template = self._llama.llama_model_chat_template(self._model, None)
        return template.decode() if template else None

    def tokenize_chat(self, chat: ChatType) -> list[int] | Rejected:
        """Apply the chat template and tokenize, up to where the answer begins."""
        special = {f"{name}_token": self._special_token(name) for name in ("bos", "eos")}
        try:
            return self.tokenize(render_chat(self.chat_template, chat, **special))
        except Rejected as error:
            return error.with_traceback(None)  # which would hold on to this engine

    def tokenize(self, prompt: str) -> list[int]:
        """Tokenize a prompt, special tokens included."""
        if self._llama.llama_vocab_get_add_bos(self._vocab):
            prompt = prompt.removeprefix(self._special_token("bos"))  # it is put there again
        text = prompt.encode(errors="replace")
        tokens = (self._llama.llama_token * (len(text) + 16))()
        count = self._llama.llama_tokenize(self._vocab, text, len(text), tokens, len(tokens), True, True)
        return list(tokens[:count])

    def compile(self, structure: StructuredOutputType) -> Automaton:
        """Compile a structure for this model's tokens.

        Raises:
            Fatal: If it cannot be compiled; the message says why.
        """
        return self._compiler.compile(structure)

    @cached_property
    def _compiler(self) -> Compiler:
        token_ids: dict[bytes, list[int]] = {}
        ends = set(self._end_tokens.tolist())
        for token in range(self._n_vocab):
            if token not in ends and (spelling := self._token_bytes(token)):
                token_ids.setdefault(spelling, []).append(token)
        return Compiler(token_ids, int(self._end_tokens[0]) if ends else self._n_vocab)

    def write(self, sequences: list[TokenSequence], sampling: Mapping[str, Any]) -> None:
        """Generate all sequences to their ends with continuous batching: a new one starts as one ends.

        Args:
            sampling: Arguments of the `Sampler`.

        Raises:
            RuntimeError: If llama.cpp cannot compute.
        """
        with self._turn():
            self._llama.llama_memory_clear(self._memory, True)
            waiting = deque(sequences)
            live: dict[int, Slot] = {}
            idle = list(range(self._n_parallel))
            while (waiting or live) and not self._closing.is_set():
                while waiting and idle:
                    live[idle.pop()] = _slot(waiting.popleft(), sampling)
                for slot_id, index in self._compute(live):
                    slot = live[slot_id]
                    self._sample(slot, index)
                    if slot.sequence.finish_reason:
                        slot.sequence.text = slot.output.decode(errors="replace")
                        del live[slot_id]
                        self._llama.llama_memory_seq_rm(self._memory, slot_id, -1, -1)
                        idle.append(slot_id)

    def hidden_states(self, prompts: list[list[int]]) -> list[HiddenState]:
        """Compute the last hidden state of every token of every prompt."""
        llama, longest = self._llama, max(map(len, prompts), default=1)
        size = llama.llama_model_n_embd(self._model)
        states: list[HiddenState] = []
        with self._turn():
            context = self._new_context(longest, 1, longest, embeddings=True)
            batch = llama.llama_batch_init(longest, 0, 1)
            try:
                for prompt in prompts:
                    if self._closing.is_set():
                        break
                    llama.llama_memory_clear(llama.llama_get_memory(context), True)
                    batch.n_tokens = 0
                    for position, token in enumerate(prompt):
                        _add_token(batch, token, position, 0, True)
                    self._decode(context, batch)
                    rows = [llama.llama_get_embeddings_ith(context, index) for index in range(len(prompt))]
                    states.append(np.stack([np.ctypeslib.as_array(row, shape=(size,)) for row in rows]))
            finally:
                llama.llama_batch_free(batch)
                llama.llama_free(context)
        return states

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Take this thread's turn. While the process ends it never returns, so that nobody sees a half-done batch."""
        with self._lock:
            yield
        if self._closing.is_set():
            threading.Event().wait()

    def _new_context(self, n_ctx: int, n_seq: int, n_batch: int, embeddings: bool = False) -> Any:
        params = self._llama.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.no_perf = n_ctx, n_seq, True
        params.kv_unified = False  # a shared cache is 10 % faster, but a text would depend on its neighbours
        params.n_batch, params.n_ubatch = n_batch, min(512, n_batch)
        params.n_threads = params.n_threads_batch = self._n_threads
        if embeddings:  # as exact as the weights: the KV cache is rounded to 16 bits otherwise
            params.embeddings, params.pooling_type = True, self._llama.LLAMA_POOLING_TYPE_NONE
            params.type_k = params.type_v = self._llama.GGML_TYPE_F32
            params.flash_attn_type = self._llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        context = self._llama.llama_init_from_model(self._model, params)
        if not context:
            raise Fatal(f"llama.cpp has no memory for {n_ctx} tokens: lower `n_ctx`, `n_parallel` or `n_gpu_layers`.")
        return context

    def _compute(self, live: dict[int, Slot]) -> list[tuple[int, int]]:
        """Compute one batch: decoding before prefill, up to `n_batch` tokens.

        Returns:
            The ids of slots that have logits of their next token, and the indices of these in the batch.
        """
        self._batch.n_tokens = 0
        ready = []
        for slot_id, slot in sorted(live.items(), key=lambda each: len(each[1].uncomputed_tokens)):
            room = self._n_batch - self._batch.n_tokens
            tokens = slot.uncomputed_tokens
            for count, token in enumerate(tokens[:room], start=1):
                is_last = count == len(tokens)
                index = _add_token(self._batch, token, slot.num_computed, slot_id, is_last)
                slot.num_computed += 1
                if is_last:
                    ready.append((slot_id, index))
        self._decode(self._context, self._batch)
        return ready

    def _sample(self, slot: Slot, index: int) -> None:
        """Sample the next token of a sequence from the logits at `index` of the batch."""
        sequence, guide = slot.sequence, slot.guide
        allowed = guide.allowed_tokens() if guide else None
        if guide and allowed is not None and guide.is_accepting:
            if not len(allowed):
                sequence.finish_reason = "stop"
                return
            allowed = np.concatenate([allowed, self._end_tokens])
        logits = self._llama.llama_get_logits_ith(self._context, index)
        token = slot.sampler.sample(np.ctypeslib.as_array(logits, shape=(self._n_vocab,)), allowed)
        sequence.tokens.append(token)
        if token in self._end_tokens:
            sequence.finish_reason = "stop"
            return
        if guide:
            guide.advance(token)
        spelling = self._token_bytes(token)
        slot.output += spelling
        for stop in slot.stop:
            if (found := slot.output.find(stop, max(0, len(slot.output) - len(spelling) - len(stop)))) >= 0:
                del slot.output[found:]
                sequence.finish_reason = "stop"
        if len(sequence.tokens) >= sequence.max_tokens and not sequence.finish_reason:
            sequence.finish_reason = "stop" if guide and guide.is_accepting else "length"

    def _decode(self, context: Any, batch: Any) -> None:
        if code := self._llama.llama_decode(context, batch):
            raise RuntimeError(f"llama.cpp cannot compute {batch.n_tokens} tokens (`llama_decode` gave {code}).")

    def _special_token(self, name: str) -> str:
        """Return the text of the `bos` or the `eos` token; empty where the model has none."""
        token = getattr(self._llama, f"llama_vocab_{name}")(self._vocab)
        return self._llama.llama_vocab_get_text(self._vocab, token).decode() if token >= 0 else ""

    def _token_bytes(self, token: int) -> bytes:
        """Return the bytes of a token; empty where it is special."""
        buffer = ctypes.create_string_buffer(32)
        size = self._llama.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = self._llama.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[:size]


def set_verbose(verbose: bool) -> None:
    """Let llama.cpp log everything, or nothing: its package confuses the levels of warnings, errors and details."""
    logging.getLogger("llama-cpp-python").setLevel(logging.DEBUG if verbose else logging.CRITICAL)


def _slot(sequence: TokenSequence, sampling: Mapping[str, Any]) -> Slot:
    return Slot(
        sequence,
        Sampler(sequence.entropy, **sampling),
        Guide(sequence.automaton, sequence.max_tokens) if sequence.automaton else None,
        tuple(stop.encode() for stop in sequence.stop),
    )


def _add_token(batch: Any, token: int, position: int, slot_id: int, has_logits: bool) -> int:
    """Append a token to a batch, and return its index."""
    index = batch.n_tokens
    batch.token[index], batch.pos[index], batch.logits[index] = token, position, has_logits
    batch.n_seq_id[index], batch.seq_id[index][0] = 1, slot_id
    batch.n_tokens = index + 1
    return index


def _diagnose(path: Path) -> str:
    """Say what may be wrong with a file that llama.cpp does not load: it gives no reason itself."""
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
