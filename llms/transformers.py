"""Models of Hugging Face's transformers in this process, in batches, constrained token by token."""

import json
import sys
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field, HttpUrl, SecretStr

from llms.config.extras import import_optional
from llms.config.strict import StrictModel
from llms.local.base import EngineKey
from llms.local.batched import BatchedLLM, Prompt, Write
from llms.local.generation import TokenSequence
from llms.local.transformers.engine import TransformersEngine, empty_cache
from llms.local.transformers.weights import load_model
from llms.options import MaxNewTokens, MinP, RepetitionPenalty, StopTexts, Temperature, TopKOrAll, TopP, UnsignedSeed
from llms.typing import ChatType, HiddenState

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
"""Fields that identify an engine."""


class TransformersLLM(BatchedLLM):
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

    def unload(self) -> None:
        """Free the model's memory, once nobody uses it any more."""
        super().unload()
        if torch := sys.modules.get("torch"):
            empty_cache(torch)

    def _engine_key(self) -> EngineKey:
        return (type(self), json.dumps(self.model_dump(mode="json", include=ENGINE_FIELDS), sort_keys=True))

    def _start_engine(self) -> TransformersEngine:
        torch, transformers = import_optional("torch", self), import_optional("transformers", self)
        return TransformersEngine(torch, transformers, *load_model(torch, transformers, self))

    def _tokenize(self, engine: TransformersEngine, chats: list[ChatType]) -> list[Prompt]:
        return engine.tokenize(chats, self.chat_template)

    def _decoder(self, engine: TransformersEngine, options: dict[str, Any]) -> tuple[bool, Write]:
        sampling = engine.defaults.with_options(options)
        retry = replace(sampling, do_sample=True)

        def write(sequences: list[TokenSequence], attempt: int) -> None:
            engine.write(sequences, retry if attempt else sampling, self.batch_size)

        return not sampling.do_sample, write

    def _hidden_states(self, engine: TransformersEngine, prompts: list[list[int]]) -> list[HiddenState]:
        return engine.hidden_states(prompts, self.batch_size)
