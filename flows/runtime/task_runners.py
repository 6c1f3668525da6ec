"""Where batches are worked on: in threads of this process, or wherever the flow's task runner sends them."""

from collections.abc import Iterator
from contextlib import contextmanager

from prefect import Flow
from prefect.context import FlowRunContext
from prefect.task_runners import ThreadPoolTaskRunner


def other_processes() -> str | None:
    """The name of the task runner of the flow run we are in, if it sends batches to other processes."""
    context = FlowRunContext.get()
    runner = context.task_runner if context else None
    return None if runner is None or isinstance(runner, ThreadPoolTaskRunner) else type(runner).__name__


@contextmanager
def light_batches() -> Iterator[None]:
    """Keep Prefect from sending the flow, with all the rows it may hold, along with every batch to another process."""
    context = FlowRunContext.get()
    if not (context and context.flow and context.flow_run and other_processes()):
        yield
        return
    flow = Flow(_nothing, name=context.flow.name, task_runner=context.flow.task_runner, persist_result=False)
    flow_run = context.flow_run.model_copy(update={"parameters": {}})
    with context.model_copy(update={"flow": flow, "flow_run": flow_run, "parameters": {}}):
        yield


def _nothing() -> None:
    """What a batch needs of its flow."""
