"""Weights and a tokenizer of transformers: from the Hub, a folder or a GGUF file, to the device that is to compute."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llms.config.extras import import_optional
from llms.errors import Fatal
from llms.local.transformers.engine import is_out_of_memory

if TYPE_CHECKING:
    from llms.transformers import TransformersLLM


def load_model(torch: Any, transformers: Any, llm: "TransformersLLM") -> tuple[Any, Any]:
    """The model of a block, and its tokenizer.

    Raises:
        Fatal: If one is not there, cannot be read, or has no room in memory; the message says what to do.
    """
    origin = _origin(llm)
    known = {
        "revision": llm.revision,
        "token": llm.token.get_secret_value() if llm.token else None,
        "trust_remote_code": llm.trust_remote_code,
    }
    try:
        own = {"pretrained_model_name_or_path": llm.tokenizer, "revision": "main"} if llm.tokenizer else origin
        tokenizer = transformers.AutoTokenizer.from_pretrained(use_fast=llm.use_fast, **known | own)
        options: dict[str, Any] = {"dtype": llm.dtype, **_placement(torch, llm), **_quantization(transformers, llm)}
        model = transformers.AutoModelForCausalLM.from_pretrained(**origin, **known, **options | llm.model_kwargs)
        if llm.adapter:
            model.load_adapter(llm.adapter, adapter_kwargs={"token": known["token"]})
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise Fatal(
                f'There is no memory for `{llm.model}` ({_said(error)}): set `dtype="bfloat16"`, '
                '`quantization="4bit"` or `device_map="auto"`, or take a smaller model.'
            ) from None
        raise Fatal(f"`TransformersLLM` cannot load `{llm.model}`: {_said(error)}") from error
    halves = model.dtype == torch.float16 and getattr(model, "hf_quantizer", None) is None
    if halves and llm.dtype == "auto" and model.device.type == "cpu":
        model = model.float()  # processors compute in halves many times slower
    return model, tokenizer


def _origin(llm: "TransformersLLM") -> dict[str, str]:
    """Where `from_pretrained` finds the model."""
    path = Path(llm.model).expanduser()
    if path.is_dir():
        return {"pretrained_model_name_or_path": str(path)}
    if path.is_file():
        if path.suffix != ".gguf":
            raise Fatal(f"`{llm.model}` is no GGUF file: `model` is a folder, a GGUF file or a model on the Hub.")
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if path.is_absolute() or llm.model.startswith((".", "~")):
        raise Fatal(
            f"`TransformersLLM` finds no `{llm.model}`: `model` is the path of a folder or of a GGUF file, or a model "
            "on the Hub such as `Qwen/Qwen3-0.6B`."
        )
    if path.suffix == ".gguf":  # a file in a repository of the Hub
        return {"pretrained_model_name_or_path": "/".join(path.parts[:2]), "gguf_file": "/".join(path.parts[2:])}
    return {"pretrained_model_name_or_path": llm.model}


def _placement(torch: Any, llm: "TransformersLLM") -> dict[str, Any]:
    """Where `from_pretrained` puts the weights; nothing where only a processor is."""
    if llm.device_map is not None:
        return {"device_map": llm.device_map}
    if llm.device is not None:
        device = torch.device(llm.device)
        if device.type == "cuda":
            _seen(torch, [device.index or 0], f"`device={llm.device!r}`")
        return {} if device.type == "cpu" else {"device_map": {"": device}}
    if llm.cuda_devices == "auto":
        return {"device_map": "auto"} if torch.accelerator.is_available() else {}
    _seen(torch, llm.cuda_devices, f"`cuda_devices={llm.cuda_devices}`")
    if len(llm.cuda_devices) == 1:
        return {"device_map": {"": f"cuda:{llm.cuda_devices[0]}"}}
    return {"device_map": "auto", "max_memory": {each: torch.cuda.mem_get_info(each)[0] for each in llm.cuda_devices}}


def _seen(torch: Any, numbers: list[int], setting: str) -> None:
    """Check that this process sees these GPUs: they are counted among those of `CUDA_VISIBLE_DEVICES`."""
    count = torch.cuda.device_count()
    if not numbers:
        raise Fatal(f'{setting} names no GPU: give their numbers, `auto` for all of them, or `device="cpu"`.')
    if min(numbers) < 0 or max(numbers) >= count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = "" if visible is None else f" with `CUDA_VISIBLE_DEVICES={visible}`"
        raise Fatal(f"{setting}: this process sees {count} GPUs{why}, and they are counted from 0.")


def _quantization(transformers: Any, llm: "TransformersLLM") -> dict[str, Any]:
    if llm.quantization is None:
        return {}
    settings = llm.quantization if isinstance(llm.quantization, dict) else {f"load_in_{llm.quantization}": True}
    if settings.get("quant_method", "bitsandbytes") == "bitsandbytes":
        import_optional("bitsandbytes", llm, "quantization")
    return {"quantization_config": transformers.quantizers.AutoQuantizationConfig.from_dict(settings)}


def _said(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())[:500] or type(error).__name__
