"""What a run may spend: requests wait when those in flight might take the rest, and end when it is spent."""

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from llms.errors import BudgetExceeded
from llms.typing import GenerateOutput, Usage

MAX_UNMEASURED_IN_FLIGHT = 8
"""Requests in flight while nobody knows yet what one costs."""


class Budget:
    """A limit on dollars or tokens, over all the models and batches of a run; on the shared loop only.

    A request begins when it fits in with those in flight, each taken to cost what they did on average so far. So the
    limit is passed by no more than the last requests differ from that. A failure that nobody was billed for says
    nothing about that.

    Args:
        max_cost: Dollars to spend at most; answers whose price is not known count as free.
        max_tokens: Tokens to spend at most, input and output together.
    """

    def __init__(self, max_cost: float | None = None, max_tokens: int | None = None) -> None:
        self.limits = {"max_cost": max_cost, "max_tokens_total": max_tokens}
        self.spent = dict.fromkeys(self.limits, 0.0)
        self._in_flight = self._measured = 0
        self._waiters: deque[asyncio.Future[bool]] = deque()

    @contextmanager
    def activate(self) -> Iterator[None]:
        """Everything asked inside, in whatever thread that inherits this context, is under this budget."""
        limited = any(most is not None for most in self.limits.values())
        outer = _active_budget.set(self if limited else None)
        try:
            yield
        finally:
            _active_budget.reset(outer)

    async def acquire(self, max_requests: int = 1) -> int:
        """Wait until another request may begin; `leave` must follow.

        Args:
            most: Requests that would begin together.

        Returns:
            How many of them may, one at least.

        Raises:
            BudgetExceeded: If there is not enough left for one.
        """
        if not await self._acquire_one():
            raise BudgetExceeded(self._message())
        count = 1
        while count < max_requests and self._fits():
            self._in_flight += 1
            count += 1
        return count

    async def release(self, outputs: Sequence[GenerateOutput] = (), requests: int = 1) -> None:
        """So many requests are over, and this is what they came to."""
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
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiters.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.result():  # its turn came meanwhile: on to the next
                self._in_flight -= 1
                self._wake_waiters()
            raise

    def _wake_waiters(self) -> None:
        while self._waiters and (self._waiters[0].done() or self._fits() or not self._in_flight):
            turn = self._waiters.popleft()
            if not turn.done():  # else it was cancelled
                fits = self._fits()
                self._in_flight += fits
                turn.set_result(fits)

    def _fits(self) -> bool:
        if not self._measured:
            return self._in_flight < MAX_UNMEASURED_IN_FLIGHT
        return all(
            most is None or self.spent[name] * (1 + (self._in_flight + 1) / self._measured) <= most
            for name, most in self.limits.items()
        )

    def _message(self) -> str:
        near = [
            f"`{name}={most:g}` ({self.spent[name]:,.6g} spent, the next request would pass it)"
            for name, most in self.limits.items()
            if most is not None and self.spent[name] * (1 + 1 / max(1, self._measured)) > most
        ]
        return f"The run stopped at {' and '.join(near)}. The same command with more goes on from here."


_active_budget: ContextVar[Budget | None] = ContextVar("budget", default=None)


def active_budget() -> Budget | None:
    """The budget the caller is under, if there is one."""
    return _active_budget.get()
