from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef enum:
    CLASSES = 6
    BUCKETS = 256               # of callers within a class
    LEVELS = CLASSES * BUCKETS

cdef class Shedder:
    cdef uint64_t salt          # of this hour
    cdef uint64_t random        # for those at the limit, and for Retry-After
    cdef uint32_t asked         # requests, modulo 2^32
    cdef uint32_t level         # callers below it are served, those above are not; LEVELS: all are served
    cdef uint32_t fraction      # of 2^16: how many requests of the callers at the level are served
    cdef uint32_t vouched       # requests at the level that `peeks` let pass, and that `admits` has not seen yet
    cdef double seen[LEVELS]    # work that was asked for lately, by level
    cdef int64_t served_by[CLASSES]
    cdef int64_t turned_away_by[CLASSES]
    cdef double part            # of the work asked for that is served
    cdef double asked_work      # since the last change of the share
    cdef double served_work
    cdef double asked_rate      # work asked for in an interval, lately
    cdef double speed           # work done in an interval of computing
    cdef double computing       # of a processor, lately
    cdef double refusal         # its cost, in work that is served
    cdef double squares[3]      # of work served and refused, lately: to tell what each costs
    cdef double products[2]     # of that work and its computing
    cdef double processor       # how much of one others leave to this loop
    cdef int64_t due_us         # when the loop should have come round, CLOCK_MONOTONIC; 0: nobody measures
    cdef int64_t begun_us       # since when every delay was too long; 0: the last one was not
    cdef int64_t stepped_us     # the last change of the share
    cdef int64_t computed_us    # processor time, then
    cdef int64_t shortest_us    # delay since then
    cdef int64_t delay_us       # the last one measured
    cdef int64_t target_us
    cdef int64_t interval_us
    cdef int wait_s             # Retry-After, at least

    # klass: 0 site reads, 1 partner reads, 2 batches, 3 eligibility, 4 claims, 5 everything else. caller: any number
    # that stays the same for a caller; its bits need not be good. Who is not admitted gets the problem `overloaded`.
    cpdef bint admits(self, int klass, uint64_t caller) noexcept nogil
    # For a request that `admits` will be asked about later, by someone slower: 0 turns it away now, and then for good.
    cpdef bint peeks(self, int klass, uint64_t caller) noexcept nogil
    # Counts one that is turned away whatever its class, because it has waited for too long already.
    cpdef void refuses(self, int klass, uint64_t caller) noexcept nogil
    # Whole seconds for the Retry-After of one who was turned away: another number each time, from `wait_s` to twice.
    cpdef int retry_after(self) noexcept nogil

    cdef void refuse(self, uint32_t level, int klass) noexcept nogil
    cdef bint passes(self, uint32_t level) noexcept nogil
    cdef uint32_t level_of(self, int klass, uint64_t caller) noexcept nogil
    cdef bint drawn(self) noexcept nogil
    cdef uint64_t draw(self) noexcept nogil
    cdef void learn(self, int64_t delay_us, int64_t now_us, int64_t computed_us) noexcept nogil
    cdef void reckon(self, double intervals, double computing) noexcept nogil
    cdef void weigh(self, double served, double refused, double computing, double fading) noexcept nogil
    cdef double affordable(self) noexcept nogil
    cdef void step(self) noexcept nogil
    cdef void fade(self) noexcept nogil
    cdef void place(self) noexcept nogil
