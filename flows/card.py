"""The dataset card: where the rows come from, for whoever finds the folder."""

from typing import Any

from flows.distiset import Distiset

SIZES = [(10**power, name) for power, name in enumerate(["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M"], 3)]


def card(run: dict[str, Any], dataset: Distiset) -> str:
    """`README.md` in the form the Hugging Face Hub reads, from what `run.json` says."""
    summary, leaves = run["summary"], run["leaves"]
    size = next((name for most, name in SIZES if summary["rows"] < most), "n>1M")
    configs = "\n".join(
        f"- config_name: {leaf}\n  data_files:\n  - split: train\n    path: {leaf}/*.parquet" for leaf in leaves
    )
    steps = "\n".join(
        f"| `{name}` | {step['rows']:,} | {step['failures']:,} | {_models(step)} |"
        for name, step in summary["steps"].items()
    )
    sample = "\n\n".join(_sample(leaf, dataset) for leaf in leaves)
    return f"""---
size_categories:
- {size}
tags:
- synthetic
- distilflow
configs:
{configs}
---

# {run["pipeline"]}

{summary["rows"]:,} rows made with distilflow {run["versions"]["distilflow"]} on {run["started"][:10]}; \
{summary["failures"]:,} rows failed{" and are in `errors.parquet`" if summary["failures"] else ""}.

| step | rows | failures | models |
| --- | ---: | ---: | --- |
{steps}

{sample}

Models, prompts, parameters and versions are in `run.json`.
"""


def _models(step: dict[str, Any]) -> str:
    return "; ".join(
        f"{name}: {spent['requests']:,} requests, {spent['input_tokens']:,} + {spent['output_tokens']:,} tokens"
        for name, spent in step["models"].items()
    )


def _sample(leaf: str, dataset: Distiset) -> str:
    rows = dataset.head(leaf, 1)
    if not rows:
        return f"`{leaf}` is empty."
    columns = "\n".join(
        f"- **{name}**: {_short(value)}" for name, value in rows[0].items() if not name.endswith("_metadata")
    )
    return f"A row of `{leaf}`:\n\n{columns}"


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 300 else f"{text[:300]}…"
