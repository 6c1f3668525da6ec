"""What a dataset was made of: steps with their prompts, the versions in use, and the licences there are to keep to."""

import logging
import platform
import re
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flows.settings.step_parameters import get_llm
from llms import LLM, demo
from llms.any_llm import secrets
from llms.local.base import LocalLLM
from tasks import LoadDataFromHub, Step

logger = logging.getLogger(__name__)

ENGINES = {
    "anthropic": "anthropic",
    "cohere": "cohere",
    "google.genai": "google-genai",
    "litellm": "litellm",
    "llama_cpp": "llama-cpp-python",
    "ollama": "ollama",
    "torch": "torch",
    "transformers": "transformers",
    "vllm": "vllm",
    "xllamacpp": "xllamacpp",
}
"""Modules that answers come from or through, and what they are installed as."""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

PATIENCE = 5.0
"""Seconds the Hub has to say what a licence is."""


def described(step: Step) -> dict[str, Any]:
    """A step as plain data: its class and fields, every prompt among them, and its model's, without secrets."""
    fields = step.model_dump(mode="json", exclude={"llm"}, exclude_defaults=True)
    prompts = {name for name in type(step).model_fields if name.endswith(("prompt", "template"))}
    fields |= step.model_dump(mode="json", include=prompts, exclude_none=True)
    if llm := get_llm(step):
        fields["llm"] = {"class": type(llm).__name__, "model_name": llm.model_name}
        fields["llm"] |= llm.model_dump(mode="json", exclude_defaults=True, exclude=secrets(type(llm)))
    return {"class": type(step).__name__, **fields}


def versions() -> dict[str, str]:
    """Of Python, of what always takes part, and of the engines and SDKs in use."""
    used = ["distilflow", "prefect", *(name for module, name in ENGINES.items() if module in sys.modules)]
    return {"python": platform.python_version(), **{name: version(name) for name in used}}


def licences(steps: Iterable[Step]) -> dict[str, str | None]:
    """Of the datasets and the models of the Hub that took part, and of the demo model; `None` where none is told."""
    found: dict[str, str | None] = {}
    for step in steps:
        if isinstance(step, LoadDataFromHub) and not Path(step.repo_id).exists():
            found[f"datasets/{step.repo_id}"] = _on_hub("dataset", step.repo_id, step.revision)
        if (llm := get_llm(step)) and llm.model_name == demo.NAME:
            found[demo.NAME] = "apache-2.0"
        elif llm and (repo_id := _repository(llm)):
            found[repo_id] = found.get(repo_id) or _on_hub("model", repo_id, getattr(llm, "revision", None))
    return found


def _repository(llm: LLM) -> str | None:
    """The repository of the Hub the weights of a model in this process come from."""
    name = getattr(llm, "model", None)
    on_hub = isinstance(llm, LocalLLM) and isinstance(name, str) and HUB_ID.fullmatch(name)
    return name if on_hub and not Path(f"{name}").exists() else None


def _on_hub(kind: str, repo_id: str, revision: str | None) -> str | None:
    from huggingface_hub import HfApi

    api = HfApi()
    ask = api.dataset_info if kind == "dataset" else api.model_info
    try:
        card = ask(repo_id, revision=revision, timeout=PATIENCE).card_data
    except Exception as error:  # offline, private, gone: a dataset that is made is not lost over that
        logger.info("The Hub does not tell the licence of `%s`: %s", repo_id, error)
        return None
    known = card.get("license") if card else None
    return ", ".join(known) if isinstance(known, list) else known
