"""Where rows come from: files of every format, the Hub's folders, and the one parameter that stands for all."""

import gzip
import json
import pickle
import time
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter, ValidationError

from tasks.base import GeneratorStep
from tasks.sources.load_data_from_dicts import LoadDataFromDicts
from tasks.sources.load_data_from_files import CHECKED_BYTES, LoadDataFromFiles
from tasks.sources.load_data_from_hub import LoadDataFromHub
from tasks.sources.source import Source, load_data
from tasks.typing import Row

QUESTIONS = [{"id": at, "instruction": f"¿Cuánto es {at} más {at}?"} for at in range(250)]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder relative paths are looked up in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(path: str | Path, content: str | bytes) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_parquet(path: str | Path, rows: list[dict[str, Any]], group: int = 100) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)


def rows_of(step: GeneratorStep, offset: int = 0) -> list[Row]:
    return [row for chunk in step.process(offset) for row in chunk]


def origins(step: GeneratorStep, offset: int = 0) -> list[str | None]:
    return [row.origin for row in rows_of(step, offset)]


def refusal(data_files: Any, columns: tuple[str, ...] = ("instruction",), **fields: Any) -> str:
    """The sentence `check` refuses files with."""
    with pytest.raises(ValueError) as caught:
        LoadDataFromFiles(data_files=data_files, **fields).check(columns)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------------ formats


def csv_of(delimiter: str) -> str:
    return "".join(
        delimiter.join(line) + "\n" for line in [["id", "instruction"], *[map(str, q.values()) for q in QUESTIONS]]
    )


FORMATS: dict[str, str] = {
    "q.jsonl": jsonl(QUESTIONS),
    "q.ndjson": jsonl(QUESTIONS),
    "q.json": json.dumps(QUESTIONS),
    "indented.json": json.dumps(QUESTIONS, indent=2),
    "wrapped.json": json.dumps({"version": 2, "tags": ["a"], "data": QUESTIONS}),
    "lines.json": jsonl(QUESTIONS),
    "q.csv": csv_of(","),
    "q.tsv": csv_of("\t"),
}


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_text_file_of_every_kind_brings_its_rows(name: str, ending: str) -> None:
    write(name + ending, FORMATS[name])
    step = LoadDataFromFiles(data_files=name + ending)
    step.check(["instruction", "id"])
    rows = rows_of(step)
    assert list(step.outputs) == ["id", "instruction"]
    assert [row["instruction"] for row in rows] == [row["instruction"] for row in QUESTIONS]
    assert [int(row["id"]) for row in rows] == list(range(250))
    assert rows_of(step, 249) == rows[249:]
    assert rows_of(step, 250) == []


def test_a_parquet_file_brings_its_rows() -> None:
    write_parquet("q.parquet", QUESTIONS, group=60)
    step = LoadDataFromFiles(data_files="q.parquet")
    step.check(["instruction"])
    assert list(step.outputs) == ["id", "instruction"]
    assert rows_of(step) == QUESTIONS
    for offset in (0, 1, 59, 60, 61, 120, 249, 250, 300):
        assert rows_of(step, offset) == QUESTIONS[offset:]
        assert origins(step, offset) == [f"q.parquet[{at}]" for at in range(offset, 250)]


def test_a_byte_order_mark_is_not_part_of_the_first_column() -> None:
    for name in ("q.jsonl", "q.json", "q.csv"):
        write(name, b"\xef\xbb\xbf" + FORMATS[name].encode())
        assert list(LoadDataFromFiles(data_files=name).outputs) == ["id", "instruction"]


def test_filetype_says_what_an_ending_does_not() -> None:
    write("questions.txt", jsonl(QUESTIONS))
    step = LoadDataFromFiles(data_files="questions.txt", filetype="jsonl")
    step.check(["instruction"])
    assert len(rows_of(step)) == 250


def test_a_json_list_longer_than_the_window_keeps_every_value_whole() -> None:
    rows = [{"text": 'ñ"\\\n' * (at * 997 % 40_000), "number": -1.5e-7, "deep": [[{"a": None}]]} for at in range(30)]
    for name, text in {"q.json": json.dumps(rows), "lines.json": jsonl(rows)}.items():
        write(name, text)
        assert rows_of(LoadDataFromFiles(data_files=name)) == rows


def test_nan_and_blank_lines_are_no_errors() -> None:
    write("q.jsonl", '{"x": NaN}\n\n   \r\n{"x": 1}\n\n')
    step = LoadDataFromFiles(data_files="q.jsonl")
    step.check(["x"])
    assert origins(step) == ["q.jsonl:1", "q.jsonl:4"]


def test_a_lone_conversation_in_a_json_file_is_a_row() -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}]}
    write("q.json", json.dumps(chat))
    assert rows_of(LoadDataFromFiles(data_files="q.json")) == [chat]


# ----------------------------------------------------------------------------------------------- origins, order, counts


def test_origins_name_the_line_a_record_starts_in() -> None:
    write("q.csv", 'a,b\r\n1,"two\r\nlines"\r\n\r\n3,4\r\n')
    write("q.json", '[{"a": 1},\n{"a": 2}]')
    write("lines.json", '\n{"a": 1}\n\n{"a":\n2}\n{"a": 3}')
    assert origins(LoadDataFromFiles(data_files="q.csv")) == ["q.csv:2", "q.csv:5"]
    assert origins(LoadDataFromFiles(data_files="q.json")) == ["q.json[0]", "q.json[1]"]
    assert origins(LoadDataFromFiles(data_files="lines.json")) == ["lines.json:2", "lines.json:4", "lines.json:6"]


def test_a_folder_brings_every_file_of_a_known_kind_in_order() -> None:
    write("data/b.jsonl", '{"a": 2}\n')
    write("data/a.csv", "a\n1\n")
    write("data/c/d.json", '[{"a": 3}]')
    write("data/README.md", "not data")
    write("data/.cache/x.jsonl", '{"a": 9}\n')
    step = LoadDataFromFiles(data_files="data")
    step.check(["a"])
    assert origins(step) == ["a.csv:2", "b.jsonl:1", "c/d.json[0]"]
    assert origins(step, 1) == ["b.jsonl:1", "c/d.json[0]"]
    assert origins(LoadDataFromFiles(data_files=Path("data"), filetype="csv")) == ["a.csv:2"]


def test_globs_and_lists_bring_each_file_once() -> None:
    for name in ("x/1.jsonl", "x/2.jsonl", "y/1.jsonl"):
        write(name, '{"a": 1}\n')
    assert origins(LoadDataFromFiles(data_files="x/*.jsonl")) == ["1.jsonl:1", "2.jsonl:1"]
    assert origins(LoadDataFromFiles(data_files="**/2.jsonl")) == ["x/2.jsonl:1"]
    assert origins(LoadDataFromFiles(data_files=["x", "x/2.jsonl", Path("y/1.jsonl")])) == [
        "x/1.jsonl:1",  # two files are called `1.jsonl`
        "2.jsonl:1",
        "y/1.jsonl:1",
    ]


def test_a_file_with_brackets_in_its_name_is_no_glob() -> None:
    write("q[1].jsonl", '{"a": 1}\n')
    assert origins(LoadDataFromFiles(data_files="q[1].jsonl")) == ["q[1].jsonl:1"]


def test_offset_and_num_examples_count_over_all_files() -> None:
    write("data/1.jsonl", jsonl(QUESTIONS))
    write_parquet("data/2.parquet", QUESTIONS)
    write("data/3.json", json.dumps(QUESTIONS))
    everything = rows_of(LoadDataFromFiles(data_files="data"))
    assert len(everything) == 750
    for offset in (0, 249, 250, 251, 480, 500, 600, 749, 750, 800):
        assert rows_of(LoadDataFromFiles(data_files="data"), offset) == everything[offset:]
        assert rows_of(LoadDataFromFiles(data_files="data", num_examples=550), offset) == everything[offset:550]


def test_lists_of_rows_are_of_moderate_length() -> None:
    write("q.jsonl", jsonl(QUESTIONS))
    assert [len(chunk) for chunk in LoadDataFromFiles(data_files="q.jsonl").process()] == [100, 100, 50]


def test_rows_beyond_num_examples_are_not_checked() -> None:
    write("q.jsonl", '{"a": 1}\n{"a": 2}\nnonsense\n')
    step = LoadDataFromFiles(data_files="q.jsonl", num_examples=2)
    step.check(["a"])
    assert len(rows_of(step)) == 2


def test_the_step_is_compared_and_pickled_as_its_fields() -> None:
    write("q.jsonl", jsonl(QUESTIONS))
    step = LoadDataFromFiles(data_files="q.jsonl")
    step.check(["instruction"])
    copy = pickle.loads(pickle.dumps(step))
    assert copy == step == LoadDataFromFiles(data_files="q.jsonl")
    assert rows_of(copy) == rows_of(step)
    assert LoadDataFromFiles.model_validate_json(step.model_dump_json()) == step


# ------------------------------------------------------------------------------------------------------------ refusals


def test_a_missing_file_is_answered_with_the_one_that_was_meant() -> None:
    write("data/questions.jsonl", jsonl(QUESTIONS))
    message = refusal("data/qestions.jsonl")
    assert message == "There is no `data/qestions.jsonl`: did you mean `data/questions.jsonl`?"


def test_a_missing_file_like_no_other_is_answered_with_what_there_is(here: Path) -> None:
    write("data/a.csv", "a\n1\n")
    message = refusal("data/questions.jsonl")
    assert "no `data/questions.jsonl`" in message and "`a.csv`" in message and f"`{here}`" in message


def test_a_missing_folder_is_named(here: Path) -> None:
    message = refusal("dat/questions.jsonl")
    assert "there is no folder `dat`" in message and f"`{here}`" in message


def test_a_glob_without_a_match_says_what_is_there() -> None:
    write("data/a.csv", "a\n1\n")
    message = refusal("data/*.jsonl")
    assert "`data/*.jsonl` matches no file" in message and "`a.csv`" in message


def test_a_folder_without_data_says_what_is_read() -> None:
    write("data/notes.txt", "x")
    message = refusal("data")
    assert "`data` has no files of" in message and "`.jsonl`" in message and "`notes.txt`" in message


def test_an_unknown_ending_says_which_are_known_and_how_to_say_it() -> None:
    write("questions.txt", jsonl(QUESTIONS))
    message = refusal("questions.txt")
    assert (
        "`questions.txt`" in message and "`.jsonl`" in message and "`.parquet`" in message and "`filetype`" in message
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [("q.jsonl", ""), ("q.jsonl", "\n\n"), ("q.json", ""), ("q.json", "[]"), ("q.csv", ""), ("q.csv", "instruction\n")],
)
def test_a_file_without_rows_is_refused(name: str, content: str) -> None:
    write("data/" + name, content)
    write("data/z.jsonl", jsonl(QUESTIONS))
    message = refusal("data")
    assert f"`{name}` has no rows" in message and "`data_files`" in message


def test_a_parquet_file_without_rows_or_column_is_refused() -> None:
    pq.write_table(pa.table({"instruction": pa.array([], pa.string())}), "empty.parquet")
    assert "`empty.parquet` has no rows" in refusal("empty.parquet")
    write_parquet("q.parquet", [{"question": "?"}])
    message = refusal("q.parquet")
    assert "`q.parquet` has no `instruction`: it has `question`." in message and "`input_mappings`" in message


def test_a_malformed_line_is_named_with_its_column() -> None:
    write("q.jsonl", '{"instruction": "a"}\n\n{"a": 1 "b": 2}\n')
    message = refusal("q.jsonl")
    assert message.startswith("`q.jsonl:3` is not JSON: Expecting ',' delimiter at column 9.")
    assert "take it out" in message and "filetype" not in message


def test_a_json_list_called_jsonl_is_recognised() -> None:
    write("indented.jsonl", json.dumps(QUESTIONS, indent=2))
    assert "`indented.jsonl:1`" in refusal("indented.jsonl") and '`filetype="json"`' in refusal("indented.jsonl")
    write("flat.jsonl", json.dumps(QUESTIONS))
    assert "`flat.jsonl:1` is a list, not an object" in refusal("flat.jsonl")
    assert '`filetype="json"`' in refusal("flat.jsonl")


def test_a_json_file_names_the_line_and_column_of_the_fault() -> None:
    write("q.json", '[\n {"instruction": "a"},\n {"instruction": }\n]')
    assert "`q.json:3` is not JSON: Expecting value at column 18" in refusal("q.json")
    write("q.json", '[{"instruction": "a"}\n{"instruction": "b"}]')
    assert "`q.json:2` is not JSON: Expecting ',' at column 1" in refusal("q.json")
    write("q.json", '[{"instruction": "a"}]\n]')
    assert "`q.json:2` is not JSON: something follows the list at column 1" in refusal("q.json")
    write("q.json", '[{"instruction": "a"},')
    assert "`q.json:1` is not JSON: Expecting value at column 23" in refusal("q.json")
    one_line = json.dumps([{"instruction": "x" * 99}] * 5_000)
    write("q.json", one_line[:-1] + ", oops]")
    assert f"`q.json:1` is not JSON: Expecting value at column {len(one_line) + 2}" in refusal("q.json")


def test_a_fault_in_a_large_json_file_is_told_without_reading_it_all() -> None:
    write("q.json", '[{"instruction": "a" "b"},' + '{"instruction": "x"},' * 500_000)
    tracemalloc.start()
    try:
        assert "`q.json:1` is not JSON: Expecting ',' delimiter at column 22" in refusal("q.json")
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("text", "what"),
    [("3", "a number"), ('"x"', "a text"), ("null", "`null`"), ("true", "a truth value"), ("[1]", "a list")],
)
def test_what_is_not_an_object_is_no_row(text: str, what: str) -> None:
    write("q.jsonl", f'{{"instruction": "a"}}\n{text}\n')
    assert f'`q.jsonl:2` is {what}, not an object: write `{{"column": value}}`' in refusal("q.jsonl")
    write("q.json", f'[{{"instruction": "a"}}, {text}]')
    assert f"`q.json[1]` is {what}, not an object" in refusal("q.json")


def test_several_lists_in_one_object_are_not_guessed_at() -> None:
    write("q.json", '{"train": [{"a": 1}], "test": [{"a": 2}]}')
    message = refusal("q.json")
    assert "`q.json` has several lists of objects, `train`, `test`" in message and "keep the one" in message


def test_a_row_that_lacks_a_column_is_named() -> None:
    write("q.jsonl", jsonl([{"question": "?", "id": 1}] * 3))
    message = refusal("q.jsonl")
    assert (
        message.startswith("`q.jsonl:1` has no `instruction`: it has `question`, `id`.")
        and "`input_mappings`" in message
    )
    write("q.jsonl", jsonl([*QUESTIONS[:16], {"question": "?", "id": 1}]))
    assert refusal("q.jsonl").startswith("`q.jsonl:17` has no `instruction`: it has `question`, `id`.")


def test_a_csv_row_that_does_not_fit_the_header_is_named() -> None:
    write("q.csv", "instruction,answer\na,b\nc, d, e\n")
    message = refusal("q.csv")
    assert "`q.csv:3` has 3 cells, but the header has 2" in message and "comma" in message
    write("q.csv", "answer,instruction\na,b\nc\n")
    assert refusal("q.csv").startswith("`q.csv:3` has no `instruction`: it has `answer`.")
    write("q.csv", "instruction,id,id\na,b,c\n")
    assert "`q.csv:1` names the column `id` twice" in refusal("q.csv")


def test_a_quote_that_is_not_closed_does_not_swallow_the_rest() -> None:
    write("q.csv", 'instruction\na\n"b\nc\nd\n')
    message = refusal("q.csv")
    assert message.startswith("`q.csv:3` cannot be read") and 'Close every `"`' in message


def test_a_long_csv_cell_is_read() -> None:
    write("q.csv", "instruction\n" + "x" * 300_000 + "\n")
    assert len(rows_of(LoadDataFromFiles(data_files="q.csv"))[0]["instruction"]) == 300_000


@pytest.mark.parametrize("lines", [2, 3_000])
@pytest.mark.parametrize(
    ("name", "line"), [("q.jsonl", '{"instruction": "a"}\n'), ("q.csv", "a,b\n"), ("q.json", '{"instruction": "a"}\n')]
)
def test_what_is_not_utf8_is_named(name: str, line: str, lines: int) -> None:
    header = "instruction,x\n" if name == "q.csv" else ""
    bad = line.replace('a"', 'é"').replace("a,", "é,").encode("latin-1")
    write(name, (header + line * lines).encode() + bad + line.encode() * 5)
    number = lines + (2 if header else 1)
    assert refusal(name) == f"`{name}:{number}` is not UTF-8: it has the byte 0xe9. Save the file as UTF-8."


def test_a_damaged_archive_or_parquet_file_is_named() -> None:
    whole = gzip.compress(jsonl(QUESTIONS).encode())
    Path("q.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    assert "`q.jsonl.gz` cannot be read" in refusal("q.jsonl.gz")
    Path("q.jsonl.gz").write_bytes(b"not compressed")
    assert "`q.jsonl.gz` cannot be read" in refusal("q.jsonl.gz")
    write("q.parquet", "not parquet, though it is long enough to be")
    assert "`q.parquet` is not Parquet" in refusal("q.parquet")


def test_a_fault_beyond_the_scan_is_told_by_process() -> None:
    line = '{"instruction": "' + "x" * 99_000 + '"}\n'
    lines = CHECKED_BYTES // len(line) + 100
    with open("q.jsonl", "w") as file:
        file.writelines(line for _ in range(lines))
        file.write("oops\n")
    step = LoadDataFromFiles(data_files="q.jsonl")
    step.check(["instruction"])
    with pytest.raises(ValueError, match=rf"`q.jsonl:{lines + 1}` is not JSON: Expecting value at column 1"):
        rows_of(step)


@pytest.mark.parametrize("data_files", ["", []])
def test_no_file_at_all_is_refused(data_files: Any) -> None:
    assert refusal(data_files) == "`data_files` is empty: give a file, a folder or a glob."


def test_process_tells_of_a_missing_file_too() -> None:
    with pytest.raises(ValueError, match=r"There is no `q.jsonl`"):
        rows_of(LoadDataFromFiles(data_files="q.jsonl"))


# ----------------------------------------------------------------------------------------------------- memory and speed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["q.jsonl", "q.json", "lines.json", "q.csv", "q.parquet", "q.jsonl.gz"])
def test_a_large_file_is_streamed(name: str) -> None:
    row = {"id": 7, "instruction": "How much is it? " * 62}
    count = 50_000  # about 50 MB
    if name == "q.parquet":
        table = pa.table({"id": range(count), "instruction": [row["instruction"]] * count})
        pq.write_table(table, name, row_group_size=count, compression="none", use_dictionary=False)
        del table
    else:
        text = json.dumps(row)
        opener = gzip.open if name.endswith(".gz") else open
        with opener(name, "wt") as file:
            if name == "q.csv":
                file.write("id,instruction\n")
                text = ",".join(map(str, row.values()))
            if name == "q.json":
                file.write("[" + (text + ",\n") * (count - 1) + text + "]")
            else:
                file.writelines(text + "\n" for _ in range(count))
    step = LoadDataFromFiles(data_files=name)
    pool = pa.default_memory_pool()
    next(step.process())  # imports weigh, once
    before = pool.bytes_allocated()
    tracemalloc.start()
    try:
        seen, arrow = 0, 0
        for chunk in step.process():
            seen += len(chunk)
            arrow = max(arrow, pool.bytes_allocated() - before)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen == count
    assert peak < 5e6
    assert arrow < 10e6


def test_a_hundred_thousand_short_rows_are_checked_in_a_moment() -> None:
    write("q.jsonl", jsonl([{"id": at, "instruction": "How much is it?"} for at in range(100_000)]))
    step = LoadDataFromFiles(data_files="q.jsonl")
    started = time.perf_counter()
    step.check(["instruction"])
    assert time.perf_counter() - started < 3  # 0.2 s on a machine that does nothing else


# ------------------------------------------------------------------------------------------------------------- the Hub


@pytest.fixture
def hub_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A dataset in the layout of the Hub, with two splits."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", here / "cache")
    write_parquet("mine/train-00000-of-00001.parquet", QUESTIONS)
    write_parquet("mine/test-00000-of-00001.parquet", QUESTIONS[:7])
    return "mine"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_brings_its_rows(hub_folder: str, streaming: bool) -> None:
    step = LoadDataFromHub(repo_id=hub_folder, streaming=streaming)
    step.check(["instruction"])
    assert list(step.outputs) == ["id", "instruction"]
    assert rows_of(step) == QUESTIONS
    assert origins(step, 248) == ["mine/train[248]", "mine/train[249]"]
    assert rows_of(step, 250) == rows_of(step, 300) == []
    few = LoadDataFromHub(repo_id=hub_folder, split="test", num_examples=5, streaming=streaming)
    assert rows_of(few) == QUESTIONS[:5]
    assert rows_of(few, 3) == QUESTIONS[3:5]
    assert rows_of(few, 6) == []


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_that_does_not_fit_is_refused(hub_folder: str, streaming: bool) -> None:
    with pytest.raises(ValueError, match=r"`mine/train` has no `prompt`: it has `id`, `instruction`.*`input_mappings`"):
        LoadDataFromHub(repo_id=hub_folder, streaming=streaming).check(["prompt"])
    with pytest.raises(ValueError, match=r"`mine` has no split `tests`: did you mean `test`\?"):
        LoadDataFromHub(repo_id=hub_folder, split="tests", streaming=streaming).check(["instruction"])
    with pytest.raises(ValueError, match=r"`mine` cannot be loaded: .*'main'.*default.*`config`"):
        LoadDataFromHub(repo_id=hub_folder, config="main", streaming=streaming).check(["instruction"])


def test_an_open_dataset_is_no_part_of_the_step(hub_folder: str) -> None:
    step = LoadDataFromHub(repo_id=hub_folder)
    step.check(["instruction"])
    copy = pickle.loads(pickle.dumps(step))
    assert copy == step == LoadDataFromHub(repo_id=hub_folder)
    assert len(pickle.dumps(step)) < 2_000
    step.unload()
    assert rows_of(copy) == QUESTIONS


def test_a_folder_that_changed_is_read_again(hub_folder: str) -> None:
    step = LoadDataFromHub(repo_id=hub_folder)
    step.check(["instruction"])
    write_parquet(f"{hub_folder}/train-00000-of-00001.parquet", [{"prompt": "Hi"}])
    write_parquet(f"{hub_folder}/test-00000-of-00001.parquet", [{"prompt": "Hi"}])
    assert rows_of(step) == [{"prompt": "Hi"}]


def test_what_save_to_disk_wrote_is_read() -> None:
    saved = datasets.Dataset.from_list(QUESTIONS)
    saved.save_to_disk("one")
    datasets.DatasetDict({"train": saved, "test": saved.select(range(3))}).save_to_disk("both")
    assert rows_of(LoadDataFromHub(repo_id="one"), 240) == QUESTIONS[240:]
    assert rows_of(LoadDataFromHub(repo_id="both", split="test")) == QUESTIONS[:3]
    with pytest.raises(ValueError, match=r"`both` has no split `dev`: there are `test`, `train`"):
        LoadDataFromHub(repo_id="both", split="dev").check([])
    with pytest.raises(ValueError, match=r"`one` has no split `test`"):
        LoadDataFromHub(repo_id="one", split="test").check([])


def test_a_dataset_that_cannot_be_reached_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # as with `HF_HUB_OFFLINE=1`
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"`org/nowhere` cannot be reached.*no folder.*give its folder as `repo_id`"):
        LoadDataFromHub(repo_id="org/nowhere").check([])
    with pytest.raises(ValueError, match=r"`/no/where` is no folder with data files"):
        LoadDataFromHub(repo_id="/no/where").check([])


# -------------------------------------------------------------------------------------------------------------- Source


@pytest.mark.parametrize(
    ("data", "kind", "field"),
    [
        ("q.jsonl", LoadDataFromFiles, "q.jsonl"),
        (Path("q.jsonl"), LoadDataFromFiles, "q.jsonl"),
        (Path("org/name"), LoadDataFromFiles, "org/name"),
        ("here/there", LoadDataFromFiles, "here/there"),  # it exists
        ("here", LoadDataFromFiles, "here"),
        ("missing.csv", LoadDataFromFiles, "missing.csv"),
        ("data/missing.csv.gz", LoadDataFromFiles, "data/missing.csv.gz"),
        ("data/missing.txt", LoadDataFromFiles, "data/missing.txt"),
        ("data/*", LoadDataFromFiles, "data/*"),
        ("./data/questions", LoadDataFromFiles, "./data/questions"),
        ("/data/questions", LoadDataFromFiles, "/data/questions"),
        ("a/b/c", LoadDataFromFiles, "a/b/c"),
        ("questions", LoadDataFromFiles, "questions"),
        ("org/name", LoadDataFromHub, "org/name"),
        ("meta/llama-3.1-evals_v0.2", LoadDataFromHub, "meta/llama-3.1-evals_v0.2"),
        ("hf://org/name", LoadDataFromHub, "org/name"),
        ("hf://datasets/org/name/", LoadDataFromHub, "org/name"),
        ("hf://here/there", LoadDataFromHub, "here/there"),
        ("saved/set", LoadDataFromHub, "saved/set"),  # `save_to_disk` wrote it
        ([{"a": 1}], LoadDataFromDicts, [{"a": 1}]),
        ('[{"a": 1}]', LoadDataFromDicts, [{"a": 1}]),
        (' {"a": 1}', LoadDataFromDicts, [{"a": 1}]),
        ('{"a": 1}\n{"a": 2}', LoadDataFromDicts, [{"a": 1}, {"a": 2}]),
        ('{"messages": [{"role": "user"}]}', LoadDataFromDicts, [{"messages": [{"role": "user"}]}]),
    ],
)
def test_a_source_is_told_by_how_it_looks(data: Any, kind: type[GeneratorStep], field: Any) -> None:
    write("q.jsonl", jsonl(QUESTIONS))
    write("here/there/q.jsonl", jsonl(QUESTIONS))
    for name in ("dataset_info.json", "state.json"):
        write(f"saved/set/{name}", "{}")
    for step in (load_data(data), load_data(TypeAdapter(Source).validate_python(data))):
        assert type(step) is kind
        names = {LoadDataFromFiles: "data_files", LoadDataFromHub: "repo_id", LoadDataFromDicts: "data"}
        assert getattr(step, names[kind]) == field


def test_fields_reach_the_step() -> None:
    assert load_data("q.csv", batch_size=5, name="questions") == LoadDataFromFiles(
        data_files="q.csv", batch_size=5, name="questions"
    )
    assert load_data("org/name", split="test") == LoadDataFromHub(repo_id="org/name", split="test")
    assert len(rows_of(load_data([{"a": 1}] * 5, num_examples=3))) == 3
    assert len(rows_of(load_data([{"a": 1}] * 5, num_examples=None))) == 5


def test_a_misspelt_path_gets_the_error_of_a_file() -> None:
    write("data/questions.jsonl", jsonl(QUESTIONS))
    with pytest.raises(ValueError, match=r"did you mean `data/questions.jsonl`"):
        load_data("data/question.jsonl").check([])


def test_what_is_no_source_is_refused() -> None:
    with pytest.raises(ValueError, match="is empty: give a file"):
        load_data("  ")
    for text in ("instruction\nWhat is 2 plus 2?", "What is 2 plus 2? " * 20):
        with pytest.raises(ValueError, match="is a text, but no path: write rows as JSON"):
            load_data(text)
    with pytest.raises(
        ValueError, match=r"`hf://org/name/file.csv` names no dataset of the Hub: write `hf://org/name`"
    ):
        load_data("hf://org/name/file.csv")
    with pytest.raises(ValidationError, match=r"`data:1` is not JSON: Expecting ',' at column 11"):
        TypeAdapter(Source).validate_python('[{"a": 1} {"a": 2}]')


def test_a_form_shows_a_source_as_text_or_rows() -> None:
    schema = TypeAdapter(Source).json_schema()
    assert [choice["type"] for choice in schema["anyOf"]] == ["string", "array"]
    assert schema["title"] and "hf://org/name" in schema["description"]
