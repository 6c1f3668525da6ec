"""Budget of a run: dollars or tokens. Requests wait when those in flight may use it up, and fail once it is spent."""

import asyncio
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType

from llms.errors import BudgetExceeded
from llms.limits.cost import Amount, Estimate, RequestStats
from llms.typing import ModelUsage


@dataclass(eq=False, slots=True)
class Reservation:
    """The part of a budget set aside for one request, from its first attempt to its last."""

    budget: "Budget"
    requests: "_Requests"
    estimate: Estimate
    is_held: bool = True
    is_sent: bool = False

    def confirm(self) -> bool:
        """Return whether the request may be sent now: what others cost may have changed since it was admitted."""
        if not self.is_sent:
            self.is_sent = not self.budget.exceeded(self.requests, self.estimate, only_sent=True)
            if self.is_sent:
                self.requests.sent.count(self.estimate, 1)
        return self.is_sent

    async def renew(self) -> None:
        """Give back what was set aside, and wait until the request fits again.

        Raises:
            BudgetExceeded: If the rest of the budget does not suffice for it.
        """
        self.release()
        await self.budget.readmit(self)
        self.is_held = True

    def charge(self, spent: Amount, answered: bool = True) -> None:
        """Count what an attempt cost, at once; less than nothing counts as nothing.

        Args:
            spent: What it cost.
            answered: Whether that was measured, and says what the next requests will cost.
        """
        self.budget.charge(self, spent, answered)

    def release(self) -> None:
        """Give back what was set aside, and admit the next requests; later calls have no effect."""
        if self.is_held:
            self.is_held = False
            self.budget.release(self)


@dataclass(eq=False, slots=True)
class _Requests(RequestStats):
    """The requests of one step to one model, and those of them that wait, first come first served."""

    waiters: deque[tuple[Estimate, asyncio.Future[Reservation | None]]] = field(default_factory=deque)


class Budget:
    """A limit on dollars or tokens, shared by all models and batches of a run. Lives on the shared event loop.

    A request is admitted when it fits in with those in flight, each expected to cost what nineteen of twenty recent
    answers of its step and model stay below, or what the dearest of them did once one has cost far more than expected.
    So what is spent exceeds the limit by those in flight at the dearest answer so far, at most, and as a rule by less
    than one answer.

    Args:
        max_cost: Dollars to spend at most; answers of unknown price count as free.
        max_tokens: Tokens to spend at most, input and output together.
        earlier: What earlier attempts of the run have used, by step and model.
        attempts: Attempts of the run, this one included.
    """

    def __init__(
        self,
        max_cost: float | None = None,
        max_tokens: int | None = None,
        earlier: Mapping[tuple[str, str], ModelUsage] = MappingProxyType({}),
        attempts: int = 1,
    ) -> None:
        self.limits = {"max_cost": max_cost, "max_tokens_total": max_tokens}
        self.spent = Amount()
        self.attempts = attempts
        self._requests: dict[tuple[str, str], _Requests] = {}
        self._in_flight = 0
        for (step, model), used in earlier.items():
            spent = Amount(used.cost or 0.0, used.usage.input_tokens + used.usage.output_tokens)
            self.spent = self.spent.plus(spent)
            if answers := used.requests - used.unanswered:
                self._requests_of(step, model).resume(spent, answers)

    @contextmanager
    def activate(self) -> Iterator[None]:
        """Apply this budget to every request made inside, in any thread that inherits the context."""
        limited = any(limit is not None for limit in self.limits.values())
        token = _active_budget.set(self if limited else None)
        try:
            yield
        finally:
            _active_budget.reset(token)

    async def reserve(self, step: str, model: str, estimates: Sequence[Estimate]) -> list[Reservation]:
        """Wait until a request fits, and set aside what it is expected to cost; each must be released.

        Args:
            step: Name of the step that asks.
            model: Name of the model.
            estimates: Requests to start together.

        Returns:
            Reservations for as many of the first requests as fit, for one at least.

        Raises:
            BudgetExceeded: If the rest of the budget does not suffice for one.
        """
        requests = self._requests_of(step, model)
        first = await self._wait(requests, estimates[0])
        if first is None:
            raise BudgetExceeded(self._message(requests, estimates[0]))
        reservations = [first]
        for estimate in estimates[1:]:
            if not self._fits(requests, estimate):
                break
            reservations.append(self._admit(requests, estimate))
        return reservations

    def _requests_of(self, step: str, model: str) -> _Requests:
        if (step, model) not in self._requests:
            self._requests[step, model] = _Requests(f"of `{step}` to `{model}`" if step else f"to `{model}`")
        return self._requests[step, model]

    def charge(self, reservation: Reservation, spent: Amount, answered: bool) -> None:
        """Count what an attempt cost. Usually called by a `Reservation`."""
        spent = Amount(*(max(0.0, part) if math.isfinite(part) else 0.0 for part in spent))
        self.spent = self.spent.plus(spent)
        if answered and spent != Amount():  # what cost nothing says nothing of what the next ones cost
            reservation.requests.measure(spent, reservation.estimate)

    def release(self, reservation: Reservation) -> None:
        """Give back a reservation. Usually called by it."""
        self._in_flight -= 1
        reservation.requests.admitted.count(reservation.estimate, -1)
        if reservation.is_sent:
            reservation.requests.sent.count(reservation.estimate, -1)
            reservation.is_sent = False
        self._wake_waiters()

    async def readmit(self, reservation: Reservation) -> None:
        """Wait until a request fits that was given back. Usually called by its reservation.

        Raises:
            BudgetExceeded: If the rest of the budget does not suffice for it.
        """
        if await self._wait(reservation.requests, reservation.estimate) is None:
            raise BudgetExceeded(self._message(reservation.requests, reservation.estimate))

    async def _wait(self, requests: _Requests, estimate: Estimate) -> Reservation | None:
        """Return a reservation once it fits; `None` if it never will."""
        if not requests.waiters and self._fits(requests, estimate):
            return self._admit(requests, estimate)
        if not self._in_flight:
            return None
        admitted: asyncio.Future[Reservation | None] = asyncio.get_running_loop().create_future()
        requests.waiters.append((estimate, admitted))
        try:
            return await admitted
        except asyncio.CancelledError:
            if admitted.done() and not admitted.cancelled() and (reservation := admitted.result()):
                reservation.release()  # admitted meanwhile: pass it on
            raise

    def _wake_waiters(self) -> None:
        """Admit those that fit, the last step's first, so that rows are finished; with none in flight, none ever will.

        Those of one step and model are admitted in the order in which they came.
        """
        for requests in reversed(self._requests.values()):
            while requests.waiters:
                estimate, admitted = requests.waiters[0]
                if not admitted.done():  # else it was cancelled
                    if self._fits(requests, estimate):
                        admitted.set_result(self._admit(requests, estimate))
                    elif not self._in_flight:
                        admitted.set_result(None)
                    else:
                        break
                requests.waiters.popleft()

    def _admit(self, requests: _Requests, estimate: Estimate) -> Reservation:
        self._in_flight += 1
        requests.admitted.count(estimate, 1)
        return Reservation(self, requests, estimate)

    def _fits(self, requests: _Requests, estimate: Estimate) -> bool:
        return not requests.is_full and not self.exceeded(requests, estimate)

    def exceeded(self, requests: _Requests, estimate: Estimate, only_sent: bool = False) -> list[str]:
        """Return the names of the limits that another request may pass, given all that are in flight or only sent."""
        total = self.spent.plus(requests.expect(estimate))
        for each in self._requests.values():
            total = total.plus(each.reserved(each.sent if only_sent else each.admitted))
        most = zip(self.limits.items(), total, strict=True)
        return [name for (name, limit), amount in most if limit is not None and amount > limit * (1 + 1e-9)]

    def _message(self, requests: _Requests, estimate: Estimate) -> str:
        spent = dict(zip(self.limits, (f"${self.spent.cost:,.6g}", f"{self.spent.tokens:,.0f} tokens"), strict=True))
        during = f" in {spell(self.attempts)} attempts" if self.attempts > 1 else ""
        passed = f"the next request {requests.name} may pass it"
        reached = [
            f"`{name}={self.limits[name]:g}` ({spent[name]} spent{during}; {passed})"
            for name in self.exceeded(requests, estimate)
        ]
        return f"The run stopped at {' and '.join(reached)}. The same command with more goes on from here."


def spell(number: int) -> str:
    """Return a small number as a word."""
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return words[number] if number < len(words) else f"{number:,}"


_active_budget: ContextVar[Budget | None] = ContextVar("budget", default=None)


def active_budget() -> Budget | None:
    """Return the budget that applies to the caller, if any."""
    return _active_budget.get()
