"""Usage of models as it happens: each answer counts as soon as it is there, whatever becomes of its row."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Self

from llms.typing import ModelUsage


class UsageCollector:
    """Sums the usage of all requests made inside, in any thread that inherits the context, by step and model.

    Args:
        step: Name of the step that makes the requests; what a collector inside says takes precedence.
    """

    def __init__(self, step: str = "") -> None:
        self.step = step
        self._totals: dict[tuple[str, str], ModelUsage] = {}
        self._outer: UsageCollector | None = None
        self._lock = threading.Lock()

    @contextmanager
    def activate(self) -> Iterator[Self]:
        """Collect what is used inside, and pass it on to the collector around this one."""
        self._outer = _active.get()
        token = _active.set(self)
        try:
            yield self
        finally:
            _active.reset(token)

    def add(self, step: str, model: str, used: ModelUsage) -> None:
        """Add the usage of a model in a step."""
        step = step or self.step
        with self._lock:
            self._totals[step, model] = self._totals.get((step, model), ModelUsage()) + used
        if self._outer:
            self._outer.add(step, model, used)

    @property
    def is_nested(self) -> bool:
        """Whether there is a collector around this one, which counts the same usage."""
        return self._outer is not None

    @property
    def totals(self) -> dict[tuple[str, str], ModelUsage]:
        """Usage so far, by step and model."""
        with self._lock:
            return dict(self._totals)

    @property
    def by_model(self) -> dict[str, ModelUsage]:
        """Usage so far, by model."""
        sums: dict[str, ModelUsage] = {}
        for (_, model), used in self.totals.items():
            sums[model] = sums.get(model, ModelUsage()) + used
        return sums


_active: ContextVar[UsageCollector | None] = ContextVar("usage", default=None)


def record_usage(model: str, used: ModelUsage) -> None:
    """Count usage for whoever collects it."""
    if collector := _active.get():
        collector.add("", model, used)


def active_step() -> str:
    """Return the name of the step that the caller's requests are for; empty if none is known."""
    collector = _active.get()
    return collector.step if collector else ""
