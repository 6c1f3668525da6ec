"""Collecting garbage in a thread: an event loop goes on while a cursor of a waiting connection is freed."""

import subprocess
import sys
from pathlib import Path

import pytest

from flows.runtime import garbage

WAITING_CONNECTION = """
import runpy, sqlite3, sys, threading, time

if len(sys.argv) > 2:
    runpy.run_path(sys.argv[2])["collect_in_a_thread"]()
holder = sqlite3.connect(sys.argv[1], isolation_level=None)
holder.execute("CREATE TABLE t (x)")
waiting = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=5, check_same_thread=False)
cursor = waiting.execute("SELECT 1 UNION SELECT 2")
cycle = [cursor]
cycle.append(cycle)
del cursor, cycle

def write():
    try:
        waiting.execute("BEGIN IMMEDIATE")
        print("written")
    except sqlite3.OperationalError as error:
        print(error)

holder.execute("BEGIN IMMEDIATE")
writing = threading.Thread(target=write)
writing.start()
time.sleep(0.5)  # it waits for the lock
objects = [[] for _ in range(300_000)]  # the collector looks
time.sleep(0.5)
holder.execute("COMMIT")
writing.join()
"""


@pytest.mark.parametrize(("by", "written"), [([], "database is locked"), ([garbage.__file__], "written")])
def test_a_write_waits_no_longer_than_its_lock_is_held(tmp_path: Path, by: list[str], written: str) -> None:
    command = [sys.executable, "-c", WAITING_CONNECTION, str(tmp_path / "db"), *by]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip() == written


def test_what_is_not_reachable_is_freed() -> None:
    objects = f"{garbage.YOUNG_OBJECTS + 1}"
    code = f"""
import runpy, time, weakref
runpy.run_path({garbage.__file__!r})["collect_in_a_thread"]()
class Cycle: pass
cycle = Cycle(); cycle.itself = cycle; freed = weakref.ref(cycle); del cycle
objects = [[] for _ in range({objects})]
deadline = time.monotonic() + 30
while freed() and time.monotonic() < deadline: time.sleep(0.05)
print(freed())
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "None"
