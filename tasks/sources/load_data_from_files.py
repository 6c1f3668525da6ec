"""Rows from JSONL, JSON, CSV, TSV and Parquet files of any size."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from pydantic import Field

from tasks.base import GeneratorStep
from tasks.sources.files import ROWS, File, FileType, find, kind_of, known_endings
from tasks.sources.json_stream import ticked
from tasks.typing import Row

SCANNED = 64 << 20  # bytes of a text file `check` reads: about a second, and most files whole


class LoadDataFromFiles(GeneratorStep):
    """Brings the rows of files, read as a stream: a file may be larger than memory.

    A `.json` file is a list of objects, or one object per line, or one object around one list of objects; only the
    last is read whole. Text is UTF-8, and may be compressed (`.gz`).

    Output columns: those of the rows.

    Example:
        ```python
        from tasks import LoadDataFromFiles

        LoadDataFromFiles(data_files="questions.jsonl")
        LoadDataFromFiles(data_files=["data/**/*.csv", "more.parquet"], num_examples=1000)
        ```
    """

    data_files: str | Path | list[str | Path] = Field(
        description="A file, a folder (every file in it, in order), a glob such as `data/*.jsonl`, or a list of those."
    )
    filetype: FileType | None = Field(default=None, description="What the files are; told by their ending when empty.")
    num_examples: int | None = Field(default=None, gt=0, description="Rows to load, at most; all when empty.")

    @property
    def outputs(self) -> Sequence[str]:
        """The columns of the first row.

        Raises:
            ValueError: If a file is missing or the first row cannot be read.
        """
        for file in self._files():
            if file.kind == "parquet":
                return file.parquet().schema_arrow.names
            for row in file.rows():
                return list(row)
        return []

    def process(self, offset: int = 0) -> Iterator[list[Row]]:
        """The rows, from number `offset` on.

        Raises:
            ValueError: If a file is missing or a row cannot be read, naming the file and the line.
        """
        rows = self._rows(offset)
        if self.num_examples is not None:
            rows = islice(rows, max(self.num_examples - offset, 0))
        while chunk := list(islice(rows, ROWS)):
            yield chunk

    def check(self, columns: Sequence[str]) -> int | None:
        """Refuse files that are missing, empty or malformed, and rows that lack a column.

        Of a text file the first 64 MB are read, of a Parquet file the schema.

        Returns:
            How many rows there are; `None` where not all was read.

        Raises:
            ValueError: Naming the file, the line, the column and the cure.
        """
        wanted, left, total, whole = frozenset(columns), self.num_examples, 0, True
        for file in self._files():
            count = 0
            if file.kind == "parquet":
                parquet = file.parquet()
                count = parquet.metadata.num_rows
                _demand(columns, Row(dict.fromkeys(parquet.schema_arrow.names), file.name))
            else:
                for row in islice(file.rows(SCANNED), left):
                    count += 1
                    if not wanted <= row.keys():
                        _demand(columns, row)
            if not count:
                raise ValueError(f"`{file.name}` has no rows. Write some, or leave it out of `data_files`.")
            total += count
            if left is not None and (left := left - count) <= 0:
                return self.num_examples
            whole = whole and (file.kind == "parquet" or file.path.stat().st_size <= SCANNED and not file.zipped)
        return total if whole else None

    def _rows(self, offset: int) -> Iterator[Row]:
        for file in self._files():
            if file.kind == "parquet":
                count = file.parquet().metadata.num_rows
                if offset < count:
                    yield from file.parquet_rows(offset)
                offset = max(offset - count, 0)
                continue
            for row in file.rows():
                if offset:
                    offset -= 1
                else:
                    yield row

    def _files(self) -> list[File]:
        """The files meant, each once.

        Raises:
            ValueError: If there is none, or what it is cannot be told.
        """
        given = self.data_files if isinstance(self.data_files, list) else [self.data_files]
        if not all(map(str, given)) or not given:
            raise ValueError("`data_files` is empty: give a file, a folder or a glob.")
        found: dict[Path, File] = {}
        for each in given:
            for path, name in find(str(each), self.filetype):
                if not (kind := self.filetype or kind_of(path)):
                    raise ValueError(
                        f"What `{name}` is cannot be told by its ending. Rows are read from {known_endings()}; "
                        "if it is one of those, say so: `filetype`."
                    )
                found.setdefault(path.resolve(), File(path, name, kind))
        names = Counter(file.name for file in found.values())
        return [file if names[file.name] == 1 else replace(file, name=str(file.path)) for file in found.values()]


def _demand(columns: Sequence[str], row: Row) -> None:
    if missing := [column for column in columns if column not in row]:
        raise ValueError(
            f"`{row.origin}` has no `{missing[0]}`: it has {ticked(list(row)) or 'no columns'}. "
            "If one of them is meant, map it with `input_mappings` in the step that reads it; otherwise fix the data."
        )
