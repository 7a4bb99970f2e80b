# cython: nonecheck=False
# (`self` is never None; with the check, methods of debug builds would need the GIL)
"""Who is served and who is turned away under overload: one look at a table for each request."""

cimport cython
from libc.math cimport exp, sqrt
from libc.stdint cimport INT64_MAX, int64_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.types cimport clockid_t
from posix.time cimport CLOCK_MONOTONIC, CLOCK_THREAD_CPUTIME_ID, clock_gettime, timespec

__all__ = ["CLASS_NAMES", "Shedder", "now_us"]

cdef enum:
    LOOK = 16                   # requests between two looks at the clock
    STEPS = 5                   # of the share in an interval
    SEEN_ENOUGH = 32            # units of work, before a level is worth more than the last one
    VOUCHED_MOST = 4096

cdef double GROWTH = 0.02       # of the share in one step
cdef double LEAST = 1.0 / 4096  # share: so much is served whatever happens, or nobody would learn that it is over
cdef double FADES = 0.98        # of what was seen, in one step: about a second
cdef double SLACK = 4.0         # targets, beyond which a delay itself lowers what is served, for as long as it lasts
cdef double CHEAPEST = 0.02     # refusal
cdef double DEAREST = 0.9
cdef double ALIKE = 0.01        # of the determinant, below which two kinds of work cannot be told apart
cdef double STANDING = 1.5     # targets: the queue that keeps the loop busy while it turns requests away
cdef double IDLE = 0.05         # of a processor, below which nothing is learned of speed
cdef double BUSY = 0.2          # of a processor, below which a delay is not our own doing
cdef double FORGETS = 0.005     # of what others leave to us, in an interval
cdef double REFUSAL = 0.1       # of the work that it saves, until it is known better
cdef double LEARNS = 0.1        # of what a refusal costs, in an interval

CLASS_NAMES = ("site", "partner", "batch", "eligibility", "claim", "other")

# How much work a request is, roughly, beside a single read.
cdef double *COSTS = [1, 1, 20, 20, 10, 4]


cdef inline int64_t clock_us(clockid_t clock) noexcept nogil:
    cdef timespec now
    clock_gettime(clock, &now)
    return <int64_t>now.tv_sec * 1000000 + now.tv_nsec // 1000


cdef inline uint64_t mixed(uint64_t bits) noexcept nogil:
    # The finisher of SplitMix64.
    bits += 0x9E3779B97F4A7C15ULL
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9ULL
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EBULL
    return bits ^ (bits >> 31)


def now_us():
    return clock_us(CLOCK_MONOTONIC)


@cython.final
cdef class Shedder:
    """See the stub."""

    def __init__(self, double target=0.005, double interval=0.1, int retry_after=2):
        self.target_us = max(<int64_t>(target * 1e6), 1)
        self.interval_us = max(<int64_t>(interval * 1e6), STEPS)
        self.wait_s = retry_after
        self.random = <uint64_t>clock_us(CLOCK_MONOTONIC) | 1
        self.level = LEVELS
        self.part = 1.0
        self.processor = 1.0
        self.refusal = REFUSAL
        self.shortest_us = INT64_MAX

    cpdef bint admits(self, int klass, uint64_t caller) noexcept nogil:
        cdef uint32_t level = self.level_of(klass, caller)
        cdef int64_t now
        self.asked += 1
        self.seen[level] += COSTS[klass]
        self.asked_work += COSTS[klass]
        if self.due_us and self.asked % LOOK == 0:
            now = clock_us(CLOCK_MONOTONIC)
            if now - self.due_us > self.target_us:
                self.learn(now - self.due_us, now, -1)
        if self.passes(level):
            self.served_by[klass] += 1
            self.served_work += COSTS[klass]
            return True
        self.turned_away_by[klass] += 1
        return False

    cpdef bint peeks(self, int klass, uint64_t caller) noexcept nogil:
        if self.level == LEVELS:
            return True
        cdef uint32_t level = self.level_of(klass, caller)
        if level < self.level:
            return True
        if level == self.level and self.drawn():
            self.vouched = min(self.vouched + 1, VOUCHED_MOST)
            return True
        self.refuse(level, klass)
        return False

    cpdef void refuses(self, int klass, uint64_t caller) noexcept nogil:
        self.refuse(self.level_of(klass, caller), klass)

    cdef void refuse(self, uint32_t level, int klass) noexcept nogil:
        self.seen[level] += COSTS[klass]
        self.asked_work += COSTS[klass]
        self.turned_away_by[klass] += 1

    cdef bint passes(self, uint32_t level) noexcept nogil:
        if level != self.level:
            return level < self.level
        if self.vouched:
            self.vouched -= 1
            return True
        return self.drawn()

    cpdef int retry_after(self) noexcept nogil:
        return self.wait_s + <int>(self.draw() % <uint64_t>(self.wait_s + 1))

    cdef bint drawn(self) noexcept nogil:
        return (self.draw() & 0xFFFF) < self.fraction

    cdef uint64_t draw(self) noexcept nogil:
        # xorshift64*
        self.random ^= self.random >> 12
        self.random ^= self.random << 25
        self.random ^= self.random >> 27
        return (self.random * 0x2545F4914F6CDD1DULL) >> 32

    cdef uint32_t level_of(self, int klass, uint64_t caller) noexcept nogil:
        return klass * BUCKETS + <uint32_t>(mixed(caller ^ self.salt) >> 56)

    def expect(self, int64_t due_us):
        self.due_us = due_us

    def measured(self, int64_t delay_us, int64_t now_us, int64_t computed_us=-1):
        self.due_us = 0
        self.learn(max(delay_us, 0), now_us, computed_us if computed_us >= 0 else clock_us(CLOCK_THREAD_CPUTIME_ID))

    def renew(self, uint64_t hour):
        cdef uint64_t salt = mixed(hour)
        if salt != self.salt:
            self.salt = salt
            memset(self.seen, 0, sizeof(self.seen))

    cdef void learn(self, int64_t delay_us, int64_t now_us, int64_t computed_us) noexcept nogil:
        # A delay, or how long one has lasted already; computed_us: processor time of this thread, -1: ask the system.
        self.delay_us = delay_us
        self.shortest_us = min(self.shortest_us, delay_us)
        if delay_us <= self.target_us:
            self.begun_us = 0
        elif self.begun_us == 0:
            self.begun_us = now_us - delay_us
        if now_us - self.stepped_us < self.interval_us // STEPS:
            return
        if computed_us < 0:
            computed_us = clock_us(CLOCK_THREAD_CPUTIME_ID)
        self.reckon(
            (now_us - self.stepped_us) / <double>self.interval_us,
            (computed_us - self.computed_us) / <double>self.interval_us,
        )
        if self.part < 1.0 or (self.begun_us and now_us - self.begun_us >= self.interval_us and self.computing > BUSY):
            self.step()
        self.fade()
        self.place()
        self.stepped_us = now_us
        self.computed_us = computed_us
        self.shortest_us = INT64_MAX

    cdef void reckon(self, double intervals, double computing) noexcept nogil:
        # What is asked for in an interval; what an interval of computing gets done; how much computing others leave
        # to us. The last is learned slowly where it is less than it was: a loop that has to wait for a processor
        # does not serve anyone faster for having less to do.
        cdef double weight = 1.0 - exp(-intervals)
        cdef double done
        cdef double share = max(min(computing / intervals, 1.0), 0.0)
        self.weigh(self.served_work, self.asked_work - self.served_work, computing, LEARNS * intervals)
        done = self.served_work + self.refusal * (self.asked_work - self.served_work)
        self.asked_rate += weight * (self.asked_work / intervals - self.asked_rate)
        if done > 0.0 and share > IDLE:
            self.speed += (weight * share if self.speed > 0.0 else 1.0) * (done / computing - self.speed)
        self.computing += weight * (share - self.computing)
        if share > self.processor:
            self.processor = share
        elif self.shortest_us > self.target_us:
            self.processor += FORGETS * weight * (share - self.processor)
        self.asked_work = self.served_work = 0.0

    cdef void weigh(self, double served, double refused, double computing, double fading) noexcept nogil:
        # What a refusal costs, in work that is served: least squares over the last second or so.
        cdef double keeps = exp(-fading), determinant, a_served, a_refused
        self.squares[0] = keeps * self.squares[0] + served * served
        self.squares[1] = keeps * self.squares[1] + served * refused
        self.squares[2] = keeps * self.squares[2] + refused * refused
        self.products[0] = keeps * self.products[0] + served * computing
        self.products[1] = keeps * self.products[1] + refused * computing
        determinant = self.squares[0] * self.squares[2] - self.squares[1] * self.squares[1]
        if determinant <= ALIKE * self.squares[0] * self.squares[2]:
            return
        a_served = (self.products[0] * self.squares[2] - self.products[1] * self.squares[1]) / determinant
        a_refused = (self.products[1] * self.squares[0] - self.products[0] * self.squares[1]) / determinant
        if a_served > 0.0:
            self.refusal += (1.0 - keeps) * (min(max(a_refused / a_served, CHEAPEST), DEAREST) - self.refusal)

    cdef double affordable(self) noexcept nogil:
        # The share that would just keep the loop busy.
        cdef double able = self.speed * self.processor
        if self.asked_rate <= able:
            return 1.0
        return max((able - self.refusal * self.asked_rate) / ((1.0 - self.refusal) * self.asked_rate), LEAST)

    cdef void step(self) noexcept nogil:
        cdef double excess = <double>self.shortest_us / (STANDING * self.target_us)
        cdef double affordable = self.affordable()
        if excess > 1.0 and self.computing > BUSY:
            self.part = min(self.part, max(self.part / min(sqrt(sqrt(excess)), 2.0), affordable / 2))
        elif self.part < affordable / 2:
            self.part = affordable / 2
        else:
            self.part = min(self.part * (1.0 + GROWTH * max(1.0 - excess, 0.5)), 1.0)

    cdef void fade(self) noexcept nogil:
        cdef int level
        for level in range(LEVELS):
            self.seen[level] *= FADES

    cdef void place(self) noexcept nogil:
        # Where the share of the work lies below.
        if self.part >= 1.0:
            self.level = LEVELS
            return
        cdef double late = <double>self.delay_us / self.target_us
        cdef double work = 0.0, wanted, below = 0.0
        cdef int level
        for level in range(LEVELS):
            work += self.seen[level]
        if work < SEEN_ENOUGH:
            return
        wanted = work * self.part * min(1.0, SLACK / max(late, 1.0))
        for level in range(LEVELS):
            if below + self.seen[level] >= wanted:
                break
            below += self.seen[level]
        self.level = level
        self.fraction = <uint32_t>(65536.0 * (wanted - below) / self.seen[level])
        self.vouched = 0

    @property
    def share(self):
        return self.part

    @property
    def delay(self):
        return self.delay_us / 1e6

    @property
    def kept(self):
        cdef double level = self.level
        if self.level < LEVELS:
            level += self.fraction / 65536.0
        return tuple([min(max(level / BUCKETS - klass, 0.0), 1.0) for klass in range(CLASSES)])

    @property
    def served(self):
        return tuple([self.served_by[klass] for klass in range(CLASSES)])

    @property
    def turned_away(self):
        return tuple([self.turned_away_by[klass] for klass in range(CLASSES)])
