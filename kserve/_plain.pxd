# What a plain request is: the one form that the compiled path answers. Everything else is for aiohttp.

from libc.stdint cimport uint64_t

cdef struct Text:               # a part of what was read; at is NULL when it is not there
    const char *at
    size_t length

cdef struct Plain:
    uint64_t profile_id
    Text digits                 # the id as it was written
    Text key                    # as Bearer, X-Api-Key or ?key=; not more than one of them
    Text wanted                 # If-None-Match
    Text given                  # X-Request-Id, when it is well-formed
    bint head                   # HEAD, not GET

# The first byte behind the plain request that begins at `at`; NULL when none does, or when it is not whole yet.
cdef const char *parse(const char *at, const char *end, Plain *plain) noexcept nogil

# Whether an If-None-Match names this entity tag, compared weakly. The tag is without quotes, and has no comma in it.
cdef bint matches(Text wanted, Text tag) noexcept nogil
