"""Task runners: threads of this process, or other processes."""

from collections.abc import Iterator
from contextlib import contextmanager

from prefect import Flow
from prefect.context import FlowRunContext
from prefect.task_runners import ThreadPoolTaskRunner


def distributed_runner() -> str | None:
    """Return the class name of the current flow run's task runner if it sends batches to other processes."""
    context = FlowRunContext.get()
    runner = context.task_runner if context else None
    return None if runner is None or isinstance(runner, ThreadPoolTaskRunner) else type(runner).__name__


@contextmanager
def without_flow_payload() -> Iterator[None]:
    """Keep Prefect from sending the flow and its parameters, rows included, to another process with every batch."""
    context = FlowRunContext.get()
    if not (context and context.flow and context.flow_run and distributed_runner()):
        yield
        return
    flow = Flow(_empty_flow, name=context.flow.name, task_runner=context.flow.task_runner, persist_result=False)
    flow_run = context.flow_run.model_copy(update={"parameters": {}})
    with context.model_copy(update={"flow": flow, "flow_run": flow_run, "parameters": {}}):
        yield


def _empty_flow() -> None:
    """Stand in for the flow."""
