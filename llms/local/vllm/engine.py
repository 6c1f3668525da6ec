"""Engines of vLLM, which computes in processes of its own: chats to tokens, sequences, and hidden states."""

import pickle
import tempfile
import threading
import weakref
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
from llms.local.generation import TokenSequence
from llms.local.transformers.tokens import compiler_of, token_bytes
from llms.local.vllm.guide import EXTRA_ARGS_KEY
from llms.typing import ChatType, HiddenState, StructuredOutputType, TokenLogprob

DEFAULT_MAX_NEW_TOKENS = 1024
"""Tokens of a text at most, where neither a call nor the model says."""

EXIT_TIMEOUT_S = 5.0
"""How long freeing an engine waits for a thread that still calls it."""

SHUTDOWN_TIMEOUT_S = 30.0
"""How long vLLM's processes have to end before they are killed."""


class VllmEngine:
    """One model in vLLM. Threads take turns; its processes end when nobody holds it any more.

    Attributes:
        context_length: Tokens of one chat, its answer included.
    """

    def __init__(self, vllm: Any, llm: Any, name: str, has_guide: bool = False) -> None:
        """Take over an `LLM` of vLLM.

        Args:
            vllm: The package.
            name: The model's name in errors.
            has_guide: Whether our logits processor is installed.
        """
        self._vllm, self._llm, self._name, self._has_guide = vllm, llm, name, has_guide
        self._lock = threading.Lock()
        self._client_error: type[Exception] = import_module("vllm.exceptions").VLLMClientError
        Finalize(self, _close, (self._lock, llm), exitpriority=0)  # before Python waits for child processes, at its end
        self.context_length: int = llm.model_config.max_model_len

    def tokenize(self, chats: list[ChatType], template: str | None) -> list[list[int] | Rejected]:
        """Apply the chat template and tokenize as `LLM.chat` does, up to where the answer begins.

        Args:
            chats: Messages of text.
            template: Replaces the tokenizer's own.

        Raises:
            Fatal: If there is no template.
        """
        return [self._tokenize_chat(chat, template) for chat in chats]

    def _tokenize_chat(self, chat: ChatType, template: str | None) -> list[int] | Rejected:
        try:
            messages = [{**message, "content": message_text(message)} for message in chat]
            with self._lock:
                return self._llm._preprocess_chat_one(messages, chat_template=template)["prompt_token_ids"]
        except Rejected as error:
            return error.with_traceback(None)  # which would hold on to this engine
        except self._client_error as error:
            return Rejected(f"`{self._name}` cannot read this chat: {error_message(error)}")
        except ValueError as error:
            if type(error).__name__ != "ChatTemplateResolutionError":
                raise
            raise Fatal(
                f"`{self._name}` has no chat template: set `chat_template` to the Jinja template that the model was "
                "trained with, or take a model that was trained on chats."
            ) from None

    def _call(self, method: Any, *args: Any, **kwargs: Any) -> list[Any]:
        """Call vLLM, one thread at a time.

        Raises:
            Fatal: If it refuses a parameter, or its process has ended.
        """
        try:
            with self._lock:
                return method(*args, use_tqdm=False, **kwargs)
        except (self._client_error, ValueError) as error:
            raise Fatal(f"vLLM refuses this for `{self._name}`: {error_message(error)}") from None
        except RuntimeError as error:
            if type(error).__name__ != "EngineDeadError":
                raise
            raise Fatal(
                f"The engine of `{self._name}` has ended, and its log says why. Where memory ran out, lower "
                "`gpu_memory_utilization` or `max_model_len`; `unload()` and it starts again."
            ) from None


class TextEngine(VllmEngine):
    """An engine that generates texts.

    Attributes:
        defaults: Sampling parameters of the model's own configuration.
        max_new_tokens: Tokens of a text at most, where a call does not say.
    """

    def __init__(self, vllm: Any, llm: Any, name: str, has_guide: bool = False) -> None:
        """Take over an `LLM` that generates."""
        super().__init__(vllm, llm, name, has_guide)
        self._folder = tempfile.TemporaryDirectory(prefix="distilflow-")
        self._files: weakref.WeakKeyDictionary[Automaton, Path] = weakref.WeakKeyDictionary()
        self._file_numbers = count()
        self.defaults: dict[str, Any] = llm.model_config.get_diff_sampling_param()
        self.max_new_tokens: int = self.defaults.pop("max_tokens", None) or DEFAULT_MAX_NEW_TOKENS

    def compile(self, structure: StructuredOutputType) -> Automaton:
        """Compile a structure for this model's tokens.

        Raises:
            Fatal: If it cannot be compiled; the message says why.
        """
        if not self._has_guide:
            raise Fatal("`structured_output` and speculative decoding exclude each other: vLLM cannot guide drafts.")
        return self._compiler.compile(structure)

    def write(self, sequences: list[TokenSequence], sampling: dict[str, Any]) -> None:
        """Generate all sequences to their ends; vLLM decides how many at once.

        Args:
            sampling: Arguments of vLLM's `SamplingParams`.

        Raises:
            Fatal: If vLLM refuses them, or has ended.
        """
        try:
            params = [self._sampling_params(sequence, sampling) for sequence in sequences]
        except (TypeError, ValueError, self._client_error) as error:
            raise Fatal(f"Runtime parameters of `vLLM`: {error_message(error)}") from None
        prompts = [{"prompt_token_ids": sequence.prompt} for sequence in sequences]
        for sequence, request in zip(sequences, self._call(self._llm.generate, prompts, params), strict=True):
            self._read(sequence, request.outputs[0])

    @cached_property
    def _end_tokens(self) -> list[int]:
        """The tokens that end a text: the tokenizer's and the model's."""
        configured = self._llm.model_config.try_get_generation_config().get("eos_token_id")
        tokens = [
            self._llm.get_tokenizer().eos_token_id,
            *(configured if isinstance(configured, list) else [configured]),
        ]
        return list(dict.fromkeys(token for token in tokens if token is not None))

    @cached_property
    def _token_bytes(self) -> list[bytes]:
        """The bytes of every token; empty where it is special."""
        return token_bytes(self._llm.get_tokenizer(), self._end_tokens)

    @cached_property
    def _compiler(self) -> Compiler:
        return compiler_of(self._token_bytes[: self._llm.model_config.get_vocab_size()], self._end_tokens)

    def _sampling_params(self, sequence: TokenSequence, sampling: dict[str, Any]) -> Any:
        own: dict[str, Any] = {"max_tokens": sequence.max_tokens, "seed": _derived_seed(sequence)}
        if sequence.stop:
            own["stop"] = list(sequence.stop)
        if sequence.automaton:
            constraint = {"automaton": str(self._file(sequence.automaton)), "end_tokens": self._end_tokens}
            own["extra_args"] = {**(sampling.get("extra_args") or {}), EXTRA_ARGS_KEY: constraint}
            own["stop_token_ids"] = self._end_tokens
        return self._vllm.SamplingParams(**{**sampling, **own})

    def _file(self, automaton: Automaton) -> Path:
        """Return the file in which vLLM's processes find an automaton, as long as it is in use."""
        with self._lock:
            if automaton not in self._files:
                path = Path(self._folder.name, str(next(self._file_numbers)))
                path.write_bytes(pickle.dumps(automaton, protocol=pickle.HIGHEST_PROTOCOL))
                weakref.finalize(automaton, path.unlink, missing_ok=True)
                self._files[automaton] = path
            return self._files[automaton]

    def _read(self, sequence: TokenSequence, completion: Any) -> None:
        """Take over the tokens that vLLM generated."""
        reason = completion.finish_reason
        sequence.tokens, sequence.text = list(completion.token_ids), completion.text
        if reason not in ("stop", "length"):
            sequence.error = Rejected(f"vLLM did not finish this text: it ended with `{reason}`.")
        sequence.finish_reason = "stop" if reason == "stop" else "length"
        if sequence.automaton:  # complete with its last token; byte by byte, as a tokenizer's clean-up may break it
            sequence.finish_reason = "stop"
            known = len(self._token_bytes)
            spelling = b"".join(self._token_bytes[token] for token in sequence.tokens if token < known)
            sequence.text = spelling.decode(errors="replace")
        if completion.logprobs is not None:
            sequence.logprobs = [_logprobs(*each) for each in zip(sequence.tokens, completion.logprobs, strict=True)]


class HiddenStateEngine(VllmEngine):
    """An engine that computes hidden states: a pooling model in vLLM's words."""

    def hidden_states(self, prompts: list[list[int]]) -> list[HiddenState]:
        """Compute the last hidden state of every token of every prompt."""
        requests = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self._call(self._llm.encode, requests, pooling_task="token_embed")
        return [each.outputs.data.float().cpu().numpy() for each in outputs]


def _derived_seed(sequence: TokenSequence) -> int | None:
    """Derive the seed of a sequence."""
    entropy = sequence.entropy
    return None if entropy is None else int(np.random.SeedSequence(entropy).generate_state(1)[0])


def _logprobs(token: int, likeliest: dict[int, Any]) -> list[TokenLogprob]:
    """Return the log probabilities at one position: of the sampled token, then of the most likely others."""
    others = sorted((each for each in likeliest if each != token), key=lambda each: likeliest[each].rank)
    return [
        TokenLogprob(token=likeliest[each].decoded_token or "", logprob=float(likeliest[each].logprob))
        for each in (token, *others)
    ]


def _close(lock: threading.Lock, llm: Any) -> None:
    lock.acquire(timeout=EXIT_TIMEOUT_S)  # and keep it: nobody is to call an engine that ends
    llm.llm_engine.engine_core.shutdown(timeout=SHUTDOWN_TIMEOUT_S)


def error_message(error: Exception) -> str:
    """Return an error's message in one line."""
    return " ".join(str(error).split())[:500] or type(error).__name__
