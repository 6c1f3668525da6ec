"""The dataset card: where the rows come from, for whoever finds the folder."""

import json
from typing import Any

import yaml

from flows.dataset.distiset import Distiset

SIZES = [
    (10**power, name)
    for power, name in enumerate(["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M"], 3)
]


def card(run: dict[str, Any], dataset: Distiset) -> str:
    """`README.md` in the form the Hugging Face Hub reads, from what `run.json` says."""
    summary, started = run["summary"], run["started"][:10]
    failed = " and are in `errors.parquet`" if summary["failures"] else ""
    sections = [
        f"---\n{yaml.safe_dump(_header(run), sort_keys=False, allow_unicode=True)}---",
        f"# {run['pipeline']}",
        f"{summary['rows']:,} rows made with distilflow {run['versions']['distilflow']} on {started}; "
        f"{summary['failures']:,} rows failed{failed}.",
        *(_sample(leaf, dataset) for leaf in run["leaves"]),
        "## How they were made",
        _table(
            ["step", "class", "rows", "failures", "requests", "tokens in", "tokens out", "cost"],
            [_step(name, run) for name in summary["steps"]],
        ),
        f"In all {summary['input_tokens']:,} tokens in, {summary['output_tokens']:,} out, {_dollars(summary['cost'])}; "
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
        "size_categories": [next((name for most, name in SIZES if rows < most), "n>1T")],
        **({"source_datasets": sources} if sources else {}),
        "tags": ["synthetic", "distilflow"],
        "configs": [{"config_name": leaf, "data_files": files} for leaf, files in paths.items()],
        **({"dataset_info": _columns(run["features"])} if "features" in run else {}),
    }


def _columns(features: dict[str, Any]) -> Any:
    """The types of the columns of JSONL, which its first lines may not show."""
    from datasets import DatasetInfo, Features
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCardData

    infos = {leaf: DatasetInfo(features=Features.from_dict(each)) for leaf, each in features.items()}
    known = DatasetCardData()
    DatasetInfosDict(infos).to_dataset_card_data(known)
    return known.to_dict()["dataset_info"]


def _step(name: str, run: dict[str, Any]) -> list[str]:
    did, models = run["summary"]["steps"][name], run["summary"]["steps"][name]["models"].values()
    sums = [f"{sum(each[key] for each in models):,}" for key in ("requests", "input_tokens", "output_tokens")]
    costs = [each["cost"] for each in models]
    spent = [*sums, _dollars(None if None in costs else sum(costs))] if models else [""] * 4
    return [f"`{name}`", f"`{run['steps'][name]['class']}`", f"{did['rows']:,}", f"{did['failures']:,}", *spent]


def _models(run: dict[str, Any]) -> list[str]:
    told = [
        f"- `{name}` asked `{llm['model_name']}` (`{llm['class']}`)"
        + (f" with `{json.dumps(llm['generation_kwargs'], ensure_ascii=False)}`" if "generation_kwargs" in llm else "")
        for name, step in run["steps"].items()
        if (llm := step.get("llm"))
    ]
    return ["## Models", "\n".join(told)] if told else []


def _prompts(run: dict[str, Any]) -> list[str]:
    told = list[str]()
    for name, messages in run["prompts"].items():
        fields = {key: text for key, text in run["steps"][name].items() if key.endswith(("prompt", "template"))}
        told += [f"`{name}.{key}`:\n\n{_block(text)}" for key, text in fields.items()]
        told += [f"The first that `{name}` sent:"] if messages else []
        told += [f"{message['role']}:\n\n{_block(message['content'])}" for message in messages or []]
    return ["## Prompts", *told] if told else []


def _failures(run: dict[str, Any]) -> list[str]:
    steps = run["summary"]["steps"].items()
    rows = [[f"`{name}`", f"`{error}`", f"{n:,}"] for name, did in steps for error, n in did["errors"].items()]
    return ["## Failures", _table(["step", "error", "rows"], rows)] if rows else []


def _licences(run: dict[str, Any]) -> list[str]:
    told = [
        f"- `{name}`: {licence or 'not known here'}"
        for name, licence in {**dict.fromkeys(_unlicensed(run)), **run.get("licences", {})}.items()
    ]
    return (
        [
            "## Licences",
            "What the rows were made from and with has terms of its own, those of the models' providers among them:",
            "\n".join(told),
        ]
        if told
        else []
    )


def _unlicensed(run: dict[str, Any]) -> list[str]:
    return [step["llm"]["model_name"] for step in run["steps"].values() if "llm" in step]


def _table(head: list[str], rows: list[list[str]]) -> str:
    rule = ["---" if name in ("step", "class", "error") else "---:" for name in head]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *rows])


def _dollars(cost: float | None) -> str:
    return "at a price that is not known" if cost is None else f"${cost:,.4f}"


def _sample(leaf: str, dataset: Distiset) -> str:
    rows = dataset.head(leaf, 1)
    if not rows:
        return f"`{leaf}` is empty."
    columns = "\n".join(
        f"- **{name}**: {_short(' '.join(str(value).split()), 300)}"
        for name, value in rows[0].items()
        if not name.endswith("_metadata")
    )
    return f"A row of `{leaf}`:\n\n{columns}"


def _block(text: str) -> str:
    """A text as it is, however many backticks it holds."""
    fence = "`" * 3
    while fence in text:
        fence += "`"
    return f"{fence}\n{_short(text, 2_000)}\n{fence}"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"
