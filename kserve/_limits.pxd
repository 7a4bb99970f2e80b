# One table of limits for all workers of a host: GCRA in integer microseconds, a daily quota, and leases. What is said
# of units and meaning here is all that other compiled modules need; the stub has the rest.

cimport cython
from libc.stdint cimport int16_t, int64_t, uint8_t, uint16_t, uint64_t
from libc.string cimport memcmp, memcpy

from kserve._atomic cimport get, get_time

cdef extern from *:
    """
    #ifndef __GCC_HAVE_SYNC_COMPARE_AND_SWAP_16
    #error "kserve needs a processor that swaps 16 bytes at once"
    #endif
    #define KSERVE_MOST_USED (((uint64_t)1 << 48) - 1)
    #define kserve_and(word, value) __atomic_fetch_and((word), (value), __ATOMIC_ACQ_REL)
    #define kserve_add(word, value) ((void)__atomic_add_fetch((word), (value), __ATOMIC_RELAXED))
    static inline int kserve_swap(uint64_t *word, uint64_t old, uint64_t next) {
        return __atomic_compare_exchange_n(word, &old, next, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    }
    static inline int kserve_swap_pair(void *pair, uint64_t a, uint64_t b, uint64_t next_a, uint64_t next_b) {
        typedef unsigned __int128 two;
        return __sync_bool_compare_and_swap((two *)pair, (two)b << 64 | a, (two)next_b << 64 | next_a);
    }
    static inline int64_t kserve_product(int64_t a, int64_t b, int64_t most) {
        int64_t product;
        return __builtin_mul_overflow(a, b, &product) || product > most ? most : product;
    }
    """
    const uint64_t MOST_USED "KSERVE_MOST_USED"     # tokens of a day
    void add "kserve_add"(uint64_t *word, uint64_t value) noexcept nogil
    uint64_t keep "kserve_and"(uint64_t *word, uint64_t bits) noexcept nogil    # what it was before
    bint swap "kserve_swap"(uint64_t *word, uint64_t old, uint64_t next) noexcept nogil
    bint swap_pair "kserve_swap_pair"(
        void *pair, uint64_t a, uint64_t b, uint64_t next_a, uint64_t next_b
    ) noexcept nogil
    int64_t product "kserve_product"(int64_t a, int64_t b, int64_t most) noexcept nogil

cpdef enum:                     # kinds of names: the low bits of their tags
    KEY = 1                     # an id of a key; limited as the mode says
    ADDRESS = 2                 # always limited by this host alone, in a quarter of the table

cpdef enum:                     # outcomes
    ADMITTED = 0
    LIMITED                     # by the rate
    EXHAUSTED                   # by the day's quota
    NEVER                       # costs more than the burst, or than a day's quota

cpdef enum:                     # modes of the host
    MEMORY = 0                  # the whole limit, by GCRA
    LEASED                      # by the tokens that were bought, and those that every host has anyway
    ALONE                       # limit ÷ hosts, by GCRA

cdef enum:
    SET_SLOTS = 16
    SETS = 16_384
    SLOT_COUNT = SETS * SET_SLOTS
    NAME_SIZE = 16
    KIND_BITS = 15              # of a tag
    MOST_HOSTS = 65_535
    LEFT_BITS = 24              # of a lease, signed
    DAY_SHIFT = 48
    WANT_SHIFT = 40
    UNTIL_BIT = 19              # of the word of the mode
    JOINING_BIT = 18
    TICK_SHIFT = 16             # µs of a lease's expiry
    UNTIL_SHIFT = 10            # µs of the end of a mode

cdef struct Limit:
    int64_t interval            # µs until a token comes back, rounded up; 0: unlimited
    int64_t burst               # tokens
    int64_t quota               # tokens of a UTC day; 0: no quota

cdef struct Verdict:
    int outcome
    int64_t remaining           # tokens that may be spent at once now
    int64_t reset_us            # until the burst is whole
    int64_t retry_us            # until the same may be asked again; 0: now, -1: never
    int64_t left_today          # tokens of the quota; -1: no quota
    int64_t midnight_us         # until the quota is whole; 0: no quota
    int64_t reset_at            # seconds since 1970, rounded up: when the burst is whole, or the quota if it is short

cdef struct Slot:
    uint64_t tag                # 0: never used. Swapped together with tat, so nobody is charged for another
    int64_t tat                 # µs of the monotonic clock: when the bucket is full again
    uint64_t quota              # day << 48 | tokens used on it
    uint64_t lease              # tokens, signed, << 40 | left in Redis, signed, << 16 | expiry in ticks
    uint64_t admitted           # tokens, ever
    uint64_t refused            # the largest cost that a lease refused since demand() looked << 40 | tokens
    char name[NAME_SIZE]        # zeros behind it

cdef struct Insertion:          # in progress in a set of slots, or its number alone: 0 when the set was never used
    uint64_t tag                # 0: none
    uint64_t number             # << 8 | place

cdef struct Head:
    char magic[8]
    uint64_t layout
    uint64_t slots
    char boot[40]               # of the monotonic clock
    uint64_t seed               # places differ from file to file
    uint64_t mode               # until when << 19 | without standing tokens << 18 | hosts << 2 | mode
    uint64_t day                # since 1970
    uint64_t failed_open        # answers that no slot was found for
    uint64_t evicted

cdef struct Terms:              # of one decision, at this host
    int mode
    int64_t hosts               # that the limit is divided by
    int64_t cost
    int64_t interval            # µs of a token
    int64_t share               # tokens of the burst
    int64_t standing            # tokens that may be owed to Redis
    int64_t now                 # µs
    int64_t day
    bint replayed


@cython.final
cdef class Limits:
    cdef uint8_t[::1] pages
    cdef Head *head
    cdef Insertion *insertions
    cdef Slot *slots
    cdef int64_t offset         # µs from the monotonic clock to that of the wall, as of `checked`
    cdef int64_t checked
    cdef bint replayed          # time is what the callers of `take` say
    cdef readonly object path
    cdef readonly bint shared

    # Charges the cost if rate and quota both admit it. A cost of 0 is always admitted, and written nowhere. `name` has
    # `length` <= NAME_SIZE bytes, and `tag` is its tag_of. When no slot is free the cost is admitted, and counted.
    cdef void decide(
        self, uint64_t tag, const char *name, size_t length, const Limit *limit, int64_t cost, int64_t now,
        Verdict *verdict
    ) noexcept nogil

    cdef int open_table(self) except -1
    cdef int64_t moment(self, now, wall) except -1
    cdef int64_t today(self, int64_t now) noexcept nogil
    cdef void set_terms(self, Terms *terms, uint64_t tag, const Limit *limit, int64_t cost, int64_t now) noexcept nogil
    cdef void tell_time(self, const Limit *limit, const Terms *terms, Verdict *verdict) noexcept nogil
    cdef uint64_t home(self, uint64_t tag) noexcept nogil
    cdef Slot *find(self, uint64_t tag) noexcept nogil
    cdef Slot *own(self, uint64_t tag, const char *name, size_t length, const Terms *terms) noexcept nogil
    cdef bint insert(self, uint64_t tag, const Terms *terms) noexcept nogil
    cdef int free_place(self, uint64_t home, uint64_t tag, const Terms *terms) noexcept nogil
    cdef void complete(self, uint64_t home, const Insertion *insertion, const Terms *terms) noexcept nogil


cdef int64_t now_us() noexcept nogil                                    # of the monotonic clock
cdef uint64_t tag_of(int kind, const char *name, size_t length) noexcept nogil
cdef int set_limit(Limit *limit, object tier) except -1                 # of anything with rate, period, burst, quota
cdef bytes name_of(name)                                                # checked


cdef inline int64_t day_of(uint64_t word, int64_t day) noexcept nogil:
    """The day that a quota was used on: of all that end in its 16 bits the nearest to `day`."""
    return day + <int16_t><uint16_t>((word >> DAY_SHIFT) - <uint64_t>day)


cdef inline int64_t used_on(uint64_t word, int64_t *day) noexcept nogil:
    """Tokens used on that day, or on the next if another process has seen it begin; then that is the day."""
    cdef int64_t noted = day_of(word, day[0])
    if noted != day[0] and noted != day[0] + 1:
        return 0
    day[0] = noted
    return <int64_t>(word & MOST_USED)


cdef inline int64_t balance_of(uint64_t word, int64_t now) noexcept nogil:
    """Tokens of a lease; what is owed does not expire."""
    cdef int64_t balance = <int64_t>word >> 40
    cdef int16_t ticks = <int16_t><uint16_t>(word - <uint64_t>(now >> TICK_SHIFT))
    return 0 if balance > 0 and ticks <= 0 else balance


cdef inline int64_t left_of(uint64_t word) noexcept nogil:
    """Tokens that Redis could still sell; below 0 after it sold a batch that is more than it sells otherwise."""
    return <int64_t>(word << LEFT_BITS) >> (64 - LEFT_BITS)


cdef inline bint same(const char *ours, const char *name, size_t length) noexcept nogil:
    """Whether the names agree; those of keys without a call."""
    cdef uint64_t words[4]
    if length < sizeof(uint64_t):
        return memcmp(ours, name, length) == 0
    memcpy(&words[0], ours, sizeof(uint64_t))
    memcpy(&words[1], name, sizeof(uint64_t))
    memcpy(&words[2], ours + length - sizeof(uint64_t), sizeof(uint64_t))
    memcpy(&words[3], name + length - sizeof(uint64_t), sizeof(uint64_t))
    return words[0] == words[1] and words[2] == words[3]


cdef inline bint is_named(const Slot *slot) noexcept nogil:
    cdef size_t length = 0
    while length < NAME_SIZE and slot.name[length]:
        length += 1
    return slot.tag != 0 and slot.tag == tag_of(slot.tag & KIND_BITS, slot.name, length)


cdef inline bint touch(Slot *slot, uint64_t tag) noexcept nogil:
    """Whether the slot was still this tag's; nobody who found it idle before can give it to another now."""
    cdef int64_t tat
    while get(&slot.tag) == tag:
        tat = get_time(&slot.tat)
        if swap_pair(slot, tag, tat, tag, <uint64_t>tat + 1):
            return True
    return False
