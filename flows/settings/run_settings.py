"""Settings of a run."""

from typing import Literal

OutputFormat = Literal["parquet", "jsonl"]
"""What the files are, and how their names end."""
