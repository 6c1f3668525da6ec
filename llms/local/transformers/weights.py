"""Loading of weights and tokenizers: from the Hub, a folder or a GGUF file to the device that computes."""

import os
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import SecretStr

from llms.config.extras import import_optional
from llms.errors import Fatal
from llms.local.transformers.engine import is_out_of_memory


class ModelSettings(Protocol):
    """The fields of a block that decide what is loaded, and where to."""

    model: str
    revision: str
    dtype: Literal["auto", "float32", "float16", "bfloat16"]
    quantization: Literal["4bit", "8bit"] | dict[str, Any] | None
    adapter: str | None
    trust_remote_code: bool
    model_kwargs: dict[str, Any]
    tokenizer: str | None
    use_fast: bool
    device: str | int | None
    device_map: str | dict[str, int | str] | None
    cuda_devices: list[int] | Literal["auto"]
    token: SecretStr | None


def load_model(torch: Any, transformers: Any, settings: ModelSettings) -> tuple[Any, Any]:
    """Load a model and its tokenizer.

    Raises:
        Fatal: If one is not there, cannot be read, or does not fit in memory; the message says what to do.
    """
    source = _source(settings)
    hub = {
        "revision": settings.revision,
        "token": settings.token.get_secret_value() if settings.token else None,
        "trust_remote_code": settings.trust_remote_code,
    }
    try:
        other = settings.tokenizer and {"pretrained_model_name_or_path": settings.tokenizer, "revision": "main"}
        tokenizer = transformers.AutoTokenizer.from_pretrained(use_fast=settings.use_fast, **hub | (other or source))
        placement, quantization = _placement(torch, settings), _quantization(transformers, settings)
        options: dict[str, Any] = {"dtype": settings.dtype, **placement, **quantization}
        model = transformers.AutoModelForCausalLM.from_pretrained(**source, **hub, **options | settings.model_kwargs)
        if settings.adapter:
            model.load_adapter(settings.adapter, adapter_kwargs={"token": hub["token"]})
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise Fatal(
                f'There is no memory for `{settings.model}` ({_one_line(error)}): set `dtype="bfloat16"`, '
                '`quantization="4bit"` or `device_map="auto"`, or take a smaller model.'
            ) from None
        raise Fatal(f"`TransformersLLM` cannot load `{settings.model}`: {_one_line(error)}") from error
    is_half = model.dtype == torch.float16 and getattr(model, "hf_quantizer", None) is None
    if is_half and settings.dtype == "auto" and model.device.type == "cpu":
        model = model.float()  # CPUs compute in half precision many times slower
    return model, tokenizer


def _source(settings: ModelSettings) -> dict[str, str]:
    """Return the arguments by which `from_pretrained` finds the model."""
    path = Path(settings.model).expanduser()
    if path.is_dir():
        return {"pretrained_model_name_or_path": str(path)}
    if path.is_file():
        if path.suffix != ".gguf":
            raise Fatal(f"`{settings.model}` is no GGUF file: `model` is a folder, a GGUF file or a model on the Hub.")
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if path.is_absolute() or settings.model.startswith((".", "~")):
        raise Fatal(
            f"`TransformersLLM` finds no `{settings.model}`: `model` is the path of a folder or of a GGUF file, or a "
            "model on the Hub such as `Qwen/Qwen3-0.6B`."
        )
    if path.suffix == ".gguf":  # a file in a repository of the Hub
        return {"pretrained_model_name_or_path": "/".join(path.parts[:2]), "gguf_file": "/".join(path.parts[2:])}
    return {"pretrained_model_name_or_path": settings.model}


def _placement(torch: Any, settings: ModelSettings) -> dict[str, Any]:
    """Return the arguments that place the weights on devices; none where there is only a CPU."""
    if settings.device_map is not None:
        return {"device_map": settings.device_map}
    if settings.device is not None:
        device = torch.device(settings.device)
        if device.type == "cuda":
            _check_visible(torch, [device.index or 0], f"`device={settings.device!r}`")
        return {} if device.type == "cpu" else {"device_map": {"": device}}
    gpus = settings.cuda_devices
    if gpus == "auto":
        return {"device_map": "auto"} if torch.accelerator.is_available() else {}
    _check_visible(torch, gpus, f"`cuda_devices={gpus}`")
    if len(gpus) == 1:
        return {"device_map": {"": f"cuda:{gpus[0]}"}}
    return {"device_map": "auto", "max_memory": {gpu: torch.cuda.mem_get_info(gpu)[0] for gpu in gpus}}


def _check_visible(torch: Any, gpus: list[int], setting: str) -> None:
    """Check that this process sees these GPUs: they are counted among those of `CUDA_VISIBLE_DEVICES`."""
    count = torch.cuda.device_count()
    if not gpus:
        raise Fatal(f'{setting} names no GPU: give their numbers, `auto` for all of them, or `device="cpu"`.')
    if min(gpus) < 0 or max(gpus) >= count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = "" if visible is None else f" with `CUDA_VISIBLE_DEVICES={visible}`"
        raise Fatal(f"{setting}: this process sees {count} GPUs{why}, and they are counted from 0.")


def _quantization(transformers: Any, settings: ModelSettings) -> dict[str, Any]:
    if settings.quantization is None:
        return {}
    named = settings.quantization
    config = named if isinstance(named, dict) else {f"load_in_{named}": True}
    if config.get("quant_method", "bitsandbytes") == "bitsandbytes":
        import_optional("bitsandbytes", settings, "quantization")
    return {"quantization_config": transformers.quantizers.AutoQuantizationConfig.from_dict(config)}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
