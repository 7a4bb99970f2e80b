from libc.stdint cimport uint8_t

from kserve._view cimport View
from kserve.layout cimport Header

cdef class Mapping:
    cdef object __weakref__
    cdef readonly str path
    cdef readonly str version
    cdef const uint8_t *base
    cdef size_t size
    cdef View view
    cdef object _vocabulary

    cdef const Header *header(self) noexcept nogil
    cdef const uint8_t *at(self, int kind) noexcept
