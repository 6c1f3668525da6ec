"""Rows to files as they come, under one schema however late a column shows its type."""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import to_json

from flows.settings.run_settings import OutputFormat

GROUP = 2_000
"""Rows per row group: what is held in memory before it is written."""

PART = 200_000
"""Rows per file."""

UNFIT = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError)
"""What pyarrow says of values that have no type, or not this one."""


class Parts:
    """A folder of `part-00000.parquet`, `part-00001.parquet` … that grows row by row; or `.jsonl`.

    A column that is `None` at first takes its type when it shows; one whose values do not agree (text here, a list
    there) becomes text, JSON where it was not text already. In JSONL every line has every column.

    Attributes:
        rows: How many there are.
        schema: The columns and their types, as far as they are known; `None` without rows.
    """

    def __init__(self, folder: Path, format: OutputFormat = "parquet") -> None:
        self.folder = folder
        self.format: OutputFormat = format
        self.rows = 0
        self.schema: pa.Schema | None = None
        self._columns: dict[str, None] = {}
        self._texts: set[str] = set()
        self._buffer: list[dict[str, Any]] = []
        self._files: list[tuple[Path, pa.Schema]] = []
        self._writer: pq.ParquetWriter | Lines | None = None
        self._in_part = 0

    def write(self, rows: Iterable[dict[str, Any]]) -> None:
        """Take rows in; they are on disk when the group is full, or at `close`."""
        for row in rows:
            self._columns.update(dict.fromkeys(row))
            self._buffer.append(row if self.format == "parquet" else _as_json(row))
            self.rows += 1
            if len(self._buffer) >= GROUP:
                self._flush()

    def close(self) -> list[Path]:
        """Write what is left, and bring the files written under a narrower schema up to the last one."""
        self._flush()
        self._end_part()
        while narrower := [at for at, (_, schema) in enumerate(self._files) if schema != self.schema]:
            path, _ = self._files[narrower[0]]
            if (unfit := self._rewrite(path)) is None:
                self._files[narrower[0]] = (path, self.schema)  # type: ignore[assignment]
            else:
                self._make_text(unfit)
        return [path for path, _ in self._files]

    def _flush(self) -> None:
        if not self._buffer:
            return
        table = self._table(self._buffer)
        if self.schema is None or table.schema != self.schema or self._in_part >= PART:
            self._end_part()
            self.schema = table.schema
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"part-{len(self._files):05d}.{self.format}"
            self._files.append((path, table.schema))
            self._writer = writer(path, table.schema)
        assert self._writer is not None
        self._writer.write_table(table)
        self._in_part += len(self._buffer)
        self._buffer = []

    def _table(self, rows: list[dict[str, Any]]) -> pa.Table:
        """The rows under a schema that holds these and all before them."""
        arrays, fields = [], []
        for name in self._columns:
            values = [row.get(name) for row in rows]
            known = self.schema.field(name).type if self.schema and name in self.schema.names else pa.null()
            array = pa.array(map(_text, values), pa.string()) if name in self._texts else _array(values, known)
            if array is None:
                self._texts.add(name)
                array = pa.array(map(_text, values), pa.string())
            arrays.append(array)
            fields.append(pa.field(name, array.type))
        return pa.table(arrays, schema=pa.schema(fields))

    def _end_part(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._in_part = None, 0

    def _make_text(self, column: str) -> None:
        assert self.schema is not None
        self._texts.add(column)
        self.schema = self.schema.set(self.schema.get_field_index(column), pa.field(column, pa.string()))

    def _rewrite(self, path: Path) -> str | None:
        """Write a file anew under the last schema; the column whose values do not go into their type, if there is one.

        Such are whole numbers above 2**53 where a fraction came later.
        """
        assert self.schema is not None
        wider = path.with_name(f"wider-{path.name}")
        with writer(wider, self.schema) as new:
            for rows in batches(path, GROUP):
                columns: list[pa.Array] = []
                for field in self.schema:
                    values = [row.get(field.name) for row in rows]
                    try:
                        values = list(map(_text, values)) if field.name in self._texts else values
                        columns.append(pa.array(values, field.type))
                    except UNFIT:
                        return field.name
                new.write_table(pa.table(columns, schema=self.schema))
        wider.replace(path)
        return None


class Lines:
    """A JSONL file: what pyarrow's `ParquetWriter` is for Parquet."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write_table(self, table: pa.Table) -> None:
        """Add a line per row."""
        self._file.writelines(to_json(row, inf_nan_mode="null") + b"\n" for row in table.to_pylist())

    def close(self) -> None:
        """Write what is left."""
        self._file.close()


def writer(path: Path, schema: pa.Schema) -> "pq.ParquetWriter | Lines":
    """A new file of the format its name ends in, to be filled a table at a time."""
    return Lines(path) if path.suffix == ".jsonl" else pq.ParquetWriter(path, schema, compression="zstd")


def batches(path: Path, size: int) -> Iterator[list[dict[str, Any]]]:
    """The rows of a file, so many at a time; all of them are never in memory."""
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as file:
            while rows := list(map(json.loads, islice(file, size))):
                yield rows
        return
    with pq.ParquetFile(path) as file:
        yield from (batch.to_pylist() for batch in file.iter_batches(size))


def _array(values: list[Any], known: pa.DataType) -> pa.Array | None:
    """The values in a type that also holds `known`; `None` when there is no such type."""
    try:
        found = pa.array(values)
        both = pa.unify_schemas(
            [pa.schema([("column", known)]), pa.schema([("column", found.type)])], promote_options="permissive"
        )
        wide = both.field("column").type
        if _is_hollow(wide):  # `{}`, of which Parquet has no type until a field of it shows
            return _array(_filled(values), known)
        return found if found.type == wide else pa.array(values, wide)
    except UnicodeEncodeError:
        return _array(mended(values), known)
    except UNFIT:
        return None


def _is_hollow(type: pa.DataType) -> bool:
    """Whether there is a struct without fields in it."""
    within = [type.field(at).type for at in range(type.num_fields)]
    return pa.types.is_struct(type) and not within or any(map(_is_hollow, within))


def _filled(value: Any) -> Any:
    """The same with nothing in place of every `{}`."""
    match value:
        case Mapping():
            return {name: _filled(each) for name, each in value.items()} or None
        case list() | tuple():
            return [_filled(each) for each in value]
        case _:
            return value


def _text(value: Any) -> str | None:
    text = value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text and mended(text)


def mended(value: Any) -> Any:
    """The same without halves of characters in its texts: models write some, and no file takes them."""
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case Mapping():
            return {mended(name): mended(each) for name, each in value.items()}
        case list() | tuple():
            return [mended(each) for each in value]
        case _:
            return value


def _as_json(row: dict[str, Any]) -> dict[str, Any]:
    """A row as JSON has it: dates are texts, bytes are base64, and there is no NaN."""
    try:
        return json.loads(to_json(row, bytes_mode="base64", inf_nan_mode="null", fallback=str))
    except ValueError:  # half of a character
        return json.loads(to_json(mended(row), bytes_mode="base64", inf_nan_mode="null", fallback=str))
