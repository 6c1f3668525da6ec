"""One run of a pipeline, inside a flow run: from the checks to the finished folder."""

import tempfile
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from shutil import rmtree
from typing import Any

from prefect import get_run_logger
from prefect.context import FlowRunContext

from flows import progress
from flows.distiset import Distiset, ModelSummary, StepSummary, Summary
from flows.errors import Refused, RunFailed
from flows.executor import Executor
from flows.graph import Graph
from flows.run_folder import RunFolder
from llms import AsyncLLM, Fatal, loop
from llms.models import secrets
from tasks import Step, Task
from tasks.typing import Failure, Outcome, dollars

ENOUGH_FAILURES = 10
"""Failures in a step before their share may end the run."""


class Run:
    """A checked graph on its way to a dataset; the arguments are those of `Pipeline.run`."""

    def __init__(
        self,
        name: str,
        graph: Graph,
        parameters: Mapping[str, Any],
        output: Path | None,
        max_error_rate: float,
        limit: int | None,
        use_cache: bool,
    ) -> None:
        self.name = name
        self.graph = graph
        self.parameters = parameters
        self.output = output
        self.max_error_rate = max_error_rate
        self.limit = limit
        for step in graph.steps:
            if isinstance(step, Task) and not use_cache:
                step.use_cache = False
        self.summary = Summary(steps={step.name: StepSummary() for step in graph.steps})
        self._leaves = graph.leaves
        self._first_failures: dict[str, Failure] = {}

    def execute(self) -> Distiset:
        """Check, load, stream, write; a run that does not end well leaves what it made in `<output>.partial`."""
        self.graph.check()
        self._load()
        started = time.perf_counter()
        temporary = None if self.output else Path(tempfile.mkdtemp(prefix="distilflow-"))
        folder = RunFolder(self.output or temporary / "dataset", self._leaves.values())  # type: ignore[operator]
        self._folder = folder
        try:
            with progress.shown(self.graph, self.limit) as shown:
                self._stream(Executor(self.graph.after, shown.finished, self._settled))
            self._judge(final=True)
        except BaseException as error:
            self._close("failed", started, error)
            if not temporary and self.summary.rows:
                error.add_note(f"{self.summary.rows:,} rows made before that are in `{folder.partial}`.")
            if temporary:
                rmtree(temporary, ignore_errors=True)
            raise
        self._close("completed", started)
        dataset = folder.promote()
        if temporary:
            weakref.finalize(dataset, rmtree, temporary, ignore_errors=True)
        get_run_logger().info("%r", dataset)
        return dataset

    def _load(self) -> None:
        for step in self.graph.steps:
            try:
                step.load()
            except Fatal as error:
                raise Refused(f"{error}") from None

    def _stream(self, executor: Executor) -> None:
        with loop.cancellable() as cancel:
            try:
                for source in self.graph.sources:
                    executor.run(source, self.limit)
            except BaseException:
                cancel()  # what is in flight would be waited for, and thrown away
                raise

    def _settled(self, step: Step, outcome: Outcome) -> None:
        """Write a leaf's rows and every step's failures, and add up."""
        summary = self.summary.steps[step.name]
        summary.rows += len(outcome.rows)
        summary.failures += len(outcome.failures)
        summary.seconds += outcome.seconds
        for model, spending in outcome.spending.items():
            summary.models.setdefault(model, ModelSummary()).add(spending)
            whole = self.summary
            whole.input_tokens += spending.usage.input_tokens
            whole.output_tokens += spending.usage.output_tokens
            whole.cost = dollars(whole.cost, spending.cost)
        self.summary.failures += len(outcome.failures)
        self._folder.fail(outcome.failures)
        if leaf := self._leaves.get(step.name):
            self._folder.write(leaf, outcome.rows)
            self.summary.rows += len(outcome.rows)
        if outcome.failures:
            self._first_failures.setdefault(step.name, outcome.failures[0])
            self._judge(final=False)

    def _judge(self, final: bool) -> None:
        """End the run when a step loses too many rows, or, at its end, has lost all."""
        for name, step in self.summary.steps.items():
            total = step.rows + step.failures
            too_many = step.failures >= ENOUGH_FAILURES and step.failures > self.max_error_rate * total
            if too_many or (final and step.failures and not step.rows):
                first = self._first_failures[name]
                where = f" ({first.origin})" if first.origin else ""
                raise RunFailed(
                    f"{step.failures:,} of {total:,} rows failed in `{name}`. The first{where}: {first.message}"
                )

    def _close(self, state: str, started: float, error: BaseException | None = None) -> None:
        self.summary.seconds = round(time.perf_counter() - started, 3)
        context = FlowRunContext.get()
        run = context.flow_run if context else None
        facts = {
            "pipeline": self.name,
            "state": state,
            **({"error": f"{type(error).__name__}: {error}"} if error else {}),
            "flow_run": {"id": str(run.id), "name": run.name} if run else None,
            "parameters": self.parameters,
            "steps": {step.name: _described(step) for step in self.graph.steps},
            "edges": self.graph.edges,
            "limits": {
                step.name: step.llm.limits()
                for step in self.graph.steps
                if isinstance(step, Task) and isinstance(step.llm, AsyncLLM)
            },
        }
        self._folder.close(facts, self.summary)


def _described(step: Step) -> dict[str, Any]:
    """A step as plain data: its class and fields, and its model's, without secrets."""
    fields = step.model_dump(mode="json", exclude={"llm"}, exclude_defaults=True)
    if isinstance(step, Task):
        fields["llm"] = {"class": type(step.llm).__name__, "model_name": step.llm.model_name}
        fields["llm"] |= step.llm.model_dump(mode="json", exclude_defaults=True, exclude=secrets(type(step.llm)))
    return {"class": type(step).__name__, **fields}
