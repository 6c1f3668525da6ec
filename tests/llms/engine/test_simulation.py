"""The engine as a whole, on a clock that jumps, in weather and with crashes drawn from a seed.

`python -m tests.support.simulation 5000` tries as many seeds, and tells how many a minute.
"""

from collections import Counter
from dataclasses import asdict

import pytest

from llms.engine import batch
from llms.limits import budget
from tests.support import simulation

SEEDS_PER_TEST = 50


@pytest.mark.parametrize("first", range(0, 600, SEEDS_PER_TEST))
def test_nothing_is_lost_paid_twice_or_miscounted_and_every_row_ends(first):
    total = Counter[str]()
    for seed in range(first, first + SEEDS_PER_TEST):
        total.update(asdict(simulation.run(seed)))
    assert total["crashes"] > 5 and total["answered"] > 200 and total["failed"] > 10, "the weather is too good"


def test_a_seed_says_the_same_twice():
    assert [simulation.run(seed) for seed in range(20)] == [simulation.run(seed) for seed in range(20)]


def fails(first: int = 0, count: int = 300) -> bool:
    try:
        for seed in range(first, first + count):
            simulation.run(seed)
    except AssertionError:
        return True
    return False


def test_it_notices_an_answer_that_is_not_counted(monkeypatch):
    real, calls = budget.Reservation.charge, iter(range(10**6))
    monkeypatch.setattr(budget.Reservation, "charge", lambda *args, **kwargs: next(calls) % 7 and real(*args, **kwargs))
    assert fails()


def test_it_notices_a_request_that_is_sent_twice(monkeypatch):
    """As if equal requests in flight did not know of each other."""

    async def alone(llm, lookup, claims, index):
        return lookup.merge_cached(index, await batch._generate_missing(llm, lookup, index))

    monkeypatch.setattr(batch, "_single_flight", alone)
    assert fails()


def test_it_notices_an_answer_that_is_acknowledged_before_it_is_durable(monkeypatch):
    real = simulation.MemoryStore._enqueue

    def hasty(self, answers, done, used):
        real(self, answers, None, used)
        if done:
            done.set_result(None)

    monkeypatch.setattr(simulation.MemoryStore, "_enqueue", hasty)
    assert fails()
