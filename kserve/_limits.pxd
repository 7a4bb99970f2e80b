# One table of limits for all workers of a host: GCRA in integer microseconds, a daily quota, and leases. What is said
# of units and meaning here is all that other compiled modules need; the stub has the rest.

from libc.stdint cimport int64_t, uint8_t, uint64_t

cpdef enum:                     # kinds of names: the low bits of their tags
    KEY = 1                     # an id of a key; limited as the mode says
    ADDRESS = 2                 # always limited by this host alone, in a quarter of the table

cpdef enum:                     # outcomes
    ADMITTED = 0
    LIMITED                     # by the rate
    EXHAUSTED                   # by the day's quota
    NEVER                       # costs more than the burst, or than a day's quota

cpdef enum:                     # modes of the host
    MEMORY = 0                   # the whole limit, by GCRA
    LEASED                      # by the tokens that were bought, and those that every host has anyway
    ALONE                       # limit ÷ hosts, by GCRA

cdef enum:
    NAME_SIZE = 16

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
    int64_t reset_at            # seconds since 1970, rounded up: when the burst is whole

cdef struct Slot:
    uint64_t tag                # 0: never used. Swapped together with tat, so nobody is charged for another
    int64_t tat                 # µs of the monotonic clock: when the bucket is full again
    uint64_t quota              # day << 48 | tokens used on it
    uint64_t lease              # tokens, signed, << 40 | left in Redis << 16 | expiry in ticks
    uint64_t admitted           # tokens, ever
    uint64_t refused
    char name[NAME_SIZE]        # zeros behind it

cdef struct Insertion:          # in progress in a set of slots, or its number alone
    uint64_t tag                # 0: none
    uint64_t number             # << 8 | place

cdef struct Head:
    char magic[8]
    uint64_t layout
    uint64_t slots
    char boot[40]               # of the monotonic clock
    uint64_t seed               # places differ from file to file
    uint64_t mode               # until when << 18 | hosts << 2 | mode
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


cdef class Limits:
    cdef uint8_t[::1] pages
    cdef Head *head
    cdef Insertion *insertions
    cdef Slot *slots
    cdef int64_t offset         # µs from the monotonic clock to that of the wall, as of `checked`
    cdef int64_t checked
    cdef uint64_t[:, ::1] seen  # by slot: tag, admitted and refused when demand() was asked last
    cdef readonly object path
    cdef readonly bint shared

    # Charges the cost if rate and quota both admit it. A cost of 0 is always admitted, and written nowhere. `name` has
    # `length` <= NAME_SIZE bytes, and `tag` is its tag_of. When no slot is free the cost is admitted, and counted.
    cdef void decide(
        self, uint64_t tag, const char *name, size_t length, const Limit *limit, int64_t cost, int64_t now,
        Verdict *verdict
    ) noexcept nogil

    cdef int open_table(self) except -1
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
