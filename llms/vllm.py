"""Models in vLLM, on this machine's GPUs or its processor, constrained token by token."""

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, HttpUrl, SecretStr

from llms import local
from llms.config.strict import StrictModel
from llms.local.base import EngineKey
from llms.local.batched import BatchedLLM, Prompt, Write
from llms.local.vllm.engine import HiddenStateEngine, TextEngine, VllmEngine
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
from llms.typing import ChatType, HiddenState

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
"""Fields that identify an engine."""


class vLLM(BatchedLLM):
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

    def prepare_hidden_states(self) -> None:
        """Start the engine that hidden states come from, and no other: a GPU has no room for both at once."""
        self._hidden_state_engine()

    def unload(self) -> None:
        """End the engines' processes, once nobody calls them any more."""
        super().unload()
        local.free_engine(self._engine_key(HiddenStateEngine))

    def _engine_key(self, kind: type[VllmEngine] = TextEngine) -> EngineKey:
        settings = self.model_dump(mode="json", include=ENGINE_FIELDS)
        return (type(self), kind, json.dumps(settings, sort_keys=True, default=repr))

    def _start_engine(self) -> TextEngine:
        return start_engine(self, TextEngine)

    def _hidden_state_engine(self) -> HiddenStateEngine:
        return local.shared_engine(self._engine_key(HiddenStateEngine), lambda: start_engine(self, HiddenStateEngine))

    def _tokenize(self, engine: VllmEngine, chats: list[ChatType]) -> list[Prompt]:
        return engine.tokenize(chats, self.chat_template)

    def _decoder(self, engine: TextEngine, options: dict[str, Any]) -> tuple[bool, Write]:
        sampling = engine.defaults | options.pop("extra_sampling_params", {}) | options
        greedy = sampling.get("temperature") == 0
        retry = sampling | {"temperature": 1.0} if greedy else sampling
        return greedy, lambda sequences, attempt: engine.write(sequences, retry if attempt else sampling)

    def _hidden_states(self, engine: HiddenStateEngine, prompts: list[list[int]]) -> list[HiddenState]:
        return engine.hidden_states(prompts)
