from libc.stdint cimport int64_t, uint64_t

from kserve._view cimport View
from kserve.layout cimport KnownAnswer

cdef struct Expected:
    uint64_t profiles
    uint64_t scored
    uint64_t identities
    uint64_t n_topics
    uint64_t n_locations
    const KnownAnswer *known
    uint64_t n_known

cdef int check_view(const View *view, const Expected *expected, uint64_t *slot) noexcept nogil
