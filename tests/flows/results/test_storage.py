"""Records of results in a storage that others write to, too: what is not ours, or has changed, is made again."""

import base64
import json
import os
import pickle
import re
import stat
import sys
from hashlib import blake2b
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefect.filesystems import LocalFileSystem, RemoteFileSystem
from prefect.results import ResultStore
from prefect.serializers import PickleSerializer
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH

from flows import Pipeline
from flows.results import BatchResultSerializer
from flows.results.storage import check_records
from tasks import LoadDataFromDicts, step
from tasks.typing import BatchResult, Row, RowLineage
from tests.support.crash_points import for_each_crash_point

RESULT = BatchResult([Row({"doubled": 2}, RowLineage("data[0]", (0, 0)))], rows_in=1, digest="d")
KEY = "distilflow/doubled/0123"


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (Path.write_text, (self.file, "code ran"))


def pickled(record, file):
    payload = base64.encodebytes(pickle.dumps(Bomb(file))).decode()
    return record | {"metadata": record["metadata"] | {"serializer": {"type": "pickle"}}, "result": payload}


def resealed(record, change):
    """A record whose content was changed by somebody who knows how the checksum is made."""
    content = json.loads(record["result"])
    del content["checksum"]
    blob = orjson.dumps(change(content))
    return record | {"result": f'{{"checksum":"{blake2b(blob, digest_size=16).hexdigest()}",{blob.decode()[1:]}'}


DAMAGES = {
    "pickle": lambda record, bomb: json.dumps(pickled(record, bomb)),
    "pickle of another module": lambda record, _: json.dumps(
        record | {"metadata": record["metadata"] | {"serializer": {"type": "pickle", "picklelib": "antigravity"}}}
    ),
    "pickle after ours": lambda record, bomb: (
        json.dumps(record)[:-1] + f', "serializer": {{"type": "pickle"}}, "data": '
        f"{json.dumps(pickled(record, bomb)['result'])}}}"
    ),
    "old format": lambda record, bomb: json.dumps(
        {"serializer": {"type": "pickle"}, "data": pickled(record, bomb)["result"]}
    ),
    "our type with options": lambda record, _: json.dumps(
        record | {"metadata": record["metadata"] | {"serializer": {"type": "distilflow", "jsonlib": "antigravity"}}}
    ),
    "truncated": lambda record, _: json.dumps(record)[:-40],
    "truncated result": lambda record, _: json.dumps(record | {"result": record["result"][:-9]}),
    "empty": lambda record, _: "",
    "random": lambda record, _: os.urandom(200),
    "null": lambda record, _: "null",
    "a number": lambda record, _: "7",
    "a list": lambda record, _: "[]",
    "another shape": lambda record, _: json.dumps({"metadata": record["metadata"], "result": {"rows": []}}),
    "no metadata": lambda record, _: json.dumps({"result": record["result"]}),
    "one cell changed": lambda record, _: re.sub(r'doubled\\":\d+', r'doubled\\":99', json.dumps(record)),
    "another shape, resealed": lambda record, _: json.dumps(resealed(record, lambda content: {"rows": 1})),
    "rows of another shape, resealed": lambda record, _: json.dumps(
        resealed(record, lambda content: content | {"rows": [["x", [0], "text"]]})
    ),
}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "results"


def store_in(folder, block=None):
    """The result store that a step's task has."""
    storage = block or LocalFileSystem(basepath=str(folder))
    store = ResultStore(result_storage=storage, serializer=BatchResultSerializer(), cache_result_in_memory=False)
    check_records(store)
    return store


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_record_that_cannot_be_trusted_is_missing(damage, folder, tmp_path, caplog):
    store, file, bomb = store_in(folder), folder / KEY, tmp_path / "bomb"
    store.write(RESULT, KEY)
    assert store.exists(KEY) and store.read(KEY).result.rows == RESULT.rows and not caplog.records
    good = file.read_bytes()
    bad = damage(json.loads(good), bomb)
    file.write_bytes(content := bad if isinstance(bad, bytes) else bad.encode())
    assert content != good
    assert not store.exists(KEY)
    [warning] = caplog.messages
    assert str(file) in warning and "is made again" in warning and "data[0]" not in warning, "no row is in a log"
    with pytest.raises(ValueError):
        store.read(KEY)
    assert not bomb.exists() and "antigravity" not in sys.modules


@given(at=st.integers(0, 10_000), byte=st.integers(0, 255))
@settings(deadline=None)
def test_no_changed_byte_of_the_content_goes_unnoticed(at, byte):
    serializer = BatchResultSerializer()
    good = bytearray(serializer.dumps(RESULT))
    bad = good.copy()
    bad[at % len(good)] = byte
    if bad != good:
        with pytest.raises(ValueError):
            serializer.loads(bytes(bad))


def test_a_missing_record_is_not_warned_of(folder, caplog):
    assert not store_in(folder).exists(KEY) and not caplog.records


def test_storages_without_paths_are_checked_too(caplog):
    store = store_in(None, storage := RemoteFileSystem(basepath="memory://checked"))
    store.write(RESULT, KEY)
    assert store.read(KEY).result.rows == RESULT.rows
    content: Any = storage.read_path(KEY)
    storage.write_path(KEY, content.replace(b'"type":"distilflow"', b'"type":"pickle"'))
    assert not store.exists(KEY) and "memory://checked/distilflow/doubled/0123" in caplog.text


def test_records_name_the_saved_block_they_are_in(folder):
    block = LocalFileSystem(basepath=str(folder))
    block._block_document_id = uuid4()
    store_in(folder, block).write(RESULT, KEY)
    metadata = json.loads((folder / KEY).read_bytes())["metadata"]
    assert metadata["storage_block_id"] == str(block._block_document_id) and metadata["storage_key"] == KEY


def test_only_the_user_may_read_results(folder):
    previous = os.umask(0o022)
    try:
        store_in(folder).write(RESULT, KEY)
        shared = LocalFileSystem(basepath=str(folder))
        shared._block_document_id = uuid4()
        store_in(folder, shared).write(RESULT, "distilflow/shared/0123")
    finally:
        os.umask(previous)
    modes = {each.relative_to(folder).parts[1:]: stat.S_IMODE(each.stat().st_mode) for each in folder.rglob("*")}
    assert modes[("doubled",)] == 0o700 and modes[("doubled", "0123")] == 0o600
    assert modes[("shared", "0123")] == 0o644, "a saved block may be shared: its folder decides"


def test_tasks_that_a_step_starts_keep_results_as_ever(folder, caplog):
    store = store_in(folder).model_copy(update={"serializer": PickleSerializer()})
    store.write({1, 2}, "theirs")
    assert store.read("theirs").result == {1, 2} and not caplog.records
    elsewhere = ResultStore.model_validate(store.model_dump(exclude={"cache"}, serialize_as_any=True))
    assert type(elsewhere.result_storage) is LocalFileSystem
    assert elsewhere.read("theirs").result == {1, 2}


made: list[int] = []
"""The number of the first row of each batch that was made."""


@step(inputs=["number"], outputs=["doubled"])
def Doubled(rows):
    made.append(rows[0]["number"])
    yield [row | {"doubled": 2 * row["number"]} for row in rows]


def run():
    """The rows of as many batches as there are damages, and the batches that were made to that end."""
    made.clear()
    with Pipeline() as pipeline:
        numbers = [{"number": number} for number in range(len(DAMAGES))]
        LoadDataFromDicts(data=numbers, batch_size=1) >> Doubled()
    return [dict(row) for row in pipeline.run()["default"]["train"]], sorted(made)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_run_makes_records_again_that_cannot_be_trusted(tmp_path, caplog):
    rows = [{"number": number, "doubled": 2 * number} for number in range(len(DAMAGES))]
    assert run() == (rows, list(range(len(DAMAGES))))
    assert run() == (rows, [])
    files = sorted(PREFECT_LOCAL_STORAGE_PATH.value().glob("distilflow/doubled/*"))
    bomb = tmp_path / "bomb"
    for file, damage in zip(files[1:], DAMAGES.values(), strict=False):
        bad = damage(json.loads(file.read_bytes()), bomb)
        file.write_bytes(bad if isinstance(bad, bytes) else bad.encode())
    again, remade = run()
    assert again == rows and len(remade) == len(DAMAGES) - 1 and not bomb.exists()
    assert all(caplog.text.count(f"`{file}` is made again") == 1 for file in files[1:])
    caplog.clear()
    assert run() == (rows, []) and not caplog.records


def write_result(folder: Path) -> None:
    records = ResultStore(
        result_storage=LocalFileSystem(basepath=str(folder)),
        serializer=BatchResultSerializer(),
        cache_result_in_memory=False,
    )
    check_records(records)
    records.write(RESULT, key=KEY)


def test_a_process_that_is_killed_while_it_keeps_a_result_leaves_a_whole_one_or_none(tmp_path):
    kills = 0
    for _ in for_each_crash_point(tmp_path, write_result, tmp_path):
        kills += 1
        records = ResultStore(
            result_storage=LocalFileSystem(basepath=str(tmp_path)),
            serializer=BatchResultSerializer(),
            cache_result_in_memory=False,
        )
        check_records(records)
        if records.exists(KEY):
            assert records.read(KEY).result.rows == RESULT.rows
    assert kills > 2
