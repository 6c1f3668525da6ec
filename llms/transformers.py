"""Models of Hugging Face's transformers in this process, in batches, held to a schema or a pattern token by token."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, HttpUrl, SecretStr

from llms import local
from llms.config.extras import import_optional
from llms.config.strict import StrictModel
from llms.errors import Fatal, Rejected
from llms.local.automaton import Automaton
from llms.local.base import LocalLLM, raise_if_rejected
from llms.local.generation import PendingGenerations, generate_validated
from llms.local.transformers.batch import TokenSequence
from llms.local.transformers.engine import TransformersEngine, empty_cache
from llms.local.transformers.weights import load_model
from llms.options import MaxNewTokens, MinP, RepetitionPenalty, StopTexts, Temperature, TopKOrAll, TopP, UnsignedSeed
from llms.typing import ChatType, GenerateOutput, HiddenState

ENGINE_FIELDS = {
    "adapter",
    "cuda_devices",
    "device",
    "device_map",
    "dtype",
    "model",
    "model_kwargs",
    "quantization",
    "revision",
    "tokenizer",
    "trust_remote_code",
    "use_fast",
}
"""The fields that equal engines have in common."""


class TransformersLLM(LocalLLM):
    """Any text model that Hugging Face's transformers can run: from the Hub, a folder or a GGUF file.

    Chats are answered together, as many at once as memory allows; where it runs out, with half as many from then on.
    With a `structured_output` every token is chosen among those that keep to it, and every answer is finished within
    `max_new_tokens`. Equal blocks share one engine. GPUs are counted among those of `CUDA_VISIBLE_DEVICES`.

    Example:
        ```python
        from llms import TransformersLLM

        llm = TransformersLLM.load("BLOCK_NAME")
        llm.generate([[{"role": "user", "content": "What's the capital of Spain?"}]])
        ```
    """

    packages: ClassVar[tuple[str, ...]] = ("torch", "transformers")

    _block_type_name = "Transformers LLM"
    _documentation_url = HttpUrl("https://huggingface.co/docs/transformers/main_classes/text_generation")
    _logo_url = HttpUrl("https://cdn.simpleicons.org/huggingface")

    model: str = Field(description="Name of a model on the Hub, or path of a folder or of a GGUF file.")
    revision: str = Field(default="main", description="Branch, tag or commit of the model on the Hub.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto", description="Type of the weights; as they were saved when `auto`, but never halves on a CPU."
    )
    quantization: Literal["4bit", "8bit"] | dict[str, Any] | None = Field(
        default=None, description="Smaller weights: by bitsandbytes, or by a `quantization_config` of transformers."
    )
    adapter: str | None = Field(default=None, description="Name on the Hub or path of a PEFT adapter to put on top.")
    trust_remote_code: bool = Field(default=False, description="Whether code that comes with the model may run here.")
    model_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="What else `from_pretrained` is told about the model."
    )
    tokenizer: str | None = Field(default=None, description="Name or path of another tokenizer than the model's.")
    use_fast: bool = Field(default=True, description="Whether to take a tokenizer written in Rust where there is one.")
    chat_template: str | None = Field(default=None, description="Jinja template of chats; the tokenizer's when empty.")
    device: str | int | None = Field(
        default=None,
        description="Where to compute, such as `cpu` or `cuda:1`; on a GPU when empty, where there is one.",
    )
    device_map: str | dict[str, int | str] | None = Field(
        default=None, description="How to spread the weights over devices, such as `auto`; goes before `device`."
    )
    cuda_devices: list[int] | Literal["auto"] = Field(
        default="auto", description="Numbers of the GPUs to use, without `device` and `device_map`; all when `auto`."
    )
    token: SecretStr | None = Field(
        default=None, description="Token of the Hub, for models that want one; `HF_TOKEN` when empty."
    )
    batch_size: int | None = Field(
        default=None, gt=0, description="Texts written at the same time at most; by the memory there is when empty."
    )
    seed: int | None = Field(default=None, ge=0, description="Makes sampling repeatable, unless a call has its own.")

    class Options(StrictModel):
        """Runtime parameters. Those that are unset are as the model's own configuration has them."""

        max_new_tokens: MaxNewTokens = Field(
            default=None, description="Tokens to generate at most; 1024 when neither this nor the model says."
        )
        do_sample: bool | None = Field(
            default=None, description="Whether to sample; not where the `temperature` is 0, and yes at any other given."
        )
        temperature: Temperature = None
        top_k: TopKOrAll = None
        top_p: TopP = None
        min_p: MinP = None
        typical_p: float | None = Field(
            default=None, gt=0, le=1, description="Sample from this much mass of what is about as likely as expected."
        )
        repetition_penalty: RepetitionPenalty = None
        stop: StopTexts = None
        seed: UnsignedSeed = None

    @property
    def model_name(self) -> str:
        """The name or path of the model."""
        return self.model

    def prepare(self) -> None:
        """Load the model, downloading it first where it is not here yet, and compile what its texts are held to."""
        self._automaton(self._engine())

    def unload(self) -> None:
        """Free the model's memory, once nobody uses it any more."""
        super().unload()
        if torch := sys.modules.get("torch"):
            empty_cache(torch)

    def generate(self, inputs: list[ChatType], num_generations: int = 1, **kwargs: Any) -> list[GenerateOutput]:
        """Answer every chat, many at once and in order.

        With a `seed`, what a chat is answered does not depend on which others are asked with it, as far as the
        device's arithmetic does not.

        Returns:
            One output per chat; one that is too long for the model or for memory, or found no valid text, has its
            `error`.

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
        engine = self._engine()
        limit = options.pop("max_new_tokens", engine.max_new_tokens)
        automata = self._of_each(requests, lambda llm: llm._held(engine, limit, options))
        started = time.perf_counter()
        stop, seed = options.pop("stop", ()), options.pop("seed", self.seed)
        sampling = engine.defaults.with_options(options)
        form = TokenSequence(
            prompt=[],
            max_tokens=limit,
            seed=seed if sampling.do_sample else seed or 0,
            stop=tuple(filter(None, [stop] if isinstance(stop, str) else stop)),
        )
        prompts = engine.tokenize([chat for _, chat in requests], self.chat_template)
        answers = [
            llm._answer(engine, form, automata[id(llm)], prompt, num_generations)
            for (llm, _), prompt in zip(requests, prompts, strict=True)
        ]

        def write(texts: list[TokenSequence], attempt: int) -> None:
            # Where the likeliest text had a mistake, another is taken.
            engine.write(texts, replace(sampling, do_sample=True) if attempt else sampling, self.batch_size)

        return generate_validated(answers, write, 1 + self.max_schema_retries, started)

    def get_last_hidden_state(self, inputs: list[ChatType]) -> list[HiddenState]:
        """The last hidden state of every chat, as its template spells it out: `[num_tokens, hidden_size]` each.

        Raises:
            Rejected: If a chat is too long for the model or for memory.
        """
        engine = self._engine()
        prompts = engine.tokenize(inputs, self.chat_template)
        return engine.hidden_states([self._fitting(engine, prompt) for prompt in prompts], self.batch_size)

    def _engine_key(self) -> tuple[object, ...]:
        return (type(self), json.dumps(self.model_dump(mode="json", include=ENGINE_FIELDS), sort_keys=True))

    def _engine(self) -> TransformersEngine:
        return local.shared_engine(self._engine_key(), self._start)

    def _start(self) -> TransformersEngine:
        torch, transformers = import_optional("torch", self), import_optional("transformers", self)
        return TransformersEngine(torch, transformers, *load_model(torch, transformers, self))

    def _held(self, engine: TransformersEngine, limit: int, options: dict[str, Any]) -> Automaton | None:
        """What texts with these options are held to."""
        automaton = self._automaton(engine)
        if automaton and limit < automaton.min_tokens:
            raise Fatal(
                f"`structured_output` needs `max_new_tokens` of {automaton.min_tokens} or more: {limit} is too small."
            )
        if automaton and "stop" in options:
            raise Fatal("`stop` and `structured_output` exclude each other: a structure has an end of its own.")
        return automaton

    def _automaton(self, engine: TransformersEngine) -> Automaton | None:
        if self.structured_output is None:
            return None
        import_optional("outlines_core", self)
        return engine.compiler.compile(self.structured_output)

    def _answer(
        self,
        engine: TransformersEngine,
        form: TokenSequence,
        held: Automaton | Rejected | None,
        prompt: list[int] | Rejected,
        num_generations: int,
    ) -> PendingGenerations[TokenSequence]:
        """An answer that is still to be written; one without texts, and why, to a chat that cannot have any.

        Args:
            form: What its texts have in common with all others.
            held: What they are held to.
        """
        answer = PendingGenerations[TokenSequence](self.structured_output, num_generations, form.fresh_copy)
        try:
            automaton, tokens = raise_if_rejected(held), self._fitting(engine, prompt)
            limit = (
                form.max_tokens
                if engine.context_length is None
                else min(form.max_tokens, engine.context_length - len(tokens))
            )
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

    def _fitting(self, engine: TransformersEngine, prompt: list[int] | Rejected) -> list[int]:
        """The tokens of a chat that leaves room for an answer."""
        if isinstance(prompt, Rejected):
            raise prompt
        if not prompt or (engine.context_length and len(prompt) >= engine.context_length):
            raise Rejected(
                f"The chat has {len(prompt)} tokens, which is too long for the {engine.context_length} that "
                f"`{self.model}` reads."
            )
        return prompt
