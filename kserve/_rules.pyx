"""A rule compiled against one snapshot: what each criterion means, for one profile and for all of them.

``failures`` is the meaning. A scan only skips, 64 profiles at a time, whom it would refuse anyway: by the two columns
that almost every rule looks at.
"""

import math

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from kserve._view cimport View, lowest_bit, prefetch, topic_range
from kserve.layout cimport (
    BLOCK_SLOTS,
    EMPTY,
    HIGHEST_SCORE,
    LINE_SLOTS,
    UNKNOWN_CHANGE,
    UNKNOWN_COUNT,
    UNKNOWN_LOCATION,
    UNSCORED,
    Line,
)

cdef enum:
    CHUNK_BLOCKS = 32           # blocks of 64 slots that a scan takes from criterion to criterion
    CHUNK_SLOTS = 32 * 64
    NO_SCORE = 0xFFFE           # between the highest score and UNSCORED
    MANY_IN_BLOCK = 24          # profiles of a block from which on looking at all its locations is faster

__all__ = ["CRITERIA", "CompiledRule", "hundredths_at_least"]

CRITERIA = (
    "min_score",
    "max_score",
    "locations",
    "any_topics",
    "all_topics",
    "min_day_change",
    "min_week_change",
    "min_month_change",
    "min_network_score",
    "min_amplification",
    "min_true_reach",
)

cdef extern from *:
    """
    #if defined(__SSE2__)
    #include <emmintrin.h>
    static inline uint64_t kserve_within(const uint16_t *values, uint16_t low, uint16_t span) {
        const __m128i lows = _mm_set1_epi16((short)low), spans = _mm_set1_epi16((short)span);
        const __m128i zero = _mm_setzero_si128();
        uint64_t bits = 0;
        for (int i = 0; i < 4; i++) {
            const __m128i *at = (const __m128i *)(values + 16 * i);
            __m128i a = _mm_subs_epu16(_mm_sub_epi16(_mm_loadu_si128(at), lows), spans);
            __m128i b = _mm_subs_epu16(_mm_sub_epi16(_mm_loadu_si128(at + 1), lows), spans);
            __m128i in = _mm_packs_epi16(_mm_cmpeq_epi16(a, zero), _mm_cmpeq_epi16(b, zero));
            bits |= (uint64_t)(uint16_t)_mm_movemask_epi8(in) << (16 * i);
        }
        return bits;
    }
    #else
    static inline uint64_t kserve_within(const uint16_t *values, uint16_t low, uint16_t span) {
        uint64_t bits = 0;
        for (int i = 0; i < 64; i++)
            bits |= (uint64_t)((uint16_t)(values[i] - low) <= span) << i;
        return bits;
    }
    #endif
    static inline uint64_t kserve_allowed(const uint32_t *values, const uint8_t *allowed, uint64_t n) {
        uint64_t bits = 0;
        for (int i = 0; i < 64; i++)
            bits |= (uint64_t)allowed[values[i] < n ? values[i] : 0] << i;
        return bits;
    }
    #define kserve_popcount(bits) __builtin_popcountll(bits)
    """
    # Bit i of the answer: low <= values[i] <= low + span, of 64 values.
    uint64_t within "kserve_within"(const uint16_t *values, uint16_t low, uint16_t span) noexcept nogil
    # Bit i of the answer: location values[i] is allowed, of 64 values. `allowed` has n entries.
    uint64_t allowed_in "kserve_allowed"(const uint32_t *values, const uint8_t *allowed, uint64_t n) noexcept nogil
    int popcount "kserve_popcount"(uint64_t bits) noexcept nogil


cdef class CompiledRule:
    """Made by ``Snapshot``, which knows its own topics and locations, and valid for that snapshot alone.

    ``topic_bits``: uint32 by topic number: bit 0 for any_topics, bit i + 1 for all_topics[i].
    ``allowed_locations``: uint8 by location number. None when the rule has no such criterion.
    """

    def __init__(self, rule, topic_bits, allowed_locations):
        self.topic_bits = topic_bits
        self.allowed_locations = allowed_locations
        self.criteria.topics = NULL if topic_bits is None else &self.topic_bits[0]
        self.criteria.n_topics = 0 if topic_bits is None else self.topic_bits.shape[0]
        self.criteria.locations = NULL if allowed_locations is None else &self.allowed_locations[0]
        self.criteria.n_locations = 0 if allowed_locations is None else self.allowed_locations.shape[0]
        self.criteria.topics_needed = (1 << (len(rule.all_topics) + 1)) - 2
        changes = (rule.min_day_change, rule.min_week_change, rule.min_month_change)
        asked = (
            rule.min_score is not None, rule.max_score is not None, allowed_locations is not None,
            rule.any_topics, rule.all_topics, *(change is not None for change in changes),
            rule.min_network_score is not None, rule.min_amplification is not None, rule.min_true_reach is not None,
        )
        self.criteria.asked = sum(1 << i for i, present in enumerate(asked) if present)
        self.criteria.lowest = max(hundredths_at_least(rule.min_score), 1)
        self.criteria.highest = UNSCORED - 1 if rule.max_score is None else math.floor(round(rule.max_score * 100, 6))
        self.criteria.topic_score_asked = rule.min_topic_score is not None
        self.criteria.lowest_topic = hundredths_at_least(rule.min_topic_score)
        for i, change in enumerate(changes):
            self.criteria.lowest_changes[i] = hundredths_at_least(change)
        self.criteria.lowest_network = hundredths_at_least(rule.min_network_score)
        self.criteria.lowest_amplification = hundredths_at_least(rule.min_amplification)
        self.criteria.lowest_reach = rule.min_true_reach or 0

    cdef uint32_t failures(self, const View *view, uint64_t slot) noexcept nogil:
        """Bits of the criteria that the profile in this slot does not meet. What is unknown of it meets none."""
        cdef const Criteria *rule = &self.criteria
        cdef uint32_t failed = 0
        if rule.asked & (MIN_SCORE | MAX_SCORE):
            failed |= failed_score(view.scores[slot], rule)
        if rule.asked & LOCATION and (view.locations == NULL or not is_allowed(rule, view.locations[slot])):
            failed |= LOCATION
        if rule.asked & (ANY_TOPICS | ALL_TOPICS):
            failed |= failed_topics(view, rule, slot)
        if rule.asked & CHANGES:
            failed |= failed_changes(view, rule, slot)
        if rule.asked & NETWORK_SCORE and fails_column(view.network_scores, slot, rule.lowest_network):
            failed |= NETWORK_SCORE
        if rule.asked & AMPLIFICATION and fails_column(view.amplifications, slot, rule.lowest_amplification):
            failed |= AMPLIFICATION
        if rule.asked & TRUE_REACH and (
            view.true_reaches == NULL
            or view.true_reaches[slot] == UNKNOWN_COUNT
            or view.true_reaches[slot] < rule.lowest_reach
        ):
            failed |= TRUE_REACH
        return failed & (rule.asked | DAMAGED)

    cdef int64_t scan(
        self, const View *view, uint64_t first_block, uint64_t last_block, uint64_t *by_rank
    ) noexcept nogil:
        """How many profiles of these blocks are eligible, and how many by rank (see `rank_of`); -1: damaged file."""
        cdef uint16_t eligible[CHUNK_SLOTS]
        cdef uint64_t bits[CHUNK_BLOCKS]
        cdef uint64_t block = first_block, n
        cdef int64_t total = 0, found, i
        while block < last_block:
            n = min(<uint64_t>CHUNK_BLOCKS, last_block - block)
            if by_rank == NULL and not self.criteria.asked & ~<uint32_t>(MIN_SCORE | MAX_SCORE):
                found = within_scores(view, &self.criteria, block, n, bits)
            else:
                found = find_eligible(self, view, block, n, eligible)
            if found < 0:
                return -1
            total += found
            if by_rank != NULL:
                for i in range(found):
                    by_rank[rank_of(view.scores[block * BLOCK_SLOTS + eligible[i]])] += 1
            block += n
        return total

    cdef int64_t gather(
        self, const View *view, uint16_t lowest_rank, uint64_t *ids, uint16_t *ranks, uint64_t room
    ) noexcept nogil:
        """The eligible profiles of that rank or more, at most `room`; how many, or -1: damaged file."""
        cdef uint16_t eligible[CHUNK_SLOTS]
        cdef uint64_t blocks = view.slots // BLOCK_SLOTS
        cdef uint64_t block = 0, total = 0, n, slot
        cdef int64_t found, i
        while block < blocks:
            n = min(<uint64_t>CHUNK_BLOCKS, blocks - block)
            found = find_eligible(self, view, block, n, eligible)
            if found < 0:
                return -1
            for i in range(found):
                slot = block * BLOCK_SLOTS + eligible[i]
                if rank_of(view.scores[slot]) >= lowest_rank and total < room:
                    ids[total] = view.lines[slot // LINE_SLOTS].ids[slot % LINE_SLOTS]
                    ranks[total] = rank_of(view.scores[slot])
                    total += 1
            block += n
        return <int64_t>total


cdef inline uint16_t rank_of(uint16_t score) noexcept nogil:
    # Whom to select first: the highest score; the unscored last.
    return 0 if score > HIGHEST_SCORE else score


cdef inline bint fails_column(const uint16_t *column, uint64_t at, uint16_t lowest) noexcept nogil:
    return column == NULL or column[at] == UNSCORED or column[at] < lowest


cdef inline uint32_t failed_score(uint16_t score, const Criteria *rule) noexcept nogil:
    if score == UNSCORED or score == EMPTY:
        return MIN_SCORE | MAX_SCORE
    return (MIN_SCORE if score < rule.lowest else 0) | (MAX_SCORE if score > rule.highest else 0)


cdef uint32_t failed_changes(const View *view, const Criteria *rule, uint64_t slot) noexcept nogil:
    cdef const Line *line = &view.lines[slot // LINE_SLOTS]
    cdef uint32_t failed = 0
    cdef int period
    cdef int change
    for period in range(3):
        change = line.changes[period][slot % LINE_SLOTS]
        if change == UNKNOWN_CHANGE or change < rule.lowest_changes[period]:
            failed |= <uint32_t>DAY_CHANGE << period
    return failed


cdef uint32_t failed_topics(const View *view, const Criteria *rule, uint64_t slot) noexcept nogil:
    cdef uint64_t start, stop
    if view.topic_counts == NULL:
        return ANY_TOPICS | ALL_TOPICS
    if topic_range(view, slot, &start, &stop) != 0:
        return DAMAGED
    return failed_entries(view, rule, start, stop)


cdef inline uint32_t failed_entries(
    const View *view, const Criteria *rule, uint64_t start, uint64_t stop
) noexcept nogil:
    cdef uint64_t entry
    cdef uint32_t met = 0
    for entry in range(start, stop):
        if view.topic_ids[entry] >= rule.n_topics:
            return DAMAGED
        if rule.topic_score_asked and fails_column(view.topic_scores, entry, rule.lowest_topic):
            continue
        met |= rule.topics[view.topic_ids[entry]]
    return (0 if met & 1 else ANY_TOPICS) | (0 if met & rule.topics_needed == rule.topics_needed else ALL_TOPICS)


cdef inline bint is_allowed(const Criteria *rule, uint32_t location) noexcept nogil:
    return rule.locations[location if location < rule.n_locations else UNKNOWN_LOCATION]


cdef int64_t find_eligible(
    CompiledRule self, const View *view, uint64_t first_block, uint64_t n, uint16_t *eligible
) noexcept nogil:
    """Who is eligible in n blocks, at most CHUNK_BLOCKS, as slots from the first on; how many, or -1: damaged file.

    One criterion after the other over the whole chunk, each asking for the memory that the next one will read, and
    without a branch that depends on one profile's score or location.
    """
    cdef const Criteria *rule = &self.criteria
    cdef uint64_t bits[CHUNK_BLOCKS]
    cdef uint64_t first_slot = first_block * BLOCK_SLOTS
    cdef int64_t found = within_scores(view, rule, first_block, n, bits)
    cdef bint many = found > <int64_t>(n * MANY_IN_BLOCK)
    cdef uint64_t block
    if rule.asked & LOCATION and view.locations == NULL:
        return 0
    if rule.asked & LOCATION and many:
        for block in range(n):
            bits[block] &= allowed_in(
                &view.locations[first_slot + block * BLOCK_SLOTS], rule.locations, rule.n_locations
            )
    found = listed(bits, n, view.locations + first_slot if rule.asked & LOCATION and not many else NULL, eligible)
    if rule.asked & LOCATION and not many:
        found = keep_allowed(view.locations + first_slot, rule, eligible, found)
    if rule.asked & (ANY_TOPICS | ALL_TOPICS):
        found = keep_with_topics(view, rule, first_slot, eligible, found)
    if found > 0 and rule.asked & ~<uint32_t>(MIN_SCORE | MAX_SCORE | LOCATION | ANY_TOPICS | ALL_TOPICS):
        found = keep_meeting_all(self, view, first_slot, eligible, found)
    return found


cdef inline int64_t within_scores(
    const View *view, const Criteria *rule, uint64_t first_block, uint64_t n, uint64_t *bits
) noexcept nogil:
    cdef uint16_t low = EMPTY + 1, span = UNSCORED - 1
    cdef uint64_t block
    cdef int64_t found = 0
    if rule.asked & (MIN_SCORE | MAX_SCORE):
        low, span = rule.lowest, rule.highest - rule.lowest
        if rule.lowest > rule.highest:
            low, span = NO_SCORE, 0
    for block in range(n):
        bits[block] = within(&view.scores[(first_block + block) * BLOCK_SLOTS], low, span)
        found += popcount(bits[block])
    return found


cdef inline int64_t listed(
    const uint64_t *bits, uint64_t n, const uint32_t *locations, uint16_t *slots
) noexcept nogil:
    """The set bits as slots; their `locations` (NULL: of no interest) are asked for."""
    cdef uint64_t block, rest
    cdef int64_t found = 0
    for block in range(n):
        rest = bits[block]
        while rest:
            slots[found] = <uint16_t>(block * BLOCK_SLOTS + lowest_bit(rest))
            prefetch(locations + slots[found])
            found += 1
            rest &= rest - 1
    return found


cdef inline int64_t keep_allowed(
    const uint32_t *locations, const Criteria *rule, uint16_t *slots, int64_t found
) noexcept nogil:
    cdef int64_t i, kept = 0
    for i in range(found):
        slots[kept] = slots[i]
        kept += is_allowed(rule, locations[slots[i]])
    return kept


cdef inline int64_t keep_with_topics(
    const View *view, const Criteria *rule, uint64_t first_slot, uint16_t *slots, int64_t found
) noexcept nogil:
    cdef uint64_t starts[CHUNK_SLOTS]
    cdef uint64_t stops[CHUNK_SLOTS]
    cdef uint32_t failed
    cdef int64_t i, kept = 0
    if view.topic_counts == NULL:
        return 0
    for i in range(found):
        prefetch(&view.topic_counts[first_slot + slots[i]])
        prefetch(&view.topic_starts[(first_slot + slots[i]) // LINE_SLOTS])
    for i in range(found):
        if topic_range(view, first_slot + slots[i], &starts[i], &stops[i]) != 0:
            return -1
        prefetch(&view.topic_ids[starts[i]])
    for i in range(found):
        failed = failed_entries(view, rule, starts[i], stops[i])
        if failed & DAMAGED:
            return -1
        slots[kept] = slots[i]
        kept += not failed & rule.asked
    return kept


cdef inline int64_t keep_meeting_all(
    CompiledRule self, const View *view, uint64_t first_slot, uint16_t *slots, int64_t found
) noexcept nogil:
    cdef uint32_t failed
    cdef int64_t i, kept = 0
    for i in range(found):
        prefetch(&view.lines[(first_slot + slots[i]) // LINE_SLOTS])
    for i in range(found):
        failed = self.failures(view, first_slot + slots[i])
        if failed & DAMAGED:
            return -1
        slots[kept] = slots[i]
        kept += not failed
    return kept


def hundredths_at_least(points):
    """The smallest number of hundredths that is not below this many points; 0 for None."""
    return 0 if points is None else math.ceil(round(points * 100, 6))
