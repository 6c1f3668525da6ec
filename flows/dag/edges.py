"""Edges of a pipeline as text: `a >> [b, c]`, `a >> sample_n_steps(1, seed=7) >> [b, c]`."""

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


def format_edges(builder: DagBuilder[Step]) -> list[str]:
    """Return the edges in the order of their declaration, those that leave a step together as one text.

    Raises:
        ConfigurationError: If a route is a function.
    """
    texts: list[str] = []

    def source_and_route(edge: tuple[Step, Step]) -> tuple[str, Any]:
        route = builder.routes.get((edge[0].name, edge[1].name))
        return edge[0].name, route and (id(route.selector), route.targets)

    for (source, route), edges in groupby(builder.edges, source_and_route):
        names = [target.name for _, target in edges]
        targets = f"[{', '.join(names)}]" if route or len(names) > 1 else names[0]
        selector = f"{_format_selector(builder.routes[source, names[0]], source)} >> " if route else ""
        texts.append(f"{source} >> {selector}{targets}")
    return texts


def parse_edges(text: str, names: Collection[str]) -> Iterator[tuple[str, str, Route | None]]:
    """Yield source, target and route of each edge in a text, which may be a chain: `a >> [b, c] >> d`.

    Raises:
        ValueError: If there is no edge in it, or it names a step that is not among `names`.
    """
    parts = [part.strip() for part in text.split(">>")]
    sources: list[str] = []
    selector: Callable[..., Collection[str]] | None = None
    for at, part in enumerate(parts):
        if match := SAMPLE_PATTERN.fullmatch(part):
            if selector or not 0 < at < len(parts) - 1:
                raise ValueError("it stands between a step and several: `a >> sample_n_steps(1, seed=7) >> [b, c]`.")
            selector = sample_n_steps(int(match[1]), int(match[2] or 0)).selector
            continue
        targets = [name.strip() for name in part[1:-1].split(",")] if part[:1] == "[" and part[-1] == "]" else [part]
        for name in targets:
            if name not in names:
                raise ValueError(f"there is no step `{name}`: {did_you_mean(name, names)}")
        route = Route(selector, tuple(targets)) if selector else None
        yield from ((source, target, route) for source in sources for target in targets)
        sources, selector = targets, None
    if len(parts) < 2:
        raise ValueError("an edge is written `a >> b`.")


def _format_selector(route: Route, source: str) -> str:
    if isinstance(route.selector, Sample):
        return f"sample_n_steps({route.selector.n}, seed={route.selector.seed})"
    raise ConfigurationError(
        f"`{source} >> route(…) >> [{', '.join(route.targets)}]` sends rows where a function says, which no file can "
        "hold: begin each branch with a `Filter(column=…)` instead, or use `sample_n_steps`."
    )
