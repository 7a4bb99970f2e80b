from libc.stdint cimport int64_t

from kserve._mapping cimport Mapping

cdef class Snapshot(Mapping):
    cdef dict rules             # compiled ones, by Rule

    cdef int64_t slot_of(self, object profile_id) except -1

cdef class Store:
    cdef object __weakref__
    cdef Snapshot current
    cdef object stop

    cdef Snapshot pinned(self)
