"""The output folder of a run: written beside its place, and moved there when it is complete."""

import json
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flows.dataset.card import render_card
from flows.dataset.disk import write_text
from flows.dataset.formats import JsonlWriter, open_writer, read_head
from flows.dataset.staging import Staging
from flows.dataset.summary import ERRORS_SCHEMA, Summary
from flows.dataset.writer import ShardWriter, replace_lone_surrogates
from flows.settings.run_settings import OutputFormat
from tasks.typing import Failure, Row

COMPLETED = "completed"
"""State in the `run.json` of a complete dataset."""


class OutputFolder:
    """Writes rows and failures as they come to `<output>.partial`, which `promote` moves to `output`.

    It holds a lock on `output` from its creation until `promote`, or until `close` after a failure.

    Args:
        output: Folder for the dataset.
        leaves: Names of the leaf steps' folders.
        format: File format of the leaves.

    Raises:
        ConfigurationError: If another run is writing it, or it, or what is beside it, is no dataset's.
    """

    def __init__(self, output: Path, leaves: Iterable[str], format: OutputFormat = "parquet") -> None:
        self.started = datetime.now(UTC)
        self._staging = Staging(output)
        self.partial = self._staging.partial
        # pyarrow imports pandas, a second's work, with its first array: rather while the first answers are awaited
        threading.Thread(target=pa.array, args=([None],), daemon=True).start()
        self._writers = {leaf: ShardWriter(self.partial / leaf, format) for leaf in leaves}
        self._format: OutputFormat = format
        self._errors: pq.ParquetWriter | JsonlWriter | None = None

    def write_rows(self, leaf: str, rows: Iterable[Row]) -> None:
        """Add rows to a leaf."""
        self._writers[leaf].write(rows)

    def write_failures(self, failures: Iterable[Failure]) -> None:
        """Add rows to `errors.parquet`."""
        rows = [
            {name: getattr(each, name) for name in ERRORS_SCHEMA.names if name != "row"}
            | {"row": json.dumps(each.row, ensure_ascii=False, default=str)}
            for each in failures
        ]
        if rows:
            self._errors = self._errors or open_writer(self.partial / "errors.parquet", ERRORS_SCHEMA)
            self._errors.write_table(pa.Table.from_pylist(replace_lone_surrogates(rows), schema=ERRORS_SCHEMA))

    def close(self, facts: dict[str, Any], summary: Summary) -> None:
        """Flush all files, and write `run.json` from `facts` and `summary`, and the dataset card from `run.json`."""
        completed = False
        try:
            self._write_files(facts, summary)
            completed = facts["state"] == COMPLETED
        finally:
            if not completed:
                self._staging.release()

    def _write_files(self, facts: dict[str, Any], summary: Summary) -> None:
        shards = {leaf: writer.close() for leaf, writer in self._writers.items()}
        if self._errors is not None:
            self._errors.close()
        run = facts | {
            "started": self.started.isoformat(timespec="seconds"),
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "output_format": self._format,
            "leaves": {leaf: writer.rows for leaf, writer in self._writers.items()},
            "files": [path.relative_to(self.partial).as_posix() for paths in shards.values() for path in paths],
            **({} if self._format == "parquet" else {"features": self._features()}),
            "summary": summary.model_dump(),
        }
        text = replace_lone_surrogates(json.dumps(run, indent=2, ensure_ascii=False, default=str))
        write_text(self.partial / "run.json", f"{text}\n")
        samples = {leaf: read_head(paths, 1) for leaf, paths in shards.items()}
        write_text(self.partial / "README.md", render_card(json.loads(text), samples))

    def _features(self) -> dict[str, Any]:
        """Return each leaf's columns and types as `datasets` writes them: JSONL has no type for a column of nulls."""
        from datasets import Features

        schemas = {leaf: writer.schema or pa.schema([]) for leaf, writer in self._writers.items()}
        return {leaf: Features.from_arrow_schema(schema).to_dict() for leaf, schema in schemas.items()}

    def promote(self) -> Path:
        """Move the completed folder to `output`, in place of an earlier run's dataset, and return where it is.

        Raises:
            ConfigurationError: If no dataset is there any more, but something else.
        """
        return self._staging.promote()
