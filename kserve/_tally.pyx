# cython: nonecheck=False
# (`self` is never None; with the check, methods of debug builds would need the GIL)
"""What each process of a host counts, in one file in memory that metrics and `kserve top` map: the file `tally`.

A page of header; the total of processes that have ended, twice, of which the number of folds tells the good one; then
PLACES blocks. A block belongs to the process that holds the lock on its first byte, and only that process writes it,
so there is no lock and no atomic instruction on the way of a request. What a process counted is still in its block
when it has ended, however it did; whoever takes the place next folds it into the total first, in one step that is done
or not done. So no counter ever goes backwards, and the file does not grow.
"""

import logging
import mmap
import os
import struct
import zlib
from enum import IntEnum
from time import time as seconds_since_1970
from typing import NamedTuple

import numpy as np

from kserve._places import Mapped, Places, claimed

cimport cython
from libc.math cimport NAN
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset, strncpy

from kserve._atomic cimport fence, get, put

__all__ = [
    "AIOHTTP", "CLASSES", "COMPILED", "MIDDLES", "PATHS", "PLACES", "ROUTES", "STATUSES", "TIER_NONE", "TIER_OPEN",
    "UPPERS", "WHYS", "Counter", "Counts", "Gauge", "Living", "Tallies", "Tally", "Time",
]

cdef extern from *:
    int clz "__builtin_clzll"(unsigned long long) noexcept nogil

cdef enum:
    PAGE = 4096
    N_PLACES = 256
    TRIES = 100                 # of a copy of everything; a fold comes in between only when a process starts
    UNIT = 3                    # bits: histograms count in units of 8 ns
    HALF = 6                    # bits: 64 buckets for each doubling, so that none is wider than 1/64 of its values
    EXACT = 2 << HALF           # values below this many units have buckets of one unit
    LAST = 36                   # bits: 2^36 ns are 68.7 s; whatever takes longer is in the last bucket
    OTHER_TIER = N_TIERS - 1
    FIRST_NAMED = 2

cdef struct Head:
    char magic[8]
    uint64_t layout
    uint64_t births             # processes that ever had a place
    uint64_t taken              # places that were ever used
    uint64_t folds              # the good total is total[folds % 2]

log = logging.getLogger("kserve.tally")

ROUTES = (
    "score", "batch", "profile", "identity", "eligibility", "topics", "topic", "snapshot", "openapi", "health", "ready",
    "other",
)
STATUSES = (
    "200", "304", "400", "401", "403", "404", "413", "422", "429", "503", "2xx", "3xx", "4xx", "5xx", "unknown",
)
PATHS = ("compiled", "aiohttp")
CLASSES = ("site", "partner", "batch", "eligibility", "claim", "other")
WHYS = ("rate", "quota", "never")
PLACES = N_PLACES
OTHERS = b"other"

Counter = IntEnum("Counter", dict(
    CONNECTIONS_ACCEPTED=CONNECTIONS_ACCEPTED,
    CONNECTIONS_REFUSED=CONNECTIONS_REFUSED,
    CONNECTIONS_TIMED_OUT=CONNECTIONS_TIMED_OUT,
    HANDED_OVER=HANDED_OVER,
    MALFORMED=MALFORMED,
    UNAUTHORIZED_MISSING=UNAUTHORIZED_MISSING,
    UNAUTHORIZED_MALFORMED=UNAUTHORIZED_MALFORMED,
    UNAUTHORIZED_REFUSED=UNAUTHORIZED_REFUSED,
    FORBIDDEN=FORBIDDEN,
    TOO_MANY_FAILURES=TOO_MANY_FAILURES,
    LEASES_BOUGHT=LEASES_BOUGHT,
    LEASES_RETURNED=LEASES_RETURNED,
    REDIS_CALLS=REDIS_CALLS,
    REDIS_ERRORS=REDIS_ERRORS,
    LIMITS_SWITCHED=LIMITS_SWITCHED,
    WORKERS_STARTED=WORKERS_STARTED,
    WORKERS_DIED=WORKERS_DIED,
    RELOADS=RELOADS,
    KEYS_REFRESHED=KEYS_REFRESHED,
), module=__name__)

Gauge = IntEnum("Gauge", dict(
    CONNECTIONS_OPEN=CONNECTIONS_OPEN,
    IN_PROGRESS=IN_PROGRESS,
    LOOP_DELAY=LOOP_DELAY,
    CONCURRENCY_LIMIT=CONCURRENCY_LIMIT,
    KEPT_SITE=KEPT_SITE,
    KEPT_PARTNER=KEPT_PARTNER,
    KEPT_BATCH=KEPT_BATCH,
    KEPT_ELIGIBILITY=KEPT_ELIGIBILITY,
    KEPT_CLAIM=KEPT_CLAIM,
    KEPT_OTHER=KEPT_OTHER,
    KEYS_KNOWN=KEYS_KNOWN,
    KEYS_STALE=KEYS_STALE,
    LEASED_TOKENS=LEASED_TOKENS,
    REDIS_UP=REDIS_UP,
    WORKERS_WANTED=WORKERS_WANTED,
    WORKERS_ALIVE=WORKERS_ALIVE,
    DRAINING=DRAINING,
), module=__name__)

Time = IntEnum("Time", dict(DELAY_OF_LOOP=DELAY_OF_LOOP, REDIS_CALL=REDIS_CALL), module=__name__)

if (len(Counter), len(Gauge), len(Time), len(ROUTES)) != (N_COUNTERS, N_GAUGES, N_TIMES, N_ROUTES):
    raise ImportError("kserve/_tally.pyx and kserve/_tally.pxd do not name the same counters")

HISTOGRAM = np.dtype([("sum", np.uint64), ("buckets", np.uint64, N_BUCKETS)])
BLOCK = np.dtype([
    ("birth", np.uint64),
    ("pid", np.uint64),
    ("since", np.float64),
    ("role", "S16"),
    ("tiers", f"S{TIER_NAME}", N_TIERS),
    ("requests", np.uint64, (N_PATHS, N_ROUTES, N_STATUSES)),
    ("limited", np.uint64, (N_TIERS, N_WHYS)),
    ("shed", np.uint64, N_CLASSES),
    ("counters", np.uint64, N_COUNTERS),
    ("gauges", np.float64, N_GAUGES),
    ("by_route", HISTOGRAM, N_ROUTES),
    ("by_tier", HISTOGRAM, N_TIERS),
    ("times", HISTOGRAM, N_TIMES),
])
TOTAL = np.dtype([("sum", BLOCK), ("folded", np.uint64, N_PLACES)])   # folded: births, by place
if BLOCK.itemsize != sizeof(Block):
    raise ImportError("kserve/_tally.pyx and kserve/_tally.pxd do not lay a block out alike")


def _pages(size):
    return -(-size // PAGE) * PAGE


BLOCK_SIZE = _pages(BLOCK.itemsize)
TOTAL_SIZE = _pages(TOTAL.itemsize)
LAYOUT = zlib.crc32(repr((BLOCK, ROUTES, STATUSES, PATHS, CLASSES, WHYS, [*Counter], [*Gauge], [*Time])).encode())
HEADER = struct.pack("=8sQ", b"KSTALLY\0", LAYOUT)      # another layout: another file, and all counters start anew
FILE = Places("places", HEADER, PAGE + 2 * TOTAL_SIZE, BLOCK_SIZE, N_PLACES)


def _lower(number):
    """Nanoseconds at which a bucket begins."""
    if number < EXACT:
        return number << UNIT
    return ((number & (1 << HALF) - 1) + (1 << HALF)) << (number >> HALF) - 1 + UNIT


UPPERS = np.array([_lower(number + 1) for number in range(N_BUCKETS)]) / 1e9
MIDDLES = np.array([(_lower(number) + _lower(number + 1)) / 2 for number in range(N_BUCKETS)]) / 1e9


cdef inline int bucket_of(int64_t nanoseconds) noexcept nogil:
    cdef uint64_t units
    cdef int shift
    if nanoseconds >> LAST:
        return 0 if nanoseconds < 0 else N_BUCKETS - 1
    units = <uint64_t>nanoseconds >> UNIT
    if units < EXACT:
        return <int>units
    shift = 63 - HALF - clz(units)
    return (shift << HALF) + <int>(units >> shift)


cdef inline void put_time(Histogram *histogram, int64_t nanoseconds) noexcept nogil:
    histogram.buckets[bucket_of(nanoseconds)] += 1
    histogram.sum += <uint64_t>nanoseconds if nanoseconds > 0 else 0


cdef inline int slot_of_status(int status) noexcept nogil:
    if status == 200:
        return 0
    if status == 304:
        return 1
    if status == 400:
        return 2
    if status == 401:
        return 3
    if status == 403:
        return 4
    if status == 404:
        return 5
    if status == 413:
        return 6
    if status == 422:
        return 7
    if status == 429:
        return 8
    if status == 503:
        return 9
    return 8 + status // 100 if 200 <= status < 600 else 14


cdef inline int slot_of_tier(int tier) noexcept nogil:
    if tier >= 0:
        return tier + FIRST_NAMED if tier < OTHER_TIER - FIRST_NAMED else OTHER_TIER
    return tier == TIER_OPEN


@cython.final
cdef class Tally:
    """The counters of one process; see the stub."""

    def __cinit__(self):
        self.descriptor = self.place = -1
        self.private = <Block *>calloc(1, sizeof(Block))
        if self.private == NULL:
            raise MemoryError
        self.block = self.private

    def __init__(self, path, str role not None, tiers=()):
        self.path = None if path is None else os.fspath(path)
        self.role = role.encode()[:15]
        self.tiers = _tier_names(tiers)
        self._claim()

    def __dealloc__(self):
        self._give_back()
        free(self.private)

    cdef _claim(self):
        cdef uint8_t[::1] pages
        cdef Block *block = self.private
        try:
            if self.path is not None:
                self.descriptor, self.place, birth, self.mapping = _claimed(self.path)
        except OSError as error:
            log.warning("what this process counts is not in the metrics: %s", error)
        if self.place >= 0:
            pages = self.mapping
            block = <Block *>&pages[0]
        start(block, self.role)
        name_tiers(block, self.tiers)
        self.block = block
        if self.place >= 0:
            put(&block.birth, birth)

    cdef _give_back(self):
        self.block = self.private
        self.mapping = None
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = self.place = -1

    def name_tiers(self, tiers):
        self.tiers = _tier_names(tiers)
        name_tiers(self.block, self.tiers)

    def leave(self):
        self._give_back()

    def renew(self):
        self._give_back()
        self._claim()

    cpdef void count(self, int route, int status, int tier, int path, int64_t nanoseconds) noexcept nogil:
        cdef Block *block = self.block
        cdef int number = route if 0 <= route < N_ROUTES else ROUTE_OTHER
        block.requests[path == AIOHTTP][number][slot_of_status(status)] += 1
        if nanoseconds >= 0:
            put_time(&block.by_route[number], nanoseconds)
            put_time(&block.by_tier[slot_of_tier(tier)], nanoseconds)

    cpdef void limited(self, int tier, int outcome) noexcept nogil:
        if 1 <= outcome <= N_WHYS:
            self.block.limited[slot_of_tier(tier)][outcome - 1] += 1

    cpdef void shed(self, int klass) noexcept nogil:
        self.block.shed[klass if 0 <= klass < N_CLASSES else N_CLASSES - 1] += 1

    cpdef void add(self, int counter, uint64_t n) noexcept nogil:
        if 0 <= counter < N_COUNTERS:
            self.block.counters[counter] += n

    cpdef void set(self, int gauge, double value) noexcept nogil:
        if 0 <= gauge < N_GAUGES:
            self.block.gauges[gauge] = value

    cpdef void time(self, int histogram, int64_t nanoseconds) noexcept nogil:
        if 0 <= histogram < N_TIMES:
            put_time(&self.block.times[histogram], nanoseconds)


cdef start(Block *block, bytes role):
    """A block in which nothing is counted yet."""
    put(&block.birth, 0)
    fence()
    memset(block, 0, sizeof(Block))
    for number in range(N_GAUGES):
        block.gauges[number] = NAN
    block.pid = os.getpid()
    block.since = seconds_since_1970()
    strncpy(block.role, role, sizeof(block.role))


cdef name_tiers(Block *block, list tiers):
    for number, name in enumerate(tiers):
        strncpy(block.tiers[number], name, TIER_NAME - 1)
    strncpy(block.tiers[OTHER_TIER], b"other", TIER_NAME - 1)


def _tier_names(tiers):
    """As the slots of a block have them: those that are no tiers first, and as many as there is room for."""
    cut = [tier.encode()[: TIER_NAME - 1].decode("utf-8", "ignore").encode() for tier in tiers]
    return [b"none", b"open", *cut][:OTHER_TIER]


class Counts(NamedTuple):
    requests: object
    limited: dict
    shed: object
    counters: object
    by_route: object
    by_tier: dict
    times: object


class Living(NamedTuple):
    place: int
    pid: int
    role: str
    since: float
    gauges: object
    counts: Counts


class Tallies:
    """All that was counted on a host; see the stub."""

    def __init__(self, path):
        self.path = os.fspath(path)
        self._file = Mapped(path, FILE)

    def read(self):
        file = self._file.pages()
        cdef const uint8_t[::1] pages = file
        cdef const Head *head
        cdef uint64_t folds
        if pages is None:
            return counts_of(np.zeros(1, BLOCK)[0]), []
        head = <const Head *>&pages[0]
        for _ in range(TRIES):
            folds = get(&head.folds)
            total = np.frombuffer(file, TOTAL, 1, total_at(folds))[0].copy()
            blocks = [_copied(file, place) for place in range(min(get(&head.taken), <uint64_t>N_PLACES))]
            fence()
            if get(&head.folds) == folds:
                break
        for place, block in enumerate(blocks):
            fold(total, block, place)
        return counts_of(total["sum"]), self._living(blocks)

    def _living(self, blocks):
        return [
            Living(
                place, int(block["pid"]), block["role"].decode("utf-8", "replace"), float(block["since"]),
                block["gauges"], counts_of(block),
            )
            for place, block in enumerate(blocks)
            if block["birth"] and self._file.is_held(place)
        ]


cdef inline uint64_t total_at(uint64_t folds) noexcept:
    return PAGE + folds % 2 * <uint64_t>TOTAL_SIZE


def _copied(pages, place):
    return np.frombuffer(pages, BLOCK, 1, FILE.at(place))[0].copy()


def counts_of(block):
    tiers = {name.decode("utf-8", "replace"): slot for slot, name in enumerate(block["tiers"]) if name}
    return Counts(
        block["requests"], {name: block["limited"][slot] for name, slot in tiers.items()}, block["shed"],
        block["counters"], block["by_route"], {name: block["by_tier"][slot] for name, slot in tiers.items()},
        block["times"],
    )


def fold(total, block, place):
    """Add what a block has, unless it is empty or in the total already."""
    if block["birth"] == 0 or block["birth"] == total["folded"][place]:
        return
    total["folded"][place] = block["birth"]
    into = total["sum"]
    for name in ("requests", "shed", "counters"):
        into[name] += block[name]
    for name in ("by_route", "times"):
        add_histograms(into[name], block[name])
    for slot, tier in enumerate(block["tiers"]):
        if tier:
            place_of_tier = slot_named(into["tiers"], tier)
            into["limited"][place_of_tier] += block["limited"][slot]
            add_histograms(into["by_tier"][place_of_tier], block["by_tier"][slot])


def add_histograms(into, more):
    for field in HISTOGRAM.names:
        into[field] += more[field]


def slot_named(tiers, name):
    """Where a total counts this tier: processes with other settings number their tiers in another way."""
    for slot in range(OTHER_TIER if name != OTHERS else 0):
        if tiers[slot] in (name, b""):
            tiers[slot] = name
            return slot
    tiers[OTHER_TIER] = OTHERS
    return OTHER_TIER


def _claimed(path):
    """Descriptor, place, birth and mapping of a free block, ours until the descriptor is closed. Raises OSError."""
    with claimed(path, FILE) as (descriptor, place):
        birth = _kept(mmap.mmap(descriptor, FILE.file_size), place)
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        return descriptor, place, birth, mmap.mmap(descriptor, BLOCK_SIZE, flags=flags, offset=FILE.at(place))


def _kept(file, place):
    """Fold what the last holder of a place counted into the total, beside the good one; the birth of the next one."""
    cdef uint8_t[::1] pages = file
    cdef Head *head = <Head *>&pages[0]
    block = _copied(file, place)
    good = np.frombuffer(file, TOTAL, 1, total_at(head.folds))[0]
    if block["birth"] != good["folded"][place]:
        total = good.copy()
        fold(total, block, place)
        np.frombuffer(file, TOTAL, 1, total_at(head.folds + 1))[0] = total
        put(&head.folds, head.folds + 1)
    head.taken = max(head.taken, <uint64_t>place + 1)
    head.births += 1
    return head.births
