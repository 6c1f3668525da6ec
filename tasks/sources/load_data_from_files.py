"""A source of rows in JSONL, JSON, CSV, TSV and Parquet files."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from pydantic import Field

from tasks.base import GeneratorStep
from tasks.sources.files import CHUNK_ROWS, File, FileType, file_type_of, find_files, supported_endings
from tasks.sources.json_stream import quote_names
from tasks.typing import Row

CHECKED_BYTES = 64 << 20  # of a text file, by `check`: takes about a second, and covers most files


class LoadDataFromFiles(GeneratorStep):
    """Load rows from files, as a stream: a file may be larger than memory.

    A `.json` file is a list of objects, one object per line, or one object around one list of objects; only the last is
    read whole. Text is UTF-8, optionally compressed (`.gz`).

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
        """Yield the rows from number `offset` on.

        Raises:
            ValueError: If a file is missing or a row cannot be read; it names the file and the line.
        """
        rows = self._rows(offset)
        if self.num_examples is not None:
            rows = islice(rows, max(self.num_examples - offset, 0))
        while chunk := list(islice(rows, CHUNK_ROWS)):
            yield chunk

    def check(self, columns: Sequence[str]) -> int | None:
        """Validate the first 64 MB of each text file, and the schema of each Parquet file.

        Returns:
            The number of rows; `None` if not all files were read whole.

        Raises:
            ValueError: If a file is missing, empty or malformed, or a row lacks a column; it names the file, the line,
                the column and the cure.
        """
        required, remaining, total, complete = frozenset(columns), self.num_examples, 0, True
        for file in self._files():
            count = 0
            if file.kind == "parquet":
                parquet = file.parquet()
                count = parquet.metadata.num_rows
                _require_columns(columns, Row(dict.fromkeys(parquet.schema_arrow.names), file.name))
            else:
                for row in islice(file.rows(CHECKED_BYTES), remaining):
                    count += 1
                    if not required <= row.keys():
                        _require_columns(columns, row)
            if not count:
                raise ValueError(f"`{file.name}` has no rows. Write some, or leave it out of `data_files`.")
            total += count
            if remaining is not None and (remaining := remaining - count) <= 0:
                return self.num_examples
            complete = complete and (
                file.kind == "parquet" or file.path.stat().st_size <= CHECKED_BYTES and not file.zipped
            )
        return total if complete else None

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
        """Return the distinct files.

        Raises:
            ValueError: If there is none, or the type of one is unknown.
        """
        given = self.data_files if isinstance(self.data_files, list) else [self.data_files]
        if not all(map(str, given)) or not given:
            raise ValueError("`data_files` is empty: give a file, a folder or a glob.")
        found: dict[Path, File] = {}
        for each in given:
            for path, name in find_files(str(each), self.filetype):
                if not (kind := self.filetype or file_type_of(path)):
                    raise ValueError(
                        f"What `{name}` is cannot be told by its ending. Rows are read from {supported_endings()}; "
                        "if it is one of those, say so: `filetype`."
                    )
                found.setdefault(path.resolve(), File(path, name, kind))
        names = Counter(file.name for file in found.values())
        return [file if names[file.name] == 1 else replace(file, name=str(file.path)) for file in found.values()]


def _require_columns(columns: Sequence[str], row: Row) -> None:
    if missing := [column for column in columns if column not in row]:
        raise ValueError(
            f"`{row.origin}` has no `{missing[0]}`: it has {quote_names(list(row)) or 'no columns'}. "
            "If one of them is meant, map it with `input_mappings` in the step that reads it; otherwise fix the data."
        )
