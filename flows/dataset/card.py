"""Dataset card: `README.md` in the format of the Hugging Face Hub."""

import json
from collections.abc import Mapping
from typing import Any

import yaml

from flows.runtime.humanize import money, truncate

SIZE_CATEGORIES = [
    (10**power, name)
    for power, name in enumerate(["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M"], 3)
]
"""Upper bounds and names of the Hub's categories."""

MAX_VALUE_CHARS = 300
MAX_PROMPT_CHARS = 2_000


def render_card(run: dict[str, Any], samples: Mapping[str, list[dict[str, Any]]]) -> str:
    """Render the dataset card.

    Args:
        run: Content of `run.json`.
        samples: First row of each leaf; none of an empty one.
    """
    summary, started = run["summary"], run["started"][:10]
    failed = " and are in `errors.parquet`" if summary["failures"] else ""
    sections = [
        f"---\n{yaml.safe_dump(_header(run), sort_keys=False, allow_unicode=True)}---",
        f"# {run['pipeline']}",
        f"{summary['rows']:,} rows made with distilflow {run['versions']['distilflow']} on {started}; "
        f"{summary['failures']:,} rows failed{failed}.",
        *(_sample(leaf, samples[leaf]) for leaf in run["leaves"]),
        "## How they were made",
        _table(
            ["step", "class", "rows", "failures", "requests", "tokens in", "tokens out", "cost"],
            [_step_cells(name, run) for name in summary["steps"]],
        ),
        f"In all {summary['input_tokens']:,} tokens in, {summary['output_tokens']:,} out, {_cost(summary['cost'])}; "
        "what was in the store already is not counted.",
        *_models(run),
        *_prompts(run),
        *_failures(run),
        *_licences(run),
        "## Versions",
        ", ".join(f"{name} {version}" for name, version in run["versions"].items()) + ".",
        "All of this, with the parameters and the edges between the steps, is in `run.json`.",
    ]
    return "\n\n".join(sections) + "\n"


def _header(run: dict[str, Any]) -> dict[str, Any]:
    rows, format = run["summary"]["rows"], run["output_format"]
    sources = [name.removeprefix("datasets/") for name in run.get("licences", {}) if name.startswith("datasets/")]
    paths = {leaf: [{"split": "train", "path": f"{leaf}/*.{format}"}] for leaf in run["leaves"]}
    return {
        "size_categories": [next((name for bound, name in SIZE_CATEGORIES if rows < bound), "n>1T")],
        **({"source_datasets": sources} if sources else {}),
        "tags": ["synthetic", "distilflow"],
        "configs": [{"config_name": leaf, "data_files": files} for leaf, files in paths.items()],
        **({"dataset_info": _dataset_info(run["features"])} if "features" in run else {}),
    }


def _dataset_info(features: dict[str, Any]) -> Any:
    """Return the column types of JSONL, which its first lines may not reveal."""
    from datasets import DatasetInfo, Features
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCardData

    infos = {leaf: DatasetInfo(features=Features.from_dict(each)) for leaf, each in features.items()}
    data = DatasetCardData()
    DatasetInfosDict(infos).to_dataset_card_data(data)
    return data.to_dict()["dataset_info"]


def _step_cells(name: str, run: dict[str, Any]) -> list[str]:
    step, models = run["summary"]["steps"][name], run["summary"]["steps"][name]["models"].values()
    sums = [f"{sum(each[key] for each in models):,}" for key in ("requests", "input_tokens", "output_tokens")]
    costs = [each["cost"] for each in models]
    usage = [*sums, _cost(None if None in costs else sum(costs))] if models else [""] * 4
    return [f"`{name}`", f"`{run['steps'][name]['class']}`", f"{step['rows']:,}", f"{step['failures']:,}", *usage]


def _models(run: dict[str, Any]) -> list[str]:
    lines = [
        f"- `{name}` asked `{llm['model_name']}` (`{llm['class']}`)"
        + (f" with `{json.dumps(llm['generation_kwargs'], ensure_ascii=False)}`" if "generation_kwargs" in llm else "")
        for name, step in run["steps"].items()
        if (llm := step.get("llm"))
    ]
    return ["## Models", "\n".join(lines)] if lines else []


def _prompts(run: dict[str, Any]) -> list[str]:
    sections = list[str]()
    for name, messages in run["prompts"].items():
        fields = {key: text for key, text in run["steps"][name].items() if key.endswith(("prompt", "template"))}
        sections += [f"`{name}.{key}`:\n\n{_code_block(text)}" for key, text in fields.items()]
        sections += [f"The first that `{name}` sent:"] if messages else []
        sections += [f"{message['role']}:\n\n{_code_block(message['content'])}" for message in messages or []]
    return ["## Prompts", *sections] if sections else []


def _failures(run: dict[str, Any]) -> list[str]:
    steps = run["summary"]["steps"].items()
    rows = [[f"`{name}`", f"`{error}`", f"{n:,}"] for name, step in steps for error, n in step["errors"].items()]
    return ["## Failures", _table(["step", "error", "rows"], rows)] if rows else []


def _licences(run: dict[str, Any]) -> list[str]:
    models = [step["llm"]["model_name"] for step in run["steps"].values() if "llm" in step]
    lines = [
        f"- `{name}`: {licence or 'not known here'}"
        for name, licence in {**dict.fromkeys(models), **run.get("licences", {})}.items()
    ]
    about = "What the rows were made from and with has terms of its own, those of the models' providers among them:"
    return ["## Licences", about, "\n".join(lines)] if lines else []


def _table(head: list[str], rows: list[list[str]]) -> str:
    rule = ["---" if name in ("step", "class", "error") else "---:" for name in head]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *rows])


def _cost(cost: float | None) -> str:
    return "at a price that is not known" if cost is None else money(cost, decimals=4)


def _sample(leaf: str, rows: list[dict[str, Any]]) -> str:
    if not rows:
        return f"`{leaf}` is empty."
    columns = "\n".join(
        f"- **{name}**: {truncate(' '.join(str(value).split()), MAX_VALUE_CHARS)}"
        for name, value in rows[0].items()
        if not name.endswith("_metadata")
    )
    return f"A row of `{leaf}`:\n\n{columns}"


def _code_block(text: str) -> str:
    """Fence a text with more backticks than it has in a row."""
    fence = "`" * 3
    while fence in text:
        fence += "`"
    return f"{fence}\n{truncate(text, MAX_PROMPT_CHARS)}\n{fence}"
