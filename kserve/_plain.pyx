"""What a plain request is. Tables say which bytes and which header names it may have; docs/wire.md explains them.

A plain request is what every reader of HTTP/1.1 takes for the same request. Whatever could be read in two ways, or
changes more than which answer is given, is not plain.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcmp, memset, strlen

__all__ = ["HARMLESS", "UNDERSTOOD", "classify"]

cdef enum:                      # what a header is to an answer
    NOTHING = 0
    HOST = 1                    # once, as HTTP/1.1 demands; whose it is makes no difference
    CONNECTION = 2
    AUTHORIZATION = 3
    API_KEY = 4
    IF_NONE_MATCH = 5
    REQUEST_ID = 6
    ACCEPT = 7
    CONTENT_TYPE = 8
    CONTENT_LENGTH = 9

cdef enum:
    MAX_DIGITS = 20
    MAX_FIELD = 8190            # bytes of a header, as aiohttp has it
    MAX_NAME = 32
    MAX_NAMES = 64              # one bit for each of them
    MAX_REQUEST_ID = 64
    MAX_LENGTH = 9              # digits of a Content-Length

cdef enum:                      # what a byte may be part of
    KEY_BYTE = 1
    REQUEST_ID_BYTE = 2

UNDERSTOOD = {
    "host": HOST,
    "connection": CONNECTION,
    "authorization": AUTHORIZATION,
    "x-api-key": API_KEY,
    "if-none-match": IF_NONE_MATCH,
    "x-request-id": REQUEST_ID,
    "accept": ACCEPT,
    "content-type": CONTENT_TYPE,
    "content-length": CONTENT_LENGTH,
}

HARMLESS = frozenset(
    """
    accept-charset accept-encoding accept-language baggage cache-control cf-connecting-ip cf-ipcountry cf-ray
    cookie dnt forwarded from if-modified-since keep-alive origin pragma priority purpose referer sec-ch-ua
    sec-ch-ua-mobile sec-ch-ua-platform sec-fetch-dest sec-fetch-mode sec-fetch-site sec-fetch-user sec-gpc traceparent
    tracestate true-client-ip upgrade-insecure-requests user-agent via x-amzn-trace-id x-b3-parentspanid x-b3-sampled
    x-b3-spanid x-b3-traceid x-client-ip x-cloud-trace-context x-correlation-id x-forwarded-for x-forwarded-host
    x-forwarded-port x-forwarded-proto x-forwarded-server x-real-ip x-requested-with
    """.split()
)

cdef extern from *:
    """
    #include <stdint.h>
    #if defined(__SSE2__)
    #include <emmintrin.h>
    #endif

    /* The first byte from `at` on that is no visible character and no blank, or `end`. */
    static inline const char *kserve_visible(const char *at, const char *end) {
    #if defined(__SSE2__)
        const __m128i blank = _mm_set1_epi8(' '), del = _mm_set1_epi8(0x7f);
        for (; end - at >= 16; at += 16) {
            const __m128i bytes = _mm_loadu_si128((const __m128i *)at);
            const __m128i others = _mm_or_si128(_mm_cmplt_epi8(bytes, blank), _mm_cmpeq_epi8(bytes, del));
            const int found = _mm_movemask_epi8(others);
            if (found)
                return at + __builtin_ctz(found);
        }
    #endif
        while (at < end && *at >= ' ' && *at < 0x7f)
            at++;
        return at;
    }
    """
    const char *visible "kserve_visible"(const char *at, const char *end) noexcept nogil

cdef struct Name:
    char text[MAX_NAME]
    uint8_t fold[MAX_NAME]      # the bit that tells small letters from capital ones
    uint8_t kind

# Filled once, by the import.
cdef Name names[MAX_NAMES]
cdef int first_of[MAX_NAME + 1]     # names, by their length
cdef uint8_t part_of[256]


cdef const char *parse(const char *at, const char *end, Plain *plain) noexcept nogil:
    cdef uint64_t seen = 0      # a bit for each name
    cdef bint host = False
    memset(plain, 0, sizeof(Plain))
    at = request_line(at, end, plain)
    while at != NULL and not (end - at >= 2 and at[0] == c"\r" and at[1] == c"\n"):
        at = header(at, end, plain, &seen, &host)
    if at == NULL or not host:
        return NULL
    return at + 2 if plain.form == SCORE else body(at + 2, end, plain)


cdef inline bint begins(const char *at, const char *end, const char *text) noexcept nogil:
    cdef size_t length = strlen(text)
    return <size_t>(end - at) >= length and memcmp(at, text, length) == 0


cdef inline const char *request_line(const char *at, const char *end, Plain *plain) noexcept nogil:
    """Behind ``GET /v3/scores/{id}[?key=...] HTTP/1.1`` or ``POST /v3/scores/batch HTTP/1.1``; else NULL."""
    if begins(at, end, b"GET /v3/scores/"):
        at += 15
    elif begins(at, end, b"HEAD /v3/scores/"):
        at += 16
        plain.head = True
    elif begins(at, end, b"POST /v3/scores/batch HTTP/1.1\r\n"):
        plain.form = BATCH
        return at + 32
    else:
        return NULL
    plain.digits.at = at
    at = number(at, end, &plain.profile_id)
    if at == NULL:
        return NULL
    plain.digits.length = at - plain.digits.at
    if begins(at, end, b"?key="):
        plain.key.at = at + 5
        at = span(plain.key.at, end, KEY_BYTE)
        plain.key.length = at - plain.key.at
        if plain.key.length == 0:
            return NULL
    return at + 11 if begins(at, end, b" HTTP/1.1\r\n") else NULL


cdef inline const char *body(const char *at, const char *end, Plain *plain) noexcept nogil:
    """Behind the body of a batch that is all there, and is to be answered in the form that it has; else NULL."""
    if plain.form == BATCH or plain.body.at == NULL or <size_t>(end - at) < plain.body.length:
        return NULL
    if plain.accept.at != NULL and not accepts(plain.accept, plain.form):
        return NULL
    plain.body.at = at
    return at + plain.body.length


cdef inline bint accepts(Text value, int form) noexcept nogil:
    """Whether an Accept is for any type, or for this one alone."""
    cdef size_t i
    for i in range(2, value.length):
        if memcmp(value.at + i - 2, b"*/*", 3) == 0:
            return True
    return form_of(value) == form


cdef inline int form_of(Text value) noexcept nogil:
    """The form of a batch of this type; BATCH for types that are not plain."""
    if is_text(value, b"application/json"):
        return JSON_BATCH
    return RECORD_BATCH if is_text(value, b"application/octet-stream") else BATCH


cdef inline bint is_text(Text value, const char *wanted) noexcept nogil:
    return value.length == strlen(wanted) and memcmp(value.at, wanted, value.length) == 0


cdef inline const char *number(const char *at, const char *end, uint64_t *found) noexcept nogil:
    """Behind 1 to 20 digits that make a number below 2^64, without leading zeros; else NULL."""
    cdef const char *first = at
    cdef uint64_t value = 0, digit
    while at < end and at - first <= MAX_DIGITS:
        digit = <uint64_t><uint8_t>at[0] - c"0"
        if digit > 9:
            break
        if at - first == MAX_DIGITS - 1 and (value > <uint64_t>-1 // 10 or value * 10 > <uint64_t>-1 - digit):
            return NULL
        value = value * 10 + digit
        at += 1
    found[0] = value
    if at == first or at - first > MAX_DIGITS or (first[0] == c"0" and at - first > 1):
        return NULL
    return at


cdef inline const char *span(const char *at, const char *end, uint8_t part) noexcept nogil:
    while at < end and part_of[<uint8_t>at[0]] & part:
        at += 1
    return at


cdef inline const char *header(
    const char *at, const char *end, Plain *plain, uint64_t *seen, bint *host
) noexcept nogil:
    """Behind one header that a plain request may have, each but once; else NULL."""
    cdef Text value
    cdef const char *first = at
    cdef int name
    while at < end and at - first <= MAX_NAME and at[0] != c":":
        at += 1
    name = name_of(first, at - first)
    if name < 0 or seen[0] >> name & 1:
        return NULL
    seen[0] |= <uint64_t>1 << name
    at += 1                     # the colon: a name ends before `end`, or it would not be one
    if at < end and at[0] == c" ":
        at += 1
    value.at = at
    at = visible(at, end)
    value.length = at - value.at
    if value.length == 0 or at - first > MAX_FIELD or value.at[0] == c" " or (at - 1)[0] == c" ":
        return NULL
    if not begins(at, end, b"\r\n") or not takes(names[name].kind, value, plain, host):
        return NULL
    return at + 2


cdef inline int name_of(const char *at, size_t length) noexcept nogil:
    """Which of our names this is, in whatever case; -1 for another."""
    cdef size_t i
    cdef int name
    if length >= MAX_NAME:
        return -1
    for name in range(first_of[length], first_of[length + 1]):
        i = 0
        while i < length and (<uint8_t>at[i] | names[name].fold[i]) == <uint8_t>names[name].text[i]:
            i += 1
        if i == length:
            return name
    return -1


cdef inline bint takes(uint8_t kind, Text value, Plain *plain, bint *host) noexcept nogil:
    """Whether a request with this header is plain still."""
    if kind == NOTHING:
        return True
    if kind == HOST:
        host[0] = True
        return True
    if kind == CONNECTION:
        return is_keep_alive(value)
    if kind == IF_NONE_MATCH:
        plain.wanted = value
        return True
    if kind == REQUEST_ID:
        if value.length <= MAX_REQUEST_ID and span(value.at, value.at + value.length, REQUEST_ID_BYTE)[0] == c"\r":
            plain.given = value
        return True
    if kind == ACCEPT:
        plain.accept = value
        return True
    if kind == CONTENT_TYPE or kind == CONTENT_LENGTH:
        return plain.form != SCORE and takes_body(kind, value, plain)
    if plain.key.at != NULL:
        return False
    if kind == AUTHORIZATION:
        if not begins(value.at, value.at + value.length, b"Bearer "):
            return False
        value.at += 7
        value.length -= 7
    plain.key = value
    return span(value.at, value.at + value.length, KEY_BYTE)[0] == c"\r"


cdef inline bint takes_body(uint8_t kind, Text value, Plain *plain) noexcept nogil:
    """Whether a batch with this type or this length is plain still."""
    cdef uint64_t length = 0
    if kind == CONTENT_TYPE:
        plain.form = form_of(value)
        return plain.form != BATCH
    if value.length > MAX_LENGTH or number(value.at, value.at + value.length, &length) != value.at + value.length:
        return False
    plain.body.at = value.at    # there is one: it is found when the head ends
    plain.body.length = length
    return True


cdef inline bint is_keep_alive(Text value) noexcept nogil:
    cdef const char *wanted = b"keep-alive"
    cdef size_t i
    if value.length != 10:
        return False
    for i in range(10):
        if i != 4 and (value.at[i] | 0x20) != wanted[i]:
            return False
    return value.at[4] == c"-"


cdef bint matches(Text wanted, Text tag) noexcept nogil:
    cdef const char *at = wanted.at
    cdef const char *end = at + wanted.length
    cdef const char *last
    if wanted.length == 1 and at[0] == c"*":
        return True
    while at <= end:
        last = at
        while last < end and last[0] != c",":
            last += 1
        if is_tag(at, last, tag):
            return True
        at = last + 1
    return False


cdef inline bint is_tag(const char *at, const char *end, Text tag) noexcept nogil:
    """Whether this is the tag, between blanks; with ``W/`` before it or not."""
    while at < end and at[0] == c" ":
        at += 1
    while at < end and (end - 1)[0] == c" ":
        end -= 1
    if begins(at, end, b"W/"):
        at += 2
    return (
        <size_t>(end - at) == tag.length + 2 and at[0] == c'"' and (end - 1)[0] == c'"'
        and memcmp(at + 1, tag.at, tag.length) == 0
    )


def classify(bytes data not None):
    """What the compiled path makes of bytes at the start of a request; see the stub."""
    cdef const char *start = PyBytes_AS_STRING(data)
    cdef const char *end = start + PyBytes_GET_SIZE(data)
    cdef const char *at = start
    cdef const char *after
    cdef Plain plain
    found = []
    while at < end:
        after = parse(at, end, &plain)
        if after == NULL:
            found.append((at - start, end - start, "other"))
            break
        found.append((at - start, after - start, "post" if plain.form else "head" if plain.head else "get"))
        at = after
    return found


cdef int _index() except -1:
    kinds = dict.fromkeys(HARMLESS, NOTHING) | UNDERSTOOD
    if len(kinds) > MAX_NAMES or max(map(len, kinds)) >= MAX_NAME:
        raise ImportError("there is no room for that many headers, or for such long ones")
    for i, (text, kind) in enumerate(sorted(kinds.items(), key=lambda item: (len(item[0]), item[0]))):
        names[i].kind = kind
        for k, byte in enumerate(text.encode()):
            names[i].text[k] = byte
            names[i].fold[k] = 0x20 if chr(byte).isalpha() else 0
    for length in range(MAX_NAME + 1):
        first_of[length] = sum(len(text) < length for text in kinds)
    for byte in range(128):
        if chr(byte).isalnum() or chr(byte) == "_":
            part_of[byte] |= KEY_BYTE
        if chr(byte).isalnum() or chr(byte) in "._-":
            part_of[byte] |= REQUEST_ID_BYTE
    return 0


_index()
