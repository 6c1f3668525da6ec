"""What flow runs have spent, attempt by attempt, in the file of the answers that it bought."""

import time
from collections.abc import Mapping
from typing import NamedTuple

from llms.store import database
from llms.typing import ModelUsage, Usage

TOTALS = (
    "requests",
    "unanswered",
    "input_tokens",
    "output_tokens",
    "cache_read_input_tokens",
    "reasoning_output_tokens",
    "cache_creation_input_tokens",
    "cost",
    "seconds",
)
"""Columns that are summed; a cost that is not known makes its sum so."""

_SUMS = ", ".join(f"{each} = {each} + excluded.{each}" for each in TOTALS)
_ADD = f"""
    INSERT INTO spending (run, attempt, step, model, updated, {", ".join(TOTALS)})
    VALUES (?, ?, ?, ?, ?, {", ".join("?" * len(TOTALS))})
    ON CONFLICT DO UPDATE SET updated = excluded.updated, {_SUMS}
"""
_SELECT = f"SELECT attempt, step, model, {', '.join(TOTALS)} FROM spending WHERE run = ? ORDER BY attempt"


class Attempt(NamedTuple):
    """One attempt of a run.

    Attributes:
        run: The id of the run.
        number: The number of the attempt, from 1; 0 for a preview of it.
    """

    run: str
    number: int


def record(attempt: Attempt, step: str, model: str, used: ModelUsage) -> None:
    """Add usage to an attempt, with the next commit: before any answer that is stored later.

    Raises:
        StoreError: If the store cannot be opened.
    """
    usage = used.usage
    totals = (
        used.requests,
        used.unanswered,
        usage.input_tokens,
        usage.output_tokens,
        usage.cache_read_input_tokens,
        usage.reasoning_output_tokens,
        usage.cache_creation_input_tokens,
        used.cost,
        used.seconds,
    )
    database.enqueue(_ADD, [(*attempt, step, model, time.time(), *totals)])


def read(run: str) -> dict[int, Mapping[tuple[str, str], ModelUsage]]:
    """Return what each attempt of a run has spent, by its number and then by step and model.

    Raises:
        StoreError: If the store cannot be read.
    """
    database.flush()
    attempts: dict[int, dict[tuple[str, str], ModelUsage]] = {}
    for number, step, model, requests, unanswered, *tokens, cost, seconds in database.query(_SELECT, (run,)):
        used = ModelUsage(requests, 0, Usage(*tokens), cost, seconds, unanswered)
        attempts.setdefault(number, {})[step, model] = used
    return dict(attempts)
