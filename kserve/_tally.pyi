"""What each process of a host counts, in one file in memory that metrics and `kserve top` map: the file `tally`."""

from collections.abc import Iterable
from enum import IntEnum
from os import PathLike
from typing import Any, NamedTuple, final

import numpy as np
import numpy.typing as npt

__all__ = [
    "AIOHTTP",
    "CLASSES",
    "COMPILED",
    "MIDDLES",
    "PATHS",
    "PLACES",
    "ROUTES",
    "STATUSES",
    "TIER_NONE",
    "TIER_OPEN",
    "UPPERS",
    "WHYS",
    "Counter",
    "Counts",
    "Gauge",
    "Living",
    "Tallies",
    "Tally",
    "Time",
]

ROUTES: tuple[str, ...]
"""Names of the routes, by number."""
STATUSES: tuple[str, ...]
"""Statuses that are counted, by number: some exactly, the others by their class (``2xx``)."""
PATHS: tuple[str, ...]
"""Who answered, by number."""
COMPILED: int
AIOHTTP: int
"""Those numbers."""
TIER_NONE: int
TIER_OPEN: int
"""In place of the number of a tier, when nobody knows who asks, and when nobody needs a key."""
CLASSES: tuple[str, ...]
"""Classes of shedding, by number."""
WHYS: tuple[str, ...]
"""Why a limit refused, by the outcome of a verdict less 1."""
PLACES: int
"""Processes that can count for others to see."""
UPPERS: npt.NDArray[np.float64]
"""Seconds, for each bucket of a histogram: what is in it took less. The last one has what took longer than it, too."""
MIDDLES: npt.NDArray[np.float64]
"""Seconds that stand for each bucket: wrong by 0.8 % at most from 0.5 µs to 68.7 s, by 4 ns below."""

class Counter(IntEnum):
    """What is only ever added to."""

    CONNECTIONS_ACCEPTED = ...
    CONNECTIONS_REFUSED = ...
    CONNECTIONS_TIMED_OUT = ...
    HANDED_OVER = ...
    MALFORMED = ...
    UNAUTHORIZED_MISSING = ...
    UNAUTHORIZED_MALFORMED = ...
    UNAUTHORIZED_REFUSED = ...
    FORBIDDEN = ...
    TOO_MANY_FAILURES = ...
    LEASES_BOUGHT = ...
    LEASES_RETURNED = ...
    REDIS_CALLS = ...
    REDIS_ERRORS = ...
    LIMITS_SWITCHED = ...
    WORKERS_STARTED = ...
    WORKERS_DIED = ...
    RELOADS = ...
    KEYS_REFRESHED = ...

class Gauge(IntEnum):
    """What a process says of itself, or of the host; gone when it ends."""

    CONNECTIONS_OPEN = ...
    IN_PROGRESS = ...
    LOOP_DELAY = ...
    CONCURRENCY_LIMIT = ...
    KEPT_SITE = ...
    KEPT_PARTNER = ...
    KEPT_BATCH = ...
    KEPT_ELIGIBILITY = ...
    KEPT_CLAIM = ...
    KEPT_OTHER = ...
    KEYS_KNOWN = ...
    KEYS_STALE = ...
    LEASED_TOKENS = ...
    REDIS_UP = ...
    WORKERS_WANTED = ...
    WORKERS_ALIVE = ...
    DRAINING = ...

class Time(IntEnum):
    """Durations that are no answers."""

    DELAY_OF_LOOP = ...
    REDIS_CALL = ...

class Counts(NamedTuple):
    """What was counted, by one process or by all there ever were. All numbers are uint64.

    A histogram is a structured array with fields ``sum`` (nanoseconds) and ``buckets`` (for each of ``UPPERS``).
    """

    requests: npt.NDArray[np.uint64]
    """(path, route, status)."""
    limited: dict[str, npt.NDArray[np.uint64]]
    """By tier; for each of ``WHYS``."""
    shed: npt.NDArray[np.uint64]
    """For each of ``CLASSES``."""
    counters: npt.NDArray[np.uint64]
    """For each :class:`Counter`."""
    by_route: npt.NDArray[Any]
    """Histograms of answers, for each of ``ROUTES``."""
    by_tier: dict[str, npt.NDArray[Any]]
    """Histograms of answers; ``none`` is for those whose key is not known, ``open`` for those who need none."""
    times: npt.NDArray[Any]
    """Histograms, for each :class:`Time`."""

class Living(NamedTuple):
    """One living process."""

    place: int
    pid: int
    role: str
    since: float
    """Seconds since 1970."""
    gauges: npt.NDArray[np.float64]
    """For each :class:`Gauge`; NaN where nothing was said."""
    counts: Counts

@final
class Tally:
    """The counters of one process. Without a path, or where the file cannot be had (a warning), nobody sees them.

    Made after a fork, or renewed there. All methods that count are for one thread at a time that has the GIL, cost a
    few nanoseconds, never fail and never wait; numbers that are out of range count as the last one, or not at all.
    """

    place: int
    """Number of the place; -1 without one."""
    def __init__(self, path: str | PathLike[str] | None, role: str, tiers: Iterable[str] = ()) -> None:
        """``tiers`` as in :meth:`name_tiers`."""
    def count(self, route: int, status: int, tier: int, path: int, nanoseconds: int) -> None:
        """One answer; ``tier``: a number, TIER_NONE or TIER_OPEN; below 0 ns: it is not known how long."""
    def limited(self, tier: int, outcome: int) -> None:
        """One request that its key's limit refused; ``outcome`` of the verdict: 1 rate, 2 quota, 3 never."""
    def shed(self, klass: int) -> None:
        """One request turned away under overload."""
    def add(self, counter: int, n: int) -> None:
        """So much more of a :class:`Counter`."""
    def set(self, gauge: int, value: float) -> None:
        """A :class:`Gauge` as it is now; NaN: not known."""
    def time(self, histogram: int, nanoseconds: int) -> None:
        """One duration of a :class:`Time`."""
    def name_tiers(self, tiers: Iterable[str]) -> None:
        """Names of the tiers by number. A number keeps its name; those beyond 13 are counted as one, ``other``."""
    def leave(self) -> None:
        """Give the place up: what was counted stays counted, what is counted from now on is seen by nobody."""
    def renew(self) -> None:
        """Take another place, after a fork."""

class Tallies:
    """All that was ever counted in one file. Reading needs read permission only, and never makes the file."""

    path: str
    def __init__(self, path: str | PathLike[str]) -> None: ...
    def read(self) -> tuple[Counts, list[Living]]:
        """The sum over all processes, ended ones too, which never goes backwards; and the living, by place.

        Raises OSError.
        """
