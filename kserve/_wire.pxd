from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from kserve._core cimport Snapshot, Store
from kserve._json cimport MAX_CHANGES, MAX_UINT, SLACK
from kserve._keyring cimport KeyEntry, Keyring
from kserve._limits cimport Limits
from kserve._patterns cimport N_GAPS, Pattern
from kserve._plain cimport Plain, Text
from kserve._roster cimport Counters, Seat
from kserve._shed cimport Shedder
from kserve._tally cimport Tally
from kserve._view cimport View

cdef enum:                      # outcomes, in the order of OUTCOMES
    SCORED
    NO_SCORE
    UNCHANGED
    UNKNOWN
    ITEMS                       # of a batch
    RECORDS
    LIMITED_OUTCOME
    EXHAUSTED_OUTCOME
    OVERLOADED
    N_OUTCOMES
    NOT_OURS = -1               # aiohttp shall answer
    ADMITTED_OUTCOME = -2       # no answer yet

cdef enum:
    MAX_FIXED = 1536            # bytes of an answer without what fills its gaps
    MAX_ANSWER = 3072
    MAX_FIELDS = 512            # bytes of what is told of a limit
    ROUND = 32                  # requests that are looked up together
    OUT_SIZE = 64 * 1024        # bytes that are sent at once
    MAX_UNSENT = 512            # answers that are sent at once

cdef struct Answer:             # of one outcome
    int status
    Pattern head
    Pattern body

cdef struct Sent:               # an answer, as it is counted
    int route
    int status
    int tier

cdef class Numbers:
    cdef uint64_t last

cdef class WireSite:
    cdef public bint on         # False: everything is for aiohttp
    cdef bint open              # those without a key are answered
    cdef Py_ssize_t batch_limit
    cdef size_t body_limit
    cdef Store store
    cdef Seat seat
    cdef Keyring keyring
    cdef Limits limits
    cdef Shedder shedder
    cdef set stale
    cdef object pause
    cdef Tally tally
    cdef Numbers numbers
    cdef object patterns
    cdef str version            # that the answers are made for
    cdef list kept              # what they point into
    cdef Answer answers[N_OUTCOMES]
    cdef size_t prefix_length
    cdef int64_t second         # that the date tells
    cdef Text gaps[N_GAPS]
    cdef char date[32]
    cdef char request_id[64]
    cdef char points[16]
    cdef char changes[MAX_CHANGES + SLACK]
    cdef char length[MAX_UINT + SLACK]
    cdef char seconds[MAX_UINT + SLACK]
    cdef char fields[MAX_FIELDS]
    cdef char holder[16]
    cdef char tag[96]           # the version, a dash, the row

    # Of the read that is being answered.
    cdef Counters *counters
    cdef int64_t started_ns
    cdef bint is_stale          # it has waited for too long to be served
    cdef bint has_shed
    cdef int tier               # of the request in hand
    cdef Plain asked[ROUND]
    cdef const char *firsts[ROUND + 1]
    cdef char *out
    cdef size_t filled
    cdef bytes body             # of the last answer that is written, behind all that is in `out`; None: it has none
    cdef Sent unsent[MAX_UNSENT]
    cdef int n_unsent

    cdef int renew(self, str version) except -1
    cdef int learn(self, str version) except -1
    cdef const char *answer(self, Wire wire, const char *at, const char *end) except NULL
    cdef int read(self, const View *view, const char **at, const char *end) noexcept
    cdef bint put(self, Snapshot snapshot, const Plain *plain) except -1
    cdef int outcome_of(self, const View *view, const Plain *plain) noexcept
    cdef int batch_outcome(self, Snapshot snapshot, const Plain *plain) except -3
    cdef bint let_in(self, const Plain *plain, uint32_t scope, const KeyEntry **entry) noexcept
    cdef int refusal_of(self, const KeyEntry *entry, int klass) noexcept
    cdef int charged(self, const KeyEntry *entry, int outcome, int64_t cost) noexcept
    cdef int found(
        self, const View *view, const Plain *plain, int64_t slot, uint16_t score, const KeyEntry *entry
    ) noexcept
    cdef void count(self, uint64_t profile_id, uint16_t score) noexcept
    cdef Text whole_tag(self) noexcept
    cdef Text name_of(self, const Plain *plain) noexcept
    cdef bint flush(self, Wire wire) except -1
    cdef bytes unsent_from(self, size_t sent, size_t length)

cdef class Wire:
    cdef WireSite site
    cdef object connection      # None: it is lost
    cdef int descriptor         # -1: aiohttp has the connection for good
    cdef readonly bint ours     # aiohttp has nothing of what comes next, and nothing to do or to send
    cdef bint fresh             # nothing is answered yet
    cdef readonly bint held     # an answer waits for the client to read, and what came since waits for that
    cdef bytes waiting
    cdef int64_t answered_ns    # the last answer, CLOCK_MONOTONIC

    cdef int take(self, bytes data) except -1
    cdef int64_t answered(self) except -1
    cdef int hand_over(self, bytes data) except -1
