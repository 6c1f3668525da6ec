"""Reports of a run to Prefect, and to the program that started it."""

import json
from pathlib import Path

from prefect import get_run_logger
from prefect.context import FlowRunContext

from flows.dag.graph import Graph
from flows.dataset.summary import Summary
from flows.reporting import artifacts, assets, states, terminal
from flows.reporting.events import RunEvents, event_payload
from flows.reporting.progress import ProgressListener
from flows.settings.step_parameters import get_llm
from llms import BudgetExceeded
from llms.config import redaction


class PrefectReporter:
    """Publishes artifacts, events, an asset and a state for one run of a pipeline, inside a flow run.

    Args:
        pipeline: Name of the pipeline.
        graph: Its steps.
        output: Folder for the dataset; `None` if its files are deleted with the run.
        spent: Dollars that earlier attempts of the flow run have spent.
    """

    def __init__(self, pipeline: str, graph: Graph, output: Path | None, spent: float = 0.0) -> None:
        self._graph = graph
        self._output = output
        self._secrets = set[str]().union(*map(redaction.secrets_of, filter(None, map(get_llm, graph.steps))))
        self.listeners: list[ProgressListener] = []
        self._context = FlowRunContext.get()
        if self._context and (run := self._context.flow_run):
            flow = self._context.flow.name if self._context.flow else pipeline
            self._names = (artifacts.artifact_key(flow), artifacts.artifact_key(pipeline))
            self._events = RunEvents(run, pipeline, spent)
            self.listeners = [artifacts.StepProgressArtifacts(run, *self._names), self._events]
            self._events.emit("started", {})
            states.add_state_hooks(self._context)

    def on_end(self, summary: Summary, folder: Path, error: BaseException | None = None) -> None:
        """Report the end of the run; an error in the report is logged, and does not change it."""
        state = _final_state(error)
        if mode := terminal.output_mode.get():
            mode.result = {"state": state, "folder": str(folder) if self._output else None} | summary.model_dump()
        if not self._context or not (run := self._context.flow_run):
            return
        if error is None and "estimate" in json.loads((folder / "run.json").read_text()):
            state = "previewed"  # automations that wait for the dataset must not start
        elif error is None:
            states.record_failures(self._context, summary)
        try:
            if state == "drained":  # another attempt could spend nothing either
                states.prevent_retries(run)
            self._events.emit(state, event_payload(summary) | ({"error": self._redact(f"{error}")} if error else {}))
            if self._output and state != "interrupted":  # Prefect emits nothing for an asset that was cancelled
                assets.emit_materialization(self._output, folder, self._graph.sources, self._redact)
            artifacts.publish(run, folder, self._output is not None, self._redact, *self._names)
        except Exception as report_error:
            get_run_logger().warning("Prefect's UI does not show what came of the run: %s", report_error)

    def _redact(self, text: str) -> str:
        return redaction.redact(text, self._secrets)


def _final_state(error: BaseException | None) -> str:
    """Return how a run ended; cancelled or terminated, it was interrupted."""
    if error is None:
        return "completed"
    return (
        "drained" if isinstance(error, BudgetExceeded) else "failed" if isinstance(error, Exception) else "interrupted"
    )
