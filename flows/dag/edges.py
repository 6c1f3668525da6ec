"""The edges of a pipeline as texts: `a >> [b, c]`, `a >> sample_n_steps(1, seed=7) >> [b, c]`."""

import re
from collections.abc import Callable, Collection, Iterator
from itertools import groupby
from typing import Any

from flows.errors import ConfigurationError
from llms.config.strict import did_you_mean
from tasks import Step, sample_n_steps
from tasks.dag import DagBuilder, Route
from tasks.routing import Sample

SAMPLE_PATTERN = re.compile(r"sample_n_steps\(\s*(?:n\s*=\s*)?(\d+)\s*(?:,\s*(?:seed\s*=\s*)?(-?\d+)\s*)?\)")


def format_edges(wired: DagBuilder[Step]) -> list[str]:
    """The edges in the order they were drawn; those that leave a step together are one text.

    Raises:
        ConfigurationError: If a function says which rows take one.
    """
    texts: list[str] = []

    def together(edge: tuple[Step, Step]) -> tuple[str, Any]:
        route = wired.routes.get((edge[0].name, edge[1].name))
        return edge[0].name, route and (id(route.selector), route.targets)

    for (source, routed), edges in groupby(wired.edges, together):
        targets = [target.name for _, target in edges]
        several = f"[{', '.join(targets)}]"
        if routed:
            texts.append(f"{source} >> {_format_route(wired.routes[source, targets[0]], source)} >> {several}")
        else:
            texts.append(f"{source} >> {several if len(targets) > 1 else targets[0]}")
    return texts


def parse_edges(text: str, names: Collection[str]) -> Iterator[tuple[str, str, Route | None]]:
    """The edges a text stands for, in order; it may go on, `a >> [b, c] >> d`.

    Raises:
        ValueError: If it stands for none, or names a step that is not among `names`.
    """
    parts = [part.strip() for part in text.split(">>")]
    sources: list[str] = []
    by: Callable[..., Collection[str]] | None = None
    for at, part in enumerate(parts):
        if found := SAMPLE_PATTERN.fullmatch(part):
            if by or not 0 < at < len(parts) - 1:
                raise ValueError("it stands between a step and several: `a >> sample_n_steps(1, seed=7) >> [b, c]`.")
            by = sample_n_steps(int(found[1]), int(found[2] or 0)).selector
            continue
        targets = [name.strip() for name in part[1:-1].split(",")] if part[:1] == "[" and part[-1] == "]" else [part]
        for name in targets:
            if name not in names:
                raise ValueError(f"there is no step `{name}`: {did_you_mean(name, names)}")
        route = Route(by, tuple(targets)) if by else None
        yield from ((source, target, route) for source in sources for target in targets)
        sources, by = targets, None
    if len(parts) < 2:
        raise ValueError("an edge is written `a >> b`.")


def _format_route(route: Route, source: str) -> str:
    if isinstance(route.selector, Sample):
        return f"sample_n_steps({route.selector.n}, seed={route.selector.seed})"
    raise ConfigurationError(
        f"`{source} >> route(…) >> [{', '.join(route.targets)}]` sends rows where a function says, which no file can "
        "hold: begin each branch with a `Filter(column=…)` instead, or use `sample_n_steps`."
    )
