# What a plain request is: the two forms that the compiled path answers. Everything else is for aiohttp.

from libc.stdint cimport uint64_t

cdef struct Text:               # a part of what was read; at is NULL when it is not there
    const char *at
    size_t length

cdef enum:                      # forms
    SCORE = 0                   # GET or HEAD of one score
    BATCH = 1                   # POST of a batch, whose type is not known yet: no plain request is this
    JSON_BATCH = 2
    RECORD_BATCH = 3

cdef struct Plain:
    int form
    uint64_t profile_id
    Text digits                 # the id as it was written
    Text key                    # as Bearer, X-Api-Key or ?key=; not more than one of them
    Text wanted                 # If-None-Match
    Text given                  # X-Request-Id, when it is well-formed
    Text accept
    Text body                   # of a batch; all of it is there
    bint head                   # HEAD, not GET

# The first byte behind the plain request that begins at `at`; NULL when none does, or when it is not whole yet.
cdef const char *parse(const char *at, const char *end, Plain *plain) noexcept nogil

# Whether an If-None-Match names this entity tag, compared weakly. The tag is without quotes, and has no comma in it.
cdef bint matches(Text wanted, Text tag) noexcept nogil
