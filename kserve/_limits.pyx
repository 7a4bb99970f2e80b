"""One table of limits for all workers of a host; see the stub.

A page of header, a word for each set of slots, then the slots, SET_SLOTS to a set. A key's slot is one of its set.
Nobody locks, so nobody who dies leaves anything locked. Three words of a slot change by compare-and-swap: `tag` and
`tat` together, `quota`, and `lease`. A decision first takes from the quota or the lease, then moves `tat`; whoever is
refused at the second step gives back the first. Dying in between costs the caller what it asked for, and nothing else.

A slot is given to another key when it is as good as new: full, no quota used today, no lease. The swap that does it
fails when anybody was charged meanwhile, and a charge fails when the slot was given away. No key has two slots: an
insertion is first written into the word of the set, and whoever finds it there completes it.
"""

import logging
import mmap
import os
import struct
from typing import NamedTuple

from kserve._places import opened

cimport cython
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec

from kserve._atomic cimport get, get_time, put

__all__ = [
    "ADDRESS", "ADMITTED", "ALONE", "EXHAUSTED", "KEY", "LEASED", "LIMITED", "MEMORY", "NEVER", "SLOTS", "Decision",
    "Limits", "interval",
]

cdef enum:
    LAYOUT = 1
    PAGE = 4096
    ADDRESS_PLACES = 4          # of a set, its last: however many addresses fail, keys have the rest
    FILE_SIZE = PAGE + SETS * sizeof(Insertion) + SLOT_COUNT * sizeof(Slot)
    MODE_BITS = 3               # of the word of the mode
    MOST_BURST = (1 << 23) - 1  # what a lease can hold
    SECOND = 1_000_000
    CLOCK_TRUST = 50_000        # µs that the wall clock is not asked again
    SLACK = 100_000             # µs more to wait for what other processes do: buy, or see that it is tomorrow
    TRIES = 1000                # of an insertion, against as many others into the same set

cdef int64_t DAY = <int64_t>86_400 * SECOND
cdef int64_t FAR = <int64_t>1 << 60
cdef int64_t LONGEST = <int64_t>1 << 57         # µs in which a burst may come back

log = logging.getLogger("kserve.limits")

SLOTS = SLOT_COUNT


class Decision(NamedTuple):
    outcome: int
    remaining: int
    reset_us: int
    retry_us: int
    left_today: int
    midnight_us: int
    reset_at: int


@cython.final
cdef class Limits:
    """The table; see the stub."""

    def __init__(self, path):
        self.path = None if path is None else os.fspath(path)
        self.open_table()

    cdef int open_table(self) except -1:
        self.shared = False
        try:
            if self.path is not None:
                self.pages = _mapped(self.path)
                self.shared = True
        except OSError as error:
            log.warning("this process limits by itself alone: %s", error)
        if not self.shared:
            self.pages = mmap.mmap(-1, FILE_SIZE)
        self.head = <Head *>&self.pages[0]
        self.insertions = <Insertion *>&self.pages[PAGE]
        self.slots = <Slot *>&self.pages[PAGE + SETS * sizeof(Insertion)]
        swap(&self.head.seed, 0, int.from_bytes(os.urandom(8)) | 1)
        self.checked = -DAY
        return 0

    def take(self, name, tier, int64_t cost=1, int kind=KEY, now=None, wall=None):
        cdef bytes text = name_of(name)
        cdef Limit limit
        cdef Verdict verdict
        cdef int64_t moment = self.moment(now, wall)
        set_limit(&limit, tier)
        self.decide(tag_of(kind, text, len(text)), text, len(text), &limit, cost, moment, &verdict)
        return Decision(
            verdict.outcome, verdict.remaining, verdict.reset_us, verdict.retry_us, verdict.left_today,
            verdict.midnight_us, verdict.reset_at,
        )

    cdef int64_t moment(self, now, wall) except -1:
        cdef int64_t moment = now_us() if now is None else now
        if wall is not None:
            self.offset, self.checked, self.replayed = wall - moment, moment, True
        return moment

    cdef void decide(
        self, uint64_t tag, const char *name, size_t length, const Limit *limit, int64_t cost, int64_t now,
        Verdict *verdict
    ) noexcept nogil:
        cdef Terms terms
        cdef Slot *slot
        cdef bint settled = False
        self.set_terms(&terms, tag, limit, cost, now)
        if cost <= 0 or (limit.interval and cost > limit.burst) or (limit.quota and cost > limit.quota):
            peek(self.find(tag), limit, &terms, verdict)
            if cost:
                verdict.outcome = NEVER
                verdict.retry_us = -1
        else:
            while not settled:
                slot = self.own(tag, name, length, &terms)
                if slot == NULL:
                    peek(NULL, limit, &terms, verdict)
                    settled = True
                elif terms.mode == LEASED:
                    settled = spend_lease(slot, tag, limit, &terms, verdict)
                else:
                    settled = spend(slot, tag, limit, &terms, verdict)
        self.tell_time(limit, &terms, verdict)

    cdef void set_terms(self, Terms *terms, uint64_t tag, const Limit *limit, int64_t cost, int64_t now) noexcept nogil:
        cdef uint64_t word = get(&self.head.mode) if tag & KIND_BITS == KEY else 0
        terms.mode = word & MODE_BITS
        terms.replayed = self.replayed
        terms.hosts = 1
        terms.share = limit.burst
        terms.standing = 0
        terms.cost = cost
        terms.now = now
        terms.day = self.today(now)
        if terms.mode != MEMORY:
            terms.hosts = max(<int64_t>(word >> 2 & MOST_HOSTS), 1)
            terms.share = max(limit.burst // terms.hosts, 1)
            if not word >> JOINING_BIT & 1:
                terms.standing = min(limit.burst, limit.quota or limit.burst) // (4 * terms.hosts)
            if terms.mode != LEASED or <int64_t>(word >> UNTIL_BIT) < now >> UNTIL_SHIFT:
                terms.mode = ALONE
        terms.interval = limit.interval * terms.hosts

    cdef int64_t today(self, int64_t now) noexcept nogil:
        """Days since 1970. It stays when the wall clock is set back over midnight, unless by more than a day."""
        cdef int64_t day, seen
        if <uint64_t>(now - self.checked + CLOCK_TRUST) > 2 * CLOCK_TRUST:
            self.offset = time_of(CLOCK_REALTIME) - now
            self.checked = now
        day = (now + self.offset) // DAY
        while True:
            seen = <int64_t>get(&self.head.day)
            if seen == day or seen == day + 1:
                return seen
            if swap(&self.head.day, seen, day):
                return day

    cdef void tell_time(self, const Limit *limit, const Terms *terms, Verdict *verdict) noexcept nogil:
        """What depends on the clock of the wall; until then `midnight_us` is a moment of it."""
        cdef int64_t wall = terms.now + self.offset
        verdict.reset_at = (wall + verdict.reset_us + SECOND - 1) // SECOND
        if limit.quota:
            if verdict.outcome == EXHAUSTED or verdict.left_today < verdict.remaining:
                verdict.reset_at = verdict.midnight_us // SECOND
            verdict.midnight_us = max(verdict.midnight_us - wall, 1)
        if verdict.outcome == EXHAUSTED:
            verdict.retry_us = max(verdict.retry_us, verdict.midnight_us + SLACK)

    cdef uint64_t home(self, uint64_t tag) noexcept nogil:
        return mixed(tag ^ self.head.seed) % SETS

    cdef Slot *find(self, uint64_t tag) noexcept nogil:
        cdef Slot *slot = &self.slots[self.home(tag) * SET_SLOTS]
        cdef Slot *end = slot + SET_SLOTS
        while slot < end:
            if get(&slot.tag) == tag:
                return slot
            slot += 1
        return NULL

    cdef Slot *own(self, uint64_t tag, const char *name, size_t length, const Terms *terms) noexcept nogil:
        """The slot of this tag, made if need be; NULL, and counted, when there is no room."""
        cdef Slot *slot = self.find(tag)
        if slot == NULL:
            if self.insert(tag, terms):
                slot = self.find(tag)
            if slot == NULL:
                add(&self.head.failed_open, 1)
                return NULL
        if not same(slot.name, name, length):
            begin(slot, name, length, terms.now)  # made now, or by somebody who died before this
        return slot

    cdef bint insert(self, uint64_t tag, const Terms *terms) noexcept nogil:
        """Whether the tag has a slot now. Everybody who inserts into a set completes what is in progress there."""
        cdef uint64_t home = self.home(tag)
        cdef Insertion *shared = &self.insertions[home]
        cdef Insertion seen, wanted
        cdef int place
        for _ in range(TRIES):
            seen.number = get(&shared.number)
            seen.tag = get(&shared.tag)
            if get(&shared.number) != seen.number:
                continue
            if seen.tag:
                self.complete(home, &seen, terms)
                continue
            if self.find(tag) != NULL:
                return True
            place = self.free_place(home, tag, terms)
            if place < 0:
                return False
            wanted.tag = tag
            wanted.number = seen.number | <uint64_t>(place + 1)
            if swap_pair(shared, 0, seen.number, wanted.tag, wanted.number):
                self.complete(home, &wanted, terms)
        return False

    cdef int free_place(self, uint64_t home, uint64_t tag, const Terms *terms) noexcept nogil:
        """The first place that was never used, else the one that is full for longest; -1 without any."""
        cdef Slot *slots = &self.slots[home * SET_SLOTS]
        cdef int place, best = -1
        cdef int64_t tat, oldest = 0
        for place in range(0 if tag & KIND_BITS == KEY else SET_SLOTS - ADDRESS_PLACES, SET_SLOTS):
            if get(&slots[place].tag) == 0:
                return place
            tat = get_time(&slots[place].tat)
            if (best < 0 or tat < oldest) and is_idle(&slots[place], tat, terms):
                best, oldest = place, tat
        return best

    cdef void complete(self, uint64_t home, const Insertion *insertion, const Terms *terms) noexcept nogil:
        """Gives the place to the new tag, or gives the insertion up because its holder needs it again."""
        cdef Slot *slot = &self.slots[home * SET_SLOTS + (insertion.number & 0xFF) - 1]
        cdef int64_t tat = get_time(&slot.tat)
        cdef uint64_t tag = get(&slot.tag)
        if get(&self.insertions[home].number) != insertion.number:
            return  # somebody has completed it; what was read of the slot may be of a later one
        if tag != insertion.tag:
            if tag == 0 or is_idle(slot, tat, terms):
                if swap_pair(slot, tag, tat, insertion.tag, terms.now) and tag:
                    add(&self.head.evicted, 1)
            else:
                swap_pair(slot, tag, tat, tag, <uint64_t>tat + 1)  # so that who is late to complete the same fails
        swap_pair(
            &self.insertions[home], insertion.tag, insertion.number, 0, (insertion.number | 0xFF) + 1
        )

cdef int64_t now_us() noexcept nogil:
    return time_of(CLOCK_MONOTONIC)


cdef inline int64_t time_of(int clock) noexcept nogil:
    cdef timespec time
    clock_gettime(clock, &time)
    return <int64_t>time.tv_sec * SECOND + time.tv_nsec // 1000


cdef inline uint64_t mixed(uint64_t word) noexcept nogil:
    """The finalizer of MurmurHash3."""
    word = (word ^ word >> 33) * <uint64_t>0xFF51AFD7ED558CCD
    word = (word ^ word >> 33) * <uint64_t>0xC4CEB9FE1A85EC53
    return word ^ word >> 33


cdef uint64_t tag_of(int kind, const char *name, size_t length) noexcept nogil:
    cdef uint64_t hash = length, word
    cdef size_t at = 0
    while at < length:
        word = 0
        memcpy(&word, name + at, min(length - at, sizeof(word)))
        hash = mixed(hash * <uint64_t>0x9E3779B97F4A7C15 + word)
        at += sizeof(word)
    return hash & ~<uint64_t>KIND_BITS | kind


cdef int set_limit(Limit *limit, object tier) except -1:
    cdef int64_t most = LONGEST
    quota = getattr(tier, "quota", None)
    between = interval(tier)
    if not 1 <= tier.burst <= MOST_BURST or between * tier.burst > most:
        raise ValueError(f"a burst of {tier.burst}, one token in {between} µs, is more than can be counted")
    limit.interval = between
    limit.burst = tier.burst
    limit.quota = 0 if quota is None else min(quota, MOST_USED)
    return 0


def interval(tier):
    if tier.rate < 1 or tier.period < 1:
        raise ValueError(f"a rate of {tier.rate} in {tier.period} s is none")
    return -(-tier.period * 1_000_000 // tier.rate)


cdef bytes name_of(name):
    cdef bytes text = name if isinstance(name, bytes) else name.encode()
    if not 1 <= len(text) <= NAME_SIZE:
        raise ValueError(f"{name!r} is not a name of 1 to {NAME_SIZE} bytes")
    return text


def _mapped(path):
    """The pages of the file; one that is damaged, or of another layout or boot, is replaced."""
    with open("/proc/sys/kernel/random/boot_id", "rb") as file:
        boot = file.read().strip()  # the monotonic clock begins with it
    header = struct.pack("=8sQQ40s", b"KSLIMITS", LAYOUT, SLOT_COUNT, boot)
    descriptor = opened(path, header, FILE_SIZE)
    try:
        os.posix_fallocate(descriptor, 0, FILE_SIZE)  # or a write would be SIGBUS when memory is full
        return mmap.mmap(descriptor, FILE_SIZE)
    finally:
        os.close(descriptor)


cdef inline int64_t clamped(int64_t tat, const Limit *limit, const Terms *terms) noexcept nogil:
    """Where the bucket stands: never in the past, and never owing more than the limit of now can."""
    return min(max(tat, terms.now), terms.now + product(limit.burst, terms.interval, FAR))


cdef bint is_idle(const Slot *slot, int64_t tat, const Terms *terms) noexcept nogil:
    """Whether nothing would be lost with the slot."""
    cdef int64_t day = terms.day
    if tat >= terms.now or used_on(get(&slot.quota), &day):
        return False
    return terms.mode == MEMORY or not balance_of(get(&slot.lease), terms.now)


cdef void begin(Slot *slot, const char *name, size_t length, int64_t now) noexcept nogil:
    """Of the holder before there is only what means nothing: it must not come to mean something later."""
    cdef uint64_t word = get(&slot.lease)
    if word and not balance_of(word, now):
        swap(&slot.lease, word, 0)
    put(&slot.admitted, 0)
    put(&slot.refused, 0)
    memset(slot.name, 0, NAME_SIZE)
    memcpy(slot.name, name, length)


cdef void peek(const Slot *slot, const Limit *limit, const Terms *terms, Verdict *verdict) noexcept nogil:
    """Admitted, without a charge; a slot that is not there is full."""
    cdef Slot fresh
    if slot == NULL:
        memset(&fresh, 0, sizeof(Slot))
        slot = &fresh
    describe(get_time(&slot.tat), get(&slot.quota), get(&slot.lease), limit, terms, verdict)
    verdict.outcome = ADMITTED
    verdict.retry_us = 0


cdef void describe(
    int64_t tat, uint64_t quota, uint64_t lease, const Limit *limit, const Terms *terms, Verdict *verdict
) noexcept nogil:
    """What is left of the limit."""
    cdef int64_t ahead = clamped(tat, limit, terms) - terms.now
    cdef int64_t day = terms.day
    cdef int64_t left = product(terms.share, terms.interval, FAR) - ahead
    cdef int64_t used = used_on(quota, &day)
    verdict.reset_us = ahead
    if limit.interval == 0:
        verdict.remaining = limit.burst
    elif terms.mode == LEASED:
        left = balance_of(lease, terms.now) + terms.standing + left_of(lease)
        verdict.remaining = min(max(left, 0), limit.burst)
        verdict.reset_us = (limit.burst - verdict.remaining) * limit.interval
    else:
        verdict.remaining = left // terms.interval if left > 0 else 0
    verdict.left_today = -1
    verdict.midnight_us = 0
    if limit.quota:
        verdict.left_today = max(limit.quota - used, 0)
        verdict.midnight_us = (day + 1) * DAY
        if terms.mode == ALONE:
            verdict.left_today //= terms.hosts


cdef void admit(Slot *slot, const Terms *terms, Verdict *verdict) noexcept nogil:
    add(&slot.admitted, terms.cost)
    verdict.outcome = ADMITTED
    verdict.retry_us = 0


cdef void refuse(Slot *slot, const Terms *terms, bint exhausted, int64_t retry, Verdict *verdict) noexcept nogil:
    cdef uint64_t word, want, ones = (<uint64_t>1 << WANT_SHIFT) - 1
    while True:
        word = get(&slot.refused)
        want = word >> WANT_SHIFT
        if terms.mode == LEASED:
            want = max(want, <uint64_t>terms.cost)
        if swap(&slot.refused, word, want << WANT_SHIFT | (word + <uint64_t>terms.cost & ones)):
            break
    verdict.outcome = EXHAUSTED if exhausted else LIMITED
    verdict.retry_us = retry


cdef void give_back(Slot *slot, int64_t day, int64_t tokens) noexcept nogil:
    """To the quota of that day, if it still is."""
    cdef uint64_t word = get(&slot.quota)
    cdef uint64_t used = min(<uint64_t>tokens, word & MOST_USED)
    while day_of(word, day) == day and not swap(&slot.quota, word, word - used):
        word = get(&slot.quota)
        used = min(<uint64_t>tokens, word & MOST_USED)


cdef bint spend(Slot *slot, uint64_t tag, const Limit *limit, Terms *terms, Verdict *verdict) noexcept nogil:
    """Whether it is settled, by GCRA and the quota: not when the slot was given to another tag."""
    cdef int64_t charge = product(terms.cost, terms.interval, FAR)
    cdef int64_t tolerance = product(max(terms.share, terms.cost), terms.interval, FAR)
    cdef int64_t ceiling = product(limit.burst, terms.interval, FAR)
    cdef int64_t tokens = terms.cost * terms.hosts if limit.quota else 0
    cdef int64_t day = terms.day, used = 0, tat, base, late
    cdef bint charged = False, short = False
    cdef uint64_t word
    while True:  # whoever fails to swap does so because another has succeeded
        tat = get_time(&slot.tat)
        word = get(&slot.quota)
        if get(&slot.tag) != tag:
            break
        if tat > terms.now + ceiling and not terms.replayed:
            terms.now = now_us()  # or a clock read long ago would look like a limit that has changed
        if not charged:
            day = terms.day
            used = used_on(word, &day)
            short = limit.quota and used + tokens > limit.quota
        base = clamped(tat, limit, terms)
        late = base + charge - tolerance - terms.now
        if late > 0 or short:
            describe(base, word, 0, limit, terms, verdict)
            refuse(slot, terms, short, late, verdict)
            if base < tat:
                swap_pair(slot, tag, tat, tag, base)
            break
        if tokens and not charged:
            if not swap(&slot.quota, word, <uint64_t>day << DAY_SHIFT | <uint64_t>(used + tokens)):
                continue
            charged = True
        if swap_pair(slot, tag, tat, tag, base + charge):
            describe(base + charge, get(&slot.quota), 0, limit, terms, verdict)
            admit(slot, terms, verdict)
            return True
    if charged:
        give_back(slot, day, tokens)
    return get(&slot.tag) == tag


cdef bint spend_lease(
    Slot *slot, uint64_t tag, const Limit *limit, const Terms *terms, Verdict *verdict
) noexcept nogil:
    """Whether it is settled, by what was bought and what may be owed; see `spend`."""
    cdef int64_t balance, missing, day = terms.day
    cdef int64_t used = used_on(get(&slot.quota), &day)
    cdef uint64_t word, spent
    while True:
        word = get(&slot.lease)
        if get(&slot.tag) != tag:
            return False
        balance = balance_of(word, terms.now)
        missing = terms.cost - balance - terms.standing
        if missing > 0:
            describe(get_time(&slot.tat), get(&slot.quota), word, limit, terms, verdict)
            verdict.remaining = max(balance + terms.standing, 0)
            refuse(
                slot, terms, limit.quota and used + terms.cost > limit.quota,
                until_sold(get_time(&slot.tat), word, missing, limit, terms) + SLACK, verdict,
            )
            return True
        spent = <uint64_t>(balance - terms.cost) << 40 | word & (<uint64_t>1 << 40) - 1
        if swap(&slot.lease, word, spent):
            break
    if not note_spent(slot, tag, limit, terms):
        add(&slot.lease, <uint64_t>terms.cost << 40)
        return False
    describe(get_time(&slot.tat), get(&slot.quota), spent, limit, terms, verdict)
    admit(slot, terms, verdict)
    return True


cdef int64_t until_sold(
    int64_t tat, uint64_t word, int64_t missing, const Limit *limit, const Terms *terms
) noexcept nogil:
    """µs until Redis can sell what is missing. The only host has all of `tat`; others go by what was left."""
    if terms.hosts == 1:
        return max(clamped(tat, limit, terms) - terms.now - (limit.burst - terms.cost) * limit.interval, 0)
    return max(missing - left_of(word), 0) * limit.interval


cdef bint note_spent(Slot *slot, uint64_t tag, const Limit *limit, const Terms *terms) noexcept nogil:
    """Moves `tat` as if this host were alone, so that it gains nothing when it is; not if the slot is another's."""
    cdef int64_t tat, charged
    cdef int64_t charge = product(terms.cost, terms.interval, FAR)
    cdef int64_t most = terms.now + product(terms.share, terms.interval, FAR)
    while True:
        tat = get_time(&slot.tat)
        charged = min(clamped(tat, limit, terms) + charge, most)
        if swap_pair(slot, tag, tat, tag, max(tat, charged)):
            return True
        if get(&slot.tag) != tag:
            return False
