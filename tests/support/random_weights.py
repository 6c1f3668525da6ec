"""The demo model with noise for weights: it keeps to no structure of its own accord, and says what it is left."""

import shutil
from pathlib import Path

import numpy as np

from llms import demo

WILD = {"temperature": 1.5, "top_k": 0, "top_p": 1.0}
"""Options that leave a token every chance."""


def gguf_file(path: Path) -> Path:
    """The model as a GGUF file at `path`."""
    import gguf

    shutil.copy(demo.GGUF, path)
    rng = np.random.default_rng(0)
    for tensor in gguf.GGUFReader(path, "r+").tensors:
        noise = rng.normal(0, 0.1, tensor.shape[::-1]).astype(np.float32)
        if tensor.tensor_type == gguf.GGMLQuantizationType.Q8_0:
            tensor.data[:] = gguf.quantize(noise, tensor.tensor_type)
        else:
            tensor.data[:] = 1.0
    return path


def checkpoint(folder: Path) -> Path:
    """The model as a folder of transformers."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(demo.CHECKPOINT)
    config.initializer_range = 0.3
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(demo.CHECKPOINT).save_pretrained(folder)
    return folder
