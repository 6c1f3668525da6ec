"""How soon: from the shell to the first row and to the end, beside a bare Prefect flow of one task.

    python -m tests.benchmarks.start

Prints seconds of wall time, each the median of three: with Prefect's temporary server on a database that exists, and,
where `PREFECT_API_URL` is set, with that server.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BARE = """
import time
from prefect import flow, task

@task
def one():
    print("first", time.time())

@flow
def bare():
    one()

bare()
"""

OURS = """
import sys, time
from flows.reporting.progress import ProgressTracker
from flows.text_generation import main, text_generation
from tasks import Task

finished, told = ProgressTracker.on_done, []

def telling(self, step, outcome):
    if isinstance(step, Task) and not told:
        told.append(step)
        print("first", time.time())
    finished(self, step, outcome)

ProgressTracker.on_done = telling
main(text_generation, sys.argv[1:])
"""


def measure(program: str, *arguments: str) -> tuple[float, float]:
    """Seconds to the first row, and to the end of the process."""
    started = time.time()
    done = subprocess.run([sys.executable, "-c", program, *arguments], check=True, capture_output=True, text=True)
    ended = time.time()
    [first] = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("first ")]
    return first - started, ended - started


def report(name: str, program: str, *arguments: str) -> None:
    """Print the medians of three."""
    firsts, ends = zip(*(measure(program, *arguments) for _ in range(3)), strict=True)
    print(f"{name}: first row {statistics.median(firsts):.1f} s, end {statistics.median(ends):.1f} s")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        if not os.getenv("PREFECT_API_URL"):
            os.environ["PREFECT_HOME"] = folder
            first, end = measure(BARE)
            print(f"bare Prefect, which makes its database: first task {first:.1f} s, end {end:.1f} s")
        report("bare Prefect", BARE)
        report("text_generation", OURS, "--output", str(Path(folder) / "out"))
        report("text_generation, one row", OURS, "--output", str(Path(folder) / "out"), "--limit", "1")
