"""A model of transformers in this process: chats to tokens, and sequences decoded in batches that fit in memory."""

import gc
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from functools import cached_property
from itertools import chain
from typing import Any, TypeVar

from jinja2 import TemplateError

from llms.clients.chat_template import message_text
from llms.errors import Fatal, Rejected
from llms.local.automaton import Automaton, Compiler
from llms.local.generation import TokenSequence
from llms.local.transformers.batch import Batch, Sampling
from llms.local.transformers.tokens import compiler_of, token_bytes
from llms.typing import ChatType, HiddenState, StructuredOutputType

logger = logging.getLogger(__name__)

DEFAULT_MAX_NEW_TOKENS = 1024
"""Tokens of a text at most, where neither a call nor the model says."""

MAX_BATCH_SIZES = {"cpu": 32}
"""Sequences decoded at once at most, by the type of the device."""

MAX_GPU_BATCH_SIZE = 256
"""Sequences decoded at once at most on a GPU, which reads its weights once for all of them."""

MEMORY_FRACTION = 0.8
"""Share of the free memory that batches may take."""

SAMPLING_BYTES_PER_LOGIT = 24
"""Memory of sampling, per token of the vocabulary: six copies of the logits."""

CONSTRAINED_CONFIG_FIELDS = (
    "bos_token_id",
    "cache_config",
    "cache_implementation",
    "eos_token_id",
    "pad_token_id",
    "use_cache",
)
"""Fields of a model's generation configuration that hold under a structure: the others may forbid every token."""

EXIT_TIMEOUT_S = 5.0
"""How long the end of the process waits for a token that a thread still computes."""

T = TypeVar("T")


class TransformersEngine:
    """One model and its tokenizer. Threads take turns; freed when nobody holds it any more.

    Attributes:
        context_length: Tokens of one chat, its answer included; `None` where the model has no bound.
        defaults: Sampling parameters of the model's own configuration.
        max_new_tokens: Tokens of a text at most, where a call does not say.
        max_batch_tokens: Tokens in memory at once at most; fewer after memory ran out.
    """

    def __init__(self, torch: Any, transformers: Any, model: Any, tokenizer: Any) -> None:
        self._torch, self._transformers, self.model, self.tokenizer = torch, transformers, model.eval(), tokenizer
        self._lock, self._closing = threading.Lock(), threading.Event()
        weakref.finalize(self, _close, self._lock, self._closing)
        text = model.config.get_text_config()
        self.context_length: int | None = getattr(text, "max_position_embeddings", None)
        self.end_tokens = self._find_end_tokens(model.generation_config.eos_token_id)
        self.pad_token = next((token for token in (tokenizer.pad_token_id, *self.end_tokens) if token is not None), 0)
        self.defaults = self._take_sampling()
        self.max_new_tokens: int = model.generation_config.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
        self._config = model.generation_config
        constrained = {name: getattr(self._config, name, None) for name in CONSTRAINED_CONFIG_FIELDS}
        self._constrained_config = transformers.GenerationConfig(**constrained)
        self._device = model.device
        bytes_per_token = self._bytes_per_token(text)
        self.max_batch_tokens = int(MEMORY_FRACTION * _free_memory(torch, self._device) / bytes_per_token)
        self._n_vocab: int = text.vocab_size
        self._sampling_tokens = SAMPLING_BYTES_PER_LOGIT * self._n_vocab // bytes_per_token  # its memory, in tokens

    # ------------------------------------------------------------------------------------------------ chats to tokens

    def tokenize(self, chats: list[ChatType], template: str | None) -> list[list[int] | Rejected]:
        """Apply the chat template and tokenize, up to where the answer begins.

        Args:
            chats: Messages of text.
            template: Replaces the tokenizer's own.

        Raises:
            Fatal: If there is no template.
        """
        if not (template or self.tokenizer.chat_template):
            raise Fatal(
                f"`{self.tokenizer.name_or_path}` has no chat template: set `chat_template` to the Jinja template that "
                "the model was trained with, or take a model that was trained on chats."
            )
        prompts = [self._apply_template(chat, template) for chat in chats]
        accepted = [prompt for prompt in prompts if isinstance(prompt, str)]
        encoded = self.tokenizer(accepted, add_special_tokens=False, verbose=False)["input_ids"] if accepted else []
        tokens = iter(encoded)
        return [prompt if isinstance(prompt, Rejected) else next(tokens) for prompt in prompts]

    def _apply_template(self, chat: ChatType, template: str | None) -> str | Rejected:
        try:
            messages = [{**message, "content": message_text(message)} for message in chat]
            return self.tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=True
            )
        except Rejected as error:
            return error.with_traceback(None)  # which would hold on to this engine
        except TemplateError as error:
            return Rejected(f"The model's chat template refuses this chat: {error}")

    # ----------------------------------------------------------------------------------------------- tokens to texts

    def compile(self, structure: StructuredOutputType) -> Automaton:
        """Compile a structure for this model's tokens.

        Raises:
            Fatal: If it cannot be compiled; the message says why.
        """
        return self._compiler.compile(structure)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of every token; empty where it is special."""
        known = token_bytes(self.tokenizer, self.end_tokens)
        return known + [b""] * (self._n_vocab - len(known))  # models often have a few more than their tokenizer

    @cached_property
    def _compiler(self) -> Compiler:
        return compiler_of(self.token_bytes[: self._n_vocab], self.end_tokens)

    def write(self, sequences: list[TokenSequence], sampling: Sampling, batch_size: int | None = None) -> None:
        """Generate all sequences to their ends, in batches of similar length; one that memory is too small for fails.

        Args:
            batch_size: Sequences decoded at once at most.
        """

        def size(sequence: TokenSequence) -> int:
            return len(sequence.prompt) + sequence.max_tokens + self._sampling_tokens

        def write(batch: list[TokenSequence]) -> None:
            self._write_batch(batch, sampling)

        groups = [[each for each in sequences if bool(each.automaton) is constrained] for constrained in (False, True)]
        unfit = [self._in_batches(group, size, write, batch_size) for group in groups]
        for sequence in chain(*unfit):
            sequence.error = Rejected(
                f"There is no memory on `{self._device}` for a chat of {len(sequence.prompt)} tokens and an answer of "
                f"{sequence.max_tokens}: lower `max_new_tokens`, or the memory of the weights by `dtype` or "
                "`quantization`."
            )

    def hidden_states(self, prompts: list[list[int]], batch_size: int | None = None) -> list[HiddenState]:
        """Compute the last hidden state of every token of every prompt.

        Raises:
            Rejected: If there is no memory for one.
        """
        found: dict[int, HiddenState] = {}

        def compute(batch: list[int]) -> None:
            # Padded on the right: causal attention does not see it, and positions are as without padding.
            ids, mask = self._pad([prompts[index] for index in batch], left=False)
            with self._torch.inference_mode():
                states = self.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            for index, state in zip(batch, states.float().cpu().numpy(), strict=True):
                found[index] = state[: len(prompts[index])].copy()

        for index in self._in_batches(range(len(prompts)), lambda index: len(prompts[index]), compute, batch_size):
            raise Rejected(f"There is no memory on `{self._device}` for a chat of {len(prompts[index])} tokens.")
        return [found[index] for index in range(len(prompts))]

    def _write_batch(self, sequences: list[TokenSequence], sampling: Sampling) -> None:
        ids, mask = self._pad([sequence.prompt for sequence in sequences], left=True)
        spellings = self.token_bytes if any(sequence.stop for sequence in sequences) else []
        batch = Batch(self._torch, sequences, ids, mask, self.end_tokens, spellings)
        constrained = any(sequence.automaton for sequence in sequences)
        self.model.generation_config = self._constrained_config if constrained else self._config
        processors = batch.logits_processors(self._transformers, sampling)
        self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,  # the batch samples, row by row
            num_beams=1,
            num_return_sequences=1,
            max_new_tokens=max(sequence.max_tokens for sequence in sequences),
            pad_token_id=self.pad_token,
            eos_token_id=self.end_tokens or None,
            logits_processor=self._transformers.LogitsProcessorList(processors),
            stopping_criteria=self._transformers.StoppingCriteriaList([batch.stop, self._stop_on_exit]),
        )
        for sequence, tokens, reason in zip(sequences, batch.tokens, batch.finish_reasons, strict=True):
            sequence.tokens, sequence.finish_reason = tokens, reason
            sequence.text = self._detokenize(sequence, tokens)

    def _stop_on_exit(self, tokens: Any, logits: Any, **_: Any) -> Any:
        """Stop all rows while the process ends; a stopping criterion, `[rows]`."""
        return self._torch.full((len(tokens),), self._closing.is_set(), device=tokens.device)

    def _detokenize(self, sequence: TokenSequence, tokens: list[int]) -> str:
        if sequence.automaton:  # byte by byte: a tokenizer's clean-up may break the structure
            return b"".join(map(self.token_bytes.__getitem__, tokens)).decode(errors="replace")
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return text[: min((found for stop in sequence.stop if (found := text.find(stop)) >= 0), default=None)]

    # ------------------------------------------------------------------------------------------------- within memory

    def _in_batches(
        self, items: Iterable[T], size: Callable[[T], int], compute: Callable[[list[T]], None], batch_size: int | None
    ) -> list[T]:
        """Compute all items, longest first and as many at once as fit.

        Returns:
            The items that do not fit even alone.
        """
        max_items = batch_size or MAX_BATCH_SIZES.get(self._device.type, MAX_GPU_BATCH_SIZE)
        waiting, unfit = deque(sorted(items, key=size, reverse=True)), list[T]()
        while waiting:
            longest = size(waiting[0])
            with self._lock:
                count = min(len(waiting), max_items, max(1, self.max_batch_tokens // longest))
                batch = [waiting.popleft() for _ in range(count)]
                fits = self._try(compute, batch)
                if not fits and len(batch) > 1:
                    self.max_batch_tokens = len(batch) * longest // 2
            if self._closing.is_set():  # the process ends, and nobody is to see a half-done batch
                threading.Event().wait()
            if fits:
                continue
            if len(batch) == 1:
                unfit += batch
                continue
            logger.warning("Memory ran out with %d texts at once: %d from now on.", len(batch), len(batch) // 2)
            waiting.extendleft(reversed(batch))
        return unfit

    def _try(self, compute: Callable[[list[T]], None], batch: list[T]) -> bool:
        """Compute a batch; `False` where memory runs out."""
        try:
            compute(batch)
            return True
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        empty_cache(self._torch)  # here, where the traceback holds no tensors any more
        return False

    def _pad(self, prompts: list[list[int]], left: bool) -> tuple[Any, Any]:
        """Return prompts as one tensor, and its attention mask, `[rows, width]` each."""
        width = max(map(len, prompts))
        ids = self._torch.full((len(prompts), width), self.pad_token)
        mask = self._torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            columns = slice(width - len(prompt), None) if left else slice(len(prompt))
            ids[row, columns] = self._torch.tensor(prompt)
            mask[row, columns] = 1
        return ids.to(self._device), mask.to(self._device)

    def _bytes_per_token(self, config: Any) -> int:
        """Estimate the memory of a token: its KV cache in all layers, and the activations of one layer."""
        hidden = getattr(config, "hidden_size", 4096)
        heads = getattr(config, "num_attention_heads", None) or 1
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        cached = kv_heads * (getattr(config, "head_dim", None) or hidden // heads)
        activations = 3 * (getattr(config, "intermediate_size", None) or 4 * hidden) + 6 * hidden
        return (2 * getattr(config, "num_hidden_layers", 32) * cached + activations) * self.model.dtype.itemsize

    # ----------------------------------------------------------------------------------- the model's own configuration

    def _find_end_tokens(self, configured: int | list[int] | None) -> list[int]:
        """Return the tokens that end a text: the model's and the tokenizer's."""
        tokens = configured if isinstance(configured, list) else [configured]
        return list(dict.fromkeys(token for token in [*tokens, self.tokenizer.eos_token_id] if token is not None))

    def _take_sampling(self) -> Sampling:
        """Move the sampling parameters out of the model's configuration: transformers would apply them as well."""
        config = self.model.generation_config
        names = ("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
        configured = {name: value for name in names if (value := getattr(config, name, None)) is not None}
        for name in (*names, "max_length"):
            setattr(config, name, None)
        return Sampling(**configured)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether a computation ran out of memory, on whatever device."""
    signs = ("out of memory", "DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")
    return any(sign in str(error) for sign in signs) or type(error).__name__ == "OutOfMemoryError"


def empty_cache(torch: Any) -> None:
    """Return unused memory to the device."""
    gc.collect()  # a model and its hooks are a reference cycle
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def _close(lock: threading.Lock, closing: threading.Event) -> None:
    closing.set()
    lock.acquire(timeout=EXIT_TIMEOUT_S)  # and keep it: a thread that computes when Python ends crashes the process


def _free_memory(torch: Any, device: Any) -> int:
    """Return the free bytes of a device."""
    if device.type in ("cpu", "mps"):
        import psutil

        return psutil.virtual_memory().available
    return torch.get_device_module(device).mem_get_info(device)[0]
