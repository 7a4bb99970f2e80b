"""What a decision about a limit costs: in the table that the workers of a host share, and in other limiters for Python.

All decide about the same 1,000 keys in random order, far below the limit, so that everything is admitted and written.
kserve decides by a rate with a burst and by a daily quota, in memory that other processes share. The others have one
limit each, and in memory that is the process's own: `limits` its fixed window, the cheapest that it has, and
`throttled-py` GCRA. "From Python" is one call a decision, as theirs are.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench._harness import Report, Run, Stopwatch, interleave, ratios
from bench._peers import RedisServer
from kserve._buckets import Buckets
from kserve._limits import Limits
from kserve.settings import Tier

KEYS = 1000
DECISIONS = 1_000_000
CALLS = 20_000
REDIS_CALLS = 2_000
ROUNDS = 15
BAR_NS = 50
BAR_MEMORY, BAR_REDIS = 20, 500
RATE = 1_000_000
TIER = Tier(rate=RATE, burst=RATE, quota=10**12)

Measured = Callable[[], float]


def measure(run: Run) -> Report:
    """Nanoseconds a decision."""
    report = Report("limiter", "one decision about a limit")
    numbers = random.Random(1)
    names = [f"{number:012d}" for number in range(KEYS)]
    order = numbers.choices(names, k=CALLS)
    with tempfile.TemporaryDirectory(prefix="kserve-bench-", dir="/dev/shm") as folder:
        limits = Limits(Path(folder) / "limits")
        contenders = compiled(limits, names) | {"kserve from Python": each(lambda name: limits.take(name, TIER), order)}
        memory, redis = in_memory(run, report, order), {}
        with report.optional("redis"):
            server = RedisServer(run, most=None)
            try:
                redis = in_redis(run, report, server, order[:REDIS_CALLS])
                seconds = interleave(contenders | memory | redis, run.rounds_or(ROUNDS))
            finally:
                server.close()
        if "redis" in report.skipped:
            seconds = interleave(contenders | memory, run.rounds_or(ROUNDS))
    report.add_seconds(seconds, "ns")
    ours = seconds["kserve, 1,000 keys"]
    for name in ("kserve, 1,000 keys", "kserve, one key"):
        report.bar(name, [value * 1e9 for value in seconds[name]], "at most", BAR_NS, "ns")
    for name in memory:
        report.bar(f"{name} / kserve", ratios(seconds[name], ours), "at least", BAR_MEMORY)
    for name in redis:
        report.bar(f"{name} / kserve", ratios(seconds[name], ours), "at least", BAR_REDIS)
    return report


def compiled(limits: Limits, names: list[str]) -> dict[str, Measured]:
    """Decisions in a loop of C, as the compiled path makes them: the time is read once for all that has arrived."""
    table = Buckets(limits)
    many = np.random.default_rng(1).integers(0, KEYS, DECISIONS).astype(np.uint32)
    one = np.zeros(DECISIONS, dtype=np.uint32)

    def timed(picks: np.ndarray, clock: bool) -> Measured:
        return lambda: table.measure(names, TIER, picks, clock)[0] / DECISIONS

    return {
        "kserve, 1,000 keys": timed(many, False),
        "kserve, one key": timed(one, False),
        "kserve, 1,000 keys, the time read for each": timed(many, True),
    }


def in_memory(run: Run, report: Report, order: list[str]) -> dict[str, Measured]:
    """The peers, in memory of their own."""
    found: dict[str, Measured] = {}
    with report.optional("limits"):
        run.require("limits", module="limits")
        from limits.storage import MemoryStorage

        found["limits in memory"] = with_limits(MemoryStorage(), order)
    with report.optional("throttled-py"):
        run.require("throttled-py", module="throttled")
        from throttled.store import MemoryStore

        found["throttled-py in memory"] = with_throttled(MemoryStore({"MAX_SIZE": 2 * KEYS}), order)
    return found


def in_redis(run: Run, report: Report, server: RedisServer, order: list[str]) -> dict[str, Measured]:
    """The peers, each decision a round trip on a unix socket, with hiredis."""
    found: dict[str, Measured] = {}
    with report.optional("limits in Redis"):
        run.require("limits", module="limits")
        from limits.storage import RedisStorage

        found["limits in Redis"] = with_limits(RedisStorage(f"redis+unix://{server.path}"), order)
    with report.optional("throttled-py in Redis"):
        run.require("throttled-py", module="throttled")
        from throttled.store import RedisStore

        found["throttled-py in Redis"] = with_throttled(RedisStore(server=f"unix://{server.path}"), order)
    return found


def with_limits(storage: object, order: list[str]) -> Measured:
    """Its fixed window: the cheapest that it has, though it admits twice the limit around the turn of a window."""
    from limits import RateLimitItemPerSecond
    from limits.strategies import FixedWindowRateLimiter

    limiter, item = FixedWindowRateLimiter(storage), RateLimitItemPerSecond(RATE)
    return each(lambda name: limiter.hit(item, name), order)


def with_throttled(store: object, order: list[str]) -> Measured:
    """GCRA, as ours."""
    from throttled import RateLimiterType, Throttled, per_sec

    limiter = Throttled(using=RateLimiterType.GCRA.value, quota=per_sec(RATE, burst=RATE), store=store)
    return each(limiter.limit, order)


def each(function: Callable[[str], object], order: list[str]) -> Measured:
    """What measures calls: seconds a call."""

    def timed() -> float:
        with Stopwatch() as watch:
            for name in order:
                function(name)
        return watch.seconds / len(order)

    return timed
