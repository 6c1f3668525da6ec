"""A limit shared by all processes and machines: a global concurrency limit of Prefect, leased in blocks.

    async with shared_slot("openai"):
        output = await ask()

Each process polls Prefect twice a second, while there are requests. The limit may be edited at any time:

    prefect gcl create openai --limit 2 --slot-decay-per-second 2       120 requests a minute
    prefect gcl create openai --limit 50                                50 requests in flight

The `--limit` of a rate is its burst: at least two, and at least a second of the rate.
"""

import asyncio
import logging
import math
import random
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from llms.clients import event_loop
from llms.errors import Fatal

logger = logging.getLogger(__name__)

TICK_S = 0.5  # between two polls, with a jitter of half of it: of equal processes none is always the first
MAX_TICK_S = 2.0  # where few requests a minute are allowed, or another process was faster
PREFECT_TIMEOUT_S = 10.0
LEASE_S = 60.0  # after which Prefect takes back the slots of a dead process; it allows no fewer
LEASE_KEEP_S = 10.0  # after which slots are released although in use, so that other processes have their turn
LEASE_IDLE_S = 2.0  # after which unused slots are released
LEASES_PER_LIMIT = 8  # a lease is this part of the limit


@asynccontextmanager
async def shared_slot(name: str) -> AsyncIterator[None]:
    """Hold a slot of the shared limit; first in, first out. Runs on the shared event loop.

    Args:
        name: A global concurrency limit of Prefect: a rate if its slots decay, else a limit on requests in flight.

    Raises:
        Fatal: If there is no such limit, it is switched off, or Prefect cannot be reached at first.
    """
    limit = event_loop.shared_client(("shared limit", name), lambda: SharedLimit(name), SharedLimit.close)
    await limit.acquire()
    try:
        yield
    finally:
        limit.release()


@dataclass(slots=True)
class _Lease:
    id: UUID
    slots: int
    taken_at: float
    renewed_at: float
    releasing: bool = False


class SharedLimit:
    """This process's share of a limit: a queue of waiters, and one task that polls Prefect for them all."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.in_flight = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._wakeup = asyncio.Event()
        self._clock = asyncio.get_running_loop().time
        self._poll_task: asyncio.Task[None] | None = None
        self._client: PrefectClient
        self._reached = self._is_rate = False
        # Of a rate: permits to use now, permits due if this process were alone, and those Prefect lost in rounding.
        self._permits, self._permits_due, self._taken_at, self._rounding_loss = 0, 0.0, -math.inf, 0.0
        # Of a limit on requests in flight: leases, and their slots without those that are being released.
        self._leases: list[_Lease] = []
        self._slots = 0
        self._peak_in_flight, self._busy_at, self._unreachable_at = 0, 0.0, -math.inf

    async def acquire(self) -> None:
        """Wait for a permit or a slot."""
        if not self._waiters and self._can_admit():
            return self._admit()
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._wakeup.set()
        if self._poll_task is None or self._poll_task.done():
            self._poll_task = asyncio.create_task(self._run())
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and not waiter.exception():  # admitted: pass it on
                self._permits += self._is_rate
                self.release()
            raise

    def release(self) -> None:
        """End a request, whatever its outcome."""
        self.in_flight -= 1
        self._grant()

    async def close(self) -> None:
        """Release all leases."""
        if self._poll_task:
            self._poll_task.cancel()
            await asyncio.wait([self._poll_task])

    def _can_admit(self) -> bool:
        return self._permits > 0 if self._is_rate else self.in_flight < self._slots

    def _admit(self) -> None:
        self._permits -= self._is_rate
        self.in_flight += 1
        self._peak_in_flight = max(self._peak_in_flight, self.in_flight)

    def _grant(self, permits: int = 0) -> None:
        self._permits += permits
        while self._waiters and self._can_admit():
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._admit()
                waiter.set_result(None)

    async def _run(self) -> None:
        """Poll Prefect until this process ends or an error is permanent."""
        try:
            if not PREFECT_API_URL.value():
                raise Fatal(f"The shared limit `{self.name}` needs a Prefect server. {_SERVER_HINT}")
            settings = {"timeout": PREFECT_TIMEOUT_S, "event_hooks": {"response": [_raise_if_busy]}}
            with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
                async with get_client(httpx_settings=settings) as self._client, self._released_on_exit():
                    await self._poll()
        except Exception as error:
            self._fail(self._remedy(error) or _describe(error))

    @asynccontextmanager
    async def _released_on_exit(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            with suppress(Exception):  # Prefect takes them back when the leases end
                async with asyncio.timeout(5):
                    for lease in list(self._leases):
                        await self._release_lease(lease)

    async def _poll(self) -> None:
        """Tick while there are waiters or leases."""
        failures = 0
        while True:
            started = self._clock()
            try:
                pause, failures = await self._tick(), 0
            except Exception as error:
                if self._remedy(error):
                    raise
                if isinstance(error, httpx.TransportError):
                    self._unreachable_at = self._clock()
                failures += 1
                pause = min(15.0, 2.0**failures / 10) * random.uniform(0.5, 1.5)
                if failures == 3:  # its SQLite may be busy for a moment
                    logger.warning("Prefect, for the shared limit `%s`: %s; tried again.", self.name, _describe(error))
            await asyncio.sleep(started + pause - self._clock())
            if not self._waiters and not self._leases:
                self._wakeup.clear()
                await self._wakeup.wait()

    async def _tick(self) -> float:
        """Tend the leases, take slots or permits for the waiters; return the seconds until the next tick."""
        self._waiters = deque(waiter for waiter in self._waiters if not waiter.done())
        pause = TICK_S * random.uniform(0.5, 1.5)
        if await self._tend_leases() or not self._waiters:
            return pause
        limit = await self._read_limit()
        self._is_rate = limit.slot_decay_per_second > 0
        try:
            return await (self._take_permits(limit) if self._is_rate else self._take_lease(limit, pause))
        except httpx.HTTPStatusError as error:
            if error.response.status_code != 423:  # another process was faster
                raise
            return min(MAX_TICK_S, float(error.response.headers.get("Retry-After", pause)))

    async def _read_limit(self) -> GlobalConcurrencyLimitResponse:
        limit = await self._client.read_global_concurrency_limit_by_name(self.name)
        if not limit.active:
            raise Fatal(f"The shared limit `{self.name}` is switched off: `prefect gcl update {self.name} --enable`.")
        self._reached = True
        return limit

    async def _take_permits(self, limit: GlobalConcurrencyLimitResponse) -> float:
        """Take the permits of a rate until the next tick, and spread them over it.

        Prefect counts whole slots, and at each change drops the fraction that had decayed since the one before: we use
        the loss that we see. A refusal makes it drop all, so only slots that were seen to be free are asked for.
        """
        rate = limit.slot_decay_per_second
        usual = max(0.1, min(MAX_TICK_S, max(TICK_S, 0.5 / rate), 0.5 * limit.limit / rate))
        tick, now = usual * random.uniform(0.5, 1.5), self._clock()
        due = self._permits_due + rate * (now - self._taken_at)
        self._permits_due, self._taken_at = min(due, 1.5 * rate * usual + 1), now  # no more than a tick's accumulate
        wanted = min(len(self._waiters), int(self._permits_due))
        free = max(0, min(wanted, limit.limit - limit.active_slots))
        if free:
            await self._client.increment_concurrency_slots([self.name], free, "rate_limit")
        recovered = min(wanted - free, int(self._rounding_loss))
        permits = free + recovered
        for index in range(permits):
            asyncio.get_running_loop().call_later(tick * index / permits, self._grant, 1)
        self._permits_due -= permits
        self._rounding_loss -= recovered
        if free:
            after = await self._read_limit()
            if after.active_slots > free and after.updated and limit.updated:  # else it was empty: nothing was lost
                self._rounding_loss += rate * (after.updated - limit.updated).total_seconds() % 1
        return tick

    async def _take_lease(self, limit: GlobalConcurrencyLimitResponse, pause: float) -> float:
        """Lease a block of slots for the waiters."""
        free = limit.limit - limit.active_slots
        count = min(len(self._waiters), free, math.ceil(limit.limit / LEASES_PER_LIMIT))
        if count < 1:
            return pause
        reply = await self._client.increment_concurrency_slots_with_lease([self.name], count, "concurrency", LEASE_S)
        now = self._clock()
        self._leases.append(_Lease(UUID(reply.json()["lease_id"]), count, now, now))
        self._slots += count
        self._grant()
        return 0.0 if self._waiters and count < free else pause

    async def _tend_leases(self) -> bool:
        """Renew the leases; release idle ones, and one that was kept for long. Return whether any was released."""
        now = self._clock()
        for lease in [each for each in self._leases if now > each.renewed_at + LEASE_S / 3]:
            await self._renew_lease(lease)
        if self._waiters or any(self._peak_in_flight > self._slots - lease.slots for lease in self._leases):
            self._busy_at = now
        self._peak_in_flight = self.in_flight
        for lease in self._leases:
            overdue = now > lease.taken_at + LEASE_KEEP_S and not any(each.releasing for each in self._leases)
            idle = now > self._busy_at + LEASE_IDLE_S and self.in_flight <= self._slots - lease.slots
            if not lease.releasing and (overdue or idle):
                lease.releasing = True
                self._slots -= lease.slots
        before = len(self._leases)
        for lease in [each for each in self._leases if each.releasing]:
            if self.in_flight <= sum(each.slots for each in self._leases) - lease.slots:
                await self._release_lease(lease)
        return len(self._leases) < before

    async def _renew_lease(self, lease: _Lease) -> bool:
        """Renew a lease; return whether it is still ours."""
        now = self._clock()
        try:
            await self._client.renew_concurrency_lease(lease.id, LEASE_S)
        except httpx.HTTPStatusError as error:
            if error.response.status_code != 410:
                raise
            # A restarted server has forgotten the lease, but not its slots. If it was only out of reach for longer,
            # they are released twice, and too many others may be in flight: that passes, lost slots do not.
            if now < lease.renewed_at + LEASE_S or self._unreachable_at > lease.renewed_at:
                with suppress(httpx.ReadTimeout):
                    await self._client.release_concurrency_slots([self.name], lease.slots, now - lease.taken_at + 0.1)
            self._drop_lease(lease)
            return False
        lease.renewed_at = now
        return True

    async def _release_lease(self, lease: _Lease) -> None:
        if await self._renew_lease(lease):  # or the slots of a forgotten lease would be lost: Prefect does not say
            with suppress(httpx.ReadTimeout):  # released all the same; asked again, a busy server releases them twice
                await self._client.release_concurrency_slots_with_lease(lease.id)
            self._drop_lease(lease)

    def _drop_lease(self, lease: _Lease) -> None:
        self._leases.remove(lease)
        self._slots = sum(each.slots for each in self._leases if not each.releasing)

    def _remedy(self, error: Exception) -> str | None:
        """Return a message for an error that waiting does not cure; `None` for others."""
        name = f"shared limit `{self.name}`"
        match error:
            case Fatal():
                return error.message
            case ObjectNotFound():
                rate = f"`prefect gcl create {self.name} --limit 2 --slot-decay-per-second 2` is 120 requests a minute"
                return f"Prefect has no {name}: {rate}, `prefect gcl create {self.name} --limit 50` is 50 in flight."
            case httpx.ReadTimeout() | httpx.HTTPStatusError(response=httpx.Response(status_code=503)):  # it is busy
                return None
            case httpx.HTTPError():
                unreachable = f"Prefect says nothing of the {name}: {_describe(error)}. {_SERVER_HINT}"
                return None if self._reached else unreachable
        return f"The {name}: {_describe(error)}."

    def _fail(self, message: str) -> None:
        self._reached, self._leases, self._slots, self._permits = False, [], 0, 0
        while self._waiters:
            if not (waiter := self._waiters.popleft()).done():
                waiter.set_exception(Fatal(message))


_SERVER_HINT = "Start one with `prefect server start`, and name it: `prefect config set PREFECT_API_URL=http://…/api`."


async def _raise_if_busy(response: httpx.Response) -> None:
    """Raise before Prefect's client sleeps over a busy server: we know how soon to try again."""
    if response.status_code in (502, 503):
        response.raise_for_status()


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
