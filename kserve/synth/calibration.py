"""From an even random number to a score: how scores are spread over all profiles, and how they move from day to day.

The published figures are those of connected users. Klout scored everybody whom its crawlers met, and most of those have
hardly a link: the mean over all profiles was about 20 in 2011-12, while the sample's mean is 37.8. So the population is
a mixture:

- a spike of profiles of whom nothing is known but that they exist, at exactly the floor (3/64);
- a mass of lightly-connected profiles, with a density that falls linearly from the floor to 25 points (46/64);
- connected users, who follow the published percentiles; the topmost of them reach up to 100 (15/64).

The mean of the mixture is 20.1. Scores are counted in *grains* of 1/64 hundredth of a point until they are rounded.
"""

from __future__ import annotations

import numpy as np

from kserve.synth.hashing import I64

FLOOR = 1000
"""Hundredths of a point: where the published sample begins (0.95 % of it are at exactly this score)."""

TOP = 10_000
"""Hundredths of a point: the highest score there is."""

LIGHT_TOP = 2500
"""Hundredths of a point: the highest score of a lightly-connected profile."""

SPIKE_64THS, LIGHT_64THS, CONNECTED_64THS = 3, 46, 15

PERCENTILES = (
    10.0, 10.339, 11.8521, 12.2805, 12.6361, 12.9133, 13.1126, 13.207, 13.3091, 13.5087,
    13.64, 13.9559, 14.5417, 15.0197, 15.8091, 16.2026, 16.6855, 17.5756, 18.081, 18.5924,
    19.2971, 20.367, 21.1009, 22.2353, 22.6744, 23.2112, 23.7734, 24.4808, 25.0747, 25.6109,
    26.2989, 26.661, 27.1718, 28.0404, 28.7274, 30.0111, 31.4932, 32.0524, 33.2868, 34.3638,
    35.1834, 36.1259, 36.7841, 37.159, 38.3056, 39.7914, 40.1581, 40.3266, 40.4939, 40.88,
    41.123, 41.3984, 41.7951, 42.3253, 42.5891, 42.9765, 43.2035, 43.433, 43.7409, 44.1295,
    44.4063, 44.6939, 45.0732, 45.4503, 45.9445, 46.2868, 46.7604, 46.976, 47.2918, 47.7843,
    48.2056, 48.6899, 49.1249, 49.4421, 50.0127, 50.3049, 50.5465, 50.955, 51.5386, 52.0777,
    52.4937, 52.7465, 53.2739, 53.6571, 54.1523, 54.9195, 55.3741, 55.8015, 56.2926, 56.8809,
    57.8813, 58.8406, 59.4786, 60.0102, 60.4712, 61.0137, 61.5939, 63.1037, 65.2955, 67.3189,
    87.2475,
)  # fmt: skip
"""Percentiles 0 to 100 of 1,048 published Klout scores (mean 37.756), computed from a published teaching sample."""

GRAINS = 64
"""Grains in a hundredth of a point."""

_CELLS = 1 << 16
_AMPLITUDE = 1000 * GRAINS  # the liveliest profile strays this far from its level, to both sides
_ROOM = 1 << 17  # grains (20.5 points): who is nearer to the floor or the top strays less, and never crosses either

_WAVE_SHARES = (10, 19, 35)  # of the amplitude, in 64ths
_WAVE_DAYS = ((10, 20), (40, 80), (200, 400))  # shortest and longest period
WAVES = tuple((65536 // high, 65536 // low - 65536 // high) for low, high in _WAVE_DAYS)
"""For each wave: the least step a day, in 65536ths of a turn, and how much longer the longest is."""

_SINE_BITS = 12
_SINE = np.round(np.sin(np.arange(1 << _SINE_BITS) * (2 * np.pi / (1 << _SINE_BITS))) * (1 << 14)).astype(np.int64)


def _levels() -> tuple[I64, I64]:
    """The mixture's quantile function, cut in 2^16 even cells: where each starts and how far it reaches, in grains."""
    spike, light = _CELLS // 64 * SPIKE_64THS, _CELLS // 64 * LIGHT_64THS
    connected = _CELLS - spike - light
    light_edges = FLOOR + (LIGHT_TOP - FLOOR) * (1 - np.sqrt(1 - np.arange(light + 1) / light))
    edges = np.interp(np.arange(connected + 1) / connected, np.linspace(0, 1, 101), PERCENTILES) * 100
    edges[-1] = TOP
    starts = np.concatenate([np.full(spike, float(FLOOR)), light_edges[:-1], edges[:-1]])
    ends = np.concatenate([np.full(spike, float(FLOOR)), light_edges[1:], edges[1:]])
    first, last = np.round(starts * GRAINS).astype(np.int64), np.round(ends * GRAINS).astype(np.int64)
    return first, last - first


_START, _REACH = _levels()


def level(cell: I64, within: I64) -> I64:
    """The score around which a profile moves, in grains.

    Args:
        cell: int64[n] below 2^16, the profile's place among all, coarsely.
        within: int64[n] below 2^16, its place within the cell.
    """
    return _START[cell] + (_REACH[cell] * within >> 16)


def amplitude(around: I64, random: I64) -> I64:
    """How far a profile strays from its level, in grains; most little, few much (the cube of an even number).

    Args:
        around: int64[n], the levels.
        random: int64[n] below 2^16.
    """
    room = np.minimum(around - FLOOR * GRAINS, TOP * GRAINS - around)
    np.minimum(room, _ROOM, out=room)
    widest = (random * random * random >> 32) * _AMPLITUDE >> 16
    return widest * room >> 17


def hundredths(around: I64, amplitude: I64, turns: list[I64]) -> I64:
    """The score of a day, in hundredths of a point.

    Args:
        around, amplitude: int64[n] in grains.
        turns: for each wave, int64[n]: where it is, in 65536ths of a turn (whole turns do not matter).
    """
    swing = np.zeros_like(around)
    for share, turn in zip(_WAVE_SHARES, turns, strict=True):
        swing += _SINE[(turn >> (16 - _SINE_BITS)) & ((1 << _SINE_BITS) - 1)] * share
    return (around + (amplitude * swing >> 20) + GRAINS // 2) >> 6
