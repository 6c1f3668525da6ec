"""Claims: who asks for an answer that several processes need, and what becomes of it when that one is gone."""

import asyncio
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from llms import store
from llms.store import StoredAnswer, claims
from llms.store.claims import Claims

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the store of this test is."""
    monkeypatch.setenv("DISTILFLOW_HOME", str(tmp_path / "home"))
    yield tmp_path / "home" / "answers.db"
    store.close()


def claimed(file: Path) -> dict[str, str]:
    """The owner of each claim."""
    with closing(sqlite3.connect(file)) as connection:
        return dict(connection.execute("SELECT key, owner FROM claims"))


def taken(file: Path, key: str, owner: str, expires: float) -> None:
    with closing(store.connect(file)) as connection:
        connection.execute("REPLACE INTO claims VALUES (?, ?, ?)", (key, owner, expires))


ELSEWHERE = json.dumps(["another-host", 1, "token"])


def test_what_nobody_has_is_ours_until_it_is_given_back(file: Path) -> None:
    async def main() -> None:
        async with Claims(["a", "b"]) as ours:
            assert not await ours.wait("a") and not await ours.wait("b") and not await ours.wait("not one of them")
            assert claimed(file).keys() == {"a", "b"}

    asyncio.run(main())
    assert claimed(file) == {}


def test_without_keys_the_store_is_not_opened(file: Path) -> None:
    async def main() -> None:
        async with Claims([]):
            pass

    asyncio.run(main())
    assert not file.exists()


def test_an_answer_that_came_meanwhile_is_not_claimed(file: Path) -> None:
    async def main() -> None:
        await store.put({"a": StoredAnswer("a")})
        async with Claims(["a", "b"]) as ours:
            assert await ours.wait("a") and not await ours.wait("b") and claimed(file).keys() == {"b"}

    asyncio.run(main())


def test_another_process_is_waited_for_until_it_answers_or_gives_back(file: Path) -> None:
    async def main() -> None:
        taken(file, "answered", ELSEWHERE, time.time() + 60)
        taken(file, "given back", ELSEWHERE, time.time() + 60)
        async with Claims(["answered", "given back", "free"]) as ours:
            assert not await ours.wait("free")
            waiting = [asyncio.create_task(ours.wait(key)) for key in ("answered", "given back")]
            await asyncio.wait(waiting, timeout=0.3)
            assert not any(task.done() for task in waiting)
            await store.put({"answered": StoredAnswer("theirs")})
            assert await waiting[0] and not waiting[1].done()
            with closing(store.connect(file)) as connection:
                connection.execute("DELETE FROM claims WHERE key = 'given back'")
            assert not await waiting[1]
            assert claimed(file).keys() == {"answered", "given back", "free"}

    asyncio.run(main())
    assert claimed(file) == {"answered": ELSEWHERE}, "only ours are given back"


@pytest.mark.parametrize("gone", ["dead", "expired"])
def test_a_claim_of_a_process_that_is_gone_is_taken_over_at_once(gone: str, file: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    host, _, token = json.loads(claims._owner())
    owner = json.dumps([host, child.pid, token]) if gone == "dead" else ELSEWHERE
    taken(file, "a", owner, time.time() + (60 if gone == "dead" else -1))

    async def main() -> None:
        async with Claims(["a"]) as ours:
            assert not await ours.wait("a") and claimed(file) == {"a": claims._owner()}

    asyncio.run(main())


def test_a_claim_is_renewed_while_it_is_held(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "LEASE_S", 0.6)

    def expiry() -> float:
        with closing(sqlite3.connect(file)) as connection:
            return connection.execute("SELECT expires FROM claims").fetchone()[0]

    async def main() -> None:
        async with Claims(["a"]) as ours:
            await ours.wait("a")
            first = expiry()
            while expiry() == first:  # the test's own time limit ends it
                await asyncio.sleep(0.05)

    asyncio.run(main())


def test_a_store_that_cannot_be_used_makes_nobody_wait(file: Path) -> None:
    file.parent.mkdir()
    file.write_text("no database, " * 100)

    async def main() -> None:
        async with Claims(["a"]) as ours:
            assert not await ours.wait("a")

    asyncio.run(main())
