"""A dataset in another place: a folder of its own, or the Hugging Face Hub."""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

from flows.dataset.distiset import Distiset
from flows.dataset.run_folder import check as check_place
from flows.dataset.writer import GROUP, PART, writer
from flows.errors import ConfigurationError
from flows.settings.run_settings import OutputFormat


def save(dataset: Distiset, folder: Path) -> None:
    """Copy a dataset's files; one that was split is written split, a part at a time.

    Raises:
        ConfigurationError: If the folder holds something else.
    """
    if folder.absolute() == dataset.folder.absolute():
        raise ConfigurationError(f"`{folder}` is where the dataset is: choose another folder.")
    check_place(folder)
    partial, former = (folder.with_name(f"{folder.name}.{ending}") for ending in ("partial", "former"))
    for each in (partial, former):
        shutil.rmtree(each, ignore_errors=True)
    if dataset.split:
        partial.mkdir(parents=True)
        _write_split(dataset, partial)
    else:
        shutil.copytree(dataset.folder, partial)
    if folder.exists():
        folder.rename(former)
    partial.rename(folder)
    shutil.rmtree(former, ignore_errors=True)


def push(
    dataset: Distiset,
    repo_id: str,
    private: bool | None,
    token: str | None,
    revision: str | None,
    commit_message: str | None,
) -> str:
    """Upload a dataset's files as they are, in one commit; see `Distiset.push_to_hub`."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(token=token)
    try:
        url = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        if revision:
            api.create_branch(url.repo_id, branch=revision, repo_type="dataset", exist_ok=True)
        with TemporaryDirectory(prefix="distilflow-") as temporary:
            folder = dataset.folder
            if dataset.split:
                save(dataset, folder := Path(temporary) / "dataset")
            api.upload_folder(
                repo_id=url.repo_id,
                repo_type="dataset",
                folder_path=folder,
                revision=revision,
                commit_message=commit_message or f"{dataset!r}".partition(";")[0].removeprefix("Distiset("),
                delete_patterns=[
                    *(f"{leaf}/*.{ending}" for leaf in dataset for ending in get_args(OutputFormat)),
                    "errors.parquet",
                ],  # of an earlier push
            )
    except HFValidationError as error:
        raise ConfigurationError(f"`{repo_id}` names no dataset of the Hub, `me/my-dataset` would: {error}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status not in (401, 403):
            raise
        raise ConfigurationError(
            f"the Hub does not let you write `{repo_id}` ({status}): pass a `token=` that may write there, set "
            "`HF_TOKEN`, or sign in with `hf auth login`."
        ) from None
    return str(url)


def _write_split(dataset: Distiset, folder: Path) -> None:
    run: dict[str, Any] = json.loads((dataset.folder / "run.json").read_text(encoding="utf-8"))
    card = (dataset.folder / "README.md").read_text(encoding="utf-8")
    for leaf in dataset:
        (folder / leaf).mkdir()
        for name, rows in dataset[leaf].items():
            for part, start in enumerate(range(0, max(len(rows), 1), PART)):
                file = folder / leaf / f"{name}-{part:05d}.{dataset.output_format}"
                with writer(file, rows.features.arrow_schema) as writing:
                    piece = rows.select(range(start, min(start + PART, len(rows)))).with_format("arrow")
                    for table in piece.iter(GROUP):
                        writing.write_table(table)
        whole = f"  - split: train\n    path: {leaf}/*.{dataset.output_format}"
        splits = [f"  - split: {name}\n    path: {leaf}/{name}-*.{dataset.output_format}" for name in ("train", "test")]
        card = card.replace(whole, "\n".join(splits))
    if (errors := dataset.folder / "errors.parquet").exists():
        shutil.copy(errors, folder)
    run["split"] = dataset.split
    (folder / "run.json").write_text(json.dumps(run, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")
