"""The dataset of a run: a folder of Parquet or JSONL files, read on demand."""

import json
import os
import random
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flows.dataset import sharing
from flows.dataset.formats import ROW_GROUP_SIZE, read_batches, read_head
from flows.dataset.sharing import Split
from flows.dataset.summary import ERRORS_SCHEMA, Summary
from flows.errors import ConfigurationError
from flows.preview.estimate import Estimate
from flows.preview.trace import RowTrace
from flows.settings.run_settings import OutputFormat

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

T = TypeVar("T")

MAX_IN_MEMORY_BYTES = 4 << 20
"""Size of files that are read into memory, where they take several times as much; larger ones are memory-mapped."""


class Distiset(Mapping[str, "DatasetDict"]):
    """The datasets of a run by leaf step (`default` if there is one), each with a `train` split, read on access.

    All that is read is of one run. If another run replaces the dataset after a part was read, the other parts cannot be
    read any more.

    Attributes:
        folder: Folder of the files: `<leaf>/*.parquet` or `<leaf>/*.jsonl`, `errors.parquet` if a row failed,
            `run.json`, `README.md`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.split: Split | None = None
        """Arguments of `train_test_split`; `None` if it was not called, or if the files are split already."""
        self._unsplit: Distiset | None = None
        self._was_read = False
        self._load_run()

    @classmethod
    def load(cls, folder: str | Path) -> "Distiset":
        """Load a dataset that `run(output=…)` or `save_to_disk` wrote.

        Raises:
            ConfigurationError: If there is none.
        """
        if not (Path(folder) / "run.json").is_file():
            partial = Path(folder).with_name(f"{Path(folder).name}.partial")
            cure = f" What an unfinished run has made is in `{partial}`." if (partial / "run.json").is_file() else ""
            raise ConfigurationError(f"`{folder}` holds no dataset: it has no `run.json`.{cure}")
        return cls(Path(folder))

    load_from_disk = load

    def _load_run(self) -> None:
        with (self.folder / "run.json").open(encoding="utf-8") as file:
            self._version = _file_version(os.fstat(file.fileno()))
            self._run: dict[str, Any] = json.load(file)

    def read_whole(self, read: Callable[[], T]) -> T:
        """Return what a function reads of the folder, all of it from one run.

        Raises:
            ConfigurationError: If another run has replaced the dataset since something was read.
        """
        while True:
            version = self._version
            try:
                result = read()
            except Exception:
                if self._is_still(version):
                    raise
            else:
                if self._is_still(version):
                    self._was_read = True
                    return result
            if self._was_read:
                raise ConfigurationError(
                    f"another run has replaced the dataset in `{self.folder}` since it was loaded: load it again."
                )

    def _is_still(self, version: tuple[int, ...]) -> bool:
        """Return whether the folder holds the dataset of that version; go on to the new one if nothing was read yet."""
        now = _file_version((self.folder / "run.json").stat())
        if now != self._version and not self._was_read:
            self._load_run()
        return now == version

    def save_to_disk(self, folder: str | Path) -> None:
        """Copy data, errors, `run.json` and card to a folder, for `load`.

        Raises:
            ConfigurationError: If the folder holds something else.
        """
        sharing.save(self, Path(folder))

    def push_to_hub(
        self,
        repo_id: str,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Upload it to the Hugging Face Hub, with its card and `run.json`, in place of an earlier push.

        Args:
            repo_id: Dataset repository, `me/my-dataset`; created if it does not exist.
            private: Whether a new repository is private; your account's default when empty.
            token: Token with write access; that of `HF_TOKEN` or `hf auth login` when empty.
            revision: Branch to push to, created if it does not exist; `main` when empty.
            commit_message: Message of the commit.

        Returns:
            URL of the repository.

        Raises:
            ConfigurationError: If the Hub does not let you.
        """
        return sharing.push(self, repo_id, private, token, revision, commit_message)

    def train_test_split(self, train_size: float, shuffle: bool = True, seed: int | None = None) -> "Distiset":
        """Split every dataset into `train` and `test`, without reading or writing anything yet.

        Args:
            train_size: Fraction of the rows in `train`, between 0 and 1.
            shuffle: Draw the rows at random; otherwise the first go to `train`.
            seed: Seed of the draw; random when empty.

        Raises:
            ConfigurationError: If it is split already, or `train_size` is no fraction.
        """
        if self.split or "split" in self._run:
            raise ConfigurationError("the dataset is split already.")
        if not 0 < train_size < 1:
            raise ConfigurationError(f"`train_size` is {train_size}: it is a share of the rows, between 0 and 1.")
        dataset = copy(self)
        dataset.split = {
            "train_size": train_size,
            "shuffle": shuffle,
            "seed": random.randrange(2**32) if seed is None else seed,
        }
        dataset._unsplit = self  # a temporary folder is deleted with the dataset that made it
        return dataset

    @property
    def summary(self) -> Summary:
        """Rows, failures, tokens and seconds, by step and model."""
        return Summary.model_validate(self._run["summary"])

    @property
    def output_format(self) -> OutputFormat:
        """File format of the leaves."""
        return self._run.get("output_format", "parquet")

    @property
    def estimate(self) -> Estimate | None:
        """Estimate a dry run made of a run over all rows; print its `markdown()`."""
        return Estimate.model_validate(self._run["estimate"]) if "estimate" in self._run else None

    @property
    def preview(self) -> list[RowTrace]:
        """Requests and answers of a dry run, by row of the sources."""
        return [RowTrace.model_validate(row) for row in self._run.get("preview", [])]

    @property
    def errors(self) -> "Dataset":
        """Failed rows: `step`, `error`, `message`, `attempts`, `origin`, the `row` as JSON, `raw_output`."""
        file = self.folder / "errors.parquet"
        return self.read_whole(lambda: _read_dataset([file] if file.exists() else [], ERRORS_SCHEMA))

    def __getitem__(self, leaf: str) -> "DatasetDict":
        return self.read_whole(lambda: self._read_leaf(leaf))

    def _read_leaf(self, leaf: str) -> "DatasetDict":
        from datasets import DatasetDict

        if leaf not in self._run["leaves"]:
            raise KeyError(leaf)
        if "split" in self._run:
            return DatasetDict({name: self._read(leaf, f"{name}-") for name in ("train", "test")})
        rows = self._read(leaf)
        return DatasetDict(_split_rows(rows, self.split) if self.split else {"train": rows})

    def _read(self, leaf: str, prefix: str = "") -> Any:
        features = self._run["features"][leaf] if self.output_format == "jsonl" else None
        return _read_dataset(self._files(leaf, prefix), features=features)

    def _files(self, leaf: str, prefix: str = "") -> list[Path]:
        return sorted((self.folder / leaf).glob(f"{prefix}*.{self.output_format}"))

    def __iter__(self) -> Iterator[str]:
        return iter(self._run["leaves"])

    def __len__(self) -> int:
        return len(self._run["leaves"])

    def __repr__(self) -> str:
        leaves = ", ".join(f"{leaf}: {rows} rows" for leaf, rows in self._run["leaves"].items())
        return f"Distiset({leaves}; {self.summary.failures} failures; {self.folder})"

    def head(self, leaf: str, rows: int = 3) -> list[dict[str, Any]]:
        """Read the first rows of a leaf, without reading the rest."""
        return self.read_whole(lambda: read_head(self._files(leaf), rows))


def _file_version(file: os.stat_result) -> tuple[int, ...]:
    return file.st_dev, file.st_ino, file.st_mtime_ns, file.st_size


def _split_rows(rows: "Dataset", split: Split) -> dict[Any, Any]:
    order = np.arange(len(rows))
    if split["shuffle"]:
        np.random.default_rng(split["seed"]).shuffle(order)
    cut = round(len(rows) * split["train_size"])
    return {"train": rows.select(order[:cut]), "test": rows.select(order[cut:])}


def _read_dataset(
    files: list[Path], schema: pa.Schema | None = None, features: Mapping[str, Any] | None = None
) -> "Dataset":
    """Read Parquet files, or JSONL files whose types are `features`."""
    from datasets import Dataset, Features

    known = None if features is None else Features.from_dict(dict(features))
    small = sum(path.stat().st_size for path in files) <= MAX_IN_MEMORY_BYTES
    if known is None:
        if not files:
            return Dataset((schema or pa.schema([])).empty_table())
        if small:
            return Dataset(pa.concat_tables([pq.read_table(path) for path in files]))
        return cast(Dataset, Dataset.from_parquet([str(path) for path in files]))
    if small:
        typed = known.arrow_schema
        tables = [pa.Table.from_pylist(rows, typed) for path in files for rows in read_batches(path, ROW_GROUP_SIZE)]
        return Dataset(pa.concat_tables([typed.empty_table(), *tables]))
    # not `from_json`, which takes strings for dates where all of a block look like dates
    versions = [(f"{path}", path.stat().st_mtime_ns) for path in files]
    return cast(Dataset, Dataset.from_generator(_read_rows, features=known, gen_kwargs={"files": versions}))


def _read_rows(files: list[tuple[str, int]]) -> Iterator[dict[str, Any]]:
    """Read the rows of JSONL files; their times of writing are part of the key in the cache of `datasets`."""
    for path, _ in files:
        for rows in read_batches(Path(path), ROW_GROUP_SIZE):
            yield from rows
