"""Pipelines to measure, each run in a process of its own, against one Prefect server that can die.

    python -m tests.benchmarks.runs '{"shape": "alone", "data": "rows.jsonl", "output": "out", "url": …}'

runs one and prints what it came to; `tests.benchmarks.pipelines` compares them, `tests.benchmarks.kills` disturbs them.
"""

import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import psutil
from prefect import flow

from flows import Distiset, Pipeline
from flows.runtime import child
from flows.runtime.server import TEMPORARY_SERVER_ENV
from llms import OpenAILLM
from tasks import GroupColumns, LoadDataFromFiles, TextGeneration
from tests.benchmarks import requests
from tests.benchmarks.executor import Instant
from tests.support.ports import reserve_port

ROOT = Path(__file__).parents[2]
IN_FLIGHT = 50


def three_steps(given: dict[str, Any]) -> None:
    """Instructions through three models that answer at once."""
    LoadDataFromFiles(data_files=given["data"]) >> asks("one") >> asks("two", "said_one") >> asks("three", "said_two")


def asks(
    name: str, reads: str = "instruction", llm: Any = None, of: type[TextGeneration] = TextGeneration, **more: Any
):
    """A step that asks about a column, and fills one named after itself."""
    template = more.pop("template", name + ": {{ " + reads + " }}")
    renamed = {"generation": f"said_{name}"}
    return of(name=name, llm=llm or Instant(), template=template, output_mappings=renamed, add_raw_input=False, **more)


def remote(given: dict[str, Any], **fields: Any) -> OpenAILLM:
    """The model at an address."""
    return OpenAILLM(**{"model": "m", "base_url": given["url"], "api_key": "k", "max_concurrency": IN_FLIGHT} | fields)


def alone(given: dict[str, Any]) -> None:
    """One model."""
    LoadDataFromFiles(data_files=given["data"]) >> asks("writer", llm=remote(given))


def judged(given: dict[str, Any]) -> None:
    """A model that writes, and one elsewhere that judges."""
    writer = asks("writer", llm=remote(given))
    (
        LoadDataFromFiles(data_files=given["data"])
        >> writer
        >> asks("judge", "said_writer", remote(given, base_url=given["judge"]))
    )


def diamond(given: dict[str, Any]) -> None:
    """Two models, and a third that reads what both have written."""
    pair = GroupColumns(columns=["generation"], output_columns=["pair"])
    data, llm = LoadDataFromFiles(data_files=given["data"]), remote(given)
    plain = {"llm": llm, "add_raw_input": False}
    writers = [TextGeneration(name=name, template=name + ": {{ instruction }}", **plain) for name in ("left", "right")]
    data >> writers >> pair >> asks("judge", llm=llm, template="judge: {{ pair | join(' or ') }}")


SHAPES: dict[str, Callable[[dict[str, Any]], None]] = {
    "three-steps": three_steps,
    "alone": alone,
    "judged": judged,
    "diamond": diamond,
}


def made(given: dict[str, Any]) -> Distiset:
    """The dataset of a pipeline, made here."""
    with Pipeline(name=given["shape"]) as pipeline:
        SHAPES[given["shape"]](given)
    return pipeline.run(output=given["output"])


@flow
def deployed(given: dict[str, Any]) -> None:
    """The same as a deployment, for a worker."""
    os.environ["DISTILFLOW_HOME"] = given["home"]
    made(given)


def digest(dataset: Distiset) -> str:
    """What is in the rows, but for what is different every time."""
    state = hashlib.sha256()
    for row in dataset["default"]["train"]:
        plain = {name: value for name, value in row.items() if not name.endswith("_metadata")}
        state.update(json.dumps(plain, sort_keys=True).encode())
    return state.hexdigest()


def here(given: dict[str, Any]) -> None:
    """Make the dataset and print what it took."""
    before = time.process_time()
    dataset = made(given)
    cpu = time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    asked = (row["instruction"] for row in dataset["default"]["train"])
    summary = dataset.summary
    figures = {"rows": summary.rows, "failures": summary.failures, "seconds": summary.seconds, "cpu": cpu, "peak": peak}
    figures |= {"in_order": all(text == f"question {at}" for at, text in enumerate(asked)), "digest": digest(dataset)}
    print(json.dumps(figures))


class Prefect:
    """A Prefect server in a process of its own, that can be killed and started again at the same address."""

    def __init__(self, folder: Path) -> None:
        self.port = reserve_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        os.environ |= {"PREFECT_HOME": f"{folder}", "PREFECT_API_URL": self.url, "PREFECT_LOGGING_LEVEL": "CRITICAL"}
        os.environ |= {"DO_NOT_TRACK": "1"}
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        words = ["--factory", "prefect.server.api.server:create_app"]
        words += ["--host", "127.0.0.1", "--port", f"{self.port}", "--log-level", "critical"]
        settings = TEMPORARY_SERVER_ENV | {"PREFECT_SERVER_SERVICES_FOREMAN_ENABLED": "1"}
        environment = {**settings, **os.environ, "PREFECT_SERVER_DATABASE_TIMEOUT": "60"}
        self.process = child.start("uvicorn", *words, garbage_thread=True, env=environment, stderr=subprocess.DEVNULL)
        opener = build_opener(ProxyHandler({}))
        while True:
            try:
                with opener.open(f"{self.url}/health", timeout=5):
                    return
            except (URLError, OSError):
                assert self.process.poll() is None, "Prefect's server did not start"
                time.sleep(0.1)

    def cpu(self) -> float:
        """Seconds of CPU it has taken."""
        took = psutil.Process(self.process.pid).cpu_times()
        return took.user + took.system

    def idle(self) -> None:
        """Wait until it has recorded what came."""
        before = -1.0
        while (now := self.cpu()) - before > 0.1:
            before = now
            time.sleep(2)

    def kill(self) -> None:
        """Let it die at once."""
        self.process.kill()
        self.process.wait()


class Place(requests.Place):
    """A folder for data and datasets, with answers and results of its own, and the server all its runs use."""

    def __init__(self, folder: Path, prefect: Prefect) -> None:
        folder.mkdir()
        super().__init__(f"{folder}")
        self.prefect = prefect

    def fresh(self) -> Path:
        """The same, for the results of processes that are started from here too."""
        output = super().fresh()
        os.environ["PREFECT_LOCAL_STORAGE_PATH"] = f"{self.home / 'results'}"
        return output

    def given(self, shape: str, rows: int, **more: Any) -> dict[str, Any]:
        """What a run is told."""
        told = {"shape": shape, "data": f"{self.data(rows)}", "output": f"{self.home / 'out'}", "home": f"{self.home}"}
        return told | more


def command(given: dict[str, Any]) -> list[str]:
    """What runs a pipeline in a process of its own."""
    return [sys.executable, "-m", "tests.benchmarks.runs", json.dumps(given)]


def run(given: dict[str, Any]) -> dict[str, Any]:
    """Run it to its end: what it printed."""
    done = subprocess.run(command(given), check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    here(json.loads(sys.argv[1]))
