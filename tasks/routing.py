"""Which of several steps a row goes to."""

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, overload

from tasks.dag import Route
from tasks.typing import Row

if TYPE_CHECKING:
    from tasks.base import Step

    S = TypeVar("S", bound=Step)


@dataclass
class Router:
    """Stands between one step or several and others: `data >> route(by) >> [short, long]`.

    Attributes:
        by: Of a row and the names of the steps, the names of those it goes to.
    """

    selector: Callable[[Row, Sequence[str]], Collection[str]]
    sources: "Sequence[Step]" = ()

    def __rrshift__(self, sources: "Step | Sequence[Step]") -> "Router":
        return Router(self.selector, sources if isinstance(sources, list | tuple) else [sources])  # type: ignore[list-item]

    @overload
    def __rshift__(self, targets: "S") -> "S": ...

    @overload
    def __rshift__(self, targets: "list[S]") -> "list[S]": ...

    def __rshift__(self, targets: Any) -> Any:
        if not self.sources:
            raise ValueError("a router stands between a step and several: `data >> route(by) >> [short, long]`.")
        several = targets if isinstance(targets, list | tuple) else [targets]
        names = tuple(each.name for each in several)
        for source in self.sources:
            for target in several:
                source._pipeline().connect(source, target, Route(self.selector, names))
        return targets


def route(by: Callable[[Row], Any]) -> Router:
    """Send each row to the step, or the steps, a function names.

    The function is asked more than once about a row, by each of the steps and again when a run goes on, and must give
    the same answer every time: it decides by the row alone. One that does not ends the run. To draw steps at random,
    use `sample_n_steps`.

    Args:
        by: Of a row, the name of the step it goes to, or several in a list; `None` if it goes to none.

    Example:
        ```python
        from flows import Pipeline
        from llms import LlamaServerLLM
        from tasks import CombineOutputs, LoadDataFromDicts, TextGeneration, route

        with Pipeline() as pipeline:
            data = LoadDataFromDicts(data=[{"instruction": "What's the capital of Spain?"}])
            brief = TextGeneration(name="brief", llm=LlamaServerLLM(generation_kwargs={"max_new_tokens": 9}))
            long = TextGeneration(name="long", llm=LlamaServerLLM())
            data >> route(lambda row: "brief" if len(row["instruction"]) < 50 else "long") >> [brief, long]
        ```
    """

    def names(row: Row, steps: Sequence[str]) -> Collection[str]:
        chosen = by(row)
        wanted = [] if chosen is None else [chosen] if isinstance(chosen, str) else list(chosen)
        if strange := [name for name in wanted if name not in steps]:
            raise ValueError(f"`route` named `{strange[0]}`: there are {', '.join(f'`{step}`' for step in steps)}.")
        return wanted

    return Router(names)


@dataclass(frozen=True)
class Sample:
    """Draws `n` of the steps for each row, the same ones each time the pipeline runs; another seed, another draw."""

    n: int
    seed: int = 0

    def __call__(self, row: Row, steps: Sequence[str]) -> Collection[str]:
        """The names of the steps a row goes to."""
        if self.n > len(steps):
            raise ValueError(f"`sample_n_steps({self.n})` stands before {len(steps)} steps.")
        return random.Random(f"{self.seed} {row.id or row}").sample(list(steps), self.n)


def sample_n_steps(n: int, seed: int = 0) -> Router:
    """Send each row to `n` of the steps, drawn at random: the same ones each time the pipeline runs.

    Args:
        n: How many.
        seed: Another number is another draw.
    """
    if n < 1:
        raise ValueError(f"`n` is {n}: a row goes to one step at least.")
    return Router(Sample(n, seed))
