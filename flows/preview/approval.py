"""Approval of a run before it spends: it waits, with an estimate, until somebody sets a budget or declines.

    pipeline.run(approve=True)
    python -m prefect deployment run text-generation/hosted --param approve=true

Whoever opens the run in Prefect's UI presses *Resume* and finds a form. Over the API it is `POST
/flow_runs/{id}/resume` with `{"run_input": {"decision": "run", "max_cost": 20}}`; at a terminal it is asked for there.
"""

import math
import sys
from collections.abc import Callable
from copy import copy
from typing import Any, Literal

from prefect import get_run_logger, pause_flow_run, suspend_flow_run
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.exceptions import Abort
from prefect.input import RunInput, keyset_from_base_key, read_flow_run_input
from prefect.states import Cancelled
from prefect.utilities.urls import url_for
from pydantic import Field, ValidationError, create_model
from rich.console import Console
from rich.markdown import Markdown
from rich.prompt import Prompt

from flows.errors import ConfigurationError
from flows.preview.estimate import Estimate
from flows.runtime import server
from llms.config.strict import format_validation_error

SAMPLE_ROWS = 10
"""Rows of each source that the estimate is made from."""

APPROVAL_TIMEOUT_S = 7 * 24 * 3600
"""Time a paused process waits for an answer; a suspended run waits for ever."""

POLL_INTERVAL_S = 2
"""Interval between two checks for an answer."""


class ApprovalDeclined(Abort):
    """The estimate was declined: the flow run is cancelled, and nothing more was paid for."""


class Approval(RunInput):
    """The answer, as a form."""

    decision: Literal["run", "stop"] = Field(
        title="Decision", description="`run` makes all of it; `stop` ends the run, and nothing more is paid for."
    )
    max_cost: float | None = Field(
        None, title="Dollars", gt=0, description="Dollars it may spend; any number when empty."
    )
    max_tokens_total: int | None = Field(
        None, title="Tokens", gt=0, description="Tokens it may spend, input and output together; any number when empty."
    )


def wait_for_approval(
    estimate: Callable[[], Estimate], max_cost: float | None, max_tokens_total: int | None
) -> dict[str, float | int | None]:
    """Wait for an approval of the flow run, and return its budget as `max_cost` and `max_tokens_total`.

    A deployment's run is suspended: its process ends, and after the answer a worker starts the flow again from its
    beginning. Other runs wait in place. A run that ended and is retried asks again.

    Args:
        estimate: Makes the estimate to show; not called when there is an answer already.
        max_cost: Dollars to propose; derived from the estimate by default.
        max_tokens_total: Tokens to propose.

    Raises:
        ApprovalDeclined: If the answer is no.
        ConfigurationError: If nobody could answer.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise ConfigurationError("`approve` needs a flow run: call the flow, not the function under it.")
    run = context.flow_run
    number = context.observed_flow_pauses["approvals"] = context.observed_flow_pauses.get("approvals", 0) + 1
    with get_client(sync_client=True) as client:
        ended = sum(state.is_final() for state in client.read_flow_run_states(run.id))
    key = f"approval-{number}-{ended}"
    answer = _read_answer(run, key) or _ask(run, key, _build_form(estimate(), max_cost, max_tokens_total))
    if answer.decision == "stop":
        message = "The estimate was declined: nothing more was paid for."
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run.id, Cancelled(message=message))
        raise ApprovalDeclined(message)
    limits = answer.model_dump(exclude={"decision"})
    get_run_logger().info("Approved: %s", limits)
    return {"max_cost": None} | limits


def _read_answer(run: FlowRun, key: str) -> Approval | None:
    """Return the answer that exists already, because the flow started again after it asked."""
    read: Any = read_flow_run_input
    for how in ("suspended", "paused"):
        if answer := read(keyset_from_base_key(f"{how}-{key}")["response"], run.id, _sync=True):
            return Approval(**answer)
    return None


def _build_form(estimate: Estimate, max_cost: float | None, max_tokens_total: int | None) -> type[RunInput]:
    """Return the form, with the estimate as its description and a proposed budget.

    The budget is the one in the run's settings, or the upper estimate plus a quarter. It is in dollars if the models'
    prices are known and not zero, otherwise in tokens.
    """
    most = estimate.most or estimate
    if most.cost:
        proposed = {"max_cost": max_cost or _round_up(1.25 * most.cost), "max_tokens_total": max_tokens_total}
    else:
        tokens = int(_round_up(1.25 * (most.input_tokens + most.output_tokens))) or None
        proposed = {"max_tokens_total": max_tokens_total or tokens}
    fields: dict[str, Any] = {}
    for name in ["decision", *proposed]:
        field = copy(Approval.model_fields[name])
        field.default = proposed.get(name, field.default)
        fields[name] = (field.annotation, field)
    form = create_model("Approval", __base__=RunInput, **fields)
    form._description = estimate.markdown()
    return form


def _round_up(amount: float) -> float:
    """Round up to two significant digits."""
    if not amount:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(amount)) - 1)
    return round(math.ceil(amount / unit) * unit, 10)


def _ask(run: FlowRun, key: str, form: type[RunInput]) -> Any:
    """Return the answer given at the terminal or in Prefect's UI."""
    wait: Any
    if run.deployment_id and not run.parent_task_run_id:  # of another run's part Prefect suspends nothing
        wait = suspend_flow_run
        return wait(wait_for_input=form, key=key, _sync=True)
    if sys.stdin and sys.stdin.isatty():
        return _ask_at_terminal(form)
    if server.is_temporary():
        raise ConfigurationError(
            "`approve` waits for somebody who answers: run it in a terminal, or with a Prefect server."
        )
    get_run_logger().warning("This run waits for an approval: *Resume* at %s has the form.", url_for(run))
    wait = pause_flow_run
    return wait(wait_for_input=form, key=key, timeout=APPROVAL_TIMEOUT_S, poll_interval=POLL_INTERVAL_S, _sync=True)


def _ask_at_terminal(form: type[RunInput]) -> RunInput:
    """Show the form at the terminal."""
    console = Console(stderr=True)
    console.print(Markdown(f"{form._description}"))
    while True:
        given: dict[str, Any] = {"decision": Prompt.ask("Decision", console=console, choices=["run", "stop"])}
        for name, field in form.model_fields.items() if given["decision"] == "run" else ():
            if name != "decision":
                most = "any" if field.default is None else f"{field.default:.10g}"
                answer = Prompt.ask(f"{field.title} it may spend, or `any` number", console=console, default=most)
                given[name] = None if answer == "any" else answer
        try:
            return form(**given)
        except ValidationError as error:
            console.print(format_validation_error(error))
