"""Profiles of a snapshot, drawn at random."""

import numpy as np

from libc.stdint cimport uint64_t

from kserve._core cimport Snapshot
from kserve._view cimport View
from kserve.layout cimport EMPTY, LINE_SLOTS, mix, scale

__all__ = ["sample"]

cdef enum:
    TRIES = 16                  # for each id; most slots are taken
    MORE_TRIES = 4096           # but few are when there are next to no profiles


def sample(Snapshot snapshot not None, size_t n, uint64_t seed):
    cdef uint64_t[::1] ids = np.empty(n, dtype=np.uint64)
    cdef uint64_t drawn = 0, turn, slot
    cdef const View *view = &snapshot.view
    with nogil:
        for turn in range(TRIES * n + MORE_TRIES):
            if drawn == n or view.slots == 0:
                break
            slot = scale(mix(mix(seed) + turn * 0x9E3779B97F4A7C15ULL), view.slots)
            if view.lines[slot // LINE_SLOTS].scores[slot % LINE_SLOTS] != EMPTY:
                ids[drawn] = view.lines[slot // LINE_SLOTS].ids[slot % LINE_SLOTS]
                drawn += 1
    return np.unique(np.asarray(ids)[:drawn])
