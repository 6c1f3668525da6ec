"""The state a flow run ends in: its name and message say what came of the rows."""

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

COMPLETED_WITH_FAILURES, BUDGET_SPENT, TOO_MANY_FAILURES = (
    "Completed with failures",
    "Budget spent",
    "Too many failures",
)
"""Names of states, the first of type `COMPLETED`, the others of type `FAILED`. A run whose budget is spent has failed:
it has not made what it was asked for, whoever waits for the dataset must not go on, and *Retry* continues it."""


def with_row_state(function: Callable[P, Distiset]) -> Callable[P, Distiset]:
    """Decorate the function under a `@flow`: the state its run ends in says how many rows came, and what failed.

    Whoever calls the flow gets the dataset all the same: Prefect gives out what a state holds.
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
    """A pipeline has completed inside the flow run."""
    if summary.failures:
        _failures.setdefault(_flow_run_id(context), []).append(summary)


def add_state_hooks(context: FlowRunContext) -> None:
    """See to it that the flow run, whoever wrote the flow, ends in a state that tells what was lost.

    Prefect gives it `Completed` or `Failed`; a second state of the same type, with a name of its own, follows. So
    whatever waits for the first sees it, and no event comes twice.
    """
    if flow := context.flow:
        for hooks, hook in ((flow.on_completion_hooks, _on_completion), (flow.on_failure_hooks, _on_failure)):
            if hook not in hooks:
                hooks.append(hook)


_failures: dict[UUID | None, list[Summary]] = {}
"""By flow run, what pipelines that lost rows came to."""


def _flow_run_id(context: FlowRunContext) -> UUID | None:
    return context.flow_run.id if context.flow_run else None


def _state_name(summary: Summary) -> str:
    return COMPLETED_WITH_FAILURES if summary.failures else "Completed"


def _on_completion(flow: "Flow[..., Any]", flow_run: FlowRun, state: "State[Any]") -> None:
    summaries = _failures.pop(flow_run.id, [])
    if summaries and state.name == "Completed" and not state.message:  # else somebody has said what there is to say
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


def _rename_state(run: FlowRun, state: "State[Any]", name: str, message: str) -> None:
    state.name, state.message = name, message
    get_client(sync_client=True).set_flow_run_state(run.id, state, force=True)
