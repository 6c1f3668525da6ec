"""What a run leaves: a folder of Parquet files, and the datasets, errors and figures read back from it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field

from tasks.typing import Spending, dollars

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

IN_MEMORY = 256 << 20
"""Bytes of Parquet up to which a dataset is simply read; a larger one is mapped from disk."""


ERRORS = pa.schema(
    [
        ("step", pa.string()),
        ("error", pa.string()),
        ("message", pa.string()),
        ("attempts", pa.int64()),
        ("origin", pa.string()),
        ("row", pa.string()),
        ("raw_output", pa.string()),
    ]
)
"""The columns of `errors.parquet`; the row itself is JSON, so that rows of any shape fit."""


class ModelSummary(BaseModel):
    """What one model took in one step; tokens under OpenTelemetry's GenAI names."""

    requests: int = 0
    cached: int = Field(default=0, description="Answers that were in the store already, and cost nothing.")
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    reasoning_output_tokens: int = 0
    cost: float | None = Field(default=0.0, description="Dollars; `None` when a price is not known.")
    seconds: float = Field(default=0.0, description="Seconds its requests took, added up.")

    def add(self, spending: Spending) -> None:
        """Count what a batch took."""
        self.requests += spending.requests
        self.cached += spending.cached
        self.seconds += spending.seconds
        self.cost = dollars(self.cost, spending.cost)
        for name, tokens in asdict(spending.usage).items():
            setattr(self, name, getattr(self, name) + tokens)


class StepSummary(BaseModel):
    """What one step did."""

    rows: int = Field(default=0, description="Rows it passed on.")
    failures: int = Field(default=0, description="Rows that failed in it.")
    seconds: float = Field(default=0.0, description="Seconds its batches took, added up.")
    models: dict[str, ModelSummary] = Field(default_factory=dict)


class Summary(BaseModel):
    """What a run did: rows, failures, tokens and seconds, in all and by step and model."""

    rows: int = Field(default=0, description="Rows in the datasets.")
    failures: int = Field(default=0, description="Rows that failed, in whatever step.")
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = Field(default=0.0, description="Dollars; `None` when a price is not known.")
    seconds: float = Field(default=0.0, description="From the first step's start to the last row on disk.")
    steps: dict[str, StepSummary] = Field(default_factory=dict)


class Distiset(Mapping[str, "DatasetDict"]):
    """The datasets of a run by leaf step (`default` if there is one), each with a `train` split.

    They are read from the run's folder when they are asked for.

    Attributes:
        folder: Where the files are: `<leaf>/*.parquet`, `errors.parquet` if a row failed, `run.json`, `README.md`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._run: dict[str, Any] = json.loads((folder / "run.json").read_text())

    @property
    def summary(self) -> Summary:
        """Rows, failures, tokens and seconds, by step and model."""
        return Summary.model_validate(self._run["summary"])

    @property
    def errors(self) -> "Dataset":
        """The rows that failed: `step`, `error`, `message`, `attempts`, `origin`, the `row` as JSON, `raw_output`."""
        file = self.folder / "errors.parquet"
        return _dataset([file] if file.exists() else [], ERRORS)

    def __getitem__(self, leaf: str) -> "DatasetDict":
        from datasets import DatasetDict

        if leaf not in self._run["leaves"]:
            raise KeyError(leaf)
        return DatasetDict({"train": _dataset(sorted((self.folder / leaf).glob("*.parquet")))})

    def __iter__(self) -> Iterator[str]:
        return iter(self._run["leaves"])

    def __len__(self) -> int:
        return len(self._run["leaves"])

    def __repr__(self) -> str:
        leaves = ", ".join(f"{leaf}: {rows} rows" for leaf, rows in self._run["leaves"].items())
        return f"Distiset({leaves}; {self.summary.failures} failures; {self.folder})"

    def head(self, leaf: str, rows: int = 3) -> list[dict[str, Any]]:
        """The first rows of a leaf, without reading the rest."""
        for path in sorted((self.folder / leaf).glob("*.parquet")):
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=rows):
                    return batch.to_pylist()
        return []


def _dataset(files: list[Path], schema: pa.Schema | None = None) -> "Dataset":
    from datasets import Dataset

    if not files:
        return Dataset((schema or pa.schema([])).empty_table())
    if sum(path.stat().st_size for path in files) <= IN_MEMORY:
        return Dataset(pa.concat_tables([pq.read_table(path) for path in files]))
    return Dataset.from_parquet([str(path) for path in files])  # type: ignore[return-value]
