"""Rows to shards as they come, under one schema however late a column reveals its type."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import to_json

from flows.dataset.disk import make_folder
from flows.dataset.formats import ROW_GROUP_SIZE, ROWS_PER_SHARD, JsonlWriter, open_writer, read_batches
from flows.settings.run_settings import OutputFormat

ARROW_TYPE_ERRORS = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError)
"""Errors of pyarrow for values without a common type, or that do not fit a given one."""


class ShardWriter:
    """A folder of `part-00000.parquet`, `part-00001.parquet` … that grows row by row; or `.jsonl`.

    A column that is `None` at first takes its type from its first value; one whose values do not agree (a string here,
    a list there) becomes a string, JSON where it was none already. In JSONL every line has every column.

    Attributes:
        rows: Rows written.
        schema: Columns and types known so far; `None` without rows.
    """

    def __init__(self, folder: Path, format: OutputFormat = "parquet") -> None:
        self.folder = folder
        self.format: OutputFormat = format
        self.rows = 0
        self.schema: pa.Schema | None = None
        self._columns: dict[str, None] = {}
        self._string_columns: set[str] = set()
        self._buffer: list[dict[str, Any]] = []
        self._shards: list[tuple[Path, pa.Schema]] = []
        self._writer: pq.ParquetWriter | JsonlWriter | None = None
        self._rows_in_shard = 0

    def write(self, rows: Iterable[dict[str, Any]]) -> None:
        """Buffer rows; they are on disk when the row group is full, or after `close`."""
        for row in rows:
            self._columns.update(dict.fromkeys(row))
            self._buffer.append(row if self.format == "parquet" else _to_json_types(row))
            self.rows += 1
            if len(self._buffer) >= ROW_GROUP_SIZE:
                self._flush()

    def close(self) -> list[Path]:
        """Flush the buffer, and rewrite shards of a narrower schema under the final one.

        Returns:
            The shards, in order.
        """
        self._flush()
        self._close_shard()
        while narrower := [number for number, (_, schema) in enumerate(self._shards) if schema != self.schema]:
            self._upcast(narrower[0])
        return [path for path, _ in self._shards]

    def _flush(self) -> None:
        if not self._buffer:
            return
        table = self._table(self._buffer)
        if self._writer is None or table.schema != self.schema or self._rows_in_shard >= ROWS_PER_SHARD:
            self._close_shard()
            self.schema = table.schema
            make_folder(self.folder)
            path = self.folder / f"part-{len(self._shards):05d}.{self.format}"
            self._shards.append((path, table.schema))
            self._writer = open_writer(path, table.schema)
        self._writer.write_table(table)
        self._rows_in_shard += len(self._buffer)
        self._buffer = []

    def _table(self, rows: list[dict[str, Any]]) -> pa.Table:
        """Convert rows to a table whose schema holds these and all earlier rows."""
        arrays, fields = [], []
        for name in self._columns:
            values = [row.get(name) for row in rows]
            known = self.schema.field(name).type if self.schema and name in self.schema.names else pa.null()
            array = None if name in self._string_columns else _to_arrow(values, known)
            if array is None:
                self._string_columns.add(name)
                array = pa.array(map(_to_string, values), pa.string())
            arrays.append(array)
            fields.append(pa.field(name, array.type))
        return pa.table(arrays, schema=pa.schema(fields))

    def _close_shard(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._rows_in_shard = None, 0

    def _upcast(self, number: int) -> None:
        """Rewrite a shard under the final schema; a column whose values do not fit its type becomes a string instead.

        Such are integers above 2**53 where a fraction came later.
        """
        schema, (path, _) = self.schema, self._shards[number]
        assert schema is not None
        wider = path.with_name(f"wider-{path.name}")
        with open_writer(wider, schema) as writer:
            for rows in read_batches(path, ROW_GROUP_SIZE):
                columns: list[pa.Array] = []
                for field in schema:
                    values = [row.get(field.name) for row in rows]
                    try:
                        values = list(map(_to_string, values)) if field.name in self._string_columns else values
                        columns.append(pa.array(values, field.type))
                    except ARROW_TYPE_ERRORS:
                        self._fall_back_to_string(schema, field.name)
                        return
                writer.write_table(pa.table(columns, schema=schema))
        wider.replace(path)
        self._shards[number] = (path, schema)

    def _fall_back_to_string(self, schema: pa.Schema, column: str) -> None:
        self._string_columns.add(column)
        self.schema = schema.set(schema.get_field_index(column), pa.field(column, pa.string()))


def _to_arrow(values: list[Any], known: pa.DataType) -> pa.Array | None:
    """Convert values to a type that also holds `known`; `None` if there is no such type."""
    try:
        inferred = pa.array(values)
        unified = pa.unify_schemas(
            [pa.schema([("column", known)]), pa.schema([("column", inferred.type)])], promote_options="permissive"
        )
        wide = unified.field("column").type
        if _has_empty_struct(wide):  # `{}`, for which Parquet has no type until one of its fields is seen
            return _to_arrow(_null_empty_dicts(values), known)
        return inferred if inferred.type == wide else pa.array(values, wide)
    except UnicodeEncodeError:
        return _to_arrow(replace_lone_surrogates(values), known)
    except ARROW_TYPE_ERRORS:
        return None


def _has_empty_struct(type: pa.DataType) -> bool:
    fields = [type.field(number).type for number in range(type.num_fields)]
    return pa.types.is_struct(type) and not fields or any(map(_has_empty_struct, fields))


def _null_empty_dicts(value: Any) -> Any:
    """Replace every `{}` by `None`."""
    match value:
        case Mapping():
            return {name: _null_empty_dicts(each) for name, each in value.items()} or None
        case list() | tuple():
            return [_null_empty_dicts(each) for each in value]
        case _:
            return value


def _to_string(value: Any) -> str | None:
    text = value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text and replace_lone_surrogates(text)


def replace_lone_surrogates(value: Any) -> Any:
    """Replace halves of UTF-16 pairs in the texts of a value by `?`: models emit some, and no file can hold them."""
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case Mapping():
            return {replace_lone_surrogates(name): replace_lone_surrogates(each) for name, each in value.items()}
        case list() | tuple():
            return [replace_lone_surrogates(each) for each in value]
        case _:
            return value


def _to_json_types(row: dict[str, Any]) -> dict[str, Any]:
    """Convert a row to types of JSON: dates become strings, bytes base64, and NaN null."""
    try:
        return json.loads(to_json(row, bytes_mode="base64", inf_nan_mode="null", fallback=str))
    except ValueError:  # a lone surrogate
        return json.loads(to_json(replace_lone_surrogates(row), bytes_mode="base64", inf_nan_mode="null", fallback=str))
