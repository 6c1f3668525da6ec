"""The folder a run writes: beside its place while it grows, moved there when it is whole."""

import json
import platform
import shutil
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flows.card import card
from flows.distiset import ERRORS, Distiset, Summary
from flows.errors import Refused
from flows.parts import Parts
from tasks.typing import Failure, Row


class RunFolder:
    """Writes rows and failures as they come to `<output>.partial`, which becomes `output` at the end.

    Args:
        output: Where the dataset is to be.
        leaves: The leaf steps, by the name of their folder.
    """

    def __init__(self, output: Path, leaves: Iterable[str]) -> None:
        self.output = output
        self.partial = output.with_name(f"{output.name}.partial")
        self.started = datetime.now(UTC)
        if (
            output.exists()
            and any(output.iterdir() if output.is_dir() else [output])
            and not (output / "run.json").exists()
        ):
            raise Refused(f"`{output}` holds something that is not a dataset of ours: choose another `output`.")
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        # pyarrow imports pandas, a second's work, with its first array: rather while the first answers are awaited
        threading.Thread(target=pa.array, args=([None],), daemon=True).start()
        self._leaves = {leaf: Parts(self.partial / leaf) for leaf in leaves}
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
            self._errors.write_table(pa.Table.from_pylist(rows, schema=ERRORS))

    def close(self, facts: dict[str, Any], summary: Summary) -> None:
        """Write what is left, the errors if there are any, `run.json` and the card."""
        for parts in self._leaves.values():
            parts.close()
        if self._errors is not None:
            self._errors.close()
        run = facts | {
            "started": self.started.isoformat(timespec="seconds"),
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("distilflow", "prefect")},
            "leaves": {leaf: parts.rows for leaf, parts in self._leaves.items()},
            "summary": summary.model_dump(),
        }
        (self.partial / "run.json").write_text(json.dumps(run, indent=2, ensure_ascii=False, default=str) + "\n")
        (self.partial / "README.md").write_text(card(run, Distiset(self.partial)))

    def promote(self) -> Distiset:
        """Put the finished folder in its place, instead of the dataset of an earlier run."""
        former = self.output.with_name(f"{self.output.name}.former")
        shutil.rmtree(former, ignore_errors=True)
        if self.output.exists():
            self.output.rename(former)
        self.partial.rename(self.output)
        shutil.rmtree(former, ignore_errors=True)
        return Distiset(self.output)
