"""Which of several steps a row goes to."""

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.typing import Row
from tasks.wiring import Route

if TYPE_CHECKING:
    from tasks.base import Step


@dataclass
class Router:
    """Stands between a step and several: `data >> route(by) >> [short, long]`.

    Attributes:
        by: Of a row and the names of the steps, the names of those it goes to.
    """

    by: Callable[[Row, Sequence[str]], Collection[str]]
    source: "Step | None" = None

    def __rrshift__(self, source: "Step") -> "Router":
        return Router(self.by, source)

    def __rshift__(self, targets: "list[Step]") -> "list[Step]":
        if self.source is None:
            raise ValueError("a router stands between a step and several: `data >> route(by) >> [short, long]`.")
        for target in targets:
            names = tuple(each.name for each in targets)
            self.source._pipeline().connect(self.source, target, Route(self.by, names))
        return targets


def route(by: Callable[[Row], Any]) -> Router:
    """Send each row to the step, or the steps, a function names.

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
