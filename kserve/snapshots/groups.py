"""What gates look at group by group: regions, topics, networks and id ranges."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import numpy.typing as npt

from kserve.snapshots import shapes, words
from kserve.snapshots.judging import Case, Measure
from kserve.snapshots.measures import Comparison, Counts, Groups, Moves, Portrait

SAMPLED = 100
"""Profiles that an id range needs to have a mean: it is a sample already."""

HALF = 0.5
"""Of a profile, added to every bin, so that each has a logarithm."""

NEAR = 0.5
"""Of a quick estimate's way to a warning: groups beyond it are looked at closely."""

CHUNK = 1024
"""Groups that are looked at together: they stay in the processor's cache."""

LOOKED_AT = 500
"""Groups of a kind that are judged at most, the worst first: a fault everywhere is told often enough."""

Places = npt.NDArray[np.int64]

EVENTS = {
    "moved": "moved more than 10 points",
    "removed": "are gone",
    "unscored": "lost their score",
    "topics": "lost their topics",
    "location": "lost their location",
    "floored": "fell to 1.00",
    "relocated": "have another location",
    "retopicked": "have wholly other topics",
    "renamed": "have another identity on the same network",
    "remeasured": "have a far other network score, amplification or true reach",
    "reconnected": "have wholly other influencers or influencees",
}


def psi(case: Case, who: str, old: Counts, new: Counts) -> Measure:
    """By whole points. What chance may do is added to the limits: only small groups feel it."""
    found, limits = shapes.psi(old, new), case.limits
    figure = f"PSI {found.value:.4f}"
    reason = f"the scores of {who}: {figure}"
    hold, warn = limits.psi + found.chance, limits.psi_warn + found.chance
    return Measure(found.value, hold, figure, words.number(limits.psi), reason, warn)


def ks(case: Case, who: str, old: Counts, new: Counts) -> Measure:
    """By whatever bins there are."""
    found, limits = shapes.ks(old, new), case.limits
    figure = f"KS {found.value:.4f}"
    reason = f"the scores of {who}: {figure}"
    hold, warn = limits.ks + found.chance, limits.ks_warn + found.chance
    return Measure(found.value, hold, figure, words.number(limits.ks), reason, warn)


def shapes_of(case: Case, old: Groups, new: Groups) -> Iterator[Measure]:
    """PSI and KS of the groups that have profiles enough in both, as far as they do not pass."""
    before, after = _shared(old, new)
    strains = [
        _strain(case, old.histogram[before[rows]], new.histogram[after[rows]])
        for rows in (slice(first, first + CHUNK) for first in range(0, len(before), CHUNK))
    ]
    strain = np.concatenate([np.empty(0), *strains])
    for i in np.argsort(-strain, kind="stable")[: min(int((strain > NEAR).sum()), LOOKED_AT)].tolist():
        who, pair = old.names[before[i]], (old.histogram[before[i]], new.histogram[after[i]])
        yield from _telling(psi(case, who, *pair), ks(case, who, *pair))


def _strain(case: Case, old: Counts, new: Counts) -> shapes.Floats:
    """How near each group may be to a warning, float64[n]: 1 is there, the blur of small groups is less than half.

    It is quick, and never too small by more: merging bins makes a PSI smaller, and so does what is allowed to chance.
    """
    limits = case.limits
    first, second = old + HALF, new + HALF
    enough = (old.sum(axis=1) >= limits.group_profiles) & (new.sum(axis=1) >= limits.group_profiles)
    first /= first.sum(axis=1, keepdims=True)
    second /= second.sum(axis=1, keepdims=True)
    apart = second - first
    fine = (apart * np.log(second / first)).sum(axis=1)
    farthest = np.abs(np.cumsum(apart, axis=1)).max(axis=1)
    tiny = np.finfo(np.float64).tiny
    strain = np.maximum(fine / max(limits.psi_warn, tiny), farthest / max(limits.ks_warn, tiny))
    return np.where(enough, strain, 0.0)


def _shared(old: Groups, new: Groups) -> tuple[Places, Places]:
    """Where the groups are that both have: int64[n] of each."""
    place = {name: number for number, name in enumerate(new.names)}
    shared = [(i, place[name]) for i, name in enumerate(old.names) if name in place]
    pairs = np.array(shared, np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _telling(*measures: Measure) -> Iterator[Measure]:
    """Those that do not pass: there may be thousands of groups."""
    return (measure for measure in measures if measure.verdict != "pass")


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
    both = np.maximum(groups.both.astype(np.float64), 1)
    moved = groups.sums / both
    chance = shapes.SIGMAS * spread / np.sqrt(both)
    for i in np.flatnonzero((groups.both >= least) & (np.abs(moved - mean) > limit + chance)).tolist():
        reason = (
            f"the mean of {groups.names[i]} moved by {words.points(moved[i], sign=True)} points, that of all by"
            f" {words.points(mean, sign=True)}"
        )
        beyond = float(moved[i] - mean)
        figure = f"mean {words.points(beyond, sign=True)}"
        yield Measure(abs(beyond), limit + chance[i], figure, f"± {words.number(limit)} points", reason)


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
    """What share of its profiles each big group lost, as far as it is too much."""
    limit = case.limits.group_coverage
    after = np.zeros(len(old.names), np.int64)
    here, there = _shared(old, new)
    after[here] = new.profiles[there]
    lost = 1 - after / np.maximum(old.profiles, 1)
    for i in np.flatnonzero((old.profiles >= case.limits.group_profiles) & (lost > limit)).tolist():
        before = words.count(int(old.profiles[i]))
        reason = f"{kind} {old.names[i]} has {words.count(int(after[i]), 'profile')} (before: {before})"
        figure = words.percent(-float(lost[i]), sign=True)
        yield Measure(float(lost[i]), limit, figure, f"-{words.percent(limit)}", reason)


def gains(case: Case, kind: str, both: Comparison, old: Groups, new: Groups) -> Iterator[Measure]:
    """By what share each group grew beyond what all grew by, as far as it is too much; a few profiles are not."""
    limit = case.limits.group_growth
    before = np.zeros(len(new.names), np.int64)
    here, there = _shared(old, new)
    before[there] = old.profiles[here]
    expected = before * both.new.profiles / max(both.old.profiles, 1)
    gained = new.profiles - expected
    big = (new.profiles >= case.limits.group_profiles) | (gained > case.share(case.limits.coverage) * both.new.profiles)
    grown = gained / np.maximum(expected, 1)
    for i in np.flatnonzero(big & (grown > limit)).tolist():
        after = words.count(int(new.profiles[i]), "profile")
        reason = f"{kind} {new.names[i]} has {after} (before: {words.count(int(before[i]))})"
        yield Measure(
            float(grown[i]), limit, words.percent(float(grown[i]), sign=True), f"+{words.percent(limit)}", reason
        )


def table(case: Case, what: str, old: Collection[str], new: Collection[str]) -> Measure:
    """How much of a table of names is gone."""
    gone = set(old).difference(new)
    share = len(gone) / max(len(old), 1)
    reason = f"{len(gone):,} of {len(old):,} {what} are gone"
    limit = max(case.limits.group_coverage, case.limits.few / max(len(old), 1))
    return Measure(share, limit, words.percent(-share), f"-{words.percent(limit)}", reason)


def changes(case: Case, both: Comparison, event: str, limit: float) -> Measure:
    """The share of the profiles in both to which something happened."""
    share, allowed = both.events[event] / max(both.both, 1), case.share(limit)
    reason = f"{words.percent(share)} of the profiles {EVENTS[event]} ({words.count(both.events[event])})"
    return Measure(share, allowed, f"{words.percent(share)} {event}", words.percent(allowed), reason)


def commonest(case: Case, both: Comparison) -> Iterator[Measure]:
    """The growth of the share of any one value in columns of numbers: a default that was filled in."""
    limit = case.share(case.limits.mass)
    for column, new in both.new.values.items():
        old = both.old.values.get(column)
        if old is not None:
            before, after = (_shares(column, *pair) for pair in ((both.old, old), (both.new, new)))
            value = int(np.argmax((after - before)[:-1]))  # the last are nulls
            growth = float(after[value] - before[value])
            who = "topic scores are the same" if column == "topics" else f"profiles have the same {column}"
            reason = f"{words.percent(after[value])} of all {who} (before: {words.percent(before[value])})"
            yield Measure(growth, limit, words.more_percent(growth), words.more_percent(limit), reason)


def _shares(column: str, portrait: Portrait, values: Counts) -> shapes.Floats:
    """Of each value; a profile has many topics."""
    shares: shapes.Floats = values / max(int(values.sum()) if column == "topics" else portrait.profiles, 1)
    return shares


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
