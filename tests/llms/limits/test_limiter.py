"""The limiter: who goes when. On a clock that jumps, so that a minute of a provider takes no time."""

import asyncio
import gc
import math
import random
import time
import weakref

import pytest

from llms.clients.errors import rate_limit_headers
from llms.errors import Fatal
from llms.limits.limiter import INITIAL_BACKOFF_S, Limiter, get_limiter
from llms.limits.rates import LIMIT_HEADERS, parse_limit, parse_remaining
from tests.support.virtual_time import Provider, lognormal, now, simulate, work


async def opened(limiter: Limiter) -> Limiter:
    """Past the first moments, in which little may go at once."""
    limiter._rates.learned.ready_at = -math.inf
    async with limiter.slot():
        return limiter


def test_nobody_goes_after_a_fatal_error_before_all_are_cancelled():
    async def main():
        limiter, sent = await opened(Limiter(1)), []

        async def one(number):
            async with limiter.slot():
                sent.append(number)
                await asyncio.sleep(1)
                raise Fatal("no credit")

        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                for number in range(3):
                    group.create_task(one(number))
        async with limiter.slot():
            return sent, limiter.in_flight

    assert simulate(main()) == ([0], 1)


def test_first_come_first_served():
    async def main():
        limiter, order = await opened(Limiter(3)), []

        async def one(number):
            async with limiter.slot():
                order.append(number)
                await asyncio.sleep(random.random())

        tasks = []
        for number in range(200):
            tasks.append(asyncio.create_task(one(number)))
            if number % 7 == 0:
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        assert order == list(range(200))
        assert limiter.counts.peak_in_flight == 3

    simulate(main())


def test_nobody_overtakes_who_waits():
    async def main():
        limiter, order = await opened(Limiter(1)), []

        async def one(number):
            async with limiter.slot():
                order.append(number)

        async with limiter.slot():
            waiting = asyncio.create_task(one(1))
            await asyncio.sleep(0)
        await one(2)  # a place is free, but it is promised
        await waiting
        assert order == [1, 2]

    simulate(main())


@pytest.mark.parametrize("seed", range(20))
def test_a_storm_of_cancellations_loses_no_place_and_leaks_none(seed):
    async def main():
        rng = random.Random(seed)
        limiter, inside, peak = await opened(Limiter(8)), 0, 0

        async def one():
            nonlocal inside, peak
            async with limiter.slot() as slot:
                inside += 1
                peak = max(peak, inside)
                try:
                    await asyncio.sleep(rng.random() / 100)
                    slot.on_success()
                finally:
                    inside -= 1

        tasks = [asyncio.create_task(one()) for _ in range(400)]
        while not all(task.done() for task in tasks):
            for task in rng.sample(tasks, 5):
                task.cancel()
            await asyncio.sleep(rng.choice([0, 0.001]))
        assert (limiter.in_flight, limiter.waiting, inside) == (0, 0, 0)
        assert peak == 8
        tasks = [asyncio.create_task(one()) for _ in range(50)]
        await asyncio.wait_for(asyncio.gather(*tasks), 10)  # all eight slots are there
        assert peak == 8

    simulate(main())


def test_who_is_cancelled_in_the_moment_its_turn_comes_passes_it_on():
    async def main():
        limiter = await opened(Limiter(1))

        async def one():
            async with limiter.slot():
                pass

        async with limiter.slot():
            first, second = asyncio.create_task(one()), asyncio.create_task(one())
            await asyncio.sleep(0)
        assert limiter.in_flight == 1  # promised to the first, which has not run yet
        first.cancel()
        await asyncio.wait_for(second, 1)
        await asyncio.wait([first])
        assert first.cancelled()
        assert limiter.in_flight == 0

    simulate(main())


def test_a_place_is_left_when_the_request_raises():
    async def main():
        limiter = Limiter(1)
        for _ in range(3):
            with pytest.raises(ValueError):
                async with limiter.slot():
                    raise ValueError
        assert limiter.in_flight == 0

    simulate(main())


def test_the_first_requests_are_spread_but_soon_all_are_out():
    async def main():
        limiter, provider = Limiter(500), Provider()
        seconds = await work(limiter, provider, 4000)
        assert provider.peak == 500
        assert sum(at < 0.2 for at in provider.arrivals) == 16
        assert sum(at < 0.35 for at in provider.arrivals) == 500
        assert seconds < 4000 / 500 * 0.52 + 0.35

    simulate(main())


def test_a_low_start_doubles_with_every_round_of_answers():
    async def main():
        limiter, provider = Limiter(500, initial=64), Provider()
        await work(limiter, provider, 4000)
        assert provider.peak == 500
        reached = next(change.seconds for change in limiter.history if change.limit == 500)
        assert 1.4 < reached < 2.4  # 64, 128, 256, 500
        assert [change.reason for change in limiter.history][:2] == ["start", "growth"]

    simulate(main())


def test_an_episode_is_one_cut_however_many_are_refused():
    async def main():
        limiter = await opened(Limiter(100))
        slots = [limiter.slot() for _ in range(100)]
        for slot in slots:
            await slot.__aenter__()
        for slot in slots[:50]:
            slot.on_throttled(1.0)
        assert limiter.limit == 80
        assert limiter.counts.episodes == 1
        await asyncio.sleep(0.5)
        for slot in slots[50:]:  # sent before the cut: the same weather
            slot.on_throttled(1.0)
        assert limiter.limit == 80
        assert (limiter.counts.episodes, limiter.counts.throttled) == (1, 100)
        for slot in slots:
            await slot.__aexit__(None)
        async with limiter.slot() as slot:  # sent after it: news
            slot.on_throttled(1.0)
        assert limiter.counts.episodes == 2

    simulate(main())


def test_retry_after_pauses_everybody_and_then_they_come_gently():
    async def main():
        limiter, entered = await opened(Limiter(100)), []

        async def one():
            async with limiter.slot() as slot:
                entered.append(now())
                await asyncio.sleep(0.1)
                slot.on_success()

        async with limiter.slot() as slot:
            slot.on_throttled(7.0)
            refused = now()
        await asyncio.gather(*(one() for _ in range(200)))
        assert entered[0] == pytest.approx(refused + 7.0, abs=0.01)
        assert sum(at < refused + 7.5 for at in entered) <= 10
        assert sum(at < refused + 9 for at in entered) > 30
        assert limiter.counts.seconds_paused == pytest.approx(7.0)

    simulate(main())


def test_a_later_refusal_extends_the_pause_and_a_shorter_one_does_not():
    async def main():
        limiter = await opened(Limiter(10))
        async with limiter.slot() as first, limiter.slot() as second, limiter.slot() as third:
            first.on_throttled(5.0)
            second.on_throttled(1.0)
            started = now()
            await asyncio.sleep(3)
            third.on_throttled(5.0)
        async with limiter.slot():
            assert now() - started == pytest.approx(8.0, abs=0.01)
        assert limiter.counts.seconds_paused == pytest.approx(8.0)

    simulate(main())


def test_refusals_that_do_not_say_how_long_pause_longer_each_time():
    async def main():
        limiter, waits = await opened(Limiter(10)), []
        for _ in range(9):
            started = now()
            async with limiter.slot() as slot:
                waits.append(now() - started)
                slot.on_throttled()
        assert waits[1:5] == pytest.approx([0.5, 1, 2, 4], abs=0.01)
        assert waits[-1] == pytest.approx(30, abs=0.01)

    simulate(main())


def test_bad_weather_pauses_growth_only():
    async def main():
        limiter = Limiter(500, initial=10)
        for _ in range(20):
            async with limiter.slot() as slot:
                slot.on_failure()
        assert limiter.limit == 10
        slots = [limiter.slot() for _ in range(10)]
        for slot in slots:
            await slot.__aenter__()
        slots[0].on_failure()
        slots[9].on_success(0.5)
        assert limiter.limit == 10
        await asyncio.sleep(2)
        slots[8].on_success(0.5)
        assert limiter.limit == 11
        assert limiter.counts.failed == 21

    simulate(main())


@pytest.mark.parametrize(("retry_after", "pause", "told"), [(59, 59, ""), (120, 120, "2 min"), (86400, 600, "24 h")])
def test_a_long_pause_has_an_end_and_is_told_once(retry_after, pause, told, caplog):
    async def main():
        key = ("https://user:secret@api.example.com/v1", 7, "m")
        limiter, provider_at = await opened(get_limiter(key)), now()

        async def refused():
            async with limiter.slot() as slot:
                await asyncio.sleep(0.01)
                slot.on_throttled(retry_after)

        await asyncio.gather(*(refused() for _ in range(20)))
        async with limiter.slot():
            return now() - provider_at

    with caplog.at_level("WARNING", "llms"):
        assert simulate(main()) == pytest.approx(pause, abs=2)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == bool(told)
    assert not told or lines[0].startswith(f"`m` at `api.example.com` asks to wait {told}: the next request goes at ")


@pytest.mark.parametrize("burst", [1, 10, 600], ids="burst{}".format)
@pytest.mark.parametrize("latency", [0.1, 0.5, 3.0], ids="{}s".format)
@pytest.mark.parametrize("retry_after", [0.1, 1.0, None], ids="retry-after-{}".format)
def test_a_rate_nobody_told_is_found(burst, latency, retry_after):
    async def main():
        provider = Provider(lambda: latency, per_second=10, burst=burst, retry_after=retry_after)
        limiter = Limiter(500)
        seconds = await work(limiter, provider, 1500)
        ideal = (1500 - burst) / 10 + latency
        print(f"share {ideal / seconds:.3f}, refused {len(provider.refused)}, {limiter.summary()}")
        # what is on its way when the first refusal comes is refused too: with a large burst, 4,000 a second for 20 ms
        assert len(provider.refused) < (90 if burst == 600 else 30)
        assert ideal / seconds > (0.6 if burst == 1 else 0.95)

    simulate(main())


def test_a_limit_on_requests_in_flight_is_found():
    async def main():
        provider = Provider(in_flight=64, trip=0.01)
        limiter = Limiter(500)
        seconds = await work(limiter, provider, 6000)
        print(f"share {6000 / 64 * 0.51 / seconds:.3f}, refused {len(provider.refused)}, {limiter.summary()}")
        assert len(provider.refused) < 0.02 * 6000
        assert 6000 / 64 * 0.51 / seconds > 0.75

    simulate(main())


def test_requests_per_minute_are_kept_in_every_minute():
    async def main():
        limiter, provider = Limiter(500, rpm=600), Provider()
        await work(limiter, provider, 1300)
        arrivals = provider.arrivals
        assert sum(at < arrivals[0] + 59.999 for at in arrivals) in (599, 600)
        for at, arrival in enumerate(arrivals):
            assert sum(each < arrival + 59.999 for each in arrivals[at:]) <= 602
            assert sum(each < arrival + 1 for each in arrivals[at : at + 50]) <= 13

    simulate(main())


@pytest.mark.parametrize("estimate, usage", [(100, 100), (100, 300), (300, 100), (None, 250), (0, 100)])
def test_tokens_per_minute_are_kept_whatever_was_estimated(estimate, usage):
    async def main():
        limiter, spent = Limiter(10, tpm=60_000), []

        async def one():
            async with limiter.slot(tokens=estimate) as slot:
                await asyncio.sleep(0.05)
                spent.append((now(), usage))
                slot.on_success(tokens=usage)

        started = now()
        await asyncio.gather(*(one() for _ in range(2000)))
        minutes = (now() - started) / 60
        assert 2000 * usage / 60_000 == pytest.approx(minutes, rel=0.05)
        assert sum(tokens for at, tokens in spent if at < 60) <= 60_000 + 11 * usage

    simulate(main())


def test_a_server_that_queues_is_not_given_more_than_helps():
    async def main():
        provider = Provider(slots=64)
        limiter = Limiter(500)
        seconds = await work(limiter, provider, 6000)
        print(seconds, limiter.summary())
        assert "queueing" in {change.reason for change in limiter.history}
        assert 64 <= limiter.history[1].limit <= 200
        assert seconds < 1.05 * 6000 / 64 * 0.5

    simulate(main())


def test_a_small_server_of_ones_own_is_found_from_a_low_start():
    async def main():
        provider = Provider(lambda: random.Random(len(provider.arrivals)).uniform(1, 3), slots=4)
        limiter = Limiter(500, initial=64)
        seconds = await work(limiter, provider, 500)
        print(seconds, limiter.summary())
        assert next(change.limit for change in limiter.history if change.reason == "queueing") <= 32
        assert provider.peak <= 128
        assert seconds < 1.1 * 500 / 4 * 2

    simulate(main())


@pytest.mark.slow
@pytest.mark.parametrize("every, cpu", [(None, 0.0), (0.012, 0.001)])
@pytest.mark.parametrize("slots, seconds", [(64, 0.5), (64, 3.0), (150, 0.5), (24, 1.0)])
def test_the_figures_of_a_server_that_queues(slots, seconds, every, cpu):
    async def main():
        provider, limiter, rows = Provider(lambda: seconds, slots=slots, trip=0.005), Limiter(500), 4000
        took = await work(limiter, provider, rows, every, cpu)
        print(f"p95 {provider.p95(rows // 4) / seconds:.2f}", took, limiter.summary())
        assert provider.p95(rows // 4) <= 2 * seconds  # the first were sent before one answer was there
        assert rows / slots * seconds / (took - (20 * every if every else 0.0)) > 0.95

    simulate(main())


def test_a_server_that_grows_is_given_more():
    async def main():
        provider, limiter = Provider(slots=32), Limiter(500)

        def grow():
            provider.free += [now()] * 96

        asyncio.get_running_loop().call_later(40, grow)
        took = await work(limiter, provider, 12_000)
        print(took, limiter.summary())
        assert took < 1.15 * (40 + (12_000 - 40 * 64) / 256)
        assert limiter.limit <= 384

    simulate(main())


@pytest.mark.slow
def test_a_server_that_was_slow_for_a_moment_is_used_in_full_again():
    async def main():
        quick, slow = 0.01, 12.0  # so slow that the limit falls to less than what asks alone
        provider = Provider(lambda: slow if len(provider.arrivals) > 8 and now() < 10 else quick)
        limiter = Limiter(500)
        await work(limiter, provider, 20_000, cpu=0.0005)
        print(limiter.summary())
        assert min(change.limit for change in limiter.history) <= 8
        assert limiter.limit > 100

    simulate(main())


@pytest.mark.slow
def test_answers_that_become_longer_are_no_queue():
    async def main():
        provider, limiter = Provider(lambda: 0.5 if now() < 8 else 3.0), Limiter(500)
        took = await work(limiter, provider, 20_000)
        print(took, limiter.summary())
        assert limiter.limit == 500
        assert took < 1.25 * (8 + (20_000 - 8 * 1000) / 500 * 3)

    simulate(main())


@pytest.mark.slow
@pytest.mark.parametrize("every, cpu, most", [(None, 0.0, 1.035), (0.012, 0.0, 1.01), (None, 0.002, 1.02)])
def test_a_server_that_does_neither_is_used_in_full(every, cpu, most):
    async def seconds(limiter):
        return await work(limiter, Provider(trip=0.002), 10_000, every, cpu)

    async def bare():
        limiter = Limiter(500)
        limiter._rates.learned.ready_at, limiter._concurrency.on_success = -math.inf, lambda *_: None
        return await seconds(limiter)

    async def ours():
        return await seconds(Limiter(500))

    ratio = simulate(ours()) / simulate(bare())
    print(ratio)
    assert ratio < most


@pytest.mark.slow
@pytest.mark.parametrize("start, every", [(None, None), (None, 0.012), (64, None)])
@pytest.mark.parametrize("seed", range(4))
def test_a_long_tail_is_not_taken_for_a_queue(seed, every, start):
    async def main():
        rng = random.Random(seed)
        limiter = Limiter(500, initial=start)
        await work(limiter, Provider(lambda: rng.lognormvariate(-1.2, 1.0)), 10_000, every)
        assert {change.reason for change in limiter.history} <= {"start", "growth"}
        assert limiter.limit == 500

    simulate(main())


TABLE = {
    "near": {},
    "busy": {"trip": 0.05},
    "far": {"trip": 0.15},
    "silent": {"retry_after": None},
    "headers": {"headers": True},
    "far headers": {"headers": True, "trip": 0.15},
    "burst": {"burst": 600},
    "burst headers": {"burst": 600, "headers": True},
}
"""Providers that take 600 requests a minute."""


@pytest.mark.parametrize("every", [None, 0.012], ids="every-{}".format)
@pytest.mark.parametrize("name", TABLE)
def test_the_figures_of_a_provider_that_refuses(name, every):
    async def main():
        weather = {"per_second": 10, "burst": 10, "trip": 0.005} | TABLE[name]
        provider, limiter = Provider(**weather), Limiter(500)
        await work(limiter, provider, 1500 if weather["burst"] == 600 else 900, every)
        print(f"share {provider.share():.1%}, refused {len(provider.refused)}", limiter.summary())
        assert provider.share() >= 0.95
        assert provider.waste < 0.02

    simulate(main())


@pytest.mark.parametrize("latency", [0.05, 5.0], ids="{}s".format)
@pytest.mark.parametrize("trip", [0.002, 0.05], ids="trip{}".format)
@pytest.mark.parametrize("burst", [10, 100, 1000], ids="burst{}".format)
@pytest.mark.parametrize("rpm", [60, 600, 3000], ids="rpm{}".format)
def test_any_rate_is_found_with_few_refusals(rpm, burst, trip, latency):
    async def main():
        provider = Provider(lognormal(1, latency), per_second=rpm / 60, burst=burst, trip=trip)
        limiter = Limiter(500)
        await work(limiter, provider, burst + max(200, 80 * rpm // 60), every=0.012)
        print(f"share {provider.share():.1%}, refused {len(provider.refused)}", limiter.summary())
        assert provider.share() > 0.9
        assert len(provider.refused) < 35 + 5500 * trip * (burst > 16)  # those on their way when the bucket ran dry

    simulate(main())


@pytest.mark.parametrize("factor", [0.5, 2])
def test_a_rate_that_changes_is_found_again(factor):
    async def main():
        provider, limiter = Provider(per_second=10), Limiter(500)

        def change():
            provider.per_second = 10 * factor

        asyncio.get_running_loop().call_later(60, change)
        await work(limiter, provider, 3000)
        print(f"refused {len(provider.refused)}", limiter.summary())
        later = [at for at in provider.accepted if at > 180]
        assert len(later) / (later[-1] - 180) / (10 * factor) > 0.9
        assert provider.waste < 0.02

    simulate(main())


def test_headers_of_a_bucket_keep_us_from_being_refused():
    async def main():
        provider = Provider(per_second=10, burst=600)
        limiter = Limiter(500)

        async def one():
            async with limiter.slot() as slot:
                answered = await provider.ask()
                left, whole = provider.level, provider.burst
                slot.on_success(
                    headers={
                        "x-ratelimit-limit-requests": f"{whole}",
                        "x-ratelimit-remaining-requests": f"{math.floor(left)}",
                        "x-ratelimit-reset-requests": f"{(whole - left) / 10:.3f}s",
                    }
                )
                assert answered

        started = now()
        await asyncio.gather(*(one() for _ in range(1500)))
        assert provider.refused == []
        assert 900 / 10 / (now() - started) > 0.95

    simulate(main())


def test_headers_in_every_spelling():
    names = {"limit": "600", "remaining": "540"}
    for reset in ("6s", "6000ms", "0m6s", "6", "6.0"):
        headers = {f"x-ratelimit-{name}-requests": value for name, value in (names | {"reset": reset}).items()}
        assert parse_remaining(headers, "requests") == pytest.approx((10.0, 540.0, 600.0))
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 6))
    headers = {f"anthropic-ratelimit-tokens-{name}": value for name, value in (names | {"reset": date}).items()}
    assert parse_remaining(headers, "tokens") == pytest.approx((10.0, 540.0, 600.0), rel=0.3)
    for reset in ("soon", "", "-1", "nan", "inf"):
        headers = {f"x-ratelimit-{name}-requests": value for name, value in (names | {"reset": reset}).items()}
        assert parse_remaining(headers, "requests") is None
    assert parse_remaining({}, "requests") is None


@pytest.mark.parametrize(
    ("name", "whole", "window"),
    [
        ("x-ratelimit-limit-req-minute", 60, 60.0),
        ("x-trial-endpoint-call-limit", 20, 60.0),
        ("x-ratelimit-limit", 10, 1.0),
        ("x-ratelimit-limit", 1, 1.0),
    ],
)
def test_a_limit_told_without_what_is_left_is_used_in_full_and_never_passed(name, whole, window):
    class Counting(Provider):
        """Begins to count anew with every window of the clock; a refusal does not say for how long."""

        def _refuses(self) -> bool:
            return sum(at // window == now() // window for at in self.accepted[-whole:]) == whole

        def _headers(self) -> dict[str, str]:
            return {name: f"{whole}", "x-ratelimit-reset": "0"}

    async def main():
        provider = Counting(lambda: 2.0, per_second=whole / window, retry_after=None)
        await work(Limiter(500), provider, round(300 * whole / window))
        assert max(provider.refused) < 60  # what was sent at once, before an answer told the limit
        assert provider.share(90) > 0.97

    simulate(main())


def test_limits_are_per_their_own_window():
    assert parse_limit({"x-ratelimit-limit-req-minute": "30"}, "requests") == (0.5, 60.0)
    assert parse_limit({"x-ratelimit-limit": "30"}, "requests") == (30.0, 1.0)
    assert parse_limit({"x-ratelimit-limit": "1", "x-ratelimit-limit-dynamic": "2.5"}, "requests") == (2.5, 1.0)
    assert parse_limit({"x-ratelimit-limit-tokens-minute": "6000"}, "tokens") == (100.0, 60.0)
    assert parse_limit({"x-tokenlimit-limit": "6000"}, "tokens") == (6000.0, 1.0)
    for kind, names in LIMIT_HEADERS.items():
        for name, _ in names:
            assert name in rate_limit_headers({name.title(): "5"}), f"`{name}` is not handed on"
            for nonsense in ("", "0", "-1", "nan", "inf", "100, 100;w=60"):
                assert parse_limit({name: nonsense}, kind) == (0.0, 0.0)


def test_history_and_counts_are_plain_data_and_bounded():
    async def main():
        limiter = await opened(Limiter(4))
        for _ in range(3000):
            async with limiter.slot() as slot:
                slot.on_throttled(0.01)
        summary = limiter.summary()
        assert len(summary["history"]) <= 1000
        assert summary["admitted"] == 3001
        assert summary["throttled"] == summary["episodes"] == 3000
        assert summary["peak_in_flight"] == 1
        last = summary["history"][-1]
        assert last["limit"] >= 1 and last["reason"] in ("throttled", "growth", "start")

    simulate(main())


def test_one_limiter_per_loop_key_and_settings():
    async def main():
        limiter = get_limiter("a", max_in_flight=5)
        assert get_limiter("a", max_in_flight=5) is limiter
        assert get_limiter("b", max_in_flight=5) is not limiter
        assert get_limiter("a", max_in_flight=6) is not limiter
        return limiter

    first, second = simulate(main()), simulate(main())
    assert first is not second


def test_a_loop_that_is_gone_takes_its_limiters_with_it():
    async def main():
        limiter = get_limiter("a", max_in_flight=1)
        slots = [asyncio.create_task(limiter.slot().__aenter__()) for _ in range(3)]
        await asyncio.sleep(0.01)
        for slot in slots:
            slot.cancel()
        return weakref.ref(asyncio.get_running_loop()), weakref.ref(limiter)

    async def next_one():
        get_limiter("a", max_in_flight=1)

    references = simulate(main())
    simulate(next_one())
    gc.collect()
    assert [reference() for reference in references] == [None, None]


def test_the_cost_of_a_place_does_not_depend_on_how_many_wait():
    async def seconds(waiting: int) -> float:
        limiter, left = await opened(Limiter(64)), 10_000

        async def worker():
            nonlocal left
            while left > 0:
                left -= 1
                async with limiter.slot() as slot:
                    await asyncio.sleep(0)
                    slot.on_success(0.5)

        started = time.process_time()
        await asyncio.gather(*(worker() for _ in range(64 + waiting)))
        return time.process_time() - started

    few, many = (min(simulate(seconds(waiting)) for _ in range(3)) for waiting in (64, 1024))
    assert many < 2 * few + 0.1
    assert many / 10_000 < 0.0002


@pytest.mark.parametrize("said", [0.0, 0.01, None])
def test_a_provider_that_refuses_again_and_again_is_asked_ever_more_rarely(said):
    """Whatever it says: what it says is believed once."""

    async def main():
        limiter, asked = await opened(Limiter(1)), []
        for _ in range(1100):
            async with limiter.slot() as slot:
                asked.append(now())
                slot.on_throttled(said)
        gaps = [later - earlier for earlier, later in zip(asked, asked[1:], strict=False)]
        first = INITIAL_BACKOFF_S if said is None else said
        assert gaps[:7] == pytest.approx([first, 1, 2, 4, 8, 16, 30], abs=0.2) and max(gaps) == pytest.approx(30, abs=1)
        async with limiter.slot() as slot:
            slot.on_success()
        async with limiter.slot() as slot:  # what it says is believed again
            slot.on_throttled(0.25)
        begun = now()
        async with limiter.slot():
            assert now() - begun == pytest.approx(0.25, abs=0.01)

    simulate(main())


def test_a_longer_pause_than_our_own_is_kept_to():
    async def main():
        limiter, asked = await opened(Limiter(1)), []
        for _ in range(4):
            async with limiter.slot() as slot:
                asked.append(now())
                slot.on_throttled(7.0)
        assert [later - earlier for earlier, later in zip(asked, asked[1:], strict=False)] == pytest.approx([7] * 3)

    simulate(main())


def test_a_server_that_is_down_for_a_while_is_left_alone_by_all():
    async def main():
        limiter = await opened(Limiter(5))
        async with limiter.slot() as slot:
            slot.on_failure()
        async with limiter.slot() as slot:  # weather that does not say how long it lasts holds up nobody
            assert now() < 1
            slot.on_failure(20.0)
        begun = now()

        async def one():
            async with limiter.slot():
                return now() - begun

        waited = await asyncio.gather(*(one() for _ in range(5)))
        assert min(waited) >= 20 and limiter.counts.seconds_paused == pytest.approx(20)

    simulate(main())
