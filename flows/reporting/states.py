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
from llms import Drained

P = ParamSpec("P")

WITH_FAILURES, DRAINED, TOO_MANY = "Completed with failures", "Budget spent", "Too many failures"
"""Names of states, the first of type `COMPLETED`, the others of type `FAILED`. A run whose budget is spent has failed:
it has not made what it was asked for, whoever waits for the dataset must not go on, and *Retry* continues it."""


def reporting(function: Callable[P, Distiset]) -> Callable[P, Distiset]:
    """Decorate the function under a `@flow`: the state its run ends in says how many rows came, and what failed.

    Whoever calls the flow gets the dataset all the same: Prefect gives out what a state holds.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> Distiset:
        dataset = function(*args, **kwargs)
        context = FlowRunContext.get()
        if not context or not context.flow or context.flow.fn is not run:
            return dataset  # called as a function
        _failures.pop(_id(context), None)
        return cast(Distiset, Completed(data=dataset, name=_name(dataset.summary), message=f"{dataset.summary}"))

    return run


def completed(context: FlowRunContext, summary: Summary) -> None:
    """A pipeline has completed inside the flow run."""
    if summary.failures:
        _failures.setdefault(_id(context), []).append(summary)


def watch(context: FlowRunContext) -> None:
    """See to it that the flow run, whoever wrote the flow, ends in a state that tells what was lost.

    Prefect gives it `Completed` or `Failed`; a second state of the same type, with a name of its own, follows. So
    whatever waits for the first sees it, and no event comes twice.
    """
    if flow := context.flow:
        for hooks, hook in ((flow.on_completion_hooks, _completed), (flow.on_failure_hooks, _failed)):
            if hook not in hooks:
                hooks.append(hook)


_failures: dict[UUID | None, list[Summary]] = {}
"""By flow run, what pipelines that lost rows came to."""


def _id(context: FlowRunContext) -> UUID | None:
    return context.flow_run.id if context.flow_run else None


def _name(summary: Summary) -> str:
    return WITH_FAILURES if summary.failures else "Completed"


def _completed(flow: "Flow[..., Any]", flow_run: FlowRun, state: "State[Any]") -> None:
    summaries = _failures.pop(flow_run.id, [])
    if summaries and state.name == "Completed" and not state.message:  # else somebody has said what there is to say
        _rename(flow_run, state, WITH_FAILURES, "; ".join(map(str, summaries)))


def _failed(flow: "Flow[..., Any]", flow_run: FlowRun, state: "State[Any]") -> None:
    _failures.pop(flow_run.id, None)
    error = getattr(state.data, "result", None)
    if isinstance(error, Drained | RunFailed) and state.name == "Failed":
        sentences = [f"{error}", *getattr(error, "__notes__", [])]
        _rename(flow_run, state, DRAINED if isinstance(error, Drained) else TOO_MANY, " ".join(sentences))


def _rename(run: FlowRun, state: "State[Any]", name: str, message: str) -> None:
    state.name, state.message = name, message
    get_client(sync_client=True).set_flow_run_state(run.id, state, force=True)
