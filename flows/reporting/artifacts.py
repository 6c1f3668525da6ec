"""What the page of a flow run in Prefect's UI shows: how far each step is, and at the end what came of it."""

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

MIN_INTERVAL_S, MAX_INTERVAL_S = 2.0, 20.0
"""Seconds between two looks at the steps, at least; and at most, if the run takes hardly any CPU itself."""

MAX_CPU_FRACTION = 0.005
"""What of the run's CPU its progress may take."""

MAX_SAMPLE_ROWS, MAX_FAILURES, MAX_FAILURES_PER_CLASS = 5, 30, 3
"""Rows that are shown: of each dataset; that failed, in all, and of each class of error in a step."""

MAX_TEXT_CHARS = 400
"""Characters of a text that are shown."""


def artifact_key(*names: str) -> str:
    """What an artifact is called: the same in every run of a flow, so that the UI shows one as versions of another."""
    words = re.sub(r"[^a-z0-9]+", "-", "-".join(dict.fromkeys(names)).lower())
    return words.strip("-") or "pipeline"


class StepProgressArtifacts:
    """A progress artifact per step, kept up to date at no more than a two-hundredth of the run's CPU."""

    def __init__(self, run: FlowRun, *names: str) -> None:
        self._run = run
        self._names = names
        self._ids: dict[str, UUID] = {}
        self._done: dict[str, int] = {}
        self._client: SyncPrefectClient | None = None
        self._cost = 0.0
        self._spent = self._at = 0.0

    def on_update(self, now: RunSnapshot) -> float:
        """Update the steps that have moved, if enough has happened since to pay for it."""
        earned = (time.process_time() - self._spent) * MAX_CPU_FRACTION >= self._cost
        if earned or time.monotonic() - self._at >= MAX_INTERVAL_S:
            self._update(now)
        return MIN_INTERVAL_S

    def on_end(self, now: RunSnapshot) -> None:
        """Leave every step where it is."""
        self._update(now)

    def _update(self, now: RunSnapshot) -> None:
        began = time.thread_time()
        for name, step in now.steps.items():
            if self._done.get(name) != step.done:
                self._write(name, step)
                self._done[name] = step.done
        self._cost = time.thread_time() - began
        self._spent, self._at = time.process_time(), time.monotonic()

    def _write(self, name: str, step: StepSnapshot) -> None:
        client = self._client = self._client or get_client(sync_client=True)
        share, said = 100 * (step.fraction or 0.0), f"`{name}`: {step}"
        if id := self._ids.get(name):
            client.update_artifact(id, ArtifactUpdate(data=share, description=said))
        else:
            artifact = ProgressArtifact(
                progress=share, key=artifact_key(*self._names, "progress", name), description=said
            )
            self._ids[name] = _create(client, self._run, artifact)


def publish(run: FlowRun, folder: Path, kept: bool, hide: Callable[[str], str], *names: str) -> None:
    """Show what a run came to: a summary, some rows, some failures, and where the files are.

    Args:
        run: The flow run.
        folder: What the pipeline left, whether it completed or not.
        kept: Whether it is still there when somebody looks.
        hide: Takes secrets out of a text: some providers say them again.
        names: What the artifacts' keys begin with.
    """
    client, facts = get_client(sync_client=True), json.loads((folder / "run.json").read_text())
    failures = list(_failures(folder / "errors.parquet"))
    samples = list(_samples(Distiset(folder)))
    shown: list[Artifact] = [
        MarkdownArtifact(markdown=_summary(facts, folder if kept else None), key=artifact_key(*names, "summary"))
    ]
    if samples:
        shown.append(TableArtifact(table=samples, key=artifact_key(*names, "samples"), description="The first rows."))
    if failures:
        said = f"The first {MAX_FAILURES_PER_CLASS} of each class of error in a step."
        shown.append(TableArtifact(table=failures, key=artifact_key(*names, "failures"), description=said))
    for file, called in ((folder, "files"), (folder / "errors.parquet", "failed-rows")):
        if kept and file.exists():
            shown.append(MarkdownArtifact(markdown=_file_link(file.absolute()), key=artifact_key(*names, called)))
    for artifact in shown:
        _create(client, run, artifact, hide)


def _create(client: SyncPrefectClient, run: FlowRun, artifact: Artifact, hide: Callable[[str], str] = str) -> UUID:
    data: Any = artifact.format(_sync=True)  # type: ignore[call-arg]  # in an event loop too
    data = hide(data) if isinstance(data, str) else data
    made = ArtifactCreate(
        type=artifact.type, key=artifact.key, description=artifact.description, data=data, flow_run_id=run.id
    )
    return client.create_artifact(made).id


def _file_link(path: Path) -> str:
    """Where a file is, to copy: browsers follow no link to a file from a page that came over HTTP."""
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
        [f"`{name}`", model, spent["requests"], spent["cached"], spent["input_tokens"], spent["output_tokens"]]
        + ["not known" if spent["cost"] is None else money(spent["cost"]) if spent["cost"] else "none"]
        for name, step in summary["steps"].items()
        for model, spent in step["models"].items()
    ]
    heads = ["step", "model", "requests", "from the store", "tokens in", "tokens out", "cost"]
    lines += _markdown_table("Models", heads, models)
    limits = [
        [f"`{name}`", limit["admitted"], limit["throttled"], limit["peak_in_flight"], _limit_history(limit["history"])]
        for name, limit in facts.get("limits", {}).items()
    ]
    lines += _markdown_table("Limits", ["step", "sent", "refused", "most in flight", "how the limit moved"], limits)
    lines += ["## How to go on", "", _next_steps(facts, folder), ""]
    lines += ["## Files", "", f"`{folder.absolute()}`", ""] if folder else []
    return "\n".join(lines)


def _final_state(facts: dict[str, Any]) -> str:
    if "estimate" in facts:
        return "the first rows"
    said = {"completed": "completed", "drained": "its budget is spent", "failed": "failed"}
    with_failures = " with failures" if facts["state"] == "completed" and facts["summary"]["failures"] else ""
    return said.get(facts["state"], facts["state"]) + with_failures


def _next_steps(facts: dict[str, Any], folder: Path | None) -> str:
    left = f"What was made until then is in `{folder.absolute()}`. " if folder and facts["state"] != "completed" else ""
    again = "every answer that came is in the store, and is not paid for again."
    if "estimate" in facts:
        return f"They were made to see, and to estimate from. Approve the run, or run it without `dry_run`: {again}"
    if facts["state"] == "completed":
        redo = f"Run it again, the same way, to try the rows that failed once more: {again}"
        return redo if facts["summary"]["failures"] else f"Run it again with more rows, or other steps: {again}"
    if facts["state"] == "drained":
        spent = " or ".join(f"`{name}`" for name in facts["budget"])
        return f"{left}Run it again, the same way, with more {spent}: it goes on from here, as {again}"
    return f"{left}Mend what is said above and run it again, the same way, or *Retry* it: {again}"


def _limit_history(history: list[dict[str, Any]], most: int = 8) -> str:
    said = [f"{move['limit']} at {move['seconds']:.1f} s ({move['reason']})" for move in history]
    if len(said) > most:
        said = [*said[: most // 2], f"… {len(said) - most:,} more …", *said[-(most // 2) :]]
    return "; ".join(said)


def _markdown_table(title: str, heads: list[str], rows: list[list[Any]]) -> list[str]:
    if not rows:
        return []
    cells = [[f"{cell:,}" if isinstance(cell, int) else _markdown_cell(cell) for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *cells]]
    return [f"## {title}", "", *lines, ""]


def _markdown_cell(text: Any) -> str:
    """A text in one line of Markdown that means nothing but itself."""
    return re.sub(r"([|<>\\*\[\]])", r"\\\1", truncate(" ".join(str(text).split()), MAX_TEXT_CHARS))


def _samples(dataset: Distiset) -> Iterator[dict[str, Any]]:
    """Rows as people read them: the prompt and the answer of every step that asked, then the columns."""
    for leaf in dataset:
        for row in dataset.head(leaf, MAX_SAMPLE_ROWS)[:MAX_SAMPLE_ROWS]:
            said = {"dataset": leaf} if len(dataset) > 1 else {}
            for name, value in row.items():
                if name.endswith("_metadata"):
                    first = value[0] if isinstance(value, list) and value else value
                    if isinstance(first, Mapping):
                        step = name.removesuffix("_metadata")
                        said[f"{step}: prompt"] = _chat_text(first.get("raw_input"))
                        said[f"{step}: answer"] = _to_text(first.get("raw_output"))
            yield said | {name: _to_text(value) for name, value in row.items() if not name.endswith("_metadata")}


def _chat_text(messages: Iterable[Mapping[str, Any]] | None) -> str:
    return _to_text("\n".join(f"{each['role']}: {each['content']}" for each in messages or []))


def _failures(file: Path) -> Iterator[dict[str, Any]]:
    """The first rows that failed, of every class of error in a step."""
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
