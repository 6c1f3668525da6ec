"""Rows, requests and bad weather: what a run asks of a provider, and what is left when it did not answer.

The provider of the benchmarks runs in a process of its own and counts; nothing here is timed.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import Distiset, Pipeline, RunFailed
from llms import Fatal, OpenAILLM, Transient
from llms.engine.request import MAX_ATTEMPTS
from llms.typing import ChatType
from tasks import LoadDataFromDicts, TextGeneration
from tests.benchmarks.provider import Provider, running

SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
BAD_WEATHER = {"errors": 0.05, "resets": 0.02, "hangs": 0.01, "malformed": 0.02, "truncated": 0.02}


@pytest.fixture(scope="module")
def started() -> Iterator[Provider]:
    """One provider for all tests here."""
    with running() as provider:
        yield provider


@pytest.fixture
def provider(started: Provider) -> Provider:
    """The provider, on a calm day, that nobody has asked yet."""
    started.reset()
    return started


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for better weather is soon over: the part of the pause that is drawn is small."""
    monkeypatch.setattr(random, "uniform", lambda low, high: low / 50)


def model(provider: Provider, **fields: Any) -> OpenAILLM:
    return OpenAILLM(**{"model": "m", "base_url": provider.url, "api_key": "k"} | fields)


def chats(count: int) -> list[ChatType]:
    return [[{"role": "user", "content": f"question {number}"}] for number in range(count)]


def questions(count: int, *more: str) -> list[dict[str, str]]:
    return [{"instruction": text} for text in [*(f"question {number}" for number in range(count)), *more]]


def run(rows: list[dict[str, str]], llm: OpenAILLM, output: Path | None = None, **fields: Any) -> Distiset:
    with Pipeline(name="engine") as pipeline:
        LoadDataFromDicts(data=rows) >> TextGeneration(llm=llm, **fields)
    return pipeline.run(output=output)


def once(rows: list[dict[str, str]]) -> Counter[str]:
    """Each row's prompt, asked one time."""
    return Counter(row["instruction"] for row in rows)


# --- bad weather ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("prefect_server", "short_pauses")
@pytest.mark.slow
def test_bad_weather_loses_no_row_and_no_answer_is_paid_twice(provider: Provider) -> None:
    provider.reset(**BAD_WEATHER)
    rows = questions(300)
    made = run(rows, model(provider, timeout=5))
    assert made.summary.rows == 300 and made.errors.num_rows == 0
    assert made["default"]["train"]["instruction"] == [row["instruction"] for row in rows]
    assert made["default"]["train"]["generation"] == [f"The answer to {row['instruction']}." for row in rows]
    seen = provider.stats()
    assert {"500", "reset", "gone", "malformed", "truncated"} < seen["status"].keys()  # there was weather
    assert seen["answered"] == 300 and seen["repeats"] == 0
    assert max(provider.asked().values()) <= MAX_ATTEMPTS


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize("kind", ["errors", "resets", "malformed", "truncated"])
def test_weather_that_does_not_pass_is_recorded_after_so_many_attempts(kind: str, provider: Provider) -> None:
    provider.reset(**{kind: 1.0})
    outputs = model(provider).generate_outputs(chats(3))
    for output in outputs:
        assert list(output) == [None] and isinstance(output.error, Transient)
        assert output.attempts == output.error.attempts == MAX_ATTEMPTS
        assert provider.url in str(output.error)
    assert set(provider.asked().values()) == {MAX_ATTEMPTS}


@pytest.mark.usefixtures("short_pauses")
def test_what_was_answered_badly_is_not_in_the_store(provider: Provider) -> None:
    provider.reset(malformed=0.5, truncated=0.5)
    assert all(output.error for output in model(provider).generate_outputs(chats(3)))
    provider.reset()
    outputs = model(provider).generate_outputs(chats(3))
    assert not any(output.error or output.cached for output in outputs)
    assert provider.stats()["requests"] == 3


def test_an_answer_that_is_too_long_is_an_answer_and_paid_once(provider: Provider) -> None:
    provider.reset(length=1.0)
    outputs = model(provider).generate_outputs(chats(5))
    assert all(output.finish_reasons == ["length"] and output[0] and not output.error for output in outputs)
    assert provider.stats()["requests"] == 5
    assert all(output.cached for output in model(provider).generate_outputs(chats(5)))
    assert provider.stats()["requests"] == 5


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [False, True])
def test_being_refused_loses_no_row_and_costs_no_attempt(headers: bool, provider: Provider) -> None:
    provider.reset(rpm=6000, burst=5, retry_after=0.05, headers=headers)
    outputs = model(provider).generate_outputs(chats(200))
    seen = provider.stats()
    assert not any(output.error for output in outputs)
    assert headers or seen["refused"] > 0
    assert seen["answered"] == 200 and seen["repeats"] == 0
    assert seen["requests"] == 200 + seen["refused"] == sum(output.attempts for output in outputs)


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.slow
def test_refusals_and_bad_weather_together_lose_no_row(provider: Provider) -> None:
    provider.reset(rpm=6000, burst=5, retry_after=0.05, **BAD_WEATHER)
    outputs = model(provider, timeout=5).generate_outputs(chats(200))
    assert not any(output.error for output in outputs) and provider.stats()["repeats"] == 0


# --- rows that fail ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_poisoned_row_costs_one_row_and_is_asked_again_by_the_same_command(
    provider: Provider, tmp_path: Path
) -> None:
    provider.reset(poison="poison")
    rows = questions(99)
    rows.insert(41, {"instruction": "some poison"})
    made = run(rows, model(provider), tmp_path / "out")
    assert made.summary.rows == 99
    [error] = made.errors
    assert (error["step"], error["error"], error["attempts"], error["origin"]) == (
        "text_generation",
        "Rejected",
        1,
        "data[41]",
    )
    assert "answered 400: this prompt is not allowed" in error["message"]
    assert json.loads(error["row"]) == {"instruction": "some poison"}
    assert provider.asked() == once(rows)

    again = run(rows, model(provider), tmp_path / "out")
    assert again.summary.rows == 99 and again.errors.num_rows == 1
    assert provider.asked() == once(rows) + Counter({"some poison": 1})

    provider.reset()  # the provider has changed its mind
    last = run(rows, model(provider), tmp_path / "out")
    assert last["default"]["train"]["instruction"] == [row["instruction"] for row in rows]
    assert last.errors.num_rows == 0 and provider.asked() == {"some poison": 1}
    assert last.summary.steps["text_generation"].models["m"].requests == 1

    run(rows, model(provider), tmp_path / "out")
    assert provider.asked() == {"some poison": 1}


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_run_that_lost_too_many_rows_is_finished_by_the_same_command(provider: Provider, tmp_path: Path) -> None:
    provider.reset(poison="poison")
    rows = questions(40, *(f"poison {number}" for number in range(40)))
    with pytest.raises(RunFailed, match="rows failed in `text_generation`.*this prompt is not allowed"):
        run(rows, model(provider), tmp_path / "out")
    answered = {each.prompt for each in provider.log() if each.status == "200"}
    provider.reset()
    assert run(rows, model(provider), tmp_path / "out").summary.rows == 80
    assert provider.asked() == Counter(row["instruction"] for row in rows if row["instruction"] not in answered)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_no_credit_stops_at_once_with_the_cure_and_what_was_paid_is_kept(provider: Provider, tmp_path: Path) -> None:
    provider.reset(quota=50, latency=0.05)
    rows, in_flight = questions(2000), 10
    with pytest.raises(Fatal, match="answered 429: you have no credit left") as error:
        run(rows, model(provider, max_concurrency=in_flight), tmp_path / "out")
    assert error.value.code == "insufficient_quota"
    paid = [each.prompt for each in provider.log() if each.status == "200"]
    seen = provider.stats()
    assert 50 <= len(paid) < 50 + in_flight and seen["repeats"] == 0
    assert seen["requests"] < 300
    assert not (tmp_path / "out").exists()

    provider.reset()
    assert run(rows, model(provider), tmp_path / "out").summary.rows == 2000
    asked, before = provider.asked(), set(paid)
    assert set(asked.values()) == {1} and asked.keys() | before == once(rows).keys()
    assert len(asked.keys() & before) <= in_flight  # in flight when it stopped: they may not have been read


# --- what is asked again ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(
    ("change", "more"),
    [
        ({"model": "other"}, {}),
        ({"base_url": "/v2"}, {}),
        ({"generation_kwargs": {"temperature": 0.5}}, {}),
        ({"structured_output": {"format": "json", "schema": SCHEMA}}, {}),
        ({}, {"system_prompt": "Be brief."}),
        ({}, {"template": "Say: {{ instruction }}"}),
    ],
    ids=["model", "base_url", "option", "schema", "system prompt", "template"],
)
def test_what_changes_the_answer_has_every_row_asked_again_once(
    change: dict[str, Any], more: dict[str, Any], provider: Provider
) -> None:
    rows = questions(12)
    run(rows, model(provider))
    if "base_url" in change:
        change = {"base_url": provider.url.replace("/v1", change["base_url"])}
    for requests in (12, 0):
        provider.reset()
        made = run(rows, model(provider, **change), **more)
        assert made.summary.rows == 12 and provider.stats()["requests"] == requests
    run(rows, model(provider))  # and what was asked first is still there
    assert provider.stats()["requests"] == 0


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(
    "change", [{"api_key": "other"}, {"timeout": 7}, {"max_concurrency": 3}, {"requests_per_minute": 6000}]
)
def test_what_does_not_change_the_answer_has_nothing_asked_again(change: dict[str, Any], provider: Provider) -> None:
    rows = questions(12)
    run(rows, model(provider))
    provider.reset()
    assert run(rows, model(provider, **change)).summary.steps["text_generation"].models["m"].cached == 12
    assert provider.stats()["requests"] == 0


@pytest.mark.usefixtures("prefect_server")
def test_only_rows_that_are_new_or_changed_are_asked(provider: Provider) -> None:
    rows = questions(12)
    run(rows, model(provider))
    provider.reset()
    rows[3] = {"instruction": "another question"}
    rows.append({"instruction": "one more", "system_prompt": "Be brief."})
    rows[5]["system_prompt"] = ""
    rows[7]["system_prompt"] = "Be brief."
    rows.append({"instruction": "question 0"})  # the same as before, in another place
    rows = [{"system_prompt": "", **row} for row in reversed(rows)]
    assert run(rows, model(provider)).summary.rows == 14
    assert provider.asked() == {"another question": 1, "one more": 1, "question 7": 1}


@pytest.mark.usefixtures("prefect_server")
def test_a_row_that_comes_twice_is_asked_once_whatever_batch_it_is_in(provider: Provider) -> None:
    provider.reset(latency=0.05)
    assert run(questions(3) * 10, model(provider)).summary.rows == 30
    assert provider.asked() == {f"question {number}": 1 for number in range(3)}
