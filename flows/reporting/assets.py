"""Lineage of datasets: a run's output and its inputs are Prefect assets."""

import json
from collections.abc import Callable, Iterable, Iterator
from glob import has_magic
from hashlib import sha256
from itertools import islice, takewhile
from pathlib import Path
from typing import Any
from urllib.parse import quote

from prefect.assets import Asset, AssetProperties
from prefect.assets.core import MAX_ASSET_DESCRIPTION_LENGTH
from prefect.context import AssetContext
from prefect.states import Completed, Failed
from prefect.types.names import MAX_ASSET_KEY_LENGTH

from flows.dataset.distiset import Distiset
from flows.dataset.summary import Summary
from flows.reporting.events import event_payload
from tasks import GeneratorStep, LoadDataFromFiles, LoadDataFromHub

MAX_UPSTREAM_ASSETS = 50
"""Upstream assets of one dataset; Prefect accepts at most 100 related resources per event."""


def emit_materialization(
    output: Path, folder: Path, sources: Iterable[GeneratorStep], redact: Callable[[str], str]
) -> None:
    """Emit Prefect's asset events of a run, as a task under `@materialize` would, without a task run.

    They are `prefect.asset.materialization.succeeded` or `.failed`, and `prefect.asset.referenced` for each input.

    Args:
        output: Folder for the dataset.
        folder: Folder with the run's `run.json`; `output` if the run completed.
        sources: Steps its rows come from.
        redact: Redacts secrets in a text.
    """
    manifest = (folder / "run.json").read_bytes()
    facts = json.loads(manifest)
    summary, completed = Summary.model_validate(facts["summary"]), facts["state"] == "completed"
    models = sorted({model for step in summary.steps.values() for model in step.models})
    metadata: dict[str, Any] = {
        "pipeline": facts["pipeline"],
        "state": facts["state"],
        "leaves": facts["leaves"],
        **event_payload(summary),
        "models": models,
        **({"manifest": f"sha256:{sha256(manifest).hexdigest()}"} if completed else {"error": facts["error"]}),
    }
    made_with = f" with {', '.join(f'`{model}`' for model in models)}" if models else ""
    path = Path(redact(f"{output.resolve()}"))
    about = redact(f"Made by the pipeline `{facts['pipeline']}`{made_with}.")[:MAX_ASSET_DESCRIPTION_LENGTH]
    uri = path.as_uri()
    asset = Asset(key=asset_key(uri), properties=AssetProperties(name=path.name, url=uri, description=about))
    upstream = dict.fromkeys(asset_key(uri) for step in sources for uri in _source_uris(step, redact))
    context = AssetContext(
        direct_asset_dependencies={
            Asset(key=each) for each in islice(upstream, MAX_UPSTREAM_ASSETS) if each != asset.key
        },
        downstream_assets={asset},
        materialized_by="distilflow",
        materialization_metadata={asset.key: json.loads(redact(json.dumps(metadata, ensure_ascii=False)))},
    )
    context.emit_events(Completed() if completed else Failed())


def asset_key(uri: str) -> str:
    """Convert a URI to an asset's key, where Prefect allows no `%`: `file:///my%20words` is `file:///my~20words`."""
    key = uri.replace("~", "~7E").replace("%", "~")
    if len(key) <= MAX_ASSET_KEY_LENGTH:
        return key
    digest = f"...{sha256(uri.encode()).hexdigest()[:16]}"
    return key[: MAX_ASSET_KEY_LENGTH - len(digest)] + digest


def _source_uris(step: GeneratorStep, redact: Callable[[str], str]) -> Iterator[str]:
    """Yield the URIs a step reads; none for rows given in Python, and for other sources."""
    paths: Any = step.data_files if isinstance(step, LoadDataFromFiles) else []
    if isinstance(step, LoadDataFromHub):
        if not Path(step.repo_id).exists():
            yield f"hf://datasets/{quote(redact(step.repo_id))}"
            return
        paths = step.repo_id
    for path in paths if isinstance(paths, list) else [paths]:
        yield Path(redact(f"{_enclosing_dataset(_resolved_path(Path(path).expanduser()))}")).as_uri()


def _resolved_path(path: Path) -> Path:
    """Resolve a file, a folder, or the folder a glob searches."""
    if not path.exists():
        path = Path(*takewhile(lambda part: not has_magic(part), path.parts))
    return path.resolve()


def _enclosing_dataset(path: Path) -> Path:
    """Return the dataset that a file or folder is a part of, as `outputs/x/default` is of `outputs/x`; or itself."""
    for folder in islice(path.parents, 2):
        try:
            parts = [*Distiset(folder), "errors.parquet"]
        except (LookupError, OSError, TypeError, ValueError):  # no dataset
            continue
        if path.relative_to(folder).parts[0] in parts:
            return folder
    return path
