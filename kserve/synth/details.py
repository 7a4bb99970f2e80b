"""What a full profile has besides its score: topics, names, networks, influence. In arrays as Arrow has them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kserve.synth import calibration
from kserve.synth.hashing import I64, U64, Bools, Choice, bits, key, mix, scramble
from kserve.synth.population import INDEX_BITS, Cohort

MOST_TOPICS = 20
MOST_LISTED = 5
NETWORK_SHARES = {"tw": 85, "gp": 20, "fb": 40, "ig": 25}
"""Percent of the profiles that have an account there."""

_LINKS = 4  # on each side: a profile has eight neighbours

_WORDS = """
able amber arrow azure bass bear birch blue bold brass brave brook calm cedar chef cider clay cloud coral crane
daisy dawn deep delta dune eager early echo elm ember fair fawn fern finch flint fox frost gale glad grand gray
happy hawk hazel heron iris ivory jade jazz jolly juno kind kite lake lark leaf lemon lily lime loud lucky lunar
lynx maple mars merry mint misty moon moss neat nova oak ocean olive opal otter owl pearl pine pixel plum polar
proud quick quiet rain raven red reed rio river robin rosy ruby rust sage sand sea shy sky slate snow solar
sonic spark star steel stone storm
"""
_STARTS = [f"{word}_" for word in _WORDS.split()] + [word.title() for word in _WORDS.split()]
_LETTERS = "bcdfghjkmnpqrstvwxyz0123456789ae"  # 32
_START_TABLE = np.array([start.encode() for start in _STARTS], "S8").view("u8")
_PAIRS = np.array([(a + b).encode() for a in _LETTERS for b in _LETTERS], "S2").view("u2")
_DIGITS = np.array([f"{n:04}".encode() for n in range(10_000)], "S4").view("u4")


class Texts(NamedTuple):
    """n strings: ``data`` uint8[total] and ``offsets`` int32[n + 1] into it."""

    data: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int32]


class Lists(NamedTuple):
    """n lists: ``offsets`` int32[n + 1] into the arrays of the elements."""

    offsets: npt.NDArray[np.int32]
    elements: tuple[npt.NDArray[Any], ...]


def _offsets(lengths: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def accounts(cohort: Cohort) -> dict[str, Bools]:
    """Network to bool[n]: who has an account there."""
    random = cohort.random("accounts")
    return {
        network: bits(random, 16 * place, 16) < (share << 16) // 100
        for place, (network, share) in enumerate(NETWORK_SHARES.items())
    }


def names(cohort: Cohort) -> Texts:
    """A unique name for each profile, as Twitter takes them: at most 15 of ``A-Za-z0-9_``; unique in lower case too."""
    tag = scramble(cohort.index, INDEX_BITS, key(cohort.population.seed, "name"))
    text = np.empty(len(tag), [("word", "u8"), ("tag", "u2", 4)])
    text["word"] = _START_TABLE[bits(cohort.random("word"), 0, 32) * len(_START_TABLE) >> 32]
    for place in range(4):
        text["tag"][:, place] = _PAIRS[bits(tag, 10 * place, 10)]
    letters = text.view(np.uint8).reshape(len(tag), 16)
    used = letters != 0
    return Texts(letters[used], _offsets(used.sum(axis=1)))


def _fixed(prefix: bytes, groups: list[I64]) -> Texts:
    """Strings of one length: a prefix, then four digits for each group of numbers below 10,000."""
    count = len(groups[0])
    text = np.empty(count, [("prefix", "S", len(prefix)), *((f"d{place}", "u4") for place in range(len(groups)))])
    text["prefix"] = prefix
    for place, group in enumerate(groups):
        text[f"d{place}"] = _DIGITS[group]
    return Texts(text.view(np.uint8), np.arange(count + 1, dtype=np.int32) * text.itemsize)


def _twelve_digits(cohort: Cohort, network: str) -> list[I64]:
    number = scramble(cohort.index, INDEX_BITS, key(cohort.population.seed, network)).view(np.int64)
    thousands = number // 10_000
    millions = thousands // 10_000
    return [millions, thousands - millions * 10_000, number - thousands * 10_000]


def network_ids(cohort: Cohort, network: str) -> Texts:
    """A unique id of digits for each profile; those of ``gp`` have 21, more than 64 bits hold, as real ones do."""
    groups = _twelve_digits(cohort, network)
    if network != "gp":
        return _fixed({"tw": b"1", "fb": b"100", "ig": b"2"}[network], groups)
    random = cohort.random("gp digits")
    leading = [bits(random, 0, 32) * 10_000 >> 32, bits(random, 32, 31) * 10_000 >> 31]
    return _fixed(b"1", leading + groups)


_POINTS = np.arange(calibration.TOP + 1) / 100
_REACH = np.round(10 ** (_POINTS / 17)).astype(np.int64)  # 4 people at 10 points, 760,000 at 100


def network_scores(cohort: Cohort) -> tuple[I64, I64, npt.NDArray[np.uint32]]:
    """Network score and amplification in hundredths of a point, and true reach: all grow with the score."""
    score, random = cohort.hundredths(), cohort.random("network scores")
    network = score + (bits(random, 0, 16) * 600 >> 16) - 300
    amplification = score * (16384 + bits(random, 16, 15)) >> 16
    reach = _REACH[score] * (16384 + bits(random, 32, 16)) >> 16
    return np.clip(network, 100, 10_000), np.clip(amplification, 100, 10_000), reach.astype(np.uint32)


def topics(cohort: Cohort, choice: Choice) -> Lists:
    """Up to 20 different topics for each profile, more for a higher score; none for the unscored.

    The elements are positions in the list of ``choice`` (int32) and scores in hundredths of a point (int64).
    """
    points = cohort.hundredths() - calibration.FLOOR
    most = 3 + points // 120
    wanted = np.minimum((bits(cohort.random("topic count"), 0, 32) * (most + 1)) >> 32, MOST_TOPICS)
    wanted[(points == 0) | ~cohort.scored()] = 0
    starts = _offsets(wanted)
    profile = np.repeat(np.arange(len(wanted)), wanted)
    turn = (np.arange(starts[-1]) - starts[profile]).view(np.uint64)
    own = cohort.random("topics")
    drawn = choice.draw(mix(own[profile] + turn * 0x9E3779B97F4A7C15))
    width = choice.size.bit_length()
    pairs = np.sort(profile << width | drawn)
    pairs = pairs[np.diff(pairs, prepend=-1) != 0]
    profile, topic = pairs >> width, pairs & ((1 << width) - 1)
    strength = bits(mix(own[profile] ^ topic.view(np.uint64)), 0, 31)
    score = 100 + (strength * (strength >> 15) >> 31) * 9900 // (1 << 16)
    return Lists(_offsets(np.bincount(profile, minlength=len(wanted))), (topic.astype(np.int32), score))


class Influence(NamedTuple):
    """Ids (uint64) of at most 5 influencers and influencees, and uint32[n] counts of all of them."""

    influencers: Lists
    influencees: Lists
    influencer_count: npt.NDArray[np.uint32]
    influencee_count: npt.NDArray[np.uint32]


def _links(seed: int, size: int) -> list[int]:
    """Distances in slots, each less than half way round, so that nobody is a neighbour twice or of themselves."""
    most = (size - 1) // 2
    if most <= _LINKS:
        return list(range(1, most + 1))
    links: dict[int, None] = {}
    attempt = 0
    while len(links) < _LINKS:
        links[1 + key(seed, f"link {attempt}") % most] = None
        attempt += 1
    return list(links)


def _listed(ids: U64, chosen: Bools) -> tuple[Lists, npt.NDArray[np.uint32]]:
    """The first few chosen of each row, of ids uint64[n, k] and chosen bool[n, k]; and how many are chosen."""
    rank = np.cumsum(chosen, axis=1, dtype=np.uint8)
    shown = chosen & (rank <= MOST_LISTED)
    lists = Lists(_offsets(np.minimum(rank[:, -1], MOST_LISTED)), (ids[shown],))
    return lists, rank[:, -1].astype(np.uint32)


def influence(cohort: Cohort) -> Influence:
    """Who influences whom: of two neighbours the one with the higher score influences the other, and both lists say so.

    The unscored, and those of equal score, do not influence each other.
    """
    size = np.uint64(cohort.population.size)
    links = _links(cohort.population.seed, cohort.population.size)
    distances = [distance for link in links for distance in (link, int(size) - link)]
    score, scored = cohort.hundredths(), cohort.scored()
    shape = (len(score), max(len(distances), 1))
    ids, above, below = np.zeros(shape, np.uint64), np.zeros(shape, bool), np.zeros(shape, bool)
    for column, distance in enumerate(distances):
        neighbours = cohort.population.cohort((cohort.slots + distance) % size)
        theirs, both = neighbours.hundredths(), scored & neighbours.scored()
        ids[:, column] = neighbours.ids
        above[:, column] = both & (theirs > score)
        below[:, column] = both & (theirs < score)
    (influencers, influencer_count), (influencees, influencee_count) = _listed(ids, above), _listed(ids, below)
    return Influence(influencers, influencees, influencer_count, influencee_count)
