"""Conditional edges: the branches a row takes."""

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, overload

from tasks import dag
from tasks.base import Step
from tasks.typing import Row

S = TypeVar("S", bound=Step)


@dataclass
class Router:
    """A router between one or several steps and others: `data >> route(by) >> [short, long]`.

    Attributes:
        selector: Takes a row and the names of the candidate steps, and returns the names of those that receive it.
        sources: The steps whose rows it routes.
    """

    selector: Callable[[Row, Sequence[str]], Collection[str]]
    sources: Sequence[Step] = ()

    def __rrshift__(self, sources: Step | Sequence[Step]) -> "Router":
        return Router(self.selector, [sources] if isinstance(sources, Step) else sources)

    @overload
    def __rshift__(self, targets: S) -> S: ...

    @overload
    def __rshift__(self, targets: list[S]) -> list[S]: ...

    def __rshift__(self, targets: Any) -> Any:
        if not self.sources:
            raise ValueError("a router stands between a step and several: `data >> route(by) >> [short, long]`.")
        candidates = targets if isinstance(targets, list | tuple) else [targets]
        route = dag.Route(self.selector, tuple(each.name for each in candidates))
        for source in self.sources:
            for target in candidates:
                dag.connect(source, target, route)
        return targets


def route(by: Callable[[Row], Any]) -> Router:
    """Send each row to the step, or the steps, that a function names.

    The function must be deterministic and depend on the row alone: every target calls it, and so does a resumed run.
    One that is not ends the run. To sample steps at random, use `sample_n_steps`.

    Args:
        by: Takes a row and returns the name of a step, or a list of names; `None` for none of them.

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

    def select(row: Row, steps: Sequence[str]) -> Collection[str]:
        selected = by(row)
        names = [] if selected is None else [selected] if isinstance(selected, str) else list(selected)
        if unknown := [name for name in names if name not in steps]:
            raise ValueError(f"`route` named `{unknown[0]}`: there are {', '.join(f'`{step}`' for step in steps)}.")
        return names

    return Router(select)


@dataclass(frozen=True)
class Sample:
    """A selector that samples `n` of the candidate steps for each row, reproducibly for a seed."""

    n: int
    seed: int = 0

    def __call__(self, row: Row, steps: Sequence[str]) -> Collection[str]:
        """Return the names of the steps that receive a row."""
        if self.n > len(steps):
            raise ValueError(f"`sample_n_steps({self.n})` stands before {len(steps)} steps.")
        return random.Random(f"{self.seed} {row.id or row}").sample(list(steps), self.n)


def sample_n_steps(n: int, seed: int = 0) -> Router:
    """Send each row to `n` of the steps, sampled at random and reproducibly for a seed.

    Args:
        n: Number of steps per row.
        seed: Seed of the random numbers.
    """
    if n < 1:
        raise ValueError(f"`n` is {n}: a row goes to one step at least.")
    return Router(Sample(n, seed))
