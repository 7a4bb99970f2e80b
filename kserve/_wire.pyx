"""The compiled path: bytes of plain requests in, bytes of answers out, with nothing in between; see docs/wire.md.

Answers are patterns with gaps. The patterns are text that the slow path's own functions have written, once for each
version; what is done here is to fill the gaps.
"""

import re

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from kserve._batch cimport Asked, ids_of_bytes, ids_of_json
from kserve._core cimport Snapshot
from kserve._json cimport MAX_UINT, SLACK, put_changes, put_literal, put_points, put_uint
from kserve._keyring cimport BATCH as BATCH_SCOPE
from kserve._keyring cimport KEY_ID, SCORE_READ, SITE, KeyEntry
from kserve._limits cimport ADMITTED, EXHAUSTED, Limit, Verdict, now_us
from kserve._patterns cimport *
from kserve._plain cimport JSON_BATCH, SCORE, Plain, Text, matches, parse
from kserve._roster cimport count_hundredths, remember
from kserve._tally cimport COMPILED, HANDED_OVER, ROUTE_BATCH, ROUTE_SCORE, TIER_OPEN
from kserve._view cimport View, find_slot, prefetch
from kserve.layout cimport EMPTY, HIGHEST_SCORE, LINE_SLOTS, UNSCORED, Line, home_line

__all__ = ["GAPS", "OUTCOMES", "Numbers", "Wire", "WireSite"]

GAPS = "IPCWRLDFSH"
OUTCOMES = ("scored", "unscored", "unchanged", "unknown", "items", "records", "limited", "exhausted", "overloaded")

cdef enum:
    SCORE_COST = 1
    SITE_READS = 0              # classes of shedding
    PARTNER_READS = 1
    BATCHES = 2
    NOBODY = 0                  # who asks without a key, as shedding tells callers apart
    MICROSECONDS = 1_000_000
    NANOSECONDS = 1_000_000_000
    DAY_SECONDS = 86_400
    HOLDER_LENGTH = 9

cdef extern from "<sys/socket.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    ssize_t sendmsg(int descriptor, const msghdr *message, int flags)
    int MSG_DONTWAIT
    int MSG_NOSIGNAL

cdef extern from "<time.h>" nogil:
    int CLOCK_REALTIME_COARSE


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

    def __init__(self, site, patterns):
        self.patterns = patterns
        if site is None:
            return
        cdef bytes start = f"{site.prefix}-".encode()
        if len(start) > <Py_ssize_t>sizeof(self.request_id) - MAX_UINT - SLACK:
            raise ValueError("the prefix of the request ids is too long")
        memcpy(self.request_id, <const char *>start, len(start))
        self.prefix_length = len(start)
        self.numbers, self.store, self.seat, self.tally = site.numbers, site.store, site.seat, site.tally
        self.keyring, self.limits = site.keys.keyring, site.limits
        self.shedder, self.stale, self.pause = site.shedding.shedder, site.shedding.stale, site.shedding.pause
        self.open = site.settings.open
        self.batch_limit, self.body_limit = site.settings.batch_limit, site.settings.body_limit
        self.gaps[POINTS_GAP].at = self.points
        self.gaps[CHANGES_GAP].at = self.changes
        self.gaps[LENGTH_GAP].at = self.length
        self.gaps[DATE_GAP].at = self.date
        self.gaps[FIELDS_GAP].at = self.fields
        self.gaps[SECONDS_GAP].at = self.seconds
        self.gaps[HOLDER_GAP].at = self.holder
        memcpy(self.holder, b"private, ", HOLDER_LENGTH)
        self.on = site.settings.compiled

    cdef int renew(self, str version) except -1:
        """Make it tell the time, and this version's answers."""
        cdef timespec now
        clock_gettime(CLOCK_REALTIME_COARSE, &now)
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
        self.filled = self.n_unsent = 0  # whatever an error has left belongs to somebody else
        self.body = None
        self.started_ns = now_ns()
        self.renew(snapshot.version)
        self.is_stale = len(self.stale) > 0 and wire.connection in self.stale
        self.has_shed = False
        n = ROUND
        while n == ROUND:
            n = self.read(&snapshot.view, &at, end)
            for i in range(n):
                if not self.put(snapshot, &self.asked[i]):
                    self.flush(wire)
                    return self.firsts[i]
                if (
                    (self.filled > OUT_SIZE - MAX_ANSWER or self.n_unsent == MAX_UNSENT or self.body is not None)
                    and not self.flush(wire)
                ):
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
            if self.asked[n].form == SCORE:
                prefetch(&view.lines[home_line(self.asked[n].profile_id, view.n_lines)])
            n += 1
            self.firsts[n] = at[0] = after
        return n

    cdef bint put(self, Snapshot snapshot, const Plain *plain) except -1:
        """Write one answer, and count it; False when aiohttp shall answer: then nothing is written or counted."""
        cdef const Answer *answer
        cdef char *at = self.out + self.filled
        cdef size_t length
        cdef int outcome
        if plain.form == SCORE:
            outcome = self.outcome_of(&snapshot.view, plain)
        else:
            outcome = self.batch_outcome(snapshot, plain)
        if outcome == NOT_OURS:
            return False
        answer = &self.answers[outcome]
        self.gaps[ID_GAP] = plain.digits
        self.gaps[REQUEST_ID_GAP] = self.name_of(plain)
        length = length_of(&answer.body, self.gaps) if self.body is None else PyBytes_GET_SIZE(self.body)
        self.gaps[LENGTH_GAP].length = put_uint(self.length, length) - self.length
        at = fill(at, &answer.head, self.gaps)
        if not plain.head:
            at = fill(at, &answer.body, self.gaps)
        self.filled = at - self.out
        self.unsent[self.n_unsent].route = ROUTE_SCORE if plain.form == SCORE else ROUTE_BATCH
        self.unsent[self.n_unsent].status = answer.status
        self.unsent[self.n_unsent].tier = self.tier
        self.n_unsent += 1
        return True

    cdef int outcome_of(self, const View *view, const Plain *plain) noexcept:
        """What aiohttp's handler does, in the same order: who asks, whether there is room, the limit, the look-up."""
        cdef const KeyEntry *entry = NULL
        cdef int64_t slot = find_slot(view, plain.profile_id)
        cdef uint16_t score = score_at(view, slot)
        cdef int outcome
        if score > HIGHEST_SCORE and score != UNSCORED:
            return NOT_OURS     # the snapshot is damaged
        if not self.let_in(plain, SCORE_READ, &entry):
            return NOT_OURS
        outcome = self.refusal_of(entry, SITE_READS if entry != NULL and entry.priority == SITE else PARTNER_READS)
        if outcome == ADMITTED_OUTCOME and plain.wanted.at == NULL:
            outcome = self.charged(entry, outcome, SCORE_COST)
        if outcome != ADMITTED_OUTCOME:
            return outcome
        return self.found(view, plain, slot, score, entry)

    cdef int batch_outcome(self, Snapshot snapshot, const Plain *plain) except -3:
        """The same of a batch. What is not all plain ids is read by aiohttp's handler, before anything is charged."""
        cdef const KeyEntry *entry = NULL
        cdef Asked asked
        cdef int64_t cost
        cdef int outcome
        if plain.body.length > self.body_limit or not self.let_in(plain, BATCH_SCOPE, &entry):
            return NOT_OURS
        content = PyBytes_FromStringAndSize(plain.body.at, plain.body.length)
        asked = ids_of_json(content, self.batch_limit) if plain.form == JSON_BATCH else ids_of_bytes(content)
        if asked is None or asked.total > self.batch_limit:
            return NOT_OURS
        cost = max(1, asked.total)
        if entry != NULL and (cost > entry.limit.burst or 0 < entry.limit.quota < cost):
            return NOT_OURS     # never
        outcome = self.refusal_of(entry, BATCHES)
        if outcome == ADMITTED_OUTCOME:
            outcome = self.charged(entry, ITEMS if plain.form == JSON_BATCH else RECORDS, cost)
        if outcome == ITEMS:
            self.body = asked.json(snapshot, self.seat)
        elif outcome == RECORDS:
            self.body = asked.records(snapshot, self.seat)
        if self.counters != NULL:
            self.counters.requests += self.body is not None
        return outcome

    cdef bint let_in(self, const Plain *plain, uint32_t scope, const KeyEntry **entry) noexcept:
        """Whether the caller, NULL for nobody known, has this scope; if not, aiohttp says why."""
        if plain.key.at != NULL:
            entry[0] = self.keyring.find(plain.key.at, plain.key.length)
            if entry[0] == NULL or not entry[0].scopes & scope:
                return False
        elif not self.open:
            return False
        self.tier = TIER_OPEN if entry[0] == NULL else <int>entry[0].tier
        self.gaps[FIELDS_GAP].length = 0
        self.gaps[HOLDER_GAP].length = 0 if entry[0] == NULL else HOLDER_LENGTH
        return True

    cdef int refusal_of(self, const KeyEntry *entry, int klass) noexcept:
        """OVERLOADED, or ADMITTED_OUTCOME."""
        cdef uint64_t caller = NOBODY if entry == NULL else entry.tag
        if self.is_stale:
            self.shedder.refuses(klass, caller)
        elif self.shedder.admits(klass, caller):
            return ADMITTED_OUTCOME
        self.tally.shed(klass)
        self.has_shed = not self.is_stale
        self.gaps[SECONDS_GAP].length = put_uint(self.seconds, self.shedder.retry_after()) - self.seconds
        return OVERLOADED

    cdef int charged(self, const KeyEntry *entry, int outcome, int64_t cost) noexcept:
        """This outcome, when the caller's limit allows it; else the refusal."""
        cdef Verdict verdict
        cdef int64_t wait
        if entry == NULL:
            return outcome
        self.limits.decide(entry.tag, entry.id, KEY_ID, &entry.limit, cost, now_us(), &verdict)
        self.gaps[FIELDS_GAP].length = put_fields(self.fields, &entry.limit, &verdict) - self.fields
        if verdict.outcome == ADMITTED:
            return outcome
        self.tally.limited(entry.tier, verdict.outcome)
        wait = max(1, in_seconds(verdict.retry_us))
        self.gaps[SECONDS_GAP].length = put_uint(self.seconds, wait) - self.seconds
        return EXHAUSTED_OUTCOME if verdict.outcome == EXHAUSTED else LIMITED_OUTCOME

    cdef int found(
        self, const View *view, const Plain *plain, int64_t slot, uint16_t score, const KeyEntry *entry
    ) noexcept:
        """What is answered to one who is let in. With If-None-Match it is not paid for yet: a 304 costs nothing."""
        cdef int outcome = SCORED
        cdef const Line *line
        self.count(plain.profile_id, score)
        if slot < 0:
            return self.charged(entry, UNKNOWN, SCORE_COST) if plain.wanted.at != NULL else UNKNOWN
        self.gaps[ROW_GAP].length = put_uint(<char *>self.gaps[ROW_GAP].at, slot) - self.gaps[ROW_GAP].at
        if plain.wanted.at != NULL:
            outcome = UNCHANGED if matches(plain.wanted, self.whole_tag()) else self.charged(entry, SCORED, SCORE_COST)
        if self.counters != NULL:
            self.counters.requests += outcome == SCORED or outcome == UNCHANGED
        if outcome != SCORED:
            return outcome
        if score == UNSCORED:
            return NO_SCORE
        line = &view.lines[slot // LINE_SLOTS]
        self.gaps[POINTS_GAP].length = put_points(self.points, score) - self.points
        self.gaps[CHANGES_GAP].length = put_changes(self.changes, line, slot % LINE_SLOTS) - self.changes
        return SCORED

    cdef void count(self, uint64_t profile_id, uint16_t score) noexcept:
        """One look-up, as others see it."""
        remember(self.seat, profile_id)
        if self.counters == NULL:
            return
        if score == EMPTY:
            self.counters.unknown += 1
        elif score == UNSCORED:
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
        cdef iovec parts[2]
        cdef msghdr message
        cdef ssize_t length = self.filled, sent
        cdef int64_t took
        cdef int i, n = self.n_unsent
        if n == 0:
            return True
        memset(&message, 0, sizeof(message))
        message.msg_iov, message.msg_iovlen = parts, 1
        parts[0].iov_base, parts[0].iov_len = self.out, length
        if self.body is not None:
            message.msg_iovlen = 2
            parts[1].iov_base, parts[1].iov_len = PyBytes_AS_STRING(self.body), PyBytes_GET_SIZE(self.body)
            length += PyBytes_GET_SIZE(self.body)
        sent = sendmsg(wire.descriptor, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
        took = wire.answered() - self.started_ns
        for i in range(n):
            self.tally.count(self.unsent[i].route, self.unsent[i].status, self.unsent[i].tier, COMPILED, took)
        rest = None if sent == length else self.unsent_from(max(sent, 0), self.filled)
        self.filled = self.n_unsent = 0
        self.body = None
        if rest is not None:
            wire.held = not wire.connection.finish(rest)
        if self.has_shed and not wire.held:
            self.has_shed = False
            self.pause(wire.connection)
        return not wire.held

    cdef bytes unsent_from(self, size_t sent, size_t length):
        """What the socket did not take, of what is written and the body behind it."""
        cdef bytes body = b"" if self.body is None else self.body
        if sent < length:
            return PyBytes_FromStringAndSize(self.out + sent, length - sent) + body
        return body[sent - length:]


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
        return self.answered_ns / <double>NANOSECONDS

    def data_received(self, bytes data not None):
        if self.connection is None:
            return
        if self.held:
            self.waiting = data if self.waiting is None else self.waiting + data
        elif self.site.on and self.descriptor >= 0 and len(data) and (self.ours or self.connection.may_leave()):
            self.take(data)
        else:
            self.hand_over(data)

    def go_on(self):
        data, self.waiting, self.held = self.waiting, None, False
        if data:
            self.data_received(data)

    cdef int take(self, bytes data) except -1:
        """Answer what can be answered here; the rest is for aiohttp, or waits."""
        cdef const char *start = PyBytes_AS_STRING(data)
        cdef const char *end = start + PyBytes_GET_SIZE(data)
        cdef const char *at
        self.ours = True
        at = self.site.answer(self, start, end)
        if at == end:
            return 0
        if at != start:
            data = PyBytes_FromStringAndSize(at, end - at)
        if self.held:
            self.waiting = data
        else:
            self.hand_over(data)
        return 0

    cdef int hand_over(self, bytes data) except -1:
        self.ours = False
        if self.site.on and len(data):
            self.site.tally.add(HANDED_OVER, 1)
        self.connection.receive(data)
        return 0

    cdef int64_t answered(self) except -1:
        """Now."""
        self.answered_ns = now_ns()
        if self.fresh:
            self.fresh = False
            self.connection.stop_clock()
        return self.answered_ns


cdef inline int64_t now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec * <int64_t>NANOSECONDS + now.tv_nsec


cdef inline uint16_t score_at(const View *view, int64_t slot) noexcept nogil:
    return EMPTY if slot < 0 else view.lines[slot // LINE_SLOTS].scores[slot % LINE_SLOTS]


cdef inline int64_t in_seconds(int64_t microseconds) noexcept nogil:
    """Rounded up."""
    return (microseconds + MICROSECONDS - 1) // MICROSECONDS


cdef char *put_fields(char *at, const Limit *limit, const Verdict *verdict) noexcept nogil:
    """What is told of a limit, as kserve.serving.ratelimits.fields has it."""
    cdef int64_t left = verdict.remaining
    at = put_uint(put_literal(at, b'RateLimit-Policy: "burst";q='), limit.burst)
    at = put_uint(put_literal(at, b";w="), in_seconds(limit.burst * limit.interval))
    if limit.quota:
        at = put_uint(put_literal(at, b', "day";q='), limit.quota)
        at = put_uint(put_literal(at, b";w="), DAY_SECONDS)
    at = put_uint(put_literal(at, b'\r\nRateLimit: "burst";r='), left)
    at = put_uint(put_literal(at, b";t="), in_seconds(verdict.reset_us))
    if limit.quota:
        left = min(left, verdict.left_today)
        at = put_uint(put_literal(at, b', "day";r='), verdict.left_today)
        at = put_uint(put_literal(at, b";t="), in_seconds(verdict.midnight_us))
    at = put_uint(put_literal(at, b"\r\nX-RateLimit-Limit: "), limit.burst)
    at = put_uint(put_literal(at, b"\r\nX-RateLimit-Remaining: "), left)
    at = put_uint(put_literal(at, b"\r\nX-RateLimit-Reset: "), verdict.reset_at)
    return put_literal(at, b"\r\n")


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
