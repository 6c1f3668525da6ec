"""A run one can watch: the counts, the table, the lines, and JSON for programs."""

import json
import logging
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from io import StringIO
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL
from rich.console import Console

from flows import Pipeline, Summary
from flows.reporting import progress, terminal
from flows.reporting.progress import ProgressTracker, RunSnapshot, StepSnapshot, notify
from flows.runtime.humanize import duration
from llms import LlamaServerLLM
from llms.limits.usage import UsageCollector
from llms.typing import Usage
from tasks import Filter, GroupColumns, LoadDataFromDicts, TextGeneration, sample_n_steps
from tasks.typing import BatchResult, Failure, ModelUsage, Row

ROWS = [{"instruction": f"question {number}"} for number in range(100)]


class Clock:
    """A time that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@contextmanager
def pipeline() -> Iterator[tuple[Pipeline, Any, Any]]:
    with Pipeline(name="watched") as made:
        yield made, LoadDataFromDicts(name="data", data=ROWS), TextGeneration(name="ask", llm=LlamaServerLLM())


def counted(made: Pipeline, limit: int | None = None) -> tuple[ProgressTracker, Any]:
    """The counts of a pipeline that nobody runs, and what tells them that a step has finished a batch."""
    graph = made._build_graph({})
    graph.check()
    usage = UsageCollector()
    counts = ProgressTracker(graph, limit, Summary(), usage)

    def finished(name: str, rows_in: int, rows: int, failures: int = 0, cost: float | None = 0.0) -> None:
        outcome = BatchResult([Row()] * rows, [Failure(name, "E", "no", Row())] * failures, rows_in=rows_in)
        if name == "ask":
            usage.add(name, "m", ModelUsage(rows_in, 0, Usage(10 * rows_in, 20 * rows), cost))
        counts.on_done(graph.by_name[name], outcome)

    return counts, finished


class TestProgressTracker:
    def test_a_snapshot_of_every_step(self, clock):
        with pipeline() as (made, data, ask):
            data >> ask
        counts, finished = counted(made)
        finished("data", 0, 40)
        clock.now += 10
        finished("ask", 20, 18, failures=2, cost=0.5)
        now = counts.snapshot()
        ask = now.steps["ask"]
        assert (ask.rows_in, ask.rows_expected, ask.rows, ask.failures, ask.in_flight) == (20, 100, 18, 2, 20)
        assert (ask.rows_per_second, ask.tokens_per_second, ask.eta_seconds) == (2.0, 36.0, 40.0)
        assert (now.rows, now.failures, now.input_tokens, now.output_tokens, now.cost) == (18, 2, 200, 360, 0.5)
        assert now.seconds == 10 and now.eta_seconds == 40
        said = "20 of 100 rows, 2 failed, 20 in flight, 2 rows/s, 36 tokens/s, 560 tokens, $0.50, 40 s left"
        assert str(ask) == said and str(now.steps["data"]).startswith("40 of 100 rows")

    def test_rates_are_over_a_sliding_window(self, clock):
        with pipeline() as (made, data, ask):
            data >> ask
        counts, finished = counted(made)
        for seconds, rows in ((1, 50), *[(10, 10)] * 9):  # first the store answered, then the model
            clock.now += seconds
            finished("ask", rows, rows)
        assert counts.snapshot().steps["ask"].rows_per_second == 1.0

    def test_dropped_rows_are_not_expected_downstream(self, clock):
        with pipeline() as (made, data, ask):
            data >> Filter(name="some", where=bool) >> ask
        counts, finished = counted(made)
        finished("data", 0, 100)
        finished("some", 40, 10)
        assert counts.snapshot().steps["ask"].rows_expected == 25

    def test_expected_rows_respect_the_limit(self, clock):
        with pipeline() as (made, data, ask):
            data >> ask
        counts, _ = counted(made, limit=7)
        assert [step.rows_expected for step in counts.snapshot().steps.values()] == [7, 7]

    def test_unknown_figures_are_none(self, clock):
        with pipeline() as (made, data, ask):
            other = TextGeneration(name="other", llm=LlamaServerLLM())
            join = GroupColumns(name="join", columns=["generation"], output_columns=["generations"])
            data >> sample_n_steps(1) >> [ask, other]
            [ask, other] >> join
        counts, finished = counted(made)
        finished("data", 0, 100)
        finished("ask", 10, 10, cost=None)
        now = counts.snapshot()
        ask = now.steps["ask"]
        assert ask.in_flight is None and ask.rows_expected is None and ask.eta_seconds is None and ask.fraction is None
        assert now.eta_seconds is None and now.cost is None
        assert now.steps["join"].rows_expected == 100, "as many as parted"

    def test_batches_of_concurrent_threads_are_all_counted(self):
        with pipeline() as (made, data, ask):
            data >> ask
        counts, finished = counted(made)
        threads = [
            threading.Thread(target=lambda: [finished("ask", 1, 1, cost=1.0) for _ in range(500)]) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert counts.snapshot().rows == 4000 == counts.snapshot().cost

    @pytest.mark.parametrize(
        ("seconds", "said"), [(0.4, "0 s"), (59.7, "1 min 0 s"), (185, "3 min 5 s"), (7440, "2 h 4 min")]
    )
    def test_durations(self, seconds, said):
        assert duration(seconds) == said


def now(rows: int = 20, failures: int = 0) -> RunSnapshot:
    source = StepSnapshot(0, 1_000, 700, 0, None, 35.0, 0.0, 0, 0, 0.0, 9.0)
    step = StepSnapshot(rows, 1_000, rows - failures, failures, 123, 10.4, 812.0, 4_000, 12_345, 0.117, 3_900.0)
    return RunSnapshot(
        20.0, rows - failures, failures, 4_000, 12_345, 0.117, 3_900.0, {"load_data_from_files": source, "ask": step}
    )


class TestTerminal:
    @pytest.mark.parametrize("width", [80, 140])
    def test_the_table_fits_the_terminal(self, width):
        out = Console(file=StringIO(), width=width)
        out.print(terminal.progress_table(now(failures=3)))
        first, second, data, ask = out.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert first.split() == ["in", "rows", "tokens", "time"]
        assert second.split() == ["step", "in", "out", "failed", "flight", "/s", "/s", "tokens", "cost", "left"]
        assert data.split()[1:] == ["700/1,000", "0", "35", "00:09"] and data.startswith("load_data_")
        assert ask.split() == ["ask", "20/1,000", "17", "3", "123", "10", "812", "16.3k", "$0.12", "1:05:00"]

    def test_the_table_omits_empty_columns(self):
        out = Console(file=StringIO(), width=80)
        steps = {"data": StepSnapshot(0, None, 9, 0, None, 1.0, 0.0, 0, 0, 0.0, None)}
        out.print(terminal.progress_table(RunSnapshot(1.0, 0, 0, 0, 0, 0.0, None, steps)))
        assert out.file.getvalue().split() == ["rows", "step", "out", "failed", "/s", "data", "9", "0", "1"]  # type: ignore[attr-defined]

    def test_log_lines_only_when_something_moved(self):
        out = Console(file=StringIO(), width=40)
        lines = terminal.LogLines(out)
        waits = [lines.on_update(each) for each in (now(), now(), now(rows=30))]
        said = out.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert [line.split(" rows")[0] for line in said] == ["ask: 20 of 1,000", "ask: 30 of 1,000"]
        assert all(5 <= wait <= 60 for wait in waits)


class TestListeners:
    def test_a_listener_that_raises_is_dropped_and_the_others_continue(self, caplog, monkeypatch):
        # A command line in a test before this one keeps Prefect's log lines from the handlers of its process.
        monkeypatch.setattr(caplog.handler, "filters", [])
        monkeypatch.setattr(logging.getLogger("prefect"), "propagate", True)

        class Listener:
            def __init__(self, breaks: bool) -> None:
                self.breaks, self.looks, self.ends = breaks, 0, 0
                self.seen = threading.Event()

            def on_update(self, now: RunSnapshot) -> float:
                self.looks += 1
                if self.breaks:
                    raise ConnectionError("the server is away")
                if self.looks == 3:
                    self.seen.set()
                return 0.0

            def on_end(self, now: RunSnapshot) -> None:
                self.ends += 1

        with pipeline() as (made, data, ask):
            data >> ask
        bad, good = Listener(True), Listener(False)
        with notify(counted(made)[0], [bad, good]):
            assert good.seen.wait(60)
        assert (bad.looks, bad.ends, good.ends) == (1, 0, 1)
        assert caplog.text.count("the server is away") == 1
        assert not any(thread.name == "progress" for thread in threading.enumerate())


@pytest.fixture
def shell(tmp_path, prefect_server):
    """Runs `python -m flows.<name>` in an empty folder, against the tests' server."""

    def run(name: str, *arguments: object, **options: Any) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", f"flows.{name}", *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value(), "OPENAI_API_KEY": "k"},
            capture_output=True,
            text=True,
            timeout=300,
            **options,
        )

    return run


@pytest.mark.slow
class TestShell:
    def test_json_lines_are_no_parameter_of_the_flow(self, shell, tmp_path):
        done = shell("text_generation", "--limit", 3, "--json")
        assert done.returncode == 0, done.stderr
        *steps, summary = map(json.loads, done.stdout.splitlines())
        assert steps and all(line["event"] == "progress" for line in steps)
        assert steps[-1].keys() == {"event", *(field.name for field in fields(RunSnapshot))}
        last = steps[-1]["steps"]["text_generation"]
        assert last.keys() == {field.name for field in fields(StepSnapshot)}
        assert (last["rows_in"], last["rows_expected"], last["rows"], last["in_flight"]) == (3, 3, 3, 0)
        assert summary.keys() == {"event", "state", "folder", *Summary.model_fields}
        assert (summary["event"], summary["state"], summary["rows"]) == ("summary", "completed", 3)
        assert (tmp_path / summary["folder"] / "run.json").exists()

    def test_json_of_a_run_that_failed(self, shell, wire):
        wire.answer = lambda request: wire.Reply({"error": {"message": "too long"}}, 400)
        done = shell("text_generation", "--limit", 3, "--json", "--llm", "OpenAILLM", "model=m", f"base_url={wire.url}")
        assert done.returncode == 1
        summary = json.loads(done.stdout.splitlines()[-1])
        assert (summary["state"], summary["failures"], summary["rows"]) == ("failed", 3, 0)
        assert summary["steps"]["text_generation"]["errors"] == {"Rejected": 3}
        assert "3 of 3 rows failed in `text_generation`" in summary["error"] and summary["error"] in done.stderr

    def test_json_of_a_run_that_was_refused(self, shell):
        done = shell("text_generation", "--data", "nofile.jsonl", "--json")
        [summary] = map(json.loads, done.stdout.splitlines())
        assert done.returncode == 2
        assert summary["state"] == "refused" and "There is no `nofile.jsonl`" in summary["error"]

    def test_quiet_prints_only_the_result(self, shell, tmp_path):
        with Pipeline(name="saved") as saved:
            LoadDataFromDicts(data=ROWS[:3]) >> TextGeneration(llm=LlamaServerLLM())
        saved.save(tmp_path / "p.yaml")
        done = shell("run", "p.yaml", "--quiet")
        assert done.returncode == 0
        first, files = done.stdout.splitlines()
        assert first.startswith("3 rows in ") and files == "outputs/p/default/*.parquet"
        assert "rows/s" not in done.stderr

    def test_only_one_of_them(self, shell):
        done = shell("text_generation", "--quiet", "--json")
        assert done.returncode == 2 and "not allowed with" in done.stderr

    def test_a_live_table_on_a_terminal(self, tmp_path, wire, prefect_server):
        wire.answer = lambda request: wire.Reply(delay=0.3)
        model = ["OpenAILLM", "model=m", f"base_url={wire.url}", "max_concurrency=2"]
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.text_generation", "--limit", "20", "--llm", *model],
            cwd=tmp_path,
            env=os.environ
            | {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "OPENAI_API_KEY": "k"}
            | {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
            stdout=subprocess.PIPE,
            stderr=theirs,
        )
        os.close(theirs)
        seen = b""
        try:
            while some := os.read(ours, 65536):
                seen += some
        except OSError:  # how a terminal says that all is closed
            pass
        finally:
            os.close(ours)
        out = process.communicate(timeout=60)[0].decode()
        drawn = seen.decode()
        assert process.returncode == 0, drawn
        assert all(head in drawn for head in ("flight", "tokens", "left")) and "/20" in drawn
        assert out.startswith("20 rows in ") and "flight" not in out
