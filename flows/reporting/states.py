"""Final state of a flow run: name and message tell how many rows it made, and how many failed."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, cast
from uuid import UUID

from prefect import Flow, State
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.states import Completed

from flows.dataset.distiset import Distiset
from flows.dataset.summary import Summary
from flows.errors import RunFailed
from llms import BudgetExceeded

P = ParamSpec("P")

COMPLETED_WITH_FAILURES = "Completed with failures"
"""Name of a state of type `COMPLETED`."""

BUDGET_SPENT = "Budget spent"
"""Name of a state of type `FAILED`: the dataset is incomplete, and automations that wait for it must not start."""

TOO_MANY_FAILURES = "Too many failures"
"""Name of a state of type `FAILED`."""


def with_row_state(function: Callable[P, Distiset]) -> Callable[P, Distiset]:
    """Decorate the function under a `@flow` so that the run's final state tells how many rows it made and failed.

    Callers of the flow still get the dataset, which Prefect takes out of the state.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> Distiset:
        dataset = function(*args, **kwargs)
        context = FlowRunContext.get()
        if not context or not context.flow or context.flow.fn is not run:
            return dataset  # called as a function
        _failures.pop(_flow_run_id(context), None)
        return cast(Distiset, Completed(data=dataset, name=_state_name(dataset.summary), message=f"{dataset.summary}"))

    return run


def record_failures(context: FlowRunContext, summary: Summary) -> None:
    """Record the failures of a pipeline that completed inside the flow run."""
    if summary.failures:
        _failures.setdefault(_flow_run_id(context), []).append(summary)


def add_state_hooks(context: FlowRunContext) -> None:
    """Add hooks that give the flow run, whoever wrote the flow, a final state that tells what failed.

    Prefect sets `Completed` or `Failed`; the hooks set a second state of that type under another name. So whatever
    waits for the first sees it, and no event comes twice.
    """
    if flow := context.flow:
        for hooks, hook in ((flow.on_completion_hooks, _on_completion), (flow.on_failure_hooks, _on_failure)):
            if hook not in hooks:
                hooks.append(hook)


_failures: dict[UUID | None, list[Summary]] = {}
"""Summaries of pipelines with failures, by flow run."""


def _flow_run_id(context: FlowRunContext) -> UUID | None:
    return context.flow_run.id if context.flow_run else None


def _state_name(summary: Summary) -> str:
    return COMPLETED_WITH_FAILURES if summary.failures else "Completed"


def _on_completion(flow: "Flow[..., Any]", flow_run: FlowRun, state: "State[Any]") -> None:
    summaries = _failures.pop(flow_run.id, [])
    if summaries and state.name == "Completed" and not state.message:  # else the flow has set a message itself
        _rename_state(flow_run, state, COMPLETED_WITH_FAILURES, "; ".join(map(str, summaries)))


def _on_failure(flow: "Flow[..., Any]", flow_run: FlowRun, state: "State[Any]") -> None:
    _failures.pop(flow_run.id, None)
    error = getattr(state.data, "result", None)
    if isinstance(error, BudgetExceeded | RunFailed) and state.name == "Failed":
        sentences = [f"{error}", *getattr(error, "__notes__", [])]
        _rename_state(
            flow_run,
            state,
            BUDGET_SPENT if isinstance(error, BudgetExceeded) else TOO_MANY_FAILURES,
            " ".join(sentences),
        )


def prevent_retries(run: FlowRun) -> None:
    """Keep Prefect from trying the flow run again by itself; *Retry* still does."""
    with get_client(sync_client=True) as client:
        policy = client.read_flow_run(run.id).empirical_policy
        client.update_flow_run(run.id, empirical_policy=policy.model_copy(update={"retries": 0}))


def _rename_state(run: FlowRun, state: "State[Any]", name: str, message: str) -> None:
    state.name, state.message = name, message
    get_client(sync_client=True).set_flow_run_state(run.id, state, force=True)
