"""An engine of vLLM, whose work is done in processes of its own: chats to tokens, texts, and hidden states."""

import pickle
import tempfile
import threading
import weakref
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from itertools import count
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np

from llms.clients.chat_template import message_text
from llms.errors import Fatal, Rejected
from llms.local.automaton import Automaton, Compiler
from llms.local.transformers.tokens import token_bytes
from llms.local.vllm.guide import EXTRA_ARGS_KEY
from llms.typing import ChatType, FinishReason, HiddenState, Logprobs, StructuredOutputType, TokenLogprob

DEFAULT_MAX_NEW_TOKENS = 1024
"""How many tokens a text has at most, where neither a call nor the model says."""

EXIT_TIMEOUT_S = 5.0
"""Seconds that freeing an engine waits for a thread that still asks it."""

SHUTDOWN_TIMEOUT_S = 15.0
"""Seconds that vLLM's processes have to end, before they are made to."""


@dataclass
class TokenSequence:
    """One text to be written: what it begins with, what it must keep to, and what there is of it.

    Attributes:
        prompt: The tokens before it.
        limit: How many tokens it has at most.
        seed: What every choice follows from, together with `number`; `None` for another text each time.
        number: Which text of those with this prompt, and which attempt at it.
        automaton: What it keeps to.
        logprobs: How likely its tokens were, where that was asked for.
        error: Why it cannot be written.
    """

    prompt: list[int]
    max_tokens: int
    seed: int | None = None
    number: tuple[int, int] = (0, 0)
    automaton: Automaton | None = None
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    logprobs: Logprobs | None = None
    error: Rejected | None = None

    def __str__(self) -> str:
        return self.text

    def fresh_copy(self, number: int, attempt: int) -> "TokenSequence":
        """Another text like this one, with nothing written."""
        return replace(self, number=(number, attempt))

    def derived_seed(self) -> int | None:
        """The seed of this text alone."""
        if self.seed is None:
            return None
        return int(np.random.SeedSequence([self.seed, *self.number]).generate_state(1)[0])


class VllmEngine:
    """One model in vLLM. Threads take turns; its processes end when nobody holds it any more.

    Attributes:
        context: Tokens of one chat, its answer included.
    """

    def __init__(self, vllm: Any, llm: Any, name: str, guided: bool = False) -> None:
        """Take charge of an `LLM` of vLLM.

        Args:
            vllm: The package.
            name: What the model is called in errors.
            guided: Whether its logits processors hold texts to a structure.
        """
        self._vllm, self._llm, self._name, self._guided = vllm, llm, name, guided
        self._lock = threading.Lock()
        self._refusal: type[Exception] = import_module("vllm.exceptions").VLLMClientError
        Finalize(self, _close, (self._lock, llm), exitpriority=0)  # before Python waits for child processes, at its end
        self.context_length: int = llm.model_config.max_model_len

    def tokenize(self, chat: ChatType, template: str | None) -> list[int]:
        """The tokens of a chat, as `LLM.chat` has them: spelled out up to where the answer begins.

        Args:
            chat: Messages of text.
            template: Another one than the tokenizer's own.

        Raises:
            Fatal: If there is no template.
            Rejected: If the template refuses the chat, or it is too long.
        """
        messages = [{**message, "content": message_text(message)} for message in chat]
        refused = ""
        try:
            with self._lock:
                tokens = self._llm._preprocess_chat_one(messages, chat_template=template)["prompt_token_ids"]
        except self._refusal as error:
            tokens, refused = [], error_message(error)
        except ValueError as error:
            if type(error).__name__ != "ChatTemplateResolutionError":
                raise
            raise Fatal(
                f"`{self._name}` has no chat template: set `chat_template` to the Jinja template that the model was "
                "trained with, or take a model that was trained on chats."
            ) from None
        if refused:  # out here, where the error has no context that would hold on to this engine
            raise Rejected(f"`{self._name}` cannot read this chat: {refused}")
        if not 0 < len(tokens) < self.context_length:
            raise Rejected(
                f"The chat has {len(tokens)} tokens, which is too long for the {self.context_length} that "
                f"`{self._name}` reads."
            )
        return tokens

    def _call(self, ask: Any, *args: Any, **kwargs: Any) -> list[Any]:
        """What vLLM answers, one thread at a time.

        Raises:
            Fatal: If it refuses a parameter, or its process has ended.
        """
        try:
            with self._lock:
                return ask(*args, use_tqdm=False, **kwargs)
        except (self._refusal, ValueError) as error:
            raise Fatal(f"vLLM refuses this for `{self._name}`: {error_message(error)}") from None
        except RuntimeError as error:
            if type(error).__name__ != "EngineDeadError":
                raise
            raise Fatal(
                f"The engine of `{self._name}` has ended, and its log says why. Where memory ran out, lower "
                "`gpu_memory_utilization` or `max_model_len`; `unload()` and it starts again."
            ) from None


class TextEngine(VllmEngine):
    """An engine that writes texts.

    Attributes:
        defaults: How tokens are chosen where a call does not say, as the model's own configuration has it.
        max_new_tokens: Tokens of a text at most where a call does not say.
    """

    def __init__(self, vllm: Any, llm: Any, name: str, guided: bool = False) -> None:
        """Take charge of an `LLM` that generates."""
        super().__init__(vllm, llm, name, guided)
        self._folder = tempfile.TemporaryDirectory(prefix="distilflow-")
        self._files: weakref.WeakKeyDictionary[Automaton, Path] = weakref.WeakKeyDictionary()
        self._numbers = count()
        self.defaults: dict[str, Any] = llm.model_config.get_diff_sampling_param()
        self.max_new_tokens: int = self.defaults.pop("max_tokens", None) or DEFAULT_MAX_NEW_TOKENS

    def automaton(self, structure: StructuredOutputType) -> Automaton:
        """What holds texts to a structure.

        Raises:
            Fatal: If it cannot be compiled; the message says why.
        """
        if not self._guided:
            raise Fatal("`structured_output` and speculative decoding exclude each other: vLLM cannot guide drafts.")
        return self._compiler.compile(structure)

    def write(self, texts: list[TokenSequence], options: dict[str, Any]) -> None:
        """Write all `texts` to their ends; vLLM decides how many at once.

        Args:
            options: How to choose their tokens, in vLLM's words.

        Raises:
            Fatal: If vLLM refuses them, or has ended.
        """
        try:
            params = [self._params(text, options) for text in texts]
        except (TypeError, ValueError, self._refusal) as error:
            raise Fatal(f"Runtime parameters of `vLLM`: {error_message(error)}") from None
        prompts = [{"prompt_token_ids": text.prompt} for text in texts]
        for text, answer in zip(texts, self._call(self._llm.generate, prompts, params), strict=True):
            self._take(text, answer.outputs[0])

    @cached_property
    def _ends(self) -> list[int]:
        """The tokens that end a text: the tokenizer's and the model's."""
        configured = self._llm.model_config.try_get_generation_config().get("eos_token_id")
        tokens = [
            self._llm.get_tokenizer().eos_token_id,
            *(configured if isinstance(configured, list) else [configured]),
        ]
        return list(dict.fromkeys(token for token in tokens if token is not None))

    @cached_property
    def _pieces(self) -> list[bytes]:
        """The bytes that every token stands for; none where it is special."""
        return token_bytes(self._llm.get_tokenizer(), self._ends)

    @cached_property
    def _compiler(self) -> Compiler:
        """What compiles structures for this model's tokens."""
        numbers: dict[bytes, list[int]] = {}
        for token, piece in enumerate(self._pieces[: self._llm.model_config.get_vocab_size()]):
            if piece:
                numbers.setdefault(piece, []).append(token)
        return Compiler(numbers, self._ends[0] if self._ends else len(self._pieces))

    def _params(self, text: TokenSequence, options: dict[str, Any]) -> Any:
        own: dict[str, Any] = {"max_tokens": text.max_tokens, "seed": text.derived_seed()}
        if text.automaton:
            held = {"automaton": str(self._file(text.automaton)), "ends": self._ends}
            own["extra_args"] = {**(options.get("extra_args") or {}), EXTRA_ARGS_KEY: held}
            own["stop_token_ids"] = self._ends
        return self._vllm.SamplingParams(**{**options, **own})

    def _file(self, automaton: Automaton) -> Path:
        """Where vLLM's processes find an automaton, as long as it is in use."""
        with self._lock:
            if automaton not in self._files:
                path = Path(self._folder.name, str(next(self._numbers)))
                path.write_bytes(pickle.dumps(automaton, protocol=pickle.HIGHEST_PROTOCOL))
                weakref.finalize(automaton, path.unlink, missing_ok=True)
                self._files[automaton] = path
            return self._files[automaton]

    def _take(self, text: TokenSequence, answer: Any) -> None:
        text.tokens, text.text, reason = list(answer.token_ids), answer.text, answer.finish_reason
        if reason not in ("stop", "length"):
            text.error = Rejected(f"vLLM did not finish this text: it ended with `{reason}`.")
        text.finish_reason = "stop" if reason == "stop" else "length"
        if text.automaton:  # whole when the last token is spent; and to the letter, as a tokenizer may tidy up
            text.finish_reason = "stop"
            known = len(self._pieces)
            spelled = b"".join(self._pieces[token] for token in text.tokens if token < known)
            text.text = spelled.decode(errors="replace")
        if answer.logprobs is not None:
            text.logprobs = [_place(*each) for each in zip(text.tokens, answer.logprobs, strict=True)]


class HiddenStateEngine(VllmEngine):
    """An engine that reads: what a pooling model is to vLLM."""

    def hidden_states(self, prompts: list[list[int]]) -> list[HiddenState]:
        """The last hidden state of every token of every prompt."""
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        found = self._call(self._llm.encode, asked, pooling_task="token_embed")
        return [each.outputs.data.float().cpu().numpy() for each in found]


def _place(token: int, likely: dict[int, Any]) -> list[TokenLogprob]:
    """The token that was chosen at one place, then the likeliest others."""
    others = sorted((number for number in likely if number != token), key=lambda number: likely[number].rank)
    return [
        TokenLogprob(token=likely[number].decoded_token or "", logprob=float(likely[number].logprob))
        for number in (token, *others)
    ]


def _close(lock: threading.Lock, llm: Any) -> None:
    lock.acquire(timeout=EXIT_TIMEOUT_S)  # and keep it: nobody is to ask an engine that ends
    llm.llm_engine.engine_core.shutdown(timeout=SHUTDOWN_TIMEOUT_S)


def error_message(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())[:500] or type(error).__name__
