"""Every gate on both sides of every threshold, against figures worked out by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from snapshots import publish

from kserve import SettingError, Snapshot
from kserve._compare import EVENTS
from kserve.settings import Gates, Settings
from kserve.snapshots import gates, shapes, words
from kserve.snapshots import groups as groups_module
from kserve.snapshots.check import limits_of, refuse_bad
from kserve.snapshots.gates import GATES, Acceptance, Figures, Finding, Report
from kserve.snapshots.judging import Case, Judgement
from kserve.snapshots.measures import POINTS, Cluster, Comparison, Groups, Moves, Portrait

DOCS = Path(__file__).parents[2] / "docs"
NOW = datetime(2026, 11, 21, 5, tzinfo=UTC)
N = 1_000_000
UNSCORED = 3_000
SCORED = N - UNSCORED
MIDDLE = 9900
REGIONS = ("US", "US/New York", "DE")
TOPICS = ("chess", "tea")
NETWORKS = ("tw", "gp")
RANGES = ("ids 0 to 999", "ids 1000 to 1999")
GATE = {gate.name: gate for gate in GATES}


def scores() -> np.ndarray:
    """A spike at 10.00, and as many at every score from 20.00 to 79.99 as fit."""
    histogram = np.zeros(10_001, np.uint64)
    histogram[2000:8000] = 160
    histogram[1000] = SCORED - 6000 * 160
    return histogram


def groups(names: tuple[str, ...], profiles: int = 20_000) -> Groups:
    share = shapes.by_points(scores()).astype(float) * profiles / SCORED
    histogram = np.tile(np.round(share).astype(np.uint64), (len(names), 1))
    sums = (histogram @ (np.arange(POINTS) + 0.5)).astype(float)
    return Groups(names, np.full(len(names), profiles, np.uint64), histogram, sums)


def portrait(version: str, scored_at: datetime) -> Portrait:
    return Portrait(
        version=version,
        scored_at=scored_at,
        file_bytes=20_000_000,
        profiles=N,
        unscored=UNSCORED,
        histogram=scores(),
        nulls={"score": UNSCORED, "location": 120_000, "topics": 200_000, "day_change": 5_000},
        regions=groups(REGIONS),
        topics=groups(TOPICS),
        networks=groups(NETWORKS),
        values={"network_score": groups(NETWORKS).histogram[0]},
        digest=f"digest of {version}",
    )


def moves(names: tuple[str, ...], both: int = 20_000) -> Moves:
    zeros = np.zeros(len(names), np.uint64)
    return Moves(names, np.full(len(names), both, np.uint64), zeros, zeros, np.zeros(len(names)))


def comparison(**changes: Any) -> Comparison:
    still = np.zeros(19_801, np.uint64)
    still[MIDDLE] = SCORED
    given = Comparison(
        old=portrait("20261120T040000Z-00000000", NOW - timedelta(hours=25)),
        new=portrait("20261121T040000Z-00000000", NOW - timedelta(hours=1)),
        both=N,
        added=0,
        removed=0,
        became_unscored=0,
        became_scored=0,
        changed=0,
        events=dict.fromkeys(EVENTS, 0),
        moves=still,
        regions=moves(REGIONS),
        topics=moves(TOPICS),
        networks=moves(NETWORKS),
        id_ranges=moves(RANGES, 500),
        clusters=(),
        movers=(),
    )
    return replace(given, **changes)


MANIFEST = {
    "input": {
        "complete": True,
        "scored_at": "2026-11-21T04:00:00Z",
        "parts": [{"name": "a", "rows": N, "bytes": 9, "sha256": "0" * 64}],
    },
    "parts": [{"name": "a", "rows": N, "bytes": 9, "sha256": "0" * 64}],
    "schema": {"columns": ["score", "location", "topics", "day_change"]},
    "scored_at_from": "manifest",
    "changes_from": {"day": "20261120T040000Z-00000000", "week": None, "month": None},
}


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> tuple[Snapshot, Snapshot]:
    """Two snapshots: of 1,000 locations and as many topics the second lacks 51. Profile 7 is unscored."""
    rows = [
        {"profile_id": n, "score": None if n == 7 else 10.0, "location": f"X{n}", "topics": [{"topic": f"t{n}"}]}
        for n in range(1, 1001)
    ]
    root = tmp_path_factory.mktemp("places")
    return publish(root / "all", rows), publish(root / "fewer", rows[:949])


@pytest.fixture
def make(places) -> Callable[..., Case]:
    """Cases: by default of two versions between which nothing happened. Limits are given by name."""

    def make(both: Comparison | None = None, limits: dict[str, Any] | None = None, **changes: Any) -> Case:
        both = both or comparison()
        settings = Settings(golden=changes.pop("golden", None), require_manifest=changes.pop("require", True))
        case = Case(
            candidate=places[0],
            manifest=MANIFEST,
            live=places[0],
            live_manifest=MANIFEST,
            new=both.new,
            comparison=both,
            history=(),
            settings=settings,
            limits=Gates(**limits or {}),
            now=NOW,
            quarantined=(),
            opted_out=np.array([5_000_000], np.uint64),
            once_opted_out=np.empty(0, np.uint64),
        )
        return replace(case, **changes)

    return make


def judged(gate: str, case: Case) -> Judgement:
    found = GATE[gate]
    if found.against is not None and case.comparison is not None:
        return found.against(case, case.comparison)
    assert found.alone is not None
    return found.alone(case)


@pytest.mark.parametrize("gate", [name for name in GATE if name not in ("golden", "checksums")])
def test_two_versions_between_which_nothing_happened_pass(make, gate):
    found = judged(gate, make())
    assert (found.verdict, bool(found.reason)) == ("pass", True)


# Both sides of each limit. A scenario makes a case in which the figure that a limit is for is exactly ``x``.


def with_new(**changes: Any) -> Comparison:
    given = comparison()
    return replace(given, new=replace(given.new, **changes))


def fewer_profiles(x: float) -> Comparison:
    return with_new(profiles=round(N * (1 - x)))


def more_profiles(x: float) -> Comparison:
    return with_new(profiles=round(N * (1 + x)))


def with_moves(share: float, points: float) -> Comparison:
    found = np.zeros(19_801, np.uint64)
    count = round(SCORED * share)
    found[MIDDLE + round(points * 100)] = count
    found[MIDDLE] = SCORED - count
    return comparison(moves=found)


def piled(x: float) -> Comparison:
    """A share of all profiles moved from the middle to 10.00."""
    histogram, count = scores(), round(N * x)
    taken, rest = divmod(count, 160)
    histogram[5000 : 5000 + taken] = 0
    histogram[5000 + taken] -= np.uint64(rest)
    histogram[1000] += np.uint64(count)
    return with_new(histogram=histogram)


def mean_changed(x: float) -> Comparison:
    """As many as it takes went from 20-29.99 to 70-79.99, fifty points up."""
    histogram = scores()
    full, rest = divmod(round(shapes.mean(histogram) * x * SCORED / 50), 160)
    for score, count in [*((2000 + place, 160) for place in range(full)), (2000 + full, rest)]:
        histogram[score] -= np.uint64(count)
        histogram[score + 5000] += np.uint64(count)
    return with_new(histogram=histogram)


def quantile_changed(x: float) -> Comparison:
    """Half of the scores, and two more or less, are x points lower than the others."""
    given = comparison()
    histogram = np.zeros((2, 10_001), np.uint64)
    histogram[0, [3000, 3000 + round(100 * x)]] = SCORED // 2 + 2, SCORED - SCORED // 2 - 2
    histogram[1, [3000, 3000 + round(100 * x)]] = SCORED // 2 - 2, SCORED - SCORED // 2 + 2
    return replace(
        given, old=replace(given.old, histogram=histogram[0]), new=replace(given.new, histogram=histogram[1])
    )


def nulls_grown(x: float) -> Comparison:
    given = comparison()
    return with_new(nulls=given.new.nulls | {"location": 120_000 + round(N * x)})


def region_fewer(x: float) -> Comparison:
    given = comparison()
    profiles = given.new.regions.profiles.copy()
    profiles[1] = round(20_000 * (1 - x))
    return with_new(regions=replace(given.new.regions, profiles=profiles))


def region_more(x: float) -> Comparison:
    given = comparison()
    profiles = given.new.regions.profiles.copy()
    profiles[1] = round(20_000 * (1 + x))
    return with_new(regions=replace(given.new.regions, profiles=profiles))


def test_where_people_are_put_is_seen_however_small_the_place_was(make):
    """0.1 % more of all may be anywhere; 0.6 % may not, in a place that was not there before, or was small."""

    def verdict(names: tuple[str, ...], more: int) -> str:
        given = comparison()
        found = groups(REGIONS + names, 400)
        found.profiles[-1] += np.uint64(more)
        before = groups(REGIONS, 400)
        both = replace(given, old=replace(given.old, regions=before), new=replace(given.new, regions=replace(found)))
        return judged("coverage", make(both)).verdict

    assert [verdict((), more) for more in (80, 590, 6_000)] == ["pass", "pass", "hold"]
    assert [verdict(("XX",), more) for more in (590, 601)] == ["pass", "hold"]


def test_what_all_grew_by_each_may_grow_by(make):
    given = comparison()
    more = replace(given.new.regions, profiles=given.new.regions.profiles * np.uint64(3))
    twice = replace(given.new, profiles=2 * N, regions=more, nulls=dict.fromkeys(given.new.nulls, 0))
    assert (
        "region US has 60,000 profiles (before: 20,000)" in judged("coverage", make(replace(given, new=twice))).reason
    )
    as_much = replace(twice, regions=replace(more, profiles=given.new.regions.profiles * np.uint64(2)))
    networks = replace(given.new.networks, profiles=given.new.networks.profiles * np.uint64(2))
    both = replace(given, new=replace(as_much, networks=networks))
    assert judged("coverage", make(both)).verdict == "pass"


def group_moved(x: float) -> Comparison:
    found = moves(RANGES, 500)
    found.sums[1] = 500 * x
    return comparison(id_ranges=found)


def clustered(cases: float) -> Comparison:
    found = Cluster("moved", "region", "US/New York", int(cases), 1020.0, 0.1, -10.0)
    return comparison(clusters=(found,))


def figures(**changes: Any) -> Figures:
    return msgspec.structs.replace(Figures.of(comparison().old), **changes)


Scenario = Callable[[Callable[..., Case], float], Case]


def of(build: Callable[[float], Comparison]) -> Scenario:
    return lambda make, x: make(build(x))


def age(make, cadences):
    return make(now=NOW - timedelta(hours=1) + cadences * timedelta(hours=24))


def back(make, share):
    ids = [n if n <= round(share * 900) else 1_000_000 + n for n in range(1, 901)]
    return make(once_opted_out=np.array(ids, np.uint64))


def columns_gone(make, count):
    columns = MANIFEST["schema"]["columns"][int(count) :]
    return make(manifest=MANIFEST | {"schema": {"columns": columns}})


def spread(x: float) -> Comparison:
    """The cumulated distributions are x apart: so many went from 30-39.99 to 40-49.99."""
    histogram = scores()
    taken = np.uint64(round(SCORED * x / 1000))
    histogram[3000:4000] -= taken
    histogram[4000:5000] += taken
    return with_new(histogram=histogram)


def tenths(tilt: float) -> np.ndarray:
    """Ten scores that a tenth of all have each; every other one has a share more, the others as much less."""
    histogram = np.zeros(10_001, np.uint64)
    for place in range(10):
        histogram[1000 + 500 * place] = round(SCORED / 10 * (1 + (tilt if place % 2 else -tilt)))
    return histogram


def waving(x: float) -> Comparison:
    """The PSI is x: five times 0.1·a·ln((1 + a) / (1 - a)); KS is a tenth of a."""
    tilt = min(np.arange(0, 1, 1e-5), key=lambda a: abs(0.5 * a * np.log((1 + a) / (1 - a)) - x))
    given = comparison()
    return replace(
        given, old=replace(given.old, histogram=tenths(0)), new=replace(given.new, histogram=tenths(float(tilt)))
    )


def region_waving(make, profiles):
    """A region of so many scored profiles, spread as differently as can be."""
    given = comparison()
    histogram = np.zeros((2, 1, POINTS), np.uint64)
    histogram[0, 0, 20] = histogram[1, 0, 40] = int(profiles)
    old, new = (
        replace(p, regions=Groups(("X",), np.array([profiles], np.uint64), histogram[i], np.array([0.0])))
        for i, p in enumerate((given.old, given.new))
    )
    return make(replace(given, old=old, new=new))


def happened(event: str) -> Callable[[float], Comparison]:
    return lambda x: comparison(events=dict.fromkeys(EVENTS, 0) | {event: round(N * x)})


def filled_in(x: float) -> Comparison:
    """The same network score for some more of all profiles."""
    values = comparison().old.values["network_score"].copy()
    values[50] += np.uint64(round(N * x))
    return with_new(values={"network_score": values})


def test_a_number_that_was_filled_in_is_seen(make):
    assert judged("mass", make(filled_in(0.0099))).verdict == "pass"
    held = judged("mass", make(filled_in(0.0101)))
    assert (held.verdict, "have the same network_score" in held.reason) == ("hold", True)


def test_topic_scores_that_were_filled_in_are_seen(make):
    """They are counted by topic, not by profile: of 3,000 in all, 1 % more are the same."""

    def verdict(more: int) -> str:
        values = np.full(65_536, 0, np.uint64)
        values[:3_000] = 1
        after = values.copy()
        after[100 : 100 + more] -= np.uint64(1)
        after[50] += np.uint64(more)
        given = comparison()
        both = replace(
            given,
            old=replace(given.old, profiles=1_000_000, values={"topics": values}),
            new=replace(given.new, values={"topics": after}),
        )
        return judged("mass", make(both)).verdict

    assert (verdict(29), verdict(31)) == ("pass", "hold")


TENTHS = {"drift_mass": 1.0, "drift_mean": 1.0}
FIELDS: dict[str, tuple[str, Scenario, tuple[float, float], Any]] = {
    # field: gate, scenario, the figure just within and just beyond the default limit, a looser limit
    "few": ("nulls", lambda make, x: make(small(x)), (8, 9), 20),
    "columns_fewer": ("schema", columns_gone, (0, 1), 1),
    "size": ("size", of(lambda x: with_new(file_bytes=round(20_000_000 * (1 + x)))), (0.0999, 0.1001), 0.2),
    "rows_fewer": ("rows", of(fewer_profiles), (0.0099, 0.0101), 0.02),
    "rows_more": ("rows", of(more_profiles), (0.0499, 0.0501), 0.06),
    "removed": ("removed", of(lambda x: comparison(removed=round(N * x))), (0.005, 0.00501), 0.006),
    "nulls": ("nulls", of(nulls_grown), (0.00099, 0.00101), 0.002),
    "unscored": ("unscored", of(lambda x: with_new(unscored=UNSCORED + round(N * x))), (0.00099, 0.00101), 0.002),
    "mass": ("mass", of(piled), (0.0099, 0.0101), 0.02),
    "mass_first": (
        "mass",
        lambda make, x: make(piled(x - 0.037), comparison=None),
        (0.249, 0.251),
        0.3,
    ),
    "mean": ("centre", of(mean_changed), (0.0099, 0.0101), 0.02),
    "quantiles": ("centre", of(quantile_changed), (2.0, 2.01), 3.0),
    "psi": ("shape", of(waving), (0.2495, 0.2505), 0.3),
    "ks": ("shape", of(spread), (0.09, 0.12), 0.2),
    "group_profiles": ("shape", region_waving, (999, 1000), 1001),
    "moved": ("movement", of(lambda x: with_moves(x, 5.01)), (0.0099, 0.0101), 0.02),
    "moved_far": ("movement", of(lambda x: with_moves(x, 10.01)), (0.00099, 0.00101), 0.002),
    "group_mean": ("movement", of(group_moved), (1.99, 2.01), 3.0),
    "cluster": ("movement", of(lambda x: clustered(cases=x)), (7, 8), 9),
    "remeasured": ("movement", of(happened("remeasured")), (0.0199, 0.0201), 0.03),
    "reconnected": ("identity", of(happened("reconnected")), (0.0999, 0.1001), 0.2),
    "relocated": ("identity", of(happened("relocated")), (0.0099, 0.0101), 0.02),
    "retopicked": ("identity", of(happened("retopicked")), (0.0499, 0.0501), 0.1),
    "renamed": ("identity", of(happened("renamed")), (0.0099, 0.0101), 0.02),
    "coverage": ("coverage", of(nulls_grown), (0.0049, 0.0051), 0.01),
    "group_coverage": ("coverage", of(region_fewer), (0.0499, 0.0501), 0.1),
    "group_growth": ("coverage", of(region_more), (0.1999, 0.2001), 0.3),
    "drift_mean": (
        "drift",
        lambda make, x: make(history=[figures(mean=shapes.mean(scores()) / (1 + x))] * 3),
        (0.0199, 0.0201),
        0.03,
    ),
    "drift_psi": (
        "drift",
        lambda make, x: make(waving(x), limits=TENTHS, history=[Figures.of(waving(x).old)]),
        (0.0995, 0.1005),
        0.15,
    ),
    "drift_rows": (
        "drift",
        lambda make, x: make(history=[figures(profiles=round(N / (1 - x)))]),
        (0.0499, 0.0501),
        0.1,
    ),
    "drift_unscored": (
        "drift",
        lambda make, x: make(with_new(unscored=round(N * x)), history=[figures(unscored=0)]),
        (0.0049, 0.0051),
        0.01,
    ),
    "drift_mass": (
        "drift",
        lambda make, x: make(piled(x), history=[figures()]),
        (0.0199, 0.0201),
        0.03,
    ),
    "cadences": ("fresh", age, (1.999, 2.001), 3.0),
    "returned": ("erased", back, (0.01, 0.0112), 0.02),
}


def small(nulls: float) -> Comparison:
    """Of 1,000 profiles, so many more have no location: far more than 0.1 %."""
    given = comparison()
    old, new = (replace(p, profiles=1000, nulls={"location": 100}) for p in (given.old, given.new))
    return replace(given, old=old, new=replace(new, nulls={"location": 100 + int(nulls)}))


def test_no_share_of_few_profiles_is_beyond_all_of_them(make):
    given = small(0)
    few = replace(given, new=replace(given.new, profiles=2))
    assert make(few, comparison=None).share(0.25) == 1.0
    assert make(few, {"few": 1}).share(0.25) == 0.5


@pytest.mark.parametrize("field", FIELDS)
def test_within_a_limit_it_passes_and_beyond_it_holds(make, field):
    gate, scenario, (within, beyond), looser = FIELDS[field]
    assert judged(gate, scenario(make, within)).verdict != "hold"
    case = scenario(make, beyond)
    held = judged(gate, case)
    assert held.verdict == "hold"
    limits = Gates(**case.limits.model_dump() | {field: looser})
    assert judged(gate, replace(case, limits=limits)).verdict != "hold", held


def test_every_limit_is_one_that_a_gate_uses():
    other = {"psi_warn", "ks_warn", "drift_versions"}
    assert FIELDS.keys() | other == Gates.model_fields.keys()


def test_between_two_limits_it_warns(make):
    assert judged("shape", make(waving(0.0995))).verdict == "pass"
    assert judged("shape", make(waving(0.1005))).verdict == "warn"
    assert judged("shape", make(waving(0.1005), limits={"psi_warn": 0.2})).verdict == "pass"
    assert judged("shape", make(spread(0.045))).verdict == "pass"
    assert judged("shape", make(spread(0.055))).verdict == "warn"
    assert judged("shape", make(spread(0.055), limits={"ks_warn": 0.08})).verdict == "pass"


def test_the_baseline_is_as_long_as_the_setting_says(make):
    low, now = figures(mean=10.0), figures()
    history = [low] * 50 + [now] * 28
    assert judged("drift", make(history=history)).verdict == "pass"
    assert judged("drift", make(history=history[:-1])).verdict == "hold"
    assert judged("drift", make(history=history, limits={"drift_versions": 29})).verdict == "hold"
    assert judged("drift", make(history=[])).reason.startswith("no good version is known yet")


# What the verdicts say.


@pytest.mark.parametrize(
    ("gate", "both", "figure", "reason"),
    [
        (
            "mass",
            lambda: piled(0.4),
            "+40 pp",
            "43.7 % of all profiles have the score 10.00 (before: 3.7 %); "
            "43.7 % of all profiles have a score below 11 (before: 3.7 %)",
        ),
        (
            "rows",
            lambda: fewer_profiles(0.032),
            "-3.2 %",
            "968,000 profiles, after 1,000,000",
        ),
        (
            "movement",
            lambda: clustered(812),
            "812 in US/New York",
            "concentrated in US/New York: 812 of 1,020 profiles moved more than 10 points; 0.1 expected",
        ),
        (
            "movement",
            lambda: group_moved(-12.5),
            "mean -12.50",
            "the mean of ids 1000 to 1999 moved by -12.50 points, that of all by +0.00",
        ),
        (
            "coverage",
            lambda: region_fewer(0.2),
            "-20 %",
            "region US/New York has 16,000 profiles (before: 20,000)",
        ),
        (
            "coverage",
            lambda: nulls_grown(0.01),
            "-1 pp",
            "87 % of the profiles have a location (before: 88 %)",
        ),
        (
            "nulls",
            lambda: nulls_grown(0.002),
            "+0.2 pp",
            "12.2 % of the values of location are null (before: 12 %)",
        ),
    ],
)
def test_a_verdict_says_what_and_where(make, gate, both, figure, reason):
    found = judged(gate, make(both()))
    assert (found.verdict, found.figure, found.reason) == ("hold", figure, reason)


def test_missing_scores_that_are_suddenly_there_warn(make):
    found = judged("unscored", make(with_new(unscored=0)))
    assert (found.verdict, found.figure) == ("warn", "-0.3 pp")
    assert found.reason == "0 % of the profiles are unscored (before: 0.3 %): were missing ones filled in?"


@pytest.mark.parametrize(
    ("event", "gate"),
    [
        ("moved", "movement"),
        ("removed", "removed"),
        ("unscored", "unscored"),
        ("topics", "coverage"),
        ("location", "coverage"),
        ("floored", "movement"),
        ("relocated", "identity"),
        ("retopicked", "identity"),
        ("renamed", "identity"),
        ("remeasured", "movement"),
    ],
)
def test_each_cluster_is_told_by_one_gate(make, event, gate):
    found = Cluster(event, "id shard", "id % 16 = 3", 40, 62_500.0, 2.5, -30.0)
    case = make(comparison(clusters=(found,)))
    held = [name for name in GATE if name not in ("golden", "checksums") and judged(name, case).verdict == "hold"]
    assert held == [gate]
    assert "concentrated in id % 16 = 3: 40 of 62,500 profiles" in judged(gate, case).reason


def test_many_reasons_are_not_all_told(make):
    found = moves(REGIONS * 10)
    found.sums[:] = 20_000 * np.arange(3, 33)
    told = judged("movement", make(comparison(regions=found))).reason
    assert told.count("; ") == 3
    assert told.endswith("; and 27 more")


def test_a_lost_column_holds_and_a_new_one_warns(make):
    def schema(*columns):
        return judged("schema", make(manifest=MANIFEST | {"schema": {"columns": list(columns)}}))

    assert schema("score", "topics").verdict == "hold"
    assert schema("score", "topics").reason == "columns are gone: location"
    assert schema("score", "topics", "location", "nick").verdict == "warn"
    assert schema("score", "location", "nick").reason == "columns are gone: topics; columns are new: nick"


def test_changes_that_the_builder_computes_are_no_columns_of_the_input(make):
    """The night after a missed one has none: that is no fault of the input."""
    without = MANIFEST | {"schema": {"columns": ["score", "location", "topics"]}, "changes_from": {"day": None}}
    given = comparison()
    fewer = replace(given, new=replace(given.new, nulls=given.new.nulls | {"day_change": N}))
    assert judged("schema", make(manifest=without)).verdict == "pass"
    assert judged("nulls", make(fewer)).verdict == "pass"
    told = {"changes_from": {"day": "input"}}
    case = make(fewer, manifest=MANIFEST | told, live_manifest=MANIFEST | told)
    assert judged("nulls", case).reason.startswith("100 % of the values of day_change are null")


def test_nobody_knows_how_new_profiles_changed(make):
    given = {"added": 20_000, "removed": 20_000}
    told = MANIFEST | {"changes_from": {"day": "input"}}

    def verdict(more: int) -> str:
        grown = with_new(nulls=comparison().new.nulls | {"day_change": 5_000 + more})
        return judged("nulls", make(replace(grown, **given), manifest=told, live_manifest=told)).verdict

    assert (verdict(20_900), verdict(21_100)) == ("pass", "hold")


def test_where_there_are_few_profiles_chance_is_allowed_for(make):
    """2,000 profiles, 40 of them new, half of them null: 12 more may be chance, 14 may not."""

    def verdict(more: int) -> str:
        given = comparison(added=20, removed=20)
        old, new = (replace(p, profiles=2000, nulls={"location": 1000}) for p in (given.old, given.new))
        few = replace(given, old=old, new=replace(new, nulls={"location": 1000 + more}))
        return judged("nulls", make(few)).verdict

    assert (verdict(12), verdict(14)) == ("pass", "hold")


def test_a_manifest_that_is_missing_is_let_through_by_one_setting_only(make):
    without = MANIFEST | {"input": None}
    assert judged("complete", make(manifest=without)).verdict == "hold"
    found = judged("complete", make(manifest=without, require=False))
    assert (found.verdict, found.reason) == ("pass", "the input has no manifest, and require_manifest is off")
    unfinished = MANIFEST | {"input": MANIFEST["input"] | {"complete": False}}
    assert judged("complete", make(manifest=unfinished, require=False)).verdict == "hold"


def test_content_in_quarantine_stays_there_whatever_it_is_called(make):
    case = make(quarantined={"digest of 20261121T040000Z-00000000": "bad"})
    assert judged("quarantine", case).verdict == "hold"


def test_sections_are_those_that_were_built(make, places):
    sections = {name: {"checksum": f"{section['checksum']:016x}"} for name, section in places[0].sections().items()}
    assert judged("checksums", make(manifest={"sections": sections})).verdict == "pass"
    first = next(iter(sections))
    for wrong in (sections | {first: {"checksum": "0" * 16}}, sections | {"more": {"checksum": "0" * 16}}):
        assert judged("checksums", make(manifest={"sections": wrong})).verdict == "hold"


def test_a_table_that_lost_its_names_is_seen(make, places):
    found = judged("coverage", make(candidate=places[1]))
    assert (found.verdict, found.figure) == ("hold", "-5.1 %")
    assert found.reason == "51 of 1,000 locations are gone; 51 of 1,000 topics are gone"
    assert judged("coverage", make(candidate=places[1], limits={"group_coverage": 0.06})).verdict == "pass"


@pytest.mark.parametrize(
    ("age", "verdict", "reason"),
    [
        (timedelta(hours=1), "pass", "scored at 2026-11-21 04:00:00 UTC"),
        (-timedelta(minutes=4), "pass", "scored at 2026-11-21 05:04:00 UTC"),
        (-timedelta(minutes=6), "hold", "which is in the future"),
        (timedelta(hours=25), "hold", "not after the live version"),
        (timedelta(hours=49), "hold", "the scores are 49 h old"),
    ],
)
def test_scores_are_of_their_day(make, age, verdict, reason):
    given = comparison()
    case = make(replace(given, new=replace(given.new, scored_at=NOW - age)))
    found = judged("fresh", case)
    assert found.verdict == verdict
    assert reason in found.reason


def test_a_time_that_the_pipeline_did_not_say_warns(make):
    found = judged("fresh", make(manifest=MANIFEST | {"scored_at_from": "option"}))
    assert found.verdict == "warn"
    assert found.reason.endswith("as --scored-at says; the pipeline's manifest says 2026-11-21T04:00:00Z")


def test_who_opted_out_is_not_inside(make):
    assert judged("erased", make(opted_out=None)).verdict == "hold"
    found = judged("erased", make(opted_out=np.array([3, 7, 5_000_000], np.uint64)))
    assert (found.verdict, found.figure) == ("hold", "2 of 3")  # 7 is unscored, and inside
    assert found.reason == "2 profiles that opted out can be read: 3, 7"
    assert judged("erased", make(opted_out=np.empty(0, np.uint64))).verdict == "pass"


def test_a_first_version_is_not_of_one_score(make):
    found = judged("mass", make(piled(0.3), comparison=None))
    assert (found.verdict, found.reason) == ("hold", "33.7 % of all profiles have the score 10.00")


# Golden profiles.


def golden(tmp_path: Path, *lines: str) -> Path:
    file = tmp_path / "golden.csv"
    file.write_text("profile_id,low,high\n" + "\n".join(lines) + "\n")
    return file


def test_golden_profiles_have_their_scores(make, tmp_path):
    file = golden(tmp_path, "1,9.99,10.01", "2,10,10", "7,unscored,unscored", "5000000,absent,absent")
    found = judged("golden", make(golden=file))
    assert (found.verdict, found.figure) == ("pass", "4 of 4")
    file = golden(tmp_path, "1,10.01,20", "2,unscored,unscored", "3,absent,absent", "7,10,10", "5000000,1,100")
    found = judged("golden", make(golden=file))
    assert (found.verdict, found.figure) == ("hold", "0 of 5")
    assert found.reason == (
        "profile 1 has the score 10.00, not 10.01 to 20.00; profile 2 has the score 10.00, not unscored; "
        "profile 3 has the score 10.00, not absent; and 2 more"
    )


def test_without_golden_profiles_it_warns(make):
    assert judged("golden", make()).verdict == "warn"


@pytest.mark.parametrize(
    "line",
    ["1,2", "x,1,2", "1,3,2", "1,0.5,2", "1,1,101", "1,unscored,5", "1,nan,5", "-1,2,3", f"{1 << 64},2,3", "1,inf,5"],
)
def test_golden_profiles_that_make_no_sense_are_named(make, tmp_path, line):
    with pytest.raises(SettingError, match=r"golden\.csv, row 2: '"):
        judged("golden", make(golden=golden(tmp_path, "1,2,3", line)))


def test_golden_profiles_that_cannot_be_read_are_named(make, tmp_path):
    with pytest.raises(SettingError, match=r"nowhere\.csv"):
        judged("golden", make(golden=tmp_path / "nowhere.csv"))
    with pytest.raises(SettingError, match="no profile is in it"):
        judged("golden", make(golden=golden(tmp_path)))
    (tmp_path / "other.csv").write_text("id,low,high\n")
    with pytest.raises(SettingError, match="the first line must be profile_id,low,high"):
        judged("golden", make(golden=tmp_path / "other.csv"))


# Declared models and acceptances.


def test_a_declared_model_has_the_limits_that_were_registered():
    settings = Settings(gates={"rows_fewer": 0.02}, models={"new": {"mean": 0.5, "group_profiles": 50}})
    assert limits_of(settings, None) is settings.gates
    limits = limits_of(settings, "new")
    assert (limits.mean, limits.group_profiles, limits.rows_fewer, limits.mass) == (0.5, 50, 0.02, 0.01)


@pytest.mark.parametrize(
    ("models", "model", "message"),
    [
        ({"a": {}, "b": {}}, "c", "there is no model 'c'; registered are: a, b"),
        ({}, "c", "registered are: none"),
        ({"a": {"meen": 1}}, "a", r"models\.a: there is no threshold 'meen'; there are: few, .*mean"),
        ({"a": {"mean": -1}}, "a", r"models\.a\.mean: .*, got -1"),
        ({"a": {"cluster": 2.5}}, "a", r"models\.a\.cluster"),
    ],
)
def test_a_model_that_is_not_registered_is_refused(models, model, message):
    with pytest.raises(SettingError, match=message):
        limits_of(Settings(models=models), model)


def test_every_registered_model_can_be_declared():
    for model in Settings().models:
        limits_of(Settings(), model)


LATER = NOW + timedelta(days=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Acceptance("moovement", "x", "y", LATER), "no gate 'moovement'; there are: complete, .*drift"),
        *[
            (Acceptance(name, "x", "y", LATER), f"{name} cannot be accepted")
            for name in ("complete", "checksums", "quarantine", "schema", "erased")
        ],
        (Acceptance("movement", " ", "y", LATER), "needs a reason and an author"),
        (Acceptance("movement", "x", "", LATER), "needs a reason and an author"),
        (Acceptance("movement", "x", "y", datetime(2026, 1, 1)), "needs a time zone"),
    ],
)
def test_what_cannot_be_accepted(given, message):
    with pytest.raises(SettingError, match=message):
        refuse_bad(given)


# Distances of distributions.

COUNTS = st.lists(st.integers(0, 500), min_size=POINTS, max_size=POINTS)


def psi_by_hand(old: list[int], new: list[int]) -> float:
    """The definition, on bins merged from the left until each has 5 % of both together."""
    total_old, total_new = sum(old), sum(new)
    bins: list[list[int]] = [[0, 0]]
    weight = 0.0
    for a, b in zip(old, new, strict=True):
        if weight >= 0.1:
            bins.append([0, 0])
            weight = 0.0
        bins[-1][0] += a
        bins[-1][1] += b
        weight += a / total_old + b / total_new
    if weight < 0.1 and len(bins) > 1:
        last = bins.pop()
        bins[-1] = [bins[-1][0] + last[0], bins[-1][1] + last[1]]
    found = 0.0
    for a, b in bins:
        p, q = (a + 0.5) / (total_old + 0.5 * len(bins)), (b + 0.5) / (total_new + 0.5 * len(bins))
        found += (q - p) * math.log(q / p)
    return found


@given(COUNTS, COUNTS)
def test_psi_and_ks_are_what_their_definitions_say(old, new):
    assume(sum(old) and sum(new))
    assert shapes.psi(np.array(old), np.array(new)).value == pytest.approx(psi_by_hand(old, new), abs=1e-9)
    cumulated = [abs(sum(old[: i + 1]) / sum(old) - sum(new[: i + 1]) / sum(new)) for i in range(POINTS)]
    assert shapes.ks(np.array(old), np.array(new)).value == pytest.approx(max(cumulated))


def test_chance_alone_is_allowed_for(make):
    """Two samples of one distribution, as small as groups may be: none of 2,000 pairs holds, hardly one warns."""
    random = np.random.default_rng(1)
    share = shapes.by_points(scores()) / SCORED
    case = make()
    verdicts = []
    for _ in range(2000):
        old, new = random.multinomial(1000, share, size=2).astype(np.uint64)
        verdicts += [groups_module.psi(case, "X", old, new).verdict, groups_module.ks(case, "X", old, new).verdict]
    assert verdicts.count("hold") == 0
    assert verdicts.count("warn") <= 4


def test_no_group_is_overlooked(make):
    """Against the definition, group by group: 400 groups of 900 to 5,000 profiles, some a little or a lot different."""
    random = np.random.default_rng(2)
    share = shapes.by_points(scores()) / SCORED
    sizes = random.integers(900, 5000, 400)
    drifts = np.roll(share, 20)
    old, new = (np.zeros((400, POINTS), np.uint64) for _ in range(2))
    for i, size in enumerate(sizes):
        weight = random.choice([0.0, 0.1, 0.4, 0.7, 1.0])
        old[i] = random.multinomial(size, share)
        new[i] = random.multinomial(size, drifts * weight + share * (1 - weight))
    names = tuple(f"X{i}" for i in range(400))
    before, after = (Groups(names, h.sum(axis=1), h, np.zeros(400)) for h in (old, new))
    case = make()
    expected = [
        measure
        for i in range(400)
        if min(old[i].sum(), new[i].sum()) >= 1000
        for measure in (
            groups_module.psi(case, names[i], old[i], new[i]),
            groups_module.ks(case, names[i], old[i], new[i]),
        )
        if measure.verdict != "pass"
    ]
    found = list(groups_module.shapes_of(case, before, after))
    assert sorted(found) == sorted(expected)
    assert {measure.verdict for measure in found} == {"warn", "hold"}


@given(st.lists(st.integers(100, 10_000), min_size=1, max_size=50), st.sampled_from([0.01, 0.5, 0.99]))
def test_mean_and_quantiles_are_those_of_the_list(values, share):
    histogram = np.bincount(values, minlength=10_001).astype(np.uint64)
    assert shapes.mean(histogram) == pytest.approx(sum(values) / len(values) / 100)
    assert shapes.quantile(histogram, share) == sorted(values)[math.ceil(share * len(values)) - 1] / 100
    by_points = shapes.by_points(histogram)
    assert [int(count) for count in by_points] == [sum(v // 100 == p for v in values) for p in range(POINTS)]


def test_nothing_has_no_mean():
    nothing = np.zeros(10_001, np.uint64)
    assert (shapes.mean(nothing), shapes.quantile(nothing, 0.5)) == (None, None)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (words.percent(0.412), "41.2 %"),
        (words.percent(0.00001), "0.001 %"),
        (words.percent(-0.032, sign=True), "-3.2 %"),
        (words.percent(12.6), "1260 %"),
        (words.percent(-1e-9), "0 %"),
        (words.more_percent(0.0101), "+1.01 pp"),
        (words.points(-0.001, sign=True), "+0.00"),
        (words.count(1020.0, "profile"), "1,020 profiles"),
        (words.count(1, "profile"), "1 profile"),
        (words.count(0.0312), "0.0312"),
        (words.number(math.inf), "inf"),
    ],
)
def test_figures_are_written_for_people(text, shown):
    assert text == shown


# Reports.


def report() -> Report:
    accepted = Acceptance("rows", "announced", "ann", NOW)
    found = [
        Finding("rows", "hold", "-3.2 %", -0.032, "-1 %", "fewer", False, accepted),
        Finding("erased", "hold", "1 of 2", 1.0, "nobody", "inside", True),
        Finding("golden", "warn", "none", None, "all", "none"),
    ]
    both = comparison()
    return Report(
        version=both.new.version,
        against=both.old.version,
        at=NOW,
        first=False,
        model="2011-10",
        digest="0a",
        findings=tuple(found),
        new=Figures.of(both.new),
        old=Figures.of(both.old),
    )


def test_a_report_survives_being_kept(tmp_path):
    given = report()
    gates.save(tmp_path, given)
    assert gates.load(tmp_path, given.version) == given
    assert [finding.gate for finding in given.held] == ["erased"]
    assert given.finding("rows").accepted.by == "ann"
    again = msgspec.structs.replace(given, model=None)
    gates.save(tmp_path, again)
    assert gates.load(tmp_path, given.version) == again


def test_a_report_that_is_not_there_or_damaged_is_none(tmp_path):
    assert gates.load(tmp_path, "20261121T040000Z-00000000") is None
    gates.save(tmp_path, report())
    assert gates.load(tmp_path, f"../checks/{report().version}") is not None, "only the name counts"
    (tmp_path / "checks" / f"{report().version}.json").write_text('{"version": 3}')
    assert gates.load(tmp_path, report().version) is None


def test_figures_have_the_biggest_groups():
    found = Figures.of(comparison().new)
    assert [group.name for group in found.regions] == ["DE", "US/New York", "US"]
    assert sum(found.histogram) == SCORED
    assert found.histogram[10] == SCORED - 6000 * 160
    assert found.regions[0].mean == pytest.approx(found.mean, abs=0.6)


def test_every_gate_and_threshold_is_documented():
    text = (DOCS / "gates.md").read_text()
    assert re.findall(r"^### (\w+)", text, re.M) == list(GATE)
    for field in Gates.model_fields:
        assert f"`{field}`" in text, field
    for gate in GATES:
        told = "never" in re.search(rf"^### {gate.name}(.*)$", text, re.M)[1]
        assert told == gate.integrity
