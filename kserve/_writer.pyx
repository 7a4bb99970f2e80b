"""Rows into the slots of a candidate file, by the same ``layout.pxd`` that readers use.

Every section is allocated before it is written, so that a full disk is an error and not a signal. The header, which
makes the file a snapshot, is written last, after all else is on disk.
"""

import mmap
import os
import tempfile

import msgspec
import numpy as np
import xxhash

from kserve._details import DETAIL_COLUMNS, DETAIL_OVERHEAD, TEXT_COLUMNS, encode_details, index_identities
from kserve._mapping import BYTE_ORDER, MAGIC, PAGE, version_name
from kserve.errors import InputError

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int16_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from kserve._view cimport NOT_FOUND, prefetch_write, slot_in_line
from kserve.layout cimport *

__all__ = ["ROWS_PER_BLOCK", "Writer", "differences"]

ROWS_PER_BLOCK = 43
"""Of 64 slots, if every row is taken: more makes a smaller file, less makes fewer lines overflow."""

IDENTITY_FILL = 0.75
SLOT_COLUMNS = {
    "network_score": (NETWORK_SCORES, np.uint16),
    "amplification": (AMPLIFICATIONS, np.uint16),
    "true_reach": (TRUE_REACHES, np.uint32),
    "location": (LOCATIONS, np.uint32),
}
STAGED_ROWS = 1 << 16

cdef enum:
    AHEAD = 24                  # rows whose lines are asked for before they are written
    DUPLICATE = -1
    TABLE_FULL = -2


class Writer:
    """One candidate file in the making.

    ``path`` must not exist yet. ``rows_at_most`` bounds the profiles; ``columns`` are the input's columns and decide
    which sections there are. Call :meth:`add` for every batch, then :meth:`finish`, and :meth:`close` in any case.
    All raise OSError when the file system fails.
    """

    def __init__(self, path, rows_at_most, columns):
        self.columns = tuple(sorted(columns))
        self.profiles = self.identities = self.conflicts = 0
        self.longest_probe = 1
        blocks = max(-(-rows_at_most // ROWS_PER_BLOCK), 1)
        self.slots = blocks * BLOCK_SLOTS
        self.lines = self.slots // LINE_SLOTS
        self.placed = {}
        self.end = HEADER_SIZE
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self.folder = os.path.dirname(os.path.abspath(path))
        self.known = np.zeros((KNOWN_ANSWERS, 2), dtype=np.uint64)
        self.known_ranks = np.full(KNOWN_ANSWERS, ~np.uint64(0))
        self.staged = None
        try:
            self._allocate_fixed()
        except BaseException:
            self.close()
            raise

    def _allocate_fixed(self):
        """The sections whose size follows from the number of slots."""
        self.line_bytes = self._allocate(LINES, self.lines * sizeof(Line))
        self.scores = self._allocate(SCORES, self.slots * 2).view(np.uint16)
        self.by_slot = {
            name: self._allocate(kind, self.slots * np.dtype(type).itemsize).view(type)
            for name, (kind, type) in SLOT_COLUMNS.items()
            if name in self.columns
        }
        if "topics" in self.columns:
            self.topic_counts = self._allocate(TOPIC_COUNTS, self.slots)
            self.topic_starts = self._allocate(TOPIC_STARTS, (self.lines + 1) * 8).view(np.uint64)
            self.staged = {name: tempfile.TemporaryFile(dir=self.folder) for name in ("slots", "ids", "scores")}
        self.detail_starts = None
        if set(DETAIL_COLUMNS) & set(self.columns):
            self.detail_starts = self._allocate(DETAIL_STARTS, self.slots * 8).view(np.uint64)
        self.details_at = -(-self.end // ALIGNMENT) * ALIGNMENT
        self.details_length = 0

    def _allocate(self, kind, length):
        """Disk space for the next section, mapped: uint8[length], zeros."""
        offset = -(-self.end // ALIGNMENT) * ALIGNMENT
        if length == 0:
            return np.empty(0, dtype=np.uint8)
        os.posix_fallocate(self.fd, offset, length)
        self.placed[kind] = (offset, length)
        self.end = offset + length
        return self._map(offset, length)

    def _map(self, offset, length):
        start = offset // PAGE * PAGE
        pages = mmap.mmap(self.fd, offset - start + length, offset=start)
        return np.frombuffer(pages, dtype=np.uint8)[offset - start:]

    def add(self, batch, duplicate):
        """Take the rows of a batch that are not rejected and have not opted out.

        ``batch``: :class:`kserve.snapshots.columns.Columns`. uint8[n]: ``duplicate`` for rows whose id is taken,
        else 0. Raises InputError when there are more rows than announced.
        """
        slots = np.empty(len(batch.ids), dtype=np.int64)
        codes = np.zeros(len(batch.ids), dtype=np.uint8)
        columns = [
            (batch.network_scores, self.by_slot.get("network_score")),
            (batch.amplifications, self.by_slot.get("amplification")),
            (batch.true_reaches, self.by_slot.get("true_reach")),
        ]
        taken, longest = place_rows(
            self.line_bytes, batch, self.by_slot.get("location"), self.known_ranks, self.known, duplicate, slots, codes
        )
        if taken < 0:
            raise InputError("more rows than were counted before reading: the input changes while it is read")
        self.profiles += taken
        self.longest_probe = max(self.longest_probe, longest)
        for values, column in columns:
            if values is not None:
                scatter(slots, values, column)
        if batch.topic_counts is not None:
            self._stage_topics(batch, slots)
        if self.detail_starts is not None:
            self._write_details(batch, slots)
        return codes

    def _stage_topics(self, batch, slots):
        """Topics wait in arrival order until every profile's place is known."""
        taken = np.flatnonzero((slots >= 0) & (batch.topic_counts > 0))
        self.topic_counts[slots[taken]] = batch.topic_counts[taken]
        every = np.repeat(slots >= 0, batch.topic_counts)
        scores = batch.topic_scores
        self.staged["slots"].write(slots[taken].astype(np.uint64))
        self.staged["ids"].write(batch.topic_ids[every].astype(np.uint16, copy=False))
        if scores is not None:
            self.staged["scores"].write(scores[every].astype(np.uint16, copy=False))

    def _write_details(self, batch, slots):
        texts = [batch.texts.get(name) for name in TEXT_COLUMNS]
        length = sum(int(text[0][len(slots)] - text[0][0]) for text in texts if text is not None)
        buffer = np.empty(length + DETAIL_OVERHEAD * len(slots), dtype=np.uint8)
        length, identities = encode_details(
            slots, texts, (batch.influencers, batch.influencees), (batch.influencer_counts, batch.influencee_counts),
            buffer, self.detail_starts, self.details_length,
        )
        self.identities += identities
        write_all(self.fd, buffer[:length], self.details_at + self.details_length)
        self.details_length += length

    def finish(self, scored_at, topic_table, location_table, most_conflicts, progress):
        """Lay out what had to wait, seal the file and sync it; the version's name.

        ``scored_at``: aware time of the scores. ``topic_table``: rows of (id or None, slug, name, parent indexes);
        ``location_table``: paths by number - 1. ``progress(done_bytes, total_bytes)``. Of the identities that two
        profiles claim, ``most_conflicts`` are named.
        """
        if self.details_length:
            self.placed[DETAILS] = (self.details_at, self.details_length)
            self.end = self.details_at + self.details_length
        scored = copy_scores(self.line_bytes, self.scores)
        entries = self._lay_out_topics() if self.staged is not None else 0
        ambiguous = self._index_identities(most_conflicts) if self.identities else []
        best = np.argsort(self.known_ranks)[:self.profiles]
        self._append(KNOWN, self.known[best].tobytes())
        self._append(TOPIC_TABLE, msgspec.msgpack.encode(topic_table))
        self._append(LOCATION_TABLE, msgspec.msgpack.encode(location_table))
        self._append(COLUMN_NAMES, msgspec.msgpack.encode(self.columns))
        return self._seal(int(scored_at.timestamp() * 1_000_000), scored, entries, progress), ambiguous

    def _append(self, kind, content):
        offset = -(-self.end // ALIGNMENT) * ALIGNMENT
        if content:
            write_all(self.fd, content, offset)
            self.placed[kind] = (offset, len(content))
            self.end = offset + len(content)

    def _lay_out_topics(self):
        """Topics by slot, so that a scan reads them in order; how many entries."""
        totals = self.topic_counts.reshape(-1, LINE_SLOTS).sum(axis=1, dtype=np.uint64)
        np.cumsum(totals, out=self.topic_starts[1:])
        entries = int(self.topic_starts[self.lines])
        ids = self._allocate(TOPIC_IDS, entries * 2).view(np.uint16)
        left = self.staged["slots"].tell() // 8
        scored = self.staged["scores"].tell() > 0
        scores = self._allocate(TOPIC_SCORES, entries * 2).view(np.uint16) if scored else None
        for file in self.staged.values():
            file.seek(0)
        while left:
            slots = self._staged("slots", min(left, STAGED_ROWS), np.uint64)
            left -= len(slots)
            count = int(self.topic_counts[slots].sum(dtype=np.int64))
            lay_out(slots, self._staged("ids", count, np.uint16), self.topic_starts, self.topic_counts, ids)
            if scored:
                lay_out(slots, self._staged("scores", count, np.uint16), self.topic_starts, self.topic_counts, scores)
        return entries

    def _staged(self, name, count, kind):
        """The next numbers that wait; a failed read is an error, and never taken for the end (as np.fromfile does)."""
        values = np.empty(count, dtype=kind)
        if self.staged[name].readinto(values.view(np.uint8)) != values.nbytes:
            raise OSError(f"the staged topic {name} end early")
        return values

    def _index_identities(self, most_conflicts):
        """The identity lines; the texts that two profiles claim, each with its column and both profile ids."""
        lines = max(-(-self.identities // int(IDENTITY_LINE * IDENTITY_FILL)), 1)
        table = self._allocate(IDENTITIES, lines * IDENTITY_LINE * 8).view(np.uint64)
        details = self._map(*self.placed[DETAILS])
        self.identities, ambiguous = index_identities(
            self.line_bytes, self.scores, self.detail_starts, details, table, most_conflicts
        )
        return ambiguous

    def _seal(self, scored_at, scored, entries, progress):
        cdef Header header
        memset(&header, 0, sizeof(Header))
        header.magic[:8] = <bytes>MAGIC
        header.format = FORMAT
        header.byte_order = BYTE_ORDER
        header.file_size = self.end
        header.scored_at = scored_at
        header.profiles = self.profiles
        header.scored = scored
        header.lines = self.lines
        header.longest_probe = self.longest_probe
        header.topic_entries = entries
        header.identities = self.identities
        for kind, (offset, length) in self.placed.items():
            header.sections[<int>kind].offset = offset
            header.sections[<int>kind].length = length
            header.sections[<int>kind].checksum = self._checksum(offset, length, progress)
        name = version_name(PyBytes_FromStringAndSize(<char *>&header, sizeof(Header)))
        encoded = name.encode()
        memcpy(header.version, <const char *>encoded, len(encoded))
        raw = PyBytes_FromStringAndSize(<char *>&header, sizeof(Header))
        header.checksum = xxhash.xxh3_64_intdigest(raw[:HEADER_SIZE - 8])
        os.fsync(self.fd)
        write_all(self.fd, PyBytes_FromStringAndSize(<char *>&header, sizeof(Header)), 0)
        os.fchmod(self.fd, 0o444)
        os.fsync(self.fd)
        return name

    def _checksum(self, offset, length, progress):
        digest = xxhash.xxh3_64()
        content = self._map(offset, length)
        for at in range(0, length, 1 << 24):
            digest.update(content[at:at + (1 << 24)])
            if progress is not None:
                progress(min(offset + at + (1 << 24), self.end), self.end)
        return digest.intdigest()

    def close(self):
        """Give back the descriptor and the mappings; the file stays for the caller to keep or unlink."""
        for file in (self.staged or {}).values():
            file.close()
        os.close(self.fd)
        self.__dict__.clear()


def write_all(fd, content, offset):
    """All bytes at that offset, or OSError."""
    rest = memoryview(content).cast("B")
    while len(rest):
        written = os.pwrite(fd, rest, offset)
        rest, offset = rest[written:], offset + written


def place_rows(
    uint8_t[::1] line_bytes, batch, uint32_t[::1] location_column, uint64_t[::1] known_ranks, uint64_t[:, ::1] known,
    uint8_t duplicate, int64_t[::1] slots, uint8_t[::1] codes,
):
    """Put rows into lines, and their locations into that column if there is one; remember some as known answers.

    ``slots``[n] receives where, -1 for rows not taken, and ``codes``[n] the duplicates. How many were taken and the
    most lines that one of them needed; (-1, 0) when the table is full.
    """
    cdef const uint64_t[::1] ids = batch.ids
    cdef const uint16_t[::1] scores = batch.scores
    cdef const int16_t[::1] day = batch.day, week = batch.week, month = batch.month
    cdef const uint8_t[::1] opted_out = batch.opted_out, reject = batch.reject
    cdef const uint32_t[::1] locations = batch.locations
    cdef Line *lines = <Line *>&line_bytes[0]
    cdef uint64_t n_lines = line_bytes.shape[0] // sizeof(Line)
    cdef uint64_t longest = 1, ahead
    cdef uint64_t worst = worst_of(known_ranks)
    cdef int64_t taken = 0, slot = 0
    cdef Py_ssize_t i, n = ids.shape[0]
    cdef Line *line
    with nogil:
        for i in range(n):
            if i + AHEAD < n:
                ahead = home_line(ids[i + AHEAD], n_lines)
                prefetch_write(&lines[ahead])
                if locations is not None:
                    prefetch_write(&location_column[ahead * LINE_SLOTS])
            slots[i] = -1
            if reject[i] or (opted_out is not None and opted_out[i]):
                continue
            slot = place(lines, n_lines, ids[i], &longest)
            if slot == DUPLICATE:
                codes[i] = duplicate
                continue
            if slot == TABLE_FULL:
                break
            slots[i] = slot
            line = &lines[slot // LINE_SLOTS]
            line.ids[slot % LINE_SLOTS] = ids[i]
            line.scores[slot % LINE_SLOTS] = scores[i]
            line.changes[0][slot % LINE_SLOTS] = UNKNOWN_CHANGE if day is None else day[i]
            line.changes[1][slot % LINE_SLOTS] = UNKNOWN_CHANGE if week is None else week[i]
            line.changes[2][slot % LINE_SLOTS] = UNKNOWN_CHANGE if month is None else month[i]
            if locations is not None:
                location_column[slot] = locations[i]
            if rank_of(ids[i]) < known_ranks[worst]:
                known_ranks[worst] = rank_of(ids[i])
                known[worst, 0], known[worst, 1] = ids[i], scores[i]
                worst = worst_of(known_ranks)
            taken += 1
    if slot == TABLE_FULL:
        return -1, 0
    return taken, longest


cdef inline uint64_t rank_of(uint64_t profile_id) noexcept nogil:
    # The profiles of lowest rank become known answers: spread over all lines, and the same at every build.
    return mix(~mix(profile_id)) >> 1


cdef inline uint64_t worst_of(const uint64_t[::1] ranks) noexcept nogil:
    cdef uint64_t worst = 0
    cdef int i
    for i in range(KNOWN_ANSWERS):
        if ranks[i] > ranks[worst]:
            worst = <uint64_t>i
    return worst


cdef inline int64_t place(const Line *lines, uint64_t n_lines, uint64_t profile_id, uint64_t *longest) noexcept nogil:
    """The slot for a new profile, DUPLICATE or TABLE_FULL."""
    cdef uint64_t number = home_line(profile_id, n_lines)
    cdef uint64_t probe
    cdef int found
    for probe in range(1, n_lines + 1):
        found = slot_in_line(&lines[number], profile_id)
        if found >= 0:
            return DUPLICATE
        if found == NOT_FOUND:
            longest[0] = max(longest[0], probe)
            return <int64_t>(number * LINE_SLOTS + used_slots(&lines[number]))
        number = 0 if number + 1 == n_lines else number + 1
    return TABLE_FULL


cdef inline int used_slots(const Line *line) noexcept nogil:
    return (line.scores[0] != EMPTY) + (line.scores[1] != EMPTY) + (line.scores[2] != EMPTY)


ctypedef fused number:
    uint16_t
    uint32_t


def scatter(const int64_t[::1] slots, const number[::1] values, number[::1] column):
    """column[slots[i]] = values[i] where slots[i] is not negative."""
    cdef Py_ssize_t i, n = slots.shape[0]
    with nogil:
        for i in range(n):
            if i + AHEAD < n and slots[i + AHEAD] >= 0:
                prefetch_write(&column[slots[i + AHEAD]])
            if slots[i] >= 0:
                column[slots[i]] = values[i]


def copy_scores(const uint8_t[::1] line_bytes, uint16_t[::1] column):
    """The scores of all lines as a column; how many profiles have one."""
    cdef const Line *lines = <const Line *>&line_bytes[0]
    cdef uint64_t line, scored = 0
    cdef int k
    with nogil:
        for line in range(<uint64_t>column.shape[0] // LINE_SLOTS):
            for k in range(LINE_SLOTS):
                column[line * LINE_SLOTS + k] = lines[line].scores[k]
                scored += lines[line].scores[k] != EMPTY and lines[line].scores[k] != UNSCORED
    return scored


def lay_out(
    const uint64_t[::1] slots, const uint16_t[::1] staged, const uint64_t[::1] starts, const uint8_t[::1] counts,
    uint16_t[::1] entries,
):
    """Topic entries of these slots, in the order of the slots, to their places by slot."""
    cdef uint64_t slot, other, to
    cdef Py_ssize_t i, k, at = 0
    with nogil:
        for i in range(slots.shape[0]):
            slot = slots[i]
            to = starts[slot // LINE_SLOTS]
            for other in range(slot // LINE_SLOTS * LINE_SLOTS, slot):
                to += counts[other]
            for k in range(counts[slot]):
                entries[to + k] = staged[at + k]
            at += counts[slot]


def differences(const uint16_t[::1] scores, const uint16_t[::1] earlier):
    """int16[n]: changes from an earlier snapshot's ``hundredths``; unknown where either side has no score."""
    cdef int16_t[::1] changes = np.empty(scores.shape[0], dtype=np.int16)
    cdef Py_ssize_t i
    with nogil:
        for i in range(scores.shape[0]):
            if scores[i] == UNSCORED or earlier[i] == UNSCORED or earlier[i] == EMPTY:
                changes[i] = UNKNOWN_CHANGE
            else:
                changes[i] = <int16_t>(<int>scores[i] - <int>earlier[i])
    return np.asarray(changes)
