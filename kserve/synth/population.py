"""Who is there on a day, and with which score.

A population has a fixed number of *slots*. A profile lives in its slot for 300 to 811 days; the day after, another one
arrives there. So every day has the same number of profiles, about 0.2 % of them new since yesterday, and any day can be
computed directly. The days before day 0 exist too: the first snapshots have changes as later ones do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kserve.synth import calibration
from kserve.synth.hashing import I64, U64, Bools, bits, key, mix, scramble

SLOT_BITS = 32
INDEX_BITS = 39
"""A profile's index is its slot and, above it, how many were in the slot before: 7 bits, enough for a century."""

LAST_DAY = 36_500
MOST_PROFILES = 1 << SLOT_BITS

_DAYS_BEFORE = 1024  # of history when day 0 dawns
_SHORTEST_LIFE, _LIFE_BITS = 300, 9
_UNSCORED = round(0.003 * (1 << 20))  # share of its cycle that a profile spends unscored
_UNSCORED_STEP = _UNSCORED // 60  # so a profile is unscored for 60 days on end
_OPT_OUT = round(0.02 * (1 << 16))  # share who opt out some day of their life: half of that have done so on a given day
_HIGH_IDS = 16  # one in so many ids is above 2^63


@dataclass(frozen=True)
class Population:
    """All profiles of one seed on one day: ``size`` slots."""

    seed: int
    size: int
    day: int

    def cohort(self, slots: U64) -> Cohort:
        """The profiles that are in these slots, uint64[n], on the day."""
        return Cohort(self, slots)


class Cohort:
    """n profiles of one day. Every array has n elements, in the order of the slots asked for."""

    def __init__(self, population: Population, slots: U64) -> None:
        self.population = population
        self.slots = slots
        random = mix(slots + key(population.seed, "life"))
        life = bits(random, 0, _LIFE_BITS) + _SHORTEST_LIFE
        since = (bits(random, 32, 32) * life >> 32) + (population.day + _DAYS_BEFORE)
        before = (since.astype(np.uint32) // life.astype(np.uint32)).astype(np.int64)
        self._life = life
        self.age = since - before * life
        self.index: U64 = before.view(np.uint64) << np.uint64(SLOT_BITS) | slots

    def random(self, purpose: str) -> U64:
        """Evenly spread numbers, one for each profile, the same on every day of its life."""
        return mix(self.index + key(self.population.seed, purpose))

    @cached_property
    def ids(self) -> U64:
        """Profile ids: unique over all days; one in 16 is above 2^63."""
        ids = scramble(self.index, 63, key(self.population.seed, "id"))
        ids |= ((self.random("high id") & (_HIGH_IDS - 1)) == 0).astype(np.uint64) << 63
        return ids

    @cached_property
    def _level_random(self) -> U64:
        return self.random("level")

    @cached_property
    def level(self) -> I64:
        """The score around which each profile moves, in grains."""
        return calibration.level(bits(self._level_random, 0, 16), bits(self._level_random, 16, 16))

    @cached_property
    def _amplitude(self) -> I64:
        return calibration.amplitude(self.level, bits(self._level_random, 32, 16))

    @cached_property
    def _waves(self) -> list[tuple[I64, I64]]:
        """For each wave, where it was on day 0 and its step a day."""
        phases, steps = self.random("wave phases"), self.random("wave steps")
        return [
            (bits(phases, 16 * wave, 16), least + (bits(steps, 16 * wave, 16) * spread >> 16))
            for wave, (least, spread) in enumerate(calibration.WAVES)
        ]

    @cached_property
    def _unscored_random(self) -> I64:
        return bits(self.random("unscored"), 0, 20)

    def hundredths(self, days_before: int = 0) -> I64:
        """The score so many days earlier, in hundredths of a point; means nothing where :meth:`scored` is false."""
        day = self.population.day - days_before
        turns = [phase + step * day for phase, step in self._waves]
        return calibration.hundredths(self.level, self._amplitude, turns)

    def scored(self, days_before: int = 0) -> Bools:
        """Whether the profile was there, and had a score, so many days earlier."""
        day = self.population.day - days_before
        cycle = (self._unscored_random + day * _UNSCORED_STEP) & ((1 << 20) - 1)
        has_score: Bools = cycle >= _UNSCORED
        return has_score & (self.age >= days_before) if days_before else has_score

    def opted_out(self) -> Bools:
        """Who has opted out; nobody ever opts in again."""
        random = self.random("opt-out")
        since = bits(random, 16, 16) * self._life >> 16
        return (bits(random, 0, 16) < _OPT_OUT) & (self.age >= since)
