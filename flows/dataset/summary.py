"""Figures of a run: rows, failures, tokens and cost, by step and model."""

from collections import Counter
from dataclasses import asdict

import pyarrow as pa
from pydantic import BaseModel, Field

from flows.runtime.humanize import money, pluralize
from tasks.typing import ModelUsage, add_costs


class ModelSummary(BaseModel):
    """Usage of one model in one step; tokens under OpenTelemetry's GenAI names."""

    requests: int = 0
    cached: int = Field(default=0, description="Answers found in the store, which cost nothing.")
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    reasoning_output_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cost: float | None = Field(default=0.0, description="Dollars; `None` when a price is unknown.")
    seconds: float = Field(default=0.0, description="Total seconds of its requests.")

    def add(self, used: ModelUsage) -> None:
        """Add the usage of a batch."""
        self.requests += used.requests
        self.cached += used.cached
        self.seconds += used.seconds
        self.cost = add_costs(self.cost, used.cost)
        for name, tokens in asdict(used.usage).items():
            setattr(self, name, getattr(self, name) + tokens)


class StepSummary(BaseModel):
    """Rows, failures and usage of one step."""

    rows_in: int = Field(default=0, description="Rows it took in; none for a source.")
    rows: int = Field(default=0, description="Rows it passed on.")
    failures: int = Field(default=0, description="Rows that failed in it.")
    errors: dict[str, int] = Field(default_factory=dict, description="Failures by class of error.")
    seconds: float = Field(default=0.0, description="Total seconds of its batches.")
    models: dict[str, ModelSummary] = Field(default_factory=dict)


class Summary(BaseModel):
    """Rows, failures, tokens and seconds of a run, in all and by step and model."""

    rows: int = Field(default=0, description="Rows in the datasets.")
    failures: int = Field(default=0, description="Rows that failed, in any step.")
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = Field(default=0.0, description="Dollars; `None` when a price is unknown.")
    seconds: float = Field(default=0.0, description="From the first step's start to the last row on disk.")
    steps: dict[str, StepSummary] = Field(default_factory=dict)

    def __str__(self) -> str:
        """`997 rows, 3 failures (2 Rejected, 1 ValueError), $0.12`."""
        classes = Counter[str]()
        for step in self.steps.values():
            classes.update(step.errors)
        named = ", ".join(f"{count:,} {name}" for name, count in classes.most_common())
        lost = f"{pluralize(self.failures, 'failure')} ({named})" if self.failures else "no failures"
        cost = f", {money(self.cost)}" if self.cost else ""
        return f"{pluralize(self.rows, 'row')}, {lost}{cost}"


ERRORS_SCHEMA = pa.schema(
    [
        ("step", pa.string()),
        ("error", pa.string()),
        ("message", pa.string()),
        ("attempts", pa.int64()),
        ("origin", pa.string()),
        ("row", pa.string()),
        ("raw_output", pa.string()),
    ]
)
"""Columns of `errors.parquet`; the row itself is JSON, so that rows of any shape fit."""
