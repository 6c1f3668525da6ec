"""Artifacts on the page of a flow run in Prefect's UI: progress of each step, and a summary at the end."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow.parquet as pq
from prefect.artifacts import Artifact, MarkdownArtifact, ProgressArtifact, TableArtifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.objects import FlowRun

from flows.dataset.distiset import Distiset
from flows.reporting.progress import RunSnapshot, StepSnapshot
from flows.runtime.humanize import duration, money, truncate

MIN_INTERVAL_S = 2.0

MAX_INTERVAL_S = 20.0
"""Interval of updates when the run takes too little CPU itself for `MAX_CPU_FRACTION`."""

MAX_CPU_FRACTION = 0.005
"""Share of the run's CPU that updates of its progress may take."""

MAX_SAMPLE_ROWS = 5
"""Rows shown of each dataset."""

MAX_FAILURES = 30

MAX_FAILURES_PER_CLASS = 3
"""Failures shown per step and class of error."""

MAX_TEXT_CHARS = 400


def artifact_key(*names: str) -> str:
    """Return an artifact's key, equal in every run of a flow, so that the UI shows them as versions of one artifact."""
    slug = re.sub(r"[^a-z0-9]+", "-", "-".join(dict.fromkeys(names)).lower())
    return slug.strip("-") or "pipeline"


class StepProgressArtifacts:
    """A progress artifact per step, updated with at most `MAX_CPU_FRACTION` of the run's CPU."""

    def __init__(self, run: FlowRun, *names: str) -> None:
        self._run = run
        self._names = names
        self._ids: dict[str, UUID] = {}
        self._done: dict[str, int] = {}
        self._client: SyncPrefectClient | None = None
        self._update_cpu_s = 0.0
        self._last_cpu_s = self._last_update = 0.0

    def on_update(self, now: RunSnapshot) -> float:
        """Update the artifacts of steps that moved, if the CPU budget allows it."""
        is_affordable = (time.process_time() - self._last_cpu_s) * MAX_CPU_FRACTION >= self._update_cpu_s
        if is_affordable or time.monotonic() - self._last_update >= MAX_INTERVAL_S:
            self._update(now)
        return MIN_INTERVAL_S

    def on_end(self, now: RunSnapshot) -> None:
        """Write the final progress of every step."""
        self._update(now)

    def _update(self, now: RunSnapshot) -> None:
        started = time.thread_time()
        for name, step in now.steps.items():
            if self._done.get(name) != step.done:
                self._write(name, step)
                self._done[name] = step.done
        self._update_cpu_s = time.thread_time() - started
        self._last_cpu_s, self._last_update = time.process_time(), time.monotonic()

    def _write(self, name: str, step: StepSnapshot) -> None:
        client = self._client = self._client or get_client(sync_client=True)
        percent, text = 100 * (step.fraction or 0.0), f"`{name}`: {step}"
        if id := self._ids.get(name):
            client.update_artifact(id, ArtifactUpdate(data=percent, description=text))
        else:
            key = artifact_key(*self._names, "progress", name)
            artifact = ProgressArtifact(progress=percent, key=key, description=text)
            self._ids[name] = _create(client, self._run, artifact)


def publish(run: FlowRun, folder: Path, is_permanent: bool, redact: Callable[[str], str], *names: str) -> None:
    """Publish a summary, some rows, some failures, and the place of the files.

    Args:
        run: The flow run.
        folder: Folder of the dataset, or of the partial one.
        is_permanent: Whether the folder outlives the run.
        redact: Redacts secrets in a text: some providers repeat them.
        names: Prefix of the artifacts' keys.
    """
    client, facts = get_client(sync_client=True), json.loads((folder / "run.json").read_text())
    failures = list(_failures(folder / "errors.parquet"))
    samples = list(_samples(Distiset(folder)))
    summary = _summary(facts, folder if is_permanent else None)
    shown: list[Artifact] = [MarkdownArtifact(markdown=summary, key=artifact_key(*names, "summary"))]
    if samples:
        shown.append(TableArtifact(table=samples, key=artifact_key(*names, "samples"), description="The first rows."))
    if failures:
        about = f"The first {MAX_FAILURES_PER_CLASS} of each class of error in a step."
        shown.append(TableArtifact(table=failures, key=artifact_key(*names, "failures"), description=about))
    for file, name in ((folder, "files"), (folder / "errors.parquet", "failed-rows")):
        if is_permanent and file.exists():
            shown.append(MarkdownArtifact(markdown=_file_link(file.absolute()), key=artifact_key(*names, name)))
    for artifact in shown:
        _create(client, run, artifact, redact)


def _create(client: SyncPrefectClient, run: FlowRun, artifact: Artifact, redact: Callable[[str], str] = str) -> UUID:
    render: Any = artifact.format
    data = render(_sync=True)  # inside an event loop, too
    data = redact(data) if isinstance(data, str) else data
    request = ArtifactCreate(
        type=artifact.type, key=artifact.key, description=artifact.description, data=data, flow_run_id=run.id
    )
    return client.create_artifact(request).id


def _file_link(path: Path) -> str:
    """Return a path to copy, and a link: browsers follow no `file:` link from a page served over HTTP."""
    return f"```\n{path}\n```\n\n[{path.name}]({path.as_uri()}), for a browser that opens files."


def _summary(facts: dict[str, Any], folder: Path | None) -> str:
    summary = facts["summary"]
    lines = [f"# {facts['pipeline']}: {_final_state(facts)}", ""]
    lines += [f"**Why:** {_markdown_cell(facts['error'])}", ""] if "error" in facts else []
    lines += [f"{summary['rows']:,} rows and {summary['failures']:,} failures in {duration(summary['seconds'])}.", ""]
    steps = [
        [f"`{name}`", step["rows_in"] or "", step["rows"], step["failures"]] for name, step in summary["steps"].items()
    ]
    lines += _markdown_table("Steps", ["step", "rows in", "rows out", "failed"], steps)
    classes = [
        [f"`{name}`", error, count]
        for name, step in summary["steps"].items()
        for error, count in step["errors"].items()
    ]
    lines += _markdown_table("Failures", ["step", "class", "rows"], classes)
    models = [
        [f"`{name}`", model, used["requests"], used["cached"], used["input_tokens"], used["output_tokens"]]
        + ["not known" if used["cost"] is None else money(used["cost"]) if used["cost"] else "none"]
        for name, step in summary["steps"].items()
        for model, used in step["models"].items()
    ]
    heads = ["step", "model", "requests", "from the store", "tokens in", "tokens out", "cost"]
    lines += _markdown_table("Models", heads, models)
    limits = [
        [f"`{name}`", limit["admitted"], limit["throttled"], limit["peak_in_flight"], _limit_history(limit["history"])]
        for name, limit in facts.get("limits", {}).items()
    ]
    lines += _markdown_table("Limits", ["step", "sent", "refused", "most in flight", "how the limit moved"], limits)
    lines += ["## Next steps", "", _next_steps(facts, folder), ""]
    lines += ["## Files", "", f"`{folder.absolute()}`", ""] if folder else []
    return "\n".join(lines)


def _final_state(facts: dict[str, Any]) -> str:
    if "estimate" in facts:
        return "the first rows"
    states = {"completed": "completed", "drained": "its budget is spent", "failed": "failed"}
    with_failures = " with failures" if facts["state"] == "completed" and facts["summary"]["failures"] else ""
    return states.get(facts["state"], facts["state"]) + with_failures


def _next_steps(facts: dict[str, Any], folder: Path | None) -> str:
    left = f"What was made until then is in `{folder.absolute()}`. " if folder and facts["state"] != "completed" else ""
    again = "every answer that came is in the store, and is not paid for again."
    if "estimate" in facts:
        return f"They were made to see, and to estimate from. Approve the run, or run it without `dry_run`: {again}"
    if facts["state"] == "completed":
        redo = f"Run it again, the same way, to try the rows that failed once more: {again}"
        return redo if facts["summary"]["failures"] else f"Run it again with more rows, or other steps: {again}"
    if facts["state"] == "drained":
        limits = " or ".join(f"`{name}`" for name in facts["budget"])
        return f"{left}Run it again, the same way, with more {limits}: it resumes from here, as {again}"
    return f"{left}Fix what is said above and run it again, the same way, or *Retry* it: {again}"


def _limit_history(history: list[dict[str, Any]], max_changes: int = 8) -> str:
    changes = [f"{change['limit']} at {change['seconds']:.1f} s ({change['reason']})" for change in history]
    if len(changes) > max_changes:
        half, left_out = max_changes // 2, len(changes) - max_changes
        changes = [*changes[:half], f"… {left_out:,} more …", *changes[-half:]]
    return "; ".join(changes)


def _markdown_table(title: str, heads: list[str], rows: list[list[Any]]) -> list[str]:
    if not rows:
        return []
    cells = [[f"{cell:,}" if isinstance(cell, int) else _markdown_cell(cell) for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *cells]]
    return [f"## {title}", "", *lines, ""]


def _markdown_cell(text: Any) -> str:
    """Escape a text for a cell of a Markdown table."""
    return re.sub(r"([|<>\\*\[\]])", r"\\\1", truncate(" ".join(str(text).split()), MAX_TEXT_CHARS))


def _samples(dataset: Distiset) -> Iterator[dict[str, Any]]:
    """Yield rows for people: prompt and answer of every step that asked a model, then the columns."""
    for leaf in dataset:
        for row in dataset.head(leaf, MAX_SAMPLE_ROWS)[:MAX_SAMPLE_ROWS]:
            cells = {"dataset": leaf} if len(dataset) > 1 else {}
            for name, value in row.items():
                if name.endswith("_metadata"):
                    first = value[0] if isinstance(value, list) and value else value
                    if isinstance(first, Mapping):
                        step = name.removesuffix("_metadata")
                        cells[f"{step}: prompt"] = _chat_text(first.get("raw_input"))
                        cells[f"{step}: answer"] = _to_text(first.get("raw_output"))
            yield cells | {name: _to_text(value) for name, value in row.items() if not name.endswith("_metadata")}


def _chat_text(messages: Iterable[Mapping[str, Any]] | None) -> str:
    return _to_text("\n".join(f"{each['role']}: {each['content']}" for each in messages or []))


def _failures(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the first failures of every class of error in a step."""
    seen = Counter[tuple[str, str]]()
    if not file.exists():
        return
    with pq.ParquetFile(file) as parquet:
        for batch in islice(parquet.iter_batches(batch_size=1_000), 20):
            for row in batch.to_pylist():
                kind = (row["step"], row["error"])
                seen[kind] += 1
                if seen[kind] <= MAX_FAILURES_PER_CLASS:
                    yield {name: value if isinstance(value, int) else _to_text(value) for name, value in row.items()}
                    if sum(min(count, MAX_FAILURES_PER_CLASS) for count in seen.values()) >= MAX_FAILURES:
                        return


def _to_text(value: Any) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return truncate(text, MAX_TEXT_CHARS)
