cimport cython
from libc.stdint cimport int64_t, uint64_t

cpdef enum:                     # path; the place in PATHS
    COMPILED = 0
    AIOHTTP = 1

cdef enum:                      # route; the place in ROUTES
    ROUTE_SCORE = 0
    ROUTE_BATCH
    ROUTE_PROFILE
    ROUTE_IDENTITY
    ROUTE_ELIGIBILITY
    ROUTE_TOPICS
    ROUTE_TOPIC
    ROUTE_SNAPSHOT
    ROUTE_OPENAPI
    ROUTE_HEALTH
    ROUTE_READY
    ROUTE_OTHER
    N_ROUTES

cpdef enum:                     # tier: its number in the sorted names, or one of these
    TIER_NONE = -1              # nobody knows who asks
    TIER_OPEN = -2              # without a key, where none is needed

cdef enum:                      # counter: the place in COUNTERS
    CONNECTIONS_ACCEPTED = 0
    CONNECTIONS_REFUSED         # over max_connections, or without a descriptor
    CONNECTIONS_TIMED_OUT       # header, body or send time-out
    HANDED_OVER                 # reads that the compiled path gave to aiohttp
    MALFORMED                   # bytes that were no HTTP request
    UNAUTHORIZED_MISSING
    UNAUTHORIZED_MALFORMED
    UNAUTHORIZED_REFUSED        # unknown, wrong, revoked, expired
    FORBIDDEN
    TOO_MANY_FAILURES
    LEASES_BOUGHT               # tokens
    LEASES_RETURNED             # tokens
    REDIS_CALLS
    REDIS_ERRORS
    LIMITS_SWITCHED             # to another mode
    WORKERS_STARTED
    WORKERS_DIED
    RELOADS
    KEYS_REFRESHED
    N_COUNTERS

cdef enum:                      # gauge: the place in GAUGES
    CONNECTIONS_OPEN = 0
    IN_PROGRESS                 # requests
    LOOP_DELAY                  # seconds, lately
    CONCURRENCY_LIMIT
    KEPT_SITE                   # share of callers, 0 to 1, by class
    KEPT_PARTNER
    KEPT_BATCH
    KEPT_ELIGIBILITY
    KEPT_CLAIM
    KEPT_OTHER
    KEYS_KNOWN                  # in the keyring of the process
    KEYS_STALE                  # seconds since the keys could last be read; 0: all is well
    LEASED_TOKENS               # bought, not spent yet
    REDIS_UP                    # 0 or 1
    WORKERS_WANTED
    WORKERS_ALIVE
    DRAINING                    # 0 or 1
    N_GAUGES

cdef enum:                      # histogram of the process, beside those of routes and tiers
    DELAY_OF_LOOP = 0
    REDIS_CALL
    N_TIMES

cdef enum:
    N_PATHS = 2
    N_TIERS = 16                # slots: none, open, 13 names, others
    N_STATUSES = 16             # slots; see STATUSES
    N_CLASSES = 6               # of shedding
    N_WHYS = 3                  # of limiting: rate, quota, never
    N_BUCKETS = 1792            # of a histogram, see bucket_of
    TIER_NAME = 32              # bytes

cdef struct Histogram:
    uint64_t sum                # nanoseconds
    uint64_t buckets[N_BUCKETS]

cdef struct Block:
    uint64_t birth              # of its process in this file, from 1; 0: never used
    uint64_t pid
    double since                # seconds since 1970
    char role[16]
    char tiers[N_TIERS][TIER_NAME]
    uint64_t requests[N_PATHS][N_ROUTES][N_STATUSES]
    uint64_t limited[N_TIERS][N_WHYS]
    uint64_t shed[N_CLASSES]
    uint64_t counters[N_COUNTERS]
    double gauges[N_GAUGES]     # NaN: not set
    Histogram by_route[N_ROUTES]
    Histogram by_tier[N_TIERS]
    Histogram times[N_TIMES]


@cython.final
cdef class Tally:
    """Counters of this process, in memory that the readers of the host map. Whoever counts holds the GIL; a few ns."""

    cdef Block *block           # never NULL
    cdef Block *private         # where it counts when there is no place in the file
    cdef object mapping
    cdef object path
    cdef object role
    cdef object tiers
    cdef int descriptor
    cdef readonly int place

    cpdef void count(self, int route, int status, int tier, int path, int64_t nanoseconds) noexcept nogil
    cpdef void limited(self, int tier, int outcome) noexcept nogil       # outcome of _limits.Verdict: 1, 2, 3
    cpdef void shed(self, int klass) noexcept nogil
    cpdef void add(self, int counter, uint64_t n) noexcept nogil
    cpdef void set(self, int gauge, double value) noexcept nogil
    cpdef void time(self, int histogram, int64_t nanoseconds) noexcept nogil
    cdef _claim(self)
    cdef _give_back(self)
