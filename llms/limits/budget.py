"""Budget of a run: dollars or tokens. Requests wait when those in flight may use it up, and fail once it is spent."""

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from llms.errors import BudgetExceeded
from llms.typing import GenerateOutput, Usage

MAX_UNMEASURED_IN_FLIGHT = 8
"""Requests in flight while the cost of a request is unknown."""


class Budget:
    """A limit on dollars or tokens, shared by all models and batches of a run. Lives on the shared event loop.

    A request is admitted when it fits in with those in flight, each assumed to cost the mean so far. The limit is
    therefore exceeded by no more than the last requests deviate from the mean. Failures that cost nothing do not count
    into the mean.

    Args:
        max_cost: Dollars to spend at most; answers of unknown price count as free.
        max_tokens: Tokens to spend at most, input and output together.
    """

    def __init__(self, max_cost: float | None = None, max_tokens: int | None = None) -> None:
        self.limits = {"max_cost": max_cost, "max_tokens_total": max_tokens}
        self.spent = dict.fromkeys(self.limits, 0.0)
        self._in_flight = self._measured = 0
        self._waiters: deque[asyncio.Future[bool]] = deque()

    @contextmanager
    def activate(self) -> Iterator[None]:
        """Apply this budget to every request made inside, in any thread that inherits the context."""
        limited = any(limit is not None for limit in self.limits.values())
        token = _active_budget.set(self if limited else None)
        try:
            yield
        finally:
            _active_budget.reset(token)

    async def acquire(self, max_requests: int = 1) -> int:
        """Wait until another request fits; `release` must follow.

        Args:
            max_requests: Requests to start together.

        Returns:
            How many of them fit, one at least.

        Raises:
            BudgetExceeded: If the rest of the budget does not suffice for one.
        """
        if not await self._acquire_one():
            raise BudgetExceeded(self._message())
        count = 1
        while count < max_requests and self._fits():
            self._in_flight += 1
            count += 1
        return count

    async def release(self, outputs: Sequence[GenerateOutput] = (), requests: int = 1) -> None:
        """Book the outputs of requests that ended, and admit the next ones."""
        for output in outputs:
            self._measured += not output.error or output.usage != Usage()
            self.spent["max_cost"] += output.cost or 0.0
            self.spent["max_tokens_total"] += output.usage.input_tokens + output.usage.output_tokens
        self._in_flight -= requests
        self._wake_waiters()

    async def _acquire_one(self) -> bool:
        if not self._waiters and self._fits():
            self._in_flight += 1
            return True
        if not self._in_flight:
            return False
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.result():  # admitted meanwhile: pass it on
                self._in_flight -= 1
                self._wake_waiters()
            raise

    def _wake_waiters(self) -> None:
        while self._waiters and (self._waiters[0].done() or self._fits() or not self._in_flight):
            waiter = self._waiters.popleft()
            if not waiter.done():  # else it was cancelled
                fits = self._fits()
                self._in_flight += fits
                waiter.set_result(fits)

    def _fits(self) -> bool:
        if not self._measured:
            return self._in_flight < MAX_UNMEASURED_IN_FLIGHT
        return all(
            limit is None or self.spent[name] * (1 + (self._in_flight + 1) / self._measured) <= limit
            for name, limit in self.limits.items()
        )

    def _message(self) -> str:
        reached = [
            f"`{name}={limit:g}` ({self.spent[name]:,.6g} spent, the next request would pass it)"
            for name, limit in self.limits.items()
            if limit is not None and self.spent[name] * (1 + 1 / max(1, self._measured)) > limit
        ]
        return f"The run stopped at {' and '.join(reached)}. The same command with more goes on from here."


_active_budget: ContextVar[Budget | None] = ContextVar("budget", default=None)


def active_budget() -> Budget | None:
    """Return the budget that applies to the caller, if any."""
    return _active_budget.get()
