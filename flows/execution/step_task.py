"""What a task run does with its batches: small and plain, so that it can be sent to another process."""

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from prefect.transactions import get_transaction

from flows import results
from flows.errors import RunFailed
from flows.settings.step_parameters import get_llm
from tasks import Join, Step
from tasks.dag import Route
from tasks.join import group_by_lineage, sort_by_lineage
from tasks.typing import UNKNOWN_PARENT, BatchResult, Failure, Row, RowLineage


class RunStopping(Exception):
    """The run is ending: this batch is not begun."""


class StopEvent(threading.Event):
    """Set when a run is ending, for the batches that have not begun. In another process it is never set."""

    def __reduce__(self) -> Any:
        return (StopEvent, ())


@dataclass
class StepTask:
    """What a step makes of what the steps before it made; where rows part, of those that come its way.

    Attributes:
        step: The step.
        before: The names of the steps its batches come from, in that order.
        forked: Whether the last batch is that of the step where branches part, by which a join knows its groups, and
            whatever comes after several branches the order of their rows.
        routes: The routes rows take to the step, by the name of the step they come from.
        brake: Stops it before it begins.
    """

    step: Step
    upstream: list[str]
    has_fork: bool
    routes: Mapping[str, Route]
    stop: StopEvent

    @cached_property
    def cache_identity(self) -> str | None:
        """What decides what it makes of its batches, as a hash; `None` if there is no telling."""
        return results.step_identity(self.step, self.upstream, self.routes.values())

    @property
    def task_options(self) -> dict[str, Any]:
        """How its task keeps what it makes: among Prefect's results, under a key of all it was made of."""
        if self.cache_identity is None:
            return {}
        llm = get_llm(self.step)
        known = self.step.use_cache and (llm is None or llm.use_cache)
        return {
            "persist_result": True,
            "cache_key_fn": self._cache_key,
            "refresh_cache": None if known else True,
            "result_serializer": results.BatchResultSerializer(),
            "cache_result_in_memory": False,  # Prefect's memory would hold on to the rows
        }

    def _cache_key(self, _: Any, parameters: Mapping[str, Any]) -> str | None:
        return results.result_key(self.step, f"{self.cache_identity}", parameters["batches"])

    def __call__(self, batches: Sequence[BatchResult]) -> BatchResult:
        """Do it.

        Raises:
            RunFailed: If rows are lost, or a route does not know its own mind.
            Fatal: If no row can work.
        """
        if self.stop.is_set():
            raise RunStopping("the run is ending")
        failures: list[Failure] = []
        taken = [
            self._apply_route(name, batch.rows, failures) for name, batch in zip(self.upstream, batches, strict=False)
        ]
        forked = batches[-1].rows if self.has_fork else None
        if isinstance(self.step, Join):
            outcome = self.step.run_groups(group_by_lineage(forked, taken))
        else:
            outcome = self.step.run(rows := in_order(forked, taken))
            _check_no_rows_lost(rows, self.step, outcome)
            _assign_ids(outcome.rows, rows)
        outcome.failures += failures
        outcome.rows_in += len(failures)
        outcome.digest = results.digest_rows(outcome.rows)
        if (transaction := get_transaction()) and (outcome.failures or outcome.digest is None):
            transaction.write_on_commit = False  # to be made again: what failed may work then
        return outcome

    def _apply_route(self, source: str, rows: list[Row], failures: list[Failure]) -> list[Row]:
        """The rows that come from a step to this; those for which that cannot be said fail in the first they could."""
        if (route := self.routes.get(source)) is None:
            return rows
        first = self.step.name == route.targets[0]
        taken: list[Row] = []
        for row in rows:
            try:
                chosen = set(route.selector(row, route.targets))
                again = set(route.selector(row, route.targets)) if first else chosen  # each target asks for itself
            except Exception as error:
                if first:
                    failures.append(Failure(self.step.name, type(error).__name__, f"{error}", row, attempts=0))
                continue
            if chosen != again:
                raise RunFailed(
                    f"the route after `{source}` sends the same row ({row.origin}) to {_quoted_names(chosen)}, and "
                    f"when asked again to {_quoted_names(again)}: rows would be lost. Let it decide by the row alone; "
                    "to draw steps at random, use `sample_n_steps(…)`, which has a seed."
                )
            if self.step.name in chosen:
                taken.append(row)
        return taken


def _quoted_names(steps: Collection[str]) -> str:
    return ", ".join(f"`{step}`" for step in sorted(steps)) or "none"


def _check_no_rows_lost(rows: list[Row], step: Step, outcome: Outcome) -> None:
    """Make sure that every row came out or failed, where a step keeps its rows.

    Raises:
        RunFailed: If one did not.
    """
    if not step.keeps_rows:
        return
    made = [*(row.id for row in outcome.rows), *(failure.row.id for failure in outcome.failures)]
    if None in made:  # rows that do not say what they were made of can be counted
        lost = rows[len(made) :]
    else:
        known = {end for id in made if id for end in (id, id[:-1])}
        lost = [row for row in rows if row.id not in known]
    if lost:
        raise RunFailed(
            f"`{step.name}` lost rows: {len(rows):,} went in, {len(outcome.rows):,} came out, "
            f"{len(outcome.failures):,} failed, and {len(lost):,} did neither, such as that of {lost[0].origin}. "
            "What it makes of a row must pass `row.origin` on, `Row({…}, row.origin)`; a step that drops rows says "
            "`keeps_rows = False`, one made of a function `@step(…, keeps_rows=False)`."
        )


def _assign_ids(made: list[Row], batch: list[Row]) -> None:
    """Tell rows apart that do not say which of a batch they were made of, so that what comes of each can be joined."""
    nameless = [row for row in made if row.id is None]
    if nameless and (first := batch[0].id):
        place = f"{batch[0].origin}".partition("…")[0] + "…" + f"{batch[-1].origin}".rpartition("…")[2]
        for number, row in enumerate(nameless):
            row.origin = RowLineage(row.origin or place, (*first, UNKNOWN_PARENT, number))
