"""Output of the command line: a finished dataset or a dry run."""

from rich.console import Console
from rich.text import Text

from flows.dataset.distiset import Distiset
from flows.preview.estimate import Estimate
from flows.runtime.humanize import money, pluralize, truncate

MAX_VALUE_CHARS = 400


def print_dataset(dataset: Distiset, brief: bool = False) -> None:
    """Print rows and failures, usage by model, rows of each dataset, and the files; the first and last if `brief`."""
    out, summary = Console(soft_wrap=True, highlight=False), dataset.summary
    rate = summary.rows / summary.seconds if summary.seconds else 0
    rows = f"[bold]{summary.rows:,} rows[/] in {summary.seconds:,.1f} s ({rate:,.0f} rows/s)"
    out.print(f"{rows}, {_format_failures(summary.failures)}")
    for step in () if brief else summary.steps.values():
        for model, usage in step.models.items():
            requests = pluralize(usage.requests, "request")
            tokens = f"{usage.input_tokens:,} tokens in, {usage.output_tokens:,} out"
            cached = f", {usage.cached:,} from the store" if usage.cached else ""
            cost = f", {money(usage.cost, decimals=4)}" if usage.cost else ""
            out.print(f"{model}: {requests}, {tokens}{cached}{cost}")
    for leaf in () if brief else dataset:
        for row in dataset.head(leaf):
            out.print()
            for column, value in row.items():
                if not column.endswith("_metadata") and column != "model_name":
                    out.print(Text.assemble((f"{column}: ", "cyan"), truncate(str(value), MAX_VALUE_CHARS)))
    if not brief:
        out.print()
    for leaf in dataset:
        out.print(Text(f"{dataset.folder}/{leaf}/*.{dataset.output_format}"))
    if summary.failures:
        out.print(Text(f"{dataset.folder}/errors.parquet"))


def print_preview(dataset: Distiset, estimate: Estimate) -> None:
    """Print the requests and answers of each row of a dry run, a row of each dataset, and the estimate."""
    out = Console(soft_wrap=True, highlight=False)
    for row in dataset.preview:
        out.print(Text(f"{row.markdown()}\n"))
    for leaf in dataset:
        for result in dataset.head(leaf, 1):
            out.print(Text(f"## a row of {leaf}\n"))
            for column in (each for each in result if not each.endswith("_metadata")):
                out.print(Text.assemble((f"{column}: ", "cyan"), truncate(str(result[column]), MAX_VALUE_CHARS)))
            out.print()
    out.print(Text(estimate.markdown()))


def _format_failures(count: int) -> str:
    return f"[red]{pluralize(count, 'failure')}[/]" if count else "no failures"
