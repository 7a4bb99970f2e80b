"""Which process of a host reads which version, and what each has answered: the file ROSTER, mapped by all of them.

A page of header, then SEATS seats of SEAT_BYTES: a page for what its holder says of itself, and a ring of the ids that
it was last asked for. A seat belongs to the process that holds the lock on its first byte; the kernel gives that lock
back however the process ends. What is counted is counted in private memory, and copied to the seat by `flush`, so that
no answer ever waits for a page of the file; a number of sequence tells readers that a copy is whole.
"""

import logging
import mmap
import os
import struct
import threading
import time
from typing import NamedTuple

import numpy as np

from kserve._places import Mapped, Places, claimed, locked, opened

from libc.math cimport NAN
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy, memset

from kserve._atomic cimport fence, get, put

__all__ = ["PREPARING", "READY", "REFUSED", "RING", "SEATS", "Roster", "Seat", "SeatView", "Served"]

cdef enum:
    LAYOUT = 2
    PAGE = 4096
    SEAT_COUNT = 256
    SEAT_SIZE = PAGE + 8 * RING_SIZE
    ORDER_SIZE = 1536
    TRIES = 1000                # of a copy, which takes less than a microsecond
    UNSCORED_STATUS = 1         # kserve.records.Status
    SCORED_STATUS = 2

log = logging.getLogger("kserve.roster")

SEATS = SEAT_COUNT
RING = RING_SIZE
FILE = Places("seats", struct.pack("=8sQ", b"KSROSTER", LAYOUT), PAGE, SEAT_SIZE, SEAT_COUNT)
PREPARING, READY, REFUSED = "preparing", "ready", "refused"

cdef struct Order:
    uint64_t length
    uint8_t text[ORDER_SIZE]

cdef struct Head:
    char magic[8]
    uint64_t layout
    uint64_t taken              # seats that were ever used
    uint64_t orders             # that were ever kept; the last is orders[n % 2]
    Order order[2]


class Served(NamedTuple):
    answers: int
    scored: int
    unscored: int
    unknown: int
    lowest: int
    hundredths: int
    squares: int
    asked: int
    eligible: int
    requests: int
    errors: int
    paired: int
    were_eligible: int
    are_eligible: int


class SeatView(NamedTuple):
    place: int
    pid: int
    role: str
    since: float
    address: str
    version: str | None
    switched: float
    switches: int
    staged: str | None
    staged_state: str
    refused: str
    resident: float | None
    ids: int
    served: Served
    previous: str | None
    previous_served: Served

    def ready(self, version):
        return version == self.version or (version == self.staged and self.staged_state == READY)


cdef class Seat:
    """One process's own place; see the stub."""

    def __cinit__(self):
        self.descriptor = self.place = -1  # whatever fails from here on: 0 is somebody else's

    def __init__(self, path, str role not None):
        self.path = None if path is None else os.fspath(path)
        self.info.since = time.time()
        self.info.resident = NAN
        put_text(self.info.role, sizeof(self.info.role), role)
        self._claim()

    def __dealloc__(self):
        self._give_back()

    cdef _claim(self):
        self.writing = threading.Lock()
        self.info.pid = os.getpid()
        self.copied = 0
        try:
            if self.path is not None:
                self.descriptor, self.place = _claimed(self.path)
        except OSError as error:
            log.warning("this process is not in the roster: %s", error)
        if self.place >= 0:
            self.mapping = mmap.mmap(self.descriptor, FILE.file_size)
            self.shared = place_at(&self.mapping[0], self.place)
            self.shared_ring = <uint64_t *>(<uint8_t *>self.shared + PAGE)
            put(&self.shared.sequence, 0)  # whoever had it before may have died in the middle of a copy
        self.flush()

    cdef _give_back(self):
        self.shared = NULL
        self.mapping = None
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = self.place = -1

    def leave(self):
        with self.writing:
            if self.shared != NULL and self.info.pid == <uint64_t>os.getpid():
                memset(&self.outgoing, 0, sizeof(Info))
                copy_out(self.shared, &self.outgoing)
            self._give_back()

    def renew(self):
        """In a child after a fork: the place, and what was counted, are the parent's."""
        self._give_back()
        memset(&self.info.now, 0, sizeof(Counters))
        memset(&self.info.before, 0, sizeof(Counters))
        memset(self.pairs, 0, sizeof(self.pairs))
        self.info.since = time.time()
        self.info.ids = 0
        self._claim()

    def flush(self):
        with self.writing:
            if self.shared != NULL and self.info.pid == <uint64_t>os.getpid():
                memcpy(&self.outgoing, &self.info, sizeof(Info))
                with nogil:
                    copy_ring(self.shared_ring, self.ring, self.copied, self.outgoing.ids)
                    copy_out(self.shared, &self.outgoing)
                self.copied = self.outgoing.ids

    def open_to(self, str role not None, str address not None):
        put_text(self.info.role, sizeof(self.info.role), role)
        put_text(self.info.address, sizeof(self.info.address), address)
        self.flush()

    def serve(self, str version not None):
        if version == self.version:
            return
        self.before, self.version = self.version, version
        memcpy(self.info.previous, self.info.version, sizeof(self.info.version))
        memcpy(&self.info.before, &self.info.now, sizeof(Counters))
        memset(&self.info.now, 0, sizeof(Counters))
        memset(self.pairs, 0, sizeof(self.pairs))
        put_text(self.info.version, sizeof(self.info.version), version)
        self.info.switched = time.time()
        self.info.switches += 1
        self.info.resident = NAN
        self.flush()

    def stage(self, str version, str state="", str reason=""):
        put_text(self.info.staged, sizeof(self.info.staged), version or "")
        put_text(self.info.state, sizeof(self.info.state), state)
        put_text(self.info.refused, sizeof(self.info.refused), reason)
        self.flush()

    def resident(self, double share):
        self.info.resident = share
        self.flush()

    cdef Counters *counters(self, str version) noexcept:
        if version is self.version or version == self.version:
            return &self.info.now
        return &self.info.before if version == self.before else NULL

    def answered(self, str version, uint64_t profile_id, points):
        cdef Counters *counters = self.counters(version)
        remember(self, profile_id)
        if counters == NULL:
            return
        if points is None:
            counters.unscored += 1
        else:
            count_score(counters, <double>points)

    def unknown(self, str version, uint64_t profile_id):
        cdef Counters *counters = self.counters(version)
        remember(self, profile_id)
        if counters != NULL:
            counters.unknown += 1

    def answered_many(self, str version, const uint64_t[::1] ids, const double[::1] points, const uint8_t[::1] status):
        cdef Counters *counters = self.counters(version)
        cdef Py_ssize_t i
        if not ids.shape[0] == points.shape[0] == status.shape[0]:
            raise ValueError("ids, points and status are not of one length")
        for i in range(ids.shape[0]):
            remember(self, ids[i])
            if counters == NULL:
                continue
            if status[i] == SCORED_STATUS:
                count_score(counters, points[i])
            elif status[i] == UNSCORED_STATUS:
                counters.unscored += 1
            else:
                counters.unknown += 1

    def asked(self, str version, uint64_t profile_id, bint eligible, was_eligible=None):
        cdef Counters *counters = self.counters(version)
        remember(self, profile_id)
        if counters != NULL:
            counters.asked += 1
            counters.eligible += eligible
        if was_eligible is not None and counters == &self.info.now and is_fresh(self.pairs, profile_id):
            counters.paired += 1
            counters.were_eligible += <bint>was_eligible
            counters.are_eligible += eligible

    def succeeded(self, str version):
        cdef Counters *counters = self.counters(version)
        if counters != NULL:
            counters.requests += 1

    def failed(self, str version):
        cdef Counters *counters = self.counters(version)
        if counters != NULL:
            counters.errors += 1


class Roster:
    """All seats of a data directory, to be looked at; see the stub."""

    def __init__(self, path):
        self.path = os.fspath(path)
        self._file = Mapped(path, FILE)

    def take(self, role):
        return Seat(self.path, role)

    def seats(self):
        cdef const uint8_t[::1] pages = self._file.pages()
        cdef Info info
        cdef int place
        found = []
        if pages is None:
            return found
        for place in range(<int>min(get(&(<const Head *>&pages[0]).taken), <uint64_t>SEAT_COUNT)):
            if not copy_in(place_at(&pages[0], place), &info) or info.pid == 0:
                continue
            if self._file.is_held(place):
                found.append(view_of(&info, place))
        return found

    def hot_ids(self, limit):
        pages = self._file.pages()
        rings = [np.empty(0, dtype=np.uint64)]
        for seat in self.seats():
            rings.append(np.frombuffer(pages, np.uint64, min(seat.ids, RING_SIZE), FILE.at(seat.place) + PAGE))
        ids, times = np.unique(np.concatenate(rings), return_counts=True)
        return ids[np.argsort(-times, kind="stable")][:limit]

    def order(self):
        cdef const uint8_t[::1] pages = self._file.pages()
        return None if pages is None else order_in(<const Head *>&pages[0])

    def keep_order(self, decide):
        cdef uint8_t[::1] pages
        try:
            descriptor = opened(self.path, FILE.header, FILE.file_size)
        except OSError:
            decide(self.order())
            return
        try:
            with locked(descriptor):
                file = mmap.mmap(descriptor, PAGE)
                pages = file
                kept = order_in(<const Head *>&pages[0])
                order = decide(kept)
                if order != kept:
                    put_order(<Head *>&pages[0], order)
                    file.flush()
        finally:
            os.close(descriptor)


cdef inline void count_score(Counters *counters, double points) noexcept:
    count_hundredths(counters, <uint64_t>(points * 100 + 0.5))


cdef inline bint is_fresh(uint64_t *seen, uint64_t profile_id) noexcept:
    """Whether no id with this hash was seen: each id is, at most once. It is seen from now on."""
    cdef uint64_t hashed = profile_id * 0x9E3779B97F4A7C15ULL >> 52
    cdef uint64_t bit = 1ULL << (hashed % 64)
    cdef bint fresh = not seen[hashed // 64] & bit
    seen[hashed // 64] |= bit
    return fresh


cdef inline Place *place_at(const uint8_t *base, uint64_t place) noexcept:
    return <Place *>(base + PAGE + place * SEAT_SIZE)


cdef void put_text(char *field, size_t size, str text) except *:
    """As much of it as there is room for, with zeros behind it."""
    cdef bytes encoded = text.encode("utf-8", "backslashreplace")[: size - 1].decode("utf-8", "ignore").encode()
    memset(field, 0, size)
    memcpy(field, <const char *>encoded, len(encoded))


cdef void copy_out(Place *place, const Info *info) noexcept nogil:
    cdef uint64_t sequence = get(&place.sequence) | 1
    put(&place.sequence, sequence)
    fence()
    memcpy(&place.info, info, sizeof(Info))
    fence()
    put(&place.sequence, sequence + 1)


cdef bint copy_in(const Place *place, Info *info) noexcept nogil:
    """Whether a whole copy could be had: not while a holder writes, or died writing."""
    cdef uint64_t sequence
    for _ in range(TRIES):
        sequence = get(&place.sequence)
        if sequence & 1:
            continue
        memcpy(info, &place.info, sizeof(Info))
        fence()
        if get(&place.sequence) == sequence:
            return True
    return False


cdef void copy_ring(uint64_t *to, const uint64_t *ring, uint64_t first, uint64_t last) noexcept nogil:
    cdef uint64_t i
    for i in range(first if last - first < RING_SIZE else last - RING_SIZE, last):
        to[i % RING_SIZE] = ring[i % RING_SIZE]


cdef object view_of(const Info *info, int place):
    return SeatView(
        place=place,
        pid=info.pid,
        role=info.role.decode("utf-8", "replace"),
        since=info.since,
        address=info.address.decode("utf-8", "replace"),
        version=info.version.decode("ascii", "replace") or None,
        switched=info.switched,
        switches=info.switches,
        staged=info.staged.decode("ascii", "replace") or None,
        staged_state=info.state.decode("ascii", "replace"),
        refused=info.refused.decode("utf-8", "replace"),
        resident=None if info.resident != info.resident else info.resident,
        ids=info.ids,
        served=served(&info.now),
        previous=info.previous.decode("ascii", "replace") or None,
        previous_served=served(&info.before),
    )


cdef object served(const Counters *found):
    return Served(
        found.scored + found.unscored + found.unknown, found.scored, found.unscored, found.unknown, found.lowest,
        found.hundredths, found.squares, found.asked, found.eligible, found.requests, found.errors,
        found.paired, found.were_eligible, found.are_eligible,
    )


cdef bytes order_in(const Head *head):
    cdef uint64_t kept = get(&head.orders)
    cdef const Order *order = &head.order[kept % 2]
    return None if kept == 0 else order.text[: min(order.length, <uint64_t>ORDER_SIZE)]


cdef put_order(Head *head, bytes text):
    """Beside the last one, which is good until the count says otherwise."""
    cdef Order *order = &head.order[(head.orders + 1) % 2]
    if len(text) > ORDER_SIZE:
        raise ValueError(f"an order of {len(text)} bytes is longer than {ORDER_SIZE}")
    order.length = len(text)
    memcpy(order.text, <const char *>text, len(text))
    put(&head.orders, head.orders + 1)


def _claimed(path):
    """Descriptor and place of a free seat, which is ours until the descriptor is closed. Raises OSError."""
    cdef uint8_t[::1] pages
    with claimed(path, FILE) as (descriptor, place):
        pages = mmap.mmap(descriptor, PAGE)
        put_taken(<Head *>&pages[0], place + 1)
        return descriptor, place


cdef void put_taken(Head *head, uint64_t taken) noexcept:
    put(&head.taken, max(head.taken, taken))
