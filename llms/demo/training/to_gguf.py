"""Conversion of the demo model's checkpoint to GGUF, for llama.cpp."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

Array = NDArray[np.float32]

TENSOR_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""Hugging Face's name of a tensor → llama.cpp's."""


def to_gguf(checkpoint: Path, target: Path, name: str) -> None:
    """Write the checkpoint as a GGUF file with 8-bit matrices, tokenizer and chat template included."""
    config = json.loads((checkpoint / "config.json").read_text())
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_name(name)
    _add_hyperparameters(writer, config)
    _add_tokenizer(writer, checkpoint, config["vocab_size"])
    for tensor_name, tensor in load_file(checkpoint / "model.safetensors").items():
        _add_tensor(writer, tensor_name, tensor.astype(np.float32), config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_hyperparameters(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def _add_tokenizer(writer: gguf.GGUFWriter, checkpoint: Path, vocab_size: int) -> None:
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    ids = tokenizer["model"]["vocab"] | special
    tokens = sorted(ids, key=ids.__getitem__)
    assert len(tokens) == vocab_size
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(special["<|im_end|>"])
    writer.add_pad_token_id(special["<|endoftext|>"])
    writer.add_bos_token_id(special["<|endoftext|>"])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template((checkpoint / "chat_template.jinja").read_text())


def _add_tensor(writer: gguf.GGUFWriter, name: str, tensor: Array, config: dict[str, Any]) -> None:
    name = name.removesuffix(".weight")
    prefix = ""
    if name.startswith("model.layers."):
        _, _, layer, name = name.split(".", maxsplit=3)
        prefix = f"blk.{layer}."
    if name == "self_attn.q_proj":
        tensor = _interleave_halves(tensor, config["num_attention_heads"])
    if name == "self_attn.k_proj":
        tensor = _interleave_halves(tensor, config["num_key_value_heads"])
    target = f"{prefix}{TENSOR_NAMES[name]}.weight"
    if tensor.ndim == 1:
        writer.add_tensor(target, tensor)
    else:
        eight_bits = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(target, gguf.quantize(tensor, eight_bits), raw_dtype=eight_bits)


def _interleave_halves(tensor: Array, heads: int) -> Array:
    """Reorder rows for rotary embeddings: Hugging Face rotates the halves of a head, llama.cpp neighbouring pairs."""
    rows = tensor.shape[0]
    return tensor.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(tensor.shape)
