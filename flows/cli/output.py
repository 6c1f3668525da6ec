"""Output of the command line: a finished dataset, a dry run."""

from rich.console import Console
from rich.text import Text

from flows.dataset.distiset import Distiset
from flows.preview.estimate import Estimate
from flows.runtime.humanize import money, pluralize, truncate

MAX_VALUE_CHARS = 400


def print_dataset(dataset: Distiset, brief: bool = False) -> None:
    """Print what was made, what it took, a row of each leaf and where the files are; the first and last when brief."""
    out, summary = Console(soft_wrap=True, highlight=False), dataset.summary
    rate = summary.rows / summary.seconds if summary.seconds else 0
    made = f"[bold]{summary.rows:,} rows[/] in {summary.seconds:,.1f} s ({rate:,.0f} rows/s)"
    out.print(f"{made}, {_failures(summary.failures)}")
    for step in () if brief else summary.steps.values():
        for model, spent in step.models.items():
            known = (
                f"{pluralize(spent.requests, 'request')}, {spent.input_tokens:,} tokens in, {spent.output_tokens:,} out"
            )
            cached = f", {spent.cached:,} from the store" if spent.cached else ""
            cost = f", {money(spent.cost, decimals=4)}" if spent.cost else ""
            out.print(f"{model}: {known}{cached}{cost}")
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
    """Print what was asked for each row of a dry run, what came, a row of each leaf, and the estimate."""
    out = Console(soft_wrap=True, highlight=False)
    for row in dataset.preview:
        out.print(Text(f"{row.markdown()}\n"))
    for leaf in dataset:
        for made in dataset.head(leaf, 1):
            out.print(Text(f"## a row of {leaf}\n"))
            for column in (each for each in made if not each.endswith("_metadata")):
                out.print(Text.assemble((f"{column}: ", "cyan"), truncate(str(made[column]), MAX_VALUE_CHARS)))
            out.print()
    out.print(Text(estimate.markdown()))


def _failures(count: int) -> str:
    return f"[red]{pluralize(count, 'failure')}[/]" if count else "no failures"
