# Text with gaps, and how they are filled: what is the same in all answers of a kind is copied, the rest is put in.

from libc.stdint cimport uint32_t

from kserve._json cimport put_text
from kserve._plain cimport Text

cdef enum:                      # gaps of a pattern, in the order of their letters in kserve._wire.GAPS
    ID_GAP
    POINTS_GAP
    CHANGES_GAP
    ROW_GAP
    REQUEST_ID_GAP
    LENGTH_GAP
    DATE_GAP
    FIELDS_GAP
    SECONDS_GAP
    HOLDER_GAP
    N_GAPS

cdef enum:
    MAX_PARTS = 12

cdef struct Part:
    const char *text
    uint32_t length
    int gap                     # behind the text; N_GAPS: none

cdef struct Pattern:
    Part parts[MAX_PARTS]
    int n
    size_t fixed                # bytes without what fills the gaps

cdef extern from *:
    """
    #include <stdio.h>
    #include <time.h>

    /* As RFC 9110 has it: in English, whatever the locale. */
    static inline size_t kserve_put_date(char *at, size_t room, time_t second) {
        static const char days[] = "SunMonTueWedThuFriSat", months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
        struct tm found;
        gmtime_r(&second, &found);
        return snprintf(at, room, "%.3s, %02d %.3s %04d %02d:%02d:%02d GMT", days + 3 * found.tm_wday, found.tm_mday,
                        months + 3 * found.tm_mon, found.tm_year + 1900, found.tm_hour, found.tm_min, found.tm_sec);
    }
    """
    size_t put_date "kserve_put_date"(char *at, size_t room, long second) noexcept nogil


cdef inline size_t length_of(const Pattern *pattern, const Text *gaps) noexcept nogil:
    cdef size_t length = pattern.fixed
    cdef int i
    for i in range(pattern.n - 1):
        length += gaps[pattern.parts[i].gap].length
    return length


cdef inline char *fill(char *at, const Pattern *pattern, const Text *gaps) noexcept nogil:
    cdef const Part *part
    cdef int i
    for i in range(pattern.n):
        part = &pattern.parts[i]
        at = put_text(at, part.text, part.length)
        if part.gap != N_GAPS:
            at = put_text(at, gaps[part.gap].at, gaps[part.gap].length)
    return at
