cimport numpy as cnp
from libc.stdint cimport int64_t, uint32_t

from kserve._core cimport Snapshot
from kserve._roster cimport Seat
from kserve._view cimport View

cdef struct Text:
    uint32_t start              # of the digits of an id, in the body
    uint32_t length

cdef class Asked:
    cdef Py_ssize_t total
    cdef cnp.ndarray numbers    # uint64: the ids
    cdef cnp.ndarray texts      # Text of each
    cdef bytes body             # that the texts are in; None: the ids came as numbers

    cpdef bytes json(self, Snapshot snapshot, Seat seat)
    cpdef bytes records(self, Snapshot snapshot, Seat seat)
    cdef Py_ssize_t look_up(self, const View *view, Seat seat, Py_ssize_t start, int64_t *slots) noexcept
    cdef char *put_id(self, char *at, Py_ssize_t i) noexcept

cpdef Asked ids_of_json(bytes body, Py_ssize_t limit)
cpdef Asked ids_of_bytes(bytes body)
