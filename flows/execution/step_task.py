"""Code of a task run: one step on one batch, small and picklable, so that it can be sent to another process."""

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from prefect.results import get_result_store
from prefect.transactions import get_transaction

from flows import results
from flows.errors import RunFailed
from flows.results.storage import check_records
from flows.settings.step_parameters import get_llm
from tasks import Join, Step
from tasks.dag import Route
from tasks.join import group_by_lineage, sort_by_lineage
from tasks.typing import UNKNOWN_PARENT, BatchResult, Failure, Row, RowLineage


class RunStopping(Exception):
    """Raised in a batch that starts while the run is shutting down."""


class StopEvent(threading.Event):
    """Signals shutdown to batches not yet started, in this process only."""

    def __reduce__(self) -> Any:
        return (StopEvent, ())


@dataclass
class StepTask:
    """Runs one step on one batch, after applying routes.

    Attributes:
        step: The step.
        upstream: Names of the steps its batches come from, in that order.
        has_fork: Whether the last batch is that of the step where branches fork: a join groups by its rows, and other
            steps after several branches keep their order.
        routes: Routes to the step, by the name of the step they come from.
        stop: Set when the run is shutting down.
    """

    step: Step
    upstream: list[str]
    has_fork: bool
    routes: Mapping[str, Route]
    stop: StopEvent

    @cached_property
    def cache_identity(self) -> str | None:
        """Hash of all that determines the result besides the batches; `None` if that cannot be hashed."""
        return results.step_identity(self.step, self.upstream, self.routes.values())

    @property
    def task_options(self) -> dict[str, Any]:
        """Options of the Prefect task: results are persisted under a key of everything that determines them."""
        if self.cache_identity is None:
            return {}
        llm = get_llm(self.step)
        use_cache = self.step.use_cache and (llm is None or llm.use_cache)
        return {
            "persist_result": True,
            "cache_key_fn": self._cache_key,
            "refresh_cache": None if use_cache else True,
            "result_serializer": results.BatchResultSerializer(),
            "cache_result_in_memory": False,  # it would keep the rows alive
        }

    def _cache_key(self, _: Any, parameters: Mapping[str, Any]) -> str | None:
        check_records(get_result_store())  # here, because Prefect asks for the key just before it reads the record
        return results.result_key(self.step, f"{self.cache_identity}", parameters["batches"])

    def __call__(self, batches: Sequence[BatchResult]) -> BatchResult:
        """Run the step on a batch of each upstream step.

        Raises:
            RunStopping: If the run is shutting down.
            RunFailed: If rows are lost, or a route is not deterministic.
            Fatal: If no row can work.
        """
        if self.stop.is_set():
            raise RunStopping("the run is ending")
        failures: list[Failure] = []
        inputs = [
            self._apply_route(name, batch.rows, failures) for name, batch in zip(self.upstream, batches, strict=False)
        ]
        fork_rows = batches[-1].rows if self.has_fork else None
        if isinstance(self.step, Join):
            result = self.step.run_groups(group_by_lineage(fork_rows, inputs))
        else:
            result = self.step.run(rows := sort_by_lineage(fork_rows, inputs))
            _check_no_rows_lost(rows, self.step, result)
            _assign_ids(result.rows, rows)
        result.failures += failures
        result.rows_in += len(failures)
        result.digest = results.digest_rows(result.rows)
        if (transaction := get_transaction()) and (result.failures or result.digest is None):
            transaction.write_on_commit = False  # not cached: rows that failed may succeed next time
        return result

    def _apply_route(self, source: str, rows: list[Row], failures: list[Failure]) -> list[Row]:
        """Return the rows routed to this step; those whose route raises fail in the route's first target."""
        if (route := self.routes.get(source)) is None:
            return rows
        is_first = self.step.name == route.targets[0]
        routed: list[Row] = []
        for row in rows:
            try:
                chosen = set(route.selector(row, route.targets))
                again = set(route.selector(row, route.targets)) if is_first else chosen  # each target routes anew
            except Exception as error:
                if is_first:
                    failures.append(Failure(self.step.name, type(error).__name__, f"{error}", row, attempts=0))
                continue
            if chosen != again:
                raise RunFailed(
                    f"the route after `{source}` sends the same row ({row.origin}) to {_quoted_names(chosen)}, and "
                    f"when asked again to {_quoted_names(again)}: rows would be lost. Let it decide by the row alone; "
                    "to draw steps at random, use `sample_n_steps(…)`, which has a seed."
                )
            if self.step.name in chosen:
                routed.append(row)
        return routed


def _quoted_names(steps: Collection[str]) -> str:
    return ", ".join(f"`{step}`" for step in sorted(steps)) or "none"


def _check_no_rows_lost(rows: list[Row], step: Step, result: BatchResult) -> None:
    """Check that every row came out or failed, unless the step may drop rows.

    Raises:
        RunFailed: If one did neither.
    """
    if not step.keeps_rows:
        return
    ids = [*(row.id for row in result.rows), *(failure.row.id for failure in result.failures)]
    if None in ids:  # rows of unknown lineage can only be counted
        lost = rows[len(ids) :]
    else:
        accounted = {parent for id in ids if id for parent in (id, id[:-1])}
        lost = [row for row in rows if row.id not in accounted]
    if lost:
        raise RunFailed(
            f"`{step.name}` lost rows: {len(rows):,} went in, {len(result.rows):,} came out, "
            f"{len(result.failures):,} failed, and {len(lost):,} did neither, such as that of {lost[0].origin}. "
            "What it makes of a row must pass `row.origin` on, `Row({…}, row.origin)`; a step that drops rows says "
            "`keeps_rows = False`, one made of a function `@step(…, keeps_rows=False)`."
        )


def _assign_ids(rows: list[Row], batch: list[Row]) -> None:
    """Give rows of unknown lineage ids derived from the batch, so that their descendants can be joined."""
    without_id = [row for row in rows if row.id is None]
    if without_id and (first := batch[0].id):
        span = f"{batch[0].origin}".partition("…")[0] + "…" + f"{batch[-1].origin}".rpartition("…")[2]
        for number, row in enumerate(without_id):
            row.origin = RowLineage(row.origin or span, (*first, UNKNOWN_PARENT, number))
