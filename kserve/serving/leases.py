"""The buyer of a host: keeps every key supplied with tokens from Redis, ahead of need. docs/fleet.md has the bound."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from itertools import groupby, islice
from typing import Any, Protocol

import structlog
from msgspec import Struct

from kserve._buckets import Buckets
from kserve._limits import ALONE, KEY, LEASED, MEMORY, Limits, interval
from kserve._tally import Counter, Gauge, Tally, Time
from kserve.errors import Busy, KserveError
from kserve.notices.standby import Standby
from kserve.serving.books import TTL, Ask, Books, Seen, Terms, today
from kserve.serving.keys import Keys, Watched
from kserve.serving.samples import lease_files
from kserve.serving.tiers import Tiers
from kserve.serving.till import HOST_KEPT, SECOND, SHARDS, Till, client_of, told
from kserve.settings import Settings
from kserve.snapshots.durable import lock

log = structlog.get_logger("kserve.leases")

HORIZON = SECOND
"""µs after the last good round until a host is on its own. Each take looks at that time itself."""

TICK = 50_000
"""µs between two rounds, on average."""

TICK_SHORTEST = 5_000

HEARTBEAT = SECOND // 5
"""µs between two rounds when there is nothing to buy."""

SLACK = SECOND // 4
"""Redis counts leases this much longer than hosts do, as their clocks tick apart."""

BACK_OFF = (0.05, 2.0)
"""Seconds before a first and before a late attempt to reach Redis again; halved at random."""

IN_ROUND, IN_MESSAGE = 1000, 250
"""Keys, at most: Redis serves nobody else during a message."""

LEAD = 3 * SECOND // 10
"""µs that a purchase must last, beside the time that two rounds take."""

TERMS_SECONDS = 1.0
HOST_BYTES = 8


class LeaseState(Struct, frozen=True):
    """``mode``: leased; single, when no other host was ever seen; alone; or standby while another process of this host
    buys. ``since``: Unix time of that.

    ``hosts``: of the fleet, as far as is known. ``keys``: that have leases or owe. ``error``: why it is not leased.
    """

    mode: str
    since: float
    hosts: int
    keys: int
    round_seconds: float
    error: str | None


def prepare(settings: Settings, limits: Limits) -> None:
    """What holds before a buyer says otherwise: the host is on its own, or there is no fleet."""
    Buckets(limits).set_mode(MEMORY if settings.redis is None else ALONE, settings.hosts)


class Pricing(Protocol):
    """Where a buyer learns the limits of keys."""

    def get(self, key_id: str) -> Terms | None:
        """None: there is no such key, or not yet."""

    def refresh(self) -> None:
        """Take in what has changed; in a thread, once a second."""


class KeyTerms:
    """The limits of keys by id, as keys.db and kserve.toml have them; read in a thread, used in any."""

    def __init__(self, settings: Settings) -> None:
        self._tiers = Tiers(settings)
        self._keys = Keys(settings.data)
        self._watched = Watched(self._keys)
        self._seen: object = None
        self._tier_of: dict[str, str] = {}

    def get(self, key_id: str) -> Terms | None:
        """None: there is no such key, or not yet."""
        tier = self._tiers.get(self._tier_of.get(key_id, ""))
        return None if tier is None else Terms(interval(tier), tier.burst, tier.quota or 0)

    def refresh(self) -> None:
        """Take in what has changed. What cannot be read stays as it was; those who authenticate say so."""
        with contextlib.suppress(KserveError, OSError):
            self._tiers.refresh()
            state = self._watched.state()
            if state != self._seen:
                self._tier_of = {key.id: key.tier for key in self._keys.listed()}
                self._seen = state

    def close(self) -> None:
        """Close the database."""
        self._watched.close()


class Buyer:
    """Buys for one host, in one event loop. All that it does to the table of limits is safe while workers spend."""

    def __init__(self, settings: Settings, limits: Limits, host: bytes, terms: Pricing, tally: Tally) -> None:
        self._settings = settings
        self._buckets = Buckets(limits)
        self._host = host
        self._terms = terms
        self._tally = tally
        self._books = Books(SHARDS if settings.redis_cluster else 1, settings.hosts)
        self._till: Till | None = None
        self._heard: list[tuple[int, int]] = []
        self._joined = 0
        self._met = settings.hosts > 1
        """Whether there ever was another host: from then on it may have spent what this one does not know of."""
        self._good = 0
        self._until = 0
        self._failures = 0
        self._swept = 0
        self._took = 0.0
        self._steps = {"leased": self._trade, "single": self._tell}
        self.state = LeaseState("alone", time.time(), settings.hosts, 0, 0.0, "Redis was not asked yet")

    async def run(self, stop: asyncio.Event) -> None:
        """Buy until ``stop``, then give back what is left. Raises SettingError for an address that is none."""
        client_of(self._settings)
        self._go_alone()
        self._recall()
        following = asyncio.create_task(self._follow_terms())
        try:
            while not stop.is_set():
                pause = await self._step()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), pause)
            await self._leave()
        finally:
            following.cancel()
            await asyncio.gather(following, self._drop(), return_exceptions=True)

    def _recall(self) -> None:
        """What was spent at this host before there was a buyer, for Redis to be told."""
        rows = []
        for bucket in self._buckets.all():
            terms = self._terms.get(bucket.name) if bucket.kind == KEY else None
            if terms is not None and (bucket.full_us or bucket.used_today):
                rows.append(Seen(bucket.name, terms, 0, 0, 0, bucket.leased, bucket.full_us, bucket.used_today))
        self._books.see(rows, now_us(), alone=True)

    async def _follow_terms(self) -> None:
        while True:
            await asyncio.sleep(TERMS_SECONDS)
            await asyncio.to_thread(self._terms.refresh)

    async def _step(self) -> float:
        """One round, if there is a reason for one. Returns the seconds until the next step; raises nothing."""
        try:
            if self._till is None:
                self._till = Till(self._settings, self._host)
                await self._together([self._till.open()])
            worked = time.thread_time()
            pause = await self._steps.get(self.state.mode, self._come_back)()
            self._failures = 0
            return max(pause * random.uniform(0.75, 1.25), 3 * (time.thread_time() - worked))
        except Exception as error:  # whatever Redis or a client of it thinks of: this host goes on without
            return await self._failed(error)

    async def _trade(self) -> float:
        now = self._see()
        asks = [] if self._joining(now) else self._books.due(now, IN_ROUND)
        if asks or now - self._good >= HEARTBEAT:
            await self._round(asks)
        self._sweep(now)
        return self._books.pause(asks, TICK, TICK_SHORTEST) / SECOND

    async def _tell(self) -> float:
        """The only host limits by itself, and keeps Redis informed; when another one comes, they share."""
        await self._round([])
        if self._met:
            return await self._come_back()
        await self._tell_all()
        self._sweep(now_us())
        self._put("single", None)
        return HEARTBEAT / SECOND

    async def _tell_all(self) -> None:
        """What was spent by this host's own reckoning."""
        self._books.see(self._rows(alone=True), now_us(), alone=True)
        while asks := list(islice(self._books.untold(now_us()), IN_ROUND)):
            await self._round(asks)

    def _sweep(self, now: int) -> None:
        if now - self._swept > SECOND:
            self._swept = now
            self._books.forget(now)
            self._tally.set(Gauge.LEASED_TOKENS, float(sum(max(0, one.balance) for one in self._books.live.values())))

    async def _come_back(self) -> float:
        """Tell Redis first what was spent without it, then buy again if there is anybody to share with."""
        await self._together([self._probe(shard) for shard in range(self._books.shards)])
        await self._round([])
        await self._tell_all()
        if self._met:
            self._put("leased", None)
        else:
            self._buckets.set_mode(MEMORY)
            self._put("single", None)
        await self._round([])
        await self._tell_all()  # what was spent meanwhile
        log.info("limits are shared through Redis", hosts=self._books.hosts)
        return TICK / SECOND

    async def _probe(self, shard: int) -> None:
        assert self._till is not None
        await self._till.buy([f"kserve:{{{shard}}}:"], [], TTL + SLACK)

    def _see(self) -> int:
        now = now_us()
        alone = now >= self._until
        self._books.see(self._rows(alone), now, alone=alone)
        return now

    def _rows(self, alone: bool) -> Iterable[Seen]:
        """Keys that were asked for, or have a balance; those that no key is known of are left to what stands here."""
        columns = [column.tolist() for column in self._buckets.demand()]
        for raw, admitted, refused, want, balance in zip(*columns, strict=True):
            name = raw.decode()
            terms = self._terms.get(name)
            if terms is None:
                continue
            ahead = used = 0
            if alone and name not in self._books.accounts:
                bucket = self._buckets.show(name)
                ahead, used = (0, 0) if bucket is None else (bucket.full_us, bucket.used_today)
            yield Seen(name, terms, admitted, refused, want, balance, ahead, used)

    async def _round(self, asks: Sequence[Ask]) -> None:
        """Everything that is to be asked, at once; it is good when every answer came and was right."""
        start = now_us()
        by_shard = sorted(map(self._take_back, asks), key=_shard)
        calls = [self._heartbeat(start)]
        for _, group in groupby(by_shard, key=_shard):
            while part := list(islice(group, IN_MESSAGE)):
                calls.append(self._buy(part, start))
        await self._together(calls)
        took = now_us() - start
        self._good, self._took = start, took / SECOND
        self._books.lead = LEAD + 2 * took
        self._tally.add(Counter.REDIS_CALLS, len(calls))
        self._tally.time(Time.REDIS_CALL, 1000 * took)
        self._tally.set(Gauge.REDIS_UP, 1.0)
        if self.state.mode == "leased":
            self._hold(start)

    async def _together(self, calls: Iterable[Coroutine[Any, Any, None]]) -> None:
        """All calls, within the time that Redis may take; what is not answered by then is dropped."""
        tasks = [asyncio.create_task(call) for call in calls]
        try:
            async with asyncio.timeout(self._settings.redis_timeout):
                await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _take_back(self, ask: Ask) -> Ask:
        """Tokens that go back are out of the table before Redis hears of it; whether it does or not, they are gone."""
        if not ask.back:
            return ask
        back = self._buckets.withdraw(ask.account.name)
        self._tally.add(Counter.LEASES_RETURNED, back)
        return ask._replace(back=back, held=0)

    async def _buy(self, asks: Sequence[Ask], start: int) -> None:
        assert self._till is not None
        records, rows = [ask.account.record for ask in asks], [ask.numbers() for ask in asks]
        answers = await self._till.buy(records, rows, TTL + SLACK)
        now, expires = now_us(), start + TTL
        lasting, day = max(0, expires - now) / SECOND, today()
        for ask, sold in zip(asks, answers, strict=True):
            name = ask.account.name
            balance = self._buckets.deposit(name, sold.granted, lasting, self._books.left(ask, sold.ahead))
            if ask.account.terms.quota and self.state.mode == "leased":
                self._buckets.note_used(name, self._books.noted(ask, sold.used), day)
            self._books.settle(ask, balance or 0, sold, now, expires)
        self._tally.add(Counter.LEASES_BOUGHT, sum(sold.granted for sold in answers))

    async def _heartbeat(self, start: int) -> None:
        assert self._till is not None
        count = await self._till.heartbeat()
        self._joined = self._joined or start
        self._heard = [(when, many) for when, many in self._heard if start - when < HOST_KEPT] + [(start, count)]
        self._books.hosts = max(self._settings.hosts, max(many for _, many in self._heard))
        self._met = self._met or count > 1

    def _hold(self, start: int) -> None:
        """Leases are spent for another while; whatever happens to this process, it ends then."""
        hosts = self._books.hosts
        self._until = start + HORIZON
        self._buckets.set_mode(LEASED, hosts, max(0, self._until - now_us()) / SECOND, not self._joining(start))
        self._put("leased", None)

    def _joining(self, now: int) -> bool:
        """Whether others may not know of this host yet, which they did not expect: till then it has nothing."""
        return self._books.hosts > self._settings.hosts and now - self._joined < HORIZON

    async def _failed(self, error: Exception) -> float:
        self._failures += 1
        self._tally.add(Counter.REDIS_ERRORS, 1)
        self._tally.set(Gauge.REDIS_UP, 0.0)
        await self._drop()
        self._see()
        text = told(error, self._settings.redis)
        if self.state.mode != "alone" and now_us() >= max(self._until, self._good + HORIZON):
            self._go_alone()
            log.warning("Redis cannot be asked: limits are split", hosts=self._books.hosts, error=text)
        self._put(self.state.mode, text)
        shortest, longest = BACK_OFF
        return min(longest, shortest * 2.0 ** min(self._failures, 16)) * random.uniform(0.5, 1.0)

    async def _drop(self) -> None:
        """No connection is used again after an error: what it answers next may be to what was asked before."""
        till, self._till = self._till, None
        self._books.unsettle()
        if till is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(till.aclose(), self._settings.redis_timeout)

    def _go_alone(self) -> None:
        """What was bought is given up: what Redis knows of it may be lost."""
        self._buckets.set_mode(ALONE, self._books.hosts)
        self._until = 0
        for account in self._books.live.values():
            if account.balance > 0:
                self._buckets.withdraw(account.name)
                account.balance = 0
        self._put("alone", self.state.error)

    async def _leave(self) -> None:
        """Give back, and be counted no more; within the time that two rounds may take."""
        now = self._see()
        asks = [self._books.closing(account, now) for account in self._books.live.values() if account.balance > 0]
        self._buckets.set_mode(ALONE, self._books.hosts)
        self._until = 0
        try:
            if self.state.mode != "alone" and self._till is not None:
                self._put("alone", None)
                await self._round(asks)
                await self._tell_all()
                await self._together([self._resign(self._till)])
        except Exception as error:
            text = told(error, self._settings.redis)
            log.warning("leases were not given back, and run out by themselves", error=text)
        await self._drop()

    async def _resign(self, till: Till) -> None:
        await till.heartbeat(0)

    def _put(self, mode: str, error: str | None) -> None:
        since = self.state.since
        if mode != self.state.mode:
            since = time.time()
            self._tally.add(Counter.LIMITS_SWITCHED, 1)
        self.state = LeaseState(mode, since, self._books.hosts, len(self._books.live), self._took, error)


def _shard(ask: Ask) -> int:
    return ask.account.shard


def now_us() -> int:
    """Microseconds of the clock that the table of limits goes by."""
    return time.monotonic_ns() // 1000


@contextlib.asynccontextmanager
async def at_work(settings: Settings, limits: Limits, tally: Tally) -> AsyncIterator[Buyer]:
    """The one buyer of this host. Raises Busy when another process is it, OSError."""
    alone, name = lease_files(settings.data)
    with lock(alone, "buying leases"):
        if not name.exists() or len(name.read_bytes()) != HOST_BYTES:
            name.write_bytes(random.SystemRandom().randbytes(HOST_BYTES // 2).hex().encode())
        terms = KeyTerms(settings)
        await asyncio.to_thread(terms.refresh)
        try:
            yield Buyer(settings, limits, name.read_bytes(), terms, tally)
        finally:
            terms.close()


class LeaseThread(Standby):
    """A buyer in a thread of the office. One process of a host buys, others stand by."""

    def __init__(self, settings: Settings, limits: Limits, tally: Tally) -> None:
        super().__init__("kserve-leases", 2.0)
        self._settings = settings
        self._limits = limits
        self._tally = tally
        self._buyer: Buyer | None = None
        self._standby = LeaseState("standby", time.time(), settings.hosts, 0, 0.0, None)

    def start(self) -> None:
        """Begin, or stand by. Raises SettingError when the setting ``redis`` is no address."""
        client_of(self._settings)
        super().start()

    def state(self) -> LeaseState:
        """What is shown in /readyz, metrics and pages."""
        buyer = self._buyer
        return self._standby if buyer is None else buyer.state

    async def work(self, stop: asyncio.Event) -> None:
        """Buy until ``stop``, then give back what is left, within a few round trips."""
        async with at_work(self._settings, self._limits, self._tally) as buyer:
            self._buyer = buyer
            try:
                await buyer.run(stop)
            finally:
                self._buyer = None

    def failed(self, error: Exception) -> None:
        """Standing by is no failure."""
        if not isinstance(error, Busy):
            log.error("the buyer of leases failed, and begins again", exc_info=error)
