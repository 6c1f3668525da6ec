"""What is kept beside the answers, in a process that is killed at every change of a file."""

import asyncio
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from llms import store
from llms.local import automaton_cache
from llms.store import StoredAnswer
from tests.support.crash_points import for_each_crash_point

VERSION_2 = """
    CREATE TABLE answers (
        key TEXT PRIMARY KEY, text TEXT, finish_reason TEXT, reasoning TEXT,
        input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
        cache_read_input_tokens INTEGER NOT NULL, reasoning_output_tokens INTEGER NOT NULL,
        seconds REAL NOT NULL, model TEXT NOT NULL, provider TEXT NOT NULL, created REAL NOT NULL,
        cache_creation_input_tokens INTEGER NOT NULL DEFAULT 0, logprobs TEXT
    );
    INSERT INTO answers VALUES ('old', 'Madrid.', 'stop', NULL, 9, 4, 0, 0, 0.5, 'm', 'OpenAILLM', 1.0, 0, NULL);
    PRAGMA user_version = 2;
"""


def put_answer(home: Path) -> None:
    os.environ["DISTILFLOW_HOME"] = str(home)
    store.prepare()
    asyncio.run(store.put({"new": StoredAnswer("Paris.")}))
    store.close()


@pytest.mark.parametrize("is_old", [False, True])
def test_a_store_that_is_being_made_or_migrated_keeps_what_it_has(is_old, tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILFLOW_HOME", str(tmp_path / "home"))
    if is_old:
        (tmp_path / "home").mkdir()
        with sqlite3.connect(tmp_path / "home" / "answers.db") as connection:
            connection.executescript(VERSION_2)
        connection.close()
    kills = 0
    for _ in for_each_crash_point(tmp_path, put_answer, tmp_path / "home"):
        kills += 1
        found = store.get(["old", "new"])
        store.close()
        assert ("old" in found) == is_old
        assert all(each.text in ("Madrid.", "Paris.") for each in found.values())
    assert kills > 2
    answers = store.get(["old", "new"])
    assert answers["new"].text == "Paris." and ("old" in answers) == is_old


def write_automaton(home: Path) -> None:
    os.environ["DISTILFLOW_HOME"] = str(home)
    automaton_cache.write("name", {"next": np.arange(1000, dtype=np.int32)})


def test_an_automaton_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILFLOW_HOME", str(tmp_path))
    kills = 0
    for _ in for_each_crash_point(tmp_path, write_automaton, tmp_path):
        kills += 1
        found = automaton_cache.read("name")
        assert found is None or list(found["next"]) == list(range(1000))
    assert kills > 2
    found = automaton_cache.read("name")
    assert found is not None and list(found["next"]) == list(range(1000))


def test_a_commit_waits_for_the_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILFLOW_HOME", str(tmp_path))
    with store.connect(tmp_path / "answers.db") as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    connection.close()
