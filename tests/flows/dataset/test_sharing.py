"""What becomes of a dataset after its run: saved, loaded, split, pushed to a Hub that is played here."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset

from flows import ConfigurationError, Distiset, Pipeline
from flows.dataset import provenance
from flows.dataset.distiset import MAX_IN_MEMORY_BYTES
from llms import AsyncLLM, LlamaServerLLM, OpenAILLM, Rejected, TransformersLLM
from llms.config.prices import Price
from llms.typing import GenerateOutput, Usage
from tasks import KeepColumns, LoadDataFromDicts, LoadDataFromHub, Step, TextGeneration

pytestmark = pytest.mark.usefixtures("prefect_server")


class Bright(Step):
    """Says whether a number is even; cannot judge thirteen."""

    def process(self, inputs):
        if any(row["n"] == 13 for row in inputs):
            raise ValueError("thirteen is beyond me")
        yield [row | {"even": row["n"] % 2 == 0} for row in inputs]


def made(output=None, count=50, output_format="parquet", **fields):
    with Pipeline(name="numbers") as pipeline:
        LoadDataFromDicts(data=[{"n": n} for n in range(count)]) >> Bright(**fields)
    return pipeline.run(output=output, output_format=output_format)


def files(folder):
    return {f"{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Hub(ThreadingHTTPServer):
    """The few endpoints of the Hugging Face Hub that an upload speaks to; keeps the files of one repository."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}
        self.made: list[dict] = []
        self.commits: list[str] = []
        self.keys: set[str | None] = set()
        self.key = "Bearer hf_of_the_test"
        self.cards: dict[str, dict] = {}


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else self._chunks()
        hub, path = self.server, self.path.partition("?")[0]
        hub.keys.add(self.headers.get("Authorization"))
        if path == "/api/validate-yaml":
            self._say({"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != hub.key:
            self._say({"error": "Invalid username or password."}, 401)
        elif path == "/api/repos/create":
            hub.made.append(json.loads(body))
            self._say({"url": f"{hub.url}/datasets/me/numbers", "name": "me/numbers"})
        elif "/preupload/" in path:
            asked = json.loads(body)["files"]
            self._say({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]})
        elif "/commit/" in path:
            for each in map(json.loads, body.splitlines()):
                value = each["value"]
                if each["key"] == "header":
                    hub.commits.append(value["summary"])
                elif each["key"] == "file":
                    hub.files[value["path"]] = base64.b64decode(value["content"])
                elif each["key"] == "deletedFile":
                    del hub.files[value["path"]]
            url = f"{hub.url}/datasets/me/numbers/commit/c0ffee"
            self._say({"success": True, "commitOid": "c0ffee", "commitUrl": url})
        else:
            self._say({}, 404)

    def do_GET(self):
        if self.server.cards:
            name = self.path.removeprefix("/api/").partition("?")[0].partition("/revision/")[0]
            card = self.server.cards.get(name)
            return self._say({"id": name, "cardData": card} if card else {}, 200 if card else 404)
        entries = [
            {"type": "file", "path": path, "size": len(held), "oid": "0" * 40}
            for path, held in self.server.files.items()
        ]
        self._say(entries if "/tree/" in self.path else {"id": "me/numbers", "sha": "c0ffee", "siblings": entries})

    def _chunks(self):
        body = b""
        while size := int(self.rfile.readline(), 16) if self.headers.get("Transfer-Encoding") == "chunked" else 0:
            body += self.rfile.read(size)
            self.rfile.readline()
        return body

    def _say(self, body, status=200):
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def near(hub, monkeypatch):
    """The Hub of this process."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    return hub


class TestSaveToDisk:
    def test_a_round_trip_keeps_errors_and_summary(self, tmp_path):
        dataset = made(input_batch_size=1)
        dataset.save_to_disk(tmp_path / "kept")
        rows, summary = dataset["default"]["train"].to_list(), dataset.summary
        again = Distiset.load(tmp_path / "kept")
        assert again["default"]["train"].to_list() == rows and len(rows) == 49
        assert again.summary == summary and again.errors["message"] == ["thirteen is beyond me"]
        assert [path.name for path in tmp_path.iterdir()] == ["kept"]

    def test_a_dataset_replaces_only_a_dataset(self, tmp_path):
        dataset = made(count=3)
        dataset.save_to_disk(tmp_path / "kept")
        made(count=5).save_to_disk(tmp_path / "kept")
        assert Distiset.load_from_disk(f"{tmp_path}/kept").summary.rows == 5
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "thesis.tex").write_text("")
        with pytest.raises(ConfigurationError, match="`thesis.tex`.*choose another"):
            dataset.save_to_disk(tmp_path / "thesis")
        with pytest.raises(ConfigurationError, match="is where the dataset is"):
            dataset.save_to_disk(dataset.folder)

    def test_a_folder_without_a_dataset_is_refused(self, tmp_path):
        with pytest.raises(ConfigurationError, match="holds no dataset: it has no `run.json`"):
            Distiset.load(tmp_path)
        made(tmp_path / "out").folder.rename(tmp_path / "late.partial")
        with pytest.raises(ConfigurationError, match="What an unfinished run has made is in `.*late.partial`"):
            Distiset.load(tmp_path / "late")
        assert Distiset.load(tmp_path / "late.partial").summary.rows


class TestSplit:
    def test_every_row_is_in_one_split(self):
        parts = made(count=10).train_test_split(0.8, seed=1)["default"]
        assert {name: len(rows) for name, rows in parts.items()} == {"train": 8, "test": 2}
        assert sorted([*parts["train"]["n"], *parts["test"]["n"]]) == list(range(10)) != [*parts["train"]["n"]]

    def test_equal_seeds_draw_equal_splits(self):
        dataset = made(count=12)
        drawn = [dataset.train_test_split(0.5, seed=seed)["default"]["train"]["n"][:] for seed in (1, 1, 2)]
        assert drawn[0] == drawn[1] != drawn[2]
        once = dataset.train_test_split(0.5)
        assert once["default"]["train"]["n"][:] == once["default"]["train"]["n"][:]
        assert list(dataset["default"]) == ["train"]  # as it was

    def test_without_shuffle_the_first_rows_are_train(self):
        parts = made(count=10).train_test_split(train_size=0.7, shuffle=False)["default"]
        assert (parts["train"]["n"][:], parts["test"]["n"][:]) == ([*range(7)], [7, 8, 9])

    def test_a_split_is_saved_and_listed_in_the_card(self, tmp_path):
        split = made(count=40, input_batch_size=1).train_test_split(0.75, seed=3)
        split.save_to_disk(tmp_path / "kept")
        again = Distiset.load(tmp_path / "kept")
        for name in ("train", "test"):
            assert again["default"][name].to_list() == split["default"][name].to_list()
            seen = load_dataset(str(tmp_path / "kept"), split=name, cache_dir=str(tmp_path / "cache"))
            assert seen["n"][:] == again["default"][name]["n"][:]
        assert len(again.errors) == 1
        assert json.loads((tmp_path / "kept" / "run.json").read_text())["split"]["seed"] == 3
        with pytest.raises(ConfigurationError, match="split already"):
            again.train_test_split(0.5)

    def test_a_split_without_rows_keeps_its_columns(self, tmp_path):
        split = made(count=1).train_test_split(0.9)
        split.save_to_disk(tmp_path / "kept")
        test = Distiset.load(tmp_path / "kept")["default"]["test"]
        assert len(test) == 0 and test.column_names == ["n", "even"]

    @pytest.mark.parametrize("size", [0, 1, 1.5, -0.1])
    def test_train_size_is_a_fraction(self, size):
        with pytest.raises(ConfigurationError, match="between 0 and 1"):
            made(count=2).train_test_split(size)

    def test_a_split_keeps_its_temporary_folder_alive(self):
        split = made(count=4).train_test_split(0.5)
        assert len(split["default"]["train"]) == 2


class TestJsonl:
    """JSONL instead of Parquet: all that can be done with a dataset can be done with it."""

    def test_read_split_save_and_push(self, near, tmp_path, monkeypatch):
        dataset = made(tmp_path / "out", input_batch_size=1, output_format="jsonl")
        rows = [{"n": n, "even": n % 2 == 0} for n in range(50) if n != 13]
        lines = (tmp_path / "out" / "default" / "part-00000.jsonl").read_text().splitlines()
        assert list(map(json.loads, lines)) == rows == dataset["default"]["train"].to_list()
        assert dataset.head("default", 2) == rows[:2] and len(dataset.errors) == 1
        seen = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
        assert seen.to_list() == rows and seen.features == dataset["default"]["train"].features

        split = dataset.train_test_split(0.8, seed=1)
        split.save_to_disk(tmp_path / "kept")
        again = Distiset.load(tmp_path / "kept")
        for name in ("train", "test"):
            assert again["default"][name].to_list() == split["default"][name].to_list()
            assert list((tmp_path / "kept" / "default").glob(f"{name}-*.jsonl"))

        near.files["default/part-00000.parquet"] = b"of an earlier push"
        dataset.push_to_hub("me/numbers", token="hf_of_the_test")
        assert near.files == files(tmp_path / "out") and "default/part-00000.jsonl" in near.files

        monkeypatch.setattr("flows.dataset.distiset.MAX_IN_MEMORY_BYTES", 0)
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        assert dataset["default"]["train"].to_list() == rows

    def test_large_files_are_mapped_and_never_stale(self, tmp_path, monkeypatch):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        assert not made(tmp_path / "small", count=3)["default"]["train"].cache_files
        monkeypatch.setattr("flows.dataset.distiset.MAX_IN_MEMORY_BYTES", 0)
        for count in (3, 2):
            dataset = made(tmp_path / "out", count=count)["default"]["train"]
            assert dataset["n"][:] == list(range(count)) and dataset.cache_files

    def test_the_in_memory_limit_is_small(self):
        assert MAX_IN_MEMORY_BYTES <= 8 << 20

    def test_a_dataset_replaces_one_of_another_format(self, tmp_path):
        made(tmp_path / "out", count=3, output_format="jsonl")
        assert made(tmp_path / "out", count=2)["default"]["train"]["n"][:] == [0, 1]
        assert [path.suffix for path in (tmp_path / "out" / "default").iterdir()] == [".parquet"]


class TestCard:
    def test_it_describes_steps_models_and_prompts(self, tmp_path):
        class Sayer(AsyncLLM):
            """Says yes."""

            price: Price = Price(input=1, output=1)

            @property
            def model_name(self):
                return "sayer-7"

            def cost(self, usage):
                return self.price.cost(usage)

            async def agenerate(self, input, num_generations=1, temperature: float = 1.0):
                if "3" in input[-1]["content"]:
                    raise Rejected("not that")
                return GenerateOutput(["yes"], usage=Usage(1_000_000, 1_000_000))

        with Pipeline(name="sayings") as pipeline:
            data = LoadDataFromDicts(data=[{"instruction": f"`Is` it {n}?"} for n in range(8)])
            answer = TextGeneration(name="answer", llm=Sayer(), system_prompt="Say yes.")
            data >> answer >> KeepColumns(columns=["generation"])
        given = {"answer": {"llm": {"generation_kwargs": {"temperature": 0.5}}}}
        dataset = pipeline.run(given, output=tmp_path / "out", max_error_rate=1)
        run = json.loads((tmp_path / "out" / "run.json").read_text())
        assert run["steps"]["answer"]["template"] == "{{ instruction }}" and run["parameters"] == given
        assert run["prompts"]["answer"][1] == {"role": "user", "content": "`Is` it 0?"}
        assert run["summary"]["steps"]["answer"]["errors"] == {"Rejected": 1}
        assert run["summary"]["cost"] == dataset.summary.cost == 14 and run["licences"] == {}
        card = (tmp_path / "out" / "README.md").read_text()
        for told in (
            "7 rows made with distilflow",
            "| `answer` | `TextGeneration` | 7 | 1 | 8 | 7,000,000 | 7,000,000 | $14.0000 |",
            '`answer` asked `sayer-7` (`Sayer`) with `{"temperature": 0.5}`',
            "```\nSay yes.\n```",
            "```\n`Is` it 0?\n```",
            "| `answer` | `Rejected` | 1 |",
            "`sayer-7`: not known here",
            f"prefect {run['versions']['prefect']}",
        ):
            assert told in card, told
        assert yaml.safe_load(card.split("---")[1])["configs"][0]["config_name"] == "default"

    def test_licences_come_from_the_hub(self, near, tmp_path):
        near.cards = {"datasets/me/questions": {"license": "mit"}, "models/org/tiny": {"license": ["a", "b"]}}
        steps = [
            LoadDataFromHub(repo_id="me/questions"),
            LoadDataFromHub(repo_id="me/private"),
            LoadDataFromHub(repo_id=str(tmp_path)),
            TextGeneration(name="one", llm=TransformersLLM(model="org/tiny")),
            TextGeneration(name="two", llm=LlamaServerLLM()),
            TextGeneration(name="three", llm=OpenAILLM(model="org/hosted", api_key="k")),
        ]
        assert provenance.find_licences(steps) == {
            "datasets/me/questions": "mit",
            "datasets/me/private": None,
            "org/tiny": "a, b",
            "demo-2m": "apache-2.0",
        }


class TestPushToHub:
    def test_the_hub_has_the_files_of_the_folder(self, near, tmp_path):
        dataset = made(tmp_path / "out", input_batch_size=1)
        assert (
            dataset.push_to_hub("me/numbers", private=True, token="hf_of_the_test") == f"{near.url}/datasets/me/numbers"
        )
        assert near.files == files(tmp_path / "out")
        assert near.files.keys() == {"README.md", "run.json", "errors.parquet", "default/part-00000.parquet"}
        assert near.made[0]["type"] == "dataset" and near.made[0]["visibility"] == "private"
        assert near.commits == ["default: 49 rows"]

    def test_a_second_push_replaces_the_first(self, near, tmp_path):
        made(tmp_path / "out", input_batch_size=1).push_to_hub("me/numbers", token="hf_of_the_test")
        near.files["default/part-00001.parquet"] = near.files["figure.png"] = b"of an earlier push"
        made(tmp_path / "out", count=5).push_to_hub("me/numbers", token="hf_of_the_test", commit_message="fewer")
        assert near.files.keys() == {"README.md", "run.json", "figure.png", "default/part-00000.parquet"}
        assert near.commits[-1] == "fewer"

    def test_a_split_is_pushed_as_two_splits(self, near, tmp_path):
        made(count=10).train_test_split(0.8).push_to_hub("me/numbers", token="hf_of_the_test")
        for name, held in near.files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(held)
        assert len(pq.read_table(tmp_path / "default" / "test-00000.parquet")) == 2
        seen = load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))
        assert {name: len(rows) for name, rows in seen.items()} == {"train": 8, "test": 2}

    def test_a_refused_token_is_explained(self, near):
        with pytest.raises(ConfigurationError, match="does not let you write `me/numbers` .*`token=`.*`HF_TOKEN`"):
            made(count=2).push_to_hub("me/numbers", token="hf_wrong")
        with pytest.raises(ConfigurationError, match="names no dataset of the Hub"):
            made(count=2).push_to_hub("me/my/numbers", token="hf_of_the_test")
        assert not near.files

    @pytest.mark.slow
    def test_address_and_token_come_from_the_environment(self, hub, tmp_path):
        made(tmp_path / "out", count=2)
        code = "from flows import Distiset; print(Distiset.load('out').push_to_hub('me/numbers'))"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_of_the_test"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.stdout.strip() == f"{hub.url}/datasets/me/numbers", done.stderr
        assert hub.files == files(tmp_path / "out")
        assert not any(b"hf_of_the_test" in held for held in hub.files.values())
