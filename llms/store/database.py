"""Reading and writing stored answers; each is durable before it is returned.

Errors are not stored. Of a request only a hash is stored, because prompts can be confidential and the caller has them.
"""

import asyncio
import atexit
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from llms.store.connection import connect, path, translate_errors
from llms.typing import FinishReason, GenerateOutput, Logprobs, ModelInfo, Usage

logger = logging.getLogger(__name__)

COMMIT_DELAY_S = 0.005
"""Seconds to collect answers before a commit: a commit of a hundred costs as much as of one."""

READ_CHUNK = 500
"""Keys to read at a time; in between other threads get the lock."""

COLUMNS = (
    "key, text, finish_reason, reasoning, input_tokens, output_tokens, cache_read_input_tokens, "
    "reasoning_output_tokens, cache_creation_input_tokens, logprobs, schema_error, seconds, model, provider, "
    "created"
)
# The newest answer replaces others: a run that does not read the store still writes it. Texts are passed as bytes,
# because models write lone surrogates (half of an emoji), which are not UTF-8.
_INSERT = f"""
    REPLACE INTO answers ({COLUMNS})
    VALUES (?, CAST(? AS TEXT), ?, CAST(? AS TEXT), ?, ?, ?, ?, ?, ?, CAST(? AS TEXT), ?, ?, ?, ?)
"""
_SELECT = f"SELECT {COLUMNS} FROM answers WHERE key IN (SELECT value FROM json_each(?))"


@dataclass(slots=True)
class StoredAnswer:
    """One stored generation.

    Attributes:
        text: The text; `None` if the model returned none.
        finish_reason: Why it ended.
        reasoning: The reasoning before it, if the provider returns it separately.
        logprobs: The log probabilities of its tokens, if requested.
        usage: Tokens of the whole request for the first of its generations, none for the others.
        seconds: Duration of the request.
        model: The name of the model.
        provider: The name of the model's class.
        created: Time in seconds since 1970.
        schema_error: What is wrong with a text that breaks the structure it was asked for; it is to be asked for again.
    """

    text: str | None
    finish_reason: FinishReason | None = None
    reasoning: str | None = None
    logprobs: Logprobs | None = None
    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0
    model: str = ""
    provider: str = ""
    created: float = field(default_factory=time.time)
    schema_error: str | None = None

    @classmethod
    def from_output(cls, llm: ModelInfo, output: GenerateOutput) -> "list[StoredAnswer]":
        """Return the generations of a request as they are stored."""
        usages = [output.usage, *(Usage() for _ in output[1:])]
        model, provider, now = llm.model_name, type(llm).__name__, time.time()
        return [
            cls(*generation, output.seconds, model, provider, now)
            for generation in zip(output, output.finish_reasons, output.reasoning, output.logprobs, usages, strict=True)
        ]

    def to_output(self) -> GenerateOutput:
        """Return this generation as an output; `GenerateOutput.join` makes one of several."""
        return GenerateOutput(
            [self.text],
            finish_reasons=[self.finish_reason],
            reasoning=[self.reasoning],
            logprobs=[self.logprobs],
            usage=self.usage,
            seconds=self.seconds,
        )

    def to_free_output(self) -> GenerateOutput:
        """Return this generation as an output without usage and cost, which were counted when it was paid for."""
        output = replace(self, usage=Usage(), seconds=0.0).to_output()
        output.cost = 0.0
        return output


def prepare() -> None:
    """Open the store, which may wait for a lock, so that the event loop does not when the first answers come.

    Raises:
        StoreError: If it cannot be used.
    """
    with _lock:
        _store()


async def put(answers: Mapping[str, StoredAnswer]) -> None:
    """Write answers by key in one transaction; when this returns they survive `kill -9`.

    Answers with the `finish_reason` `error` are skipped. The others are written even if this is cancelled.

    Raises:
        StoreError: If they could not be written.
    """
    rows = [_to_row(key, answer) for key, answer in answers.items() if answer.finish_reason != "error"]
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    with _lock:
        _store().queue.put(_PendingWrite(_INSERT, rows, loop, done))
    await done


def enqueue(statement: str, rows: list[tuple[Any, ...]]) -> None:
    """Execute a statement for these rows with the next commit, which nobody waits for; a failure is logged.

    Raises:
        StoreError: If the store cannot be opened.
    """
    with _lock:
        _store().queue.put(_PendingWrite(statement, rows))


def flush() -> None:
    """Wait until what was enqueued is committed.

    Raises:
        StoreError: If the store cannot be opened.
    """
    committed = threading.Event()
    with _lock:
        _store().queue.put(_PendingWrite(_INSERT, [], on_end=committed.set))
    committed.wait()


def query(statement: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Return the rows that a statement selects.

    Raises:
        StoreError: If the store cannot be read.
    """
    with _lock:
        store = _store()
        with translate_errors(store.file):
            return store.reader.execute(statement, parameters).fetchall()


def get(keys: Iterable[str]) -> dict[str, StoredAnswer]:
    """Return the stored answers by key, at a few microseconds each.

    Raises:
        StoreError: If the store cannot be read.
    """
    every = list(keys)
    rows: list[tuple[Any, ...]] = []
    for start in range(0, len(every), READ_CHUNK):
        with _lock:
            store = _store()
            with translate_errors(store.file):
                rows += store.reader.execute(_SELECT, (json.dumps(every[start : start + READ_CHUNK]),)).fetchall()
    return dict(map(_from_row, rows))


def _to_row(key: str, answer: StoredAnswer) -> tuple[Any, ...]:
    usage = answer.usage
    return (
        key,
        _encode(answer.text),
        answer.finish_reason,
        _encode(answer.reasoning),
        usage.input_tokens,
        usage.output_tokens,
        usage.cache_read_input_tokens,
        usage.reasoning_output_tokens,
        usage.cache_creation_input_tokens,
        answer.logprobs and json.dumps(answer.logprobs),
        _encode(answer.schema_error),
        answer.seconds,
        answer.model,
        answer.provider,
        answer.created,
    )


def _from_row(row: tuple[Any, ...]) -> tuple[str, StoredAnswer]:
    key, text, finish_reason, reasoning, *usage, logprobs, schema_error, seconds, model, provider, created = row
    likely, used = logprobs and json.loads(logprobs), Usage(*usage)
    answer = StoredAnswer(text, finish_reason, reasoning, likely, used, seconds, model, provider, created, schema_error)
    return key, answer


def _encode(text: str | None) -> bytes | None:
    return None if text is None else text.encode("utf-8", "surrogatepass")


@dataclass(slots=True)
class _PendingWrite:
    """A statement to execute for rows, and whom to notify: a future on its loop, or a function."""

    statement: str
    rows: list[tuple[Any, ...]]
    loop: asyncio.AbstractEventLoop | None = None
    done: "asyncio.Future[None] | None" = None
    on_end: Callable[[], None] | None = None


class _Store:
    """An open store: a connection to read, and a connection and a thread to write."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.reader, self.writer = connect(file), connect(file)
        self.queue: SimpleQueue[_PendingWrite | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._write_loop, name="llms-store", daemon=True)
        self.thread.start()

    def _write_loop(self) -> None:
        while first := self.queue.get():
            time.sleep(COMMIT_DELAY_S)
            batch = [first, *self._drain_queue()]
            failure = None
            try:
                self._commit(batch)
            except Exception as error:
                failure = error
                if any(not each.done and each.rows for each in batch):
                    logger.warning("What the run spent is not recorded: %s", error)
            for loop in {each.loop for each in batch if each.loop}:  # each is woken once, not once per answer
                with suppress(RuntimeError):  # it is closed
                    waiting = [each.done for each in batch if each.loop is loop and each.done]
                    loop.call_soon_threadsafe(_resolve, waiting, failure)
            for each in batch:
                if each.on_end:
                    each.on_end()

    def _drain_queue(self) -> Iterator[_PendingWrite]:
        try:
            while each := self.queue.get_nowait():
                yield each
            self.queue.put(None)  # the end, for `_write_loop`
        except Empty:
            pass

    def _commit(self, writes: Iterable[_PendingWrite]) -> None:
        with translate_errors(self.file):
            self.writer.execute("BEGIN IMMEDIATE")
            try:
                for each in writes:
                    self.writer.executemany(each.statement, each.rows)
                self.writer.execute("COMMIT")
            except BaseException:
                if self.writer.in_transaction:  # a full disk ends it
                    self.writer.execute("ROLLBACK")
                raise

    def close(self) -> None:
        self.queue.put(None)
        self.thread.join()
        self.reader.close()
        self.writer.close()


def _resolve(futures: "list[asyncio.Future[None]]", failure: Exception | None) -> None:
    for done in futures:
        if done.done():  # cancelled
            continue
        if failure:
            done.set_exception(failure)
        else:
            done.set_result(None)


_stores: dict[str | None, _Store] = {}
_lock = threading.Lock()


def _store() -> _Store:
    """Return the open store of this process for `DISTILFLOW_HOME`; `_lock` must be held."""
    home = os.getenv("DISTILFLOW_HOME")
    if home not in _stores:
        _stores[home] = _Store(path())
    return _stores[home]


@atexit.register
def close() -> None:
    """Write what is queued and close the file; the next use opens it again."""
    with _lock:
        _close()


def _close() -> None:
    while _stores:
        _stores.popitem()[1].close()


def _before_fork() -> None:
    _lock.acquire()
    _close()  # SQLite's locks belong to a process: a child with an inherited connection would believe it holds them


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(before=_before_fork, after_in_parent=_lock.release, after_in_child=_lock.release)
