"""Randomness by counting: any value of any profile on any day is computed from its numbers alone, in any order.

Everything is integer arithmetic, so that the same plan gives the same bytes on every machine.
"""

from __future__ import annotations

from collections import deque
from functools import cache
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@cache
def key(seed: int, purpose: str) -> int:
    """A number below 2^64 for one purpose of one seed."""
    return int.from_bytes(blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest(), "little")


def mix(x: U64) -> U64:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014), in place: uint64[n] to evenly spread uint64[n]."""
    x ^= x >> 30
    x *= 0xBF58476D1CE4E5B9
    x ^= x >> 27
    x *= 0x94D049BB133111EB
    x ^= x >> 31
    return x


def scramble(x: U64, bits: int, offset: int) -> U64:
    """A bijection of the numbers below 2^bits, bits >= 2, uint64[n]: what is different stays different."""
    mask = np.uint64((1 << bits) - 1)
    x = (x + offset) & mask
    for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
        x ^= x >> (bits // 2)
        x *= np.uint64(factor) & mask
        x &= mask
    x ^= x >> (bits // 2)
    return x


def bits(x: U64, start: int, count: int) -> I64:
    """``count`` (at most 62) bits of x from bit ``start`` on: int64[n]."""
    return ((x >> start) & ((1 << count) - 1)).view(np.int64)


class Choice:
    """Draws positions of a list in proportion to whole-number weights in O(1), by Walker's alias method.

    Args:
        weights: int64[k], none negative, at least one positive; k below 2^31.
    """

    def __init__(self, weights: I64) -> None:
        size, total = len(weights), int(weights.sum())
        self.size = size
        self._other = np.arange(size)
        keep = np.full(size, 1 << 32, np.int64)
        share = [int(weight) * size for weight in weights]  # a full cell is worth `total`
        poor = deque(i for i in range(size) if share[i] < total)
        rich = deque(i for i in range(size) if share[i] > total)
        while poor:  # whole numbers: what the poor lack is exactly what the rich have left
            needy, giver = poor.popleft(), rich[0]
            keep[needy] = (share[needy] << 32) // total
            self._other[needy] = giver
            share[giver] += share[needy] - total
            if share[giver] <= total:
                rich.popleft()
                if share[giver] < total:
                    poor.append(giver)
        self._keep = keep

    def draw(self, random: U64) -> I64:
        """Evenly spread uint64[n] to positions int64[n]."""
        cell = ((random >> 32) * self.size >> 32).view(np.int64)
        stays = bits(random, 0, 32) < self._keep[cell]
        return np.where(stays, cell, self._other[cell])
