"""Estimate of a run over all rows, extrapolated from the first ones."""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from flows.dag.graph import Graph
from flows.preview.trace import Key, RequestTrace, RowTrace
from flows.runtime.humanize import duration, money, pluralize, round_significant
from llms import LLM, AsyncLLM
from llms.local.base import LocalLLM
from tasks import GlobalStep, Task

ASSUMED_ROWS = 1_000
"""Rows that an estimate is for where the number of rows is unknown."""

T_QUANTILES = (12.7, 4.3, 3.2, 2.8, 2.6, 2.4, 2.4, 2.3, 2.3, 2.2, 2.2, 2.2, 2.2, 2.1)
"""Quantiles of Student's t for a 95 % interval, from two sampled rows on; 2 for more rows than are listed."""

Amounts = NDArray[np.floating[Any]]
"""Requests, input tokens, output tokens, dollars, and the sum of latencies in seconds."""


class Figures(BaseModel):
    """Requests, tokens, cost and time."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = Field(default=0.0, description="Dollars; `None` when a price is not known.")
    seconds: float | None = Field(default=0.0, description="From start to end; `None` when that cannot be told.")


class Estimate(Figures):
    """Figures of a run over all rows, with their range."""

    rows: int = Field(description="Rows of the sources that the figures are for.")
    known: bool = Field(description="Whether the sources hold so many; else the figures are for so many of them.")
    sampled: int = Field(description="Rows that the figures are from.")
    models: dict[str, Figures] = Field(default_factory=dict, description="The same by model.")
    least: Figures | None = Field(default=None, description="It is hardly less; `None` when the rows do not tell.")
    most: Figures | None = Field(default=None, description="It is hardly more.")
    notes: list[str] = Field(default_factory=list, description="What is taken for granted, and what is not known.")

    def markdown(self) -> str:
        """Return a table by model and in total, with the range, rounded to two digits; and the notes."""
        exact = self.known and self.rows == self.sampled
        whole = pluralize(self.rows, "row") if self.known else f"every {self.rows:,} rows"
        lines = [f"Estimate for {whole}, from the first {self.sampled:,}:", ""]
        lines += ["| model | requests | tokens in | tokens out | cost | time |", f"| --- |{' ---: |' * 5}"]
        lines += [_table_row(f"`{name}`", figures, exact) for name, figures in self.models.items()]
        lines += [_table_row("in all", self, exact)] if len(self.models) != 1 else []
        if self.least and self.most and not exact:
            lines += [
                _table_row("hardly less than", self.least, exact),
                _table_row("hardly more than", self.most, exact),
            ]
        return "\n".join([*lines, *([""] if self.notes else []), *(f"- {note}" for note in self.notes)])


def estimate(graph: Graph, rows: Mapping[Key, RowTrace], limit: int | None) -> Estimate:
    """Estimate a run from the traces of some rows of its sources.

    Args:
        graph: The steps, checked: it knows how many rows the sources hold.
        rows: What was asked for the rows that were tried.
        limit: Rows the run would take from each source, at most.
    """
    return _Estimator(graph, rows, limit).estimate()


class _Estimator:
    def __init__(self, graph: Graph, rows: Mapping[Key, RowTrace], limit: int | None) -> None:
        self.graph = graph
        self.rows = rows
        self.tasks = [step for step in graph.order if isinstance(step, Task)]
        self.notes: list[str] = []
        self.sampled = Counter(key[0] for key in rows if key)
        self.total_rows, self.known = self._count_rows(limit)
        self.usage = {task.name: self._usage_per_row(task) for task in self.tasks}

    def estimate(self) -> Estimate:
        likely, spread = self._extrapolate(self.tasks)
        off = np.sqrt(spread)
        spent = sum((amounts for took in self.usage.values() for amounts in took.values()), np.zeros(5))
        least, most = np.maximum(likely - off, spent), likely + off
        quick, slow = self._duration(self.tasks, add_note=True)
        models: dict[str, list[Task]] = {}
        for task in self.tasks:
            models.setdefault(task.llm.model_name, []).append(task)
        priced = {name: self._is_priced(name, tasks) for name, tasks in models.items()}
        figures = {
            name: _to_figures(self._extrapolate(tasks)[0], priced[name], self._duration(tasks)[0])
            for name, tasks in models.items()
        }
        for step in self.graph.steps:
            if isinstance(step, GlobalStep):
                self.notes.append(f"`{step.name}` has seen these rows only; of all, it may make something else.")
        tells = all(count > 1 or self.total_rows[at] <= count for at, count in self.sampled.items())
        if not tells:
            self.notes.append("One row does not tell how much rows differ: with more of them there is a range.")
        every, share = all(priced.values()), likely[4] or 1.0
        return Estimate(
            rows=sum(self.total_rows.values()),
            known=self.known,
            sampled=self.sampled.total(),
            models=figures,
            least=_to_figures(least, every, quick and quick * least[4] / share) if tells else None,
            most=_to_figures(most, every, slow and slow * most[4] / share) if tells else None,
            notes=self.notes,
            **_to_figures(likely, every, quick).model_dump(),
        )

    def _count_rows(self, limit: int | None) -> tuple[dict[int, int], bool]:
        """Return the rows of each source, by its index, and whether they are known."""
        counts = [self.graph.row_counts.get(source.name) for source in self.graph.sources]
        most = [limit if count is None else min(count, limit or count) for count in counts]
        if None not in most:
            return {at: count for at, count in enumerate(most) if count and at in self.sampled}, True
        self.notes.append("How many rows the sources hold is not known.")
        share = ASSUMED_ROWS / max(self.sampled.total(), 1)
        return {at: round(share * count) for at, count in self.sampled.items()}, False

    def _usage_per_row(self, task: Task) -> dict[Key, Amounts]:
        """Return the usage of each row in a step; a request of unknown usage counts as the mean of the others."""
        first: dict[str, RequestTrace] = {}
        for each in (each for row in self.rows.values() for each in row.asked if each.step == task.name):
            first.setdefault(f"{each.prompt}", each)  # the same again is taken from the store
        known = [_to_amounts(each) for each in first.values() if each.input_tokens is not None]
        usual = np.mean(known, axis=0) if known else np.array([1.0, 0, 0, 0, 0])
        took: dict[Key, Amounts] = {}
        for key, row in self.rows.items():
            requests = [each for each in row.asked if each.step == task.name and first[f"{each.prompt}"] is each]
            parts = [usual if each.input_tokens is None else _to_amounts(each) for each in requests]
            took[key] = sum(parts, np.zeros(5))
        return took

    def _extrapolate(self, tasks: Iterable[Task]) -> tuple[Amounts, Amounts]:
        """Return the expected usage of all rows in these steps, and its squared margin of error."""
        tasks = list(tasks)
        likely, spread = np.zeros(5), np.zeros(5)
        for at, count in self.sampled.items():
            rows = [
                sum((self.usage[t.name][key] for t in tasks), np.zeros(5)) for key in self.rows if key and key[0] == at
            ]
            whole = self.total_rows[at]
            likely += whole * np.mean(rows, axis=0)
            if count > 1:
                sure = T_QUANTILES[count - 2] if count - 2 < len(T_QUANTILES) else 2.0
                spread += sure**2 * whole * max(whole - count, 0) / count * np.var(rows, axis=0, ddof=1)
        share = sum(self.total_rows.values()) / max(self.sampled.total(), 1)
        for task in tasks:
            likely += share * self.usage[task.name].get(None, np.zeros(5))
        return likely, spread

    def _duration(self, tasks: list[Task], add_note: bool = False) -> tuple[float | None, float | None]:
        """Return the duration of these steps at the allowed concurrency, and at that of the sampled rows."""
        totals = {task.name: self._extrapolate([task])[0] for task in tasks}
        if sum(total[0] for total in totals.values()) and not sum(total[4] for total in totals.values()):
            return None, None
        latency = {name: total[4] / total[0] if total[0] else 0.0 for name, total in totals.items()}
        path: dict[str, float] = {}  # of a row, up to and with each step
        for step in self.graph.order:
            before = max((path[each.name] for each in self.graph.predecessors[step.name]), default=0.0)
            path[step.name] = before + latency.get(step.name, 0.0)
        accounts: dict[Hashable, list[Task]] = {}
        for task in tasks:
            accounts.setdefault(_rate_limit_scope(task.llm), []).append(task)
        quick = slow = 0.0
        longest = max(path.values(), default=0.0)
        for its in accounts.values():
            llm, total = its[0].llm, sum((totals[task.name] for task in its), np.zeros(5))
            here = sum((amounts for task in its for amounts in self.usage[task.name].values()), np.zeros(5))
            if not here[4]:
                continue
            alone, least, note = total[4] / total[0], 0.0, f"Time: `{llm.model_name}` goes on as fast as it was here."
            if isinstance(llm, AsyncLLM) and not isinstance(llm, LocalLLM):
                most, least = _throughput_limits(llm, total)
                few = min(round(here[0]), most)
                fast, careful = total[4] / most, total[4] / few
                note = (
                    f"Time: with {most:,} requests to `{llm.model_name}` at once, what its limiter allows now. With "
                    f"{few:,}, as for these rows, {duration(max(least, careful) - alone + longest, approximate=True)}."
                )
            else:  # the slowest of each step is what these rows took
                fast = careful = total[4] / here[4] * sum(self._max_latency(task) for task in its)
            quick, slow = max(quick, max(least, fast) - alone), max(slow, max(least, careful) - alone)
            self.notes += [note] if add_note else []
        return quick + longest, slow + longest

    def _max_latency(self, task: Task) -> float:
        return max(
            (a.seconds or 0.0 for row in self.rows.values() for a in row.asked if a.step == task.name), default=0.0
        )

    def _is_priced(self, name: str, tasks: list[Task]) -> bool:
        """Return whether the cost of a model's requests is known; add a note if not."""
        names = {task.name for task in tasks}
        requests = [each for row in self.rows.values() for each in row.asked if each.step in names]
        known = [each for each in requests if each.input_tokens is not None]
        if requests and not known:
            self.notes.append(f"`{name}` has answered nothing: its tokens are not known.")
            return False
        if known and not any(each.input_tokens or each.output_tokens for each in known):
            self.notes.append(f"`{name}` does not say how many tokens it takes.")
        if all(each.cost is not None for each in known):
            return True
        self.notes.append(f"What `{name}` costs is not known: give it a `price` where it has one.")
        return False


def _rate_limit_scope(llm: LLM) -> Hashable:
    """Return a key that is equal for models that share a rate limit."""
    return llm.rate_limit_scope() if isinstance(llm, AsyncLLM) else llm.model_name


def _throughput_limits(llm: AsyncLLM, total: Amounts) -> tuple[int, float]:
    """Return the allowed concurrency, and the minimum duration in seconds that rate limits allow."""
    known = llm.limiter_stats()
    by_requests = [total[0] / rate for rate in (llm.requests_per_minute, known["learned_rpm"]) if rate]
    by_tokens = [(total[1] + total[2]) / llm.tokens_per_minute] if llm.tokens_per_minute else []
    return known["limit"], 60 * max([*by_requests, *by_tokens], default=0.0)


def _to_amounts(request: RequestTrace) -> Amounts:
    known = (1, request.input_tokens, request.output_tokens, request.cost, request.seconds)
    return np.array([each or 0.0 for each in known], dtype=float)


def _to_figures(amounts: Amounts, priced: bool, seconds: float | None) -> Figures:
    requests, input_tokens, output_tokens, cost, _ = amounts
    return Figures(
        requests=round(requests),
        input_tokens=round(input_tokens),
        output_tokens=round(output_tokens),
        cost=float(cost) if priced else None,
        seconds=None if seconds is None else float(seconds),
    )


def _table_row(name: str, figures: Figures, exact: bool) -> str:
    counts = [figures.requests, figures.input_tokens, figures.output_tokens]
    cells = [f"{each if exact else round_significant(each):,.0f}" for each in counts]
    cost = "not known" if figures.cost is None else money(figures.cost, approximate=True)
    time = "not known" if figures.seconds is None else duration(figures.seconds, approximate=True)
    return f"| {' | '.join([name, *cells, cost, time])} |"
