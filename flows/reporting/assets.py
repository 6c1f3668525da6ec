"""The lineage of datasets: what a run makes is an asset of Prefect's, and so is what it reads."""

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
"""Assets a dataset is said to be made from; Prefect relates an event to a hundred things at most."""


def emit_materialization(
    output: Path, folder: Path, sources: Iterable[GeneratorStep], hide: Callable[[str], str]
) -> None:
    """Tell Prefect of the dataset a run has made, or failed to make, and of what it was made from.

    A context of Prefect's forms the events, as it does for a task under `@materialize`, without the task run:
    `prefect.asset.materialization.succeeded` or `.failed`, and a `prefect.asset.referenced` for all that was read.

    Args:
        output: Where the dataset is, or was to be.
        folder: What the run left, its `run.json` in it; `output` itself if the run completed.
        sources: The steps its rows came from.
        hide: Takes secrets out of a text.
    """
    manifest = (folder / "run.json").read_bytes()
    facts = json.loads(manifest)
    summary, completed = Summary.model_validate(facts["summary"]), facts["state"] == "completed"
    models = sorted({model for step in summary.steps.values() for model in step.models})
    told: dict[str, Any] = {
        "pipeline": facts["pipeline"],
        "state": facts["state"],
        "leaves": facts["leaves"],
        **event_payload(summary),
        "models": models,
        **({"manifest": f"sha256:{sha256(manifest).hexdigest()}"} if completed else {"error": facts["error"]}),
    }
    made_with = f" with {', '.join(f'`{model}`' for model in models)}" if models else ""
    place = Path(hide(f"{output.resolve()}"))
    asset = Asset(
        key=asset_key(place.as_uri()),
        properties=AssetProperties(
            name=place.name,
            url=place.as_uri(),
            description=hide(f"Made by the pipeline `{facts['pipeline']}`{made_with}.")[:MAX_ASSET_DESCRIPTION_LENGTH],
        ),
    )
    read = dict.fromkeys(asset_key(uri) for step in sources for uri in _source_uris(step, hide))
    context = AssetContext(
        direct_asset_dependencies={Asset(key=each) for each in islice(read, MAX_UPSTREAM_ASSETS) if each != asset.key},
        downstream_assets={asset},
        materialized_by="distilflow",
        materialization_metadata={asset.key: json.loads(hide(json.dumps(told, ensure_ascii=False)))},
    )
    context.emit_events(Completed() if completed else Failed())


def asset_key(uri: str) -> str:
    """A URI as the key of an asset, in which Prefect takes no `%`: `file:///my%20words` is `file:///my~20words`."""
    short = uri.replace("~", "~7E").replace("%", "~")
    if len(short) <= MAX_ASSET_KEY_LENGTH:
        return short
    digest = f"...{sha256(uri.encode()).hexdigest()[:16]}"
    return short[: MAX_ASSET_KEY_LENGTH - len(digest)] + digest


def _source_uris(step: GeneratorStep, hide: Callable[[str], str]) -> Iterator[str]:
    """URIs of what a step reads; none of rows given in Python, and of sources that are not ours."""
    paths: Any = step.data_files if isinstance(step, LoadDataFromFiles) else []
    if isinstance(step, LoadDataFromHub):
        if not Path(step.repo_id).exists():
            yield f"hf://datasets/{quote(hide(step.repo_id))}"
            return
        paths = step.repo_id
    for path in paths if isinstance(paths, list) else [paths]:
        yield Path(hide(f"{_enclosing_dataset(_resolved_path(Path(path).expanduser()))}")).as_uri()


def _resolved_path(path: Path) -> Path:
    """A file or a folder, or the folder in which a glob looks."""
    if not path.exists():
        path = Path(*takewhile(lambda part: not has_magic(part), path.parts))
    return path.resolve()


def _enclosing_dataset(path: Path) -> Path:
    """The dataset of a run that a file or folder is a part of, as `outputs/x/default` is of `outputs/x`; or itself."""
    for folder in islice(path.parents, 2):
        try:
            parts = [*Distiset(folder), "errors.parquet"]
        except (LookupError, OSError, TypeError, ValueError):  # no dataset of ours
            continue
        if path.relative_to(folder).parts[0] in parts:
            return folder
    return path
