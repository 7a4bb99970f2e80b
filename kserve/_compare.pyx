"""What became of the profiles of a snapshot in the next one, counted in one pass over both files at once.

A file is in the order of its ids' hashes, and the number of its lines only stretches that order. Who goes through the
new file line by line therefore finds the same profiles in the old one line by line too: both are read like streams.
Every profile of either file is counted once: in its pair, or afterwards, as one that the new file does not have.
"""

import numpy as np

from libc.stdint cimport UINT64_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport abs
from libc.string cimport memmove

from kserve._census cimport (
    CHUNK_LINES,
    CHUNK_SLOTS,
    N_NETWORKS,
    Census,
    Chunk,
    Tally,
    address,
    list_profiles,
    observe,
    refuse,
    take,
)
from kserve._view cimport NOT_FOUND, View, find_from, prefetch, prefetch_write, topic_range
from kserve.layout cimport *

__all__ = ["EVENTS", "MOVER", "SHIFT", "Pairs"]

cdef enum:
    SPAN = HIGHEST_SCORE - LOWEST_SCORE
    MOST_MOVERS = 100

cdef enum:                     # by the place in EVENTS
    MOVED = 0
    REMOVED = 1
    LOST_SCORE = 2
    LOST_TOPICS = 3
    LOST_LOCATION = 4
    FLOORED = 5
    RELOCATED = 6
    RETOPICKED = 7
    RENAMED = 8
    REMEASURED = 9
    RECONNECTED = 10
    N_EVENTS = 11

cdef enum:
    FAR = 1000                 # hundredths of a point
    FEW = 100                  # people, by which any true reach may change

cdef extern from *:
    """
    #define kserve_popcount(bits) __builtin_popcountll(bits)
    """
    int popcount "kserve_popcount"(uint64_t bits) noexcept nogil

cdef struct Shift:
    int64_t sum                 # of new - old, in hundredths
    uint32_t both
    uint32_t over5

cdef struct MoverRow:
    uint64_t id
    uint16_t old
    uint16_t new

cdef struct Shifts:            # by the number of a location, topic or network
    Shift *near
    uint32_t *over10            # apart: so few of them are reached for

cdef struct Join:               # of two snapshots
    uint32_t *moves             # by new - old, from -SPAN on
    Shifts regions              # in the old one
    Shifts topics
    Shifts networks
    uint64_t *found             # bit by slot of the old one: the new one has it too
    uint64_t both
    uint64_t became_unscored
    uint64_t became_scored
    uint64_t *cases[N_EVENTS]   # slots of the old one
    uint64_t n_cases[N_EVENTS]  # in all, of which the first `room` are kept
    uint64_t room
    MoverRow movers[MOST_MOVERS]
    int n_movers
    int least_move              # that is still among the movers

EVENTS = (
    *("moved", "removed", "unscored", "topics", "location", "floored", "relocated", "retopicked", "renamed"),
    *("remeasured", "reconnected"),
)
SHIFT = np.dtype({"names": ["sum", "both", "over5"], "formats": ["i8", "u4", "u4"], "itemsize": sizeof(Shift)})
MOVER = np.dtype({"names": ["id", "old", "new"], "formats": ["u8", "u2", "u2"], "itemsize": sizeof(MoverRow)})


def shifts(n):
    """Of n groups: SHIFT[n], and uint32[n] profiles that moved more than 10 points."""
    return np.zeros(n, dtype=SHIFT), np.zeros(n, dtype=np.uint32)


cdef int point(Shifts *to, arrays) except -1:
    to.near, to.over10 = <Shift *>address(arrays[0]), <uint32_t *>address(arrays[1])
    return 0


cdef class Pairs:
    """Counts of what became of the profiles of one snapshot in another; see the stub."""

    cdef Join join
    cdef readonly Census old, new
    cdef readonly object moves, regions, topics, networks, found
    cdef list lists

    def __init__(self, Census old not None, Census new not None, uint64_t most_cases):
        self.old, self.new = old, new
        self.moves = np.zeros(2 * SPAN + 1, dtype=np.uint32)
        self.regions = shifts(old.tally.n_locations)
        self.topics = shifts(old.tally.n_topics)
        self.networks = shifts(N_NETWORKS)
        self.found = np.zeros(old.tally.view.slots // BLOCK_SLOTS, dtype=np.uint64)
        self.lists = [np.empty(most_cases, dtype=np.uint64) for _ in range(N_EVENTS)]
        cdef int event
        for event in range(N_EVENTS):
            self.join.cases[event] = <uint64_t *>address(self.lists[event])
            self.join.n_cases[event] = 0
        self.join.room = most_cases
        self.join.both = self.join.became_unscored = self.join.became_scored = 0
        self.join.n_movers = self.join.least_move = 0
        self.join.moves = <uint32_t *>address(self.moves)
        point(&self.join.regions, self.regions)
        point(&self.join.topics, self.topics)
        point(&self.join.networks, self.networks)
        self.join.found = <uint64_t *>address(self.found)

    @property
    def both(self):
        return self.join.both

    @property
    def became_unscored(self):
        return self.join.became_unscored

    @property
    def became_scored(self):
        return self.join.became_scored

    @property
    def movers(self):
        movers = np.empty(self.join.n_movers, dtype=MOVER)
        cdef int i
        for i in range(self.join.n_movers):
            movers[i] = (self.join.movers[i].id, self.join.movers[i].old, self.join.movers[i].new)
        return movers

    @property
    def cases(self):
        cdef int event
        return [
            (self.lists[event][:min(self.join.n_cases[event], self.join.room)], self.join.n_cases[event])
            for event in range(N_EVENTS)
        ]

    def count(self, uint64_t first_block, uint64_t last_block):
        cdef const View *view = self.new.tally.view
        cdef uint64_t line = first_block * (BLOCK_SLOTS // LINE_SLOTS)
        cdef uint64_t last_line = min(last_block * (BLOCK_SLOTS // LINE_SLOTS), view.n_lines)
        cdef Chunk here, there
        cdef uint16_t partners[CHUNK_SLOTS]
        cdef int old_fault = 0, new_fault = 0
        with nogil:
            while line < last_line and not (old_fault or new_fault):
                list_profiles(view, line, min(line + CHUNK_LINES, last_line), &here)
                find_partners(self.old.tally.view, &here, &there, partners)
                new_fault = observe(&self.new.tally, &here)
                old_fault = observe(&self.old.tally, &there)
                if not (old_fault or new_fault):
                    pair_up(&self.join, &self.old.tally, &there, &self.new.tally, &here, partners)
                line += CHUNK_LINES
        refuse(self.new.snapshot, new_fault)
        refuse(self.old.snapshot, old_fault)

    def count_removed(self, const uint64_t[::1] found, uint64_t first_block, uint64_t last_block):
        cdef const View *view = self.old.tally.view
        cdef uint64_t block
        cdef Chunk chunk
        cdef int fault = 0, i
        with nogil:
            for block in range(first_block, min(last_block, view.slots // BLOCK_SLOTS)):
                list_others(view, block, found[block], &chunk)
                fault = observe(&self.old.tally, &chunk)
                if fault:
                    break
                for i in range(chunk.n):
                    note(&self.join, REMOVED, chunk.slots[i])
        refuse(self.old.snapshot, fault)


cdef void list_others(const View *view, uint64_t block, uint64_t found, Chunk *chunk) noexcept nogil:
    """The profiles of a block whose bits are not set."""
    cdef const uint16_t *scores = &view.scores[block * BLOCK_SLOTS]
    cdef uint16_t profiles = 0
    cdef int i
    chunk.n = 0
    for i in range(BLOCK_SLOTS):
        profiles += scores[i] != EMPTY
    if profiles == popcount(found):
        return
    for i in range(BLOCK_SLOTS):
        if scores[i] != EMPTY and not found >> i & 1:
            take(view, block * BLOCK_SLOTS + i, chunk, chunk.n)
            chunk.mixed[chunk.n] = mix(chunk.ids[chunk.n])
            chunk.n += 1


cdef void find_partners(const View *old, const Chunk *here, Chunk *there, uint16_t *partners) noexcept nogil:
    """The same profiles in the old snapshot; `partners[i]` is the place in `here` of the i-th that is there."""
    cdef uint64_t lines[CHUNK_SLOTS]
    cdef int64_t slot
    cdef int i, n = 0
    for i in range(here.n):
        lines[i] = scale(here.mixed[i], old.n_lines)
        prefetch(&old.lines[lines[i]])
    for i in range(here.n):
        slot = find_from(old, here.ids[i], lines[i], old.longest_probe)
        if slot != NOT_FOUND:
            take(old, <uint64_t>slot, there, n)
            there.mixed[n] = here.mixed[i]
            partners[n] = <uint16_t>i
            n += 1
    there.n = n


cdef void pair_up(
    Join *join, const Tally *old, const Chunk *there, const Tally *new, const Chunk *here, const uint16_t *partners
) noexcept nogil:
    """What became of the profiles `there`."""
    cdef int moves[CHUNK_SLOTS]
    cdef uint8_t paired[CHUNK_SLOTS]    # scored in both
    cdef int i, k, network
    join.both += there.n
    for i in range(there.n):
        prefetch_write(&join.regions.near[there.locations[i]])
        k = partners[i]
        join.found[there.slots[i] // BLOCK_SLOTS] |= 1ULL << (there.slots[i] % BLOCK_SLOTS)
        paired[i] = there.counted[i] != 0 and here.counted[k] != 0
        moves[i] = (<int>here.counted[k] - <int>there.counted[i]) * paired[i]
        join.moves[moves[i] + SPAN] += paired[i]
    for i in range(there.n):
        shift(&join.regions, there.locations[i], moves[i], paired[i])
    if old.view.detail_starts != NULL:
        for i in range(there.n):
            for network in range(N_NETWORKS):
                shift(&join.networks, network, moves[i], paired[i] & there.networks[i] >> network)
    if old.view.topic_counts != NULL:
        shift_topics(join, old.view, there, moves, paired)
    for i in range(there.n):
        if abs(moves[i]) > join.least_move:
            add_mover(join, there.ids[i], there.counted[i], here.counted[partners[i]])
        note_events(join, there, i, here, partners[i], moves[i])
        note_changes(join, old, there, i, new, here, partners[i])
        if is_remeasured(old.view, there.slots[i], new.view, here.slots[partners[i]]):
            note(join, REMEASURED, there.slots[i])


cdef inline void shift(Shifts *of, uint64_t group, int move, uint8_t counts) noexcept nogil:
    of.near[group].sum += move * counts
    of.near[group].both += counts
    of.near[group].over5 += counts & (abs(move) > 500)
    if counts & (abs(move) > 1000):
        of.over10[group] += 1


cdef void shift_topics(
    Join *join, const View *old, const Chunk *there, const int *moves, const uint8_t *paired
) noexcept nogil:
    cdef uint64_t start, stop, entry
    cdef int i
    for i in range(there.n):
        topic_range(old, there.slots[i], &start, &stop)
        for entry in range(start, stop):
            shift(&join.topics, old.topic_ids[entry], moves[i], paired[i])


cdef inline void note_events(
    Join *join, const Chunk *there, int i, const Chunk *here, int k, int move
) noexcept nogil:
    if abs(move) > 1000:
        note(join, MOVED, there.slots[i])
    if there.counted[i] == 0 or here.counted[k] == 0:
        join.became_scored += here.counted[k] != 0
        if there.counted[i] != 0:
            join.became_unscored += 1
            note(join, LOST_SCORE, there.slots[i])
    if there.topics[i] != 0 and here.topics[k] == 0:
        note(join, LOST_TOPICS, there.slots[i])
    if there.locations[i] != UNKNOWN_LOCATION and here.locations[k] == UNKNOWN_LOCATION:
        note(join, LOST_LOCATION, there.slots[i])


cdef inline void note_changes(
    Join *join, const Tally *old, const Chunk *there, int i, const Tally *new, const Chunk *here, int k
) noexcept nogil:
    """Another place, wholly other topics, another name on the same network: of one profile, or of somebody else."""
    cdef int network
    if here.counted[k] == LOWEST_SCORE and there.counted[i] > LOWEST_SCORE:
        note(join, FLOORED, there.slots[i])
    if there.locations[i] != UNKNOWN_LOCATION and here.locations[k] != UNKNOWN_LOCATION:
        if old.regions.heads[there.locations[i]].hash != new.regions.heads[here.locations[k]].hash:
            note(join, RELOCATED, there.slots[i])
    if there.topics[i] != 0 and here.topics[k] != 0:
        if there.least_topics[i] != here.least_topics[k] and there.most_topics[i] != here.most_topics[k]:
            note(join, RETOPICKED, there.slots[i])
    for network in range(N_NETWORKS):
        if there.networks[i] & here.networks[k] & (1 << network):
            if there.identities[i][network] != here.identities[k][network]:
                note(join, RENAMED, there.slots[i])
                break
    if are_others(there.least_near[i], there.most_near[i], here.least_near[k], here.most_near[k]):
        note(join, RECONNECTED, there.slots[i])


cdef inline bint are_others(
    const uint64_t *least, const uint64_t *most, const uint64_t *new_least, const uint64_t *new_most
) noexcept nogil:
    """Whether one of the lists, of two that are not empty, has neither the ends that it had."""
    cdef int which
    for which in range(2):
        if least[which] != UINT64_MAX and new_least[which] != UINT64_MAX:
            if least[which] != new_least[which] and most[which] != new_most[which]:
                return True
    return False


cdef inline bint is_remeasured(const View *old, uint64_t was, const View *new, uint64_t now) noexcept nogil:
    """Whether network score or amplification moved far, or the true reach is twice as big, or half."""
    cdef int64_t before, after
    if are_far(old.network_scores, was, new.network_scores, now):
        return True
    if are_far(old.amplifications, was, new.amplifications, now):
        return True
    if old.true_reaches == NULL or new.true_reaches == NULL:
        return False
    before, after = old.true_reaches[was], new.true_reaches[now]
    if before == UNKNOWN_COUNT or after == UNKNOWN_COUNT:
        return False
    return max(before, after) > 2 * min(before, after) + FEW


cdef inline bint are_far(const uint16_t *old, uint64_t was, const uint16_t *new, uint64_t now) noexcept nogil:
    if old == NULL or new == NULL or old[was] == UNSCORED or new[now] == UNSCORED:
        return False
    return abs(<int>new[now] - <int>old[was]) > FAR


cdef inline void note(Join *join, int event, uint64_t slot) noexcept nogil:
    if join.n_cases[event] < join.room:
        join.cases[event][join.n_cases[event]] = slot
    join.n_cases[event] += 1


cdef void add_mover(Join *join, uint64_t profile_id, uint16_t old, uint16_t new) noexcept nogil:
    """Into its place: the biggest moves first, equal ones in the order of arrival."""
    cdef int move = abs(<int>new - <int>old)
    cdef int at = join.n_movers
    while at > 0 and abs(<int>join.movers[at - 1].new - <int>join.movers[at - 1].old) < move:
        at -= 1
    if join.n_movers < MOST_MOVERS:
        join.n_movers += 1
    memmove(&join.movers[at + 1], &join.movers[at], (join.n_movers - at - 1) * sizeof(MoverRow))
    join.movers[at].id, join.movers[at].old, join.movers[at].new = profile_id, old, new
    if join.n_movers == MOST_MOVERS:
        join.least_move = abs(<int>join.movers[MOST_MOVERS - 1].new - <int>join.movers[MOST_MOVERS - 1].old)
