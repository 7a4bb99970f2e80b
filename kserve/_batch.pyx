"""Batches of scores, from the bytes of a request to the bytes of its answer: JSON, or records of fixed size."""

import numpy as np

cimport numpy as cnp
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from libc.stdint cimport UINT32_MAX, int16_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from kserve._core cimport BATCH, Snapshot, find_many
from kserve._json cimport (
    put_changes,
    put_literal,
    put_no_changes,
    put_points,
    put_text,
    put_uint,
)
from kserve._roster cimport Counters, Seat, count_hundredths, remember
from kserve._view cimport View
from kserve.layout cimport HIGHEST_SCORE, LINE_SLOTS, LOWEST_SCORE, UNKNOWN_CHANGE, UNSCORED, Line

__all__ = ["RECORD", "UNKNOWN_SCORE", "UNSCORED_SCORE", "Asked", "ids_of_bytes", "ids_of_json"]

cnp.import_array()

cdef enum:
    NO_SCORE = 0xFFFE           # in a record: there is no such profile
    ID_SIZE = 8
    MAX_ITEM = 128              # bytes of an item of JSON, with its comma
    MAX_FRAME = 64              # bytes of what is around items and version, with SLACK
    SHORTEST_ITEM = 4           # bytes of an id of one digit, with quotes and comma
    UNKNOWN = 0                 # kserve.records.Status
    UNSCORED_STATUS = 1
    SCORED = 2

UNKNOWN_SCORE = NO_SCORE
UNSCORED_SCORE = UNSCORED
RECORD = np.dtype(
    [("score", "<u2"), ("day", "<i2"), ("week", "<i2"), ("month", "<i2"), ("status", "u1"), ("zero", "u1")]
)

cdef packed struct Record:      # RECORD
    uint16_t score              # hundredths of a point, UNSCORED or NO_SCORE
    int16_t changes[3]          # day, week, month in hundredths of a point, or UNKNOWN_CHANGE
    uint8_t status
    uint8_t zero

cdef extern from "Python.h":
    PyObject *PyBytes_FromStringAndSize(const char *text, Py_ssize_t size) except NULL
    int _PyBytes_Resize(PyObject **made, Py_ssize_t size) except -1

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    /* Eight characters as they are in memory; those from `end` on are none. */
    static inline uint64_t kserve_eight(const char *at, const char *end) {
        uint64_t text = 0;
        if (end - at >= 8)
            memcpy(&text, at, 8);
        else
            memcpy(&text, at, end - at);
        return text ^ 0x3030303030303030u;  /* a digit becomes its value */
    }
    /* How many of eight characters are digits before the first that is none. */
    static inline int kserve_digits(uint64_t text) {
        const uint64_t others = (text | (text + 0x7676767676767676u)) & 0x8080808080808080u;
        return others ? __builtin_ctzll(others) >> 3 : 8;
    }
    /* The number that the first n digits make, n from 1 to 8. */
    static inline uint64_t kserve_number(uint64_t text, int n) {
        text <<= 8 * (8 - n);
        text = (text * 10 + (text >> 8)) & 0x00ff00ff00ff00ffu;
        text = (text * 100 + (text >> 16)) & 0x0000ffff0000ffffu;
        return (text * 10000 + (text >> 32)) & 0xffffffffu;
    }
    /* Whether number * times + more is below 2^64; if so, it is the number. */
    static inline int kserve_longer(uint64_t *number, uint64_t times, uint64_t more) {
        return !__builtin_mul_overflow(*number, times, number) && !__builtin_add_overflow(*number, more, number);
    }
    static const uint64_t kserve_tens[9] = {1, 10, 100, 1000, 10000, 100000, 1000000, 10000000, 100000000};
    """
    uint64_t eight "kserve_eight"(const char *at, const char *end) noexcept nogil
    int digits "kserve_digits"(uint64_t text) noexcept nogil
    uint64_t number "kserve_number"(uint64_t text, int n) noexcept nogil
    bint longer "kserve_longer"(uint64_t *number, uint64_t times, uint64_t more) noexcept nogil
    const uint64_t *tens "kserve_tens"


cdef class Asked:
    """The ids of one request; see the stub."""

    def __len__(self):
        return self.total

    @property
    def ids(self):
        return self.numbers[:self.total]

    cpdef bytes json(self, Snapshot snapshot, Seat seat):
        cdef const View *view = &snapshot.view
        cdef Counters *counters = seat.counters(snapshot.version)
        cdef bytes version = snapshot.version.encode()
        cdef size_t room = self.total * MAX_ITEM + len(version) + MAX_FRAME
        cdef PyObject *made = PyBytes_FromStringAndSize(NULL, room)
        cdef char *first = PyBytes_AS_STRING(<object>made)
        cdef char *at = put_literal(first, b'{"version":"')
        cdef int64_t slots[BATCH]
        cdef Py_ssize_t start, n, i
        at = put_text(at, version, PyBytes_GET_SIZE(version))
        at = put_literal(at, b'","scores":[')
        for start in range(0, self.total, BATCH):
            n = self.look_up(view, seat, start, slots)
            for i in range(n):
                at = self.put_id(put_literal(at, b'{"id":"'), start + i)
                at = put_answer(at, view, slots[i], counters)
        at = put_literal(at - (self.total > 0), b']}')
        return cut(made, at - first)

    cpdef bytes records(self, Snapshot snapshot, Seat seat):
        cdef const View *view = &snapshot.view
        cdef Counters *counters = seat.counters(snapshot.version)
        cdef PyObject *made = PyBytes_FromStringAndSize(NULL, self.total * sizeof(Record))
        cdef Record *records = <Record *>PyBytes_AS_STRING(<object>made)
        cdef int64_t slots[BATCH]
        cdef Py_ssize_t start, n, i
        for start in range(0, self.total, BATCH):
            n = self.look_up(view, seat, start, slots)
            for i in range(n):
                put_record(&records[start + i], view, slots[i], counters)
        return cut(made, self.total * sizeof(Record))

    cdef Py_ssize_t look_up(self, const View *view, Seat seat, Py_ssize_t start, int64_t *slots) noexcept:
        """The slots of up to BATCH ids from ``start`` on, which the seat remembers; how many."""
        cdef const uint64_t *ids = <const uint64_t *>cnp.PyArray_DATA(self.numbers) + start
        cdef Py_ssize_t n = min(BATCH, self.total - start), i
        find_many(view, ids, n, slots)
        for i in range(n):
            remember(seat, ids[i])
        return n

    cdef inline char *put_id(self, char *at, Py_ssize_t i) noexcept:
        """An id as it was written; one that came as a number, in digits."""
        cdef Text text
        if self.body is None:
            return put_uint(at, (<const uint64_t *>cnp.PyArray_DATA(self.numbers))[i])
        text = (<const Text *>cnp.PyArray_DATA(self.texts))[i]
        return put_text(at, PyBytes_AS_STRING(self.body) + text.start, text.length)


cdef inline uint8_t status_of(const View *view, int64_t slot, uint16_t *score) noexcept nogil:
    # A score that is none, which only a damaged file has, is no answer.
    if slot < 0:
        return UNKNOWN
    score[0] = view.lines[slot // LINE_SLOTS].scores[slot % LINE_SLOTS]
    if LOWEST_SCORE <= score[0] <= HIGHEST_SCORE:
        return SCORED
    return UNSCORED_STATUS if score[0] == UNSCORED else UNKNOWN


cdef inline uint8_t counted(const View *view, int64_t slot, uint16_t *score, Counters *counters) noexcept nogil:
    cdef uint8_t status = status_of(view, slot, score)
    if counters != NULL:
        if status == SCORED:
            count_hundredths(counters, score[0])
        elif status == UNSCORED_STATUS:
            counters.unscored += 1
        else:
            counters.unknown += 1
    return status


cdef inline char *put_answer(char *at, const View *view, int64_t slot, Counters *counters) noexcept nogil:
    """What an item says after its id, and a comma."""
    cdef uint16_t score
    cdef uint8_t status = counted(view, slot, &score, counters)
    if status == SCORED:
        at = put_literal(put_points(put_literal(at, b'","status":"ok","score":'), score), b',"changes":')
        at = put_changes(at, &view.lines[slot // LINE_SLOTS], slot % LINE_SLOTS)
    elif status == UNSCORED_STATUS:
        at = put_no_changes(put_literal(at, b'","status":"unscored","score":null,"changes":'))
    else:
        at = put_literal(at, b'","status":"unknown"')
    return put_literal(at, b'},')


cdef inline void put_record(Record *record, const View *view, int64_t slot, Counters *counters) noexcept nogil:
    cdef uint16_t score
    cdef const Line *line
    cdef int period
    record.status = counted(view, slot, &score, counters)
    record.score = NO_SCORE if record.status == UNKNOWN else score
    record.zero = 0
    if record.status == SCORED:
        line = &view.lines[slot // LINE_SLOTS]
        for period in range(3):
            record.changes[period] = line.changes[period][slot % LINE_SLOTS]
    else:
        for period in range(3):
            record.changes[period] = UNKNOWN_CHANGE


cdef bytes cut(PyObject *made, Py_ssize_t size):
    """The first ``size`` bytes of a new object, which is this one."""
    _PyBytes_Resize(&made, size)
    answer = <bytes>made
    Py_DECREF(answer)
    return answer


cpdef Asked ids_of_json(bytes body, Py_ssize_t limit):
    cdef const char *text = PyBytes_AS_STRING(body)
    cdef Py_ssize_t length = PyBytes_GET_SIZE(body)
    cdef Py_ssize_t room = min(limit, length // SHORTEST_ITEM)
    cdef Asked asked = made_for(room)
    cdef uint64_t *ids = <uint64_t *>cnp.PyArray_DATA(asked.numbers)
    if <uint64_t>length > UINT32_MAX:
        return None
    asked.body = body
    asked.total = read_ids(text, text + length, ids, <Text *>cnp.PyArray_DATA(asked.texts), room)
    return asked if asked.total >= 0 else None


cpdef Asked ids_of_bytes(bytes body):
    cdef Asked asked
    if PyBytes_GET_SIZE(body) % ID_SIZE:
        return None
    asked = made_for(PyBytes_GET_SIZE(body) // ID_SIZE)
    memcpy(cnp.PyArray_DATA(asked.numbers), PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body))
    return asked


cdef Asked made_for(cnp.npy_intp total):
    """Room for so many ids."""
    cdef Asked asked = Asked.__new__(Asked)
    asked.total = total
    asked.numbers = cnp.PyArray_EMPTY(1, &total, cnp.NPY_UINT64, 0)
    asked.texts = cnp.PyArray_EMPTY(1, &total, cnp.NPY_UINT64, 0)
    return asked


cdef Py_ssize_t read_ids(const char *body, const char *end, uint64_t *ids, Text *texts, Py_ssize_t room) noexcept nogil:
    """How many ids a body of the plain form has; -1 when it has another form, or more ids than there is room for."""
    cdef const char *at = word(token(token(body, end, c"{"), end, c'"'), end, b'ids"', 4)
    cdef Py_ssize_t n = 0
    cdef const char *after
    at = token(token(at, end, c":"), end, c"[")
    after = token(at, end, c"]")
    while after == NULL:
        at = token(at, end, c'"')
        if at == NULL or n == room or not read_id(at, end, &ids[n], &texts[n].length):
            return -1
        texts[n].start = <uint32_t>(at - body)
        at += texts[n].length + 1
        n += 1
        after = token(at, end, c"]")
        if after == NULL:
            at = token(at, end, c",")
    after = token(after, end, c"}")
    return n if after != NULL and spaces(after, end) == end else -1


cdef inline bint read_id(const char *at, const char *end, uint64_t *profile_id, uint32_t *length) noexcept nogil:
    """Whether an id and a quote begin here: digits below 2^64 without leading zeros."""
    cdef uint64_t text = eight(at, end)
    cdef int n = digits(text)
    if n == 0:
        return False
    profile_id[0] = number(text, n)
    length[0] = n
    while n == 8:
        text = eight(at + length[0], end)
        n = digits(text)
        if n > 0 and not longer(profile_id, tens[n], number(text, n)):
            return False
        length[0] += n
    if at[0] == c"0" and length[0] > 1:
        return False
    return at + length[0] < end and at[length[0]] == c'"'


cdef inline const char *spaces(const char *at, const char *end) noexcept nogil:
    """Behind the white space that JSON has."""
    while at < end and (at[0] == c" " or at[0] == c"\t" or at[0] == c"\n" or at[0] == c"\r"):
        at += 1
    return at


cdef inline const char *token(const char *at, const char *end, char wanted) noexcept nogil:
    """Behind this character and what white space is before it; NULL when another one is there, or ``at`` is NULL."""
    if at == NULL:
        return NULL
    at = spaces(at, end)
    return at + 1 if at < end and at[0] == wanted else NULL


cdef inline const char *word(const char *at, const char *end, const char *wanted, Py_ssize_t length) noexcept nogil:
    """Behind these characters; NULL when others are there, or ``at`` is NULL."""
    if at == NULL or end - at < length or memcmp(at, wanted, length) != 0:
        return NULL
    return at + length
