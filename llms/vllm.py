"""Models in vLLM, on this machine's GPUs or its processor, held to a schema or a pattern token by token."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, HttpUrl, SecretStr

from llms import local
from llms.config.strict import StrictModel
from llms.errors import Fatal, Rejected
from llms.local.automaton import Automaton
from llms.local.base import LocalLLM, raise_if_rejected
from llms.local.generation import PendingGenerations, generate_validated
from llms.local.vllm.engine import HiddenStateEngine, TextEngine, TokenSequence
from llms.local.vllm.launch import start_engine
from llms.options import (
    MaxNewTokens,
    MinP,
    RepetitionPenalty,
    StopTexts,
    Temperature,
    TokenFrequencyPenalty,
    TokenPresencePenalty,
    TopP,
    UnsignedSeed,
)
from llms.typing import ChatType, GenerateOutput, HiddenState

ENGINE_FIELDS = {
    "cuda_devices",
    "dtype",
    "enforce_eager",
    "engine_kwargs",
    "gpu_memory_utilization",
    "max_model_len",
    "model",
    "quantization",
    "revision",
    "tensor_parallel_size",
    "tokenizer",
    "tokenizer_mode",
    "tokenizer_revision",
    "trust_remote_code",
}
"""The fields that equal engines have in common."""


class vLLM(LocalLLM):
    """Any text model that vLLM runs: from the Hub or a folder, on one GPU or on several, or on a processor.

    Chats are answered together; vLLM decides how many at once. With a `structured_output` every token is chosen among
    those that keep to it, and every answer is finished within `max_new_tokens`. Equal blocks share one engine, whose
    processes end with `unload()`. GPUs are counted among those of `CUDA_VISIBLE_DEVICES`.

    vLLM lives in an environment of its own, and starts processes: a script needs `if __name__ == "__main__":`.

    Example:
        ```python
        from llms import vLLM

        llm = vLLM.load("BLOCK_NAME")
        llm.generate([[{"role": "user", "content": "What's the capital of Spain?"}]])
        ```
    """

    packages: ClassVar[tuple[str, ...]] = ("torch", "transformers", "vllm")

    _block_type_name = "vLLM"
    _documentation_url = HttpUrl("https://docs.vllm.ai")
    _logo_url = HttpUrl(
        "https://raw.githubusercontent.com/vllm-project/vllm/main/docs/assets/logos/vllm-logo-text-light.png"
    )

    model: str = Field(description="Name of a model on the Hub, or path of a folder.")
    revision: str | None = Field(default=None, description="Branch, tag or commit of the model on the Hub.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto", description="Type of the weights; as they were saved when `auto`."
    )
    quantization: str | None = Field(
        default=None, description="How the weights are made smaller, such as `fp8`; as they were saved when empty."
    )
    trust_remote_code: bool = Field(default=False, description="Whether code that comes with the model may run here.")
    tokenizer: str | None = Field(default=None, description="Name or path of another tokenizer than the model's.")
    tokenizer_mode: str = Field(default="auto", description="Which kind of tokenizer to load, in vLLM's words.")
    tokenizer_revision: str | None = Field(default=None, description="Branch, tag or commit of the tokenizer.")
    chat_template: str | None = Field(default=None, description="Jinja template of chats; the tokenizer's when empty.")
    tensor_parallel_size: int = Field(default=1, gt=0, description="How many GPUs every layer is spread over.")
    gpu_memory_utilization: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of a GPU's memory to take; vLLM's own when empty, and of a processor's a quarter of what is "
        "free. Texts and hidden states have an engine each, which takes as much.",
    )
    max_model_len: int | None = Field(
        default=None, gt=0, description="Tokens of one chat, its answer included; what the model reads when empty."
    )
    enforce_eager: bool = Field(default=False, description="Whether to start sooner and write slower, uncompiled.")
    cuda_devices: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | Literal["auto"] = Field(
        default="auto", description="Numbers of the GPUs to use, from 0; the first ones when `auto`."
    )
    engine_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="What else vLLM's engine is told, in its own words."
    )
    token: SecretStr | None = Field(
        default=None, description="Token of the Hub, for models that want one; `HF_TOKEN` when empty."
    )
    seed: int | None = Field(default=None, ge=0, description="Makes sampling repeatable, unless a call has its own.")

    class Options(StrictModel):
        """Runtime parameters. Those that are unset are as the model's own configuration has them."""

        max_new_tokens: MaxNewTokens = Field(
            default=None, description="Tokens to generate at most; 1024 when neither this nor the model says."
        )
        temperature: Temperature = Field(default=None, le=2)
        top_k: int | None = Field(default=None, ge=-1, description="Sample from this many tokens; 0 means all.")
        top_p: TopP = None
        min_p: MinP = None
        frequency_penalty: TokenFrequencyPenalty = Field(default=None, ge=-2, le=2)
        presence_penalty: TokenPresencePenalty = Field(default=None, ge=-2, le=2)
        repetition_penalty: RepetitionPenalty = None
        stop: StopTexts = None
        stop_token_ids: list[int] | None = Field(default=None, description="Tokens at which generation ends.")
        seed: UnsignedSeed = None
        logprobs: int | None = Field(
            default=None, ge=0, description="How many likeliest tokens to name at each place, with the one chosen."
        )
        extra_sampling_params: dict[str, Any] | None = Field(
            default=None, description="What else vLLM's `SamplingParams` are told, in their own words."
        )

    @property
    def model_name(self) -> str:
        """The name or path of the model."""
        return self.model

    def prepare(self) -> None:
        """Start the engine, downloading the model first where it is not here yet, and compile the structure."""
        self._automaton(self._writer())

    def prepare_hidden_states(self) -> None:
        """Start the engine that hidden states come from, and no other: a GPU has no room for both at once."""
        self._reader()

    def unload(self) -> None:
        """End the engine's processes, once nobody asks them any more."""
        super().unload()
        local.free_engine(self._engine_key(HiddenStateEngine))

    def generate(self, inputs: list[ChatType], num_generations: int = 1, **kwargs: Any) -> list[GenerateOutput]:
        """Answer every chat, many at once and in order.

        With a `seed`, what a chat is answered does not depend on which others are asked with it, as far as the
        device's arithmetic does not.

        Returns:
            One output per chat; one that is too long for the model, or found no valid text, has its `error`.

        Raises:
            Fatal: If no request can work: a missing package, model or chat template, a misspelt parameter, a
                `max_new_tokens` that is too small for the `structured_output`.
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
        engine = self._writer()
        limit = options.pop("max_new_tokens", engine.max_new_tokens)
        automata = self._of_each(requests, lambda llm: llm._held(engine, limit, options))
        started = time.perf_counter()
        seed = options.pop("seed", self.seed)
        sampling = {**engine.defaults, **options.pop("extra_sampling_params", {}), **options}
        greedy = sampling.get("temperature") == 0
        form = TokenSequence(prompt=[], max_tokens=limit, seed=(seed or 0) if greedy else seed)
        answers = [llm._answer(engine, form, automata[id(llm)], chat, num_generations) for llm, chat in requests]

        def write(texts: list[TokenSequence], attempt: int) -> None:
            # Where the likeliest text had a mistake, another is taken.
            engine.write(texts, {**sampling, "temperature": 1.0} if attempt and greedy else sampling)

        outputs = generate_validated(answers, write, 1 + self.max_schema_retries, started)
        for answer, output in zip(answers, outputs, strict=True):
            output.logprobs = [text.logprobs for text in answer.sequences.values()] or output.logprobs
        return outputs

    def get_last_hidden_state(self, inputs: list[ChatType]) -> list[HiddenState]:
        """The last hidden state of every chat, as its template spells it out: `[num_tokens, hidden_size]` each.

        Raises:
            Rejected: If a chat is too long for the model.
        """
        engine = self._reader()
        return engine.hidden_states([engine.tokenize(chat, self.chat_template) for chat in inputs])

    def _engine_key(self, kind: type = TextEngine) -> tuple[object, ...]:
        settings = self.model_dump(mode="json", include=ENGINE_FIELDS)
        return (type(self), kind, json.dumps(settings, sort_keys=True, default=repr))

    def _writer(self) -> TextEngine:
        return local.shared_engine(self._engine_key(), lambda: start_engine(self, TextEngine))

    def _reader(self) -> HiddenStateEngine:
        return local.shared_engine(self._engine_key(HiddenStateEngine), lambda: start_engine(self, HiddenStateEngine))

    def _held(self, engine: TextEngine, limit: int, options: dict[str, Any]) -> Automaton | None:
        """What texts of so many tokens, with these options, are held to."""
        automaton = self._automaton(engine)
        if automaton and limit < automaton.min_tokens:
            raise Fatal(
                f"`structured_output` needs `max_new_tokens` of {automaton.min_tokens} or more: {limit} is too small."
            )
        if automaton and options.keys() & {"stop", "stop_token_ids"}:
            raise Fatal("`stop` and `structured_output` exclude each other: a structure has an end of its own.")
        return automaton

    def _automaton(self, engine: TextEngine) -> Automaton | None:
        return engine.automaton(self.structured_output) if self.structured_output else None

    def _answer(
        self,
        engine: TextEngine,
        form: TokenSequence,
        held: Automaton | Rejected | None,
        chat: ChatType,
        num_generations: int,
    ) -> PendingGenerations[TokenSequence]:
        """An answer that is still to be written; one without texts, and why, to a chat that cannot have any.

        Args:
            form: What its texts have in common with all others.
            held: What they are held to.
        """
        answer = PendingGenerations[TokenSequence](self.structured_output, num_generations, form.fresh_copy)
        try:
            automaton, tokens = raise_if_rejected(held), engine.tokenize(chat, self.chat_template)
            limit = min(form.max_tokens, engine.context_length - len(tokens))
            if automaton and limit < automaton.min_tokens:
                raise Rejected(
                    f"The chat has {len(tokens)} tokens, which leaves {limit} of the {engine.context_length} that "
                    f"`{self.model}` reads for an answer, and `structured_output` needs {automaton.min_tokens}."
                )
        except Rejected as error:
            answer.error = error.with_traceback(None)  # which would hold on to the engine
        else:
            answer.new_sequence = replace(form, prompt=tokens, limit=limit, automaton=automaton).fresh_copy
            answer.input_tokens = len(tokens)
        return answer
