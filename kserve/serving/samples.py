"""What a host does right now: two readings of what its processes count, and what happened between them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from kserve._buckets import Buckets, State
from kserve._limits import ALONE, LEASED, MEMORY
from kserve._limits import Limits as Table
from kserve._roster import Roster, SeatView
from kserve._tally import COMPILED, ROUTES, STATUSES, Counter, Counts, Gauge, Living, Tallies, Time
from kserve.serving.readings import Counted, Usage, histograms, increase, quantiles, usage
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.shared import shared_folder

MODES = {MEMORY: "memory", LEASED: "leased", ALONE: "alone"}
"""What limits are decided by: a table in memory alone, tokens bought from Redis, or this host's share without Redis."""

CLASSES = {"2": "succeeded", "3": "unchanged", "4": "refused", "5": "failed"}
_UNAUTHORIZED = [Counter.UNAUTHORIZED_MISSING, Counter.UNAUTHORIZED_MALFORMED, Counter.UNAUTHORIZED_REFUSED]
_KEPT = slice(Gauge.KEPT_SITE, Gauge.KEPT_OTHER + 1)


def tally_file(data: Path) -> Path:
    """Where the processes that serve a data directory count; where nothing can be shared, a place without a file."""
    try:
        return shared_folder(data) / "tally"
    except OSError:
        return data / "shm" / "tally"


def limits_file(data: Path) -> Path:
    """Where the buckets of the limits are."""
    return tally_file(data).with_name("limits")


def lease_files(data: Path) -> tuple[Path, Path]:
    """The lock of the one process that buys leases, and what Redis knows this host by. Raises OSError."""
    folder = shared_folder(data)
    return folder / "LEASES", folder / "HOST"


def arbiters_file(data: Path) -> Path:
    """Where the arbiters of servers are found. Raises OSError."""
    return shared_folder(data) / "arbiters"


def limits_state(data: Path) -> State | None:
    """How limits are decided; None when nothing on this host decides any."""
    table = limits_file(data)
    return Buckets(Table(table)).state() if table.exists() else None


class Latency(Struct, frozen=True):
    """Quantiles in seconds, to 1 %."""

    p50: float
    p99: float
    p999: float


class Rates(Struct, frozen=True):
    """Requests a second: all, and by how they ended. The limited are among the refused; the shed have not failed."""

    answered: float
    succeeded: float
    unchanged: float
    refused: float
    failed: float
    limited: float
    shed: float
    unauthorized: float
    compiled: float
    latency: Latency | None


class Part(Struct, frozen=True):
    """One route or one tier: requests a second, those of them over a limit (None for routes), how long they took."""

    name: str
    answered: float
    limited: float | None
    latency: Latency | None


class Worker(Struct, frozen=True):
    """One living process. What it does not say is None. ``in_progress``: requests that wait for something of ours;
    ``kept``: the least share of callers that are not shed in any class."""

    pid: int
    role: str
    version: str | None
    since: float
    rates: Rates
    connections: int | None
    in_progress: int | None
    loop_delay: float | None
    kept: float | None
    cpu: float | None
    memory_bytes: int | None
    draining: bool


class Limits(Struct, frozen=True):
    """How limits are decided. What nobody says is None."""

    mode: str | None
    hosts: int | None
    buckets: int | None
    leased_tokens: int | None
    redis_up: bool | None


class Sample(Struct, frozen=True):
    """What happened within ``seconds``, and what is at their end. ``loop_delay``: what requests waited for the event
    loop of their worker before it took them up; ``rates.latency`` begins after that."""

    seconds: float
    announced: str | None
    workers_wanted: int | None
    rates: Rates
    loop_delay: Latency | None
    routes: list[Part]
    tiers: list[Part]
    workers: list[Worker]
    limits: Limits


class Reading(NamedTuple):
    """Everything at one moment."""

    at: float
    total: Counts
    living: list[Living]
    seats: dict[int, SeatView]
    usages: dict[int, Usage | None]
    announced: str | None
    limits: State | None


class Watcher:
    """Reads what the processes of one data directory count; needs no server, and disturbs none."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._catalog = Catalog(data)
        self._roster = Roster(self._catalog.roster)
        self._tallies = Tallies(tally_file(data))

    def read(self) -> Reading:
        """As it is now. Raises OSError."""
        total, living = self._tallies.read()
        seats = {seat.pid: seat for seat in self._roster.seats()}
        usages = {one.pid: usage(one.pid) for one in living}
        now = time.monotonic()
        return Reading(now, total, living, seats, usages, self._catalog.live(), limits_state(self._data))


def sample(before: Reading, after: Reading) -> Sample:
    """What happened between two readings."""
    seconds = max(after.at - before.at, 1e-6)
    started = {(one.pid, one.since): one for one in before.living}
    return Sample(
        seconds,
        after.announced,
        _whole(of_host(after.living, Gauge.WORKERS_WANTED)),
        _rates(before.total, after.total, seconds),
        _loop_delay(before.total, after.total),
        _routes(before.total, after.total, seconds),
        _tiers(before.total, after.total, seconds),
        [_worker(started.get((one.pid, one.since)), one, before, after) for one in after.living],
        _limits(after),
    )


def of_host(living: list[Living], gauge: Gauge) -> float | None:
    """What the process says that was started last, of those that say anything; None when none does."""
    said = [(one.since, value) for one in living if (value := known(one.gauges, gauge)) is not None]
    return max(said)[1] if said else None


def known(gauges: npt.NDArray[np.float64], gauge: Gauge) -> float | None:
    """A gauge; None when it was never set."""
    value = float(gauges[gauge])
    return None if np.isnan(value) else value


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _more(before: Any, after: Any) -> Counted:
    return after if before is None else increase(after, before)


def _rates(before: Counts | None, after: Counts, seconds: float) -> Rates:
    requests = _more(before and before.requests, after.requests)
    statuses = requests.sum(axis=(0, 1))
    ended = dict.fromkeys(CLASSES.values(), 0.0)
    for status, count in zip(STATUSES, statuses, strict=False):
        if status[0] in CLASSES:
            ended[CLASSES[status[0]]] += float(count) / seconds
    shed = float(_more(before and before.shed, after.shed).sum()) / seconds
    ended["failed"] = max(ended["failed"] - shed, 0.0)  # one may be counted as shed before it is answered
    counters = _more(before and before.counters, after.counters)
    buckets = _more(before and histograms(before).by_route, histograms(after).by_route)
    return Rates(
        answered=float(requests.sum()) / seconds,
        **ended,
        limited=sum(_limited(before, after, tier) for tier in after.limited) / seconds,
        shed=shed,
        unauthorized=float(counters[_UNAUTHORIZED].sum()) / seconds,
        compiled=float(requests[COMPILED].sum()) / seconds,
        latency=_latency(buckets.sum(axis=0)),
    )


def _limited(before: Counts | None, after: Counts, tier: str) -> float:
    return float(_more(before.limited.get(tier) if before else None, after.limited[tier]).sum())


def _latency(buckets: Counted) -> Latency | None:
    found = quantiles(buckets)
    return None if found is None else Latency(*found)


def _loop_delay(before: Counts, after: Counts) -> Latency | None:
    now, past = (counts.times[Time.DELAY_OF_LOOP]["buckets"] for counts in (after, before))
    return _latency(increase(now, past))


def _routes(before: Counts, after: Counts, seconds: float) -> list[Part]:
    requests = increase(after.requests, before.requests).sum(axis=(0, 2))
    buckets = histograms(after).since(histograms(before)).by_route
    return [
        Part(name, float(count) / seconds, None, _latency(found))
        for name, count, found in zip(ROUTES, requests, buckets, strict=True)
        if count
    ]


def _tiers(before: Counts, after: Counts, seconds: float) -> list[Part]:
    found = histograms(after).since(histograms(before)).by_tier
    parts = [
        Part(tier, float(buckets.sum()) / seconds, _limited(before, after, tier) / seconds, _latency(buckets))
        for tier, buckets in found.items()
    ]
    return [part for part in parts if part.answered or part.limited]


def _worker(start: Living | None, now: Living, before: Reading, after: Reading) -> Worker:
    seconds = max(after.at - before.at, 1e-6)
    seat = after.seats.get(now.pid)
    used, was = after.usages[now.pid], before.usages.get(now.pid)
    kept = now.gauges[_KEPT]
    return Worker(
        pid=now.pid,
        role=now.role,
        version=None if seat is None else seat.version,
        since=now.since,
        rates=_rates(start and start.counts, now.counts, seconds),
        connections=_whole(known(now.gauges, Gauge.CONNECTIONS_OPEN)),
        in_progress=_whole(known(now.gauges, Gauge.IN_PROGRESS)),
        loop_delay=known(now.gauges, Gauge.LOOP_DELAY),
        kept=None if np.isnan(kept).all() else float(np.nanmin(kept)),
        cpu=None if used is None or was is None else (used.cpu_seconds - was.cpu_seconds) / seconds,
        memory_bytes=None if used is None else used.memory_bytes,
        draining=bool(known(now.gauges, Gauge.DRAINING)),
    )


def _limits(after: Reading) -> Limits:
    state, redis = after.limits, of_host(after.living, Gauge.REDIS_UP)
    return Limits(
        mode=None if state is None else MODES[state.mode],
        hosts=None if state is None else state.hosts,
        buckets=None if state is None else state.used,
        leased_tokens=_whole(of_host(after.living, Gauge.LEASED_TOKENS)),
        redis_up=None if redis is None else bool(redis),
    )
