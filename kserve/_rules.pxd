from libc.stdint cimport int16_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from kserve._view cimport View

# A bit for each criterion that a rule can ask for and a profile can fail, in the order of CRITERIA in _rules.pyx.
cdef enum Criterion:
    MIN_SCORE = 1
    MAX_SCORE = 2
    LOCATION = 4
    ANY_TOPICS = 8
    ALL_TOPICS = 16
    DAY_CHANGE = 32             # shifted by 1 and 2: week and month
    CHANGES = 32 | 64 | 128
    NETWORK_SCORE = 256
    AMPLIFICATION = 512
    TRUE_REACH = 1024
    DAMAGED = 1 << 30           # the file, not the profile

cdef struct Criteria:
    uint32_t asked              # bits of Criterion
    uint16_t lowest             # score in hundredths, both ends included
    uint16_t highest
    const uint8_t *locations    # 1 by location number that the rule allows; NULL: every one, unknown too
    uint64_t n_locations        # valid location numbers are below this
    const uint32_t *topics      # by topic number: a bit for each topic criterion that it meets
    uint64_t n_topics           # valid topic numbers are below this
    uint32_t topics_needed
    bint topic_score_asked
    uint16_t lowest_topic
    int lowest_changes[3]
    uint16_t lowest_network
    uint16_t lowest_amplification
    uint32_t lowest_reach

cdef class CompiledRule:
    cdef Criteria criteria
    cdef uint8_t[::1] allowed_locations
    cdef uint32_t[::1] topic_bits

    cdef uint32_t failures(self, const View *view, uint64_t slot) noexcept nogil
    cdef int64_t scan(
        self, const View *view, uint64_t first_block, uint64_t last_block, uint64_t *by_rank
    ) noexcept nogil
    cdef int64_t gather(
        self, const View *view, uint16_t lowest_rank, uint64_t *ids, uint16_t *ranks, uint64_t room
    ) noexcept nogil
