# JSON text written straight into a buffer, byte for byte as msgspec writes it. No Python objects, no errors: callers
# see to it that there is room, SLACK bytes beyond what is written too, because points are stored as whole words.

from libc.stdint cimport int16_t, uint16_t, uint64_t
from libc.string cimport memcpy

from kserve.layout cimport LINE_SLOTS, UNKNOWN_CHANGE, UNSCORED, Line

cdef enum:
    SLACK = 8                   # bytes behind the last one written that may be overwritten
    MAX_UINT = 20               # bytes of the longest number
    MAX_CHANGES = 48            # bytes of the longest `changes` object

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    static const char kserve_pairs[201] =
        "00010203040506070809101112131415161718192021222324252627282930313233343536373839404142434445464748495051525354"
        "5556575859606162636465666768697071727374757677787980818283848586878889909192939495969798" "99";

    static inline uint64_t kserve_pair(unsigned number) {
        uint16_t text;
        memcpy(&text, kserve_pairs + 2 * number, 2);
        return text;
    }
    static inline char *kserve_put_literal(char *at, const char *text) {
        const size_t length = strlen(text);  /* known to the compiler, as `text` is a literal */
        memcpy(at, text, length);
        return at + length;
    }
    #define KSERVE_NULL 0x6c6c756eu  /* "null", little-endian */
    """
    uint64_t pair "kserve_pair"(unsigned int number) noexcept nogil     # the two digits of 0 to 99
    char *put_literal "kserve_put_literal"(char *at, const char *text) noexcept nogil
    const uint64_t NULL_WORD "KSERVE_NULL"


cdef inline char *put_word(char *at, uint64_t word, int length) noexcept nogil:
    memcpy(at, &word, 8)
    return at + length


cdef inline char *put_text(char *at, const char *text, size_t length) noexcept nogil:
    memcpy(at, text, length)
    return at + length


cdef inline char *put_uint(char *at, uint64_t number) noexcept nogil:
    cdef char digits[MAX_UINT]
    cdef int first = MAX_UINT
    cdef uint64_t text
    while number >= 100:
        first -= 2
        text = pair(number % 100)
        memcpy(&digits[first], &text, 2)
        number //= 100
    text = pair(number)
    if number >= 10:
        first -= 2
        memcpy(&digits[first], &text, 2)
    else:
        first -= 1
        digits[first] = <char>(text >> 8)
    memcpy(at, &digits[first], MAX_UINT - first)
    return at + (MAX_UINT - first)


cdef inline char *put_hundredths(char *at, int hundredths) noexcept nogil:
    # As a float of points: 62.31, 0.5, 90.0, -0.3. Up to 999.99.
    cdef unsigned int size = -hundredths if hundredths < 0 else hundredths
    cdef unsigned int whole = size // 100, rest = size % 100
    cdef int shorter = 0
    at[0] = c"-"
    at += hundredths < 0
    if whole >= 100:
        at[0] = <char>(c"0" + whole // 100)
        at += 1
        whole %= 100
    else:
        shorter = whole < 10
    return put_word(
        at, (pair(whole) | <uint64_t>c"." << 16 | pair(rest) << 24) >> (8 * shorter), 5 - shorter - (rest % 10 == 0)
    )


cdef inline char *put_points(char *at, uint16_t score) noexcept nogil:
    # A score as it is kept; null when unscored.
    return put_word(at, NULL_WORD, 4) if score == UNSCORED else put_hundredths(at, score)


cdef inline char *put_change(char *at, int16_t moved) noexcept nogil:
    return put_word(at, NULL_WORD, 4) if moved == UNKNOWN_CHANGE else put_hundredths(at, moved)


cdef inline char *put_changes(char *at, const Line *line, int slot) noexcept nogil:
    # The object `changes` of a scored profile, in this slot of the line; one without a score has put_no_changes.
    at = put_change(put_literal(at, b'{"day":'), line.changes[0][slot])
    at = put_change(put_literal(at, b',"week":'), line.changes[1][slot])
    at = put_change(put_literal(at, b',"month":'), line.changes[2][slot])
    return put_literal(at, b'}')


cdef inline char *put_no_changes(char *at) noexcept nogil:
    return put_literal(at, b'{"day":null,"week":null,"month":null}')
