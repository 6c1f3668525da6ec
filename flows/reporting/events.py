"""Events of Prefect's that say how a run is doing, for automations to act on."""

from collections.abc import Iterator
from itertools import count
from typing import Any

from prefect.client.schemas.objects import FlowRun
from prefect.events import emit_event

from flows.dataset.summary import Summary
from flows.reporting.progress import RunSnapshot

PROGRESS_INTERVAL_S = 15.0
"""Seconds between two events that say how far a run is, while it moves."""


class RunEvents:
    """Says with events of Prefect's how a run is doing; their resource is the flow run, their payload what is known.

    - `distilflow.run.started`
    - `distilflow.run.progress`, at most every 15 seconds, and only when rows were made since
    - `distilflow.run.spent`, once for each of $0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10 … that the run has spent
      altogether, with the amount as the resource's `distilflow.dollars`: automations compare labels, not numbers
    - at the end `distilflow.run.completed`, `distilflow.run.failed`, `distilflow.run.drained` (its budget is spent) or
      `distilflow.run.interrupted` (it was cancelled, or its process was told to end); `distilflow.run.previewed`
      instead of `completed` when the first rows are all there is: of a dry run, or of a run that then asks for its
      approval
    """

    def __init__(self, run: FlowRun, pipeline: str) -> None:
        self._resource = {
            "prefect.resource.id": f"prefect.flow-run.{run.id}",
            "prefect.resource.name": run.name,
            "distilflow.pipeline": pipeline,
        }
        # Prefect relates an event to the flow, the deployment and the pool by itself, not to the tags of its resource
        self._tags = [{"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"} for tag in run.tags]
        self._amounts = spend_thresholds()
        self._next = next(self._amounts)
        self._done = -1

    def emit(self, what: str, payload: dict[str, Any], **labels: str) -> None:
        """Emit `distilflow.run.<what>`."""
        more = {f"distilflow.{name}": value for name, value in labels.items()}
        emit_event(f"distilflow.run.{what}", self._resource | more, related=self._tags, payload=payload)

    def on_update(self, now: RunSnapshot) -> float:
        """Say how far it is, if it moved."""
        if (done := sum(step.done for step in now.steps.values())) != self._done:
            self._done = done
            self.emit("progress", event_payload(now))
        self._spent(now)
        return PROGRESS_INTERVAL_S

    def on_end(self, now: RunSnapshot) -> None:
        """Say what was spent since."""
        self._spent(now)

    def _spent(self, now: RunSnapshot) -> None:
        while now.cost and now.cost >= self._next:
            self.emit("spent", event_payload(now), dollars=f"{self._next:.2f}".rstrip("0").rstrip("."))
            self._next = next(self._amounts)


def spend_thresholds() -> Iterator[float]:
    """0.01, 0.02, 0.05, 0.1 … dollars."""
    return (step * 10**power for power in count(-2) for step in (1, 2, 5))


def event_payload(now: RunSnapshot | Summary) -> dict[str, Any]:
    """Rows, failures, tokens, dollars and seconds, as the payload of an event."""
    names = ("rows", "failures", "input_tokens", "output_tokens", "cost", "seconds")
    return {name: getattr(now, name) for name in names}
