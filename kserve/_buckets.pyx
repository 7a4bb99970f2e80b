"""What is done to the table of limits, and seen of it, besides decisions; see the stub."""

from typing import NamedTuple

import numpy as np

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from kserve._atomic cimport get, put
from kserve._limits cimport (
    ADMITTED,
    ALONE,
    DAY_SHIFT,
    JOINING_BIT,
    KEY,
    KIND_BITS,
    LEFT_BITS,
    MEMORY,
    MOST_HOSTS,
    MOST_USED,
    NAME_SIZE,
    SET_SLOTS,
    SLOT_COUNT,
    TICK_SHIFT,
    UNTIL_BIT,
    UNTIL_SHIFT,
    WANT_SHIFT,
    Insertion,
    Limit,
    Limits,
    Slot,
    Terms,
    Verdict,
    add,
    balance_of,
    is_named,
    keep,
    name_of,
    now_us,
    set_limit,
    swap,
    tag_of,
    touch,
    used_on,
)

__all__ = ["Bucket", "Buckets", "Demand", "State"]

cdef enum:
    SECOND = 1_000_000          # µs
    MOST_LEASED = (1 << 23) - 1

cdef double LONGEST = 1800      # seconds of a lease; expiries are told apart for 2,147


class Bucket(NamedTuple):
    kind: int
    name: str
    full_us: int
    used_today: int
    leased: int
    admitted: int
    refused: int


class Demand(NamedTuple):
    names: np.ndarray
    admitted: np.ndarray
    refused: np.ndarray
    wants: np.ndarray
    balances: np.ndarray


class State(NamedTuple):
    mode: int
    hosts: int
    used: int
    failed_open: int
    evicted: int


cdef class Buckets:
    """All buckets of one table; see the stub."""

    cdef Limits limits
    cdef uint64_t[:, ::1] seen  # by slot: tag, admitted and refused when demand() was asked last
    cdef bint asked

    def __init__(self, Limits limits not None):
        self.limits = limits
        self.seen = np.zeros((SLOT_COUNT, 3), dtype=np.uint64)

    cdef Slot *slot(self, name) except? NULL:
        """Made if need be; NULL when there is no room."""
        cdef bytes text = name_of(name)
        cdef Terms terms = self.terms()
        return self.limits.own(tag_of(KEY, text, len(text)), text, len(text), &terms)

    cdef Terms terms(self) noexcept:
        cdef Limit limit
        cdef Terms terms
        memset(&limit, 0, sizeof(Limit))
        self.limits.set_terms(&terms, KEY, &limit, 0, now_us())
        return terms

    def set_mode(self, int mode, int hosts=1, double seconds=0, bint standing=True):
        cdef uint64_t until = (now_us() + <int64_t>(seconds * SECOND)) >> UNTIL_SHIFT
        if not MEMORY <= mode <= ALONE or not 1 <= hosts <= MOST_HOSTS or not 0 <= seconds <= LONGEST:
            raise ValueError(f"mode {mode} with {hosts} hosts for {seconds} s is not one that a host can be in")
        put(
            &self.limits.head.mode,
            until << UNTIL_BIT | <uint64_t>(not standing) << JOINING_BIT | <uint64_t>hosts << 2 | <uint64_t>mode,
        )

    def deposit(self, name, int64_t tokens, double seconds, int64_t left=0):
        cdef Slot *slot = NULL
        cdef int64_t now = now_us(), balance
        cdef uint64_t word, tag
        if not 0 <= tokens <= MOST_LEASED or not 0 <= seconds <= LONGEST:
            raise ValueError(f"{tokens} tokens for {seconds} s with {left} left are no lease")
        slot = self.slot(name)
        if slot == NULL:
            return None
        tag = get(&slot.tag)
        while True:
            word = get(&slot.lease)
            balance = min(balance_of(word, now) + tokens, MOST_LEASED)
            if swap(&slot.lease, word, lease_word(balance, left, now + <int64_t>(seconds * SECOND))):
                break
        if touch(slot, tag):
            return balance
        add(&slot.lease, -(<uint64_t>tokens << 40))
        return None

    def withdraw(self, name):
        cdef bytes text = name_of(name)
        cdef Slot *slot = self.limits.find(tag_of(KEY, text, len(text)))
        cdef int64_t balance
        cdef uint64_t word
        while slot != NULL:
            word = get(&slot.lease)
            balance = <int64_t>word >> 40
            if balance <= 0:
                break
            if swap(&slot.lease, word, word & (<uint64_t>1 << 40) - 1):
                return balance
        return 0

    def note_used(self, name, int64_t tokens, int64_t day):
        cdef Slot *slot = self.slot(name)
        if tokens < 0:
            raise ValueError(f"{tokens} tokens cannot have been used")
        if slot != NULL and day == self.limits.today(now_us()):
            put(&slot.quota, <uint64_t>day << DAY_SHIFT | min(<uint64_t>tokens, MOST_USED))

    def demand(self):
        cdef uint8_t[:, ::1] names = np.zeros((SLOT_COUNT, NAME_SIZE), dtype=np.uint8)
        cdef int64_t[:, ::1] figures = np.empty((4, SLOT_COUNT), dtype=np.int64)
        cdef Py_ssize_t n
        with nogil:
            n = list_demand(
                self.limits.slots, self.limits.insertions, not self.asked, now_us(), self.seen, names, figures
            )
        self.asked = True
        texts = np.asarray(names)[:n].reshape(-1).view(f"S{NAME_SIZE}")
        return Demand(texts, *(row[:n].copy() for row in np.asarray(figures)))

    def state(self):
        cdef Terms terms = self.terms()
        cdef Py_ssize_t place, used = 0
        for place in range(SLOT_COUNT):
            used += get(&self.limits.slots[place].tag) != 0
        return State(terms.mode, terms.hosts, used, self.limits.head.failed_open, self.limits.head.evicted)

    def show(self, name, int kind=KEY):
        cdef bytes text = name_of(name)
        cdef Slot *slot = self.limits.find(tag_of(kind, text, len(text)))
        cdef int64_t now = now_us()
        return None if slot == NULL else bucket_of(slot, now, self.limits.today(now))

    def all(self):
        cdef int64_t now = now_us()
        cdef int64_t day = self.limits.today(now)
        cdef Py_ssize_t place
        cdef const Slot *slots = self.limits.slots
        return [bucket_of(&slots[place], now, day) for place in range(SLOT_COUNT) if is_named(&slots[place])]

    def measure(self, names, tier, const uint32_t[::1] picks, bint clock=True):
        cdef Limit limit
        cdef Verdict verdict
        cdef int64_t start, now, admitted = 0
        cdef Py_ssize_t i, n = len(names)
        cdef uint64_t[::1] tags = np.empty(n, dtype=np.uint64)
        cdef const uint8_t[:, ::1] texts = np.array(names, dtype=f"S{NAME_SIZE}").view(np.uint8).reshape(n, NAME_SIZE)
        cdef bytes text
        set_limit(&limit, tier)
        for i, name in enumerate(names):
            text = name_of(name)
            tags[i] = tag_of(KEY, text, len(text))
        with nogil:
            now = start = now_us()
            for i in range(picks.shape[0]):
                if clock:
                    now = now_us()
                self.limits.decide(
                    tags[picks[i]], <const char *>&texts[picks[i], 0], NAME_SIZE, &limit, 1, now, &verdict
                )
                admitted += verdict.outcome == ADMITTED
            now = now_us()
        return (now - start) / <double>SECOND, admitted


cdef inline uint64_t lease_word(int64_t balance, int64_t left, int64_t until) noexcept nogil:
    cdef int64_t most = (<int64_t>1 << (LEFT_BITS - 1)) - 1
    cdef uint64_t known = <uint64_t>min(max(left, -most), most) & (<uint64_t>1 << LEFT_BITS) - 1
    return <uint64_t>balance << 40 | known << 16 | <uint16_t>(until >> TICK_SHIFT)


cdef Py_ssize_t list_demand(
    Slot *slots, const Insertion *insertions, bint first, int64_t now,
    uint64_t[:, ::1] seen, uint8_t[:, ::1] names, int64_t[:, ::1] figures
) noexcept nogil:
    """How many keys were asked for since, or have a balance; of each its name and the figures of a Demand."""
    cdef Py_ssize_t place, n = 0
    cdef uint64_t tag, admitted, refused, ones = (<uint64_t>1 << WANT_SHIFT) - 1
    cdef bint known
    for place in range(SLOT_COUNT):
        if not get(&insertions[place // SET_SLOTS].number):
            continue
        tag = get(&slots[place].tag)
        if tag & KIND_BITS != KEY or not is_named(&slots[place]):
            continue
        admitted = get(&slots[place].admitted)
        refused = get(&slots[place].refused)
        if refused >> WANT_SHIFT:
            refused = keep(&slots[place].refused, ones)
        figures[2, n] = refused >> WANT_SHIFT
        refused &= ones
        known = first or (seen[place, 0] == tag and seen[place, 1] <= admitted and seen[place, 2] <= refused)
        figures[0, n] = admitted - (admitted if first else seen[place, 1] if known else 0)
        figures[1, n] = refused - (refused if first else seen[place, 2] if known else 0)
        figures[3, n] = balance_of(get(&slots[place].lease), now)
        seen[place, 0], seen[place, 1], seen[place, 2] = tag, admitted, refused
        if figures[0, n] or figures[1, n] or figures[2, n] or figures[3, n]:
            memcpy(&names[n, 0], slots[place].name, NAME_SIZE)
            n += 1
    return n


cdef object bucket_of(const Slot *slot, int64_t now, int64_t day):
    return Bucket(
        kind=slot.tag & KIND_BITS,
        name=slot.name[:NAME_SIZE].rstrip(b"\0").decode("utf-8", "replace"),
        full_us=max(slot.tat - now, 0),
        used_today=used_on(slot.quota, &day),
        leased=balance_of(slot.lease, now),
        admitted=slot.admitted,
        refused=slot.refused & (<uint64_t>1 << WANT_SHIFT) - 1,
    )
