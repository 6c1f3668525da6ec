"""llama.cpp in this process, through llama-cpp-python: GGUF models, held to a schema or a pattern token by token."""

import os
import re
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, HttpUrl, model_validator

from llms import local
from llms.clients.chat_template import render_chat
from llms.config.extras import import_optional
from llms.config.strict import StrictModel
from llms.errors import Fatal, Rejected
from llms.local.automaton import Automaton, Guide
from llms.local.base import LocalLLM, raise_if_rejected
from llms.local.generation import PendingGenerations, generate_validated
from llms.local.llama_cpp.engine import LlamaEngine, TokenSequence, set_verbose
from llms.local.sampling import Sampler
from llms.options import (
    MaxNewTokens,
    MinP,
    RepetitionPenalty,
    StopTexts,
    Temperature,
    TokenFrequencyPenalty,
    TokenPresencePenalty,
    TopKOrAll,
    TopP,
    UnsignedSeed,
)
from llms.typing import ChatType, GenerateOutput, HiddenState

SPLIT_FILE_NAME = re.compile(r"(?P<name>.*)-00001-of-(?P<count>\d{5})\.gguf")
"""The name of the first of several files that hold one model."""


class LlamaCppLLM(LocalLLM):
    """Any GGUF model, run by llama.cpp inside this process.

    Chats are answered together, as many at once as `n_parallel` says. With a `structured_output` every token is chosen
    among those that keep to it, and every answer is finished within `max_new_tokens`. Equal blocks share one engine.

    Example:
        ```python
        from llms import LlamaCppLLM

        llm = LlamaCppLLM.load("BLOCK_NAME")
        llm.generate([[{"role": "user", "content": "What's the capital of Spain?"}]])
        ```
    """

    packages: ClassVar[tuple[str, ...]] = ("llama-cpp-python",)

    _block_type_name = "Llama Cpp LLM"
    _documentation_url = HttpUrl("https://llama-cpp-python.readthedocs.io")
    _logo_url = HttpUrl("https://cdn.simpleicons.org/meta")

    model_path: Path | None = Field(default=None, description="Path of a GGUF file; or else it is on the Hub.")
    repo_id: str | None = Field(
        default=None, description="Repository on the Hub, such as `Qwen/Qwen3-0.6B-GGUF`, to download the file from."
    )
    filename: str | None = Field(
        default=None, description="Name of the GGUF file in the repository; the first one's, where there are several."
    )
    n_gpu_layers: int = Field(default=-1, ge=-1, description="Layers on the GPU, where there is one; -1 means all.")
    n_ctx: int = Field(default=1024, gt=0, description="Tokens of context of one chat, its answer included.")
    n_batch: int = Field(default=512, gt=0, description="Tokens to compute at once, at most.")
    n_parallel: int = Field(default=8, gt=0, le=256, description="Chats answered at the same time.")
    n_threads: int | None = Field(default=None, gt=0, description="Threads to compute with; half the cores when empty.")
    seed: int | None = Field(default=None, ge=0, description="Makes sampling repeatable, unless a call has its own.")
    max_schema_retries: int = Field(
        default=4, ge=0, description="How often a text is written again that misses what no automaton can say."
    )
    verbose: bool = Field(default=False, description="Whether llama.cpp says what it does, on the error stream.")

    class Options(StrictModel):
        """Runtime parameters."""

        max_new_tokens: MaxNewTokens = Field(
            default=None, description="Tokens to generate at most; all that the context has room for when empty."
        )
        temperature: Temperature = None
        top_k: TopKOrAll = None
        top_p: TopP = None
        min_p: MinP = None
        stop: StopTexts = None
        seed: UnsignedSeed = None
        frequency_penalty: TokenFrequencyPenalty = None
        presence_penalty: TokenPresencePenalty = None
        repetition_penalty: RepetitionPenalty = None

    @model_validator(mode="after")
    def _is_in_one_place(self) -> Self:
        given = [f"`{name}`" for name in ("model_path", "repo_id", "filename") if getattr(self, name)]
        if given not in (["`model_path`"], ["`repo_id`", "`filename`"]):
            found = " and ".join(given) or "none"
            raise ValueError(f"give either `model_path`, or `repo_id` and `filename` to download it, not {found}.")
        return self

    @property
    def model_name(self) -> str:
        """The file's name without its ending."""
        return Path(self.model_path or self.filename or "").stem

    def prepare(self) -> None:
        """Load the model, downloading it first where it is not here yet, and compile what its texts are held to."""
        self._automaton(self._engine())

    def generate(self, inputs: list[ChatType], num_generations: int = 1, **kwargs: Any) -> list[GenerateOutput]:
        """Answer every chat, many at once and in order.

        Returns:
            One output per chat; one that does not fit in the context, or found no valid text, has its `error`.

        Raises:
            Fatal: If no request can work: a missing package or file, a misspelt parameter, a `max_new_tokens` that is
                too small for the `structured_output`.
        """
        return self.generate_together([(self, chat) for chat in inputs], num_generations, **kwargs)

    def generate_together(
        self, requests: Sequence[tuple[Self, ChatType]], num_generations: int = 1, **kwargs: Any
    ) -> list[GenerateOutput]:
        """The same for chats that have structures of their own, in one batch.

        Args:
            requests: Of each chat, this block or a copy that is held to another structure. What such a copy cannot be
                held to costs the answers of its own chats only.
        """
        options = self.options(kwargs).model_dump(exclude_none=True)
        engine = self._engine()
        automata = self._of_each(requests, lambda llm: llm._held(engine, options))
        started = time.perf_counter()
        answers = [llm._answer(engine, automata[id(llm)], chat, num_generations, options) for llm, chat in requests]
        return generate_validated(answers, lambda texts, _: engine.write(texts), 1 + self.max_schema_retries, started)

    def get_last_hidden_state(self, inputs: list[ChatType]) -> list[HiddenState]:
        """The last hidden state of every chat, as its template spells it out: `[num_tokens, hidden_size]` each.

        Raises:
            Rejected: If a chat does not fit in the context.
        """
        engine = self._engine()
        return engine.hidden_states([self._prompt(engine, chat) for chat in inputs])

    def _engine_key(self) -> tuple[object, ...]:
        sizes = (self.n_ctx, self.n_batch, self.n_parallel, self.n_gpu_layers, self.n_threads)
        return (type(self), self.model_path, self.repo_id, self.filename, *sizes)

    def _engine(self) -> LlamaEngine:
        return local.shared_engine(self._engine_key(), self._start)

    def _start(self) -> LlamaEngine:
        llama_cpp = import_optional("llama_cpp", self)
        set_verbose(self.verbose)
        return LlamaEngine(
            llama_cpp,
            self._file(),
            n_ctx=self.n_ctx,
            n_parallel=self.n_parallel,
            n_batch=self.n_batch,
            n_gpu_layers=self.n_gpu_layers,
            n_threads=self.n_threads or max(1, (os.cpu_count() or 2) // 2),
        )

    def _file(self) -> Path:
        """The GGUF file, downloaded where it is on the Hub and not here yet."""
        if self.model_path is None:
            return self._downloaded(self.repo_id or "", self.filename or "")
        if not self.model_path.is_file():
            raise Fatal(
                f"`LlamaCppLLM` finds no file `{self.model_path}`: `model_path` is the path of a GGUF file. To "
                "download one from the Hub, give `repo_id` and `filename` instead."
            )
        return self.model_path

    def _downloaded(self, repo_id: str, filename: str) -> Path:
        hub = import_optional("huggingface_hub", self)
        split = SPLIT_FILE_NAME.fullmatch(filename)
        count = int(split["count"]) if split else 1
        names = [f"{split['name']}-{at:05}-of-{count:05}.gguf" for at in range(1, count + 1)] if split else [filename]
        try:
            first, *_ = [hub.hf_hub_download(repo_id, name) for name in names]
        except (OSError, ValueError) as error:
            why = " ".join(str(error).split())[:500]
            raise Fatal(
                f"`LlamaCppLLM` cannot download `{filename}` of `{repo_id}`: {why} Check `repo_id` and `filename`; a "
                "model that is not open to all wants a token in `HF_TOKEN`."
            ) from None
        return Path(first)

    def _held(self, engine: LlamaEngine, options: dict[str, Any]) -> Automaton | None:
        """What texts with these options are held to."""
        automaton, limit = self._automaton(engine), options.get("max_new_tokens")
        if automaton and limit and limit < automaton.min_tokens:
            raise Fatal(
                f"`structured_output` needs `max_new_tokens` of {automaton.min_tokens} or more: {limit} is too small."
            )
        if automaton and "stop" in options:
            raise Fatal("`stop` and `structured_output` exclude each other: a structure has an end of its own.")
        return automaton

    def _automaton(self, engine: LlamaEngine) -> Automaton | None:
        if self.structured_output is None:
            return None
        import_optional("outlines_core", self)
        return engine.compiler.compile(self.structured_output)

    def _answer(
        self,
        engine: LlamaEngine,
        held: Automaton | Rejected | None,
        chat: ChatType,
        num_generations: int,
        options: dict[str, Any],
    ) -> PendingGenerations[TokenSequence]:
        """An answer that is still to be written; one without texts, and why, to a chat that cannot have any."""
        error, prompt, limit, automaton = None, list[int](), 0, None
        try:
            automaton = raise_if_rejected(held)
            prompt = self._prompt(engine, chat)
            limit = min(options.get("max_new_tokens", self.n_ctx), self.n_ctx - len(prompt))
            if automaton and limit < automaton.min_tokens:
                raise Rejected(
                    f"The chat has {len(prompt)} tokens, `n_ctx={self.n_ctx}` leaves {limit} for an answer, and "
                    f"`structured_output` needs {automaton.min_tokens}."
                )
        except Rejected as rejected:
            error = rejected.with_traceback(None)  # which would hold on to the engine
        new = partial(_text, prompt, limit, automaton, {"seed": self.seed, **options})
        return PendingGenerations(self.structured_output, num_generations, new, len(prompt), error)

    def _prompt(self, engine: LlamaEngine, chat: ChatType) -> list[int]:
        """The tokens of a chat that leaves room for an answer."""
        special = {f"{name}_token": engine.special(name) for name in ("bos", "eos")}
        tokens = engine.tokenize(render_chat(engine.template, chat, **special))
        if not 0 < len(tokens) < self.n_ctx:
            raise Rejected(f"The chat has {len(tokens)} tokens, which is too long for `n_ctx={self.n_ctx}`.")
        return tokens


def _text(
    prompt: list[int], limit: int, automaton: Automaton | None, options: dict[str, Any], number: int, attempt: int
) -> TokenSequence:
    """A text to be written: this generation of an answer, this often begun."""
    options = dict(options)
    seed, stop = options.pop("seed"), options.pop("stop", [])
    options.pop("max_new_tokens", None)
    if attempt and options.get("temperature") == 0:  # the likeliest text had the mistake: take another
        del options["temperature"]
        seed = seed or 0
    return TokenSequence(
        prompt,
        limit,
        Sampler(None if seed is None else [seed, number, attempt], **options),
        Guide(automaton, limit) if automaton else None,
        tuple(each.encode() for each in ([stop] if isinstance(stop, str) else stop) if each),
    )
