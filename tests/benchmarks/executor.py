"""Framework cost: rows through the executor with a model that answers at once, beside the bare loop.

    python -m tests.benchmarks.executor 10000 100000

Prints rows per second, CPU milliseconds per row of this process, and its peak memory, for each number of rows in a
process of its own.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

from flows import Pipeline
from flows.runtime import server
from llms import AsyncLLM
from llms.typing import ChatType, GenerateOutput
from tasks import LoadDataFromFiles, TextGeneration


class Instant(AsyncLLM):
    """Answers at once."""

    @property
    def model_name(self) -> str:
        """Its name."""
        return "instant"

    async def agenerate(self, input: ChatType, num_generations: int = 1, **kwargs: Any) -> GenerateOutput:
        """A sentence."""
        return GenerateOutput(["The capital of Spain is Madrid."] * num_generations)


def measure(rows: int) -> dict[str, float]:
    """Run once, here."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.jsonl"
        with data.open("w") as file:
            for number in range(rows):
                file.write(json.dumps({"instruction": f"What is the capital of country number {number}?"}) + "\n")
        with Pipeline(name="benchmark") as pipeline:
            LoadDataFromFiles(data_files=data) >> TextGeneration(llm=Instant())
        with server.available():
            before = time.process_time()
            dataset = pipeline.run(output=Path(folder) / "dataset")
            cpu = time.process_time() - before
        seconds = dataset.summary.seconds
        assert dataset.summary.rows == rows
        bare = time.process_time()
        llm, task = Instant(), TextGeneration(llm=Instant())
        with data.open() as file:
            while lines := list(islice(file, 500)):
                llm.generate([task.format_input(json.loads(line)) for line in lines])
        bare = time.process_time() - bare
    return {
        "rows": rows,
        "rows/s": round(rows / seconds),
        "CPU ms/row": round(1000 * cpu / rows, 3),
        "bare CPU ms/row": round(1000 * bare / rows, 3),
        "peak MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--one":
        print(json.dumps(measure(int(sys.argv[2]))))
    else:
        for rows in sys.argv[1:] or ["10000", "100000"]:
            command = [sys.executable, "-m", "tests.benchmarks.executor", "--one", rows]
            print(subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout.strip())
