"""What must hold inside a snapshot beyond its checksums: profiles where look-ups find them, numbers in their range."""

from libc.stdint cimport int64_t, uint16_t, uint64_t

from kserve._view cimport Detail, View, find_slot, read_detail, topic_range
from kserve.layout cimport (
    EMPTY,
    FINGERPRINT_BITS,
    HIGHEST_SCORE,
    IDENTITY_LINE,
    LINE_SLOTS,
    LOWEST_SCORE,
    MAX_TOPICS,
    UNKNOWN_CHANGE,
    UNSCORED,
    Line,
)

FAULTS = (
    "",
    "scores: a score outside 1.00 to 100.00",
    "scores: the column differs from the lines",
    "changes: a change beyond 99 points",
    "lines: a profile is not where a look-up finds it",
    "locations: a number outside the table",
    "topics: entries outside their section",
    "topics: a number outside the table",
    "details: a record outside its section",
    "counts: other numbers of profiles than the header says",
    "identities: an entry that points nowhere",
    "known answers: a look-up answers differently",
)
"""By the code that ``check_view`` returns; 0 is no fault."""

cdef enum:
    BAD_SCORE = 1
    BAD_COLUMN = 2
    BAD_CHANGE = 3
    BAD_PLACE = 4
    BAD_LOCATION = 5
    BAD_TOPIC_RANGE = 6
    BAD_TOPIC = 7
    BAD_DETAIL = 8
    BAD_COUNT = 9
    BAD_IDENTITY = 10
    BAD_ANSWER = 11


cdef int check_view(const View *view, const Expected *expected, uint64_t *slot) noexcept nogil:
    """0, or an index of FAULTS with the slot where it was seen."""
    cdef uint64_t profiles = 0, scored = 0, topic_entries = 0
    cdef uint16_t score
    cdef int fault
    for slot[0] in range(view.slots):
        score = view.lines[slot[0] // LINE_SLOTS].scores[slot[0] % LINE_SLOTS]
        if view.scores[slot[0]] != score:
            return BAD_COLUMN
        if score == EMPTY:
            continue
        fault = check_profile(view, expected, slot[0], &topic_entries)
        if fault:
            return fault
        profiles += 1
        scored += score != UNSCORED
    if profiles != expected.profiles or scored != expected.scored:
        return BAD_COUNT
    if view.topic_counts != NULL and topic_entries != view.topic_entries:
        return BAD_TOPIC_RANGE
    return check_identities(view, expected, slot) or check_known(view, expected)


cdef int check_profile(const View *view, const Expected *expected, uint64_t slot, uint64_t *entries) noexcept nogil:
    cdef const Line *line = &view.lines[slot // LINE_SLOTS]
    cdef uint64_t k = slot % LINE_SLOTS
    cdef uint64_t start, stop, entry
    cdef Detail detail
    cdef int period
    if line.scores[k] != UNSCORED and not LOWEST_SCORE <= line.scores[k] <= HIGHEST_SCORE:
        return BAD_SCORE
    for period in range(3):
        if line.changes[period][k] != UNKNOWN_CHANGE and not -HIGHEST_SCORE < line.changes[period][k] < HIGHEST_SCORE:
            return BAD_CHANGE
    if find_slot(view, line.ids[k]) != <int64_t>slot:
        return BAD_PLACE
    if view.locations != NULL and view.locations[slot] >= expected.n_locations:
        return BAD_LOCATION
    if view.detail_starts != NULL and read_detail(view, slot, &detail) != 0:
        return BAD_DETAIL
    if view.topic_counts == NULL:
        return 0
    if topic_range(view, slot, &start, &stop) != 0 or stop - start > MAX_TOPICS or start != entries[0]:
        return BAD_TOPIC_RANGE
    entries[0] = stop
    for entry in range(start, stop):
        if not 1 <= view.topic_ids[entry] < expected.n_topics:
            return BAD_TOPIC
    return 0


cdef int check_identities(const View *view, const Expected *expected, uint64_t *slot) noexcept nogil:
    cdef uint64_t at
    cdef uint64_t found = 0
    for at in range(view.identity_lines * IDENTITY_LINE):
        if view.identities[at] >> FINGERPRINT_BITS:
            slot[0] = (view.identities[at] >> FINGERPRINT_BITS) - 1
            if slot[0] >= view.slots or view.scores[slot[0]] == EMPTY:
                return BAD_IDENTITY
            found += 1
    return 0 if found == expected.identities else BAD_COUNT


cdef int check_known(const View *view, const Expected *expected) noexcept nogil:
    cdef uint64_t i
    cdef int64_t slot
    for i in range(expected.n_known):
        slot = find_slot(view, expected.known[i].id)
        if slot < 0 or view.scores[slot] != expected.known[i].score:
            return BAD_ANSWER
    return 0
