"""File formats of a dataset: Parquet and JSONL, written a table and read a batch of rows at a time."""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import to_json

from flows.dataset.disk import create_file

ROW_GROUP_SIZE = 2_000
"""Rows per row group: what is buffered in memory before it is written."""

ROWS_PER_SHARD = 200_000


class JsonlWriter:
    """A JSONL file with the interface of pyarrow's `ParquetWriter`."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write_table(self, table: pa.Table) -> None:
        """Write a line per row."""
        self._file.writelines(to_json(row, inf_nan_mode="null") + b"\n" for row in table.to_pylist())

    def close(self) -> None:
        """Flush and close the file."""
        self._file.close()


def open_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter | JsonlWriter:
    """Open a new file in the format of its suffix, which its owner alone may read."""
    create_file(path)
    return JsonlWriter(path) if path.suffix == ".jsonl" else pq.ParquetWriter(path, schema, compression="zstd")


def read_batches(path: Path, size: int) -> Iterator[list[dict[str, Any]]]:
    """Read the rows of a file in batches of `size`, never all at once."""
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as file:
            while rows := list(map(json.loads, islice(file, size))):
                yield rows
        return
    with pq.ParquetFile(path) as file:
        yield from (batch.to_pylist() for batch in file.iter_batches(size))


def read_head(paths: Iterable[Path], size: int) -> list[dict[str, Any]]:
    """Read the first rows of the first file that has any, `size` at most."""
    return next((batch for path in paths for batch in read_batches(path, size)), [])
