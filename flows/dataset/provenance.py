"""Provenance of a dataset: its steps with their prompts, package versions, licences."""

import logging
import platform
import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flows.settings.step_parameters import get_llm
from llms import LLM, demo
from llms.any_llm import secret_fields
from llms.config.redaction import hide_secrets
from llms.local.base import LocalLLM
from tasks import LoadDataFromHub, Step

logger = logging.getLogger(__name__)

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

HUB_TIMEOUT_S = 5.0


def describe_step(step: Step) -> dict[str, Any]:
    """Return a step's class and fields, and its model's, without secrets; prompts even where they are the default.

    What is a secret by its name is hidden wherever it is, such as a token in an `extra_body`.
    """
    fields = step.model_dump(mode="json", exclude={"llm"}, exclude_defaults=True)
    prompts = {name for name in type(step).model_fields if name.endswith(("prompt", "template"))}
    fields |= step.model_dump(mode="json", include=prompts, exclude_none=True)
    if llm := get_llm(step):
        fields["llm"] = {"class": type(llm).__name__, "model_name": llm.model_name}
        fields["llm"] |= llm.model_dump(mode="json", exclude_defaults=True, exclude=secret_fields(type(llm)))
    return {"class": type(step).__name__, **hide_secrets(fields)}


def package_versions(steps: Iterable[Step]) -> dict[str, str]:
    """Return the versions of Python, distilflow, Prefect, and of the packages the steps' models use."""
    versions = {"python": platform.python_version(), "distilflow": version("distilflow"), "prefect": version("prefect")}
    for name in sorted({name for step in steps if (llm := get_llm(step)) for name in llm.packages}):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            logger.debug("`%s` is not installed: its version is not recorded.", name)
    return versions


def find_licences(steps: Iterable[Step]) -> dict[str, str | None]:
    """Return the licences of the Hub's datasets and models that were used, and of the demo model; `None` if unknown."""
    licences: dict[str, str | None] = {}
    for step in steps:
        if isinstance(step, LoadDataFromHub) and not Path(step.repo_id).exists():
            licences[f"datasets/{step.repo_id}"] = _hub_licence("dataset", step.repo_id, step.revision)
        if (llm := get_llm(step)) and llm.model_name == demo.NAME:
            licences[demo.NAME] = "apache-2.0"
        elif llm and (repo_id := _hub_repo_id(llm)):
            licences[repo_id] = licences.get(repo_id) or _hub_licence("model", repo_id, getattr(llm, "revision", None))
    return licences


def _hub_repo_id(llm: LLM) -> str | None:
    """Return the Hub repository of a local model's weights."""
    name = getattr(llm, "model", None)
    on_hub = isinstance(llm, LocalLLM) and isinstance(name, str) and HUB_ID.fullmatch(name)
    return name if on_hub and not Path(f"{name}").exists() else None


def _hub_licence(kind: str, repo_id: str, revision: str | None) -> str | None:
    from huggingface_hub import HfApi

    api = HfApi()
    info = api.dataset_info if kind == "dataset" else api.model_info
    try:
        card = info(repo_id, revision=revision, timeout=HUB_TIMEOUT_S).card_data
    except Exception as error:  # offline, private, deleted: no reason to lose a finished dataset
        logger.info("The Hub does not tell the licence of `%s`: %s", repo_id, error)
        return None
    licence = card.get("license") if card else None
    return ", ".join(licence) if isinstance(licence, list) else licence
