"""What gates look at group by group: regions, topics, networks and id ranges."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from kserve.snapshots import shapes, words
from kserve.snapshots.judging import Case, Measure
from kserve.snapshots.measures import Comparison, Counts, Groups, Moves, Portrait

SAMPLED = 100
"""Profiles that an id range needs to have a mean: it is a sample already."""

EVENTS = {
    "moved": "moved more than 10 points",
    "removed": "are gone",
    "unscored": "lost their score",
    "topics": "lost their topics",
    "location": "lost their location",
}


def psi(case: Case, who: str, old: Counts, new: Counts) -> Measure:
    """By whole points. What chance may do is added to the limits: only small groups feel it."""
    found, limits = shapes.psi(old, new), case.limits
    reason = f"the scores of {who} are spread differently: PSI {words.number(found.value)}"
    hold, warn = limits.psi + found.chance, limits.psi_warn + found.chance
    return Measure(found.value, hold, f"PSI {words.number(found.value)}", words.number(limits.psi), reason, warn)


def ks(case: Case, who: str, old: Counts, new: Counts) -> Measure:
    """By whatever bins there are."""
    found, limits = shapes.ks(old, new), case.limits
    reason = f"the cumulated scores of {who} are {words.percent(found.value)} apart (KS)"
    hold, warn = limits.ks + found.chance, limits.ks_warn + found.chance
    return Measure(found.value, hold, f"KS {words.number(found.value)}", words.number(limits.ks), reason, warn)


def shapes_of(case: Case, old: Groups, new: Groups) -> Iterator[Measure]:
    """PSI and KS of the groups that have profiles enough in both."""
    least = case.limits.group_profiles
    place = {name: number for number, name in enumerate(new.names)}
    scored_old, scored_new = old.histogram.sum(axis=1), new.histogram.sum(axis=1)
    for i in np.flatnonzero(scored_old >= least).tolist():
        j = place.get(old.names[i])
        if j is not None and scored_new[j] >= least:
            yield psi(case, old.names[i], old.histogram[i], new.histogram[j])
            yield ks(case, old.names[i], old.histogram[i], new.histogram[j])


def means(case: Case, both: Comparison) -> Iterator[Measure]:
    """How far the mean of each group moved, beyond what all did."""
    scored = float(both.moves.sum())
    if not scored:
        return
    moves = (np.arange(len(both.moves)) - len(both.moves) // 2) / 100
    mean = float(both.moves @ moves) / scored
    spread = float(np.sqrt(both.moves @ (moves - mean) ** 2 / scored))
    for groups in (both.regions, both.topics, both.networks):
        yield from _means(case, groups, case.limits.group_profiles, mean, spread)
    yield from _means(case, both.id_ranges, SAMPLED, mean, spread)


def _means(case: Case, groups: Moves, least: int, mean: float, spread: float) -> Iterator[Measure]:
    limit = case.limits.group_mean
    for i in np.flatnonzero(groups.both >= least).tolist():
        moved = float(groups.sums[i] / groups.both[i])
        chance = shapes.SIGMAS * spread / float(groups.both[i]) ** 0.5
        reason = (
            f"the mean of {groups.names[i]} moved by {words.points(moved, sign=True)} points, that of all by"
            f" {words.points(mean, sign=True)}"
        )
        figure = f"mean {words.points(moved - mean, sign=True)}"
        yield Measure(abs(moved - mean), limit + chance, figure, f"± {words.number(limit)} points", reason)


def covered(case: Case, both: Comparison) -> Iterator[Measure]:
    """The shares of profiles with a location, with topics, with an identity on each network."""
    limit = case.share(case.limits.coverage)
    old, new = _covered(both.old), _covered(both.new)
    for what, before in old.items():
        after = new.get(what, 0.0)
        reason = f"{words.percent(after)} of the profiles have {what} (before: {words.percent(before)})"
        threshold = words.more_percent(-limit)
        yield Measure(before - after, limit, words.more_percent(after - before), threshold, reason)


def _covered(portrait: Portrait) -> dict[str, float]:
    networks = zip(portrait.networks.names, portrait.networks.profiles.tolist(), strict=True)
    known = {f"an identity on {name}": count for name, count in networks}
    for column, what in (("location", "a location"), ("topics", "topics")):
        if column in portrait.nulls:
            known[what] = portrait.profiles - portrait.nulls[column]
    return {what: count / portrait.profiles for what, count in known.items()}


def losses(case: Case, kind: str, old: Groups, new: Groups) -> Iterator[Measure]:
    """What share of its profiles each big group lost."""
    limit = case.limits.group_coverage
    place = {name: number for number, name in enumerate(new.names)}
    for i in np.flatnonzero(old.profiles >= case.limits.group_profiles).tolist():
        before, j = int(old.profiles[i]), place.get(old.names[i])
        after = 0 if j is None else int(new.profiles[j])
        reason = f"{kind} {old.names[i]} has {words.count(after, 'profile')} (before: {words.count(before)})"
        change = after / before - 1
        yield Measure(-change, limit, words.percent(change, sign=True), f"-{words.percent(limit)}", reason)


def table(case: Case, what: str, old: Collection[str], new: Collection[str]) -> Measure:
    """How much of a table of names is gone."""
    gone = set(old).difference(new)
    share = len(gone) / max(len(old), 1)
    reason = f"{len(gone):,} of {len(old):,} {what} are gone"
    limit = max(case.limits.group_coverage, case.limits.few / max(len(old), 1))
    return Measure(share, limit, words.percent(-share), f"-{words.percent(limit)}", reason)


def clusters(case: Case, both: Comparison, *events: str) -> Iterator[Measure]:
    """Places where something happened far more often than elsewhere; chance does not make them."""
    least = case.limits.cluster
    for found in both.clusters:
        if found.event in events:
            reason = (
                f"concentrated in {found.where}: {words.count(found.cases)} of {words.count(round(found.profiles))}"
                f" profiles {EVENTS[found.event]}; {words.count(found.expected)} expected"
            )
            figure = f"{words.count(found.cases)} in {found.where}"
            yield Measure(found.cases, least - 1, figure, f"fewer than {least} in one place", reason)
