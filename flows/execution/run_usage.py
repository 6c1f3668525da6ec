"""Usage of a run: that of this attempt as it happens, and that of the attempts before it."""

import logging
from collections.abc import Mapping
from typing import Self

from prefect.context import FlowRunContext

from llms.limits.usage import UsageCollector
from llms.store import StoreError, spending
from llms.typing import ModelUsage

logger = logging.getLogger(__name__)

PREVIEW = 0
"""Number of the attempt that a preview counts as: of the run it is made for, but no attempt at it."""


class RunUsage(UsageCollector):
    """Collects the usage of a run by step and model, and records it in the store for later attempts of its flow run.

    Args:
        attempt: The flow run's id with the pipeline, and the number of the attempt; `None` outside a flow run.
        earlier: What earlier attempts and the preview have used, by attempt, and by step and model.

    Attributes:
        attempts: Number of attempts, this one included.
        earlier: What earlier attempts have used, without the preview, by step and model.
    """

    def __init__(
        self,
        attempt: spending.Attempt | None = None,
        earlier: Mapping[int, Mapping[tuple[str, str], ModelUsage]] | None = None,
    ) -> None:
        super().__init__()
        self._attempt = attempt
        self.attempts = 1 + sum(number != PREVIEW for number in earlier or ())
        self.earlier: dict[tuple[str, str], ModelUsage] = {}
        for number, used in (earlier or {}).items():
            for key, each in used.items():
                self._totals[key] = self._totals.get(key, ModelUsage()) + each
                if number != PREVIEW:  # whoever approves a budget knows what its preview has cost
                    self.earlier[key] = self.earlier.get(key, ModelUsage()) + each

    @classmethod
    def of_flow_run(cls, pipeline: str, is_preview: bool) -> Self:
        """Return the usage of this attempt at a pipeline in the current flow run, with that of the earlier ones."""
        context = FlowRunContext.get()
        if context is None or context.flow_run is None:
            return cls()
        counters, name = context.observed_flow_pauses, f"pipeline {pipeline}"  # the context is new in every attempt
        number = counters.get(name, 0) + 1
        run = f"{context.flow_run.id}/{pipeline}/{number}"
        if not is_preview:
            counters[name] = number
        try:
            earlier = {} if is_preview else spending.read(run)
        except StoreError as error:
            logger.warning("What earlier attempts of this run have spent is not known: %s", error)
            return cls()
        return cls(spending.Attempt(run, PREVIEW if is_preview else max(earlier, default=PREVIEW) + 1), earlier)

    @property
    def cost(self) -> float:
        """Dollars so far, the preview's included; what has no known price counts as free."""
        return sum(each.cost or 0.0 for each in self.totals.values())

    def add(self, step: str, model: str, used: ModelUsage) -> None:
        """Add the usage of a model in a step."""
        super().add(step, model, used)
        if self._attempt and used.requests:
            try:
                spending.record(self._attempt, step, model, used)
            except StoreError as error:
                self._attempt = None  # told once
                logger.warning("What this run spends is not recorded for its later attempts: %s", error)
