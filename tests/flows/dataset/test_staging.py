"""A dataset's place under attack: kills, readers, strangers' files, links, names, permissions, power cuts."""

import errno
import json
import multiprocessing
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import datasets  # noqa: F401 - and pandas: each forked run would import them anew
import pandas  # noqa: F401
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows import ConfigurationError, Distiset, Pipeline
from flows.dataset import staging
from flows.dataset.output_folder import OutputFolder
from flows.dataset.summary import Summary
from llms import OpenAILLM
from tasks import LoadDataFromDicts, TextGeneration
from tasks.typing import Failure, Row
from tests.support.crash_points import for_each_crash_point

LEAVES = ["one", "two"]
needs_exchange = pytest.mark.skipif(os.uname().sysname not in ("Linux", "Darwin"), reason="folders are not exchanged")


def begin(output: Path, number: int, format: str = "parquet") -> OutputFolder:
    """A run that has written all its rows: `number` in each leaf, and one failure."""
    folder = OutputFolder(output, LEAVES, format)
    for leaf in LEAVES:
        folder.write_rows(leaf, [{"n": number}] * number)
    folder.write_failures([Failure("step", "Rejected", f"{number}", Row({"n": number}))])
    return folder


def close(folder: OutputFolder, number: int, state: str = "completed") -> None:
    facts = {
        "pipeline": f"number {number}",
        "state": state,
        "steps": {},
        "prompts": {},
        "versions": {"distilflow": "1"},
        "licences": {},
    }
    folder.close(facts, Summary(rows=2 * number, failures=1))


def replace(output: Path, number: int, exchanges: bool = True) -> None:
    """A whole run; without `exchanges` on a file system that cannot exchange two folders."""
    if not exchanges:
        staging.exchange = lambda *_: False
    folder = begin(output, number)
    close(folder, number)
    folder.promote()


def save(source: Path, target: Path, split: bool) -> None:
    dataset = Distiset.load(source)
    (dataset.train_test_split(0.5, seed=1) if split else dataset).save_to_disk(target)


def number_in(dataset: Distiset) -> int:
    """The number of the run that a dataset is of: of all its files, or it is not whole."""
    rows = {leaf: [n for split in dataset[leaf].values() for n in split["n"]] for leaf in LEAVES}
    [number] = {n for leaf in rows.values() for n in leaf}
    assert {leaf: len(each) for leaf, each in rows.items()} == dict.fromkeys(LEAVES, number)
    return number


def read(folder: Path) -> int:
    dataset = Distiset.load(folder)
    number = number_in(dataset)
    assert dataset.errors["message"] == [f"{number}"] and dataset.summary.rows == 2 * number
    assert (folder / "README.md").read_text().count(f"number {number}") == 1
    return number


def found(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.slow
class TestKills:
    """Killed at each change of a file: readers find a dataset, and the same command mends."""

    @pytest.mark.parametrize("exchanges", [True, False])
    def test_a_run_that_replaces_a_dataset(self, tmp_path, exchanges):
        output = tmp_path / "out"
        replace(output, 1)
        seen, kills = [], 0
        for kills in for_each_crash_point(tmp_path, replace, output, 2, exchanges):  # noqa: B007
            if output.exists() or exchanges:
                seen.append(read(output))
            replace(output, 2)
            assert read(output) == 2 and found(tmp_path) == {"out"}
            replace(output, 1)
        assert set(seen) == {1, 2} and kills > 20 and len(seen) >= kills - 1

    def test_a_run_into_a_free_place(self, tmp_path):
        output = tmp_path / "out"
        for _ in for_each_crash_point(tmp_path, replace, output, 2):
            assert not output.exists() or read(output) == 2
            replace(output, 3)
            assert read(output) == 3 and found(tmp_path) == {"out"}
            shutil.rmtree(output)

    @pytest.mark.parametrize("exchanges", [True, False])
    def test_each_kill_meets_what_the_one_before_has_left(self, tmp_path, exchanges):
        output = tmp_path / "out"
        replace(output, 1)
        for _ in for_each_crash_point(tmp_path, replace, output, 2, exchanges):
            if output.exists() or exchanges:
                assert read(output) in (1, 2)
        assert read(output) == 2 and found(tmp_path) == {"out"}

    @pytest.mark.parametrize("split", [False, True])
    def test_a_saved_copy(self, tmp_path, split):
        for number in (2, 4):
            replace(tmp_path / f"source-{number}", number)
        target = tmp_path / "there" / "kept"
        save(tmp_path / "source-2", target, split)
        seen = []
        for _ in for_each_crash_point(target.parent, save, tmp_path / "source-4", target, split):
            seen.append(read(target))
            save(tmp_path / "source-4", target, split)
            assert read(target) == 4 and found(target.parent) == {"kept"}
            save(tmp_path / "source-2", target, split)
        assert set(seen) == {2, 4}


def keep_reading(connection: Connection, output: Path) -> None:
    """Read a dataset until told to stop; tell which numbers were seen, and how often one was replaced meanwhile."""
    numbers, replaced = [], 0
    connection.send("reading")
    while not connection.poll():
        numbers.append(Distiset.load(output)["one"]["train"]["n"][0])
        assert Distiset.load(output).errors.num_rows == 1
        dataset = Distiset.load(output)
        try:
            numbers.append(number_in(dataset))
            assert dataset.errors["message"] == [f"{numbers[-1]}"] and dataset.summary.rows == 2 * numbers[-1]
        except ConfigurationError as error:
            assert "another run has replaced the dataset" in str(error)
            replaced += 1
    connection.send((numbers, replaced))


@pytest.mark.slow
@needs_exchange
def test_a_reader_never_misses_a_dataset_and_never_sees_a_mixed_one(tmp_path):
    output = tmp_path / "out"
    replace(output, 1)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    reader = context.Process(target=keep_reading, args=(theirs, output), daemon=True)
    reader.start()
    theirs.close()
    assert ours.recv() == "reading"
    for number in range(2, 202):
        replace(output, number)
    ours.send("stop")
    numbers, _ = ours.recv()  # an `EOFError` if the reader has failed
    reader.join()
    assert len(set(numbers)) > 10 and numbers == sorted(numbers)


def test_what_was_loaded_before_it_was_replaced_is_never_mixed(tmp_path):
    replace(tmp_path / "out", 1)
    unread, read_in_part = Distiset.load(tmp_path / "out"), Distiset.load(tmp_path / "out")
    assert read_in_part["one"]["train"]["n"] == [1]
    replace(tmp_path / "out", 2)
    assert number_in(unread) == 2 and unread.summary.rows == 4
    for part in (lambda: read_in_part["two"], lambda: read_in_part.errors, lambda: read_in_part.head("two")):
        with pytest.raises(ConfigurationError, match="another run has replaced the dataset in .* load it again"):
            part()
    with pytest.raises(ConfigurationError, match="load it again"):
        read_in_part.save_to_disk(tmp_path / "kept")
    assert found(tmp_path) == {"out", "kept.partial"}
    unread.save_to_disk(tmp_path / "kept")
    assert read(tmp_path / "kept") == 2 and found(tmp_path) == {"out", "kept"}


STRANGERS = [
    "out.partial",  # a file
    "out.partial/notes.txt",
    "out.partial/default/part-00000.parquet",
    "out.partial/run.json",
    "out.former",
    "out.former/notes.txt",
    "out.former/one/part-00000.parquet",
    "out/notes.txt",
    "out/.DS_Store",
    "out/run.json.bak",
    "out/one/notes.txt",
    "out/one/part-00001.parquet",
    "out/one/part-00000.parquet.bak",
    "out/one/deeper/part-00000.parquet",
    "out/two/.hidden",
    "out/three/part-00000.parquet",
    ".out.lock",
]
HARMLESS = ["out.txt", "out.partial.txt", "out2/run.json", "other/out/notes.txt"]
BEFORE = ["nothing", "a dataset", "a killed run", "a failed run", "a finished run that was killed"]


def prepare(output: Path, before: str) -> None:
    """What an earlier run has left."""
    if before != "nothing":
        replace(output, 1)
    if before in BEFORE[2:]:
        folder = begin(output, 2)
        if before != "a killed run":
            close(folder, 2, "failed" if before == "a failed run" else "completed")
        if before == "a finished run that was killed":
            folder._staging._mark_complete()
        folder._staging.release()


def put(path: Path, kind: str, outside: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "file":
        path.write_text("a stranger's")
    else:
        path.symlink_to(outside if kind == "link to a folder" else outside / "thesis.tex")


@given(
    before=st.sampled_from(BEFORE),
    strangers=st.dictionaries(
        st.sampled_from(STRANGERS + HARMLESS), st.sampled_from(["file", "link", "link to a folder"]), max_size=3
    ),
    saves=st.booleans(),
)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.slow
def test_what_is_not_ours_is_never_touched(tmp_path_factory, before, strangers, saves):
    """Whatever lies around and in an output is left as it is, and refused before anything is written."""
    folder, outside = tmp_path_factory.mktemp("around"), tmp_path_factory.mktemp("outside")
    (outside / "thesis.tex").write_text("years of work")
    (outside / "part-00000.parquet").write_text("years of work")
    output = folder / "out"
    prepare(output, before)
    put_there = {}
    for name, kind in strangers.items():
        path = folder / name
        if os.path.lexists(path) or any(parent.is_file() or parent.is_symlink() for parent in path.parents):
            continue  # ours, or no folder
        put(path, kind, outside)
        put_there[name] = kind, os.readlink(path) if path.is_symlink() else path.read_text()
    source = tmp_path_factory.mktemp("source") / "set"
    replace(source, 3)

    def write() -> None:
        save(source, output, False) if saves else replace(output, 3)

    in_the_way = put_there.keys() - HARMLESS
    if before in ("a killed run", "a failed run", "a finished run that was killed"):
        in_the_way -= {"out.partial"}
    if in_the_way:
        ours = contents(folder)
        with pytest.raises(ConfigurationError, match=r"choose\s+another `output`|move it elsewhere") as refused:
            write()
        assert any(Path(name).name in str(refused.value) for name in in_the_way)
        assert contents(folder) == ours
    else:
        write()
    for name, (_, text) in put_there.items():
        path = folder / name
        assert text == (os.readlink(path) if path.is_symlink() else path.read_text())
    assert {path.name for path in outside.iterdir()} == {"thesis.tex", "part-00000.parquet"}
    assert {path.read_text() for path in outside.iterdir()} == {"years of work"}
    for name in in_the_way:
        (folder / name).unlink()
    for name in sorted(in_the_way, key=len, reverse=True):
        for parent in (folder / name).parents:
            if parent.is_relative_to(folder) and parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
    write()
    assert read(output) == 3
    assert found(folder) == {"out", *(name.partition("/")[0] for name in put_there.keys() & set(HARMLESS))}


def contents(folder: Path) -> dict[str, bytes]:
    return {f"{path}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestStrangers:
    def test_a_dataset_called_like_an_unfinished_one_is_a_dataset(self, tmp_path):
        replace(tmp_path / "out.partial", 1)
        with pytest.raises(ConfigurationError, match="out.partial` is a folder of its own, which is in the way"):
            replace(tmp_path / "out", 2)
        assert read(tmp_path / "out.partial") == 1

    @pytest.mark.parametrize("name", ["out.partial", "out.former"])
    def test_a_dataset_put_where_a_killed_run_had_the_one_it_replaced(self, tmp_path, name):
        replace(tmp_path / "out", 1)
        (tmp_path / "out" / staging.MARKER).write_text("replaces 1\n")  # killed after it had deleted that one
        replace(tmp_path / "mine", 2)
        (tmp_path / "mine").rename(tmp_path / name)
        with pytest.raises(ConfigurationError, match=f"{name}` is a folder of its own, which is in the way"):
            replace(tmp_path / "out", 3)
        assert read(tmp_path / name) == 2 and read(tmp_path / "out") == 1

    @needs_exchange
    def test_a_file_that_comes_during_the_run_stays_where_it_is(self, tmp_path):
        output = tmp_path / "out"
        replace(output, 1)
        folder = begin(output, 2)
        close(folder, 2)
        (output / "one" / "notes.txt").write_text("mine")
        with pytest.raises(ConfigurationError, match="holds `one/notes.txt`.* complete in `.*out.partial`: the same"):
            folder.promote()
        assert read(output) == 1 and (output / "one" / "notes.txt").read_text() == "mine"
        (output / "one" / "notes.txt").rename(tmp_path / "notes.txt")
        killed = begin(output, 3)  # the first thing that the same command does
        assert read(output) == 2
        killed._staging.release()

    def test_a_place_that_is_taken_during_the_run(self, tmp_path):
        output = tmp_path / "out"
        folder = begin(output, 2)
        close(folder, 2)
        output.mkdir()
        (output / "thesis.tex").write_text("mine")
        with pytest.raises(ConfigurationError, match="holds `thesis.tex`"):
            folder.promote()
        assert found(tmp_path) == {"out", "out.partial"} and found(output) == {"thesis.tex"}

    def test_only_the_files_of_a_dataset_are_copied(self, tmp_path):
        replace(tmp_path / "out", 1)
        (tmp_path / "out" / "one" / "notes.txt").write_text("mine")
        save(tmp_path / "out", tmp_path / "kept", False)
        assert found(tmp_path / "kept" / "one") == {"part-00000.parquet"}

    def test_a_dataset_that_lists_no_files_is_replaced(self, tmp_path):
        replace(tmp_path / "out", 1)
        file = tmp_path / "out" / "run.json"
        run = json.loads(file.read_text())
        del run["files"]
        file.write_text(json.dumps(run))
        replace(tmp_path / "out", 2)
        assert read(tmp_path / "out") == 2 and found(tmp_path) == {"out"}

    def test_an_unfinished_dataset_that_is_moved_by_hand_is_replaced(self, tmp_path):
        close(begin(tmp_path / "out", 1), 1, "failed")
        (tmp_path / "out.partial").rename(tmp_path / "out")
        replace(tmp_path / "out", 2)
        assert read(tmp_path / "out") == 2 and found(tmp_path) == {"out"}

    @pytest.mark.usefixtures("prefect_server")
    @pytest.mark.parametrize("approve", [False, True])
    def test_nothing_is_asked_before_it_is_refused(self, tmp_path, wire, approve):
        (tmp_path / "out.partial").mkdir()
        (tmp_path / "out.partial" / "notes.txt").write_text("mine")
        with Pipeline() as pipeline:
            llm = OpenAILLM(model="m", base_url=wire.url, api_key="k")
            LoadDataFromDicts(data=[{"instruction": "a"}]) >> TextGeneration(llm=llm)
        with pytest.raises(ConfigurationError, match="out.partial` holds `notes.txt`.*move it elsewhere"):
            pipeline.run(output=tmp_path / "out", approve=approve)
        assert not wire.requests and found(tmp_path / "out.partial") == {"notes.txt"}


class TestLinks:
    @pytest.mark.parametrize("exists", [True, False])
    def test_a_dataset_lies_where_the_link_points(self, tmp_path, exists):
        (tmp_path / "disk").mkdir()
        if exists:
            replace(tmp_path / "disk" / "large", 1)
        (tmp_path / "out").symlink_to(tmp_path / "disk" / "large")
        for number in (2, 3):
            replace(tmp_path / "out", number)
            assert read(tmp_path / "out") == read(tmp_path / "disk" / "large") == number
        save(tmp_path / "disk" / "large", tmp_path / "copy", False)
        save(tmp_path / "copy", tmp_path / "out", False)
        assert (tmp_path / "out").is_symlink() and found(tmp_path / "disk") == {"large"}
        assert found(tmp_path) == {"disk", "out", "copy"}
        with pytest.raises(ConfigurationError, match="is where the dataset is"):
            save(tmp_path / "disk" / "large", tmp_path / "out", False)

    def test_two_names_of_one_place_are_one_place(self, tmp_path):
        (tmp_path / "link").symlink_to(tmp_path / "out")
        folder = begin(tmp_path / "link", 1)
        with pytest.raises(ConfigurationError, match="another run is writing"):
            begin(tmp_path / "out", 1)
        folder._staging.release()

    def test_a_link_to_itself_is_refused(self, tmp_path):
        (tmp_path / "out").symlink_to(tmp_path / "out")
        with pytest.raises(ConfigurationError, match="leads to itself"):
            begin(tmp_path / "out", 1)

    @pytest.mark.parametrize("exists", [True, False])
    def test_a_lock_that_is_a_link_is_not_followed(self, tmp_path, exists):
        if exists:
            (tmp_path / "victim").write_text("")
        (tmp_path / ".out.lock").symlink_to(tmp_path / "victim")
        with pytest.raises(ConfigurationError, match=r"\.out\.lock` is in the way.*Move it elsewhere"):
            begin(tmp_path / "out", 1)
        assert found(tmp_path) == {".out.lock", *(["victim"] if exists else [])}

    def test_the_lock_of_a_killed_run_locks_nobody_out(self, tmp_path):
        (tmp_path / ".out.lock").touch()
        replace(tmp_path / "out", 1)
        assert found(tmp_path) == {"out"}

    def test_a_lock_that_was_replaced_is_not_deleted(self, tmp_path):
        folder = begin(tmp_path / "out", 1)
        (tmp_path / ".out.lock").unlink()
        (tmp_path / ".out.lock").write_text("mine")
        close(folder, 1, "failed")
        assert (tmp_path / ".out.lock").read_text() == "mine"


@pytest.mark.parametrize("save_it", [False, True])
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("a" * 250, "cannot be written: File name too long"),
        ("ä" * 124, "cannot be written: File name too long"),
        (".", "has no name of its own: name a folder"),
        ("..", "has no name of its own"),
        ("", "has no name of its own"),
        ("/", "has no name of its own|is where a disk is mounted"),
        ("/proc", "is where a disk is mounted: choose a folder in it"),
        ("a\0b", "holds a NUL"),
        ("file/out", "cannot be written: Not a directory"),
        ("/proc/out", "cannot be written"),
    ],
)
def test_a_name_that_cannot_be_is_refused(tmp_path, monkeypatch, name, sentence, save_it):
    replace(tmp_path / "source", 1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=sentence):
        save(tmp_path / "source", Path(name), False) if save_it else begin(Path(name), 1)
    assert found(tmp_path) == {"source", "file"}


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_answers_are_for_their_owner_alone(tmp_path, format):
    with umask(0):
        running = begin(tmp_path / "out", 4, format)
        modes = {stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "out.partial", tmp_path / ".out.lock"]}
        assert modes == {0o700, 0o600}
        close(running, 4)
        running.promote()
        save(tmp_path / "out", tmp_path / "kept", False)
        save(tmp_path / "out", tmp_path / "split", True)
    for folder in ("out", "kept", "split"):
        every = [tmp_path / folder, *(tmp_path / folder).rglob("*")]
        assert len(every) > 7
        assert {path.stat().st_mode for path in every if path.is_dir()} == {stat.S_IFDIR | 0o700}
        assert {path.stat().st_mode for path in every if path.is_file()} == {stat.S_IFREG | 0o600}


class TestPowerCuts:
    @pytest.mark.parametrize("save_it", [False, True])
    def test_all_is_synced_before_it_takes_its_place_and_the_place_after(self, tmp_path, monkeypatch, save_it):
        replace(tmp_path / "source", 2)
        (tmp_path / "there").mkdir()
        output, events = tmp_path / "there" / "out", []
        replace(output, 1)
        fsync, exchange = os.fsync, staging.exchange

        def recorded_fsync(descriptor: int) -> None:
            fsync(descriptor)
            found = os.fstat(descriptor)
            events.append((found.st_ino, found.st_mtime_ns))

        def recorded_exchange(one: Path, other: Path) -> bool:
            unsynced = [p for p in [one, *one.rglob("*")] if (p.stat().st_ino, p.stat().st_mtime_ns) not in events]
            assert not unsynced and len(list(one.rglob("*"))) > 6
            events.append("exchange")
            return exchange(one, other)

        monkeypatch.setattr("os.fsync", recorded_fsync)
        monkeypatch.setattr(staging, "exchange", recorded_exchange)
        save(tmp_path / "source", output, False) if save_it else replace(output, 2)
        assert output.parent.stat().st_ino in {inode for inode, _ in events[events.index("exchange") + 1 :]}

    def test_a_disk_that_fails_to_sync_leaves_the_old_dataset(self, tmp_path, monkeypatch):
        replace(tmp_path / "out", 1)
        with monkeypatch.context() as patch:

            def failing(descriptor: int) -> None:
                raise OSError(errno.EIO, "Input/output error")

            patch.setattr("os.fsync", failing)
            with pytest.raises(OSError, match="Input/output"):
                replace(tmp_path / "out", 2)
        assert read(tmp_path / "out") == 1
        replace(tmp_path / "out", 3)
        assert read(tmp_path / "out") == 3 and found(tmp_path) == {"out"}
