"""No key is ever where it could be read: everything a run leaves is searched for planted ones."""

import base64
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from functools import cache
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.__main__ import main
from deployments.errors import ConfigurationError
from deployments.local import serve
from deployments.local.processes import Processes
from flows.runtime import server
from llms import OpenAILLM
from tests.support.prefect_server import PrefectServer, ask_server
from tests.support.wire import Request, Wire

pytestmark = pytest.mark.slow
VARIABLE, BLOCK, CODE = "sk-planted-in-the-environment", "sk-planted-in-a-saved-block", "sk-planted-in-the-code"
PARAMETER = "sk-planted-in-a-parameter"
KEYS = [VARIABLE, BLOCK, CODE, PARAMETER]
TRACE = "0 of a planted"
"""Part of what every run asks: whoever finds this in a place would find a key there."""

RUNS = """
import sys
from flows import Pipeline
from llms import AnthropicLLM, OpenAILLM
from tasks import LoadDataFromDicts, TextGeneration

url, folder, code = sys.argv[1:]
plain = {"model": "m", "base_url": url, "deadline": 2}
models = {
    "variable": OpenAILLM(**plain),
    "block": OpenAILLM.load("planted"),
    "code": OpenAILLM(**plain, api_key=code, default_headers={"X-Gateway": code},
        generation_kwargs={"extra_body": {"gateway": {"token": code}}}),
    "sdk": AnthropicLLM(**plain | {"base_url": url.removesuffix("/v1")}, api_key=code),
}
for name, llm in models.items():
    for outcomes in (["fine", "refused", "weather"], ["forbidden"]):
        with Pipeline(name=f"{name} {outcomes[0]}") as pipeline:
            rows = [{"instruction": f"{each} {number} of a planted {name}"} for each in outcomes for number in range(2)]
            LoadDataFromDicts(data=rows) >> TextGeneration(llm=llm, add_raw_input=True)
        try:
            parameters = {"text_generation": {"llm": {"generation_kwargs": {"extra_body": {"access_token": code}}}}}
            parameters = parameters if name == "block" else {}
            output = f"{folder}/{name}-{outcomes[0]}"
            print(pipeline.run(parameters, output=output, max_error_rate=1).errors.to_list())
        except Exception as error:
            print(repr(error), *getattr(error, "__notes__", []), llm, repr(llm))
"""


def key_of(request: Request) -> str:
    return request.headers.get("x-api-key") or request.headers["authorization"].removeprefix("Bearer ")


def echo(request: Request) -> Wire.Reply:
    """A provider that repeats the key it was given in whatever it refuses, body and headers."""
    what = request.body["messages"][-1]["content"].split()[0]
    key = key_of(request)
    status = {"refused": 400, "weather": 503, "forbidden": 401}.get(what)
    if status is None:
        return Wire.Reply()
    said = {"error": {"message": f"what is wrong is {key}", "code": f"bad_{key}", "param": request.headers}}
    return Wire.Reply(said, status, {"x-request-id": key, "x-ratelimit-key": key, "WWW-Authenticate": f"Bearer {key}"})


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with all that runs have left: the server's database, its home and theirs, what they wrote and said."""
    base = tmp_path_factory.mktemp("left")
    with ExitStack() as end:
        leave(base, end)
        yield base


def leave(base: Path, end: ExitStack) -> None:
    """Have runs leave what they do, in this folder."""
    wire = Wire()
    wire.answer = echo
    threading.Thread(target=wire.serve_forever, args=(0.02,), daemon=True).start()
    end.callback(wire.hang_up)
    prefect = end.enter_context(PrefectServer(base / "server"))
    own = {"PREFECT_API_URL": prefect.url, "PREFECT_HOME": str(base / "client"), "DISTILFLOW_HOME": str(base / "store")}
    own |= {"PREFECT_LOGGING_LEVEL": "DEBUG", "OPENAI_API_KEY": VARIABLE}
    with temporary_settings({PREFECT_API_URL: prefect.url}):
        block = OpenAILLM(model="m", base_url=wire.url, api_key=BLOCK, deadline=2)  # type: ignore[arg-type]
        block.save("planted")  # type: ignore[call-arg]
    shell = ["-m", "flows.text_generation", "--llm", "openai-llm/planted", "--output", "shell", "--data", "data.jsonl"]
    (base / "data.jsonl").write_text(f'{{"instruction": "refused {TRACE} shell"}}\n{{"instruction": "fine"}}\n')
    for name, words in (("python", ["-c", RUNS, wire.url, str(base), CODE]), ("shell", shell)):
        with (base / f"{name}.log").open("wb") as said:
            subprocess.run(
                [sys.executable, *words], cwd=base, env=os.environ | own, stdout=said, stderr=said, timeout=200
            )
    refuse(prefect)
    assert prefect.process
    prefect.process.terminate()  # it writes what it still has in hand
    prefect.process.wait(60)
    assert {key_of(request) for request in wire.requests} == {VARIABLE, BLOCK, CODE}


CALLED = """
import json, sys
from flows.text_generation import text_generation
for given in json.loads(sys.argv[1]):
    try:
        text_generation.with_options(name="by hand")(**given)
    except Exception as error:
        print(repr(error))
"""


def refuse(prefect: PrefectServer) -> None:
    """Have parameters refused that hold a key: over REST, in code, and in a shell, whose screen is not kept."""
    own = os.environ | {"PREFECT_API_URL": prefect.url, "PREFECT_HOME": str(prefect.home.parent / "client")}
    with temporary_settings({PREFECT_API_URL: prefect.url}):
        assert main(["pools", "text_generation"]) == 0
    deployment = ask_server("GET", f"{prefect.url}/deployments/name/text-generation/hosted").json()["id"]
    keys = [
        {"llm": f"OpenAILLM model=m api_key={PARAMETER}"},
        {"llm": {"block_type_slug": "openai-llm", "model": "m", "api_key": PARAMETER}},
        {"parameters": {"text_generation": {"llm": {"api_key": PARAMETER}}}},
    ]
    shells = []
    for given in keys:
        body, asked = {"parameters": given}, f"{prefect.url}/deployments/{deployment}/create_flow_run"
        assert ask_server("POST", asked, body).status_code == 409, given
        words = [word for name, value in given.items() for word in ("--param", f"{name}={json.dumps(value)}")]
        command = [sys.executable, "-m", "prefect", "deployment", "run", "text-generation/hosted", *words]
        shells.append(subprocess.Popen(command, env=own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    called = [sys.executable, "-c", CALLED, json.dumps(keys)]
    told = subprocess.run(called, env=own, capture_output=True, timeout=300, text=True)
    assert ["api_key" in line for line in told.stdout.splitlines()] == [True] * len(keys)
    (prefect.home.parent / "called.log").write_text(told.stdout + told.stderr)
    assert all(shell.wait(100) != 0 for shell in shells)


@cache
def contents(left: Path) -> dict[str, bytes]:
    """All there is in every file; of a database and of Parquet what is in it, too."""
    files = [path for path in left.rglob("*") if path.is_file()]
    found = {str(path.relative_to(left)): path.read_bytes() for path in files}
    for path in files:
        if path.suffix == ".db":
            with closing(sqlite3.connect(path)) as database:
                database.text_factory = bytes
                names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
                rows = [database.execute(f'SELECT * FROM "{name.decode()}"').fetchall() for (name,) in names]
            found[str(path.relative_to(left))] += repr(rows).encode()
        elif path.suffix == ".parquet":
            found[str(path.relative_to(left))] += repr(pq.read_table(path).to_pylist()).encode()
    return found


def holding(left: Path, words: str) -> set[str]:
    """The files that hold these words, as they are or in base64."""
    plain = words.encode()
    shapes = [plain, *(base64.b64encode(b"." * shift + plain)[4:-4] for shift in range(3))]
    return {name for name, content in contents(left).items() if any(each in content for each in shapes)}


def test_the_search_looks_everywhere(left: Path) -> None:
    """It finds what has no need to be secret."""
    found = holding(left, TRACE)
    for file in (
        "server/prefect.db",
        "python.log",
        "code-fine/errors.parquet",
        "shell/errors.parquet",
        "block-fine/run.json",
    ):
        assert file in found, f"{file} in {sorted(found)}"


@pytest.mark.parametrize("key", KEYS)
def test_no_key_is_in_what_runs_leave(left: Path, key: str) -> None:
    assert not holding(left, key)


def test_results_are_kept_as_json(left: Path) -> None:
    """What Prefect keeps of runs is read without running anything: no pickle, of a failure neither."""
    kept = [path for path in (left / "client" / "storage").rglob("*") if path.is_file()]
    assert any("answered 401" in path.read_text() for path in kept)
    for path in kept:
        json.loads(path.read_text())


def listening(port: int) -> set[str]:
    """The addresses somebody listens at, at this port."""
    rows = [line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]]
    places = [row[1].split(":") for row in rows if row[3] == "0A"]
    return {address for address, number in places if int(number, 16) == port}


LOOPBACK = {"0100007F"}


def test_servers_are_for_this_machine_only() -> None:
    temporary = server._Server()
    try:
        assert listening(int(temporary.wait().removesuffix("/api").rpartition(":")[2])) == LOOPBACK
    finally:
        temporary.stop()
    url = temporary.url  # its port is free again
    with tempfile.TemporaryFile() as log, Processes() as processes:
        serve.start_server(processes, url, log)
        assert listening(int(url.removesuffix("/api").rpartition(":")[2])) == LOOPBACK
        with pytest.raises(ConfigurationError, match="only this machine's"):
            serve.start_server(processes, "http://192.0.2.1:4200/api", log)


WATCH = """
import os, sys

def watch(event, arguments):
    if event == "socket.connect":
        host = str(arguments[1][0]) if isinstance(arguments[1], tuple) else "127.0.0.1"
    elif event == "socket.getaddrinfo":
        host = str(arguments[0])
    else:
        return
    if host not in ("127.0.0.1", "::1", "localhost", "None"):
        with open(os.environ["REACHED"], "a") as file:
            file.write(host + "\\n")

sys.addaudithook(watch)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
@pytest.mark.slow
def test_a_first_run_in_a_terminal_reaches_nobody_but_its_model(tmp_path: Path, wire: Wire) -> None:
    """All processes of it: Prefect would tell its maker that somebody has begun to use it."""
    import pty

    (tmp_path / "sitecustomize.py").write_text(WATCH)
    own = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "DISTILFLOW_HOME": str(tmp_path / "store"),
    }
    own |= {
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[1]}",
        "REACHED": str(tmp_path / "reached"),
    }  # not CI's
    own |= {"OPENAI_API_KEY": "k", "TERM": "xterm"}
    llm = f"OpenAILLM model=m base_url={wire.url}"
    command = [sys.executable, "-m", "flows.text_generation", "--llm", llm, "--limit", "1", "--output", "out"]
    screen, terminal = pty.openpty()
    process = subprocess.Popen(command, cwd=tmp_path, env=own, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    shown = b""
    with suppress(OSError):  # Linux's word for the end of a terminal
        while part := os.read(screen, 10_000):
            shown += part
    os.close(screen)
    assert process.wait(60) == 0, shown.decode()
    assert len(wire.requests) == 1
    assert not (tmp_path / "reached").exists(), (tmp_path / "reached").read_text()
