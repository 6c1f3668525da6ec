"""The store of answers: what was paid for is there afterwards, whatever happens, and is only found when it is meant."""

import asyncio
import os
import pkgutil
import random
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from importlib import import_module
from inspect import isabstract
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import Field, SecretStr

import llms
from llms import LLM, AsyncLLM, Fatal, LlamaServerLLM, OpenAILLM, Rejected, store
from llms.any_llm import model_classes
from llms.clients import event_loop
from llms.store import IRRELEVANT, StoredAnswer, StoreError, database, key_of
from llms.store import connection as store_file
from llms.store.key import CREDENTIALS
from llms.typing import ChatType, GenerateOutput, Logprobs, Usage
from tests.support.api_profiles import some
from tests.support.modules import run_command

for module in pkgutil.iter_modules(llms.__path__, "llms."):
    import_module(module.name)

MODELS = [cls for cls in model_classes().values() if cls.__module__.startswith("llms.") and not isabstract(cls)]
CHAT: ChatType = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Capital of Spain?"}]
GPT = OpenAILLM(model="gpt-5", api_key=SecretStr("sk-1"))
ROOT = Path(__file__).parents[3]

LIKELY: Logprobs = [[{"token": "Mad", "logprob": -0.5}, {"token": "Bar", "logprob": -2.0}]]


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the store of this test is."""
    monkeypatch.setenv("DISTILFLOW_HOME", str(tmp_path / "home"))
    yield tmp_path / "home" / "answers.db"
    store.close()


def put(**answers: StoredAnswer) -> None:
    asyncio.run(store.put(answers))


def started(code: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT)


def command(*words: str) -> "subprocess.CompletedProcess[str]":
    return run_command("llms.store", *words)


# --- what goes in comes out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [None, "", "Madrid.", "日本語 🎌 ñ", "a\0b", "half an emoji \ud83d", "x" * 2_000_000])
def test_an_answer_comes_back_as_it_was(text: str | None) -> None:
    answer = StoredAnswer(text, "length", text, LIKELY, Usage(9, 4, 5, 2, 3), 1.25, "gpt-5", "OpenAILLM", 1e9)
    put(a=answer)
    assert store.get(["a", "b"]) == {"a": answer}
    store.close()
    assert store.get(["b", "a"]) == {"a": answer}


def test_thousands_are_found_at_once() -> None:
    put(**{f"k{each}": StoredAnswer(str(each)) for each in range(2100)})
    found = store.get([f"k{each}" for each in range(3000)])
    assert {key: answer.text for key, answer in found.items()} == {f"k{each}": str(each) for each in range(2100)}
    assert store.get([]) == {}


def test_a_request_is_taken_apart_and_put_together_again() -> None:
    output = GenerateOutput(
        ["a", None],
        finish_reasons=["stop", "content_filter"],
        reasoning=["hm", None],
        usage=Usage(9, 8, 5, 2),
        seconds=1.5,
    )
    parts = StoredAnswer.from_output(GPT, output)
    assert {(part.model, part.provider) for part in parts} == {("gpt-5", "OpenAILLM")}
    put(a=parts[0], b=parts[1])
    found = store.get(["a", "b"])
    again = GenerateOutput.join([found["a"].to_output(), found["b"].to_output()])
    assert list(again) == ["a", None]
    for name in ("finish_reasons", "reasoning", "usage", "seconds", "error"):
        assert getattr(again, name) == getattr(output, name)


def test_errors_are_not_kept() -> None:
    (failed,) = StoredAnswer.from_output(GPT, GenerateOutput.failed(Rejected("too long"), 1))
    put(a=failed, b=StoredAnswer("b", "error"), c=StoredAnswer("c", "stop"))
    assert store.get(["a", "b", "c"]).keys() == {"c"}


def test_the_newest_answer_wins() -> None:
    put(a=StoredAnswer("old"))
    put(a=StoredAnswer("new"))
    assert store.get(["a"])["a"].text == "new"


def test_an_answer_is_kept_when_nobody_waits_for_it_any_more() -> None:
    async def given_up() -> None:
        waiting = asyncio.create_task(store.put({"a": StoredAnswer("paid")}))
        await asyncio.sleep(0)
        waiting.cancel()

    asyncio.run(given_up())  # its loop is closed before the answer is written
    put(b=StoredAnswer("the writer lives"))
    assert store.get(["a"])["a"].text == "paid"


def test_all_threads_and_loops_use_it_at_once() -> None:
    async def several(name: str) -> None:
        async def one(key: str) -> None:
            await store.put({key: StoredAnswer(key)})
            assert store.get([key])[key].text == key

        await asyncio.gather(*(one(f"{name}-{each}") for each in range(50)))

    failures: list[BaseException] = []

    def run(name: str) -> None:
        try:
            asyncio.run(several(name))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(str(each),)) for each in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(store.get([f"{name}-{each}" for name in range(8) for each in range(50)])) == 400


def test_it_is_in_the_home_of_the_user_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DISTILFLOW_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store.path() == tmp_path / ".distilflow" / "answers.db"
    monkeypatch.setenv("DISTILFLOW_HOME", "~/else")
    assert store.path() == tmp_path / "else" / "answers.db"


def test_nothing_that_was_asked_and_no_secret_is_in_the_file(file: Path) -> None:
    chat: ChatType = [{"role": "user", "content": "a confidential question"}]
    put(**{key_of(GPT, chat, {}, 0): StoredAnswer.from_output(GPT, GenerateOutput(["yes"]))[0]})
    store.close()
    content = file.read_bytes()
    assert b"yes" in content and b"confidential" not in content and b"sk-1" not in content


# --- the key ----------------------------------------------------------------------------------------------------------


class Mine(AsyncLLM):
    """A user's model."""

    token: SecretStr | None = None
    tone: str = "kind"
    folder: Path | None = None
    words: set[str] = Field(default_factory=set)
    anything: Any = None

    @property
    def model_name(self) -> str:
        """Its name."""
        return "mine"

    async def agenerate(self, input: ChatType, num_generations: int = 1, temperature: float = 0.5) -> GenerateOutput:
        """An answer."""
        return GenerateOutput([f"{temperature in {0.25, 0.5, 0.75}}"] * num_generations)


def key(llm: LLM = GPT, chat: ChatType = CHAT, options: Mapping[str, Any] | None = None, generation: int = 0) -> str:
    return key_of(llm, chat, options or {}, generation)


@pytest.mark.parametrize(
    "other",
    [
        key(OpenAILLM(model="gpt-4", api_key=SecretStr("sk-1"))),
        key(OpenAILLM(model="gpt-5", base_url="http://localhost/v1")),
        key(OpenAILLM(model="gpt-5", structured_output={"format": "json", "schema": {"type": "object"}})),
        key(OpenAILLM(model="gpt-5", structured_output={"format": "regex", "schema": "a+"})),
        key(chat=CHAT[1:]),
        key(chat=[{"role": "system", "content": "Be long."}, CHAT[1]]),
        key(chat=CHAT[::-1]),
        key(options={"temperature": 0.5}),
        key(options={"stop": ["a", "b"]}),
        key(options={"stop": ["b", "a"]}),
        key(generation=1),
        key(Mine()),
        key(LlamaServerLLM()),
    ],
)
def test_what_changes_the_answer_changes_the_key(other: str) -> None:
    assert other != key()


def test_the_address_in_force_counts_however_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    given = key(OpenAILLM(model="gpt-5", base_url="http://localhost/v1/"))
    default = key()
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost/v1")
    assert key() == given
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert key() == default == key(OpenAILLM(model="gpt-5", base_url="https://api.openai.com/v1"))


def test_what_does_not_change_the_answer_does_not_change_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-3")
    changed = OpenAILLM(
        model="gpt-5",
        api_key=SecretStr("sk-2"),
        timeout=1,
        max_concurrency=1,
        generation_kwargs={"temperature": 0.1},  # the caller has merged it into the options
    )
    assert key(changed) == key() == key(OpenAILLM(model="gpt-5"))
    turned: Any = [dict(reversed(message.items())) for message in CHAT]
    assert key(chat=turned) == key()
    assert key(options={"top_p": 0.5, "seed": 1}) == key(options={"seed": 1, "top_p": 0.5})


def test_numbers_that_python_calls_equal_are_told_apart_unless_they_have_a_type() -> None:
    bodies = [{"extra_body": {"k": value}} for value in (1, 1.0, True, "1", None)]
    assert len({key(options=body) for body in bodies}) == 5
    typed = [GPT.options({"temperature": value}).model_dump(exclude_unset=True) for value in (1, 1.0, "1")]
    assert len({key(options=options) for options in typed}) == 1


@pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.__name__)
def test_every_field_of_every_model_is_in_the_key_or_listed_as_irrelevant(cls: type[LLM]) -> None:
    llm = some(cls, **({"base_url": "http://one.example/v1"} if "base_url" in cls.model_fields else {}))
    for name, field in cls.model_fields.items():
        kind = str(field.annotation)
        other = Path("other") if "Path" in kind else SecretStr("k") if "Secret" in kind else "http://other.example/v1"
        other = {"other": other} if kind.startswith("dict") else "other" if name == "location" else other
        counts = key(llm.model_copy(update={name: other})) != key(llm)
        assert counts == (name not in IRRELEVANT | dict.fromkeys(CREDENTIALS)), name


def test_no_field_is_listed_as_irrelevant_that_no_model_has() -> None:
    assert IRRELEVANT.keys() <= {name for cls in MODELS for name in cls.model_fields}


def test_a_field_of_the_users_own_counts_but_not_who_asks() -> None:
    assert len({key(Mine()), key(Mine(tone="rude")), key(Mine(anything={"a": {1, 2}}))}) == 3
    assert key(Mine(token=SecretStr("t"))) == key(Mine())


def gateway(secret: str, name: str = "X-Config") -> OpenAILLM:
    return OpenAILLM(model="m", default_headers={name: SecretStr(secret)})


KEY_OF_A_GATEWAY = """
import sys
from llms import OpenAILLM
from llms.store import key_of
print(key_of(OpenAILLM(model="m", default_headers={"X-Config": sys.argv[1]}), [], {}, 0))
"""


def test_headers_count_and_their_hash_is_worth_nothing_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    routes = [gateway("route-a"), gateway("route-b"), gateway("route-a", "X-Other"), OpenAILLM(model="m")]
    keys = [key(each, []) for each in routes]
    assert len(set(keys)) == len(routes) and keys == [key(each, []) for each in routes]
    command = [sys.executable, "-c", KEY_OF_A_GATEWAY, "route-a"]
    assert subprocess.check_output(command, text=True).strip() == keys[0], "another process, the same store"
    monkeypatch.setenv("DISTILFLOW_HOME", str(tmp_path / "elsewhere"))
    assert key(routes[0], []) != keys[0] and key(routes[3], []) == keys[3]


def test_all_processes_that_begin_a_store_at_once_agree_on_its_salt() -> None:
    command = [sys.executable, "-c", KEY_OF_A_GATEWAY, "route-a"]
    started = [subprocess.Popen(command, text=True, stdout=subprocess.PIPE) for _ in range(3)]
    assert len({process.communicate(timeout=120)[0] for process in started}) == 1


def test_a_store_that_cannot_be_used_is_said_where_headers_need_its_salt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILFLOW_HOME", os.devnull)
    with pytest.raises(StoreError, match="cannot be used"):
        key(gateway("route-a"))
    key(OpenAILLM(model="m"))


def test_weights_that_were_trained_again_are_others(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    missing = key(Mine(folder=weights))
    weights.write_text("a")
    first = key(Mine(folder=weights))
    assert first == key(Mine(folder=weights)) != missing
    weights.write_text("bb")
    assert key(Mine(folder=weights)) != first


def test_what_is_not_plain_data_is_refused_with_a_sentence() -> None:
    with pytest.raises(StoreError, match="`Mine`.*not plain data.*use_cache=False"):
        key(Mine(anything=object()))


KEY_OF_A_SCRIPT = """
import sys
from llms import AsyncLLM, OpenAILLM
from llms.store import key_of
from llms.typing import GenerateOutput
{more}
class {name}(AsyncLLM):
    '''A model.'''

    words: set[str] = {{"a", "b", "c", "d"}}

    @property
    def model_name(self):
        return "m"

    async def agenerate(self, input, num_generations=1, style="kind"):{comment}
        return GenerateOutput(["{text}" if style in {{"x", "y", "z"}} else "b"])

print(key_of({name}(), [], {{}}, 0), key_of(OpenAILLM(model="m"), [], {{}}, 0))
"""


@pytest.mark.slow
def test_a_class_of_the_users_own_is_known_by_what_it_does(tmp_path: Path) -> None:
    def keys_in(file: str, seed: str, name: str = "M", text: str = "a", comment: str = "", more: str = "") -> list[str]:
        (tmp_path / file).write_text(KEY_OF_A_SCRIPT.format(name=name, text=text, comment=comment, more=more))
        environment = os.environ | {"PYTHONHASHSEED": seed}
        return subprocess.check_output([sys.executable, str(tmp_path / file)], text=True, env=environment).split()

    original = keys_in("here.py", "1")
    assert keys_in("there.py", "2", comment="  # says why\n\n") == original
    moved = 'for each in (AsyncLLM, OpenAILLM): each.__module__ = "llms.elsewhere.deep"'
    assert keys_in("here.py", "1", more=moved) == original, "our own files may move"
    assert (
        len({keys[0] for keys in (original, keys_in("here.py", "1", text="edited"), keys_in("here.py", "1", name="N"))})
        == 3
    )


REFERS = """
from dataclasses import dataclass
from typing import ClassVar

from llms import AsyncLLM
from llms.store import key_of
from llms.typing import GenerateOutput
from prompts import SYSTEM, shorten

PROMPT = "module constant 1"
WORDS = {"a": ["nested constant 1"]}
calls = []

@dataclass
class Style:
    tone: str = "default of a dataclass 1"

STYLE = Style("object of a class 1")

def helper(text, end="default of a helper 1"):
    return second_helper(text)

def second_helper(text):
    return "helper of a helper 1"

class Base(AsyncLLM):
    def more(self):
        return "method of a base 1"

class Mine(Base):
    "A model."

    PROMPTS: ClassVar[dict] = {"a": "dict of the class 1"}
    _private: str = "private attribute 1"

    @property
    def model_name(self):
        return "m"

    @staticmethod
    def parse(text):
        return lambda: "constant of a lambda 1"

    async def agenerate(self, input, num_generations=1):
        calls.append(input)
        return GenerateOutput([helper(PROMPT), WORDS["a"], STYLE, SYSTEM, shorten(self.PROMPTS), self._private])

first = key_of(Mine(), [], {}, 0)
calls.append("a call, which changes nothing in this process")
print(first, key_of(Mine(), [], {}, 0))
"""
PROMPTS = """
SYSTEM = "constant of a module 1"
def shorten(text):
    return PREFIX + "helper in a module 1"
PREFIX = "constant of a helper in a module 1"
"""
IN_PROCESSES = """
import os, runpy, sys
import llms  # once, for seconds: each script runs in a process that has nothing else

for folder in sys.argv[1:]:
    if not (child := os.fork()):
        sys.path.insert(0, folder)
        runpy.run_path(f"{folder}/script.py", run_name="__main__")
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
EDITS = re.findall(r'"([a-z ]+ 1)"', REFERS + PROMPTS)


@pytest.mark.slow
def test_a_class_of_the_users_own_is_known_by_what_its_code_refers_to(tmp_path: Path) -> None:
    edits = [("1", "1", ""), ("1", "1", "\nNOT_REFERRED_TO = 'edited'\n")]
    edits += [(edit, edit.replace("1", "2"), "") for edit in EDITS]
    folders = [tmp_path / f"{number}" for number, _ in enumerate(edits)]
    for folder, (before, after, more) in zip(folders, edits, strict=True):
        folder.mkdir()
        (folder / "prompts.py").write_text(PROMPTS.replace(before, after) + more)
        (folder / "script.py").write_text(REFERS.replace(before, after) + more)
    found = subprocess.check_output([sys.executable, "-c", IN_PROCESSES, *map(str, folders)], text=True).splitlines()
    assert len(EDITS) == 13 and len(found) == len(edits)
    firsts, seconds = zip(*(line.split() for line in found), strict=True)
    assert firsts == seconds and firsts[0] == firsts[1]
    assert not [edit for edit, key in zip(EDITS, firsts[2:], strict=True) if key == firsts[0]]
    assert len(set(firsts)) == 1 + len(EDITS)


# --- whatever happens -------------------------------------------------------------------------------------------------

WRITES = """
import asyncio, sys
from llms import store

async def one(name):
    for each in range(int(sys.argv[2])):
        key = f"{sys.argv[1]}-{name}-{each}"
        await store.put({key: store.StoredAnswer(key * 20)})
        print(key, flush=True)

async def main():
    await asyncio.gather(*(one(name) for name in range(20)))

asyncio.run(main())
"""


@pytest.mark.slow
def test_processes_that_start_together_write_at_once() -> None:
    processes = [started(WRITES, name, "25") for name in ("a", "b", "c")]
    keys = [line for process in processes for line in process.communicate()[0].split()]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(keys) == 1500 and store.get(keys).keys() == set(keys)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_processes_that_make_the_file_at_the_same_moment(tmp_path: Path) -> None:
    code = """
import os, sys, time
from pathlib import Path
from llms import store

def opened(file, moment):
    while time.time() < moment:
        pass
    try:
        store.connect(file)
    except BaseException:
        os._exit(1)
    os._exit(0)

for each in range(40):
    file, moment = Path(sys.argv[1]) / str(each) / "answers.db", time.time() + 0.03
    children = [os.fork() or opened(file, moment) for _ in range(6)]
    assert not any(os.waitpid(child, 0)[1] for child in children)
"""
    assert started(code, str(tmp_path)).wait(timeout=60) == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_nothing_that_was_acknowledged_is_lost_to_kill_9(seed: int) -> None:
    process = started(WRITES, "a", "1000000")
    assert process.stdout
    lines = [process.stdout.readline() for _ in range(20)]  # then chance decides when
    threading.Timer(random.Random(seed).uniform(0.0, 0.5), process.kill).start()
    lines += process.stdout.readlines()
    assert process.wait() == -signal.SIGKILL
    keys = [line.strip() for line in lines if line.endswith("\n")]
    found = store.get(keys)
    assert len(keys) >= 20 and found.keys() == set(keys)
    assert all(answer.text == key * 20 for key, answer in found.items())
    put(b=StoredAnswer("goes on"))


@pytest.mark.slow
def test_what_waits_is_written_when_the_program_ends() -> None:
    code = """
import asyncio
from llms import store

async def leaves():
    asyncio.create_task(store.put({"a": store.StoredAnswer("paid")}))
    await asyncio.sleep(0)

asyncio.run(leaves())
"""
    assert started(code).wait() == 0
    assert store.get(["a"])["a"].text == "paid"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_forked_child_and_its_parent_both_go_on() -> None:
    code = """
import asyncio, os, sys
from llms import store

asyncio.run(store.put({"before": store.StoredAnswer("a")}))
child = os.fork()
name = "parent" if child else "child"
assert store.get(["before"])["before"].text == "a"
for each in range(20):
    asyncio.run(store.put({f"{name}-{each}": store.StoredAnswer(name)}))
if child:
    _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))
"""
    assert started(code).wait(timeout=60) == 0
    assert len(store.get([f"{name}-{each}" for name in ("parent", "child") for each in range(20)])) == 40


def refused(match: str, file: Path) -> None:
    """Reading and writing say the same: which file, what is wrong, what to do."""
    for use in (lambda: store.get(["a"]), lambda: put(a=StoredAnswer("a"))):
        with pytest.raises(StoreError, match=match) as caught:
            use()
        message = str(caught.value)
        assert str(file) in message and "`DISTILFLOW_HOME`" in message and "`use_cache=False`" in message


def test_a_file_that_is_no_database_is_left_alone(file: Path) -> None:
    file.parent.mkdir()
    file.write_bytes(b"not a database, " * 1000)
    refused("is no database .*: move it away", file)
    assert file.read_bytes() == b"not a database, " * 1000


def test_a_damaged_file_is_said_to_be(file: Path) -> None:
    put(**{f"k{each}": StoredAnswer("x" * 1000) for each in range(1000)})
    store.close()
    with file.open("r+b") as broken:
        broken.seek(4096)
        broken.write(random.Random(0).randbytes(file.stat().st_size - 8192))
    with pytest.raises(StoreError, match="is damaged .*: move it away"):
        store.get([f"k{each}" for each in range(1000)])
    with pytest.raises(StoreError, match="is damaged .*: move it away"):
        put(**{f"n{each}": StoredAnswer("x") for each in range(1000)})
    store.close()
    file.rename(file.with_suffix(".bad"))
    put(a=StoredAnswer("a new one"))
    assert store.get(["a"])


def test_a_folder_where_the_file_should_be(file: Path) -> None:
    file.mkdir(parents=True)
    refused("cannot be used", file)


def test_a_file_where_the_folder_should_be(file: Path) -> None:
    file.parent.write_text("")
    refused("cannot be used", file)


def test_a_lock_of_another_program(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(a=StoredAnswer("a"))
    store.close()
    monkeypatch.setattr(store_file, "SQLITE_BUSY_TIMEOUT_S", 0.2)
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="is locked by another program .*: end that program"):
        put(b=StoredAnswer("b"))
    assert store.get(["a", "b"]).keys() == {"a"}  # who only reads is not in the way
    store.close()

    monkeypatch.setattr(store_file, "SQLITE_BUSY_TIMEOUT_S", 30.0)
    threading.Timer(0.3, other.close).start()
    put(b=StoredAnswer("b"))  # a short one is waited for
    assert store.get(["a", "b"]).keys() == {"a", "b"}


def test_a_program_that_keeps_the_file_to_itself(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(a=StoredAnswer("a"))
    store.close()
    monkeypatch.setattr(store_file, "SQLITE_BUSY_TIMEOUT_S", 0.2)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    refused("is locked by another program", file)
    other.close()
    assert store.get(["a"])


@pytest.mark.slow
def test_the_file_of_a_newer_version_is_left_alone(file: Path) -> None:
    put(a=StoredAnswer("a"))
    store.close()
    newer = sqlite3.connect(file)
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    refused("is of a newer distilflow .*99", file)
    assert "newer distilflow" in command().stderr


# --- the file is taken away -------------------------------------------------------------------------------------------


def answers_in(file: Path) -> set[str]:
    with closing(sqlite3.connect(file)) as connection:
        return {text for (text,) in connection.execute("SELECT text FROM answers")}


def deleted(file: Path) -> None:
    file.unlink()


def deleted_with_its_logs(file: Path) -> None:
    for each in file.parent.iterdir():
        each.unlink()


def folder_deleted(file: Path) -> None:
    shutil.rmtree(file.parent)


def moved(file: Path) -> None:
    file.rename(file.with_name("moved.db"))


def folder_moved(file: Path) -> None:
    file.parent.rename(file.parent.with_name("moved"))


def replaced(file: Path) -> None:
    other = file.with_name("other.db")
    with closing(store.connect(other)) as connection:
        connection.execute("INSERT INTO meta VALUES ('mine', 1)")
    other.replace(file)


TAKEN_AWAY = [deleted, deleted_with_its_logs, folder_deleted, moved, folder_moved, replaced]


@pytest.mark.parametrize("take_away", TAKEN_AWAY)
@pytest.mark.parametrize("reading_first", [False, True])
def test_answers_go_into_the_file_that_is_at_the_path(
    take_away: Callable[[Path], None], reading_first: bool, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(a=StoredAnswer("before"))
    assert not caplog.records
    take_away(file)
    if reading_first:
        assert store.get(["a"]) == {}
    put(b=StoredAnswer("after"), c=StoredAnswer("also"))
    put(d=StoredAnswer("and later"))
    assert store.get(["a", "b", "c", "d"]).keys() == {"b", "c", "d"}
    [warning] = caplog.messages
    assert str(file) in warning and "deleted, moved or replaced" in warning
    assert answers_in(file) == {"after", "also", "and later"}
    store.close()
    assert answers_in(file) == {"after", "also", "and later"}
    for former in (file.with_name("moved.db"), file.parent.with_name("moved") / file.name):
        if former.exists():
            assert answers_in(former) == {"before"}, "it has all that was acknowledged"
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_link_to_the_file_is_no_other_file(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    real = file.parent.with_name("elsewhere") / "real.db"
    real.parent.mkdir()
    file.parent.mkdir()
    file.symlink_to(real)
    put(a=StoredAnswer("a"))
    assert store.get(["a"]) and file.is_symlink() and answers_in(real) == {"a"} and not caplog.records


@pytest.mark.slow
@pytest.mark.parametrize("take_away", [deleted, moved, replaced])
@pytest.mark.parametrize("seed", range(2))
def test_several_processes_go_on_in_one_new_file(take_away: Callable[[Path], None], seed: int, file: Path) -> None:
    """What was acknowledged once the file was gone is in the new one, even if all processes are killed then."""
    processes = [started(WRITES, name, "1000000") for name in ("a", "b", "c")]
    for process in processes:
        assert process.stdout
        for _ in range(20):
            process.stdout.readline()
    time.sleep(random.Random(seed).uniform(0.0, 0.2))
    take_away(file)
    taken = time.time()
    time.sleep(1)
    for process in processes:
        process.kill()
    lines = [line for process in processes for line in process.communicate()[0].splitlines(keepends=True)]
    keys = [line.strip() for line in lines if line.endswith("\n")]
    found = store.get(keys)
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    for name in "abc":
        assert any(key.startswith(name) and answer.created > taken for key, answer in found.items())
    last = {key.rpartition("-")[0]: key for key in keys}  # of each of the tasks that write one after another
    assert len(last) == 60 and found.keys() >= set(last.values())


# --- what cannot be written -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [StoredAnswer("bad", usage=Usage(2**70)), StoredAnswer("bad", seconds=float("nan"))])
def test_an_answer_that_sqlite_refuses_does_not_take_others_with_it(bad: StoredAnswer) -> None:
    async def several() -> list[BaseException | None]:
        puts = [store.put({f"k{number}": StoredAnswer("good")}) for number in range(20)]
        return await asyncio.gather(*puts[:10], store.put({"bad": bad}), *puts[10:], return_exceptions=True)

    results = asyncio.run(several())
    assert [number for number, result in enumerate(results) if result] == [10]
    assert isinstance(results[10], StoreError) and "`use_cache=False`" in str(results[10])
    assert len(store.get([f"k{number}" for number in range(20)])) == 20 and not store.get(["bad"])


def test_the_end_does_not_wait_for_ever(file: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    put(a=StoredAnswer("a"))
    monkeypatch.setattr(database, "CLOSE_TIMEOUT_S", 0.3)
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")

    async def leaves() -> None:
        asyncio.create_task(store.put({"b": StoredAnswer("b")}))
        await asyncio.sleep(0.1)

    asyncio.run(leaves())
    store.close()
    assert f"`{file}`" in caplog.text and "The last answers are not in the store" in caplog.text
    other.close()


NO_ROOM = """
import resource, sys
from llms import store

store.get(["a"])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
try:
    store.prepare()
except store.StoreError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store.prepare()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no limits of files here")
def test_a_full_disk_is_found_before_anything_is_paid_for(file: Path) -> None:
    process = started(NO_ROOM, "0")
    assert f"The store of answers `{file}` " in process.communicate()[0] and not process.returncode


def test_a_store_is_checked_once_and_after_a_write_that_failed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks: list[Path] = []
    check = database.check_writable
    monkeypatch.setattr(database, "check_writable", lambda file: (checks.append(file), check(file)))
    for _ in range(3):
        store.prepare()
    assert checks == [file]
    monkeypatch.setattr(store_file, "SQLITE_BUSY_TIMEOUT_S", 0.1)
    store.close()
    put(a=StoredAnswer("a"))
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="is locked"):
            store.prepare()
        with pytest.raises(StoreError, match="is locked"):
            put(b=StoredAnswer("b"))
    store.prepare()
    assert checks == [file] * 3
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        store.prepare()
        with pytest.raises(StoreError, match="is locked"):
            put(b=StoredAnswer("b"))
        with pytest.raises(StoreError, match="is locked"):
            store.prepare()
    assert checks == [file] * 4


# --- who may read it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("present", [False, True])
def test_only_the_user_may_read_answers(file: Path, present: bool) -> None:
    previous = os.umask(0o022)
    try:
        if present:
            put(a=StoredAnswer("a"))
            crashed = sqlite3.connect(file)  # so that the logs stay
            crashed.execute("SELECT * FROM answers").fetchall()
            store.close()
            file.parent.chmod(0o755)
            for each in file.parent.iterdir():
                each.chmod(0o644)
        put(b=StoredAnswer("b"))
    finally:
        os.umask(previous)
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in [file.parent, *file.parent.iterdir()]}
    assert modes.pop(file.parent.name) == (0o755 if present else 0o700), "a folder that was there may be for more"
    assert modes == {"answers.db": 0o600, "answers.db-wal": 0o600, "answers.db-shm": 0o600}


def test_a_file_that_a_group_writes_stays_the_groups(file: Path) -> None:
    put(a=StoredAnswer("a"))
    store.close()
    file.chmod(0o664)
    put(b=StoredAnswer("b"))
    assert stat.S_IMODE(file.stat().st_mode) == 0o660


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_lists_and_deletes(file: Path) -> None:
    day = 86400
    put(
        old=StoredAnswer(
            "x" * 100_000, usage=Usage(1000, 20), model="gpt-4", provider="A", created=time.time() - 40 * day
        ),
        other=StoredAnswer("x", usage=Usage(1, 2), model="gpt-5", provider="B", created=time.time() - 40 * day),
        new=StoredAnswer("x", usage=Usage(500, 3), model="gpt-4", provider="A"),
    )
    listed = command()
    assert listed.returncode == 0 and not listed.stderr
    first, head, *rows = listed.stdout.splitlines()
    assert first.startswith(f"{file}: 3 answers, ")
    assert head.split() == ["model", "class", "answers", "tokens", "in", "tokens", "out", "oldest", "newest"]
    assert [row.split()[:5] for row in rows] == [["gpt-4", "A", "2", "1,500", "23"], ["gpt-5", "B", "1", "1", "2"]]
    assert time.strftime("%Y-%m-%d") in rows[0]

    assert "1 answers deleted, 0.1 MB" in command("prune", "--older-than", "30d", "--model", "gpt-4").stdout
    assert store.get(["old", "other", "new"]).keys() == {"other", "new"}
    assert "0 answers deleted" in command("prune", "--older-than", "7w").stdout
    assert "1 answers deleted" in command("prune", "--older-than", "12h").stdout
    assert store.get(["old", "other", "new"]).keys() == {"new"}

    asked = command("clear")
    assert asked.returncode == 1 and "add `--yes`" in asked.stderr
    assert "1 answers deleted" in command("clear", "--yes").stdout
    assert store.get(["new"]) == {}
    put(new=StoredAnswer("goes on"))


@pytest.mark.slow
def test_the_command_says_what_is_wrong(file: Path) -> None:
    assert command().stdout.strip() == f"{file}: no answers yet"
    assert not file.exists()
    wrong = command("prune", "--older-than", "soon")
    assert wrong.returncode == 2 and "`soon` is no age" in wrong.stderr
    file.parent.mkdir()
    file.write_text("nonsense" * 1000)
    broken = command()
    assert broken.returncode == 1 and "is no database" in broken.stderr and "Traceback" not in broken.stderr


class Counting(AsyncLLM):
    """Numbers its answers."""

    asked: ClassVar[list[Any]] = []

    @property
    def model_name(self) -> str:
        return "counting"

    async def agenerate(self, input, num_generations=1, temperature: float = 1.0, seed: int | None = None):
        self.asked.append((input, num_generations))
        return [f"{input[-1]['content']} {len(self.asked)}.{number}" for number in range(num_generations)]


@pytest.fixture
def counting() -> Counting:
    Counting.asked.clear()
    return Counting()


def ask(llm: LLM, *texts: str, n: int = 1, **options: Any) -> list[list[str | None]]:
    return [
        list(each) for each in llm.generate_outputs([[{"role": "user", "content": t}] for t in texts], n, **options)
    ]


def test_what_was_answered_is_not_asked_again(counting):
    first = ask(counting, "a", "b")
    assert ask(counting, "b", "a", "c")[:2] == first[::-1] and len(counting.asked) == 3
    again = counting.generate_outputs([[{"role": "user", "content": "a"}]])[0]
    assert again.cached and len(counting.asked) == 3


def test_equal_chats_of_a_batch_are_asked_once(counting):
    assert len({tuple(each) for each in ask(counting, "a", "a", "a")}) == 1 and len(counting.asked) == 1


def test_only_the_missing_generations_are_asked_for(counting):
    [two] = ask(counting, "a", n=2)
    [four] = ask(counting, "a", n=4)
    assert four[:2] == two and [count for _, count in counting.asked] == [2, 2]
    ask(counting, "s", n=1, seed=1)
    ask(counting, "s", n=2, seed=1)
    assert [count for _, count in counting.asked][2:] == [1, 2]  # of a seed, the second one alone would be the first


def test_without_the_cache_all_is_asked_and_stored(counting):
    anew = counting.model_copy(update={"use_cache": False})
    ask(anew, "a", "a")
    assert ask(anew, "a") and len(counting.asked) == 3
    assert ask(counting, "a") == [["a 3.0"]] and len(counting.asked) == 3


def test_a_call_of_generate_always_asks_and_is_stored(counting):
    chat = [{"role": "user", "content": "a"}]
    counting.generate([chat])
    counting.generate([chat])
    assert len(counting.asked) == 2 and ask(counting, "a") == [["a 2.0"]]


def test_a_store_that_is_no_database_stops_the_run_or_not_as_the_user_says(counting, caplog):
    store.path().parent.mkdir(parents=True, exist_ok=True)
    store.path().write_text("my shopping list")
    with pytest.raises(Fatal, match="is no database.*use_cache=False"):
        ask(counting, "a")
    assert ask(counting.model_copy(update={"use_cache": False}), "a") == [["a 1.0"]]
    assert "Answers are not stored" in caplog.text and store.path().read_text() == "my shopping list"


def test_a_store_that_is_damaged_and_not_needed_is_said_to_be_once(counting, caplog):
    """Not once per answer, nor once per batch; and another one is used as ever."""
    store.path().parent.mkdir(parents=True)
    store.path().write_text("my shopping list")
    anew = counting.model_copy(update={"use_cache": False})
    for texts in ("abc", "de", "f"):
        assert len(ask(anew, *texts)) == len(texts)
    assert len([each for each in caplog.records if "Answers are not stored" in each.message]) == 1
    with pytest.raises(Fatal, match="is no database"):
        ask(counting, "a")
    store.path().unlink()
    ask(counting, "x")  # it is looked up, and found to be well again
    ask(anew, "y")
    assert len(counting.asked) == 8 and ask(counting, "y") and len(counting.asked) == 8


def test_a_store_that_somebody_locks_holds_up_nobody_who_does_not_need_it(counting, caplog, monkeypatch):
    put(a=StoredAnswer("a"))
    store.close()
    monkeypatch.setattr(store_file, "SQLITE_BUSY_TIMEOUT_S", 2.0)
    other = sqlite3.connect(store.path(), isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    anew = counting.model_copy(update={"use_cache": False})

    async def ticks() -> float:
        """The longest the models' own loop did nothing for others, while it was asked."""
        asking, longest, before = (
            asyncio.create_task(asyncio.to_thread(ask, anew, "a", "b", "c")),
            0.0,
            time.monotonic(),
        )
        while not asking.done():
            await asyncio.sleep(0.01)
            longest, before = max(longest, time.monotonic() - before), time.monotonic()
        assert [text for [text] in asking.result()] == ["a 1.0", "b 2.0", "c 3.0"]
        return longest

    assert event_loop.run(ticks()) < 1.5
    began = time.monotonic()
    ask(anew, "d")  # it is not tried again
    assert time.monotonic() - began < 1.5
    other.close()
    assert caplog.text.count("is locked by another program") == 1
