from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef enum:
    CLASSES = 6
    BUCKETS = 256               # of callers within a class
    LEVELS = CLASSES * BUCKETS

cdef class Shedder:
    cdef uint64_t salt          # of this hour
    cdef uint64_t random        # for those at the limit, and for Retry-After
    cdef uint32_t level         # callers below it are served, those above are not; LEVELS: all are served
    cdef uint32_t fraction      # of 2^16: how many requests of the callers at the level are served
    cdef double seen[LEVELS]    # work that was asked for lately, by level
    cdef double cost[CLASSES]   # of a request, relative to the others
    cdef int64_t served_[CLASSES]
    cdef int64_t turned_away_[CLASSES]
    cdef double share_          # of the work asked for that is served
    cdef int64_t due_us         # when the loop should have come round, CLOCK_MONOTONIC; 0: nobody measures
    cdef int64_t begun_us       # since when every delay was too long; 0: the last one was not
    cdef int64_t stepped_us     # the last change of the share
    cdef int64_t shortest_us    # delay since then
    cdef readonly int64_t delay_us      # the last one measured
    cdef int64_t target_us
    cdef int64_t interval_us
    cdef int64_t retry_after_s

    # For requests. klass: 0 site reads, 1 partner reads, 2 batches, 3 eligibility, 4 claims, 5 everything else. caller: any hash that
    # stays the same for a caller; its bits need not be good. Whoever is not admitted gets the problem `overloaded`.
    cdef bint admits(self, int klass, uint64_t caller) noexcept nogil
    # Whole seconds for the Retry-After of one who was not admitted: another one each time, from `retry_after` to twice that.
    cdef int retry_after(self) noexcept nogil

    cdef void turn(self, int64_t now_us) noexcept nogil
    cdef void step(self, int64_t delay_us, int64_t now_us) noexcept nogil
    cdef void place(self) noexcept nogil
    cdef void forget(self) noexcept nogil
