"""The folder a run writes: beside its place while it grows, moved there when it is whole."""

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

from flows.dataset import provenance
from flows.dataset.card import card
from flows.dataset.distiset import Distiset
from flows.dataset.summary import ERRORS, Summary
from flows.dataset.writer import Parts, mended
from flows.errors import ConfigurationError
from flows.settings.run_settings import OutputFormat
from llms import store
from tasks.typing import Failure, Row

COMPLETED = "completed"
"""The state, in its `run.json`, of a run whose dataset is whole."""


class RunFolder:
    """Writes rows and failures as they come to `<output>.partial`, which becomes `output` at the end.

    Args:
        output: Where the dataset is to be; from here to `promote`, or to `close` after a failure, it is this run's.
        leaves: The leaf steps, by the name of their folder.
        format: What the files of the leaves are.

    Raises:
        ConfigurationError: If another run is writing it, or it holds something else than a dataset.
    """

    def __init__(self, output: Path, leaves: Iterable[str], format: OutputFormat = "parquet") -> None:
        self.output = output
        self.partial = output.with_name(f"{output.name}.partial")
        self.former = output.with_name(f"{output.name}.former")
        self.started = datetime.now(UTC)
        check(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _claimed(output)
        self._mend()
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir()
        # pyarrow imports pandas, a second's work, with its first array: rather while the first answers are awaited
        threading.Thread(target=pa.array, args=([None],), daemon=True).start()
        self._leaves = {leaf: Parts(self.partial / leaf, format) for leaf in leaves}
        self._format: OutputFormat = format
        self._errors: pq.ParquetWriter | None = None

    def write(self, leaf: str, rows: Iterable[Row]) -> None:
        """Add rows to a leaf."""
        self._leaves[leaf].write(rows)

    def fail(self, failures: Iterable[Failure]) -> None:
        """Add rows to the errors."""
        rows = [
            {name: getattr(each, name) for name in ERRORS.names if name != "row"}
            | {"row": json.dumps(each.row, ensure_ascii=False, default=str)}
            for each in failures
        ]
        if rows:
            self._errors = self._errors or pq.ParquetWriter(self.partial / "errors.parquet", ERRORS, compression="zstd")
            self._errors.write_table(pa.Table.from_pylist(mended(rows), schema=ERRORS))

    def close(self, facts: dict[str, Any], summary: Summary) -> None:
        """Write what is left, the errors if there are any, `run.json` and the card."""
        done = False
        try:
            self._finish(facts, summary)
            done = facts["state"] == COMPLETED
        finally:
            if not done:
                self._release()

    def _finish(self, facts: dict[str, Any], summary: Summary) -> None:
        for parts in self._leaves.values():
            parts.close()
        if self._errors is not None:
            self._errors.close()
        run = facts | {
            "started": self.started.isoformat(timespec="seconds"),
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": provenance.versions(),
            "output_format": self._format,
            "leaves": {leaf: parts.rows for leaf, parts in self._leaves.items()},
            **({} if self._format == "parquet" else {"features": self._features()}),
            "summary": summary.model_dump(),
        }
        told = mended(json.dumps(run, indent=2, ensure_ascii=False, default=str))
        (self.partial / "run.json").write_text(f"{told}\n")
        (self.partial / "README.md").write_text(card(json.loads(told), Distiset(self.partial)))

    def _features(self) -> dict[str, Any]:
        """The columns and types of each leaf, as `datasets` writes them: JSONL says nothing of what is `null` yet."""
        from datasets import Features

        schemas = {leaf: parts.schema or pa.schema([]) for leaf, parts in self._leaves.items()}
        return {leaf: Features.from_arrow_schema(schema).to_dict() for leaf, schema in schemas.items()}

    def promote(self) -> Distiset:
        """Put the finished folder in its place, instead of the dataset of an earlier run."""
        try:
            self._place()
        finally:
            self._release()
        return Distiset(self.output)

    def _place(self) -> None:
        if self.output.exists():
            shutil.rmtree(self.former, ignore_errors=True)
            self.output.rename(self.former)
        self.partial.rename(self.output)
        shutil.rmtree(self.former, ignore_errors=True)

    def _mend(self) -> None:
        """Bring to its end what a run had begun that was killed while it put its dataset in place."""
        if _is_whole(self.partial):
            self._place()
        if self.former.exists() and not self.output.exists():
            self.former.rename(self.output)
        shutil.rmtree(self.former, ignore_errors=True)

    def _release(self) -> None:
        with suppress(OSError):  # Windows, which takes no file away that is open
            Path(self._lock.lock_file).unlink()
        self._lock.release()


def _claimed(output: Path) -> FileLock:
    """A lock on the place, which ends with this process if nobody releases it before.

    Raises:
        ConfigurationError: If another run has it.
    """
    file = output.with_name(f".{output.name}.lock")
    lock = FileLock(file, thread_local=False)
    while True:
        with suppress(FileNotFoundError):  # the run that had it ended in between, and took the file away
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


def _is_whole(folder: Path) -> bool:
    with suppress(OSError, ValueError, LookupError):  # there is none, or its run was killed before its end
        return json.loads((folder / "run.json").read_text())["state"] == COMPLETED
    return False


def check(output: Path) -> None:
    """Refuse a place that holds something else than the dataset of an earlier run, which a new one replaces."""
    if store.path().is_relative_to(output.absolute()):
        raise ConfigurationError(f"`{output}` holds the store of answers: choose another `output`.")
    if not output.exists():
        return
    try:
        leaves = json.loads((output / "run.json").read_text())["leaves"]
    except (KeyError, OSError, ValueError):
        leaves = []
    found = [path.name for path in output.iterdir()] if output.is_dir() else [output.name]
    ours = {"run.json", "README.md", "errors.parquet", *leaves} if leaves else set()
    if strange := sorted(set(found) - ours):
        raise ConfigurationError(f"`{output}` holds `{strange[0]}`, which is not a dataset's: choose another `output`.")
