"""Rows to Parquet files as they come, under one schema however late a column shows its type."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

GROUP = 2_000
"""Rows per row group: what is held in memory before it is written."""

PART = 200_000
"""Rows per file."""


class Parts:
    """A folder of `part-00000.parquet`, `part-00001.parquet` … that grows row by row.

    A column that is `None` at first takes its type when it shows; one whose values do not agree (text here, a list
    there) becomes text, JSON where it was not text already.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = 0
        self._columns: dict[str, None] = {}
        self._schema: pa.Schema | None = None
        self._texts: set[str] = set()
        self._buffer: list[dict[str, Any]] = []
        self._files: list[tuple[Path, pa.Schema]] = []
        self._writer: pq.ParquetWriter | None = None
        self._in_part = 0

    def write(self, rows: Iterable[dict[str, Any]]) -> None:
        """Take rows in; they are on disk when the group is full, or at `close`."""
        for row in rows:
            self._columns.update(dict.fromkeys(row))
            self._buffer.append(row)
            self.rows += 1
            if len(self._buffer) >= GROUP:
                self._flush()

    def close(self) -> list[Path]:
        """Write what is left, and bring the files written under a narrower schema up to the last one."""
        self._flush()
        self._end_part()
        for path, schema in self._files:
            if self._schema is not None and schema != self._schema:
                self._rewrite(path)
        return [path for path, _ in self._files]

    def _flush(self) -> None:
        if not self._buffer:
            return
        table = self._table(self._buffer)
        if self._schema is None or table.schema != self._schema or self._in_part >= PART:
            self._end_part()
            self._schema = table.schema
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"part-{len(self._files):05d}.parquet"
            self._files.append((path, table.schema))
            self._writer = pq.ParquetWriter(path, table.schema, compression="zstd")
        assert self._writer is not None
        self._writer.write_table(table)
        self._in_part += len(self._buffer)
        self._buffer = []

    def _table(self, rows: list[dict[str, Any]]) -> pa.Table:
        """The rows under a schema that holds these and all before them."""
        arrays, fields = [], []
        for name in self._columns:
            values = [row.get(name) for row in rows]
            known = self._schema.field(name).type if self._schema and name in self._schema.names else pa.null()
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

    def _rewrite(self, path: Path) -> None:
        assert self._schema is not None
        wider = path.with_suffix(".wider")
        with pq.ParquetFile(path) as file, pq.ParquetWriter(wider, self._schema, compression="zstd") as writer:
            for batch in _groups(file):
                rows = batch.to_pylist()
                columns = [
                    pa.array(map(_text, values) if field.name in self._texts else values, field.type)
                    for field in self._schema
                    for values in [[row.get(field.name) for row in rows]]
                ]
                writer.write_table(pa.table(columns, schema=self._schema))
        wider.replace(path)


def _array(values: list[Any], known: pa.DataType) -> pa.Array | None:
    """The values in a type that also holds `known`; `None` when there is no such type."""
    try:
        found = pa.array(values)
        both = pa.unify_schemas(
            [pa.schema([("column", known)]), pa.schema([("column", found.type)])], promote_options="permissive"
        )
        wide = both.field("column").type
        return found if found.type == wide else pa.array(values, wide)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        return None


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _groups(file: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    return file.iter_batches(batch_size=GROUP)
