"""What a snapshot holds, counted in one pass over the file.

Profiles are taken by chunks, from step to step, so that each step is a short loop and asks for the memory of its next
turn. Counts by group are 32 bits wide, and no range of slots is longer than 2^31, so none of them overflows.
"""

import numpy as np
import xxhash

from libc.stdint cimport UINT64_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from kserve._core cimport Snapshot
from kserve._view cimport Detail, View, prefetch, prefetch_write, read_detail, topic_range
from kserve.layout cimport *

__all__ = ["COLUMNS", "HEAD", "MEASURES", "RANGE_SLOTS", "Census", "add_rows", "describe", "first_slots", "roll_up"]

cdef enum:
    DETAIL_MASKS = 1 << (INFLUENCEE_COUNT + 1)
    AHEAD = 16                  # profiles whose lines are asked for before they are described

cdef enum:                     # columns whose nulls are counted one by one, as in COLUMNS
    NULL_CHANGES = 0
    NULL_TOPICS = 3
    NULL_NETWORK_SCORE = 4
    NULL_AMPLIFICATION = 5
    NULL_TRUE_REACH = 6

cdef enum:                     # what `observe` finds
    BAD_SCORE = 1
    BAD_LOCATION = 2
    BAD_TOPIC_RANGE = 3
    BAD_TOPIC = 4
    BAD_DETAIL = 5

cdef extern from *:
    """
    #define KSERVE_SCORE_FACTOR UINT64_C(0x9E3779B97F4A7C15)
    #define KSERVE_FIRST_LANE UINT64_C(0xA0761D6478BD642F)
    #define KSERVE_SECOND_LANE UINT64_C(0xE7037ED1A0B428DB)
    #define KSERVE_THIRD_LANE UINT64_C(0x8EBC6AF09C88C6E3)
    #define KSERVE_FOURTH_LANE UINT64_C(0x589965CC75374CC3)
    static inline uint64_t kserve_folded(uint64_t a, uint64_t b) {
        const unsigned __int128 product = (unsigned __int128)a * b;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    """
    const uint64_t SCORE_FACTOR "KSERVE_SCORE_FACTOR"       # odd numbers without a pattern, most of wyhash
    const uint64_t FIRST_LANE "KSERVE_FIRST_LANE"
    const uint64_t SECOND_LANE "KSERVE_SECOND_LANE"
    const uint64_t THIRD_LANE "KSERVE_THIRD_LANE"
    const uint64_t FOURTH_LANE "KSERVE_FOURTH_LANE"
    # Both halves of the product, folded: wyhash's step.
    uint64_t folded "kserve_folded"(uint64_t a, uint64_t b) noexcept nogil

COLUMNS = ("day_change", "week_change", "month_change", "topics", "network_score", "amplification", "true_reach")
MEASURES = ("network_score", "amplification", "true_reach", "topics")
HEAD = np.dtype({"names": ["sum", "hash"], "formats": ["u8", "u8"], "itemsize": sizeof(Head)})
RANGE_SLOTS = 1 << 31

FAULTS = {
    BAD_SCORE: ("scores", "a score outside 1.00 to 100.00"),
    BAD_LOCATION: ("locations", "a number outside the table"),
    BAD_TOPIC_RANGE: ("topics", "entries outside their section"),
    BAD_TOPIC: ("topics", "a number outside the table"),
    BAD_DETAIL: ("details", "a record outside its section"),
}


def groups(n, names=()):
    """Of n groups: bins, carries, heads; see the stub. Names are those of the last groups."""
    heads = np.zeros(n, dtype=HEAD)
    heads["hash"][n - len(names):] = [xxhash.xxh3_64_intdigest(name.encode()) for name in names]
    return np.zeros((n, POINTS), dtype=np.uint16), np.zeros((n, POINTS), dtype=np.uint32), heads


def groups_like(others):
    heads = np.zeros_like(others[2])
    heads["hash"] = others[2]["hash"]
    return np.zeros_like(others[0]), np.zeros_like(others[1]), heads


cdef int point(Groups *to, arrays) except -1:
    bins, carries, heads = arrays
    to.bins, to.carries = <uint16_t *>address(bins), <uint32_t *>address(carries)
    to.heads = <Head *>address(heads)
    return 0


cdef class Census:
    """Counts of a snapshot, or of a part of it; see the stub."""

    def __init__(self, Snapshot snapshot not None, Census like=None):
        words = snapshot.vocabulary
        self.snapshot = snapshot
        self.scores = np.zeros(1 << 16, dtype=np.uint32)
        self.nulls = np.zeros(len(COLUMNS), dtype=np.uint64)
        self.details = np.zeros(DETAIL_MASKS, dtype=np.uint32)
        self.measures = np.zeros((N_MEASURES, VALUES), dtype=np.uint32)
        self.regions = groups(len(words.locations) + 1, words.locations) if like is None else groups_like(like.regions)
        self.topics = groups(len(words.slugs) + 1, words.slugs) if like is None else groups_like(like.topics)
        self.networks = groups(N_NETWORKS)
        self.lanes = np.zeros(2, dtype=np.uint64)
        self._point(len(words.locations) + 1, len(words.slugs) + 1)

    def _point(self, n_locations, n_topics):
        cdef Tally *tally = &self.tally
        tally.view = &self.snapshot.view
        tally.n_locations, tally.n_topics = n_locations, n_topics
        tally.scores = <uint32_t *>address(self.scores)
        tally.nulls = <uint64_t *>address(self.nulls)
        tally.details = <uint32_t *>address(self.details)
        tally.measures = <uint32_t *>address(self.measures)
        point(&tally.regions, self.regions)
        point(&tally.topics, self.topics)
        point(&tally.networks, self.networks)
        tally.lanes = <uint64_t *>address(self.lanes)

    def count(self, uint64_t first_block, uint64_t last_block):
        cdef const View *view = self.tally.view
        cdef uint64_t line = first_block * (BLOCK_SLOTS // LINE_SLOTS)
        cdef uint64_t last_line = min(last_block * (BLOCK_SLOTS // LINE_SLOTS), view.n_lines)
        cdef Chunk chunk
        cdef int fault = 0
        with nogil:
            while line < last_line and not fault:
                list_profiles(view, line, min(line + CHUNK_LINES, last_line), &chunk)
                fault = observe(&self.tally, &chunk)
                line += CHUNK_LINES
        refuse(self.snapshot, fault)


cdef int refuse(Snapshot snapshot, int fault) except -1:
    if fault:
        raise snapshot._bad(*FAULTS[fault])
    return 0


cdef void *address(array) except? NULL:
    """Where the elements of a contiguous array lie; NULL when it has none."""
    cdef uint8_t[::1] content = array.reshape(-1).view(np.uint8)
    return NULL if content.shape[0] == 0 else &content[0]


cdef void list_profiles(const View *view, uint64_t line, uint64_t last_line, Chunk *chunk) noexcept nogil:
    """All profiles of these lines, without a branch for each."""
    cdef uint64_t slot
    cdef int i, n = 0
    for slot in range(line * LINE_SLOTS, last_line * LINE_SLOTS):
        take(view, slot, chunk, n)
        n += chunk.scores[n] != EMPTY
    for i in range(n):
        chunk.mixed[i] = mix(chunk.ids[i])
    chunk.n = n


cdef int observe(Tally *tally, Chunk *chunk) noexcept nogil:
    """Count the profiles of a chunk, and note what is asked of them later; 0 or a Fault."""
    cdef int fault
    fault = count_scores(tally.scores, chunk)
    if fault == 0:
        fault = count_locations(tally, chunk)
    if fault == 0:
        fault = count_topics(tally, chunk)
    if fault == 0:
        fault = count_details(tally, chunk)
    count_nulls(tally, chunk)
    add_to_digest(tally, chunk)
    return fault


cdef int count_scores(uint32_t *scores, Chunk *chunk) noexcept nogil:
    cdef uint16_t score, bad = 0
    cdef int i
    for i in range(chunk.n):
        score = chunk.scores[i]
        chunk.counted[i] = score if score <= HIGHEST_SCORE else 0
        chunk.points[i] = chunk.counted[i] // 100
        bad |= (chunk.points[i] == 0) & (score != UNSCORED)
    for i in range(chunk.n):
        scores[chunk.scores[i]] += 1
        chunk.sums[i] = chunk.scores[i] * SCORE_FACTOR
    return BAD_SCORE if bad else 0


cdef inline void count_in(const Groups *of, uint64_t group, const Chunk *chunk, int i) noexcept nogil:
    cdef uint64_t at = group * POINTS + chunk.points[i]
    of.bins[at] += 1
    if of.bins[at] == 0:
        of.carries[at] += 1
    of.heads[group].sum += chunk.counted[i]


cdef int count_locations(Tally *tally, Chunk *chunk) noexcept nogil:
    cdef const uint32_t *locations = tally.view.locations
    cdef Groups regions = tally.regions
    cdef uint32_t location
    cdef int i
    if locations == NULL:
        memset(chunk.locations, 0, chunk.n * sizeof(uint32_t))
        return 0
    for i in range(chunk.n):
        location = locations[chunk.slots[i]]
        if location >= tally.n_locations:
            return BAD_LOCATION
        chunk.locations[i] = location
        prefetch_write(&regions.bins[location * <uint64_t>POINTS + chunk.points[i]])
        prefetch_write(&regions.heads[location])
    for i in range(chunk.n):
        count_in(&regions, chunk.locations[i], chunk, i)
        chunk.sums[i] ^= regions.heads[chunk.locations[i]].hash
    return 0


cdef int count_topics(Tally *tally, Chunk *chunk) noexcept nogil:
    cdef const View *view = tally.view
    cdef Groups topics = tally.topics
    cdef uint64_t start, stop, entry, topic, empty = 0
    cdef uint16_t score
    cdef int i
    if view.topic_counts == NULL:
        memset(chunk.topics, 0, chunk.n)
        return 0
    for i in range(chunk.n):
        chunk.topics[i] = view.topic_counts[chunk.slots[i]]
        empty += chunk.topics[i] == 0
    tally.nulls[NULL_TOPICS] += empty
    for i in range(chunk.n):
        if topic_range(view, chunk.slots[i], &start, &stop) != 0:
            return BAD_TOPIC_RANGE
        chunk.least_topics[i], chunk.most_topics[i] = UINT64_MAX, 0
        for entry in range(start, stop):
            topic = view.topic_ids[entry]
            if not 1 <= topic < tally.n_topics:
                return BAD_TOPIC
            count_in(&topics, topic, chunk, i)
            chunk.least_topics[i] = min(chunk.least_topics[i], topics.heads[topic].hash)
            chunk.most_topics[i] = max(chunk.most_topics[i], topics.heads[topic].hash)
            score = UNSCORED if view.topic_scores == NULL else view.topic_scores[entry]
            chunk.sums[i] += mix(topics.heads[topic].hash ^ score)
            tally.measures[3 * VALUES + score] += 1
    return 0


cdef int count_details(Tally *tally, Chunk *chunk) noexcept nogil:
    cdef const View *view = tally.view
    cdef Detail detail
    cdef int i, network
    if view.detail_starts == NULL:
        memset(chunk.networks, 0, chunk.n)
        memset(chunk.least_near, 0xFF, chunk.n * sizeof(chunk.least_near[0]))
        return 0
    for i in range(chunk.n):
        if not has_record(view, chunk.slots[i]):
            return BAD_DETAIL
        prefetch(view.details + view.detail_starts[chunk.slots[i]])
    for i in range(chunk.n):
        if read_detail(view, chunk.slots[i], &detail) != 0:
            return BAD_DETAIL
        tally.details[detail.present & (DETAIL_MASKS - 1)] += 1
        chunk.networks[i] = networks_of(detail.present)
        chunk.sums[i] += note_identities(&detail, chunk.identities[i])
        note_influence(&detail, chunk.least_near[i], chunk.most_near[i])
        for network in range(N_NETWORKS):
            if chunk.networks[i] >> network & 1:
                count_in(&tally.networks, network, chunk, i)
    return 0


cdef inline uint64_t note_identities(const Detail *detail, uint32_t *hashes) noexcept nogil:
    """One hash for each network, and one of all together."""
    cdef uint64_t hashed, together = 0
    cdef int field
    hashes[0] = hashes[1] = hashes[2] = hashes[3] = 0
    for field in range(TW_ID, IG_ID + 1):
        if detail.present >> field & 1:
            hashed = identity_hash(field, detail.texts[field], detail.text_lengths[field], field == TW_NAME)
            hashes[0 if field <= TW_NAME else field - TW_NAME] ^= <uint32_t>hashed
            together += hashed
    return together


cdef inline void note_influence(const Detail *detail, uint64_t *least, uint64_t *most) noexcept nogil:
    """The ends of each list."""
    cdef int which, i
    for which in range(2):
        least[which], most[which] = UINT64_MAX, 0
        for i in range(detail.list_lengths[which]):
            least[which] = min(least[which], detail.lists[which][i])
            most[which] = max(most[which], detail.lists[which][i])


cdef inline bint has_record(const View *view, uint64_t slot) noexcept nogil:
    """Whether the first two bytes of a record lie in the section; a profile may do without a record."""
    cdef uint64_t start = view.detail_starts[slot]
    return start == 0 or start < view.details_length


cdef inline uint32_t present_fields(const View *view, uint64_t slot) noexcept nogil:
    """Bits by DetailField, from the first two bytes of the record, which must be there."""
    cdef uint64_t start = view.detail_starts[slot]
    if start == 0:
        return 0
    return (view.details[start - 1] | <uint32_t>view.details[start] << 8) & (DETAIL_MASKS - 1)


cdef inline uint8_t networks_of(uint32_t present) noexcept nogil:
    """Bits by network; that of tw is set for an id or a name."""
    return (present >> TW_ID & 1) | (present >> TW_NAME & 1) | (present >> GP_ID & 7) << 1


cdef void count_nulls(Tally *tally, const Chunk *chunk) noexcept nogil:
    cdef const View *view = tally.view
    cdef const Line *line
    cdef uint64_t unknown[3]
    cdef int i, period
    unknown[0] = unknown[1] = unknown[2] = 0
    for i in range(chunk.n):
        line = &view.lines[chunk.slots[i] // LINE_SLOTS]
        for period in range(3):
            unknown[period] += line.changes[period][chunk.slots[i] % LINE_SLOTS] == UNKNOWN_CHANGE
    for period in range(3):
        tally.nulls[NULL_CHANGES + period] += unknown[period]
    if view.network_scores != NULL:
        for i in range(chunk.n):
            tally.nulls[NULL_NETWORK_SCORE] += view.network_scores[chunk.slots[i]] == UNSCORED
            tally.measures[view.network_scores[chunk.slots[i]]] += 1
    if view.amplifications != NULL:
        for i in range(chunk.n):
            tally.nulls[NULL_AMPLIFICATION] += view.amplifications[chunk.slots[i]] == UNSCORED
            tally.measures[VALUES + view.amplifications[chunk.slots[i]]] += 1
    if view.true_reaches != NULL:
        for i in range(chunk.n):
            tally.nulls[NULL_TRUE_REACH] += view.true_reaches[chunk.slots[i]] == UNKNOWN_COUNT
            tally.measures[2 * VALUES + view.true_reaches[chunk.slots[i]] % VALUES] += 1


cdef void add_to_digest(Tally *tally, const Chunk *chunk) noexcept nogil:
    """Sums know no order. Each lane folds id and all else in its own way."""
    cdef uint64_t first = 0, second = 0
    cdef int i
    for i in range(chunk.n):
        first += folded(chunk.mixed[i] ^ FIRST_LANE, chunk.sums[i] ^ SECOND_LANE)
        second += folded(chunk.mixed[i] ^ THIRD_LANE, chunk.sums[i] ^ FOURTH_LANE)
    tally.lanes[0] += first
    tally.lanes[1] += second


def first_slots(Snapshot snapshot not None, uint64_t limit):
    """uint64[n <= limit]: the slots of the first profiles, in the order of the file."""
    cdef const View *view = &snapshot.view
    cdef uint64_t[::1] slots = np.empty(min(limit, snapshot.profiles), dtype=np.uint64)
    cdef uint64_t slot, found = 0
    with nogil:
        for slot in range(view.slots):
            if found == <uint64_t>slots.shape[0]:
                break
            slots[found] = slot
            found += view.scores[slot] != EMPTY
    return np.asarray(slots)[:found]


def describe(Snapshot snapshot not None, const uint64_t[::1] slots):
    """Ids, scores, locations, networks and topic counts of n slots, and the topics of all of them; see the stub."""
    cdef const View *view = &snapshot.view
    cdef Py_ssize_t i, n = slots.shape[0]
    cdef uint64_t[::1] ids = np.empty(n, dtype=np.uint64)
    cdef uint16_t[::1] scores = np.empty(n, dtype=np.uint16)
    cdef uint32_t[::1] locations = np.zeros(n, dtype=np.uint32)
    cdef uint8_t[::1] networks = np.zeros(n, dtype=np.uint8)
    cdef uint8_t[::1] counts = np.zeros(n, dtype=np.uint8)
    cdef uint64_t slot, n_locations = len(snapshot.vocabulary.locations) + 1
    cdef int fault = 0
    with nogil:
        for i in range(n):
            if i + AHEAD < n:
                prefetch(&view.lines[slots[i + AHEAD] // LINE_SLOTS])
            slot = slots[i]
            ids[i] = view.lines[slot // LINE_SLOTS].ids[slot % LINE_SLOTS]
            scores[i] = view.lines[slot // LINE_SLOTS].scores[slot % LINE_SLOTS]
            if view.locations != NULL:
                locations[i] = view.locations[slot]
                fault = fault or (BAD_LOCATION if locations[i] >= n_locations else 0)
            if view.topic_counts != NULL:
                counts[i] = view.topic_counts[slot]
            if view.detail_starts != NULL:
                if not has_record(view, slot):
                    fault = BAD_DETAIL
                else:
                    networks[i] = networks_of(present_fields(view, slot))
    refuse(snapshot, fault)
    topics = topics_of(snapshot, slots, np.asarray(counts).sum(dtype=np.int64))
    return tuple(map(np.asarray, (ids, scores, locations, networks, counts, topics)))


cdef topics_of(Snapshot snapshot, const uint64_t[::1] slots, Py_ssize_t total):
    """uint16[total]: the topic numbers of the profiles in these slots."""
    cdef const View *view = &snapshot.view
    cdef uint16_t[::1] topics = np.empty(total, dtype=np.uint16)
    cdef uint64_t start, stop, entry, n_topics = len(snapshot.vocabulary.slugs) + 1
    cdef Py_ssize_t i, at = 0
    cdef int fault = 0
    if total:
        for i in range(slots.shape[0]):
            if topic_range(view, slots[i], &start, &stop) != 0:
                fault = BAD_TOPIC_RANGE
                break
            for entry in range(start, stop):
                topics[at] = view.topic_ids[entry]
                fault = fault or (BAD_TOPIC if not 1 <= topics[at] < n_topics else 0)
                at += 1
    refuse(snapshot, fault)
    return topics


def add_rows(const uint16_t[:, ::1] rows, const int64_t[::1] places, uint64_t[:, ::1] to):
    """Add every row to that of its place; a place below 0 is none."""
    cdef Py_ssize_t i, k
    with nogil:
        for i in range(rows.shape[0]):
            if places[i] >= 0:
                for k in range(rows.shape[1]):
                    to[places[i], k] += rows[i, k]


def roll_up(uint64_t[:, ::1] rows, const int64_t[::1] parents):
    """Add every row to that of its parent, which must come before it; a parent below 0 is none."""
    cdef Py_ssize_t i, k
    with nogil:
        for i in range(rows.shape[0] - 1, -1, -1):
            if parents[i] >= 0:
                for k in range(rows.shape[1]):
                    rows[parents[i], k] += rows[i, k]
