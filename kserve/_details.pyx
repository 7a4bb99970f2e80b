"""What a look-up of scores does not need, written: detail records, and the index of identities over them."""

import numpy as np

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from kserve._view cimport Detail, View, find_identity, fingerprint, read_detail
from kserve.layout cimport *

__all__ = ["DETAIL_COLUMNS", "DETAIL_OVERHEAD", "TEXT_COLUMNS", "encode_details", "index_identities"]

TEXT_COLUMNS = ("nick", "tw_id", "tw_name", "gp_id", "fb_id", "ig_id")
"""By DetailField."""

DETAIL_COLUMNS = (*TEXT_COLUMNS, "influencers", "influencees", "influencer_count", "influencee_count")

DETAIL_OVERHEAD = 110
"""Bytes of a detail record without its texts, at most."""


cdef struct Details:
    const int64_t *text_offsets[TEXT_FIELDS]    # NULL: the input has no such column
    const uint8_t *texts[TEXT_FIELDS]
    const uint8_t *list_lengths[2]
    const uint64_t *lists[2]
    const uint32_t *counts[2]


cdef uint8_t *encode(const Details *row_of, Py_ssize_t row, uint8_t *to, uint64_t *identities) noexcept nogil:
    """The detail record of a row; where it ends, which is `to` when there is nothing to say."""
    cdef uint8_t *start = to
    cdef uint32_t present = 0
    cdef int64_t begin, length
    cdef int field
    to += 2
    for field in range(TEXT_FIELDS):
        if row_of.text_offsets[field] == NULL:
            continue
        begin = row_of.text_offsets[field][row]
        length = row_of.text_offsets[field][row + 1] - begin
        if length:
            present |= 1 << field
            identities[0] += field != NICK
            to[0] = <uint8_t>length
            memcpy(to + 1, row_of.texts[field] + begin, length)
            to += 1 + length
    for field in range(2):
        if row_of.list_lengths[field] != NULL and row_of.list_lengths[field][row]:
            present |= 1 << (INFLUENCERS + field)
            length = row_of.list_lengths[field][row]
            to[0] = <uint8_t>length
            memcpy(to + 1, row_of.lists[field], 8 * length)
            to += 1 + 8 * length
    for field in range(2):
        if row_of.counts[field] != NULL and row_of.counts[field][row] != UNKNOWN_COUNT:
            present |= 1 << (INFLUENCER_COUNT + field)
            memcpy(to, &row_of.counts[field][row], 4)
            to += 4
    start[0] = present & 0xFF
    start[1] = present >> 8
    return to if present else start


def encode_details(
    const int64_t[::1] slots, texts, lists, counts, uint8_t[::1] buffer, uint64_t[::1] detail_starts, uint64_t start,
):
    """Detail records of the rows that have a slot; the bytes used in ``buffer`` and how many identities are among them.

    ``texts``: (offsets, data) or None by text field; ``lists``: (counts, ids) or None, twice; ``counts``: uint32[n] or
    None, twice. ``start``: where in its section the first record will lie.
    """
    cdef Details rows
    cdef uint8_t *to = &buffer[0]
    cdef uint8_t *end
    cdef uint64_t identities = 0
    cdef Py_ssize_t i
    cdef int field
    for field, text in enumerate(texts):
        rows.text_offsets[field] = NULL if text is None else <const int64_t *>address(text[0])
        rows.texts[field] = NULL if text is None else <const uint8_t *>address(text[1])
    for field in range(2):
        rows.list_lengths[field] = NULL if lists[field] is None else <const uint8_t *>address(lists[field][0])
        rows.lists[field] = NULL if lists[field] is None else <const uint64_t *>address(lists[field][1])
        rows.counts[field] = NULL if counts[field] is None else <const uint32_t *>address(counts[field])
    with nogil:
        for i in range(slots.shape[0]):
            if slots[i] >= 0:
                end = encode(&rows, i, to, &identities)
                if end != to:
                    detail_starts[slots[i]] = start + <uint64_t>(to - &buffer[0]) + 1
                to = end
            for field in range(2):
                if rows.list_lengths[field] != NULL:
                    rows.lists[field] += rows.list_lengths[field][i]
    return to - &buffer[0], identities


cdef const void *address(array) except? NULL:
    cdef const uint8_t[::1] content = array.view(np.uint8)
    return NULL if content.shape[0] == 0 else &content[0]


def index_identities(
    const uint8_t[::1] line_bytes, const uint16_t[::1] scores, const uint64_t[::1] detail_starts,
    const uint8_t[::1] details, uint64_t[::1] table, Py_ssize_t most_conflicts,
):
    """Enter every identity, but what two profiles claim belongs to neither.

    How many were entered, and of the conflicts, at most so many, (column, text, first id, second id).
    """
    cdef const Line *lines = <const Line *>&line_bytes[0]
    cdef View view
    cdef Detail detail
    cdef uint64_t slot, entry = 0
    cdef int64_t other
    cdef int field
    cdef uint64_t entered = 0
    cdef bint disputed = False
    memset(&view, 0, sizeof(View))
    view.slots = scores.shape[0]
    view.detail_starts, view.details, view.details_length = &detail_starts[0], &details[0], details.shape[0]
    view.identities, view.identity_lines = &table[0], table.shape[0] // IDENTITY_LINE
    ambiguous = {}
    conflicts = []
    with nogil:
        for slot in range(view.slots):
            read_detail(&view, slot, &detail)
            for field in range(TW_ID, TEXT_FIELDS):
                if not detail.present >> field & 1:
                    continue
                other = find_identity(&view, field, detail.texts[field], detail.text_lengths[field], &entry)
                if other < 0 and not disputed:
                    table[entry] = own(&detail, field, slot)
                    entered += 1
                    continue
                with gil:
                    disputed = True
                    text = detail.texts[field][:detail.text_lengths[field]].decode()
                    key = (field, folded(text) if field == TW_NAME else text)
                    if other >= 0:
                        ambiguous[key] = lines[other // LINE_SLOTS].ids[other % LINE_SLOTS]
                        table[entry] &= (1 << FINGERPRINT_BITS) - 1
                        entered -= 1
                    if key not in ambiguous:
                        table[entry] = own(&detail, field, slot)
                        entered += 1
                    elif len(conflicts) < most_conflicts:
                        second = lines[slot // LINE_SLOTS].ids[slot % LINE_SLOTS]
                        conflicts.append((TEXT_COLUMNS[field], text, ambiguous[key], second))
    return entered, conflicts


def folded(text):
    """A name as names are compared: ASCII letters without case."""
    return text.encode().lower().decode()


cdef inline uint64_t own(const Detail *detail, int field, uint64_t slot) noexcept nogil:
    cdef uint64_t hashed = identity_hash(field, detail.texts[field], detail.text_lengths[field], field == TW_NAME)
    return ((slot + 1) << FINGERPRINT_BITS) | fingerprint(hashed)
