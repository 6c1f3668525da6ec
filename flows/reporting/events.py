"""Prefect events of a run, for automations to act on."""

from collections.abc import Iterator
from itertools import count, dropwhile
from typing import Any

from prefect.client.schemas.objects import FlowRun
from prefect.events import emit_event

from flows.dataset.summary import Summary
from flows.reporting.progress import RunSnapshot

PROGRESS_INTERVAL_S = 15.0

SPENT_INTERVAL_S = 1.0
"""Automations that end a dear run wait for what it has spent."""


class RunEvents:
    """Emits Prefect events; their resource is the flow run, their payload that of `event_payload`.

    - `distilflow.run.started`
    - `distilflow.run.progress`, at most every 15 seconds, and only when rows were made since
    - `distilflow.run.spent`, once for each of $0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10 … that the run's cost has
      reached, with the amount as the resource's `distilflow.dollars`: automations compare labels, not numbers. What an
      earlier attempt of the flow run has reached is not told again
    - at the end `distilflow.run.completed`, `distilflow.run.failed`, `distilflow.run.drained` (its budget is spent) or
      `distilflow.run.interrupted` (cancelled, or its process was terminated); `distilflow.run.previewed` instead of
      `completed` for a dry run, such as the one before an approval
    """

    def __init__(self, run: FlowRun, pipeline: str, spent: float = 0.0) -> None:
        self._resource = {
            "prefect.resource.id": f"prefect.flow-run.{run.id}",
            "prefect.resource.name": run.name,
            "distilflow.pipeline": pipeline,
        }
        # Prefect adds the flow, the deployment and the pool by itself, but not the tags
        self._tags = [{"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"} for tag in run.tags]
        self._thresholds = dropwhile(lambda dollars: dollars <= spent, spend_thresholds())
        self._next_threshold = next(self._thresholds)
        self._done, self._next_progress = -1, 0.0

    def emit(self, name: str, payload: dict[str, Any], **labels: str) -> None:
        """Emit `distilflow.run.<name>`."""
        resource = self._resource | {f"distilflow.{label}": value for label, value in labels.items()}
        emit_event(f"distilflow.run.{name}", resource, related=self._tags, payload=payload)

    def on_update(self, now: RunSnapshot) -> float:
        """Emit the progress if it moved, and the thresholds of cost it has reached."""
        done = sum(step.done for step in now.steps.values())
        if done != self._done and now.seconds >= self._next_progress:
            self._done, self._next_progress = done, now.seconds + PROGRESS_INTERVAL_S
            self.emit("progress", event_payload(now))
        self._emit_spent(now)
        return SPENT_INTERVAL_S

    def on_end(self, now: RunSnapshot) -> None:
        """Emit the last thresholds."""
        self._emit_spent(now)

    def _emit_spent(self, now: RunSnapshot) -> None:
        while now.cost and now.cost >= self._next_threshold:
            self.emit("spent", event_payload(now), dollars=f"{self._next_threshold:.2f}".rstrip("0").rstrip("."))
            self._next_threshold = next(self._thresholds)


def spend_thresholds() -> Iterator[float]:
    """Yield 0.01, 0.02, 0.05, 0.1 … dollars."""
    return (step * 10**power for power in count(-2) for step in (1, 2, 5))


def event_payload(now: RunSnapshot | Summary) -> dict[str, Any]:
    """Return rows, failures, tokens, dollars and seconds."""
    names = ("rows", "failures", "input_tokens", "output_tokens", "cost", "seconds")
    return {name: getattr(now, name) for name in names}
