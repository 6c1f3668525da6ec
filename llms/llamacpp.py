"""llama.cpp in this process, through llama-cpp-python: GGUF models, constrained token by token."""

import os
import re
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, HttpUrl, model_validator

from llms.config.extras import import_optional
from llms.config.strict import StrictModel
from llms.errors import Fatal
from llms.local.base import EngineKey
from llms.local.batched import BatchedLLM, Prompt, Write
from llms.local.llama_cpp.engine import LlamaEngine, set_verbose
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
from llms.typing import ChatType, HiddenState

SPLIT_FILE_NAME = re.compile(r"(?P<name>.*)-00001-of-(?P<count>\d{5})\.gguf")
"""Name of the first of several files that hold one model."""


class LlamaCppLLM(BatchedLLM):
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

    def _engine_key(self) -> EngineKey:
        sizes = (self.n_ctx, self.n_batch, self.n_parallel, self.n_gpu_layers, self.n_threads)
        return (type(self), self.model_path, self.repo_id, self.filename, *sizes)

    def _start_engine(self) -> LlamaEngine:
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

    def _context_name(self, engine: LlamaEngine) -> str:
        return f"`n_ctx={self.n_ctx}`"

    def _tokenize(self, engine: LlamaEngine, chats: list[ChatType]) -> list[Prompt]:
        return [engine.tokenize_chat(chat) for chat in chats]

    def _decoder(self, engine: LlamaEngine, options: dict[str, Any]) -> tuple[bool, Write]:
        greedy = options.get("temperature") == 0
        retry = {name: value for name, value in options.items() if name != "temperature"} if greedy else options
        return greedy, lambda sequences, attempt: engine.write(sequences, retry if attempt else options)

    def _hidden_states(self, engine: LlamaEngine, prompts: list[list[int]]) -> list[HiddenState]:
        return engine.hidden_states(prompts)

    def _file(self) -> Path:
        """Return the GGUF file, downloaded where it is on the Hub and not here yet."""
        if self.model_path is None:
            return self._download(self.repo_id or "", self.filename or "")
        if not self.model_path.is_file():
            raise Fatal(
                f"`LlamaCppLLM` finds no file `{self.model_path}`: `model_path` is the path of a GGUF file. To "
                "download one from the Hub, give `repo_id` and `filename` instead."
            )
        return self.model_path

    def _download(self, repo_id: str, filename: str) -> Path:
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
