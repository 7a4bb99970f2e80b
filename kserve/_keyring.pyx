"""Keys that have been authenticated, by a hash of their text: what a request with one of them costs is this look-up.

SipHash-2-4 with 128 bits, under a random key of the process, stands for the text, which is not kept.
"""

import os
import time

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from libc.time cimport time as seconds

from kserve._atomic cimport get, put
from kserve._limits cimport KEY, set_limit, tag_of

cdef extern from *:
    Table *get_table "kserve_get"(Table **table) noexcept nogil
    void put_table "kserve_put"(Table **table, Table *value) noexcept nogil

__all__ = ["GRACE_SECONDS", "PRIORITIES", "SCOPE_BITS", "Keyring", "siphash", "tag_of_key"]

SCOPE_BITS = {
    "score:read": SCORE_READ,
    "batch": BATCH,
    "claim": CLAIM,
    "revoke": REVOKE,
    "publish": PUBLISH,
    "admin": ADMIN,
    "console": CONSOLE,
}
PRIORITIES = {"site": SITE, "partner": PARTNER}
GRACE_SECONDS = 5.0

cdef enum:
    FEWEST = 64      # slots of a table; at most half of them are used
    SEED_BYTES = 16


cdef class Keyring:
    """See the stub. Who changes it holds the GIL; who reads need not."""

    def __cinit__(self, seed=None):
        cdef const uint8_t[::1] bits = os.urandom(SEED_BYTES) if seed is None else seed
        if bits.shape[0] != SEED_BYTES:
            raise ValueError(f"a seed has {SEED_BYTES} bytes")
        memcpy(self.seed, &bits[0], SEED_BYTES)
        self.holders = []
        self.table = made_table(FEWEST)

    def __dealloc__(self):
        free_tables(self.table)

    def __len__(self):
        return self.table.used

    cdef const KeyEntry *find(self, const char *text, size_t length) noexcept nogil:
        cdef uint64_t[2] hashed
        if length != KEY_TEXT:
            return NULL
        hash_text(self.seed, <const uint8_t *>text, length, hashed)
        cdef const Slot *slot = look_up(get_table(&self.table), hashed)
        if slot == NULL or (slot.entry.expires and slot.entry.expires <= <int64_t>seconds(NULL)):
            return NULL
        return &slot.entry

    def get(self, text):
        cdef bytes given = text.encode("utf-8", "surrogatepass")
        cdef const KeyEntry *entry = self.find(given, len(given))
        return None if entry == NULL else self.holders[entry.holder]

    def known(self, const uint8_t[::1] texts):
        cdef Py_ssize_t place
        cdef uint64_t found = 0
        with nogil:
            for place in range(texts.shape[0] // KEY_TEXT):
                found += self.find(<const char *>&texts[place * KEY_TEXT], KEY_TEXT) != NULL
        return found

    def add(self, text, holder, *, key_id, scopes, tier, limit, expires=0):
        cdef bytes given = text.encode("ascii")
        cdef bytes name = key_id.encode("ascii")
        if len(given) != KEY_TEXT or len(name) != KEY_ID:
            raise ValueError(f"a key has {KEY_TEXT} characters, and its id {KEY_ID}")
        cdef Slot made
        cdef uint64_t[2] hashed
        hash_text(self.seed, <const uint8_t *><const char *>given, KEY_TEXT, hashed)
        if look_up(self.table, hashed) != NULL:
            return
        made.low, made.high = hashed[0], hashed[1]
        memcpy(made.entry.id, <const char *>name, KEY_ID)
        made.entry.tag = tag_of(KEY, name, KEY_ID)
        set_limit(&made.entry.limit, limit)
        made.entry.scopes, made.entry.tier, made.entry.expires = scopes, tier, expires
        made.entry.priority = PRIORITIES[limit.priority]
        if 2 * (self.table.used + 1) > self.table.mask + 1:
            self.rebuild(2 * (self.table.mask + 1), ())
        made.entry.holder = <uint32_t>len(self.holders)
        self.holders.append(holder)
        put_slot(self.table, &made)

    def forget(self, ids=None):
        self.rebuild(FEWEST if ids is None else self.table.mask + 1, ids)

    cdef int rebuild(self, uint64_t slots, object leave) except -1:
        """A table without the keys of these ids, or (None) without any; the old one is freed when nobody is in it."""
        cdef Table *old = self.table
        cdef Table *fresh = made_table(slots)
        cdef list holders = []
        cdef Slot kept
        cdef uint64_t place
        if leave is not None:
            for place in range(old.mask + 1):
                kept = old.slots[place]
                if kept.low and kept.entry.id[:KEY_ID].decode("ascii") not in leave:
                    holders.append(self.holders[kept.entry.holder])
                    kept.entry.holder = <uint32_t>(len(holders) - 1)
                    put_slot(fresh, &kept)
        self.holders = holders
        old.replaced = time.monotonic()
        fresh.older = old
        put_table(&self.table, fresh)
        free_unused(fresh, old.replaced - GRACE_SECONDS)
        return 0


cdef Table *made_table(uint64_t slots) except NULL:
    """All free; ``slots`` is a power of two."""
    cdef Table *table = <Table *>calloc(1, sizeof(Table))
    if table != NULL:
        table.slots = <Slot *>calloc(slots, sizeof(Slot))
    if table == NULL or table.slots == NULL:
        free(table)
        raise MemoryError()
    table.mask = slots - 1
    return table


cdef void free_tables(Table *table) noexcept:
    """This one, and all that were replaced before it."""
    cdef Table *older
    while table != NULL:
        older = table.older
        free(table.slots)
        free(table)
        table = older


cdef void free_unused(Table *table, double before) noexcept:
    """Those that were replaced before that time."""
    while table.older != NULL:
        if table.older.replaced < before:
            free_tables(table.older)
            table.older = NULL
            return
        table = table.older


cdef const Slot *look_up(const Table *table, const uint64_t *hashed) noexcept nogil:
    """The slot of this hash; NULL when there is none. Words are compared whole: the time tells nothing of a hash."""
    cdef uint64_t place = hashed[0]
    cdef const Slot *slot
    cdef uint64_t low
    while True:
        slot = &table.slots[place & table.mask]
        low = get(&slot.low)
        if low == 0:
            return NULL
        if ((low ^ hashed[0]) | (slot.high ^ hashed[1])) == 0:
            return slot
        place += 1


cdef void put_slot(Table *table, const Slot *made) noexcept:
    """Into a free slot, of which there must be one; who reads meanwhile sees it whole or not at all."""
    cdef uint64_t place = made.low
    cdef Slot *slot
    while table.slots[place & table.mask].low:
        place += 1
    slot = &table.slots[place & table.mask]
    slot.high = made.high
    slot.entry = made.entry
    put(&slot.low, made.low)
    table.used += 1


def tag_of_key(key_id):
    cdef bytes name = key_id.encode("ascii")
    return tag_of(KEY, name, len(name))


def siphash(bytes key not None, bytes text not None):
    cdef uint64_t[2] seed
    cdef uint64_t[2] hashed
    if len(key) != SEED_BYTES:
        raise ValueError(f"a seed has {SEED_BYTES} bytes")
    memcpy(seed, <const char *>key, SEED_BYTES)
    siphash_2_4_128(seed, <const uint8_t *><const char *>text, len(text), hashed)
    return (<const char *>hashed)[:16]


cdef inline void hash_text(
    const uint64_t *seed, const uint8_t *text, size_t length, uint64_t *hashed
) noexcept nogil:
    """What stands for a text in the table, where 0 means free."""
    siphash_2_4_128(seed, text, length, hashed)
    hashed[0] += hashed[0] == 0


cdef inline void siphash_2_4_128(
    const uint64_t *seed, const uint8_t *text, size_t length, uint64_t *hashed
) noexcept nogil:
    """Aumasson and Bernstein, SipHash: a fast short-input PRF, 2012, with the 128 bits of their reference code."""
    cdef uint64_t[4] v
    cdef uint64_t word
    cdef size_t place
    v[0] = seed[0] ^ <uint64_t>0x736F6D6570736575
    v[1] = seed[1] ^ <uint64_t>0x646F72616E646F6D ^ 0xEE
    v[2] = seed[0] ^ <uint64_t>0x6C7967656E657261
    v[3] = seed[1] ^ <uint64_t>0x7465646279746573
    for place in range(0, length & ~<size_t>7, 8):
        memcpy(&word, text + place, 8)
        absorb(v, word)
    word = 0
    memcpy(&word, text + (length & ~<size_t>7), length & 7)
    absorb(v, word | <uint64_t>length << 56)
    v[2] ^= 0xEE
    hashed[0] = finish(v)
    v[1] ^= 0xDD
    hashed[1] = finish(v)


cdef inline void absorb(uint64_t *v, uint64_t word) noexcept nogil:
    v[3] ^= word
    mix(v)
    mix(v)
    v[0] ^= word


cdef inline uint64_t finish(uint64_t *v) noexcept nogil:
    mix(v)
    mix(v)
    mix(v)
    mix(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


cdef inline void mix(uint64_t *v) noexcept nogil:
    """One SipRound."""
    v[0] += v[1]
    v[2] += v[3]
    v[1] = turned(v[1], 13) ^ v[0]
    v[3] = turned(v[3], 16) ^ v[2]
    v[0] = turned(v[0], 32)
    v[2] += v[1]
    v[0] += v[3]
    v[1] = turned(v[1], 17) ^ v[2]
    v[3] = turned(v[3], 21) ^ v[0]
    v[2] = turned(v[2], 32)


cdef inline uint64_t turned(uint64_t word, int bits) noexcept nogil:
    return word << bits | word >> (64 - bits)
