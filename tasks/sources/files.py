"""Data files: which are meant, what each is, and its rows."""

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

from tasks.sources.json_stream import not_utf8, read_json, row_of, ticked
from tasks.typing import Row

FileType = Literal["jsonl", "json", "csv", "tsv", "parquet"]

ENDINGS: dict[str, FileType] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
ROWS = 100  # per list: enough to cost nothing per list, few enough to weigh nothing
CELL = 64 << 20  # characters of a CSV cell; beyond it, a quote was not closed


def kind_of(path: Path) -> FileType | None:
    """What a file is by its ending, if that is known."""
    plain = path.name.lower().removesuffix(".gz")
    kind = ENDINGS.get(Path(plain).suffix)
    return None if kind == "parquet" and plain != path.name.lower() else kind


@dataclass(frozen=True, slots=True)
class File:
    """A file and what errors and origins call it."""

    path: Path
    name: str
    kind: FileType

    @property
    def zipped(self) -> bool:
        """Whether it is compressed."""
        return self.path.suffix.lower() == ".gz"

    def rows(self, limit: int | None = None) -> Iterator[Row]:
        """The rows of a text file; those that begin in its first `limit` bytes, or a few more."""
        try:
            opener = gzip.open if self.zipped else open
            with cast(IO[bytes], opener(self.path, "rb")) as stream:
                for count, row in enumerate(READERS[self.kind](stream, self.name)):
                    yield row
                    if limit and not count % 16 and stream.tell() > limit:  # asking is a system call
                        return
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"`{self.name}` cannot be read: {_reason(error)}. Is it whole, and yours to read?"
            ) from error

    def parquet(self) -> Any:
        """The file as pyarrow's `ParquetFile`."""
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile

        try:
            # Left to itself, it reads a whole row group at once, which may be the whole file.
            return ParquetFile(self.path, buffer_size=1 << 20, pre_buffer=False)
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"`{self.name}` is not Parquet: {_reason(error)}. Write it again.") from error

    def parquet_rows(self, offset: int) -> Iterator[Row]:
        """The rows of a Parquet file from number `offset` on; the row groups before it are not read."""
        import pyarrow as pa

        file, first, groups = self.parquet(), 0, 0
        while first + (size := file.metadata.row_group(groups).num_rows) <= offset:
            first, groups = first + size, groups + 1
        try:
            for batch in file.iter_batches(ROWS, row_groups=range(groups, file.metadata.num_row_groups)):
                skipped = min(max(offset - first, 0), batch.num_rows)
                for at, columns in enumerate(batch.slice(skipped).to_pylist(), first + skipped):
                    yield Row(columns, f"{self.name}[{at}]")
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
                what = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
                whole = ' If the file is one list or one object, say `filetype="json"`.' if line == 1 else ""
                raise ValueError(
                    f"`{name}:{line}` is not JSON: {what}. A line is one object: fix it, or take it out.{whole}"
                ) from error
            yield row_of(columns, f"{name}:{line}")
    except UnicodeDecodeError as error:
        raise not_utf8(name, line + 1, error) from error


def _read_csv(stream: IO[bytes], name: str, delimiter: str = ",") -> Iterator[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), CELL))  # there is one for the whole interpreter
    # Strict, for a quote that is not closed would otherwise swallow the rest of the file without a word.
    lines = csv.reader(TextIOWrapper(stream, "utf-8-sig", newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    line = 1
    try:
        for cells in lines:
            if not header:
                header = cells
                if twice := [column for column, count in Counter(header).items() if count > 1]:
                    raise ValueError(f"`{name}:{line}` names the column `{twice[0]}` twice. Rename one of the two.")
            elif len(cells) > len(header):
                raise ValueError(
                    f"`{name}:{line}` has {len(cells)} cells, but the header has {len(header)}. "
                    f'Put `"` around a cell with a {"comma" if delimiter == "," else "tab"} in it.'
                )
            elif cells:
                yield Row(dict(zip(header, cells, strict=False)), f"{name}:{line}")  # a short row lacks columns
            line = lines.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"`{name}:{line}` cannot be read: {error}. "
            'Close every `"` that opens a cell, and write one that is part of the text as `""`.'
        ) from error
    except UnicodeDecodeError as error:
        raise not_utf8(name, lines.line_num + 1, error) from error


def _read_tsv(stream: IO[bytes], name: str) -> Iterator[Row]:
    return _read_csv(stream, name, "\t")


READERS: dict[FileType, Callable[[IO[bytes], str], Iterator[Row]]] = {
    "jsonl": _read_jsonl,
    "json": read_json,
    "csv": _read_csv,
    "tsv": _read_tsv,
}


def find(text: str, filetype: FileType | None) -> Iterator[tuple[Path, str]]:
    """The files a path, folder or glob stands for, each with its short name."""
    path = Path(text).expanduser()
    if path.is_dir():
        inside = sorted(each.relative_to(path) for each in path.rglob("*") if each.is_file())
        plain = [each for each in inside if not any(part.startswith(".") for part in each.parts)]
        wanted = [each for each in plain if (kind := kind_of(each)) and filetype in (None, kind)]
        if not wanted:
            kinds = f"`{filetype}`" if filetype else known_endings()
            raise ValueError(f"The folder `{text}` has no files of {kinds}. It has {_some(plain)}.")
        yield from ((path / each, each.as_posix()) for each in wanted)
    elif path.exists():
        yield path, path.name
    elif glob.has_magic(text):
        root = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
        matches = [each for each in map(Path, sorted(glob.glob(str(path), recursive=True))) if each.is_file()]
        if not matches:
            raise ValueError(f"`{text}` matches no file. {_around(root)}")
        yield from ((each, each.relative_to(root).as_posix()) for each in matches)
    else:
        raise ValueError(f"There is no `{text}`: {_meant(path)}")


def _meant(path: Path) -> str:
    """The end of an error about a path that is not there."""
    known = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    if close := get_close_matches(path.name, known, n=1):
        return f"did you mean `{path.with_name(close[0])}`?"
    return _around(path.parent)


def _around(folder: Path) -> str:
    where = f"`{folder}` (in `{Path.cwd()}`)" if not folder.is_absolute() else f"`{folder}`"
    if not folder.is_dir():
        return f"there is no folder {where}."
    return f"{where} has {_some(sorted(each.relative_to(folder) for each in folder.iterdir()))}."


def _some(paths: Sequence[Path]) -> str:
    shown = ticked([each.as_posix() for each in paths[:5]]) or "nothing"
    return f"{shown} and {len(paths) - 5} more" if len(paths) > 5 else shown


def known_endings() -> str:
    return ticked(list(ENDINGS))


def _reason(error: Exception) -> str:
    return f"{getattr(error, 'strerror', None) or error}".rstrip(".")
