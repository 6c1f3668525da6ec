"""One run of a pipeline, inside a flow run: checks, execution, output folder, reports."""

import tempfile
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from shutil import rmtree
from typing import Any

from prefect import get_run_logger
from prefect.context import FlowRunContext
from prefect.exceptions import ExternalSignal

from flows.dag.graph import Graph
from flows.dataset import provenance
from flows.dataset.distiset import Distiset
from flows.dataset.output_folder import OutputFolder
from flows.dataset.summary import StepSummary, Summary
from flows.errors import ConfigurationError, RunFailed
from flows.execution.executor import Executor
from flows.execution.run_usage import RunUsage
from flows.preview import estimate
from flows.preview.trace import TraceRecorder, sent_prompt
from flows.reporting import terminal
from flows.reporting.report import PrefectReporter
from flows.runtime import memory
from flows.runtime.task_runners import distributed_runner, without_flow_payload
from flows.settings.run_settings import RunSettings
from llms import AsyncLLM, BudgetExceeded, Fatal
from llms.clients import event_loop
from llms.limits.budget import Budget
from llms.typing import Usage
from tasks import Step, Task
from tasks.typing import BatchResult, Failure

MIN_FAILURES_TO_ABORT = 10
"""Failures in a step before their share may fail the run."""


class Run:
    """One run of a graph, from its checks to the dataset.

    Args:
        name: Name of the pipeline.
        graph: Its steps with these parameters.
        parameters: Runtime parameters as JSON, for `run.json`.
        settings: Settings of the run.
    """

    def __init__(self, name: str, graph: Graph, parameters: Mapping[str, Any], settings: RunSettings) -> None:
        self.name = name
        self.graph = graph
        self.parameters = parameters
        dry_run, limit = settings.dry_run, settings.limit
        if dry_run is not None and dry_run < 1:
            raise ConfigurationError(f"`dry_run` is {dry_run}: it takes one row at least.")
        if dry_run:  # it replaces no dataset, and shows what fails
            settings = settings.model_copy(update={"output": None, "max_error_rate": 1.0})
        self.settings = settings
        self._row_limit = min(dry_run, limit or dry_run) if dry_run else limit
        self._recorder = TraceRecorder(graph) if dry_run else None
        self._usage = RunUsage.of_flow_run(name, is_preview=bool(dry_run))
        attempts = self._usage.attempts
        self.budget = Budget(settings.max_cost, settings.max_tokens_total, self._usage.earlier, attempts)
        for step in graph.steps:
            step.use_cache = step.use_cache and settings.use_cache
        self.summary = Summary(attempts=attempts, steps={step.name: StepSummary() for step in graph.steps})
        self._leaves = graph.leaves
        self._first_failures: dict[str, Failure] = {}
        self._prompts: dict[str, Any] = {}  # first prompt each step has sent

    def execute(self) -> Distiset:
        """Run the steps and write the dataset; a run that fails leaves its rows in `<output>.partial`."""
        self.graph.check()
        self._load()
        started = time.perf_counter()
        temporary = None
        if (output := self.settings.output) is None:
            temporary = Path(tempfile.mkdtemp(prefix="distilflow-"))
            output = temporary / "dataset"
        self._folder = folder = OutputFolder(output, self._leaves.values(), self.settings.output_format)
        reporter = PrefectReporter(self.name, self.graph, self.settings.output, self._usage.cost)
        live = terminal.live_progress(self.graph, self._row_limit, self.summary, self._usage, *reporter.listeners)
        try:
            with live as progress, memory.reduced_gc():
                self._stream(Executor(self.graph, progress.on_done, self._on_commit, self._usage))
            self._check_error_rate(final=True)
        except BaseException as error:
            self._write_summary("drained" if isinstance(error, BudgetExceeded) else "failed", started, error)
            if not temporary and self.summary.rows:
                error.add_note(f"{self.summary.rows:,} rows made before that are in `{folder.partial}`.")
            if self.summary.attempts > 1 and self.summary.cost:
                error.add_note(f"{self.summary}.")
            reporter.on_end(self.summary, folder.partial, error)
            if temporary:
                rmtree(temporary, ignore_errors=True)
            raise
        self._write_summary("completed", started)
        dataset = Distiset(folder.promote())
        reporter.on_end(self.summary, dataset.folder)
        if temporary:
            weakref.finalize(dataset, rmtree, temporary, ignore_errors=True)
        get_run_logger().info("%r", dataset)
        return dataset

    def _load(self) -> None:
        limits = [name for name, limit in self.budget.limits.items() if limit is not None]
        if limits and (runner := distributed_runner()):
            raise ConfigurationError(
                f"`{limits[0]}` is counted in one process, and `{runner}` sends batches to others: leave one out."
            )
        for step in self.graph.steps:
            try:
                step.load()
            except Fatal as error:
                raise ConfigurationError(f"{error}") from None
            if self.settings.max_cost is not None and isinstance(step, Task) and step.llm.cost(Usage(1, 1)) is None:
                raise ConfigurationError(
                    f"`max_cost` needs to know what `{step.llm.model_name}` costs (`{step.name}`): give the model a "
                    "`price`, or limit `max_tokens_total` instead."
                )

    def _stream(self, executor: Executor) -> None:
        with (
            event_loop.cancel_scope() as cancel,
            self._usage.activate(),
            self.budget.activate(),
            without_flow_payload(),
        ):
            try:
                executor.run(self._row_limit)
            except BudgetExceeded:
                raise
            except BaseException as error:
                cancel()  # or requests in flight would be awaited, and their answers dropped
                if interrupt := _find_interrupt(error):
                    raise interrupt from None
                raise

    def _on_commit(self, step: Step, result: BatchResult) -> None:
        """Write a leaf's rows and every step's failures, and update the summary."""
        if self._recorder:
            self._recorder.record(step, result)
        summary = self.summary.steps[step.name]
        summary.rows_in += result.rows_in
        summary.rows += len(result.rows)
        summary.failures += len(result.failures)
        summary.seconds += result.seconds
        self.summary.failures += len(result.failures)
        self._folder.write_failures(result.failures)
        if leaf := self._leaves.get(step.name):
            self._folder.write_rows(leaf, result.rows)
            self.summary.rows += len(result.rows)
        if step.name not in self._prompts and isinstance(step, Task) and result.rows:
            self._prompts[step.name] = sent_prompt(step, result.rows[0])
        for failure in result.failures:
            summary.errors[failure.error] = summary.errors.get(failure.error, 0) + 1
        if result.failures:
            self._first_failures.setdefault(step.name, result.failures[0])
            self._check_error_rate(final=False)

    def _check_error_rate(self, final: bool) -> None:
        """Fail the run when too many rows have failed in a step, or, at the end, all of them."""
        for name, step in self.summary.steps.items():
            total = step.rows_in or step.rows + step.failures
            too_many = step.failures >= MIN_FAILURES_TO_ABORT and step.failures > self.settings.max_error_rate * total
            all_failed = final and step.failures >= total > 0 and not step.rows and self.settings.max_error_rate < 1
            if too_many or all_failed:
                first = self._first_failures[name]
                where = f" ({first.origin})" if first.origin else ""
                limit = f", more than `max_error_rate={self.settings.max_error_rate:g}`" if too_many else ""
                raise RunFailed(
                    f"{step.failures:,} of {total:,} rows failed in `{name}`{limit}. The first{where}: {first.message}"
                )

    def _write_summary(self, state: str, started: float, error: BaseException | None = None) -> None:
        self.summary.seconds = round(time.perf_counter() - started, 3)
        self.summary.set_usage(self._usage.totals)
        context = FlowRunContext.get()
        run = context.flow_run if context else None
        facts = {
            "pipeline": self.name,
            "state": state,
            **({"error": f"{type(error).__name__}: {error}"} if error else {}),
            "flow_run": {"id": str(run.id), "name": run.name} if run else None,
            "parameters": self.parameters,
            "budget": {name: limit for name, limit in self.budget.limits.items() if limit is not None},
            "steps": {step.name: provenance.describe_step(step) for step in self.graph.steps},
            "prompts": self._prompts,
            "edges": self.graph.edges,
            "versions": provenance.package_versions(self.graph.steps),
            "limits": {
                step.name: step.llm.limiter_stats()
                for step in self.graph.steps
                if isinstance(step, Task) and isinstance(step.llm, AsyncLLM)
            },
        }
        if self._recorder and state == "completed":
            facts["estimate"] = estimate.estimate(self.graph, self._recorder.rows, self.settings.limit).model_dump()
            facts["preview"] = [row.model_dump() for row in self._recorder.rows.values()]
        if state == "completed" and not self._recorder:
            facts["licences"] = provenance.find_licences(self.graph.steps)
        self._folder.close(facts, self.summary)


def _find_interrupt(error: BaseException | None) -> BaseException | None:
    """Return the Ctrl-C or SIGTERM behind an error: Prefect's handling of one can fail."""
    while error and not isinstance(error, KeyboardInterrupt | ExternalSignal):
        error = error.__cause__ or error.__context__
    return error
