from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from kserve._core cimport Snapshot
from kserve._view cimport View
from kserve.layout cimport LINE_SLOTS, Line

cdef enum:
    CHUNK_LINES = 64            # taken from step to step; what is noted of them stays near
    CHUNK_SLOTS = 64 * LINE_SLOTS
    POINTS = 101
    N_NETWORKS = 4
    N_MEASURES = 4
    VALUES = 1 << 16

cdef struct Head:
    uint64_t sum                # of the scores of a group, in hundredths
    uint64_t hash               # of its name

cdef struct Groups:            # by the number of a location, topic or network
    uint16_t *bins              # POINTS for each: profiles by whole points of the score; those of bin 0 have none
    uint32_t *carries           # likewise: how often the bin overflowed
    Head *heads

cdef struct Chunk:              # profiles of one snapshot, and what the steps note of them
    int n
    uint64_t slots[CHUNK_SLOTS]
    uint64_t ids[CHUNK_SLOTS]
    uint64_t mixed[CHUNK_SLOTS]         # mix(id)
    uint64_t sums[CHUNK_SLOTS]          # what the digest takes besides the id
    uint16_t scores[CHUNK_SLOTS]
    uint16_t counted[CHUNK_SLOTS]       # the score, 0 without one
    uint16_t points[CHUNK_SLOTS]        # whole ones, 0 without a score
    uint32_t locations[CHUNK_SLOTS]
    uint8_t topics[CHUNK_SLOTS]         # how many
    uint8_t networks[CHUNK_SLOTS]       # bit by network
    uint64_t least_topics[CHUNK_SLOTS]  # of the hashes of the topics' names
    uint64_t most_topics[CHUNK_SLOTS]
    uint64_t least_near[CHUNK_SLOTS][2]  # ids of influencers, and of influencees; UINT64_MAX without any
    uint64_t most_near[CHUNK_SLOTS][2]
    uint32_t identities[CHUNK_SLOTS][N_NETWORKS]    # hashes of what is known by

cdef struct Tally:              # of one snapshot
    const View *view
    uint64_t n_locations        # valid location numbers are below this; topic numbers likewise
    uint64_t n_topics
    uint32_t *scores            # by the score as it is kept, any uint16
    uint64_t *nulls             # by the place in COLUMNS
    uint32_t *details           # by the fields that are present
    uint32_t *measures          # VALUES for each of MEASURES: by the low 16 bits
    Groups regions
    Groups topics
    Groups networks
    uint64_t *lanes             # of the digest


cdef class Census:
    cdef Tally tally
    cdef readonly Snapshot snapshot
    cdef readonly object scores, nulls, details, measures, regions, topics, networks, lanes


cdef int refuse(Snapshot snapshot, int fault) except -1
cdef void *address(array) except? NULL
cdef void list_profiles(const View *view, uint64_t line, uint64_t last_line, Chunk *chunk) noexcept nogil
cdef int observe(Tally *tally, Chunk *chunk) noexcept nogil


cdef inline void take(const View *view, uint64_t slot, Chunk *chunk, int at) noexcept nogil:
    cdef const Line *line = &view.lines[slot // LINE_SLOTS]
    chunk.slots[at] = slot
    chunk.ids[at] = line.ids[slot % LINE_SLOTS]
    chunk.scores[at] = line.scores[slot % LINE_SLOTS]
