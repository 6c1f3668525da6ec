"""The output folder of a run: written beside its place, and moved there when it is complete."""

import json
import os
import shutil
import threading
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from flows.dataset.card import render_card
from flows.dataset.formats import read_head
from flows.dataset.summary import ERRORS_SCHEMA, Summary
from flows.dataset.writer import ShardWriter, replace_lone_surrogates
from flows.errors import ConfigurationError
from flows.settings.run_settings import OutputFormat
from llms import store
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
        ConfigurationError: If another run is writing it, or it holds something else than a dataset.
    """

    def __init__(self, output: Path, leaves: Iterable[str], format: OutputFormat = "parquet") -> None:
        self.output = output
        self.partial = output.with_name(f"{output.name}.partial")
        self.previous = output.with_name(f"{output.name}.former")
        self.started = datetime.now(UTC)
        check_output(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _lock_output(output)
        self._recover()
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir()
        # pyarrow imports pandas, a second's work, with its first array: rather while the first answers are awaited
        threading.Thread(target=pa.array, args=([None],), daemon=True).start()
        self._writers = {leaf: ShardWriter(self.partial / leaf, format) for leaf in leaves}
        self._format: OutputFormat = format
        self._errors: pq.ParquetWriter | None = None

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
            self._errors = self._errors or pq.ParquetWriter(
                self.partial / "errors.parquet", ERRORS_SCHEMA, compression="zstd"
            )
            self._errors.write_table(pa.Table.from_pylist(replace_lone_surrogates(rows), schema=ERRORS_SCHEMA))

    def close(self, facts: dict[str, Any], summary: Summary) -> None:
        """Flush all files, and write `run.json` from `facts` and `summary`, and the dataset card from `run.json`."""
        completed = False
        try:
            self._write_files(facts, summary)
            completed = facts["state"] == COMPLETED
        finally:
            if not completed:
                self._unlock()

    def _write_files(self, facts: dict[str, Any], summary: Summary) -> None:
        shards = {leaf: writer.close() for leaf, writer in self._writers.items()}
        if self._errors is not None:
            self._errors.close()
        run = facts | {
            "started": self.started.isoformat(timespec="seconds"),
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "output_format": self._format,
            "leaves": {leaf: writer.rows for leaf, writer in self._writers.items()},
            **({} if self._format == "parquet" else {"features": self._features()}),
            "summary": summary.model_dump(),
        }
        text = replace_lone_surrogates(json.dumps(run, indent=2, ensure_ascii=False, default=str))
        (self.partial / "run.json").write_text(f"{text}\n")
        samples = {leaf: read_head(paths, 1) for leaf, paths in shards.items()}
        (self.partial / "README.md").write_text(render_card(json.loads(text), samples))

    def _features(self) -> dict[str, Any]:
        """Return each leaf's columns and types as `datasets` writes them: JSONL has no type for a column of nulls."""
        from datasets import Features

        schemas = {leaf: writer.schema or pa.schema([]) for leaf, writer in self._writers.items()}
        return {leaf: Features.from_arrow_schema(schema).to_dict() for leaf, schema in schemas.items()}

    def promote(self) -> Path:
        """Move the completed folder to `output`, in place of an earlier run's dataset, and return `output`."""
        try:
            self._replace_output()
        finally:
            self._unlock()
        return self.output

    def _replace_output(self) -> None:
        if self.output.exists():
            shutil.rmtree(self.previous, ignore_errors=True)
            self.output.rename(self.previous)
        self.partial.rename(self.output)
        shutil.rmtree(self.previous, ignore_errors=True)

    def _recover(self) -> None:
        """Finish the move of a run that was killed during `promote`."""
        if _is_completed(self.partial):
            self._replace_output()
        if self.previous.exists() and not self.output.exists():
            self.previous.rename(self.output)
        shutil.rmtree(self.previous, ignore_errors=True)

    def _unlock(self) -> None:
        with suppress(OSError):  # Windows does not delete a file that is open
            Path(self._lock.lock_file).unlink()
        self._lock.release()


def _lock_output(output: Path) -> FileLock:
    """Lock the output folder; the operating system releases the lock when the process ends.

    Raises:
        ConfigurationError: If another run has the lock.
    """
    file = output.with_name(f".{output.name}.lock")
    lock = FileLock(file, thread_local=False)
    while True:
        with suppress(FileNotFoundError):  # the run that had it ended in between, and deleted the file
            file.touch()
            before = file.stat()
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise ConfigurationError(
                    f"another run is writing `{output}`: wait until it has ended, or choose another `output`."
                ) from None
            if os.path.samestat(before, file.stat()):
                return lock
        lock.release()


def _is_completed(folder: Path) -> bool:
    with suppress(OSError, ValueError, LookupError):  # there is none, or its run was killed before its end
        return json.loads((folder / "run.json").read_text())["state"] == COMPLETED
    return False


def check_output(output: Path) -> None:
    """Check that an output folder is free, or holds an earlier run's dataset, which a new one replaces.

    Raises:
        ConfigurationError: If it holds something else.
    """
    if store.path().is_relative_to(output.absolute()):
        raise ConfigurationError(f"`{output}` holds the store of answers: choose another `output`.")
    if not output.exists():
        return
    try:
        leaves = json.loads((output / "run.json").read_text())["leaves"]
    except (KeyError, OSError, ValueError):
        leaves = []
    found = [path.name for path in output.iterdir()] if output.is_dir() else [output.name]
    expected = {"run.json", "README.md", "errors.parquet", *leaves} if leaves else set()
    if unexpected := sorted(set(found) - expected):
        raise ConfigurationError(
            f"`{output}` holds `{unexpected[0]}`, which is not a dataset's: choose another `output`."
        )
