"""The shared event loop of this process: all async models run on it, whichever thread or loop calls them.

SDK clients and connections break on a second loop, so they all live on this one and are closed with it.
"""

import asyncio
import atexit
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

MAX_OPEN_FILES = 10_240
"""Limit on open files to ask the system for: each request in flight is one."""

SHUTDOWN_TIMEOUT_S = 5.0
"""Time a client has to close."""

WAIT_POLL_S = 1.0
"""Interval at which a waiting thread wakes up: a signal that comes just before it sleeps does not wake it."""


class _LoopThread:
    """A thread that runs an event loop, and the clients to close before it ends."""

    def __init__(self) -> None:
        _raise_file_limit()
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.clients: dict[Hashable, tuple[Any, Callable[[], Awaitable[Any]]]] = {}
        self.thread = threading.Thread(target=self.loop.run_forever, name="llms", daemon=True)
        self.thread.start()

    async def close(self) -> None:
        """Cancel all tasks, then close every client; one that fails to close keeps no other open."""
        clients, self.clients = self.clients, {}
        if tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=SHUTDOWN_TIMEOUT_S)
        await asyncio.gather(*(_close_client(close) for _, close in clients.values()), return_exceptions=True)


async def _close_client(close: Callable[[], Awaitable[Any]]) -> None:
    async with asyncio.timeout(SHUTDOWN_TIMEOUT_S):
        await close()


def _raise_file_limit() -> None:
    """Raise the soft limit on open files: its usual 1,024 (for `select`) is too low for 1,000 requests in flight."""
    with suppress(ImportError, ValueError, OSError):  # no such limit, or not permitted
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        unlimited = resource.RLIM_INFINITY
        wanted = MAX_OPEN_FILES if hard == unlimited else min(MAX_OPEN_FILES, hard)
        if soft != unlimited and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


_current: _LoopThread | None = None
_inherited: list[_LoopThread] = []
"""Loops of the parent process, kept after a fork: to free one would cut its connections, which are not ours."""

_lock = threading.Lock()


def _loop_thread() -> _LoopThread:
    global _current
    with _lock:
        if _current and _current.pid != os.getpid():  # a forked child has the object but not the thread
            _inherited.append(_current)
            _current = None
        _current = _current or _LoopThread()
        return _current


class _Scope:
    """What runs inside a `cancel_scope`; once that is cancelled, whatever starts later is cancelled at once."""

    def __init__(self) -> None:
        self.running = set[Future[Any]]()
        self.tasks = set[asyncio.Task[Any]]()  # a future that is cancelled is done before its task has ended
        self.is_cancelled = False

    def add(self, future: Future[Any]) -> None:
        self.running.add(future)
        future.add_done_callback(self.running.discard)
        if self.is_cancelled:
            future.cancel()

    def cancel(self) -> None:
        self.is_cancelled = True  # first: what is added from now on sees it
        self.cancel_running()
        if self.tasks:
            asyncio.run_coroutine_threadsafe(self._wait(), _loop_thread().loop).result()

    async def _wait(self) -> None:
        """Wait for what was cancelled to end."""
        if self.tasks:
            await asyncio.wait(list(self.tasks), timeout=SHUTDOWN_TIMEOUT_S)

    def cancel_running(self) -> None:
        for each in list(self.running):
            each.cancel()


_scope: ContextVar[_Scope | None] = ContextVar("scope", default=None)


@contextmanager
def cancel_scope() -> Iterator[Callable[[], None]]:
    """Yield a function that cancels everything run inside, now or later, in any thread that inherits the context.

    It returns when that has ended, and must not be called on the shared loop.
    """
    token = _scope.set(scope := _Scope())
    try:
        yield scope.cancel
    finally:
        _scope.reset(token)


def cancel_all() -> None:
    """Cancel everything that runs inside the caller's `cancel_scope` just now."""
    if scope := _scope.get():
        scope.cancel_running()


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the shared loop and wait for it, from any thread but the loop's own."""
    running = _loop_thread()
    if threading.current_thread() is running.thread:
        coroutine.close()
        raise RuntimeError("`generate` was called on the models' own event loop: there, await `agenerate`.")
    scope = _scope.get()
    future: Future[T] = asyncio.run_coroutine_threadsafe(_track(coroutine, scope), running.loop)
    if scope is not None:
        scope.add(future)
    try:
        while not wait([future], WAIT_POLL_S).done:
            pass
        return future.result()
    except BaseException:
        future.cancel()  # the caller was interrupted (Ctrl-C): nothing it started continues
        raise


async def _track(coroutine: Coroutine[Any, Any, T], scope: _Scope | None) -> T:
    """Await the coroutine, and retrieve its exception even if its caller has gone: else asyncio would log it."""
    task: Any = asyncio.current_task()
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    if scope:
        scope.tasks.add(task)
        task.add_done_callback(scope.tasks.discard)
    return await coroutine


async def run_on_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine that uses shared clients, from any loop."""
    running = _loop_thread()
    if asyncio.get_running_loop() is running.loop:
        return await coroutine
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, running.loop))


def shared_client(key: Hashable, build: Callable[[], T], close: Callable[[T], Awaitable[Any]]) -> T:
    """Return the client of this key, built on first use and closed when the process ends. Call it on the loop."""
    clients = _loop_thread().clients
    if key not in clients:
        client = build()
        clients[key] = (client, lambda: close(client))
    return clients[key][0]


@atexit.register
def close() -> None:
    """Close all clients and stop the loop; the next `run` starts another one."""
    global _current
    with _lock:
        ending, _current = _current, None
    if ending and ending.pid != os.getpid():
        _inherited.append(ending)
    elif ending:
        closing = asyncio.run_coroutine_threadsafe(ending.close(), ending.loop)
        try:
            wait([closing], 3 * SHUTDOWN_TIMEOUT_S)
        finally:
            ending.loop.call_soon_threadsafe(ending.loop.stop)
            ending.thread.join(SHUTDOWN_TIMEOUT_S)
            if not ending.thread.is_alive():
                ending.loop.close()
