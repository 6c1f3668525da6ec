"""Whole pipelines: what steps cost, whether they overlap, what a kill or an edit makes them ask again.

    python -m tests.benchmarks.pipelines three-steps judge branch edit
    python -m tests.benchmarks.pipelines kill kill-server kill-worker

Every run is a process of its own; what should come out stands behind each figure in parentheses. The models of
`three-steps` answer at once, in that process; all others are a provider that counts what it is asked.
"""

import argparse
import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prefect.settings import PREFECT_API_URL, PREFECT_HOME, PREFECT_LOCAL_STORAGE_PATH, temporary_settings

from flows import Pipeline
from llms import store
from tasks import GroupColumns, LoadDataFromDicts, Step, TextGeneration
from tasks.typing import Row
from tests.benchmarks.kills import kill, kill_server, kill_worker
from tests.benchmarks.provider import Seen, running
from tests.benchmarks.runs import Place, Prefect, asks, digest, remote, run

LATENCY = 0.5


def cost(place: Place, rows: int) -> str:
    """Order, memory and CPU of three steps, for a tenth of the rows and for all."""
    figures: dict[int, dict[str, Any]] = {}
    for each in (rows // 10, rows):
        place.fresh()
        before = place.prefect.cpu()
        figures[each] = run(place.given("three-steps", each))
        place.prefect.idle()
        figures[each]["server"] = place.prefect.cpu() - before

    def said(each: int) -> str:
        took = figures[each]
        order = "in order" if took["in_order"] else "NOT IN ORDER"
        client, server = (1000 * took[name] / each / 3 for name in ("cpu", "server"))
        return (
            f"{took['rows']} of {each} rows {order}, {took['peak']:.0f} MB, {each / took['seconds']:.0f} rows/s, CPU "
            f"per row and step {client:.3f} ms (<= 1), of Prefect's server {server:.3f} ms"
        )

    more = figures[rows]["peak"] / figures[rows // 10]["peak"] - 1
    return f"{said(rows // 10)}; {said(rows)}; memory {more:+.1%} (< 10 %)"


def overlap(place: Place, rows: int) -> str:
    """A writer and a judge together, beside the writer alone, in the same run."""
    with running(latency=LATENCY) as one, running(latency=LATENCY) as two:
        place.fresh()
        single = run(place.given("alone", rows, url=one.url))
        place.fresh()
        both = run(place.given("judged", rows, url=one.url, judge=two.url))
        idle = _idle(two.log())
    walls = ", ".join(f"{each['seconds']:.1f} s ({each['cpu']:.1f} CPU-s)" for each in (both, single))
    return f"{both['seconds'] / single['seconds']:.3f} x one alone (<= 1.15): {walls}; judge idle {idle:.1%} (<= 10 %)"


def _idle(log: list[Seen]) -> float:
    """The share of the time between the first and the last request in which there was none."""
    spans = sorted((each.began, each.began + each.seconds) for each in log)
    busy, until = 0.0, spans[0][0]
    for began, ended in spans:
        busy += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return 1 - busy / (until - spans[0][0])


class Said(Step):
    """Says something of each number; of none, if it never can."""

    can: bool = True

    @property
    def outputs(self) -> list[str]:
        """`said`."""
        return ["said"]

    def process(self, inputs: list[Row]) -> Iterator[list[Row]]:
        """The number in words."""
        if not self.can:
            raise ValueError("not today")
        yield [Row(row | {"said": f"{self.name} {row['n']}"}, row.origin) for row in inputs]


def branch(place: Place, rows: int) -> str:
    """A branch that loses all its rows; a chain of three steps with batches of other sizes each."""
    with Pipeline(name="branch") as half:
        data = LoadDataFromDicts(data=[{"n": each} for each in range(20)])
        (
            data
            >> [Said(name="good"), Said(name="bad", can=False)]
            >> GroupColumns(columns=["said"], output_columns=["all"])
        )
    found = half.run(max_error_rate=1)
    right = sum(row["all"] == [f"good {row['n']}"] for row in found["default"]["train"])
    with Pipeline(name="sizes") as sizes:
        source = LoadDataFromDicts(data=[{"n": each} for each in range(rows)], batch_size=7)
        source >> Said(name="fifty", input_batch_size=50) >> Said(name="sixty-four", input_batch_size=64)
    order = [row["n"] for row in sizes.run()["default"]["train"]]
    return (
        f"{right} rows with the other branch's values (20), {len(found.errors)} errors (20); batches of 7, 50 and 64: "
        f"{len(order)} rows ({rows}), {'in order' if order == list(range(rows)) else 'NOT IN ORDER'}"
    )


def trimmed(self: Any, text: str | None, row: Row) -> dict[str, Any]:
    """A parser."""
    return {"generation": (text or "").strip()}


def shouted(self: Any, text: str | None, row: Row) -> dict[str, Any]:
    """Another."""
    return {"generation": (text or "").upper()}


def edit(place: Place, rows: int) -> str:
    """What is asked after one thing was changed, each time from the same finished run."""
    instructions = [{"instruction": f"question {number}"} for number in range(rows + 10)]

    def ask(
        url: str, count: int = rows, two: str = "two", three: str = "three", parse: Any = trimmed, **more: Any
    ) -> str:
        llm = remote({"url": url})
        rated = type("Rated", (TextGeneration,), {"format_output": parse, "__module__": __name__})
        with Pipeline(name="edit") as pipeline:
            one = asks("one", llm=llm, **more)
            second = asks("two", llm=llm, template=two + ": {{ said_one }}")
            third = asks("three", llm=llm, of=rated, template=three + ": {{ said_two }}")
            LoadDataFromDicts(data=instructions[:count]) >> one >> second >> third
        return digest(pipeline.run(output=place.home / "out"))

    with running() as provider:
        place.fresh()
        first = ask(provider.url)

        def said(expected: int, other: bool = True, **changes: Any) -> str:
            provider.reset()
            same = ask(provider.url, **changes) == first
            steps = Counter(prompt.split(":")[0] for prompt in provider.asked().elements())
            asked = sum(steps.values())
            by_step = ", ".join(f"{step} {times}" for step, times in steps.items())
            wrong = "" if asked == expected and same != other else " WRONG"
            return f"{asked}{f' ({by_step})' if asked else ''}, due {expected}{wrong}"

        figures = {
            "nothing": said(0, other=False),
            "step 2 of 3": said(2 * rows, two="second"),
            "10 rows more": said(30, count=rows + 10),
            "the parser of step 3": said(0, parse=shouted),
            "the prompt of step 3": said(rows, three="third"),
            "the system prompt of step 1": said(
                rows, other=False, system_prompt="Be brief."
            ),  # which the provider ignores
        }
    return f"{rows} rows, 3 models; asked again: " + "; ".join(f"{what} {asked}" for what, asked in figures.items())


SCENARIOS: dict[str, tuple[Callable[[Place, int], str], int]] = {
    "three-steps": (cost, 100_000),
    "judge": (overlap, 2_000),
    "kill": (kill, 400),
    "kill-server": (kill_server, 400),
    "kill-worker": (kill_worker, 400),
    "branch": (branch, 1_003),
    "edit": (edit, 100),
}
"""Each with the rows it takes when nobody says."""


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="+", choices=[*SCENARIOS, "all"], metavar="NAME", help=", ".join(SCENARIOS))
    parser.add_argument("--rows", type=int, help="instead of each scenario's own number")
    told = parser.parse_args()
    logging.disable(logging.WARNING)
    folder = Path(tempfile.mkdtemp())
    prefect = Prefect(folder / "prefect")
    settings = {PREFECT_API_URL: prefect.url, PREFECT_HOME: folder, PREFECT_LOCAL_STORAGE_PATH: folder / "results"}
    try:
        with temporary_settings(settings):
            for name in SCENARIOS if "all" in told.names else told.names:
                scenario, rows = SCENARIOS[name]
                print(f"{name}: {scenario(Place(folder / name, prefect), told.rows or rows)}", flush=True)
    finally:
        store.close()
        prefect.kill()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
