"""A counter in a shared file that wakes whoever waits for it, in any process: Linux futexes."""

import mmap
import os

from libc.stdint cimport uint32_t, uint8_t

cdef extern from *:
    """
    #include <linux/futex.h>
    #include <stdint.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>

    static void kserve_wait(const uint32_t *word, uint32_t seen, double seconds) {
        struct timespec limit;
        limit.tv_sec = (time_t)seconds;
        limit.tv_nsec = (long)((seconds - (double)limit.tv_sec) * 1e9);
        syscall(SYS_futex, word, FUTEX_WAIT, seen, &limit, 0, 0);
    }
    static void kserve_wake(const uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, 0, 0, 0); }
    #define kserve_load(word) __atomic_load_n((word), __ATOMIC_ACQUIRE)
    #define kserve_increment(word) ((void)__atomic_add_fetch((word), 1, __ATOMIC_RELEASE))
    """
    void futex_wait "kserve_wait"(const uint32_t *word, uint32_t seen, double seconds) noexcept nogil
    void futex_wake "kserve_wake"(const uint32_t *word) noexcept nogil
    uint32_t load "kserve_load"(const uint32_t *word) noexcept nogil
    void increment "kserve_increment"(uint32_t *word) noexcept nogil

SIZE = 4096


cdef class Doorbell:
    """See the stub. The mapping outlives its descriptor, and the file is never replaced."""

    cdef const uint8_t[::1] pages
    cdef uint8_t[::1] writable

    def __init__(self, path, writable=False):
        descriptor = os.open(path, (os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY) | os.O_CLOEXEC, 0o644)
        try:
            if writable and os.fstat(descriptor).st_size < SIZE:
                os.posix_fallocate(descriptor, 0, SIZE)
            if os.fstat(descriptor).st_size < SIZE:
                raise OSError(f"{path} is shorter than {SIZE} bytes")
            self.pages = mmap.mmap(descriptor, SIZE, prot=mmap.PROT_READ)
            self.writable = mmap.mmap(descriptor, SIZE) if writable else None
        finally:
            os.close(descriptor)

    def count(self):
        return load(<const uint32_t *>&self.pages[0])

    def wait(self, uint32_t seen, double seconds):
        with nogil:
            futex_wait(<const uint32_t *>&self.pages[0], seen, seconds)

    def wake(self):
        futex_wake(<const uint32_t *>&self.pages[0])

    def ring(self):
        if self.writable is None:
            raise OSError("this doorbell was opened for reading")
        increment(<uint32_t *>&self.writable[0])
        self.wake()
