from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from kserve._limits cimport Limit

cdef enum:
    KEY_ID = 12      # characters of a key's id
    KEY_TEXT = 59    # of a whole key

cdef enum:           # bits of KeyEntry.scopes
    SCORE_READ = 1
    BATCH = 2
    CLAIM = 4
    REVOKE = 8
    PUBLISH = 16
    ADMIN = 32
    CONSOLE = 64

cdef enum:           # KeyEntry.priority
    SITE = 0
    PARTNER = 1

cdef struct KeyEntry:
    uint64_t tag         # of the id, as _limits knows it; tells callers apart for shedding too
    Limit limit
    int64_t expires      # seconds since 1970; 0: never
    uint32_t scopes
    uint32_t holder      # place in Keyring.holders
    uint8_t tier         # number of the tier in this process
    uint8_t priority
    char id[KEY_ID]      # without an end mark: the name of its bucket

cdef struct Slot:
    uint64_t low         # hash of the key's text; 0: free
    uint64_t high
    KeyEntry entry

cdef struct Table:
    uint64_t mask
    uint64_t used
    double replaced      # seconds of the monotonic clock; readers may still be in it
    Table *older         # replaced before it
    Slot *slots

cdef class Keyring:
    cdef uint64_t[2] seed
    cdef Table *table
    cdef list holders

    # NULL: not known, or expired; the slow path authenticates and adds. Any thread, with or without the GIL. What it
    # points to stays as it is for GRACE_SECONDS, whatever happens to the key: use it for one request, keep nothing.
    cdef const KeyEntry *find(self, const char *text, size_t length) noexcept nogil
    cdef int rebuild(self, uint64_t slots, object leave) except -1
