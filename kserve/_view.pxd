# Pointers into one mapped snapshot, and the reads that reader, writer and rules share. No Python objects, no I/O.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from kserve.layout cimport (
    EMPTY,
    FINGERPRINT_BITS,
    IDENTITY_LINE,
    INFLUENCEES,
    INFLUENCEE_COUNT,
    INFLUENCERS,
    INFLUENCER_COUNT,
    LINE_SLOTS,
    MAX_INFLUENCE,
    TEXT_FIELDS,
    TW_NAME,
    Line,
    fold,
    home_line,
    identity_hash,
    scale,
)

cdef enum:
    NOT_FOUND = -1
    LINE_FULL = -2

cdef struct View:
    const Line *lines
    uint64_t n_lines
    uint64_t slots
    uint64_t longest_probe
    const uint16_t *scores
    const uint32_t *locations
    const uint8_t *topic_counts
    const uint64_t *topic_starts
    const uint16_t *topic_ids
    const uint16_t *topic_scores
    uint64_t topic_entries
    const uint16_t *network_scores
    const uint16_t *amplifications
    const uint32_t *true_reaches
    const uint64_t *detail_starts
    const uint8_t *details
    uint64_t details_length
    const uint64_t *identities
    uint64_t identity_lines

cdef struct Detail:
    uint32_t present                # bit by DetailField
    const uint8_t *texts[TEXT_FIELDS]
    uint8_t text_lengths[TEXT_FIELDS]
    uint64_t lists[2][MAX_INFLUENCE]
    uint8_t list_lengths[2]
    uint32_t counts[2]


cdef extern from *:
    """
    #include <string.h>
    #define kserve_prefetch(address) __builtin_prefetch((address))
    #define kserve_prefetch_write(address) __builtin_prefetch((address), 1)

    #if defined(__SSE4_1__)
    #include <smmintrin.h>
    static inline int kserve_equal(const uint64_t *ids, uint64_t id) {
        const __m128i wanted = _mm_set1_epi64x((long long)id);
        const __m128i low = _mm_cmpeq_epi64(_mm_loadu_si128((const __m128i *)ids), wanted);
        const __m128i high = _mm_cmpeq_epi64(_mm_loadu_si128((const __m128i *)(ids + 2)), wanted);
        return _mm_movemask_pd(_mm_castsi128_pd(low)) | _mm_movemask_pd(_mm_castsi128_pd(high)) << 2;
    }
    #else
    static inline int kserve_equal(const uint64_t *ids, uint64_t id) {
        return (ids[0] == id) | (ids[1] == id) << 1 | (ids[2] == id) << 2 | (ids[3] == id) << 3;
    }
    #endif
    static inline uint64_t kserve_sum_before(const uint8_t counts[4], uint64_t k) {
        const uint32_t before[4] = {0, 0xFF, 0xFFFF, 0xFFFFFF};
        uint32_t word;
        memcpy(&word, counts, 4);
        word &= before[k];
        return ((word & 0xFF00FF) + (word >> 8 & 0xFF00FF)) * 0x10001u >> 16;
    }
    #define kserve_lowest_bit(bits) __builtin_ctzll(bits)
    """
    # Bit k of the answer: ids[k] == id, of the 4 ids of a line.
    int equal "kserve_equal"(const uint64_t *ids, uint64_t id) noexcept nogil
    # The sum of the first k, at most 3, of the 4 counts of a line.
    uint64_t sum_before "kserve_sum_before"(const uint8_t *counts, uint64_t k) noexcept nogil
    int lowest_bit "kserve_lowest_bit"(uint64_t bits) noexcept nogil
    void prefetch "kserve_prefetch"(const void *address) noexcept nogil
    void prefetch_write "kserve_prefetch_write"(const void *address) noexcept nogil


cdef inline int slot_in_line(const Line *line, uint64_t profile_id) noexcept nogil:
    # 0 to 3, NOT_FOUND if the look-up ends here, LINE_FULL if it goes on in the next line. Slots fill from the first
    # on, so the first match is the profile; empty slots, whose id is 0 too, come after it.
    cdef int matches = equal(line.ids, profile_id)
    if matches and line.scores[lowest_bit(matches)] != EMPTY:
        return lowest_bit(matches)
    return LINE_FULL if line.scores[LINE_SLOTS - 1] != EMPTY else NOT_FOUND


cdef inline int64_t find_from(const View *view, uint64_t profile_id, uint64_t line, uint64_t probes) noexcept nogil:
    cdef int k
    cdef uint64_t _probe
    for _probe in range(probes):
        k = slot_in_line(&view.lines[line], profile_id)
        if k >= 0:
            return <int64_t>(line * LINE_SLOTS + k)
        if k == NOT_FOUND:
            return NOT_FOUND
        line = 0 if line + 1 == view.n_lines else line + 1
    return NOT_FOUND


cdef inline int64_t find_slot(const View *view, uint64_t profile_id) noexcept nogil:
    return find_from(view, profile_id, home_line(profile_id, view.n_lines), view.longest_probe)


cdef inline int topic_range(const View *view, uint64_t slot, uint64_t *start, uint64_t *stop) noexcept nogil:
    # -1 when the entries would lie outside the section, which only a damaged file has.
    cdef uint64_t line = slot // LINE_SLOTS
    start[0] = view.topic_starts[line] + sum_before(&view.topic_counts[line * LINE_SLOTS], slot % LINE_SLOTS)
    stop[0] = start[0] + view.topic_counts[slot]
    return 0 if start[0] <= stop[0] <= view.topic_entries else -1


cdef inline int read_detail(const View *view, uint64_t slot, Detail *detail) noexcept nogil:
    # -1 when a field would lie outside the section, which only a damaged file has.
    cdef uint64_t start = view.detail_starts[slot]
    cdef uint64_t room, size
    cdef const uint8_t *at
    cdef int field
    detail.present = 0
    detail.list_lengths[0] = detail.list_lengths[1] = 0
    if start == 0:
        return 0
    if start > view.details_length:
        return -1
    at = view.details + (start - 1)
    room = view.details_length - (start - 1)
    if room < 2:
        return -1
    detail.present = at[0] | (<uint32_t>at[1] << 8)
    at += 2
    room -= 2
    for field in range(INFLUENCEE_COUNT + 1):
        if not detail.present >> field & 1:
            continue
        if field >= INFLUENCER_COUNT:
            size = 4
        elif room == 0:
            return -1
        else:
            size = 1 + at[0] * (1 if field < TEXT_FIELDS else 8)
        if size > room:
            return -1
        if field >= INFLUENCER_COUNT:
            memcpy(&detail.counts[field - INFLUENCER_COUNT], at, 4)
        elif field < TEXT_FIELDS:
            detail.texts[field] = at + 1
            detail.text_lengths[field] = at[0]
        elif at[0] > MAX_INFLUENCE:
            return -1
        else:
            detail.list_lengths[field - INFLUENCERS] = at[0]
            memcpy(detail.lists[field - INFLUENCERS], at + 1, size - 1)
        at += size
        room -= size
    return 0


cdef inline bint has_identity(
    const View *view, uint64_t slot, int field, const uint8_t *text, size_t length
) noexcept nogil:
    # Does the profile in this slot really have this id or name?
    cdef Detail detail
    cdef size_t i
    if slot >= view.slots or read_detail(view, slot, &detail) != 0:
        return False
    if not detail.present >> field & 1 or detail.text_lengths[field] != length:
        return False
    for i in range(length):
        if field == TW_NAME:
            if fold(detail.texts[field][i]) != fold(text[i]):
                return False
        elif detail.texts[field][i] != text[i]:
            return False
    return True


cdef inline uint64_t fingerprint(uint64_t hashed) noexcept nogil:
    # Never 0, so that an entry that belongs to nobody differs from an empty one.
    return (hashed & ((1 << FINGERPRINT_BITS) - 1)) | 1


cdef inline int64_t find_identity(
    const View *view, int field, const uint8_t *text, size_t length, uint64_t *entry
) noexcept nogil:
    # The slot, or NOT_FOUND. `entry` is where the search ended: the matching entry or the empty one.
    cdef uint64_t hashed = identity_hash(field, text, length, field == TW_NAME)
    cdef uint64_t line = scale(hashed, view.identity_lines)
    cdef uint64_t n = view.identity_lines * IDENTITY_LINE
    cdef uint64_t at = line * IDENTITY_LINE
    cdef uint64_t _probe, value
    for _probe in range(n):
        value = view.identities[at]
        entry[0] = at
        if value == 0:
            return NOT_FOUND
        if value & ((1 << FINGERPRINT_BITS) - 1) == fingerprint(hashed) and value >> FINGERPRINT_BITS != 0:
            if has_identity(view, (value >> FINGERPRINT_BITS) - 1, field, text, length):
                return <int64_t>((value >> FINGERPRINT_BITS) - 1)
        at = 0 if at + 1 == n else at + 1
    return NOT_FOUND
