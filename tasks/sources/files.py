"""Data files: discovery by path, folder or glob, and readers for each file type."""

import csv
import glob
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from io import TextIOWrapper
from itertools import takewhile
from pathlib import Path
from typing import IO, Any, Literal, cast

from tasks.sources.json_stream import quote_names, read_json, row_of, utf8_error
from tasks.typing import Row

FileType = Literal["jsonl", "json", "csv", "tsv", "parquet"]

FILE_TYPES: dict[str, FileType] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
CHUNK_ROWS = 100  # large enough to cost little per list, small enough to need little memory
MAX_CELL_CHARS = 64 << 20  # of CSV; a longer cell has an unclosed quote


def file_type_of(path: Path) -> FileType | None:
    """Return the type of a file by its ending; `None` if it is unknown."""
    plain = path.name.lower().removesuffix(".gz")
    kind = FILE_TYPES.get(Path(plain).suffix)
    return None if kind == "parquet" and plain != path.name.lower() else kind


@dataclass(frozen=True, slots=True)
class File:
    """A data file, with its name in errors and origins."""

    path: Path
    name: str
    kind: FileType

    @property
    def zipped(self) -> bool:
        """Whether the file is compressed with gzip."""
        return self.path.suffix.lower() == ".gz"

    def rows(self, limit: int | None = None) -> Iterator[Row]:
        """Yield the rows of a text file; with a limit, those of about its first `limit` bytes."""
        try:
            opener = gzip.open if self.zipped else open
            with cast(IO[bytes], opener(self.path, "rb")) as stream:
                for count, row in enumerate(READERS[self.kind](stream, self.name)):
                    yield row
                    if limit and not count % 16 and stream.tell() > limit:  # `tell` is a system call
                        return
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"`{self.name}` cannot be read: {_reason(error)}. Is it whole, and yours to read?"
            ) from error

    def parquet(self) -> Any:
        """Open the file as pyarrow's `ParquetFile`."""
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile

        try:
            # By default it reads a whole row group at once, which may be the whole file.
            return ParquetFile(self.path, buffer_size=1 << 20, pre_buffer=False)
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"`{self.name}` is not Parquet: {_reason(error)}. Write it again.") from error

    def parquet_rows(self, offset: int) -> Iterator[Row]:
        """Yield the rows of a Parquet file from number `offset` on, without reading the row groups before it."""
        import pyarrow as pa

        file, first, groups = self.parquet(), 0, 0
        while first + (size := file.metadata.row_group(groups).num_rows) <= offset:
            first, groups = first + size, groups + 1
        try:
            for batch in file.iter_batches(CHUNK_ROWS, row_groups=range(groups, file.metadata.num_row_groups)):
                skipped = min(max(offset - first, 0), batch.num_rows)
                for number, columns in enumerate(batch.slice(skipped).to_pylist(), first + skipped):
                    yield Row(columns, f"{self.name}[{number}]")
                first += batch.num_rows
        except (OSError, pa.ArrowException) as error:
            raise ValueError(
                f"`{self.name}[{first}]` cannot be read: {_reason(error)}. Write the file again."
            ) from error


def _read_jsonl(stream: IO[bytes], name: str) -> Iterator[Row]:
    decode, line = json.JSONDecoder().decode, 0
    try:
        for line, text in enumerate(TextIOWrapper(stream, "utf-8-sig", newline="\n"), 1):
            try:
                columns = decode(text)
            except ValueError as error:
                if not text.strip():
                    continue
                reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
                hint = ' If the file is one list or one object, say `filetype="json"`.' if line == 1 else ""
                raise ValueError(
                    f"`{name}:{line}` is not JSON: {reason}. A line is one object: fix it, or take it out.{hint}"
                ) from error
            yield row_of(columns, f"{name}:{line}")
    except UnicodeDecodeError as error:
        raise utf8_error(name, line + 1, error) from error


def _read_csv(stream: IO[bytes], name: str, delimiter: str = ",") -> Iterator[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL_CHARS))  # the limit is global
    # Strict, because an unclosed quote would otherwise silently consume the rest of the file.
    reader = csv.reader(TextIOWrapper(stream, "utf-8-sig", newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    line = 1
    try:
        for cells in reader:
            if not header:
                header = cells
                if repeated := [column for column, count in Counter(header).items() if count > 1]:
                    raise ValueError(f"`{name}:{line}` names the column `{repeated[0]}` twice. Rename one of the two.")
            elif len(cells) > len(header):
                raise ValueError(
                    f"`{name}:{line}` has {len(cells)} cells, but the header has {len(header)}. "
                    f'Put `"` around a cell with a {"comma" if delimiter == "," else "tab"} in it.'
                )
            elif cells:
                yield Row(dict(zip(header, cells, strict=False)), f"{name}:{line}")  # a short row lacks columns
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"`{name}:{line}` cannot be read: {error}. "
            'Close every `"` that opens a cell, and write one that is part of the text as `""`.'
        ) from error
    except UnicodeDecodeError as error:
        raise utf8_error(name, reader.line_num + 1, error) from error


def _read_tsv(stream: IO[bytes], name: str) -> Iterator[Row]:
    return _read_csv(stream, name, "\t")


READERS: dict[FileType, Callable[[IO[bytes], str], Iterator[Row]]] = {
    "jsonl": _read_jsonl,
    "json": read_json,
    "csv": _read_csv,
    "tsv": _read_tsv,
}


def find_files(text: str, filetype: FileType | None) -> Iterator[tuple[Path, str]]:
    """Yield the files that a path, folder or glob matches, each with its short name.

    Raises:
        ValueError: If there is none.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        found = sorted(each.relative_to(path) for each in path.rglob("*") if each.is_file())
        visible = [each for each in found if not any(part.startswith(".") for part in each.parts)]
        matches = [each for each in visible if (kind := file_type_of(each)) and filetype in (None, kind)]
        if not matches:
            kinds = f"`{filetype}`" if filetype else supported_endings()
            raise ValueError(f"The folder `{text}` has no files of {kinds}. It has {_list_paths(visible)}.")
        yield from ((path / each, each.as_posix()) for each in matches)
    elif path.exists():
        yield path, path.name
    elif glob.has_magic(text):
        root = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
        matches = [each for each in map(Path, sorted(glob.glob(str(path), recursive=True))) if each.is_file()]
        if not matches:
            raise ValueError(f"`{text}` matches no file. {_list_folder(root)}")
        yield from ((each, each.relative_to(root).as_posix()) for each in matches)
    else:
        raise ValueError(f"There is no `{text}`: {_suggest(path)}")


def _suggest(path: Path) -> str:
    """Return the cure in an error about a missing path."""
    siblings = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    if close := get_close_matches(path.name, siblings, n=1):
        return f"did you mean `{path.with_name(close[0])}`?"
    return _list_folder(path.parent)


def _list_folder(folder: Path) -> str:
    where = f"`{folder}` (in `{Path.cwd()}`)" if not folder.is_absolute() else f"`{folder}`"
    if not folder.is_dir():
        return f"there is no folder {where}."
    return f"{where} has {_list_paths(sorted(each.relative_to(folder) for each in folder.iterdir()))}."


def _list_paths(paths: Sequence[Path]) -> str:
    listed = quote_names([each.as_posix() for each in paths[:5]]) or "nothing"
    return f"{listed} and {len(paths) - 5} more" if len(paths) > 5 else listed


def supported_endings() -> str:
    """Return the endings of files that can be read, for an error."""
    return quote_names(list(FILE_TYPES))


def _reason(error: Exception) -> str:
    return f"{getattr(error, 'strerror', None) or error}".rstrip(".")
