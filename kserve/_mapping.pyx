"""A sealed snapshot file, mapped and checked: its header, its sections, its pages."""

import os
import stat
import weakref

import msgspec
import numpy as np
import xxhash

from kserve._verify import FAULTS
from kserve.errors import SnapshotError
from kserve.vocabulary import Vocabulary

from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, mmap, munmap

from kserve._verify cimport Expected, check_view
from kserve._view cimport View
from kserve.layout cimport *

__all__ = ["BYTE_ORDER", "MAGIC", "PAGE", "SECTIONS", "Mapping", "live_mappings", "version_name"]

cdef extern from "<sys/mman.h>" nogil:
    """
    #ifndef MADV_POPULATE_READ
    #define MADV_POPULATE_READ 22
    #endif
    """
    int MADV_POPULATE_READ
    int madvise(void *address, size_t length, int advice)
    int mincore(void *address, size_t length, unsigned char *states)

SECTIONS = (
    "lines", "scores", "locations", "topic_counts", "topic_starts", "topic_ids", "topic_scores", "network_scores",
    "amplifications", "true_reaches", "detail_starts", "details", "identities", "known", "topic_table",
    "location_table", "column_names",
)
"""Names of the sections, by SectionKind."""

MAGIC = b"\x93KSERVE\n"
BYTE_ORDER = 0x04030201
PAGE = 4096
CHECKSUM_STEP = 1 << 24
END_OF_TIME = 253_402_300_800_000_000
"""The year 10000, in microseconds since 1970: a version's name has room for four digits."""

_mapped = weakref.WeakSet()


def live_mappings():
    """The snapshots that this process has mapped."""
    return list(_mapped)


def version_name(header):
    """The version that a header of ``HEADER_SIZE`` bytes seals: its time, then a digest of all else that it says."""
    cdef Header seal
    cdef bytes raw = header
    memcpy(&seal, <const char *>raw, sizeof(Header))
    memset(seal.version, 0, VERSION_SIZE)
    seal.checksum = 0
    moment = np.datetime64(seal.scored_at, "us").astype("datetime64[s]").item()
    digest = xxhash.xxh3_64_intdigest(PyMemoryView_FromMemory(<char *>&seal, sizeof(Header), 0x100)) >> 32
    return f"{moment:%Y%m%dT%H%M%SZ}-{digest:08x}"


cdef class Mapping:
    """The file of one snapshot. Opening it checks its structure, :meth:`verify` every byte."""

    def __init__(self, path):
        self.path = os.fspath(path)
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._map(descriptor)
        finally:
            os.close(descriptor)
        self._check_header()
        self._point()
        _mapped.add(self)

    def __dealloc__(self):
        if self.base != NULL:
            with nogil:
                munmap(<void *>self.base, self.size)

    def _map(self, descriptor):
        cdef void *address
        cdef int fd = descriptor
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise self._bad("regular file", "it is a directory or a device")
        if status.st_size < HEADER_SIZE:
            raise self._bad("size", f"{status.st_size} bytes are less than a header")
        self.size = status.st_size
        with nogil:
            address = mmap(NULL, self.size, PROT_READ, MAP_SHARED, fd, 0)
        if address == MAP_FAILED:
            raise OSError(f"cannot map {self.path}")
        self.base = <const uint8_t *>address

    cdef const Header *header(self) noexcept nogil:
        return <const Header *>self.base

    def _bad(self, check, detail):
        return SnapshotError(self.path, check, detail)

    def _check_header(self):
        cdef const Header *header = self.header()
        if header.magic[:8] != MAGIC:
            raise self._bad("magic", "it does not begin as a sealed snapshot does")
        if header.format != FORMAT:
            raise self._bad("format", f"format version {header.format}, this kserve reads {FORMAT}")
        if header.byte_order != BYTE_ORDER:
            raise self._bad("byte order", "written on a machine of another byte order")
        if self._checksum(0, HEADER_SIZE - 8) != header.checksum:
            raise self._bad("header checksum", "the header is damaged")
        if header.file_size != self.size:
            raise self._bad("size", f"{self.size} bytes, sealed with {header.file_size}")
        if (
            not BLOCK_SLOTS // LINE_SLOTS <= header.lines <= self.size // sizeof(Line)
            or header.lines * LINE_SLOTS % BLOCK_SLOTS
            or not 1 <= header.longest_probe <= header.lines
        ):
            raise self._bad("lines", f"{header.lines} lines, longest probe {header.longest_probe}")
        self.version = header.version[:VERSION_SIZE].rstrip(b"\0").decode("ascii", "replace")
        if not 0 <= header.scored_at < END_OF_TIME or self.version != version_name(self.base[:HEADER_SIZE]):
            raise self._bad("version", f"{self.version} is not the name that its contents give it")
        self._check_sections()

    def _check_sections(self):
        """Every section lies where it may, in order and without gaps, and has the length that the counts ask for."""
        sections = self.sections()
        end = HEADER_SIZE
        for name, section in sorted(sections.items(), key=lambda item: (item[1]["offset"], item[1]["length"])):
            if section["length"] and section["offset"] != -(-end // ALIGNMENT) * ALIGNMENT:
                raise self._bad("section table", f"{name} lies at {section['offset']}, after {end}")
            end = max(end, section["offset"] + section["length"])
        if end != self.size:
            raise self._bad("section table", f"the sections end at {end} of {self.size} bytes")
        lengths = {name: section["length"] for name, section in sections.items()}
        for name, expected in self._expected_lengths(lengths).items():
            if lengths[name] not in expected:
                choices = " or ".join(map(str, expected))
                raise self._bad("section table", f"{name} has {lengths[name]} bytes, not {choices}")

    def _expected_lengths(self, lengths):
        cdef const Header *header = self.header()
        slots = header.lines * LINE_SLOTS
        topics, details = bool(lengths["topic_counts"]), bool(lengths["detail_starts"])
        entries = header.topic_entries * topics
        return {
            "lines": [header.lines * sizeof(Line)],
            "scores": [slots * 2],
            "locations": [0, slots * 4],
            "topic_counts": [0, slots],
            "topic_starts": [(header.lines + 1) * 8 * topics],
            "topic_ids": [entries * 2],
            "topic_scores": [0, entries * 2],
            "network_scores": [0, slots * 2],
            "amplifications": [0, slots * 2],
            "true_reaches": [0, slots * 4],
            "detail_starts": [0, slots * 8],
            "details": [lengths["details"] * details],
            "identities": [lengths["identities"] // 64 * 64 * details],
            "known": [min(self.profiles, <int>KNOWN_ANSWERS) * sizeof(KnownAnswer)],
        }

    def _point(self):
        cdef View *view = &self.view
        view.n_lines = self.header().lines
        view.slots = view.n_lines * LINE_SLOTS
        view.longest_probe = self.header().longest_probe
        view.topic_entries = self.header().topic_entries
        view.lines = <const Line *>self.at(LINES)
        view.scores = <const uint16_t *>self.at(SCORES)
        view.locations = <const uint32_t *>self.at(LOCATIONS)
        view.topic_counts = self.at(TOPIC_COUNTS)
        view.topic_starts = <const uint64_t *>self.at(TOPIC_STARTS)
        view.topic_ids = <const uint16_t *>self.at(TOPIC_IDS)
        view.topic_scores = <const uint16_t *>self.at(TOPIC_SCORES)
        view.network_scores = <const uint16_t *>self.at(NETWORK_SCORES)
        view.amplifications = <const uint16_t *>self.at(AMPLIFICATIONS)
        view.true_reaches = <const uint32_t *>self.at(TRUE_REACHES)
        view.detail_starts = <const uint64_t *>self.at(DETAIL_STARTS)
        view.details = self.at(DETAILS)
        view.details_length = self.header().sections[DETAILS].length
        view.identities = <const uint64_t *>self.at(IDENTITIES)
        view.identity_lines = self.header().sections[IDENTITIES].length // 64

    cdef const uint8_t *at(self, int kind) noexcept:
        cdef const Section *section = &self.header().sections[kind]
        return NULL if section.length == 0 else self.base + section.offset

    def _section(self, int kind):
        cdef const Section *section = &self.header().sections[kind]
        return PyMemoryView_FromMemory(<char *>self.base + section.offset, section.length, 0x100)

    def _checksum(self, uint64_t start, uint64_t length, progress=None):
        digest = xxhash.xxh3_64()
        for at in range(start, start + length, CHECKSUM_STEP):
            step = min(CHECKSUM_STEP, start + length - at)
            digest.update(PyMemoryView_FromMemory(<char *>self.base + <size_t>at, step, 0x100))
            if progress is not None:
                progress(at + step, self.size)
        return digest.intdigest()

    @property
    def scored_at(self):
        return self.header().scored_at

    @property
    def profiles(self):
        return self.header().profiles

    @property
    def scored(self):
        return self.header().scored

    @property
    def nbytes(self):
        return self.size

    def sections(self):
        cdef const Header *header = self.header()
        return {
            name: {
                "offset": header.sections[kind].offset,
                "length": header.sections[kind].length,
                "checksum": header.sections[kind].checksum,
            }
            for kind, name in enumerate(SECTIONS)
        }

    @property
    def vocabulary(self):
        """Topics and locations of this version, decoded on first use."""
        if self._vocabulary is None:
            try:
                self._vocabulary = Vocabulary(self.version, self._section(TOPIC_TABLE), self._section(LOCATION_TABLE))
            except (msgspec.DecodeError, ValueError, IndexError) as error:
                raise self._bad("topic or location table", str(error)) from None
        return self._vocabulary

    def verify(self, progress=None):
        end = HEADER_SIZE
        for name, section in sorted(self.sections().items(), key=lambda item: item[1]["offset"]):
            if section["length"] == 0:
                continue
            if any(self.base[end:section["offset"]]):
                raise self._bad("padding", f"bytes before {name} are not zero")
            if self._checksum(section["offset"], section["length"], progress) != section["checksum"]:
                raise self._bad("section checksum", f"{name} is damaged")
            end = section["offset"] + section["length"]
        self._check_contents()

    def _check_contents(self):
        cdef Expected expected
        cdef uint64_t slot = 0
        cdef int fault
        expected.profiles = self.profiles
        expected.scored = self.scored
        expected.identities = self.header().identities
        expected.n_topics = len(self.vocabulary.slugs) + 1
        expected.n_locations = len(self.vocabulary.locations) + 1
        expected.known = <const KnownAnswer *>self.at(KNOWN)
        expected.n_known = self.header().sections[KNOWN].length // sizeof(KnownAnswer)
        with nogil:
            fault = check_view(&self.view, &expected, &slot)
        if fault:
            check, detail = FAULTS[fault].split(": ")
            raise self._bad(check, f"{detail} (slot {slot})")

    def warm(self):
        cdef int failed
        with nogil:
            failed = madvise(<void *>self.base, self.size, MADV_POPULATE_READ)
        if failed:
            sum(self.base[at] for at in range(0, self.size, PAGE))

    def resident(self):
        cdef uint8_t[::1] states = np.empty((self.size + PAGE - 1) // PAGE, dtype=np.uint8)
        cdef int failed
        with nogil:
            failed = mincore(<void *>self.base, self.size, &states[0])
        if failed:
            raise OSError(f"mincore failed on {self.path}")
        return float(np.count_nonzero(np.asarray(states) & 1)) / states.shape[0]
