"""The gates: each a named function that looks at one thing and says its figure, its threshold and its reason.

``docs/gates.md`` tells which faults each of them is for. Thresholds are in :class:`kserve.settings.Gates`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import numpy as np

from kserve.snapshots import drifting, groups, parts, shapes, words
from kserve.snapshots import golden as expected
from kserve.snapshots.judging import Case, Judgement, Measure, judge, plain
from kserve.snapshots.measures import Comparison
from kserve.snapshots.report import Acceptance, Figures, Finding, Report, Verdict, load, save

__all__ = ["GATES", "Acceptance", "Figures", "Finding", "Gate", "Report", "load", "save"]

LOW_SHARE = 0.1
"""The lowest whole points are those that at most this share of the live version's scores do not exceed."""

TURNOVER_SIGMAS = 4.0

FUTURE = timedelta(minutes=5)
"""How far two clocks may differ."""


def complete(case: Case) -> Judgement:
    """The pipeline's own manifest, written last, agrees with what was read."""
    told, read = case.manifest.get("input"), case.manifest["parts"]
    if told is None and not case.settings.require_manifest:
        return plain([], "no manifest", "a manifest", "the input has no manifest, and require_manifest is off")
    faults = parts.shortfalls(told, read)
    rows = sum(part.get("rows", 0) for part in read)
    figure = f"{words.count(len(read), 'part')}, {words.count(rows, 'row')}"
    return plain(faults, figure, "as the manifest says", "the pipeline's manifest agrees with every part")


def checksums(case: Case) -> Judgement:
    """What was re-read, every checksum of it, is what the builder wrote down."""
    sections = {name: f"{section['checksum']:016x}" for name, section in case.candidate.sections().items()}
    told = {name: section["checksum"] for name, section in case.manifest["sections"].items()}
    faults = [
        f"section {name} is not as it was built" for name in sections | told if sections.get(name) != told.get(name)
    ]
    return plain(faults, words.count(len(sections), "section"), "as built", "every section is as it was built")


def quarantine(case: Case) -> Judgement:
    """Content that was rolled back does not return under another name."""
    bad = not {case.new.digest, case.new.version}.isdisjoint(case.quarantined)
    faults = ["this content is in quarantine: it was live, and was rolled back"] if bad else []
    return plain(faults, case.new.digest[:16], "not in quarantine", "this content was never rolled back")


def schema(case: Case, both: Comparison) -> Judgement:
    """The columns that the live version's input had are there."""
    old, new = input_columns(case.live_manifest), input_columns(case.manifest)
    lost, gained = sorted(old - new), sorted(new - old)
    changes = [f"columns are gone: {words.some(lost)}"] if lost else []
    changes += [f"columns are new: {words.some(gained)}"] if gained else []
    allowed = case.limits.columns_fewer
    threshold = f"{allowed} fewer" if allowed else "the same columns"
    figure = f"-{len(lost)} +{len(gained)}" if changes else words.count(len(new), "column")
    verdict: Verdict = "hold" if len(lost) > allowed else "warn"
    return plain(changes, figure, threshold, "the columns are the same", verdict)


def input_columns(manifest: Mapping[str, Any]) -> set[str]:
    """The columns that the input of a version had: not the changes that the builder computed."""
    computed = {f"{period}_change" for period, source in manifest["changes_from"].items() if source != "input"}
    return set(manifest["schema"]["columns"]) - computed


def size(case: Case, both: Comparison) -> Judgement:
    """The file is as big as the live one's bytes a profile predict."""
    predicted = both.old.file_bytes * both.new.profiles / both.old.profiles
    change = both.new.file_bytes / predicted - 1
    reason = f"the file has {both.new.file_bytes:,} bytes; as many profiles of the live version have {predicted:,.0f}"
    limit = case.limits.size
    return judge(Measure(abs(change), limit, words.percent(change, sign=True), f"± {words.percent(limit)}", reason))


def rows(case: Case, both: Comparison) -> Judgement:
    """The number of profiles."""
    old, new, limits = both.old.profiles, both.new.profiles, case.limits
    change = (new - old) / old
    limit = limits.rows_fewer if change < 0 else limits.rows_more
    threshold = f"-{words.percent(limits.rows_fewer)} to +{words.percent(limits.rows_more)}"
    reason = f"{words.count(new, 'profile')}, after {words.count(old)}"
    return judge(Measure(abs(change), limit, words.percent(change, sign=True), threshold, reason))


def removed(case: Case, both: Comparison) -> Judgement:
    """Ids of the live version that are gone."""
    share, limit = both.removed / both.old.profiles, case.share(case.limits.removed)
    reason = f"{words.count(both.removed)} of {words.count(both.old.profiles, 'profile')} of the live version are gone"
    gone = Measure(share, limit, words.percent(share), words.percent(limit), reason)
    return judge(gone, *groups.clusters(case, both, "removed"))


def nulls(case: Case, both: Comparison) -> Judgement:
    """The share of nulls in each column of the input; fewer of them warn: a default may have filled them in."""
    limit = case.share(case.limits.nulls)
    measures = [Measure(0.0, limit, "0 pp", words.more_percent(limit), "no column of the input has more nulls")]
    for column in sorted(input_columns(case.live_manifest) & input_columns(case.manifest) & both.new.nulls.keys()):
        old, new = both.old.nulls[column] / both.old.profiles, both.new.nulls[column] / both.new.profiles
        allowed = max(limit, _turnover(both, old))
        if column.endswith("_change"):  # nobody knows how those changed who are new
            allowed += both.added / both.new.profiles
        measures.append(_growth(f"of the values of {column} are null", old, new, allowed))
    return judge(*sorted(measures, key=lambda measure: measure.strain, reverse=True))


def _turnover(both: Comparison, share: float) -> float:
    """By how much a share may change by chance, when profiles come and go: it matters where there are few thousands."""
    return TURNOVER_SIGMAS * math.sqrt((both.added + both.removed) * share * (1 - share)) / both.new.profiles


def unscored(case: Case, both: Comparison) -> Judgement:
    """The share of profiles without a score."""
    old, new = both.old.unscored / both.old.profiles, both.new.unscored / both.new.profiles
    limit = case.share(case.limits.unscored)
    return judge(_growth("of the profiles are unscored", old, new, limit), *groups.clusters(case, both, "unscored"))


def _growth(what: str, old: float, new: float, limit: float) -> Measure:
    """A share that grows holds; one that falls as much warns."""
    reason = f"{words.percent(new)} {what} (before: {words.percent(old)})"
    figure, threshold = words.more_percent(new - old), words.more_percent(limit)
    if new >= old - limit:
        return Measure(max(new - old, 0.0), limit, figure, threshold, reason)
    return Measure(old - new, math.inf, figure, threshold, f"{reason}: were missing ones filled in?", limit)


def mass(case: Case, both: Comparison) -> Judgement:
    """The share of any one score, and of the lowest scores."""
    old, new = both.old.histogram / both.old.profiles, both.new.histogram / both.new.profiles
    grown = new - old
    top = int(grown.argmax())
    limit = case.share(case.limits.mass)
    single = Measure(
        float(grown[top]),
        limit,
        words.more_percent(float(grown[top])),
        words.more_percent(limit),
        f"{words.percent(new[top])} of all profiles have the score {words.points(top / 100)}"
        f" (before: {words.percent(old[top])})",
    )
    return judge(single, _lowest(both, limit), *groups.commonest(case, both))


def _lowest(both: Comparison, limit: float) -> Measure:
    """Below the whole points that few have reached, and below the lowest that anyone has."""
    old, new = (
        np.cumsum(shapes.by_points(portrait.histogram)) / portrait.profiles for portrait in (both.old, both.new)
    )
    last = max(int(np.searchsorted(old, LOW_SHARE, side="right")), int(np.argmax(old > 0)) + 1)
    grown = (new - old)[:last]
    worst = int(grown.argmax())
    reason = (
        f"{words.percent(new[worst])} of all profiles have a score below {worst + 1}"
        f" (before: {words.percent(old[worst])})"
    )
    figure = words.more_percent(float(grown[worst]))
    return Measure(float(grown[worst]), limit, figure, words.more_percent(limit), reason)


def mass_alone(case: Case) -> Judgement:
    """Nothing is known of a first version's scores, but not so many profiles have the same."""
    shares = case.new.histogram / case.new.profiles
    top = int(shares.argmax())
    share, limit = float(shares[top]), case.share(case.limits.mass_first)
    reason = f"{words.percent(share)} of all profiles have the score {words.points(top / 100)}"
    return judge(Measure(share, limit, words.percent(share), words.percent(limit), reason))


def centre(case: Case, both: Comparison) -> Judgement:
    """Mean and quantiles."""
    old, new, limits = Figures.of(both.old), Figures.of(both.new), case.limits
    if old.mean is None or new.mean is None:
        return plain(["there is no score at all"] if new.mean is None else [], "no scores", "scores", "there were none")
    change = new.mean / old.mean - 1
    reason = f"the mean score is {words.points(new.mean)} (before: {words.points(old.mean)})"
    threshold = f"± {words.percent(limits.mean)}"
    measures = [Measure(abs(change), limits.mean, words.percent(change, sign=True), threshold, reason)]
    for name in ("p1", "p50", "p99"):
        before, after = getattr(old, name), getattr(new, name)
        measures.append(
            Measure(
                abs(after - before),
                limits.quantiles,
                f"{name} {words.points(after - before, sign=True)}",
                f"± {words.number(limits.quantiles)} points",
                f"{name} of the scores is {words.points(after)} (before: {words.points(before)})",
            )
        )
    return judge(*measures)


def shape(case: Case, both: Comparison) -> Judgement:
    """The distribution of scores: of all, of each region, of each big topic."""
    return judge(
        groups.psi(case, "all profiles", shapes.by_points(both.old.histogram), shapes.by_points(both.new.histogram)),
        groups.ks(case, "all profiles", both.old.histogram, both.new.histogram),
        *groups.shapes_of(case, both.old.regions, both.new.regions),
        *groups.shapes_of(case, both.old.topics, both.new.topics),
    )


def movement(case: Case, both: Comparison) -> Judgement:
    """How many profiles moved how far, and where: a fault in one shard or one source is concentrated."""
    scored = max(int(both.moves.sum()), 1)
    distance = np.abs(np.arange(len(both.moves)) - len(both.moves) // 2)
    measures = []
    for points, limit in ((5, case.limits.moved), (10, case.limits.moved_far)):
        moved = int(both.moves[distance > 100 * points].sum())
        reason = (
            f"{words.percent(moved / scored)} of the profiles moved more than {points} points ({words.count(moved)})"
        )
        share = case.share(limit)
        figure = f"{words.percent(moved / scored)} over {points} points"
        measures.append(Measure(moved / scored, share, figure, words.percent(share), reason))
    measures.append(groups.changes(case, both, "remeasured", case.limits.remeasured))
    return judge(*measures, *groups.means(case, both), *groups.clusters(case, both, "moved", "floored", "remeasured"))


def identity(case: Case, both: Comparison) -> Judgement:
    """Who is where, for what, and under which name: a mix-up changes no total."""
    limits = {"relocated": case.limits.relocated, "retopicked": case.limits.retopicked, "renamed": case.limits.renamed}
    return judge(
        *(groups.changes(case, both, event, limit) for event, limit in limits.items()),
        groups.changes(case, both, "reconnected", case.limits.reconnected),
        *groups.clusters(case, both, *limits),
    )


def coverage(case: Case, both: Comparison) -> Judgement:
    """Locations, topics and identities are as many as they were, and no more, everywhere."""
    assert case.live is not None
    locations = groups.table(case, "locations", case.live.locations(), case.candidate.locations())
    topics = groups.table(case, "topics", *([topic.slug for topic in s.topics()] for s in (case.live, case.candidate)))
    return judge(
        *groups.covered(case, both),
        locations,
        topics,
        *groups.losses(case, "region", both.old.regions, both.new.regions),
        *groups.losses(case, "topic", both.old.topics, both.new.topics),
        *groups.losses(case, "network", both.old.networks, both.new.networks),
        *groups.gains(case, "region", both, both.old.regions, both.new.regions),
        *groups.gains(case, "network", both, both.old.networks, both.new.networks),
        *groups.clusters(case, both, "topics", "location"),
    )


def golden(case: Case) -> Judgement:
    """Profiles whose scores somebody knows."""
    if case.settings.golden is None:
        return Judgement("warn", "none", None, "all in range", "no golden profiles are configured")
    profiles = expected.read(case.settings.golden)
    faults = expected.faults(profiles, case.candidate)
    figure = f"{len(profiles) - len(faults):,} of {len(profiles):,}"
    return plain(faults, figure, "all in range", "every golden profile is in its range")


def fresh(case: Case) -> Judgement:
    """When the scores were made."""
    made, oldest = case.new.scored_at, case.limits.cadences * timedelta(hours=case.settings.cadence)
    age, told = case.now - made, case.manifest.get("input") or {}
    figure, threshold = _span(age), f"newer than live, at most {_span(oldest)}"
    faults = []
    if case.comparison is not None and made <= case.comparison.old.scored_at:
        faults.append(
            f"scored at {_moment(made)}, not after the live version ({_moment(case.comparison.old.scored_at)})"
        )
    if age < -FUTURE:
        faults.append(f"scored at {_moment(made)}, which is in the future")
    if age > oldest:
        faults.append(f"the scores are {_span(age)} old")
    if not faults and case.manifest["scored_at_from"] == "option" and "scored_at" in told:
        reason = f"scored at {_moment(made)}, as --scored-at says; the pipeline's manifest says {told['scored_at']}"
        return plain([reason], figure, threshold, "", "warn")
    return plain(faults, figure, threshold, f"scored at {_moment(made)}")


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _span(duration: timedelta) -> str:
    if abs(duration) < timedelta(hours=2):
        return f"{duration / timedelta(minutes=1):.0f} min"
    return f"{words.number(duration / timedelta(hours=1))} h"


def erased(case: Case) -> Judgement:
    """Nobody who has opted out is inside, nor are those back who had."""
    if case.opted_out is None:
        return plain(["the candidate does not list who has opted out: build it again"], "no list", "nobody inside", "")
    inside = case.opted_out[case.candidate.hundredths(case.opted_out) != 0]
    faults = [f"{words.count(len(inside), 'profile')} that opted out can be read: {words.some(map(str, inside))}"]
    back = int(np.count_nonzero(case.candidate.hundredths(case.once_opted_out)))
    allowed = max(case.limits.returned * len(case.once_opted_out), case.limits.few)
    if back > allowed:
        faults.append(f"{back:,} of {words.count(len(case.once_opted_out), 'profile')} that had opted out are back")
    figure = f"{len(inside):,} of {len(case.opted_out):,}"
    return plain(faults if len(inside) else faults[1:], figure, "nobody inside", "nobody who opted out is inside")


def drift(case: Case) -> Judgement:
    """The figures against a rolling baseline of good versions, so that many small changes do not add up unseen."""
    return drifting.judged(case)


class Gate(NamedTuple):
    """``against`` compares with the live version; ``alone`` needs none, and stands in when there is none."""

    name: str
    alone: Callable[[Case], Judgement] | None = None
    against: Callable[[Case, Comparison], Judgement] | None = None
    integrity: bool = False
    """A hold of it can never be accepted."""


GATES = (
    Gate("complete", alone=complete, integrity=True),
    Gate("checksums", alone=checksums, integrity=True),
    Gate("quarantine", alone=quarantine, integrity=True),
    Gate("schema", against=schema, integrity=True),
    Gate("size", against=size),
    Gate("rows", against=rows),
    Gate("removed", against=removed),
    Gate("nulls", against=nulls),
    Gate("unscored", against=unscored),
    Gate("mass", alone=mass_alone, against=mass),
    Gate("centre", against=centre),
    Gate("shape", against=shape),
    Gate("movement", against=movement),
    Gate("identity", against=identity),
    Gate("coverage", against=coverage),
    Gate("golden", alone=golden),
    Gate("fresh", alone=fresh),
    Gate("erased", alone=erased, integrity=True),
    Gate("drift", alone=drift),
)
"""In the order in which they are told."""
