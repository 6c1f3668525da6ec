"""The directed acyclic graph that `a >> b` builds: nodes, edges and routes of the pipeline being declared."""

from collections.abc import Callable, Collection, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from tasks.typing import Row


class Node(Protocol):
    """The part of a step that the graph needs."""

    name: str

    @property
    def model_fields_set(self) -> set[str]:
        """The fields that were given; without `name`, the graph may number it."""
        ...


N = TypeVar("N", bound=Node)


@dataclass(frozen=True)
class Route:
    """A condition on an edge.

    Attributes:
        selector: Takes a row and `targets`, and returns the names of those that receive the row.
        targets: The names of the candidate steps.
    """

    selector: Callable[[Row, Sequence[str]], Collection[str]]
    targets: tuple[str, ...]


@dataclass
class DagBuilder(Generic[N]):
    """Steps in the order of their declaration, and the edges between them."""

    steps: list[N] = field(default_factory=list)
    edges: list[tuple[N, N]] = field(default_factory=list)
    routes: dict[tuple[str, str], Route] = field(default_factory=dict)

    def add(self, step: N) -> None:
        """Add a step; number it if its default name is taken.

        Raises:
            ValueError: If a name that was given is taken.
        """
        taken = {each.name for each in self.steps}
        if step.name in taken:
            if "name" in step.model_fields_set:
                raise ValueError(f"two steps are called `{step.name}`: give one of them another `name`.")
            step.name = next(name for n in range(1, len(taken) + 1) if (name := f"{step.name}_{n}") not in taken)
        self.steps.append(step)

    def connect(self, source: N, target: N, route: Route | None = None) -> None:
        """Add an edge, which every row takes unless there is a route.

        Raises:
            ValueError: If a step belongs to another pipeline, or the edge exists.
        """
        for step in (source, target):
            if not any(step is each for each in self.steps):
                raise ValueError(f"`{step.name}` was made outside this pipeline: make it inside the `with`.")
        if any(source is a and target is b for a, b in self.edges):
            raise ValueError(f"`{source.name} >> {target.name}` is written twice.")
        self.edges.append((source, target))
        if route:
            self.routes[source.name, target.name] = route


current: ContextVar[DagBuilder[Any] | None] = ContextVar("current", default=None)
"""The graph of the enclosing `with Pipeline()`."""


def connect(source: Node, target: Node, route: Route | None = None) -> None:
    """Add an edge to the graph of the enclosing `with Pipeline()`.

    Raises:
        ValueError: If there is none, or it rejects the edge.
    """
    builder = current.get()
    if builder is None:
        raise ValueError(f"`{source.name}`: steps are connected inside `with Pipeline() as pipeline:`.")
    builder.connect(source, target, route)
