"""Figures of a run: rows, failures, tokens and cost, by step and model."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict

import pyarrow as pa
from pydantic import BaseModel, Field

from flows.runtime.humanize import money, pluralize
from llms.limits.budget import spell
from llms.typing import ModelUsage


class ModelSummary(BaseModel):
    """Usage of one model in one step; tokens under OpenTelemetry's GenAI names."""

    requests: int = Field(default=0, description="Requests sent, further attempts included.")
    unanswered: int = Field(
        default=0, description="Requests nothing came back for; the provider may bill them all the same."
    )
    cached: int = Field(default=0, description="Answers found in the store, which cost nothing.")
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    reasoning_output_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cost: float | None = Field(default=0.0, description="Dollars; `None` when a price is unknown.")
    seconds: float = Field(default=0.0, description="Total seconds of its requests.")

    @classmethod
    def of(cls, used: ModelUsage) -> "ModelSummary":
        """Return the figures of this usage."""
        figures = {name: getattr(used, name) for name in ("requests", "cached", "unanswered", "cost", "seconds")}
        return cls(**figures, **asdict(used.usage))


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
    attempts: int = Field(
        default=1,
        description="Attempts of the flow run that tokens and cost are the sum of, its preview included.",
    )
    seconds: float = Field(default=0.0, description="From the first step's start to the last row on disk.")
    steps: dict[str, StepSummary] = Field(default_factory=dict)

    def set_usage(self, totals: Mapping[tuple[str, str], ModelUsage]) -> None:
        """Set tokens and cost from the usage by step and model."""
        for (step, model), used in totals.items():
            if step in self.steps:
                self.steps[step].models[model] = ModelSummary.of(used)
        total = sum(totals.values(), ModelUsage())
        self.input_tokens, self.output_tokens = total.usage.input_tokens, total.usage.output_tokens
        self.cost = total.cost

    def __str__(self) -> str:
        """`997 rows, 3 failures (2 Rejected, 1 ValueError), $0.12`."""
        classes = Counter[str]()
        for step in self.steps.values():
            classes.update(step.errors)
        named = ", ".join(f"{count:,} {name}" for name, count in classes.most_common())
        lost = f"{pluralize(self.failures, 'failure')} ({named})" if self.failures else "no failures"
        cost = f", {money(self.cost)}" if self.cost else ""
        cost += f" in {spell(self.attempts)} attempts" if cost and self.attempts > 1 else ""
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
