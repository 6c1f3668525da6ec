"""Rows from JSONL, JSON, CSV, TSV and Parquet files of any size."""

import codecs
import csv
import glob
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from io import TextIOWrapper
from itertools import islice, takewhile
from pathlib import Path
from typing import IO, Any, Literal, cast

from pydantic import Field

from tasks.base import GeneratorStep
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
SCANNED = 64 << 20  # bytes of a text file `check` reads: about a second, and most files whole
ROWS = 100  # per list from `process`: enough to cost nothing per list, few enough to weigh nothing
WINDOW = 1 << 16  # bytes of JSON read at once; a larger value doubles it until it fits
CUT = 16  # characters from the end of the window within which an error may be the cut: `-Infinity` is the longest word
CELL = 64 << 20  # characters of a CSV cell; beyond it, a quote was not closed
BLANK = re.compile(r"[ \t\n\r]*")


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

    def _files(self) -> list["_File"]:
        """The files meant, each once.

        Raises:
            ValueError: If there is none, or what it is cannot be told.
        """
        given = self.data_files if isinstance(self.data_files, list) else [self.data_files]
        if not all(map(str, given)) or not given:
            raise ValueError("`data_files` is empty: give a file, a folder or a glob.")
        found: dict[Path, _File] = {}
        for each in given:
            for path, name in _find(str(each), self.filetype):
                if not (kind := self.filetype or kind_of(path)):
                    raise ValueError(
                        f"What `{name}` is cannot be told by its ending. Rows are read from {_known()}; "
                        "if it is one of those, say so: `filetype`."
                    )
                found.setdefault(path.resolve(), _File(path, name, kind))
        names = Counter(file.name for file in found.values())
        return [file if names[file.name] == 1 else replace(file, name=str(file.path)) for file in found.values()]


def kind_of(path: Path) -> FileType | None:
    """What a file is by its ending, if that is known."""
    plain = path.name.lower().removesuffix(".gz")
    kind = ENDINGS.get(Path(plain).suffix)
    return None if kind == "parquet" and plain != path.name.lower() else kind


@dataclass(frozen=True, slots=True)
class _File:
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


def read_json(stream: IO[bytes], name: str) -> Iterator[Row]:
    """The rows of a JSON text: a list of objects, objects one after the other, or an object around a list.

    Raises:
        ValueError: If it is none of them, naming the line.
    """
    window = _Window(stream, name)
    if window.peek() == "[":
        yield from _items(window)
        return
    if not window.peek():
        return
    line, first = window.line, window.take()
    if not window.peek() and isinstance(first, dict) and (key := _wrapped(first, name)):
        for at, item in enumerate(first[key]):
            yield _row(item, f"{name}[{at}]")
        return
    yield _row(first, f"{name}:{line}")
    while window.peek():
        line = window.line
        yield _row(window.take(), f"{name}:{line}")


def _items(window: "_Window") -> Iterator[Row]:
    window.expect("[")
    at = 0
    while at or window.peek() != "]":
        yield _row(window.take(), f"{window.name}[{at}]")
        at += 1
        if window.peek() == "]":
            break
        window.expect(",")
    window.expect("]")
    if window.peek():
        raise window.fault("something follows the list", window.at)


def _wrapped(value: dict[str, Any], name: str) -> str | None:
    """The column of a lone object that holds the rows; `None` if the object is a row.

    Raises:
        ValueError: If several may.
    """
    lists = [
        key
        for key, items in value.items()
        # a list of messages is a conversation, and its object a row
        if isinstance(items, list) and items and all(isinstance(item, dict) and "role" not in item for item in items)
    ]
    if len(lists) > 1:
        raise ValueError(
            f"`{name}` has several lists of objects, {_ticked(lists)}: keep the one that is meant, "
            "or put `[` and `]` around it all if it is one row."
        )
    return lists[0] if lists else None


class _Window:
    """The part of a JSON text that is in memory, and a place in it.

    Attributes:
        at: The place, in the window.
        line: The line of the file the place is in.
    """

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self.name, self.at, self.line = name, 0, 1
        self._stream, self._text, self._ended = stream, "", False
        self._column = 0  # of the file, where the window begins
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._scan = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            if blank := BLANK.match(self._text, self.at):
                self._move(blank.end())
            if self.at < len(self._text) or self._ended:
                return self._text[self.at : self.at + 1]
            self._read()

    def expect(self, character: str) -> None:
        """Pass over a character.

        Raises:
            ValueError: If another stands there.
        """
        if self.peek() != character:
            raise self.fault(f"Expecting '{character}'", self.at)
        self._move(self.at + 1)

    def take(self) -> Any:
        """Pass over a value, and return it.

        Raises:
            ValueError: If there is none.
        """
        self.peek()
        while True:
            try:
                value, end = self._scan(self._text, self.at)
            except json.JSONDecodeError as error:
                cut = error.pos > len(self._text) - CUT or error.msg.startswith("Unterminated string")
                if self._ended or not cut:
                    raise self.fault(error.msg, error.pos) from error
            except ValueError as error:
                raise self.fault(f"{error}", self.at) from error
            else:
                if end < len(self._text) or self._ended:  # else a number may go on
                    self._move(end)
                    return value
            self._read()

    def fault(self, what: str, at: int) -> ValueError:
        """An error about what stands at a place in the window."""
        line = self.line + self._text.count("\n", self.at, at)
        start = self._text.rfind("\n", 0, at)
        column = at - start if start >= 0 else self._column + at + 1
        return ValueError(f"`{self.name}:{line}` is not JSON: {what} at column {column}. Fix the line.")

    def _move(self, to: int) -> None:
        self.line += self._text.count("\n", self.at, to)
        self.at = to

    def _read(self) -> None:
        start = self._text.rfind("\n", 0, self.at)
        self._column = self.at - start - 1 if start >= 0 else self._column + self.at
        kept = self._text[self.at :]
        data = self._stream.read(max(WINDOW, len(kept)))
        try:
            text = self._decode(data, not data)
        except UnicodeDecodeError as error:
            raise _not_utf8(self.name, self.line + kept.count("\n"), error) from error
        self._text, self.at, self._ended = kept + text, 0, not data


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
            yield _row(columns, f"{name}:{line}")
    except UnicodeDecodeError as error:
        raise _not_utf8(name, line + 1, error) from error


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
        raise _not_utf8(name, lines.line_num + 1, error) from error


def _read_tsv(stream: IO[bytes], name: str) -> Iterator[Row]:
    return _read_csv(stream, name, "\t")


READERS: dict[FileType, Callable[[IO[bytes], str], Iterator[Row]]] = {
    "jsonl": _read_jsonl,
    "json": read_json,
    "csv": _read_csv,
    "tsv": _read_tsv,
}


def _row(value: Any, origin: str) -> Row:
    if isinstance(value, dict):
        return Row(value, origin)
    what = {list: "a list", str: "a text", bool: "a truth value", type(None): "`null`"}.get(type(value), "a number")
    hint = ' If the file is one list, say `filetype="json"`.' if isinstance(value, list) else ""
    raise ValueError(f'`{origin}` is {what}, not an object: write `{{"column": value}}`.{hint}')


def _demand(columns: Sequence[str], row: Row) -> None:
    if missing := [column for column in columns if column not in row]:
        raise ValueError(
            f"`{row.origin}` has no `{missing[0]}`: it has {_ticked(list(row)) or 'no columns'}. "
            "If one of them is meant, map it with `input_mappings` in the step that reads it; otherwise fix the data."
        )


def _not_utf8(name: str, line: int, error: UnicodeDecodeError) -> ValueError:
    line += error.object.count(b"\n", 0, error.start)
    byte = error.object[error.start]
    return ValueError(f"`{name}:{line}` is not UTF-8: it has the byte 0x{byte:02x}. Save the file as UTF-8.")


def _find(text: str, filetype: FileType | None) -> Iterator[tuple[Path, str]]:
    """The files a path, folder or glob stands for, each with its short name."""
    path = Path(text).expanduser()
    if path.is_dir():
        inside = sorted(each.relative_to(path) for each in path.rglob("*") if each.is_file())
        plain = [each for each in inside if not any(part.startswith(".") for part in each.parts)]
        wanted = [each for each in plain if (kind := kind_of(each)) and filetype in (None, kind)]
        if not wanted:
            kinds = f"`{filetype}`" if filetype else _known()
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
    shown = _ticked([each.as_posix() for each in paths[:5]]) or "nothing"
    return f"{shown} and {len(paths) - 5} more" if len(paths) > 5 else shown


def _known() -> str:
    return _ticked(list(ENDINGS))


def _ticked(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _reason(error: Exception) -> str:
    return f"{getattr(error, 'strerror', None) or error}".rstrip(".")
