"""Settings of a run, each with its name, type, default and sentence; flows take them as `**settings`.

A new setting is two lines in this file: a field of `RunSettings`, and its line in `RunSettingsArgs`.
"""

from pathlib import Path
from typing import Any, Literal, TypedDict

from pydantic import Field, field_validator

from llms.config.strict import StrictModel

OutputFormat = Literal["parquet", "jsonl"]
"""Formats of a dataset's files, which are also their suffixes."""


class RunSettings(StrictModel):
    """Settings of one run, checked and coerced; the descriptions are shown in forms and by `--help`."""

    output: Path | None = Field(None, description="Folder for the dataset.")
    limit: int | None = Field(None, description="Rows to take from the data, at most.")
    use_cache: bool = Field(
        True, description="Take answers that are in the store already; without it every row is asked anew."
    )
    max_error_rate: float = Field(
        0.1, description="The run fails when a larger share of the rows that enter a step fails in it."
    )
    max_cost: float | None = Field(
        None, description="Dollars this run may spend; the same command with more goes on from there."
    )
    max_tokens_total: int | None = Field(None, description="Tokens this run may spend, input and output together.")
    approve: bool = Field(
        False,
        description="Wait, with an estimate from the first rows, until somebody gives the run a budget or says no.",
    )
    output_format: OutputFormat = Field("parquet", description="What the files of the dataset are: Parquet, or JSONL.")
    dry_run: int | None = Field(
        None,
        description="Take so many rows only, show what is sent and what comes, and estimate what all rows would take.",
    )

    @field_validator("output", mode="before")
    @classmethod
    def _none_if_empty(cls, output: Any) -> Any:
        return output or None


class RunSettingsArgs(TypedDict, total=False):
    """Types of `RunSettings` as keyword arguments, for editors and type checkers."""

    output: Path | str | None
    limit: int | None
    use_cache: bool
    max_error_rate: float
    max_cost: float | None
    max_tokens_total: int | None
    approve: bool
    output_format: OutputFormat
    dry_run: int | None
