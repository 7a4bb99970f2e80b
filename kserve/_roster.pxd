# What a process counts of its answers, for compiled code that answers too.

from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    RING_SIZE = 4096
    LOWEST = 100                # hundredths of a point
    PAIR_WORDS = 64             # of 64 bits

cdef packed struct Counters:
    uint64_t scored
    uint64_t unscored
    uint64_t unknown
    uint64_t lowest
    uint64_t hundredths
    uint64_t squares
    uint64_t asked
    uint64_t eligible
    uint64_t requests
    uint64_t errors
    uint64_t paired             # of different ids that were asked for in this version and in the one before alike
    uint64_t were_eligible
    uint64_t are_eligible

cdef packed struct Info:
    uint64_t pid
    double since                # seconds since 1970
    double switched
    double resident             # NaN: not known yet
    uint64_t switches
    uint64_t ids                # put into the ring, ever
    char role[16]
    char state[16]
    char version[48]
    char staged[48]
    char previous[48]
    char address[128]
    char refused[512]
    Counters now
    Counters before

cdef struct Place:
    uint64_t sequence           # odd while the holder writes
    Info info

cdef class Seat:
    cdef Info info
    cdef Info outgoing
    cdef uint64_t ring[RING_SIZE]
    cdef uint64_t pairs[PAIR_WORDS]       # ids that were paired since the switch, by their hashes
    cdef uint64_t copied        # ids of the ring that are in the file
    cdef Place *shared          # NULL: nobody sees this seat
    cdef uint64_t *shared_ring
    cdef uint8_t[::1] mapping
    cdef object writing
    cdef str path
    cdef str version
    cdef str before
    cdef int descriptor
    cdef readonly int place

    cdef Counters *counters(self, str version) noexcept     # NULL: neither the version in force nor the one before
    cdef _claim(self)
    cdef _give_back(self)


cdef inline void remember(Seat seat, uint64_t profile_id) noexcept:
    seat.ring[seat.info.ids % RING_SIZE] = profile_id
    seat.info.ids += 1


cdef inline void count_hundredths(Counters *counters, uint64_t hundredths) noexcept nogil:
    counters.scored += 1
    counters.lowest += hundredths == LOWEST
    counters.hundredths += hundredths
    counters.squares += hundredths * hundredths
