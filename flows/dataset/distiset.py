"""What a run leaves: a folder of Parquet or JSONL files, and the datasets, errors and figures read back from it."""

import json
import random
from collections.abc import Iterator, Mapping
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flows.dataset.summary import ERRORS, Summary
from flows.dataset.writer import GROUP, batches
from flows.errors import ConfigurationError
from flows.preview.estimate import Estimate
from flows.preview.trace import RowTrace
from flows.settings.run_settings import OutputFormat

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

IN_MEMORY = 4 << 20
"""Bytes of files up to which a dataset is simply read, which in memory are several times as many; a larger one is
mapped from disk."""


class Split(TypedDict):
    """How a dataset is split in two."""

    train_size: float
    shuffle: bool
    seed: int


class Distiset(Mapping[str, "DatasetDict"]):
    """The datasets of a run by leaf step (`default` if there is one), each with a `train` split.

    They are read from the run's folder when they are asked for.

    Attributes:
        folder: Where the files are: `<leaf>/*.parquet` or `<leaf>/*.jsonl`, `errors.parquet` if a row failed,
            `run.json`, `README.md`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.split: Split | None = None
        """How `train_test_split` split it; `None` if it did not, or if the files are split already."""
        self._whole: Distiset | None = None
        self._run: dict[str, Any] = json.loads((folder / "run.json").read_text())

    @classmethod
    def load(cls, folder: str | Path) -> "Distiset":
        """The dataset in a folder, as `run(output=…)` or `save_to_disk` left it.

        Raises:
            ConfigurationError: If there is none.
        """
        if not (Path(folder) / "run.json").is_file():
            partial = Path(folder).with_name(f"{Path(folder).name}.partial")
            cure = f" What an unfinished run has made is in `{partial}`." if (partial / "run.json").is_file() else ""
            raise ConfigurationError(f"`{folder}` holds no dataset: it has no `run.json`.{cure}")
        return cls(Path(folder))

    load_from_disk = load

    def save_to_disk(self, folder: str | Path) -> None:
        """Copy it to a folder, from where `load` brings it back: data, errors, `run.json` and card.

        Raises:
            ConfigurationError: If the folder holds something else.
        """
        from flows.dataset import sharing

        sharing.save(self, Path(folder))

    def push_to_hub(
        self,
        repo_id: str,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Upload it to the Hugging Face Hub, with its card and `run.json`, in place of what was pushed there before.

        Args:
            repo_id: The dataset, `me/my-dataset`; made if it is not there.
            private: Whether a new one is for you alone; as your account has it when empty.
            token: A token that may write; that of `HF_TOKEN` or `hf auth login` when empty.
            revision: A branch to push to, made if it is not there; `main` when empty.
            commit_message: What the commit says.

        Returns:
            Where it is.

        Raises:
            ConfigurationError: If the Hub does not let you.
        """
        from flows.dataset import sharing

        return sharing.push(self, repo_id, private, token, revision, commit_message)

    def train_test_split(self, train_size: float, shuffle: bool = True, seed: int | None = None) -> "Distiset":
        """The same datasets, each with a `train` and a `test` split. Nothing is read or written before it is needed.

        Args:
            train_size: The share of the rows that goes to `train`, between 0 and 1.
            shuffle: Draw the rows at random; otherwise the first go to `train`.
            seed: Another number is another draw; any when empty.

        Raises:
            ConfigurationError: If it is split already, or the share is none.
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
        dataset._whole = self  # a temporary folder goes with the dataset that made it
        return dataset

    @property
    def summary(self) -> Summary:
        """Rows, failures, tokens and seconds, by step and model."""
        return Summary.model_validate(self._run["summary"])

    @property
    def output_format(self) -> OutputFormat:
        """What the files of the leaves are."""
        return self._run.get("output_format", "parquet")

    @property
    def estimate(self) -> Estimate | None:
        """Of a dry run, what all rows would take; print its `markdown()`."""
        return Estimate.model_validate(self._run["estimate"]) if "estimate" in self._run else None

    @property
    def preview(self) -> list[RowTrace]:
        """Of a dry run, what was asked for each row of the sources, and what came."""
        return [RowTrace.model_validate(row) for row in self._run.get("preview", [])]

    @property
    def errors(self) -> "Dataset":
        """The rows that failed: `step`, `error`, `message`, `attempts`, `origin`, the `row` as JSON, `raw_output`."""
        file = self.folder / "errors.parquet"
        return _dataset([file] if file.exists() else [], ERRORS)

    def __getitem__(self, leaf: str) -> "DatasetDict":
        from datasets import DatasetDict

        if leaf not in self._run["leaves"]:
            raise KeyError(leaf)
        if "split" in self._run:
            return DatasetDict({name: self._read(leaf, f"{name}-") for name in ("train", "test")})
        whole = self._read(leaf)
        return DatasetDict(_parted(whole, self.split) if self.split else {"train": whole})

    def _read(self, leaf: str, beginning: str = "") -> Any:
        features = self._run["features"][leaf] if self.output_format == "jsonl" else None
        return _dataset(self._files(leaf, beginning), features=features)

    def _files(self, leaf: str, beginning: str = "") -> list[Path]:
        return sorted((self.folder / leaf).glob(f"{beginning}*.{self.output_format}"))

    def __iter__(self) -> Iterator[str]:
        return iter(self._run["leaves"])

    def __len__(self) -> int:
        return len(self._run["leaves"])

    def __repr__(self) -> str:
        leaves = ", ".join(f"{leaf}: {rows} rows" for leaf, rows in self._run["leaves"].items())
        return f"Distiset({leaves}; {self.summary.failures} failures; {self.folder})"

    def head(self, leaf: str, rows: int = 3) -> list[dict[str, Any]]:
        """The first rows of a leaf, without reading the rest."""
        found = (batch for path in self._files(leaf) for batch in batches(path, rows))
        return next(found, [])


def _parted(whole: "Dataset", split: Split) -> dict[Any, Any]:
    order = np.arange(len(whole))
    if split["shuffle"]:
        np.random.default_rng(split["seed"]).shuffle(order)
    cut = round(len(whole) * split["train_size"])
    return {"train": whole.select(order[:cut]), "test": whole.select(order[cut:])}


def _dataset(
    files: list[Path], schema: pa.Schema | None = None, features: Mapping[str, Any] | None = None
) -> "Dataset":
    """The rows of files: of Parquet, which knows its types, or with `features` of JSONL."""
    from datasets import Dataset, Features

    known = None if features is None else Features.from_dict(dict(features))
    small = sum(path.stat().st_size for path in files) <= IN_MEMORY
    if known is None:
        if not files:
            return Dataset((schema or pa.schema([])).empty_table())
        if small:
            return Dataset(pa.concat_tables([pq.read_table(path) for path in files]))
        return Dataset.from_parquet([str(path) for path in files])  # type: ignore[return-value]
    if small:
        typed = known.arrow_schema
        tables = [pa.Table.from_pylist(rows, typed) for path in files for rows in batches(path, GROUP)]
        return Dataset(pa.concat_tables([typed.empty_table(), *tables]))
    # not `from_json`, which takes texts for dates where all of a block look like some
    told = [(f"{path}", path.stat().st_mtime_ns) for path in files]
    return Dataset.from_generator(_lines, features=known, gen_kwargs={"files": told})  # type: ignore[return-value]


def _lines(files: list[tuple[str, int]]) -> Iterator[dict[str, Any]]:
    """The rows of JSONL files; when each was written is there to tell an earlier one of that name in a cache."""
    for path, _ in files:
        for rows in batches(Path(path), GROUP):
            yield from rows
