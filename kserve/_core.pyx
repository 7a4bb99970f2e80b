"""One version to read from, and the store that holds the version in force."""

import os
import random
from concurrent.futures import ThreadPoolExecutor
from operator import index

import msgspec
import numpy as np

from kserve._rules import CRITERIA
from kserve.errors import KserveError, UnknownProfile
from kserve.records import NETWORKS, Changes, Identity, Profile, Scores, TopicScore
from kserve.rule import Rule

cimport numpy as cnp
from cpython.number cimport PyNumber_Index
from libc.math cimport NAN
from libc.stdint cimport int16_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from kserve._mapping cimport Mapping
from kserve._rules cimport DAMAGED, CompiledRule
from kserve._view cimport (
    LINE_FULL,
    NOT_FOUND,
    Detail,
    View,
    find_from,
    find_identity,
    find_slot,
    prefetch,
    read_detail,
    slot_in_line,
    topic_range,
)
from kserve.layout cimport *

__all__ = ["Snapshot", "Store", "as_ids"]

cnp.import_array()

new_record = tuple.__new__
PARALLEL_SLOTS = 1 << 22
CACHED_RULES = 256
ID_FIELDS = {"tw": TW_ID, "gp": GP_ID, "fb": FB_ID, "ig": IG_ID}

cdef enum:
    IN_FLIGHT = 32              # of them, lines that are on their way from memory


cdef class Snapshot(Mapping):
    """One immutable version, mapped read-only; see the stub for what its methods promise."""

    def __init__(self, path):
        super().__init__(path)
        self.rules = {}

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        pass

    def __repr__(self):
        return f"<Snapshot {self.version} of {self.profiles} profiles>"

    @property
    def format(self):
        return self.header().format

    @property
    def columns(self):
        try:
            return tuple(msgspec.msgpack.decode(self._section(COLUMN_NAMES), type=list[str]))
        except (msgspec.DecodeError, ValueError) as error:
            raise self._bad("column names", str(error)) from None

    cdef int64_t slot_of(self, object profile_id) except -1:
        cdef uint64_t wanted
        cdef int64_t slot
        try:
            wanted = PyNumber_Index(profile_id)
        except OverflowError:
            raise UnknownProfile(profile_id, self.version) from None
        slot = find_slot(&self.view, wanted)
        if slot < 0:
            raise UnknownProfile(wanted, self.version)
        return slot

    def score(self, profile_id):
        cdef int64_t slot = self.slot_of(profile_id)
        return points(line_of(&self.view, slot).scores[slot % LINE_SLOTS])

    def core(self, profile_id):
        cdef int64_t slot = self.slot_of(profile_id)
        cdef const Line *line = line_of(&self.view, slot)
        cdef int k = slot % LINE_SLOTS
        return (
            slot, points(line.scores[k]),
            change(line.changes[0][k]), change(line.changes[1][k]), change(line.changes[2][k]),
        )

    def get(self, profile_id):
        cdef Detail detail
        slot, score, day, week, month = self.core(profile_id)
        cdef uint64_t at = slot
        detail_at(self, at, &detail)
        return Profile(
            id=index(profile_id),
            score=score,
            changes=Changes(day, week, month),
            network_score=None if self.view.network_scores == NULL else points(self.view.network_scores[at]),
            amplification=None if self.view.amplifications == NULL else points(self.view.amplifications[at]),
            true_reach=None if self.view.true_reaches == NULL else known(self.view.true_reaches[at]),
            topics=topics_at(self, at),
            location=location_at(self, at),
            nick=text(&detail, NICK),
            identities=identities(&detail),
            influencers=present_ids(self, &detail, 0),
            influencees=present_ids(self, &detail, 1),
            influencer_count=known(detail.counts[0]),
            influencee_count=known(detail.counts[1]),
            version=self.version,
        )

    def hundredths(self, ids):
        """Scores as they are kept: uint16[n] hundredths; 0 for no such profile, 65535 for unscored."""
        cdef const uint64_t[::1] wanted = as_ids(ids)
        cdef uint16_t[::1] scores = np.empty(wanted.shape[0], dtype=np.uint16)
        cdef int64_t slots[BATCH]
        cdef Py_ssize_t batch, start, i, n
        with nogil:
            for batch in range((wanted.shape[0] + BATCH - 1) // BATCH):
                start = batch * BATCH
                n = min(BATCH, wanted.shape[0] - start)
                find_many(&self.view, &wanted[start], n, slots)
                for i in range(n):
                    scores[start + i] = score_at(&self.view, slots[i])
        return np.asarray(scores)

    def get_many(self, ids, bint changes=False):
        cdef cnp.ndarray wanted_array = as_ids(ids)
        cdef cnp.npy_intp total = cnp.PyArray_SIZE(wanted_array)
        cdef cnp.ndarray value_array = cnp.PyArray_EMPTY(1, &total, cnp.NPY_DOUBLE, 0)
        cdef cnp.ndarray status_array = cnp.PyArray_EMPTY(1, &total, cnp.NPY_UINT8, 0)
        cdef const uint64_t *wanted = <const uint64_t *>cnp.PyArray_DATA(wanted_array)
        cdef double *values = <double *>cnp.PyArray_DATA(value_array)
        cdef uint8_t *status = <uint8_t *>cnp.PyArray_DATA(status_array)
        cdef double[:, ::1] moved = np.empty((total, 3)) if changes else None
        cdef int64_t slots[BATCH]
        cdef Py_ssize_t batch, start, i, n
        cdef int period
        with nogil:
            for batch in range((total + BATCH - 1) // BATCH):
                start = batch * BATCH
                n = min(BATCH, total - start)
                find_many(&self.view, &wanted[start], n, slots)
                for i in range(n):
                    read_score(&self.view, slots[i], &values[start + i], &status[start + i])
                if changes:
                    for i in range(n):
                        for period in range(3):
                            moved[start + i, period] = read_change(&self.view, slots[i], period)
        moves = np.asarray(moved) if changes else None
        return new_record(Scores, (value_array, status_array, moves, self.version))

    def find(self, network, key, by=None):
        cdef bytes name = key.encode("utf-8", "surrogatepass")
        cdef uint64_t entry
        cdef int64_t slot
        if network not in NETWORKS:
            return None
        fields = {"id": ID_FIELDS[network]} | ({"name": TW_NAME} if network == "tw" else {})
        if self.view.identity_lines == 0 or len(name) > MAX_TEXT:
            return None
        for field in (fields.values() if by is None else [fields[by]] if by in fields else []):
            slot = find_identity(&self.view, field, <const uint8_t *><const char *>name, len(name), &entry)
            if slot >= 0:
                return line_of(&self.view, slot).ids[slot % LINE_SLOTS]
        return None

    def topic(self, slug):
        return self.vocabulary.topic(slug)

    def topics(self):
        return self.vocabulary.topics()

    def locations(self):
        return self.vocabulary.locations

    def known_answer(self):
        cdef const KnownAnswer *answers = <const KnownAnswer *>self.at(KNOWN)
        cdef uint64_t n = min(self.profiles, KNOWN_ANSWERS)
        if n == 0:
            raise self._bad("known answers", "it has no profile")
        cdef uint64_t pick = random.randrange(n)
        return answers[pick].id, points(answers[pick].score)

    def eligible(self, rule, ids):
        cdef CompiledRule compiled = compiled_for(self, rule)
        if isinstance(ids, (int, np.integer)):
            return not self.explain(rule, ids)
        cdef const uint64_t[::1] wanted = as_ids(ids)
        cdef uint8_t[::1] verdicts = np.empty(wanted.shape[0], dtype=np.uint8)
        cdef int64_t slots[BATCH]
        cdef Py_ssize_t batch, start, i, n
        cdef uint32_t seen = 0, failed
        with nogil:
            for batch in range((wanted.shape[0] + BATCH - 1) // BATCH):
                start = batch * BATCH
                n = min(BATCH, wanted.shape[0] - start)
                find_many(&self.view, &wanted[start], n, slots)
                for i in range(n):
                    failed = 1 if slots[i] < 0 else compiled.failures(&self.view, slots[i])
                    verdicts[start + i] = failed == 0
                    seen |= failed
        self._refuse_damage(seen & DAMAGED)
        return np.asarray(verdicts).view(np.bool_)

    def explain(self, rule, profile_id):
        cdef CompiledRule compiled = compiled_for(self, rule)
        try:
            failed = compiled.failures(&self.view, self.slot_of(profile_id))
        except UnknownProfile:
            return ("unknown",)
        self._refuse_damage(failed & DAMAGED)
        return tuple(name for i, name in enumerate(CRITERIA) if failed >> i & 1)

    def _refuse_damage(self, damage):
        if damage:
            raise self._bad("topics", "topic entries lie outside their section")

    def count(self, rule):
        cdef CompiledRule compiled = compiled_for(self, rule)
        blocks = self.view.slots // BLOCK_SLOTS
        workers = os.cpu_count() or 1
        if self.view.slots < PARALLEL_SLOTS or workers == 1:
            return self._count(compiled, 0, blocks)
        edges = [blocks * i // workers for i in range(workers + 1)]
        with ThreadPoolExecutor(workers) as pool:
            return sum(pool.map(lambda i: self._count(compiled, edges[i], edges[i + 1]), range(workers)))

    def _count(self, CompiledRule compiled, uint64_t first_block, uint64_t last_block):
        cdef int64_t total
        with nogil:
            total = compiled.scan(&self.view, first_block, last_block, NULL)
        self._refuse_damage(total < 0)
        return total

    def select(self, rule, limit):
        cdef CompiledRule compiled = compiled_for(self, rule)
        cdef uint64_t[::1] by_rank = np.zeros(HIGHEST_SCORE + 1, dtype=np.uint64)
        cdef int64_t found
        with nogil:
            found = compiled.scan(&self.view, 0, self.view.slots // BLOCK_SLOTS, &by_rank[0])
        self._refuse_damage(found < 0)
        if found == 0 or limit < 1:
            return np.empty(0, dtype=np.uint64)
        at_least = np.cumsum(np.asarray(by_rank)[::-1])[::-1]
        cdef uint16_t lowest = max(int(np.count_nonzero(at_least >= limit)) - 1, 0)
        cdef uint64_t[::1] ids = np.empty(at_least[lowest], dtype=np.uint64)
        cdef uint16_t[::1] ranks = np.empty(at_least[lowest], dtype=np.uint16)
        with nogil:
            compiled.gather(&self.view, lowest, &ids[0], &ranks[0], ids.shape[0])
        best = np.lexsort((ids, -np.asarray(ranks).astype(np.int32)))[:limit]
        return np.asarray(ids)[best]


cdef inline const Line *line_of(const View *view, int64_t slot) noexcept nogil:
    return &view.lines[slot // LINE_SLOTS]


cdef void find_many(const View *view, const uint64_t *ids, Py_ssize_t n, int64_t *slots) noexcept nogil:
    """Slots (or NOT_FOUND) of up to BATCH ids, with IN_FLIGHT lines on their way from memory at any time.

    A look-up that goes on in the next line takes its turn again, so that this line too is there when it is looked at.
    """
    cdef uint64_t lines[IN_FLIGHT]
    cdef uint64_t probes[IN_FLIGHT]
    cdef Py_ssize_t owners[IN_FLIGHT]
    cdef Py_ssize_t in_flight = min(n, <Py_ssize_t>IN_FLIGHT)
    cdef Py_ssize_t started = in_flight, i
    cdef uint64_t turn = 0, place
    cdef int k
    for i in range(in_flight):
        lines[i], probes[i], owners[i] = home_line(ids[i], view.n_lines), 1, i
        prefetch(&view.lines[lines[i]])
    while started < n:
        place = turn % IN_FLIGHT
        turn += 1
        i = owners[place]
        k = slot_in_line(&view.lines[lines[place]], ids[i])
        if k == LINE_FULL and probes[place] < view.longest_probe:
            lines[place] = 0 if lines[place] + 1 == view.n_lines else lines[place] + 1
            probes[place] += 1
        else:
            slots[i] = <int64_t>(lines[place] * LINE_SLOTS) + k if k >= 0 else NOT_FOUND
            lines[place], probes[place], owners[place] = home_line(ids[started], view.n_lines), 1, started
            started += 1
        prefetch(&view.lines[lines[place]])
    for place in range(<uint64_t>in_flight):
        i = owners[place]
        slots[i] = find_from(view, ids[i], lines[place], view.longest_probe + 1 - probes[place])


cdef inline uint16_t score_at(const View *view, int64_t slot) noexcept nogil:
    return EMPTY if slot < 0 else line_of(view, slot).scores[slot % LINE_SLOTS]


cdef inline void read_score(const View *view, int64_t slot, double *value, uint8_t *status) noexcept nogil:
    cdef uint16_t score = score_at(view, slot)
    cdef bint scored = LOWEST_SCORE <= score <= HIGHEST_SCORE
    status[0] = 2 * scored + (score == UNSCORED)
    value[0] = score / 100.0 if scored else NAN


cdef inline double read_change(const View *view, int64_t slot, int period) noexcept nogil:
    cdef int16_t moved = UNKNOWN_CHANGE if slot < 0 else line_of(view, slot).changes[period][slot % LINE_SLOTS]
    return NAN if moved == UNKNOWN_CHANGE else moved / 100.0


cdef int detail_at(Snapshot self, uint64_t slot, Detail *detail) except -1:
    memset(detail, 0, sizeof(Detail))
    detail.counts[0] = detail.counts[1] = UNKNOWN_COUNT
    if self.view.detail_starts != NULL and read_detail(&self.view, slot, detail) != 0:
        raise self._bad("details", f"the record of slot {slot} lies outside its section")
    return 0


cdef tuple present_ids(Snapshot self, const Detail *detail, int which):
    """An influence list without those who have opted out or are gone."""
    cdef int i
    ids = []
    for i in range(detail.list_lengths[which]):
        if find_slot(&self.view, detail.lists[which][i]) >= 0:
            ids.append(detail.lists[which][i])
    return tuple(ids)


cdef tuple topics_at(Snapshot self, uint64_t slot):
    cdef uint64_t start, stop, entry
    if self.view.topic_counts == NULL:
        return ()
    if topic_range(&self.view, slot, &start, &stop) != 0:
        raise self._bad("topics", f"the entries of slot {slot} lie outside their section")
    slugs = self.vocabulary.slugs
    topics = []
    for entry in range(start, stop):
        if not 1 <= self.view.topic_ids[entry] <= len(slugs):
            raise self._bad("topics", f"topic {self.view.topic_ids[entry]} is not in the table of {len(slugs)}")
        score = None if self.view.topic_scores == NULL else points(self.view.topic_scores[entry])
        topics.append(TopicScore(slugs[self.view.topic_ids[entry] - 1], score))
    return tuple(topics)


cdef object location_at(Snapshot self, uint64_t slot):
    if self.view.locations == NULL or self.view.locations[slot] == UNKNOWN_LOCATION:
        return None
    locations = self.vocabulary.locations
    if self.view.locations[slot] > len(locations):
        raise self._bad("locations", f"location {self.view.locations[slot]} is not in the table of {len(locations)}")
    return locations[self.view.locations[slot] - 1]


cdef CompiledRule compiled_for(Snapshot self, source):
    rule = Rule.of(source)
    compiled = self.rules.get(rule)
    if compiled is None:
        if len(self.rules) >= CACHED_RULES:
            self.rules.clear()
        words = self.vocabulary
        compiled = self.rules[rule] = CompiledRule(rule, words.topic_bits(rule), words.allowed_locations(rule))
    return compiled


cdef inline object points(uint16_t hundredths):
    if hundredths > HIGHEST_SCORE:
        return no_points(hundredths)
    return hundredths / 100.0


cdef object no_points(uint16_t hundredths):
    if hundredths == UNSCORED:
        return None
    raise KserveError(f"the snapshot is damaged: {hundredths} hundredths are no score; verify it and publish it anew")


cdef inline object change(int16_t hundredths):
    return None if hundredths == UNKNOWN_CHANGE else hundredths / 100.0


cdef inline object known(uint32_t number):
    return None if number == UNKNOWN_COUNT else number


cdef object text(const Detail *detail, int field):
    if not detail.present >> field & 1:
        return None
    return detail.texts[field][:detail.text_lengths[field]].decode("utf-8", "replace")


cdef dict identities(const Detail *detail):
    found = {}
    for network, field in ID_FIELDS.items():
        identity = Identity(text(detail, field), text(detail, TW_NAME) if network == "tw" else None)
        if identity != (None, None):
            found[network] = identity
    return found


def as_ids(ids):
    """A batch of profile ids as uint64[n]. Raises TypeError, or OverflowError naming the first that cannot be an id."""
    if not isinstance(ids, np.ndarray):
        return np.fromiter(map(index, ids), dtype=np.uint64, count=len(ids))
    if cnp.PyArray_TYPE(ids) == cnp.NPY_UINT64 and cnp.PyArray_ISCARRAY_RO(ids) and cnp.PyArray_NDIM(ids) == 1:
        return ids
    if ids.dtype.kind not in "ui" or ids.ndim != 1:
        raise TypeError(f"profile ids are one dimension of integers, not {ids.ndim} dimensions of {ids.dtype}")
    if ids.dtype.kind == "i" and (ids < 0).any():
        raise OverflowError(f"no profile id is negative: index {int(np.argmax(ids < 0))} is {ids[np.argmax(ids < 0)]}")
    return np.require(ids, np.uint64, ["C", "A"])


cdef class Store:
    """The snapshot in force; see the stub."""

    def __init__(self, Snapshot snapshot not None):
        self.current = snapshot

    def on_close(self, stop):
        self.stop = stop

    cdef Snapshot pinned(self):
        if self.current is None:
            raise KserveError("this store is closed")
        return self.current

    @property
    def version(self):
        return self.pinned().version

    def snapshot(self):
        return self.pinned()

    def swap(self, Snapshot snapshot not None):
        before = self.pinned()
        self.current = snapshot
        return before

    def close(self):
        stop, self.stop = self.stop, None
        if stop is not None:
            stop()
        self.current = None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.close()

    def score(self, profile_id):
        return self.pinned().score(profile_id)

    def get(self, profile_id):
        return self.pinned().get(profile_id)

    def get_many(self, ids, bint changes=False):
        return self.pinned().get_many(ids, changes)

    def find(self, network, key, by=None):
        return self.pinned().find(network, key, by)

    def eligible(self, rule, ids):
        return self.pinned().eligible(rule, ids)

    def explain(self, rule, profile_id):
        return self.pinned().explain(rule, profile_id)

    def count(self, rule):
        return self.pinned().count(rule)

    def select(self, rule, limit):
        return self.pinned().select(rule, limit)
