from libc.stdint cimport int64_t, uint64_t

from kserve._mapping cimport Mapping
from kserve._view cimport View

cdef enum:
    BATCH = 256                 # ids that are looked up at once

cdef class Snapshot(Mapping):
    cdef dict rules             # compiled ones, by Rule

    cdef int64_t slot_of(self, object profile_id) except -1

cdef class Store:
    cdef object __weakref__
    cdef Snapshot current
    cdef object stop

    cdef Snapshot pinned(self)

cdef void find_many(const View *view, const uint64_t *ids, Py_ssize_t n, int64_t *slots) noexcept nogil
