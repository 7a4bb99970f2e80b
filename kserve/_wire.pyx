"""The compiled path: bytes of plain requests in, bytes of answers out, with nothing in between; see docs/wire.md.

Answers are patterns with gaps. The patterns are text that the slow path's own functions have written, once for each
version; what is done here is to fill the gaps.
"""

import re

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int64_t, uint16_t, uint64_t
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec

from kserve._core cimport Snapshot, Store
from kserve._json cimport MAX_UINT, SLACK, put_changes, put_points, put_text, put_uint
from kserve._plain cimport Plain, Text, matches, parse
from kserve._roster cimport Seat, count_hundredths, remember
from kserve._view cimport View, find_slot, prefetch
from kserve.layout cimport HIGHEST_SCORE, LINE_SLOTS, UNSCORED, Line, home_line

__all__ = ["GAPS", "OUTCOMES", "Numbers", "Wire", "WireSite"]

GAPS = "IPCWRLD"
OUTCOMES = ("scored", "unscored", "unchanged", "unknown")

cdef extern from "<sys/socket.h>" nogil:
    ssize_t send(int descriptor, const void *data, size_t length, int flags)
    int MSG_DONTWAIT
    int MSG_NOSIGNAL

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


cdef class Numbers:
    """The numbers of requests; see the stub."""

    def __iter__(self):
        return self

    def __next__(self):
        self.last += 1
        return self.last


cdef class WireSite:
    """What the connections of one server share; see the stub."""

    def __cinit__(self):
        self.out = <char *>PyMem_Malloc(OUT_SIZE + SLACK)
        if self.out == NULL:
            raise MemoryError

    def __dealloc__(self):
        PyMem_Free(self.out)

    def __init__(self, Store store, Seat seat, patterns, str prefix not None, Numbers numbers not None, bint on):
        cdef bytes start = f"{prefix}-".encode()
        if len(start) > <Py_ssize_t>sizeof(self.request_id) - MAX_UINT - SLACK:
            raise ValueError("the prefix of the request ids is too long")
        memcpy(self.request_id, <const char *>start, len(start))
        self.prefix_length = len(start)
        self.store, self.seat, self.patterns, self.numbers = store, seat, patterns, numbers
        self.on = on and store is not None
        self.gaps[POINTS_GAP].at = self.points
        self.gaps[CHANGES_GAP].at = self.changes
        self.gaps[LENGTH_GAP].at = self.length
        self.gaps[DATE_GAP].at = self.date

    cdef int renew(self, str version) except -1:
        """Make it tell the time, and this version's answers."""
        cdef timespec now
        clock_gettime(CLOCK_REALTIME, &now)
        if now.tv_sec != self.second:
            self.second = now.tv_sec
            self.gaps[DATE_GAP].length = put_date(self.date, sizeof(self.date), now.tv_sec)
        if version is not self.version:
            self.learn(version)
        self.counters = self.seat.counters(version)
        return 0

    cdef int learn(self, str version) except -1:
        cdef bytes tag = f"{version}-".encode()
        cdef Text *row = &self.gaps[ROW_GAP]
        if len(tag) > <Py_ssize_t>sizeof(self.tag) - MAX_UINT - SLACK:
            raise ValueError(f"the version {version} has too long a name")
        found = self.patterns(version)
        self.version, self.kept = None, []
        for i, (status, head, body) in enumerate(found):
            self.answers[i].status = status
            cut(&self.answers[i].head, head, self.kept)
            cut(&self.answers[i].body, body, self.kept)
            if self.answers[i].head.fixed + self.answers[i].body.fixed > MAX_FIXED:
                raise ValueError(f"the answer for {OUTCOMES[i]} is too long")
        memcpy(self.tag, <const char *>tag, len(tag))
        row.at = self.tag + len(tag)
        self.version = version
        return 0

    cdef const char *answer(self, Wire wire, const char *at, const char *end) except NULL:
        """The first byte that is not answered: the end, or where aiohttp's part begins, or what has to wait."""
        cdef Snapshot snapshot = self.store.current
        cdef int n, i
        if snapshot is None:
            return at
        self.renew(snapshot.version)
        n = ROUND
        while n == ROUND:
            n = self.read(&snapshot.view, &at, end)
            for i in range(n):
                if not self.put(&snapshot.view, &self.asked[i]):
                    self.flush(wire)
                    return self.firsts[i]
                if self.filled > OUT_SIZE - MAX_ANSWER and not self.flush(wire):
                    return self.firsts[i + 1]
        self.flush(wire)
        return at

    cdef int read(self, const View *view, const char **at, const char *end) noexcept:
        """Plain requests, up to ROUND, with their profiles on the way from memory."""
        cdef const char *after
        cdef int n = 0
        self.firsts[0] = at[0]
        while n < ROUND:
            after = parse(at[0], end, &self.asked[n])
            if after == NULL:
                break
            prefetch(&view.lines[home_line(self.asked[n].profile_id, view.n_lines)])
            n += 1
            self.firsts[n] = at[0] = after
        return n

    cdef bint put(self, const View *view, const Plain *plain) noexcept:
        """Write one answer, and count it; False when aiohttp shall answer: then nothing is written or counted."""
        cdef int outcome = self.outcome_of(view, plain)
        cdef const Answer *answer
        cdef char *at = self.out + self.filled
        if outcome == NOT_OURS:
            return False
        self.gaps[ID_GAP] = plain.digits
        self.gaps[REQUEST_ID_GAP] = self.name_of(plain)
        answer = &self.answers[outcome]
        self.gaps[LENGTH_GAP].length = put_uint(self.length, length_of(&answer.body, self.gaps)) - self.length
        at = fill(at, &answer.head, self.gaps)
        if not plain.head:
            at = fill(at, &answer.body, self.gaps)
        self.filled = at - self.out
        return True

    cdef int outcome_of(self, const View *view, const Plain *plain) noexcept:
        cdef int64_t slot = find_slot(view, plain.profile_id)
        cdef const Line *line
        cdef uint16_t score
        if slot < 0:
            remember(self.seat, plain.profile_id)
            if self.counters != NULL:
                self.counters.unknown += 1
            return UNKNOWN
        line = &view.lines[slot // LINE_SLOTS]
        score = line.scores[slot % LINE_SLOTS]
        if score > HIGHEST_SCORE and score != UNSCORED:
            return NOT_OURS     # the snapshot is damaged
        self.count(plain.profile_id, score)
        self.gaps[ROW_GAP].length = put_uint(<char *>self.gaps[ROW_GAP].at, slot) - self.gaps[ROW_GAP].at
        if plain.wanted.at != NULL and matches(plain.wanted, self.whole_tag()):
            return UNCHANGED
        if score == UNSCORED:
            return NO_SCORE
        self.gaps[POINTS_GAP].length = put_points(self.points, score) - self.points
        self.gaps[CHANGES_GAP].length = put_changes(self.changes, line, slot % LINE_SLOTS) - self.changes
        return SCORED

    cdef void count(self, uint64_t profile_id, uint16_t score) noexcept:
        remember(self.seat, profile_id)
        if self.counters == NULL:
            return
        self.counters.requests += 1
        if score == UNSCORED:
            self.counters.unscored += 1
        else:
            count_hundredths(self.counters, score)

    cdef Text whole_tag(self) noexcept:
        cdef Text tag
        tag.at = self.tag
        tag.length = self.gaps[ROW_GAP].at + self.gaps[ROW_GAP].length - self.tag
        return tag

    cdef Text name_of(self, const Plain *plain) noexcept:
        """The client's own id of the request, or a new one."""
        cdef Text name = plain.given
        if name.at == NULL:
            self.numbers.last += 1
            name.at = self.request_id
            name.length = put_uint(self.request_id + self.prefix_length, self.numbers.last) - self.request_id
        return name

    cdef bint flush(self, Wire wire) except -1:
        """Send what is written. False when the client does not read, and all the rest has to wait for it."""
        cdef size_t length = self.filled
        cdef ssize_t sent
        cdef bytes rest
        self.filled = 0
        if length == 0:
            return True
        sent = send(wire.descriptor, self.out, length, MSG_DONTWAIT | MSG_NOSIGNAL)
        wire.answered()
        if sent == <ssize_t>length:
            return True
        sent = max(sent, 0)
        rest = PyBytes_FromStringAndSize(self.out + sent, length - sent)
        wire.held = not wire.connection.finish(rest)
        return not wire.held


cdef class Wire:
    """One connection; see the stub."""

    def __init__(self, WireSite site not None, connection not None):
        self.site, self.connection = site, connection
        self.descriptor = -1

    def attach(self, int descriptor):
        self.descriptor = descriptor
        self.ours = self.fresh = True

    def release(self):
        self.connection = None
        self.descriptor = -1
        self.waiting = None
        self.held = False

    @property
    def answered_at(self):
        return self.answered_ns / 1e9

    def data_received(self, bytes data not None):
        if self.connection is None:
            return
        if self.held:
            self.waiting = data if self.waiting is None else self.waiting + data
        elif self.site.on and self.descriptor >= 0 and len(data) and (self.ours or self.connection.may_leave()):
            self.ours = True
            self.take(data)
        else:
            self.ours = False
            self.connection.receive(data)

    def go_on(self):
        data, self.waiting, self.held = self.waiting, None, False
        if data:
            self.data_received(data)

    cdef int take(self, bytes data) except -1:
        """Answer what can be answered here; the rest is for aiohttp, or waits."""
        cdef const char *start = PyBytes_AS_STRING(data)
        cdef const char *end = start + PyBytes_GET_SIZE(data)
        cdef const char *at = self.site.answer(self, start, end)
        if at == end:
            return 0
        if at != start:
            data = PyBytes_FromStringAndSize(at, end - at)
        if self.held:
            self.waiting = data
        else:
            self.ours = False
            self.connection.receive(data)
        return 0

    cdef int answered(self) except -1:
        cdef timespec now
        clock_gettime(CLOCK_MONOTONIC, &now)
        self.answered_ns = now.tv_sec * 1_000_000_000 + now.tv_nsec
        if self.fresh:
            self.fresh = False
            self.connection.stop_clock()
        return 0


cdef int cut(Pattern *pattern, bytes text, list kept) except -1:
    """Cut a text at its gaps, written ``~`` and a letter of GAPS. ``kept`` holds what the parts point into."""
    cdef bytes literal
    pieces = re.split(b"~([A-Z])", text)
    if len(pieces) > 2 * MAX_PARTS:
        raise ValueError(f"more than {MAX_PARTS} gaps: {text!r}")
    memset(pattern, 0, sizeof(Pattern))
    pattern.n = (len(pieces) + 1) // 2
    for i in range(pattern.n):
        literal = pieces[2 * i]
        kept.append(literal)
        pattern.fixed += len(literal)
        pattern.parts[i].text = <const char *>literal
        pattern.parts[i].length = len(literal)
        pattern.parts[i].gap = GAPS.index(pieces[2 * i + 1].decode()) if 2 * i + 1 < len(pieces) else N_GAPS
    return 0


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
