"""One limit for all processes and machines: a global concurrency limit of Prefect, taken in blocks.

    async with shared("openai"):
        output = await ask()

Prefect is asked about twice a second however many requests there are, and only while there are some. The limit itself
says what it is, and may be edited at any time:

    prefect gcl create openai --limit 2 --slot-decay-per-second 2       120 requests a minute
    prefect gcl create openai --limit 50                                50 requests in flight

The `--limit` of a rate is the burst that may have gathered; it should be at least two, and one second of the rate.
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

TURN = 0.5  # seconds between two looks, give or take a random half: of equal processes none is always the first
LONGEST_TURN = 2.0  # where few requests a minute are allowed, or somebody was faster
TIMEOUT = 10.0  # seconds Prefect has to answer

LEASE = 60.0  # seconds after which Prefect takes back the slots of a process that died; it allows no fewer
KEEP = 10.0  # seconds after which slots are given back although they are used, so that others have their turn
IDLE = 2.0  # seconds after which slots are given back that nobody used

BLOCKS = 8  # leases to a limit: what a process takes, and gives back, at once


@asynccontextmanager
async def shared(name: str) -> AsyncIterator[None]:
    """A request's place within the limit of this name, on the models' own loop; first come first served.

    Args:
        name: A global concurrency limit of Prefect: a rate if its slots decay, else how many may be in flight.

    Raises:
        Fatal: If there is no such limit, it is switched off, or Prefect cannot be reached at first.
    """
    limit = event_loop.shared(("shared limit", name), lambda: SharedLimit(name), SharedLimit.close)
    await limit.enter()
    try:
        yield
    finally:
        limit.leave()


@dataclass(slots=True)
class _Lease:
    id: UUID
    slots: int
    taken_at: float
    renewed_at: float
    leaving: bool = False


class SharedLimit:
    """This process's part of a limit: who waits here, and one task that deals with Prefect for them all."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.in_flight = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._wanted = asyncio.Event()
        self._clock = asyncio.get_running_loop().time
        self._work: asyncio.Task[None] | None = None
        self._client: PrefectClient
        self._reached = self._is_rate = False
        self._permits = 0  # of a rate: taken, and their time has come
        self._due, self._taken_at = 0.0, -math.inf  # of a rate: what this process may take, were it alone
        self._forgotten = 0.0  # of a rate: what Prefect lost in rounding
        self._leases: list[_Lease] = []
        self._slots = 0  # leased, without those that leave
        self._peak, self._busy_at, self._missed_at = 0, 0.0, -math.inf

    async def enter(self) -> None:
        """Wait for a permit or a slot."""
        if not self._waiting and self._may():
            return self._admit()
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._wanted.set()
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._deal())
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and not future.exception():  # its turn came: on to the next
                self._permits += self._is_rate
                self.leave()
            raise

    def leave(self) -> None:
        """The request is done, whatever became of it."""
        self.in_flight -= 1
        self._hand_out()

    async def close(self) -> None:
        """Give back what is leased."""
        if self._work:
            self._work.cancel()
            await asyncio.wait([self._work])

    def _may(self) -> bool:
        return self._permits > 0 if self._is_rate else self.in_flight < self._slots

    def _admit(self) -> None:
        self._permits -= self._is_rate
        self.in_flight += 1
        self._peak = max(self._peak, self.in_flight)

    def _hand_out(self, permits: int = 0) -> None:
        self._permits += permits
        while self._waiting and self._may():
            future = self._waiting.popleft()
            if not future.done():
                self._admit()
                future.set_result(None)

    async def _deal(self) -> None:
        """Be Prefect's client, until this process ends or nothing helps."""
        try:
            if not PREFECT_API_URL.value():
                raise Fatal(f"The shared limit `{self.name}` needs a Prefect server. {_SERVER}")
            settings = {"timeout": TIMEOUT, "event_hooks": {"response": [_at_once]}}
            with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
                async with get_client(httpx_settings=settings) as self._client, self._all_back():
                    await self._turns()
        except Exception as error:
            self._fail(self._cure(error) or _said(error))

    @asynccontextmanager
    async def _all_back(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            with suppress(Exception):  # or they go back when the leases end
                async with asyncio.timeout(5):
                    for lease in list(self._leases):
                        await self._release(lease)

    async def _turns(self) -> None:
        """Turn after turn, while somebody waits or something is leased."""
        storms = 0
        while True:
            began = self._clock()
            try:
                pause, storms = await self._turn(), 0
            except Exception as error:
                if self._cure(error):
                    raise
                self._missed_at = self._clock() if isinstance(error, httpx.TransportError) else self._missed_at
                storms += 1
                pause = min(15.0, 2.0**storms / 10) * random.uniform(0.5, 1.5)
                if storms == 3:  # its SQLite may be busy for a moment
                    logger.warning("Prefect, for the shared limit `%s`: %s; tried again.", self.name, _said(error))
            await asyncio.sleep(began + pause - self._clock())
            if not self._waiting and not self._leases:
                self._wanted.clear()
                await self._wanted.wait()

    async def _turn(self) -> float:
        """Do what is to do; seconds until the next time."""
        self._waiting = deque(future for future in self._waiting if not future.done())
        pause = TURN * random.uniform(0.5, 1.5)
        if await self._tend() or not self._waiting:
            return pause
        limit = await self._look()
        self._is_rate = limit.slot_decay_per_second > 0
        try:
            return await (self._take(limit) if self._is_rate else self._lease(limit, pause))
        except httpx.HTTPStatusError as error:
            if error.response.status_code != 423:  # somebody was faster
                raise
            return min(LONGEST_TURN, float(error.response.headers.get("Retry-After", pause)))

    async def _look(self) -> GlobalConcurrencyLimitResponse:
        limit = await self._client.read_global_concurrency_limit_by_name(self.name)
        if not limit.active:
            raise Fatal(f"The shared limit `{self.name}` is switched off: `prefect gcl update {self.name} --enable`.")
        self._reached = True
        return limit

    async def _take(self, limit: GlobalConcurrencyLimitResponse) -> float:
        """Take permits for the time until the next turn, and spread them over it.

        Prefect counts whole slots, and at every change forgets the fraction that had decayed since the one before: what
        we see it forget, we use. A refusal makes it forget all, so nothing is asked for that was not seen to be free.
        """
        rate = limit.slot_decay_per_second
        usual = max(0.1, min(LONGEST_TURN, max(TURN, 0.5 / rate), 0.5 * limit.limit / rate))
        turn, now = usual * random.uniform(0.5, 1.5), self._clock()
        self._due = min(self._due + rate * (now - self._taken_at), 1.5 * rate * usual + 1)  # whatever gathered there
        self._taken_at = now
        wanted = min(len(self._waiting), int(self._due))
        free = max(0, min(wanted, limit.limit - limit.active_slots))
        if free:
            await self._client.increment_concurrency_slots([self.name], free, "rate_limit")
        found = min(wanted - free, int(self._forgotten))
        for at in range(free + found):
            asyncio.get_running_loop().call_later(turn * at / (free + found), self._hand_out, 1)
        self._due -= free + found
        self._forgotten -= found
        if free:
            after = await self._look()
            if after.active_slots > free and after.updated and limit.updated:  # else it was empty: nothing was lost
                self._forgotten += rate * (after.updated - limit.updated).total_seconds() % 1
        return turn

    async def _lease(self, limit: GlobalConcurrencyLimitResponse, pause: float) -> float:
        """Lease slots for those who wait, a block at a time."""
        free = limit.limit - limit.active_slots
        count = min(len(self._waiting), free, math.ceil(limit.limit / BLOCKS))
        if count < 1:
            return pause
        reply = await self._client.increment_concurrency_slots_with_lease([self.name], count, "concurrency", LEASE)
        now = self._clock()
        self._leases.append(_Lease(UUID(reply.json()["lease_id"]), count, now, now))
        self._slots += count
        self._hand_out()
        return 0.0 if self._waiting and count < free else pause

    async def _tend(self) -> bool:
        """Renew the leases; give back what is idle, and one that was kept for long. Whether anything went back."""
        now = self._clock()
        for lease in [each for each in self._leases if now > each.renewed_at + LEASE / 3]:
            await self._renew(lease)
        if self._waiting or any(self._peak > self._slots - lease.slots for lease in self._leases):
            self._busy_at = now
        self._peak = self.in_flight
        for lease in self._leases:
            late = now > lease.taken_at + KEEP and not any(each.leaving for each in self._leases)
            idle = now > self._busy_at + IDLE and self.in_flight <= self._slots - lease.slots
            if not lease.leaving and (late or idle):
                lease.leaving = True
                self._slots -= lease.slots
        before = len(self._leases)
        for lease in [each for each in self._leases if each.leaving]:
            if self.in_flight <= sum(each.slots for each in self._leases) - lease.slots:
                await self._release(lease)
        return len(self._leases) < before

    async def _renew(self, lease: _Lease) -> bool:
        """Whether it is still ours."""
        now = self._clock()
        try:
            await self._client.renew_concurrency_lease(lease.id, LEASE)
        except httpx.HTTPStatusError as error:
            if error.response.status_code != 410:
                raise
            # A server that was restarted forgets the lease, but not its slots. If it was only out of reach for longer,
            # they go back twice, and others may have as many too many in flight: that passes, lost slots do not.
            if now < lease.renewed_at + LEASE or self._missed_at > lease.renewed_at:
                with suppress(httpx.ReadTimeout):
                    await self._client.release_concurrency_slots([self.name], lease.slots, now - lease.taken_at + 0.1)
            self._drop(lease)
            return False
        lease.renewed_at = now
        return True

    async def _release(self, lease: _Lease) -> None:
        if await self._renew(lease):  # or a forgotten one's slots would be lost: Prefect does not say
            with suppress(httpx.ReadTimeout):  # it is done yet; told again, a busy server gives the slots back twice
                await self._client.release_concurrency_slots_with_lease(lease.id)
            self._drop(lease)

    def _drop(self, lease: _Lease) -> None:
        self._leases.remove(lease)
        self._slots = sum(each.slots for each in self._leases if not each.leaving)

    def _cure(self, error: Exception) -> str | None:
        """What to do about it, if waiting does not help."""
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
                return None if self._reached else f"Prefect says nothing of the {name}: {_said(error)}. {_SERVER}"
        return f"The {name}: {_said(error)}."

    def _fail(self, message: str) -> None:
        self._reached, self._leases, self._slots, self._permits = False, [], 0, 0
        while self._waiting:
            if not (future := self._waiting.popleft()).done():
                future.set_exception(Fatal(message))


_SERVER = "Start one with `prefect server start`, and name it: `prefect config set PREFECT_API_URL=http://…/api`."


async def _at_once(response: httpx.Response) -> None:
    """Say that the server is busy before Prefect's client sleeps over it: we know how soon to try again."""
    if response.status_code in (502, 503):
        response.raise_for_status()


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
