"""Wire format of text-generation-inference, Hugging Face's own server: raw text in, its continuation out."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from llms.clients.chat_completions import FINISH_REASONS
from llms.clients.errors import error_from_sdk
from llms.errors import Fatal
from llms.options import CommonOptions, FrequencyPenalty, RepetitionPenalty, StopList, TopK
from llms.typing import GenerateOutput, Logprobs, StructuredOutputType, Usage


class TextOptions(CommonOptions):
    """Runtime parameters of raw text generation, under the server's own names."""

    stop: StopList = None
    top_k: TopK = None
    typical_p: float | None = Field(default=None, gt=0, le=1, description="Mass of typical tokens to sample from.")
    repetition_penalty: RepetitionPenalty = None
    frequency_penalty: FrequencyPenalty = None
    do_sample: bool | None = Field(default=None, description="Whether to sample at all.")
    truncate: int | None = Field(default=None, gt=0, description="Tokens of input to keep, the last ones.")
    watermark: bool | None = Field(default=None, description="Whether to mark the text as a model's.")
    top_n_tokens: int | None = Field(default=None, gt=0, description="How many likeliest tokens to name at each place.")
    adapter_id: str | None = Field(default=None, description="LoRA adapter to use.")


def encode(text: str, options: BaseModel, structured_output: StructuredOutputType | None) -> dict[str, Any]:
    """Return the body of a request; unset options are left out.

    Args:
        structured_output: Structure for the server's grammar.
    """
    parameters = options.model_dump(exclude_none=True, exclude_unset=True)
    if parameters.get("temperature") == 0:  # the server refuses it
        parameters = {name: value for name, value in parameters.items() if name != "temperature"} | {"do_sample": False}
    if structured_output:
        parameters["grammar"] = {"type": structured_output["format"], "value": structured_output["schema"]}
    return {"inputs": text, "parameters": parameters | {"details": True, "return_full_text": False}}


def decode(reply: Any, headers: Mapping[str, str]) -> GenerateOutput:
    """Decode a response; the number of input tokens is in a header."""
    generated = reply[0] if isinstance(reply, list) else reply
    details = generated.get("details") or {}
    return GenerateOutput(
        [generated["generated_text"]],
        finish_reasons=[FINISH_REASONS.get(details.get("finish_reason") or "")],
        logprobs=[_logprobs(details)],
        usage=Usage(int(headers.get("x-prompt-tokens") or 0), details.get("generated_tokens") or 0),
    )


def _logprobs(details: dict[str, Any]) -> Logprobs | None:
    if not (likeliest := details.get("top_tokens")):
        return None
    positions = zip(details["tokens"], likeliest, strict=True)
    chosen_first = [(token, *(each for each in others if each["id"] != token["id"])) for token, others in positions]
    return [[{"token": each["text"], "logprob": each["logprob"]} for each in position] for position in chosen_first]


def load_chat_template(tokenizer: str, token: str) -> tuple[str, dict[str, str]]:
    """Return the chat template of a tokenizer and the texts of its special tokens.

    Args:
        tokenizer: Name of a model on the Hub, or path of a folder.
        token: Access token, for models that are not public.

    Raises:
        Fatal: If there is no such model, or it has no template.
    """
    config = json.loads(_read_file(tokenizer, "tokenizer_config.json", token) or "{}")
    found = _read_file(tokenizer, "chat_template.jinja", token) or config.get("chat_template")
    if isinstance(found, list):
        found = {each["name"]: each["template"] for each in found}.get("default")
    if not found:
        raise Fatal(f"`{tokenizer}` has no chat template: `tokenizer_id` is the name of an instruct model.")
    special = {name: value for name, value in config.items() if name.endswith("_token")}
    texts = {name: value["content"] if isinstance(value, dict) else value for name, value in special.items()}
    return found, texts | {"bos_token": ""}  # the server begins every text with that one itself


def _read_file(tokenizer: str, name: str, token: str) -> str | None:
    """Return the text of a tokenizer's file; `None` if it has no such file."""
    from huggingface_hub import errors, hf_hub_download

    if Path(tokenizer).is_dir():
        path = Path(tokenizer, name)
        return path.read_text() if path.exists() else None
    try:
        return Path(hf_hub_download(tokenizer, name, token=token)).read_text()
    except errors.RemoteEntryNotFoundError:
        return None
    except Exception as error:
        raise error_from_sdk(error, f"{tokenizer}/{name}") from None
