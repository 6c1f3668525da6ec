"""A model of transformers in this process: chats to tokens, and texts written in batches as large as memory allows."""

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
from llms.local.automaton import Compiler
from llms.local.transformers.batch import Batch, Sampling, TokenSequence
from llms.local.transformers.tokens import token_bytes
from llms.typing import ChatType, HiddenState

logger = logging.getLogger(__name__)

DEFAULT_MAX_NEW_TOKENS = 1024
"""How many tokens a text has at most, where neither a call nor the model says."""

MAX_BATCH_SIZES = {"cpu": 32}
"""How many texts are written at once at most, by the kind of device."""

MAX_GPU_BATCH_SIZE = 256
"""The same for a GPU, which reads its weights once for all of them."""

MEMORY_FRACTION = 0.8
"""How much of the free memory texts may take."""

SAMPLING_BYTES_PER_LOGIT = 24
"""Bytes that choosing a token takes per token of the vocabulary: six copies of its scores."""

CONSTRAINED_CONFIG_FIELDS = (
    "bos_token_id",
    "cache_config",
    "cache_implementation",
    "eos_token_id",
    "pad_token_id",
    "use_cache",
)
"""What holds of a model's own configuration where texts keep to a structure: the rest of it may forbid every token."""

EXIT_TIMEOUT_S = 5.0
"""Seconds that the end of the process waits for a token that a thread still computes."""

T = TypeVar("T")


class TransformersEngine:
    """One model and its tokenizer. Threads take turns; freed when nobody holds it any more.

    Attributes:
        context: Tokens of one chat, its answer included; `None` where the model has no bound.
        defaults: How tokens are chosen where a call does not say, as the model's own configuration has it.
        max_new_tokens: Tokens of a text at most where a call does not say.
        room: Tokens in memory at once, at most; fewer after memory ran out.
    """

    def __init__(self, torch: Any, transformers: Any, model: Any, tokenizer: Any) -> None:
        self._torch, self._transformers, self.model, self.tokenizer = torch, transformers, model.eval(), tokenizer
        self._lock, self._closing = threading.Lock(), threading.Event()
        weakref.finalize(self, _close, self._lock, self._closing)
        text = model.config.get_text_config()
        self.context_length: int | None = getattr(text, "max_position_embeddings", None)
        self._ends = self._ends_of(model.generation_config.eos_token_id)
        self.pad = next((token for token in (tokenizer.pad_token_id, *self._ends) if token is not None), 0)
        self.defaults = self._sampling()
        self.max_new_tokens: int = model.generation_config.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
        self._own = model.generation_config
        kept = {name: getattr(self._own, name, None) for name in CONSTRAINED_CONFIG_FIELDS}
        self._bare = transformers.GenerationConfig(**kept)
        self._device = model.device
        per_token = self._bytes_per_token(text)
        self.max_batch_tokens = int(MEMORY_FRACTION * _free_memory(torch, self._device) / per_token)
        self._n_vocab: int = text.vocab_size
        self._extra = SAMPLING_BYTES_PER_LOGIT * self._n_vocab // per_token  # what choosing takes, in tokens

    # ------------------------------------------------------------------------------------------------ chats to tokens

    def tokenize(self, chats: list[ChatType], template: str | None) -> list[list[int] | Rejected]:
        """The tokens of every chat, as the template spells it out up to where the answer begins.

        Args:
            chats: Messages of text.
            template: Another one than the tokenizer's own.

        Raises:
            Fatal: If there is no template.
        """
        if not (template or self.tokenizer.chat_template):
            raise Fatal(
                f"`{self.tokenizer.name_or_path}` has no chat template: set `chat_template` to the Jinja template that "
                "the model was trained with, or take a model that was trained on chats."
            )
        spelled = [self._spelled_out(chat, template) for chat in chats]
        known = [text for text in spelled if isinstance(text, str)]
        tokens = iter(self.tokenizer(known, add_special_tokens=False, verbose=False)["input_ids"] if known else [])
        return [text if isinstance(text, Rejected) else next(tokens) for text in spelled]

    def _spelled_out(self, chat: ChatType, template: str | None) -> str | Rejected:
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

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes that every token stands for; none where it is special."""
        known = token_bytes(self.tokenizer, self._ends)
        return known + [b""] * (self._n_vocab - len(known))  # models like to have a few more than their tokenizer

    @cached_property
    def compiler(self) -> Compiler:
        """What compiles structures for this model's tokens."""
        numbers: dict[bytes, list[int]] = {}
        for token, piece in enumerate(self.token_bytes[: self._n_vocab]):
            if piece:
                numbers.setdefault(piece, []).append(token)
        return Compiler(numbers, self._ends[0] if self._ends else len(self.token_bytes))

    def write(self, texts: list[TokenSequence], sampling: Sampling, rows: int | None = None) -> None:
        """Write all `texts` to their ends, in batches of similar length; one that memory has no room for has an error.

        Args:
            texts: What to write.
            sampling: How to choose their tokens.
            rows: How many at once at most.
        """

        def size(text: TokenSequence) -> int:
            return len(text.prompt) + text.max_tokens + self._extra

        kinds = [[text for text in texts if bool(text.automaton) is held] for held in (False, True)]
        unfit = [self._in_batches(kind, size, lambda batch: self._write(batch, sampling), rows) for kind in kinds]
        for text in chain(*unfit):
            text.error = Rejected(
                f"There is no memory on `{self._device}` for a chat of {len(text.prompt)} tokens and an answer of "
                f"{text.max_tokens}: lower `max_new_tokens`, or the memory of the weights by `dtype` or `quantization`."
            )

    def hidden_states(self, prompts: list[list[int]], rows: int | None = None) -> list[HiddenState]:
        """The last hidden state of every token of every prompt.

        Raises:
            Rejected: If there is no memory for one.
        """
        found: dict[int, HiddenState] = {}

        def read(batch: list[int]) -> None:
            # Padded on the right, where no token sees it, and each is where it would be alone.
            ids, mask = self._padded([prompts[at] for at in batch], left=False)
            with self._torch.inference_mode():
                states = self.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            for at, state in zip(batch, states.float().cpu().numpy(), strict=True):
                found[at] = state[: len(prompts[at])].copy()

        for at in self._in_batches(range(len(prompts)), lambda at: len(prompts[at]), read, rows):
            raise Rejected(f"There is no memory on `{self._device}` for a chat of {len(prompts[at])} tokens.")
        return [found[at] for at in range(len(prompts))]

    def _write(self, texts: list[TokenSequence], sampling: Sampling) -> None:
        ids, mask = self._padded([text.prompt for text in texts], left=True)
        known = self.token_bytes if any(text.stop for text in texts) else []
        batch = Batch(self._torch, texts, ids, mask, self._ends, known)
        self.model.generation_config = self._bare if any(text.automaton for text in texts) else self._own
        self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,  # who draws is the batch, row by row
            num_beams=1,
            num_return_sequences=1,
            max_new_tokens=max(text.max_tokens for text in texts),
            pad_token_id=self.pad,
            eos_token_id=self._ends or None,
            logits_processor=self._transformers.LogitsProcessorList(
                batch.logits_processors(self._transformers, sampling)
            ),
            stopping_criteria=self._transformers.StoppingCriteriaList([batch.stop, self._closes]),
        )
        for text, tokens, reason in zip(texts, batch.tokens, batch.finish_reasons, strict=True):
            text.tokens, text.finish_reason, text.text = tokens, reason, self._read(text, tokens)

    def _closes(self, tokens: Any, scores: Any, **_: Any) -> Any:
        """Stop all rows where the process is about to end."""
        return self._torch.full((len(tokens),), self._closing.is_set(), device=tokens.device)

    def _read(self, text: TokenSequence, tokens: list[int]) -> str:
        if text.automaton:  # to the letter: what a tokenizer tidies up was part of the structure
            return b"".join(map(self.token_bytes.__getitem__, tokens)).decode(errors="replace")
        written = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return written[: min((at for stop in text.stop if (at := written.find(stop)) >= 0), default=None)]

    # ------------------------------------------------------------------------------------------------- within memory

    def _in_batches(
        self, items: Iterable[T], size: Callable[[T], int], compute: Callable[[list[T]], None], rows: int | None
    ) -> list[T]:
        """Compute all items, longest first and as many at once as fit; those that do not fit even alone."""
        most = rows or MAX_BATCH_SIZES.get(self._device.type, MAX_GPU_BATCH_SIZE)
        waiting, unfit = deque(sorted(items, key=size, reverse=True)), list[T]()
        while waiting:
            longest = size(waiting[0])
            with self._lock:
                batch = [
                    waiting.popleft() for _ in range(min(len(waiting), most, max(1, self.max_batch_tokens // longest)))
                ]
                fits = self._fits(compute, batch)
                if not fits and len(batch) > 1:
                    self.max_batch_tokens = len(batch) * longest // 2
            if self._closing.is_set():  # the process ends, and nobody is to see what is half done
                threading.Event().wait()
            if fits:
                continue
            if len(batch) == 1:
                unfit += batch
                continue
            logger.warning("Memory ran out with %d texts at once: %d from now on.", len(batch), len(batch) // 2)
            waiting.extendleft(reversed(batch))
        return unfit

    def _fits(self, compute: Callable[[list[T]], None], batch: list[T]) -> bool:
        try:
            compute(batch)
            return True
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        empty_cache(self._torch)  # here, where the traceback holds no tensors any more
        return False

    def _padded(self, prompts: list[list[int]], left: bool) -> tuple[Any, Any]:
        """Prompts as one tensor, and which of it is to be read."""
        width = max(map(len, prompts))
        ids = self._torch.full((len(prompts), width), self.pad)
        mask = self._torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            place = slice(width - len(prompt), None) if left else slice(len(prompt))
            ids[row, place] = self._torch.tensor(prompt)
            mask[row, place] = 1
        return ids.to(self._device), mask.to(self._device)

    def _bytes_per_token(self, config: Any) -> int:
        """About what one token takes: its keys and values in all layers, and what one layer computes of it."""
        hidden = getattr(config, "hidden_size", 4096)
        heads = getattr(config, "num_attention_heads", None) or 1
        kept = (getattr(config, "num_key_value_heads", None) or heads) * (
            getattr(config, "head_dim", None) or hidden // heads
        )
        computed = 3 * (getattr(config, "intermediate_size", None) or 4 * hidden) + 6 * hidden
        return (2 * getattr(config, "num_hidden_layers", 32) * kept + computed) * self.model.dtype.itemsize

    # ------------------------------------------------------------------------------------ what the model says of itself

    def _ends_of(self, configured: int | list[int] | None) -> list[int]:
        """The tokens that end a text: the model's and the tokenizer's."""
        tokens = configured if isinstance(configured, list) else [configured]
        return list(dict.fromkeys(token for token in [*tokens, self.tokenizer.eos_token_id] if token is not None))

    def _sampling(self) -> Sampling:
        """How the model wants tokens chosen. Said there no more, or transformers would do so beside us."""
        config = self.model.generation_config
        names = ("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
        wanted = {name: value for name in names if (value := getattr(config, name, None)) is not None}
        for name in (*names, "max_length"):
            setattr(config, name, None)
        return Sampling(**wanted)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a computation failed for want of memory, on whatever device."""
    words = ("out of memory", "DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")
    return any(word in str(error) for word in words) or type(error).__name__ == "OutOfMemoryError"


def empty_cache(torch: Any) -> None:
    """Give the device back what nobody holds any more."""
    gc.collect()  # a model and its hooks hold each other
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def _close(lock: threading.Lock, closing: threading.Event) -> None:
    closing.set()
    lock.acquire(timeout=EXIT_TIMEOUT_S)  # and keep it: a thread that computes when Python ends takes the process down


def _free_memory(torch: Any, device: Any) -> int:
    """Bytes that are free on a device."""
    if device.type in ("cpu", "mps"):
        import psutil

        return psutil.virtual_memory().available
    return torch.get_device_module(device).mem_get_info(device)[0]
