"""Every shipped flow: runs from its defaults, in Python and from the shell, and says what is wrong in a sentence."""

import gc
import importlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
from prefect.settings import PREFECT_API_URL

import flows
from flows.cli.main import _record_interrupts
from flows.preference_dataset import preference_dataset
from flows.text_generation import text_generation
from llms import LlamaServerLLM, OpenAILLM
from tests.support.modules import run_main
from tests.support.shipped_flows import SHIPPED_FLOWS

MISTAKES = [
    ("--data nofile.jsonl", "There is no `nofile.jsonl`"),
    ("--data bad.jsonl", "`bad.jsonl:2` is not JSON"),
    ("--data miss.jsonl", "`miss.jsonl:2` has no `instruction`: it has `question`"),
    ("--data empty.jsonl", "`empty.jsonl` has no rows"),
    ("--template {{question}}", "has no `question`: it has `instruction`"),
    ("--template {{question", "`template`: line 1 of the template"),
    ("--llm OpenAILLM model=gpt-5", "`OpenAILLM` has no API key: pass `api_key=` or set `OPENAI_API_KEY`"),
    ("--llm openai-llm/prod", "`llm`: there is no saved block `openai-llm/prod`"),
    ("--llm OpenAILL model=x", "`llm`: there is no model `OpenAILL`: did you mean `OpenAILLM`"),
    ("--llm OpenAILLM modle=x", "`llm`: `OpenAILLM` has no `modle`: did you mean `model`"),
    ("--llm OpenAILLM model=x api_key=sk-1", "`api_key` does not belong in a parameter"),
    ("--llm LlamaServerLLM model_path=x.gguf", "finds no file `x.gguf`"),
    ("--num-generations two", "`num_generations`: Input should be a valid integer"),
    ("--param text_gen.num_generations=2", "no `text_gen`: did you mean `text_generation`"),
    ("--param text_generation.llm.generation_kwargs.temprature=0", "did you mean `temperature`"),
    ("--param a.llm=m --param a.llm.timeout=3", "`--param a.llm.timeout=3`: another `--param` gives"),
    ("--param a.llm.timeout=3 --param a.llm=m", "`--param a.llm=m`: another `--param` gives"),
    ("--param nonsense", "write it like `--param text_generation.num_generations=2`"),
    ("--datta x", "unrecognized arguments: --datta"),
]
"""Arguments and the sentence they are refused with."""

REFUSED = """
import contextlib, io, json, sys, traceback
from flows.cli.main import main
from flows.text_generation import text_generation

for arguments in json.load(sys.stdin):
    status, said = 0, io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            main(text_generation, arguments)
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
    print(json.dumps([status, said.getvalue()]))
"""

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def shell(tmp_path, prefect_server):
    """Runs `python -m flows.<name>` in an empty folder, against the tests' server."""

    def run(name, *arguments, **environment):
        return subprocess.run(
            [sys.executable, "-m", f"flows.{name}", *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value(), "COLUMNS": "100"} | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.mark.parametrize("flow", SHIPPED_FLOWS, ids=lambda flow: flow.fn.__name__)
class TestEveryFlow:
    def test_is_described_and_so_is_each_parameter(self, flow):
        assert flow.description
        for name, schema in flow.parameters.properties.items():
            assert schema.get("description", "").rstrip().endswith("."), name

    def test_needs_nothing(self, flow):
        assert not flow.parameters.required

    def test_runs_from_its_defaults(self, flow, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        dataset = flow(limit=10)  # of which a judge may rate some answers the same
        assert 0 < dataset.summary.rows <= 10 and not dataset.summary.failures
        assert list(tmp_path.glob("outputs/*/default/*.parquet"))

    @pytest.mark.slow
    def test_takes_a_saved_model_by_name(self, flow, tmp_path):
        LlamaServerLLM(n_ctx=512).save("small", overwrite=True)
        dataset = flow(llm="llama-server-llm/small", limit=2, output=tmp_path / "out")
        run = json.loads((dataset.folder / "run.json").read_text())
        assert any(step.get("llm", {}).get("n_ctx") == 512 for step in run["steps"].values())

    def test_help_shows_every_parameter_with_its_default(self, flow, monkeypatch):
        monkeypatch.setenv("COLUMNS", "1000")
        shown = run_main(f"flows.{flow.fn.__name__}", "--help")
        said = " ".join(shown.split())
        for name, schema in flow.parameters.properties.items():
            option = f"--{name.replace('_', '-')} " if schema.get("type") != "boolean" else "--no-"
            assert name == "parameters" or option in shown
            assert " ".join(schema["description"].split()).split(".")[0] in said
            if isinstance(schema.get("default"), int | float) and schema.get("type") != "boolean":
                assert f"(default: {schema['default']})" in said


@pytest.mark.slow
class TestTextGeneration:
    def test_answers_a_file_and_shows_what_it_made(self, shell, tmp_path):
        data = tmp_path / "questions.jsonl"
        data.write_text('{"instruction": "What\'s the capital of Spain?"}\n{"instruction": "Hello"}\n')
        arguments = ["--data", data, "--output", "made", "--num-generations", "2", "--system-prompt", "Be brief."]
        given = "text_generation.llm.generation_kwargs.temperature=0.0"
        done = shell("text_generation", *arguments, "--param", given)
        assert done.returncode == 0, done.stderr
        assert re.search(r"4 rows in .* s \(.* rows/s\), no failures", done.stdout)
        assert re.search(
            r"demo-2m: 4 requests, \d+ tokens in, \d+ out", done.stdout
        )  # its server gives one answer each
        assert "generation: The capital of Spain is Madrid." in done.stdout
        assert "made/default/*.parquet" in done.stdout
        assert "Finished in state" not in done.stderr and "Traceback" not in done.stderr
        made = pq.read_table(tmp_path / "made" / "default").to_pylist()
        assert [row["instruction"] for row in made] == ["What's the capital of Spain?"] * 2 + ["Hello"] * 2
        assert made[0]["text_generation_metadata"]["raw_input"][0] == {"role": "system", "content": "Be brief."}
        run = json.loads((tmp_path / "made" / "run.json").read_text())
        assert run["parameters"] == {"text_generation": {"llm": {"generation_kwargs": {"temperature": 0.0}}}}

    def test_a_model_may_be_given_inline(self, shell, wire, tmp_path):
        model = ["OpenAILLM", "model=gpt-5", f"base_url={wire.url}"]
        done = shell("text_generation", "--limit", 3, "--llm", *model, OPENAI_API_KEY="sk-secret")
        assert done.returncode == 0, done.stderr
        assert len(wire.requests) == 3 and wire.requests[0].body["model"] == "gpt-5"
        left = "".join(path.read_text() for path in tmp_path.rglob("*") if path.suffix in (".json", ".md"))
        assert "sk-secret" not in done.stdout + done.stderr + left

    def test_a_template_may_use_any_column(self, shell, tmp_path):
        (tmp_path / "data.csv").write_text("country\nSpain\n")
        done = shell("text_generation", "--data", "data.csv", "--template", "What's the capital of {{ country }}?")
        assert "The capital of Spain is Madrid." in done.stdout, done.stderr

    def test_the_same_command_again_asks_nothing_anew(self, shell, wire, tmp_path):
        model = ["--llm", "OpenAILLM", "model=gpt-5", f"base_url={wire.url}"]
        for asked, arguments in ((5, ["--limit", 5]), (5, ["--limit", 5]), (8, ["--limit", 8])):
            done = shell("text_generation", *model, *arguments, OPENAI_API_KEY="k")
            assert done.returncode == 0 and len(wire.requests) == asked, done.stderr
        assert "gpt-5: 3 requests" in done.stdout and "5 from the store" in done.stdout
        shell("text_generation", *model, "--limit", 8, "--no-cache", OPENAI_API_KEY="k")
        assert len(wire.requests) == 16
        shell("text_generation", *model, "--limit", 8, "--system-prompt", "Be brief.", OPENAI_API_KEY="k")
        assert len(wire.requests) == 24

    def test_killed_at_any_moment_it_loses_nothing_that_was_paid(self, wire, tmp_path):
        wire.answer = lambda request: wire.Reply(
            wire.completion(f"answer to {request.body['messages'][0]['content']}"), delay=random.random() / 5
        )
        data = tmp_path / "data.jsonl"
        data.write_text("".join(json.dumps({"instruction": f"question {n}"}) + "\n" for n in range(600)))
        model = ["OpenAILLM", "model=m", f"base_url={wire.url}", "max_concurrency=20"]
        command = [
            sys.executable,
            "-m",
            "flows.text_generation",
            "--data",
            str(data),
            "--output",
            "out",
            "--llm",
            *model,
        ]
        environment = os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value(), "OPENAI_API_KEY": "k"}
        killed = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len(wire.requests) < 200 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(wire.requests) >= 200, "it has hardly begun"
        killed.kill()
        killed.wait()
        time.sleep(0.5)
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert 600 <= len(wire.requests) <= 600 + 20  # what was on the wire is asked again, nothing else
        made = pq.read_table(tmp_path / "out" / "default").to_pylist()
        assert [row["generation"] for row in made] == [f"answer to question {n}" for n in range(600)]

    def test_a_failed_run_says_so_and_where_its_rows_are(self, shell, wire, tmp_path):
        def answer(request):
            return wire.Reply({"error": {"message": "too long"}}, 400) if request.body["messages"] else wire.Reply()

        wire.answer = answer
        model = ["OpenAILLM", "model=gpt-5", f"base_url={wire.url}"]
        done = shell("text_generation", "--limit", 3, "--llm", *model, OPENAI_API_KEY="k")
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert "3 of 3 rows failed in `text_generation`. The first (instructions.jsonl:1)" in done.stderr
        assert "answered 400: too long" in done.stderr
        assert pq.read_table(tmp_path / "outputs" / "text_generation.partial" / "errors.parquet").num_rows == 3

    @pytest.fixture(scope="class")
    def refusals(self, tmp_path_factory, prefect_server):
        """Exit status and what was said for each of the mistakes: all in one process, as it takes seconds to start."""
        folder = tmp_path_factory.mktemp("mistakes")
        (folder / "bad.jsonl").write_text('{"instruction": "a"}\n{"instruction" "b"}\n')
        (folder / "miss.jsonl").write_text('{"instruction": "a"}\n{"question": "b"}\n')
        (folder / "empty.jsonl").write_text("")
        done = subprocess.run(
            [sys.executable, "-c", REFUSED],
            cwd=folder,
            env=os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value()},
            input=json.dumps([arguments.split() for arguments, _ in MISTAKES]),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert not (folder / "outputs").exists()
        return dict(zip(MISTAKES, map(json.loads, done.stdout.splitlines()), strict=True))

    @pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake[0])
    def test_a_mistake_is_told_in_a_sentence(self, refusals, mistake):
        status, said = refusals[mistake]
        assert mistake[1] in said and "Traceback" not in said
        assert status == 2 and "sk-1" not in said

    def test_a_mistake_ends_the_process(self, shell, tmp_path):
        done = shell("text_generation", "--data", "nofile.jsonl")
        assert "There is no `nofile.jsonl`" in done.stderr and "Traceback" not in done.stderr
        assert done.returncode == 2 and not (tmp_path / "outputs").exists()

    def test_a_text_that_looks_like_json_is_a_text(self, shell, wire, tmp_path):
        (tmp_path / "data.csv").write_text("question\nWhy?\n")
        model = ["--llm", "OpenAILLM", "model=m", f"base_url={wire.url}"]
        for template, prompt in (("{{ question }}", "Why?"), ("[INST] {{ question }}", "[INST] Why?")):
            given = ["--param", f"text_generation.template={template}", "--template", "{{ question }}"]
            done = shell("text_generation", "--data", "data.csv", *model, *given, OPENAI_API_KEY="k")
            assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
            assert wire.requests[-1].body["messages"][-1]["content"] == prompt

    def test_without_a_server_it_starts_one_of_its_own(self, tmp_path):
        environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
        done = subprocess.run(
            [sys.executable, "-m", "flows.text_generation", "--limit", "1"],
            cwd=tmp_path,
            env=environment | {"PREFECT_HOME": str(tmp_path / "prefect")},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert "Madrid" in done.stdout

    def test_interrupting_it_ends_it_soon_and_says_so(self, shell, wire, tmp_path):
        wire.answer = lambda request: wire.Reply(delay=200)
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.text_generation", "--llm", "OpenAILLM", "model=m", f"base_url={wire.url}"],
            cwd=tmp_path,
            env=os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value(), "OPENAI_API_KEY": "k"},
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 120
        while not wire.requests and time.monotonic() < deadline:
            time.sleep(0.1)
        assert wire.requests, "it has asked nothing"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=100)  # the requests in flight would take 200 s
        assert process.returncode == 130 and "interrupted" in said and "Traceback" not in said, said


@pytest.mark.parametrize("collects", [True, False])
def test_importing_flows_leaves_garbage_collection_as_it_was(collects):
    try:
        gc.enable() if collects else gc.disable()
        importlib.reload(flows)
        assert gc.isenabled() == collects
    finally:
        gc.enable()


def test_an_interrupt_that_python_drops_comes_again(monkeypatch):
    class Freed:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    handler = signal.getsignal(signal.SIGINT)
    try:
        received = _record_interrupts()
        Freed()
        with pytest.raises(KeyboardInterrupt):
            time.sleep(60)
        assert len(received) == 2
    finally:
        signal.signal(signal.SIGINT, handler)


def test_three_models_answer_and_the_best_and_the_worst_are_a_pair(wire, tmp_path):
    from prefect.client.orchestration import get_client

    def answer(request):
        if request.body["model"] != "judge":
            return wire.Reply(wire.completion(f"{request.body['model']} says so"))
        prompt = request.body["messages"][-1]["content"]
        given = [re.search(r"(\w+) says so", part)[1] for part in re.split(r"(?=\b\w+ says so)", prompt)[1:]]
        ratings = {"good": 5, "middling": 3, "bad": 1}
        texts = [{"rationale": "so it is", "rating": ratings[each]} for each in given]
        return wire.Reply(wire.completion(json.dumps({"texts": texts})))

    wire.answer = answer
    middling, bad, good, judge = (
        OpenAILLM(model=name, base_url=wire.url, api_key="sk-secret") for name in ("middling", "bad", "good", "judge")
    )
    data = [{"instruction": f"question {n}"} for n in range(4)]
    out = tmp_path / "out"
    dataset = preference_dataset(data=data, llm=middling, other_llm=bad, more_llms=[good], judge=judge, output=out)
    rows = dataset["default"]["train"].to_list()
    assert [row["instruction"] for row in rows] == [f"question {n}" for n in range(4)]
    for row in rows:
        assert (row["chosen_model"], row["chosen_rating"]) == ("good", 5)
        assert (row["rejected_model"], row["rejected_rating"]) == ("bad", 1)
        for side in ("chosen", "rejected"):
            said = f"{row[f'{side}_model']} says so"
            assert [each["content"] for each in row[side]] == [row["instruction"], said]
    run = json.loads((out / "run.json").read_text())["flow_run"]
    with get_client(sync_client=True) as client:
        assert "sk-secret" not in client.read_flow_run(run["id"]).model_dump_json()


@pytest.mark.slow
def test_further_models_from_the_shell(shell, wire, tmp_path):
    model = [f"base_url={wire.url}", "model=m"]
    more = ["--more-llms", "OpenAILLM", *model, "--more-llms", "OpenAILLM", f"base_url={wire.url}", "model=n"]
    llms = [word for name in ("llm", "other-llm", "judge") for word in (f"--{name}", "OpenAILLM", *model)]
    shell("preference_dataset", *llms, *more, "--limit", 1, OPENAI_API_KEY="k")
    run = json.loads(next(tmp_path.rglob("run.json")).read_text())
    assert run["steps"]["model_3"]["llm"]["model"] == "m" and run["steps"]["model_4"]["llm"]["model"] == "n"


def test_a_model_is_never_stored_with_its_key(wire, tmp_path):
    from prefect.client.orchestration import get_client

    llm = OpenAILLM(model="m", base_url=wire.url, api_key="sk-secret")
    dataset = text_generation(llm=llm, limit=2, output=tmp_path / "out")
    run = json.loads((dataset.folder / "run.json").read_text())["flow_run"]
    with get_client(sync_client=True) as client:
        assert "sk-secret" not in client.read_flow_run(run["id"]).model_dump_json()
    assert "sk-secret" not in "".join(path.read_text() for path in dataset.folder.glob("*.*"))
