"""A fleet that shares limits through Redis: how close to its limit it comes, and what Redis can sell.

Three hosts, each with a table of limits and a buyer, in one process, and a Redis beside it on a unix socket.
"Admitted / limit" is what all hosts admitted of one key, against burst + rate · time: over 1 would be an overshoot.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from bench._harness import Report, Run, Skip
from bench._peers import RedisServer
from kserve._buckets import Buckets
from kserve._limits import ADMITTED, Limits, interval
from kserve._tally import Tally
from kserve.serving.books import TTL, Terms
from kserve.serving.leases import IN_MESSAGE, Buyer, prepare
from kserve.serving.till import Till
from kserve.settings import Settings, Tier

HOSTS = 3
TIER = Tier(rate=2000, burst=1000)
SECONDS, TOY_SECONDS = 2.0, 0.2
ROUNDS = 5
MESSAGES = 100
LEAST, MOST = 0.9, 1.0


class _Prices:
    """One limit for every key."""

    def get(self, key_id: str) -> Terms:
        return Terms(interval(TIER), TIER.burst, 0)

    def refresh(self) -> None:
        return


def measure(run: Run) -> Report:
    """Shares of the limit, milliseconds, and thousands of decisions a second."""
    report = Report("leases", "limits of a fleet through Redis")
    try:
        server = RedisServer(replace(run, peers=None), most=None)  # no peer: part of what is measured
    except Skip as reason:
        report.skipped["redis"] = str(reason)
        return report
    try:
        asyncio.run(_measure(run, report, Settings(redis=f"unix://{server.path}", hosts=HOSTS)))
    finally:
        server.close()
    return report


async def _measure(run: Run, report: Report, settings: Settings) -> None:
    rounds, seconds = run.rounds_or(ROUNDS), TOY_SECONDS if run.toy else SECONDS
    async with _fleet(settings) as tables:
        for title, busy in (("all hosts asked alike", HOSTS), ("one host asked alone", 1)):
            values = [await _admitted(tables[:busy], f"{title[:3]}{turn}", seconds) for turn in range(rounds)]
            report.add(f"admitted / limit, {title}", "x", values, more=True)
            report.bar(f"admitted / limit, {title}", values, "at least", LEAST)
            report.bar(f"admitted / limit, {title}, highest", [max(values)], "at most", MOST)
        waits = [await _wait(tables[0], f"first{turn}") for turn in range(3 * rounds)]
        report.add("from a refusal to the lease", "ms", waits)
    for keys in (1, IN_MESSAGE):
        values = [await _sold(settings, keys) for _ in range(rounds)]
        report.add(f"decisions of the script, {keys} to a message", "k/s", values, more=True)


@asynccontextmanager
async def _fleet(settings: Settings) -> AsyncIterator[list[Limits]]:
    tables = [Limits(None) for _ in range(HOSTS)]
    stop = asyncio.Event()
    for table in tables:
        prepare(settings, table)
    buyers = [Buyer(settings, tables[i], b"host%04d" % i, _Prices(), Tally(None, "office")) for i in range(HOSTS)]
    tasks = [asyncio.create_task(buyer.run(stop)) for buyer in buyers]
    while any(buyer.state.mode != "leased" for buyer in buyers):
        await asyncio.sleep(0.01)
    try:
        yield tables
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def _admitted(tables: Sequence[Limits], name: str, seconds: float) -> float:
    """Asked five times as often as the limit allows, all together."""
    start, admitted = time.monotonic(), 0
    while (passed := time.monotonic() - start) < seconds:
        for table in tables:
            for _ in range(30 // len(tables)):
                admitted += table.take(name, TIER).outcome == ADMITTED
        await asyncio.sleep(0.002)
    return admitted / (TIER.burst + TIER.rate * passed)


async def _wait(table: Limits, name: str) -> float:
    """Milliseconds until a batch of half the burst, more than what stands at a host, is admitted."""
    start, cost = time.monotonic(), TIER.burst // 2
    table.take(name, TIER, cost)
    buckets: Any = Buckets(table)
    while (bucket := buckets.show(name)) is None or bucket.leased <= 0:
        await asyncio.sleep(0.0005)
    return 1000 * (time.monotonic() - start)


async def _sold(settings: Settings, keys: int) -> float:
    """Thousands of keys a second that one connection gets decided, message after message."""
    till = Till(settings, b"hostsale")
    records = [f"kserve:{{0}}:bench{i}" for i in range(keys)]
    row = (interval(TIER), TIER.burst, TIER.burst, -1, 0, 0, 1, 1, -1, 0)
    times = []
    for _ in range(MESSAGES):
        start = time.monotonic()
        await till.buy(records, [row] * keys, TTL)
        times.append(time.monotonic() - start)
    await till.aclose()
    return keys / statistics.median(times) / 1000
