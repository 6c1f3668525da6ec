"""`python -m flows.results`: what is kept of what steps made, and what goes when somebody says so."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect import flow, task
from prefect.filesystems import LocalFileSystem, RemoteFileSystem
from prefect.settings import PREFECT_API_URL, PREFECT_LOCAL_STORAGE_PATH

from flows import Pipeline
from flows.results.__main__ import main
from tasks import LoadDataFromDicts, Step, step

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]
DAY = 86_400
SIZES = {"doubled": 3, "counted": 3}
"""The steps of the pipeline, and how many results each leaves."""

made: list[str] = []
"""The steps that worked, a name per batch."""


@step(inputs=["number"], outputs=["number"])
def Doubled(rows):
    made.append("doubled")
    yield [row | {"number": 2 * row["number"]} for row in rows]


class Counted(Step):
    """Says how many came together. Output columns: `count`."""

    def process(self, inputs):
        made.append("counted")
        yield [row | {"count": len(inputs)} for row in inputs]


def run(second=Counted, **where):
    """The rows a pipeline of two steps makes in three batches, and the batches that were made to that end."""
    made.clear()
    with Pipeline() as pipeline:
        data = LoadDataFromDicts(data=[{"number": number} for number in range(6)], batch_size=2)
        data >> Doubled() >> second(name="counted")
    rows = list(pipeline.run(**where)["default"]["train"])
    return rows, {name: made.count(name) for name in set(made)}


@pytest.fixture
def say(monkeypatch, capsys):
    """A function that runs the command with these words, and gives back what it says."""

    def say(*words):
        monkeypatch.setattr(sys, "argv", ["results", *words])
        capsys.readouterr()
        main()
        return capsys.readouterr().out

    return say


def storage():
    return PREFECT_LOCAL_STORAGE_PATH.value()


def kept(step="*"):
    return sorted(storage().glob(f"distilflow/{step}/*"))


def age(files, days):
    for file in files:
        os.utime(file, (then := time.time() - days * DAY, then))


def test_lists_results_by_step():
    run()
    age(kept("doubled")[:1], 40)
    env = os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value()}
    done = subprocess.run(
        [sys.executable, "-m", "flows.results"], cwd=Path(__file__).parents[3], env=env, capture_output=True, text=True
    )
    assert not done.returncode, done.stderr
    first, head, *steps = done.stdout.splitlines()
    assert first == f"{storage().resolve()}/distilflow: 6 results, 0.0 MB" and head.split()[:2] == ["step", "results"]
    assert {line.split()[0]: int(line.split()[1]) for line in steps} == SIZES
    old = time.strftime("%Y-%m-%d", time.localtime(time.time() - 40 * DAY))
    assert [old in line for line in steps] == [False, True]


def test_prune_deletes_old_results_which_run_again(say):
    rows, first = run()
    assert first == SIZES
    age([*kept("doubled")[:2], *kept("counted")[:1]], 31)
    age(kept("counted")[1:2], 29)
    assert "2 results deleted" in say("prune", "--older-than", "30d", "--step", "doubled")
    assert "1 results deleted" in say("prune", "--older-than", "30d")
    assert "0 results deleted" in say("prune", "--older-than", "30d")
    assert run() == (rows, {"doubled": 2, "counted": 1}) and len(kept()) == 6


def test_other_files_are_never_deleted(say):
    @task(persist_result=True, result_storage_key=f"distilflow/doubled/{'a' * 32}", result_serializer="json")
    def near():
        return '"serializer":{"type":"distilflow"}'

    @flow(persist_result=True)
    def theirs():
        return near()

    run()
    ours = kept()
    theirs()
    for name in (f"distilflow/{'b' * 32}", f"distilflow/doubled/{'c' * 32}", f"distilflow/x/y/{'d' * 32}"):
        (storage() / name).parent.mkdir(parents=True, exist_ok=True)
        (storage() / name).write_text("theirs")
    (storage() / "distilflow/doubled" / f"{'e' * 32}").mkdir()
    (storage() / "distilflow/doubled/notes.json").write_bytes(ours[0].read_bytes())
    others = {path for path in storage().rglob("*") if path not in ours}
    assert len([path for path in others if path.is_file()]) == 6  # the flow's result, too
    age([*ours, *others], 400)
    say("prune", "--older-than", "52w")
    assert set(storage().rglob("*")) == others
    say("clear", "--yes")
    assert set(storage().rglob("*")) == others


def test_clear_needs_yes_and_leaves_concurrent_runs_alone(say, monkeypatch):
    class Careless(Counted):
        """Deletes what there is in the middle of its own run. Output columns: `count`."""

        def process(self, inputs):
            main()
            yield from super().process(inputs)

    run()
    with pytest.raises(SystemExit, match="every result in .*distilflow`; .* add `--yes`"):
        say("clear")
    assert len(kept()) == 6
    assert "6 results deleted" in say("clear", "--yes")
    monkeypatch.setattr(sys, "argv", ["results", "clear", "--yes"])
    rows, _ = run(Careless)
    assert [(row["number"], row["count"]) for row in rows] == [(2 * number, 2) for number in range(6)]
    assert not kept("doubled")  # each was there before what follows began


def test_storage_is_a_saved_block_or_a_folder(say, tmp_path):
    block = LocalFileSystem(basepath=str(tmp_path / "saved"))
    block.save("of-the-test")
    assert run(result_storage=block)[1] == SIZES
    assert "6 results, " in say("--storage", "local-file-system/of-the-test") and "0 results, " in say()
    assert "6 results deleted" in say("--storage", block.basepath, "clear", "--yes")


def test_remote_storage_is_refused(say):
    RemoteFileSystem(basepath="memory://team/results").save("of-the-test", overwrite=True)
    with pytest.raises(SystemExit, match="`Remote File System`, .* lifecycle rule .* `memory://team/results/distilfl"):
        say("--storage", "remote-file-system/of-the-test", "prune", "--older-than", "30d")
    with pytest.raises(SystemExit, match="`nowhere` is no folder, and no saved block"):
        say("--storage", "nowhere")
