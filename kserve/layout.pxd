# The bytes of a snapshot file, format version 1. Nothing else knows an offset of it; docs/file-format.md draws it.
#
# Header (4096 bytes), then the sections, each aligned to 64 bytes. All numbers are little-endian. The header is written
# last: until then it is zeros, and a file without it is no snapshot.
#
# A profile lives in a *slot*; four slots share a *line* of 64 bytes, found from the profile's id by `home_line`. A full
# line overflows into the next one; a look-up ends at the first line with an empty slot. Columns hold by slot what
# a plain score look-up does not need. A score of 0 means that the slot is empty: bytes that were never written, or
# were lost, answer "unknown", never a number.

from libc.stdint cimport int16_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    FORMAT = 1
    HEADER_SIZE = 4096
    ALIGNMENT = 64
    SECTION_COUNT = 17          # one more than the last SectionKind
    LINE_SLOTS = 4
    BLOCK_SLOTS = 64            # the number of slots is a multiple of this
    VERSION_SIZE = 40
    KNOWN_ANSWERS = 64
    IDENTITY_LINE = 8           # entries in an identity line of 64 bytes
    FINGERPRINT_BITS = 24       # of an identity entry; the bits above are slot + 1

    EMPTY = 0                   # as a score: no profile in this slot
    UNSCORED = 0xFFFF           # as a score, and "not known" in the other uint16 columns
    UNKNOWN_CHANGE = -32768
    UNKNOWN_LOCATION = 0
    LOWEST_SCORE = 100          # hundredths of a point
    HIGHEST_SCORE = 10000
    MAX_TOPICS = 20             # of one profile
    MAX_INFLUENCE = 5           # ids in one influence list
    MAX_TEXT = 255              # bytes of a name or of a network's id

cdef extern from *:
    """
    #define KSERVE_UNKNOWN_COUNT UINT32_MAX
    """
    const uint32_t UNKNOWN_COUNT "KSERVE_UNKNOWN_COUNT"     # in uint32 columns and counts: not known

cdef enum:                     # SectionKind
    LINES = 0                   # Line by line number
    SCORES = 1                  # uint16 by slot: the scores again, for scans
    LOCATIONS = 2               # uint32 by slot: index in the location table, 0 unknown
    TOPIC_COUNTS = 3            # uint8 by slot
    TOPIC_STARTS = 4            # uint64 by line (and one more): first topic entry of the line's profiles
    TOPIC_IDS = 5               # uint16 by topic entry: index in the topic table + 1
    TOPIC_SCORES = 6            # uint16 by topic entry
    NETWORK_SCORES = 7          # uint16 by slot
    AMPLIFICATIONS = 8          # uint16 by slot
    TRUE_REACHES = 9            # uint32 by slot
    DETAIL_STARTS = 10          # uint64 by slot: offset in DETAILS + 1, 0 for none
    DETAILS = 11                # detail records, see DetailField
    IDENTITIES = 12             # uint64 entries, IDENTITY_LINE to a line
    KNOWN = 13                  # KnownAnswer: profiles as the builder read them, for health checks
    TOPIC_TABLE = 14            # MessagePack: [[id or null, slug, name, [parent index]]]
    LOCATION_TABLE = 15         # MessagePack: [path]
    COLUMN_NAMES = 16           # MessagePack: [name of each input column that the snapshot has]

# A detail record is a uint16 of bits, one for each field that is present, then those fields in this order:
# a text as uint8 length and UTF-8, a list as uint8 length and uint64s, a count as uint32; unaligned.
cdef enum:                     # DetailField
    NICK = 0
    TW_ID = 1
    TW_NAME = 2
    GP_ID = 3
    FB_ID = 4
    IG_ID = 5
    TEXT_FIELDS = 6
    INFLUENCERS = 6
    INFLUENCEES = 7
    INFLUENCER_COUNT = 8
    INFLUENCEE_COUNT = 9

cdef packed struct Section:
    uint64_t offset
    uint64_t length             # bytes; 0 when the snapshot does not have this section
    uint64_t checksum           # XXH3-64 of the section

cdef packed struct Header:
    char magic[8]
    uint32_t format
    uint32_t byte_order
    uint64_t file_size
    int64_t scored_at           # microseconds since 1970, UTC
    char version[VERSION_SIZE]
    uint64_t profiles
    uint64_t scored
    uint64_t lines
    uint64_t longest_probe      # lines that the longest look-up touches
    uint64_t topic_entries
    uint64_t identities
    Section sections[SECTION_COUNT]
    char unused[HEADER_SIZE - 120 - 24 * SECTION_COUNT - 8]
    uint64_t checksum           # XXH3-64 of all bytes before it

cdef struct Line:
    uint64_t ids[LINE_SLOTS]
    uint16_t scores[LINE_SLOTS]     # hundredths of a point, EMPTY or UNSCORED
    int16_t changes[3][LINE_SLOTS]  # day, week, month in hundredths of a point, or UNKNOWN_CHANGE

cdef struct KnownAnswer:
    uint64_t id
    uint64_t score              # as in Line


cdef inline uint64_t mix(uint64_t x) noexcept nogil:
    # A bijection of 64 bits (the finaliser of Pelle Evensen's "moremur"), so different ids stay different.
    x ^= x >> 27
    x *= 0x3C79AC492BA7B653ULL
    x ^= x >> 33
    x *= 0x1C69B3F74AC4AE35ULL
    return x ^ (x >> 27)


cdef extern from *:
    """
    static inline uint64_t kserve_scale(uint64_t hash, uint64_t n) {
        return (uint64_t)(((unsigned __int128)hash * n) >> 64);
    }
    """
    uint64_t scale "kserve_scale"(uint64_t hash, uint64_t n) noexcept nogil


cdef inline uint64_t home_line(uint64_t profile_id, uint64_t lines) noexcept nogil:
    return scale(mix(profile_id), lines)


cdef inline uint8_t fold(uint8_t byte) noexcept nogil:
    return byte + 32 if 65 <= byte <= 90 else byte


cdef inline uint64_t identity_hash(int field, const uint8_t *text, size_t length, bint folded) noexcept nogil:
    # Ids of networks are compared as they are, names without regard to ASCII case, as Twitter does.
    cdef uint64_t h = mix(<uint64_t>field + 1)
    cdef uint64_t word = 0
    cdef size_t i
    for i in range(length):
        word = (word << 8) | (fold(text[i]) if folded else text[i])
        if i & 7 == 7:
            h = mix(h ^ word)
            word = 0
    return mix(h ^ word ^ (<uint64_t>length << 56))
