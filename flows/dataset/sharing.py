"""Copies of a dataset: in another folder, or on the Hugging Face Hub."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, TypedDict, get_args

from flows.dataset.disk import create_file, make_folder, write_text
from flows.dataset.formats import ROW_GROUP_SIZE, ROWS_PER_SHARD, open_writer
from flows.dataset.staging import MARKER, Staging, check_output, list_files
from flows.errors import ConfigurationError
from flows.settings.run_settings import OutputFormat


class Split(TypedDict):
    """Arguments of a split into `train` and `test`."""

    train_size: float
    shuffle: bool
    seed: int


class SplittableDataset(Protocol):
    """A dataset in a folder, with a split that its files may not have yet."""

    folder: Path
    split: Split | None

    @property
    def output_format(self) -> OutputFormat:
        """File format of the leaves."""
        ...

    def read_whole(self, read: Callable[[], None], /) -> None:
        """Call a function that reads the folder; again, if the folder was replaced meanwhile."""
        ...

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the leaves."""
        ...

    def __getitem__(self, leaf: str, /) -> Any:
        """Return a leaf's rows by split."""
        ...


def save(dataset: SplittableDataset, folder: Path) -> None:
    """Copy a dataset's files; with a split they are rewritten, a shard at a time.

    Raises:
        ConfigurationError: If the folder holds something else.
    """
    check_output(folder)
    if folder.resolve() == dataset.folder.resolve():
        raise ConfigurationError(f"`{folder}` is where the dataset is: choose another folder.")
    staging = Staging(folder)

    def write() -> None:
        staging.clear()
        if dataset.split:
            _write_split(dataset, staging.partial)
        else:
            _copy(dataset.folder, staging.partial)

    try:
        dataset.read_whole(write)
    except BaseException:
        staging.release()
        raise
    staging.promote()


def push(
    dataset: SplittableDataset,
    repo_id: str,
    private: bool | None,
    token: str | None,
    revision: str | None,
    commit_message: str | None,
) -> str:
    """Upload a dataset's files in one commit; see `Distiset.push_to_hub`."""
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
                ignore_patterns=[MARKER],
                delete_patterns=[
                    *(f"{leaf}/*.{suffix}" for leaf in dataset for suffix in get_args(OutputFormat)),
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


def _copy(folder: Path, target: Path) -> None:
    for file in list_files(folder):
        copy = target / file.relative_to(folder)
        make_folder(copy.parent)
        shutil.copyfile(file, create_file(copy))


def _write_split(dataset: SplittableDataset, folder: Path) -> None:
    run: dict[str, Any] = json.loads((dataset.folder / "run.json").read_text(encoding="utf-8"))
    run["files"] = []
    card = (dataset.folder / "README.md").read_text(encoding="utf-8")
    for leaf in dataset:
        make_folder(folder / leaf)
        for name, rows in dataset[leaf].items():
            for number, start in enumerate(range(0, max(len(rows), 1), ROWS_PER_SHARD)):
                file = folder / leaf / f"{name}-{number:05d}.{dataset.output_format}"
                run["files"].append(file.relative_to(folder).as_posix())
                with open_writer(file, rows.features.arrow_schema) as writer:
                    shard = rows.select(range(start, min(start + ROWS_PER_SHARD, len(rows)))).with_format("arrow")
                    for table in shard.iter(ROW_GROUP_SIZE):
                        writer.write_table(table)
        unsplit = f"  - split: train\n    path: {leaf}/*.{dataset.output_format}"
        splits = [f"  - split: {name}\n    path: {leaf}/{name}-*.{dataset.output_format}" for name in ("train", "test")]
        card = card.replace(unsplit, "\n".join(splits))
    if (errors := dataset.folder / "errors.parquet").exists():
        shutil.copyfile(errors, create_file(folder / "errors.parquet"))
    run["split"] = dataset.split
    write_text(folder / "run.json", json.dumps(run, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / "README.md", card)
