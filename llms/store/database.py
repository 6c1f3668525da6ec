"""Every paid answer, on disk before anyone sees it: one SQLite file for all runs of this machine.

Only answers are kept, never an error; of the request only a hash, because prompts can be confidential and are with
the caller anyway. `python -m llms.store` shows what is there, and deletes.
"""

import asyncio
import atexit
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from llms.store.connection import StoreError, connect, path, translate_errors
from llms.store.key import IRRELEVANT, key_of
from llms.typing import FinishReason, GenerateOutput, Logprobs, ModelInfo, Usage

__all__ = [
    "IRRELEVANT",
    "StoreError",
    "StoredAnswer",
    "close",
    "connect",
    "get",
    "key_of",
    "path",
    "prepare",
    "put",
    "translate_errors",
]

COMMIT_DELAY_S = 0.005
"""Seconds an answer waits for company: one commit costs as much for a hundred as for one."""

COLUMNS = (
    "key, text, finish_reason, reasoning, input_tokens, output_tokens, cache_read_input_tokens, "
    "reasoning_output_tokens, cache_creation_input_tokens, logprobs, seconds, model, provider, created"
)
# The newest answer wins: a run that was told not to read the store still writes it. Texts come as bytes, because
# half of an emoji, which models do write, is no UTF-8.
_INSERT = f"""
    REPLACE INTO answers ({COLUMNS})
    VALUES (?, CAST(? AS TEXT), ?, CAST(? AS TEXT), ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_SELECT = f"SELECT {COLUMNS} FROM answers WHERE key IN (SELECT value FROM json_each(?))"


@dataclass(slots=True)
class StoredAnswer:
    """One generation, and what it cost.

    Attributes:
        text: The raw text; `None` where the model gave none.
        finish_reason: Why it ended.
        reasoning: What the model thought first.
        logprobs: How likely its tokens were, where that was asked for.
        usage: Tokens of the whole request on the first of its generations, none on the others.
        seconds: How long the request took.
        model: The model's name.
        provider: The class of the model.
        created: When it came, in seconds since 1970.
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

    @classmethod
    def from_output(cls, llm: ModelInfo, output: GenerateOutput) -> "list[StoredAnswer]":
        """The generations of one request, each as it is stored."""
        usages = [output.usage, *(Usage() for _ in output[1:])]
        model, provider, now = llm.model_name, type(llm).__name__, time.time()
        return [
            cls(*generation, output.seconds, model, provider, now)
            for generation in zip(output, output.finish_reasons, output.reasoning, output.logprobs, usages, strict=True)
        ]

    def to_output(self) -> GenerateOutput:
        """This generation as if a request had just brought it; `GenerateOutput.joined` makes one of several."""
        return GenerateOutput(
            [self.text],
            finish_reasons=[self.finish_reason],
            reasoning=[self.reasoning],
            logprobs=[self.logprobs],
            usage=self.usage,
            seconds=self.seconds,
        )


def prepare() -> None:
    """Open the store, which may take its time: no loop has to wait for that when the first answers come.

    Raises:
        StoreError: If it cannot be used.
    """
    with _lock:
        _store()


async def put(answers: Mapping[str, StoredAnswer]) -> None:
    """Keep these answers by their keys, all or none, and come back when they would survive `kill -9`.

    One whose `finish_reason` is `error` is not kept. Whoever awaits this may be cancelled: the answers are kept still.

    Raises:
        StoreError: If they could not be written.
    """
    rows = [_to_row(key, answer) for key, answer in answers.items() if answer.finish_reason != "error"]
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    with _lock:
        _store().queue.put((rows, loop, done))
    await done


def get(keys: Iterable[str]) -> dict[str, StoredAnswer]:
    """The answers there are, by key. A few microseconds each: up to some hundred at a time may be read on a loop.

    Raises:
        StoreError: If the store cannot be read.
    """
    wanted = list(keys)
    rows: list[tuple[Any, ...]] = []
    for start in range(0, len(wanted), 500):  # in between, others get their turn
        with _lock:
            store = _store()
            with translate_errors(store.file):
                rows += store.reader.execute(_SELECT, (json.dumps(wanted[start : start + 500]),)).fetchall()
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
        answer.seconds,
        answer.model,
        answer.provider,
        answer.created,
    )


def _from_row(row: tuple[Any, ...]) -> tuple[str, StoredAnswer]:
    key, text, finish_reason, reasoning, *usage, logprobs, seconds, model, provider, created = row
    likely = logprobs and json.loads(logprobs)
    return key, StoredAnswer(text, finish_reason, reasoning, likely, Usage(*usage), seconds, model, provider, created)


def _encode(text: str | None) -> bytes | None:
    return None if text is None else text.encode("utf-8", "surrogatepass")


_PendingWrite = tuple[list[tuple[Any, ...]], asyncio.AbstractEventLoop, "asyncio.Future[None]"]
"""Rows to write, and who waits for that."""


class _Store:
    """An open store: one connection that reads, one that writes, and the thread that does so."""

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
                self._commit([row for rows, _, _ in batch for row in rows])
            except Exception as error:
                failure = error
            for loop in {loop for _, loop, _ in batch}:  # each is woken once, not once per answer
                with suppress(RuntimeError):  # it is closed: nobody waits any more
                    loop.call_soon_threadsafe(_resolve, [done for _, its, done in batch if its is loop], failure)

    def _drain_queue(self) -> Iterator[_PendingWrite]:
        try:
            while each := self.queue.get_nowait():
                yield each
            self.queue.put(None)  # the end, which the loop has still to see
        except Empty:
            pass

    def _commit(self, rows: list[tuple[Any, ...]]) -> None:
        with translate_errors(self.file):
            self.writer.execute("BEGIN IMMEDIATE")
            try:
                self.writer.executemany(_INSERT, rows)
                self.writer.execute("COMMIT")
            except BaseException:
                if self.writer.in_transaction:  # a full disk has ended it already
                    self.writer.execute("ROLLBACK")
                raise

    def close(self) -> None:
        self.queue.put(None)
        self.thread.join()
        self.reader.close()
        self.writer.close()


def _resolve(waiting: "list[asyncio.Future[None]]", failure: Exception | None) -> None:
    for done in waiting:
        if done.done():  # who awaited it was cancelled
            continue
        if failure:
            done.set_exception(failure)
        else:
            done.set_result(None)


_stores: dict[str | None, _Store] = {}
_lock = threading.Lock()


def _store() -> _Store:
    """The open store of this process, where the environment says; `_lock` must be held."""
    home = os.getenv("DISTILFLOW_HOME")
    if home not in _stores:
        _stores[home] = _Store(path())
    return _stores[home]


@atexit.register
def close() -> None:
    """Write what waits and let go of the file; the next use opens it again."""
    with _lock:
        _close()


def _close() -> None:
    while _stores:
        _stores.popitem()[1].close()


def _before_fork() -> None:
    _lock.acquire()
    _close()  # SQLite's locks belong to a process: a child that inherits a connection believes it holds them


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(before=_before_fork, after_in_parent=_lock.release, after_in_child=_lock.release)
