# Words of memory that processes or threads share: each is read and written whole, and what was written before it is
# seen by whoever reads it.

from libc.stdint cimport int64_t, uint64_t

cdef extern from *:
    """
    #define kserve_get(word) __atomic_load_n((word), __ATOMIC_ACQUIRE)
    #define kserve_put(word, value) __atomic_store_n((word), (value), __ATOMIC_RELEASE)
    #define kserve_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    """
    uint64_t get "kserve_get"(const uint64_t *word) noexcept nogil
    int64_t get_time "kserve_get"(const int64_t *word) noexcept nogil
    void put "kserve_put"(uint64_t *word, uint64_t value) noexcept nogil
    void fence "kserve_fence"() noexcept nogil
