"""Whole Arrow columns into the numbers of a snapshot, with every value checked; see _columns.pyi for the contracts.

Each kernel makes one pass that a good column ends with: it only counts flawed values. Which ones they are, and why, is
found in a second pass that a good column never sees.
"""

import numpy as np

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, UINT32_MAX, UINT64_MAX
from libc.string cimport memcpy

from kserve cimport layout

LOWEST_SCORE = layout.LOWEST_SCORE
HIGHEST_SCORE = layout.HIGHEST_SCORE
UNSCORED = layout.UNSCORED
UNKNOWN_CHANGE = layout.UNKNOWN_CHANGE
UNKNOWN_COUNT = layout.UNKNOWN_COUNT
UNKNOWN_LOCATION = layout.UNKNOWN_LOCATION
MAX_TOPICS = layout.MAX_TOPICS
MAX_INFLUENCE = layout.MAX_INFLUENCE
MAX_TEXT = layout.MAX_TEXT

cdef extern from *:
    """
    static inline uint16_t kserve_hundredths(double points) {
        /* 1.5 * 2^52 pushes the nearest integer, ties to even, into the low bits of the mantissa: no call of rint. */
        double shifted = points * 100.0 + 6755399441055744.0;
        uint64_t bits;
        memcpy(&bits, &shifted, 8);
        return (uint16_t)bits;
    }
    """
    uint16_t to_hundredths "kserve_hundredths"(double points) noexcept nogil

cdef enum:
    BLOCK = 64                  # values to one word of a validity bitmap

# The order of the reasons that `whole` and `digits` are given.
cdef enum:
    FINE = -1
    IS_NULL
    NEGATIVE
    FRACTIONAL
    TOO_BIG
    INEXACT
    NO_NUMBER
    FLAW_COUNT

ctypedef fused Whole:
    int64_t
    uint64_t
    double

ctypedef fused Number:
    uint8_t
    uint16_t
    uint32_t


cdef int require(bint met, str what) except -1:
    if not met:
        raise ValueError(f"_columns: {what}")
    return 0


cdef int require_bitmap(const uint8_t[::1] valid, int64_t offset, int64_t n) except -1:
    return require(valid.shape[0] == 0 or valid.shape[0] * 8 >= offset + n, "the validity bitmap is too short")


cdef inline bint is_valid(const uint8_t *valid, int64_t at) noexcept nogil:
    return valid == NULL or valid[at >> 3] >> (at & 7) & 1


cdef inline const uint8_t *bitmap(const uint8_t[::1] valid) noexcept nogil:
    return &valid[0] if valid.shape[0] else NULL


cdef inline uint64_t ones(int64_t n) noexcept nogil:
    return UINT64_MAX >> (BLOCK - n)


cdef inline uint64_t validity_word(const uint8_t *valid, int64_t at, int64_t n) noexcept nogil:
    # The n (1 to 64) bits from bit `at`, without reading a byte that holds none of them.
    cdef int64_t shift = at & 7
    cdef int64_t size = (shift + n + 7) >> 3
    cdef uint64_t word = 0
    valid += at >> 3
    memcpy(&word, valid, 8 if size > 8 else size)
    word >>= shift
    if size > 8:
        word |= <uint64_t>valid[8] << (BLOCK - shift)
    return word & ones(n)


cdef inline int64_t full_block(const double *values, int64_t n, double low, double high, uint16_t *out) noexcept nogil:
    cdef int64_t i, flaws = 0
    for i in range(n):
        out[i] = to_hundredths(values[i])
        flaws += not ((values[i] >= low) & (values[i] <= high))
    return flaws


cdef inline int64_t sparse_block(
    const double *values, uint64_t word, int64_t n, double low, double high, uint16_t null, uint16_t *out
) noexcept nogil:
    cdef int64_t i, flaws = 0
    cdef uint16_t mask
    for i in range(n):
        mask = <uint16_t>(0 - (word >> i & 1))
        out[i] = (to_hundredths(values[i]) & mask) | (null & ~mask)
        flaws += <int64_t>(word >> i & 1) & (not ((values[i] >= low) & (values[i] <= high)))
    return flaws


cdef int64_t convert(
    const double *values, const uint8_t *valid, int64_t offset, int64_t n, double low, double high, uint16_t null,
    uint16_t *out,
) noexcept nogil:
    cdef int64_t start = 0, m, flaws = 0
    cdef uint64_t word
    while start < n:
        m = n - start if n - start < BLOCK else BLOCK
        word = ones(m) if valid == NULL else validity_word(valid, offset + start, m)
        if word == ones(m):
            flaws += full_block(values + start, m, low, high, out + start)
        else:
            flaws += sparse_block(values + start, word, m, low, high, null, out + start)
        start += BLOCK
    return flaws


def hundredths(
    const double[::1] values, const uint8_t[::1] valid, int64_t offset, double low, double high, uint16_t null,
    const uint8_t[::1] reasons, uint16_t[::1] out,
):
    cdef int64_t i, found, n = values.shape[0]
    cdef const uint8_t *bits = bitmap(valid)
    cdef uint8_t[::1] flaws
    require_bitmap(valid, offset, n)
    require(out.shape[0] == n and reasons.shape[0] == 2, "lengths differ")
    if n == 0:
        return None
    with nogil:
        found = convert(&values[0], bits, offset, n, low, high, null, &out[0])
    if found == 0:
        return None
    flaws = np.zeros(n, np.uint8)
    for i in range(n):
        if is_valid(bits, offset + i) and not low <= values[i] <= high:
            out[i] = 0
            flaws[i] = reasons[values[i] - values[i] != 0]
    return flaws.base


cdef inline int check_whole(Whole value, uint64_t *out) noexcept nogil:
    out[0] = 0
    if Whole is double:
        if value - value != 0:
            return NO_NUMBER
        if value < 0:
            return NEGATIVE
        if value >= 18446744073709551616.0:
            return TOO_BIG
        if value >= 9007199254740992.0:
            return INEXACT
        if value != <double><uint64_t>value:
            return FRACTIONAL
    elif Whole is int64_t:
        if value < 0:
            return NEGATIVE
    out[0] = <uint64_t>value
    return FINE


cdef inline bint is_noted(int flaw, const uint8_t *reasons, uint8_t *flaws, int64_t i) noexcept nogil:
    """Whether it has a reason, which is written down where there is room for it."""
    if flaw == FINE or not reasons[flaw]:
        return False
    if flaws != NULL:
        flaws[i] = reasons[flaw]
    return True


cdef int64_t check_wholes(
    const Whole[::1] values, const uint8_t *valid, int64_t offset, const uint8_t[::1] reasons, uint64_t[::1] out,
    uint8_t *flaws,
) noexcept nogil:
    cdef int64_t i, found = 0
    cdef int flaw
    for i in range(values.shape[0]):
        flaw = IS_NULL
        out[i] = 0
        if is_valid(valid, offset + i):
            flaw = check_whole(values[i], &out[i])
        found += is_noted(flaw, &reasons[0], flaws, i)
    return found


def whole(
    const Whole[::1] values, const uint8_t[::1] valid, int64_t offset, const uint8_t[::1] reasons, uint64_t[::1] out
):
    cdef int64_t found, n = values.shape[0]
    cdef const uint8_t *bits = bitmap(valid)
    cdef uint8_t[::1] flaws
    require_bitmap(valid, offset, n)
    require(out.shape[0] == n and reasons.shape[0] == FLAW_COUNT, "lengths differ")
    with nogil:
        found = check_wholes(values, bits, offset, reasons, out, NULL)
    if found == 0:
        return None
    flaws = np.zeros(n, np.uint8)
    check_wholes(values, bits, offset, reasons, out, &flaws[0])
    return flaws.base


cdef int parse_digits(const uint8_t *text, int64_t length, bint zeros, uint64_t *out) noexcept nogil:
    # `zeros`: a fraction of nothing but zeros is no fraction.
    cdef bint negative = length > 0 and text[0] == b"-"
    cdef bint too_big = False, fraction = False
    cdef int64_t i = negative
    cdef uint64_t number = 0
    cdef uint8_t digit
    out[0] = 0
    if i == length or text[i] == b".":
        return NO_NUMBER
    while i < length and text[i] != b".":
        digit = text[i] - 48
        if digit > 9:
            return NO_NUMBER
        too_big = too_big or number > (UINT64_MAX - digit) // 10
        number = number * 10 + digit
        i += 1
    if i < length:
        fraction = not zeros
        for i in range(i + 1, length):
            digit = text[i] - 48
            if digit > 9:
                return NO_NUMBER
            fraction = fraction or digit != 0
    if negative and (number or fraction or too_big):
        return NEGATIVE
    if fraction:
        return FRACTIONAL
    if too_big:
        return TOO_BIG
    out[0] = number
    return FINE


cdef int require_texts(const int64_t[::1] offsets, const uint8_t[::1] data) except -1:
    cdef int64_t i, n = offsets.shape[0] - 1
    require(n >= 0 and offsets[0] >= 0 and offsets[n] <= data.shape[0], "offsets leave the data")
    for i in range(n):
        require(offsets[i] <= offsets[i + 1], "offsets descend")
    return 0


cdef int64_t check_digits(
    const int64_t[::1] offsets, const uint8_t *data, const uint8_t *valid, int64_t offset, bint zeros,
    const uint8_t[::1] reasons, uint64_t[::1] out, uint8_t *flaws,
) noexcept nogil:
    cdef int64_t i, found = 0
    cdef int flaw
    for i in range(out.shape[0]):
        flaw = IS_NULL
        out[i] = 0
        if is_valid(valid, offset + i):
            flaw = parse_digits(data + offsets[i], offsets[i + 1] - offsets[i], zeros, &out[i])
        found += is_noted(flaw, &reasons[0], flaws, i)
    return found


def digits(
    const int64_t[::1] offsets, const uint8_t[::1] data, const uint8_t[::1] valid, int64_t offset, bint zeros,
    const uint8_t[::1] reasons, uint64_t[::1] out,
):
    cdef int64_t found, n = offsets.shape[0] - 1
    cdef const uint8_t *bits = bitmap(valid)
    cdef const uint8_t *text = bitmap(data)
    cdef uint8_t[::1] flaws
    require_texts(offsets, data)
    require_bitmap(valid, offset, n)
    require(out.shape[0] == n and reasons.shape[0] == FLAW_COUNT, "lengths differ")
    with nogil:
        found = check_digits(offsets, text, bits, offset, zeros, reasons, out, NULL)
    if found == 0:
        return None
    flaws = np.zeros(n, np.uint8)
    check_digits(offsets, text, bits, offset, zeros, reasons, out, &flaws[0])
    return flaws.base


cdef inline uint32_t valid_mask(const uint8_t *valid, int64_t at) noexcept nogil:
    # All ones for a value, 0 for a null: where nulls fall like coins, a branch costs more than the value.
    return UINT32_MAX if valid == NULL else <uint32_t>(0 - (valid[at >> 3] >> (at & 7) & 1))


def mark_used(const int32_t[::1] indices, const uint8_t[::1] valid, int64_t offset, uint8_t[::1] used):
    cdef int64_t i, n = indices.shape[0], strays = 0
    cdef uint64_t size = used.shape[0]
    cdef const uint8_t *bits = bitmap(valid)
    cdef uint32_t mask, index
    require_bitmap(valid, offset, n)
    with nogil:
        for i in range(n):
            mask = valid_mask(bits, offset + i)
            index = <uint32_t>indices[i] & mask
            if index < size:
                used[index] |= <uint8_t>(mask & 1)
            else:
                strays += mask & 1
    require(strays == 0, "a dictionary index leaves the dictionary")


cdef int64_t choose(
    const int32_t[::1] indices, const uint8_t *valid, int64_t offset, const Number[::1] table, Number null,
    Number *out,
) noexcept nogil:
    # How many of the chosen are not 0.
    cdef int64_t i, found = 0
    cdef uint32_t mask, index
    for i in range(indices.shape[0]):
        mask = valid_mask(valid, offset + i)
        index = <uint32_t>indices[i] & mask
        out[i] = <Number>((table[index] & mask) | (null & ~mask))
        found += out[i] != 0
    return found


def look_up(
    const int32_t[::1] indices, const uint8_t[::1] valid, int64_t offset, const Number[::1] table,
    const uint8_t[::1] reasons, Number null, uint8_t null_reason, Number[::1] out,
):
    cdef int64_t i, n = indices.shape[0]
    cdef uint64_t size = table.shape[0]
    cdef const uint8_t *bits = bitmap(valid)
    cdef uint8_t[::1] flaws
    cdef bint flawed = bits != NULL and null_reason != 0
    require_bitmap(valid, offset, n)
    require(out.shape[0] == n and reasons.shape[0] == table.shape[0] and size > 0, "lengths differ")
    if n == 0:
        return None
    with nogil:
        for i in range(<int64_t>size):
            flawed = flawed or reasons[i] != 0
        choose[Number](indices, bits, offset, table, null, &out[0])
    if not flawed:
        return None
    flaws = np.zeros(n, np.uint8)
    if choose[uint8_t](indices, bits, offset, reasons, null_reason, &flaws[0]) == 0:
        return None
    return flaws.base


cdef inline int64_t ascii_prefix(const uint8_t *text, int64_t length) noexcept nogil:
    cdef int64_t i = 0
    cdef uint64_t word
    while i + 8 <= length:
        memcpy(&word, text + i, 8)
        if word & <uint64_t>0x8080808080808080:
            break
        i += 8
    while i < length and text[i] < 0x80:
        i += 1
    return i


cdef int64_t sequence_length(const uint8_t *text, int64_t length) noexcept nogil:
    # Bytes of the character that starts here, as table 3-7 of the Unicode standard has them; 0 for none.
    cdef uint8_t first = text[0]
    cdef uint8_t low = 0x80, high = 0xBF
    cdef int64_t i, size
    if first < 0x80:
        return 1
    if 0xC2 <= first <= 0xDF:
        size = 2
    elif 0xE0 <= first <= 0xEF:
        size = 3
        low = 0xA0 if first == 0xE0 else 0x80
        high = 0x9F if first == 0xED else 0xBF
    elif 0xF0 <= first <= 0xF4:
        size = 4
        low = 0x90 if first == 0xF0 else 0x80
        high = 0x8F if first == 0xF4 else 0xBF
    else:
        return 0
    if length < size or not low <= text[1] <= high:
        return 0
    for i in range(2, size):
        if not 0x80 <= text[i] <= 0xBF:
            return 0
    return size


cdef bint is_utf8(const uint8_t *text, int64_t length) noexcept nogil:
    cdef int64_t i = ascii_prefix(text, length)
    cdef int64_t size
    while i < length:
        size = sequence_length(text + i, length - i)
        if size == 0:
            return False
        i += size
    return True


def check_texts(const int64_t[::1] offsets, const uint8_t[::1] data, int64_t limit, const uint8_t[::1] reasons):
    cdef int64_t i, length, n = offsets.shape[0] - 1, found = 0
    cdef const uint8_t *text = bitmap(data)
    cdef uint8_t[::1] flaws
    require_texts(offsets, data)
    require(reasons.shape[0] == 2, "lengths differ")
    with nogil:
        for i in range(n):
            length = offsets[i + 1] - offsets[i]
            found += length > limit or not is_utf8(text + offsets[i], length)
    if found == 0:
        return None
    flaws = np.zeros(n, np.uint8)
    for i in range(n):
        length = offsets[i + 1] - offsets[i]
        if not is_utf8(text + offsets[i], length):
            flaws[i] = reasons[0]
        elif length > limit:
            flaws[i] = reasons[1]
    return flaws.base


cdef int64_t first_repeat(const uint16_t *numbers, int64_t n) noexcept nogil:
    cdef int64_t i, j
    for i in range(1, n):
        for j in range(i):
            if numbers[i] == numbers[j]:
                return i
    return -1


def find_repeats(const int64_t[::1] offsets, const uint16_t[::1] numbers, int64_t limit, uint8_t reason):
    cdef int64_t i, length, n = offsets.shape[0] - 1
    cdef bint found = False
    cdef uint8_t[::1] flaws = np.zeros(n, np.uint8)
    require(n >= 0 and offsets[0] >= 0 and offsets[n] <= numbers.shape[0], "offsets leave the numbers")
    with nogil:
        for i in range(n):
            length = offsets[i + 1] - offsets[i]
            if 1 < length <= limit and first_repeat(&numbers[offsets[i]], length) > 0:
                flaws[i] = reason
                found = True
    return flaws.base if found else None
