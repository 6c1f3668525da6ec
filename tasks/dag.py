"""How `a >> b` is written down: the steps and edges of the pipeline being declared."""

from collections.abc import Callable, Collection, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.base import Step
    from tasks.typing import Row


@dataclass(frozen=True)
class Route:
    """Which rows take an edge.

    Attributes:
        by: Of a row, and the names of the steps it could go to, the names of those it goes to.
        targets: The names of the steps it could go to.
    """

    selector: "Callable[[Row, Sequence[str]], Collection[str]]"
    targets: tuple[str, ...]


@dataclass
class DagBuilder:
    """Steps in the order they were made, and the edges drawn between them."""

    steps: "list[Step]" = field(default_factory=list)
    edges: "list[tuple[Step, Step]]" = field(default_factory=list)
    routes: dict[tuple[str, str], Route] = field(default_factory=dict)

    def add(self, step: "Step") -> None:
        """Take a step in; a second one of the same name gets a number."""
        taken = {each.name for each in self.steps}
        if step.name in taken:
            if "name" in step.model_fields_set:
                raise ValueError(f"two steps are called `{step.name}`: give one of them another `name`.")
            step.name = next(name for n in range(1, len(taken) + 1) if (name := f"{step.name}_{n}") not in taken)
        self.steps.append(step)

    def connect(self, source: "Step", target: "Step", route: Route | None = None) -> None:
        """Draw an edge, which all rows take unless there is a route."""
        for step in (source, target):
            if not any(step is each for each in self.steps):
                raise ValueError(f"`{step.name}` was made outside this pipeline: make it inside the `with`.")
        if any(source is a and target is b for a, b in self.edges):
            raise ValueError(f"`{source.name} >> {target.name}` is written twice.")
        self.edges.append((source, target))
        if route:
            self.routes[source.name, target.name] = route


current: ContextVar[DagBuilder | None] = ContextVar("current", default=None)
"""The wiring of the `with Pipeline()` we are in."""
