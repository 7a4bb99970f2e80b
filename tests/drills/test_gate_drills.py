"""The days on which bad scores went out, and the gates that they end at now; `pytest -s` prints a time line of each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pytest
from drilling import Night, Pipeline, TimeLine, column, gated, held, scores, with_scores
from lengths import FULL

from kserve.snapshots.report import Figures

pytestmark = pytest.mark.drill

PROFILES = 20_000
MANY = 1_000_000 if FULL else 300_000
WRONG = 10
"""Of them; in full, one in 100,000."""


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Pipeline:
    return Pipeline(tmp_path_factory.mktemp("pipeline"), PROFILES)


@pytest.fixture(scope="module")
def live(pipeline) -> Night:
    """The night before."""
    night = pipeline.night(pipeline.output("before", 39))
    assert held(gated(night, None)) == []
    return night


def test_an_honest_night_passes(pipeline, live):
    line = TimeLine("an honest night")
    report = gated(pipeline.night(pipeline.output("honest", 40)), live)
    line.verdict(report)
    assert held(report) == []
    assert [finding.gate for finding in report.findings if finding.verdict == "warn"] == ["golden"]


# 23 May 2011.


def half_finished(table: pa.Table) -> pa.Table:
    """Scoring had come to 8 % of the profiles; the last step gave all others a 1, those without a score too."""
    points = scores(table).copy()
    points[len(points) * 8 // 100 :] = 1.0
    return with_scores(table, points)


def test_23_may_2011(pipeline, live):
    line = TimeLine("23 May 2011: scoring ran late, and the load started on half-finished data")
    folder = pipeline.output("may", 40, half_finished)
    line.say(f"the output has all {PROFILES:,} rows, but no manifest: the pipeline has not come to its end")
    report = gated(pipeline.night(folder), live)
    line.verdict(report)
    of_content = {"mass", "centre", "shape", "movement"}
    assert {"complete", *of_content} <= set(held(report))
    assert "has no manifest" in report.finding("complete").reason
    assert report.finding("mass").value == pytest.approx(0.92, abs=0.001)
    assert "of all profiles have the score 1.00 (before: 0 %)" in report.finding("mass").reason
    assert "were missing ones filled in?" in report.finding("unscored").reason

    pipeline.forge(folder)
    line.say("somebody writes a manifest by hand, and tries again")
    report = gated(pipeline.night(folder), live)
    line.verdict(report)
    assert report.finding("complete").verdict == "pass"
    assert of_content <= set(held(report))

    line.say("somebody declares it to be the new algorithm")
    report = gated(pipeline.night(folder), live, model="2011-10")
    line.verdict(report)
    assert {"mass", "centre"} <= set(held(report))


# 26 October 2011.


def new_algorithm(table: pa.Table) -> pa.Table:
    """Many scores move by 10 to 20 points, up for who had few and down for who had many; each a little otherwise."""
    points = scores(table)
    noise = np.random.default_rng(26).normal(0, 2, len(points))
    return with_scores(table, points + 0.5 * (38 - points) + noise)


def test_26_october_2011(pipeline, live):
    line = TimeLine("26 October 2011: a new algorithm moves many scores by 10 to 20 points")
    night = pipeline.forged("october", 40, new_algorithm)
    undeclared = gated(night, live)
    line.say("undeclared")
    line.verdict(undeclared)
    assert {"centre", "shape", "movement"} <= set(held(undeclared))
    assert "% of the profiles moved more than 10 points" in undeclared.finding("movement").reason

    declared = gated(night, live, model="2011-10")
    line.say("declared: model 2011-10")
    line.verdict(declared)
    assert held(declared) == []
    assert declared.model == "2011-10"


def test_a_fault_does_not_hide_behind_a_declared_change(pipeline, live):
    line = TimeLine("the new algorithm, and in it 30 profiles of one city without a score")

    def faulty(table: pa.Table) -> pa.Table:
        table = new_algorithm(table)
        points, there = scores(table).copy(), in_place(table, "US/New York")
        points[np.flatnonzero(there)[:30]] = np.nan
        return with_scores(table, points)

    report = gated(pipeline.forged("hidden", 40, faulty), live, model="2011-10")
    line.verdict(report)
    assert "unscored" in held(report)
    assert "concentrated in US/New York" in report.finding("unscored").reason


# The broken source.


def in_place(table: pa.Table, path: str) -> np.ndarray:
    """bool[n]: whose location is below a path."""
    known = table["location"].to_pylist()
    return np.array([place is not None and f"{place}/".startswith(f"{path}/") for place in known])


def of_shard(table: pa.Table) -> np.ndarray:
    return table["profile_id"].to_numpy() % np.uint64(1000) == 7


def of_range(table: pa.Table) -> np.ndarray:
    """The hundred lowest ids."""
    ids = table["profile_id"].to_numpy()
    return ids <= np.sort(ids)[100]


def of_city(table: pa.Table) -> np.ndarray:
    return in_place(table, "US/New York/New York City")


def of_network(table: pa.Table) -> np.ndarray:
    return table["gp_id"].is_valid().to_numpy(zero_copy_only=False)


def wrong(source: Callable[[pa.Table], np.ndarray], share: float) -> Callable[[pa.Table], pa.Table]:
    """So many of all profiles, all of one source, have 25 points too many."""

    def alter(table: pa.Table) -> pa.Table:
        points = scores(table).copy()
        rows = np.flatnonzero(source(table) & ~np.isnan(points) & (points < 70))[: round(len(table) * share)]
        assert len(rows) == round(len(table) * share)
        points[rows] += 25
        return with_scores(table, points)

    return alter


def test_one_percent_of_users_are_wrong_in_one_network(pipeline, live):
    line = TimeLine("the broken source: 1 % of the profiles, all with an account on gp")
    report = gated(pipeline.forged("broken", 40, wrong(of_network, 0.01)), live)
    line.verdict(report)
    assert "movement" in held(report)
    assert "concentrated in gp: " in report.finding("movement").reason


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Pipeline:
    return Pipeline(tmp_path_factory.mktemp("many"), MANY, "core")


@pytest.fixture(scope="module")
def live_many(many) -> Night:
    return many.night(many.output("before", 39))


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("source", "where"), [(of_shard, "id % 1000 = 7"), (of_range, "ids "), (of_city, "US/New York/New York City")]
)
def test_one_in_100_000_users_is_wrong_in_one_source(many, live_many, source, where):
    line = TimeLine(f"the broken source: {WRONG} of {MANY:,} profiles, all in {where}")
    report = gated(many.forged(source.__name__, 40, wrong(source, WRONG / MANY)), live_many)
    line.verdict(report)
    assert held(report) == ["movement"]
    assert f"concentrated in {where}" in report.finding("movement").reason


# The lost network.


def lost_network(table: pa.Table) -> pa.Table:
    """A fifth of one network's profiles lost their identity there, and the influence that comes from it."""
    there = np.flatnonzero(table["tw_id"].is_valid().to_numpy(zero_copy_only=False))
    lost = np.zeros(len(table), bool)
    lost[there[np.random.default_rng(5).random(len(there)) < 0.2]] = True
    for name in ("tw_id", "tw_name", "influencers", "influencees", "influencer_count", "influencee_count"):
        values = table[name].combine_chunks()
        table = column(table, name, pa.compute.if_else(pa.array(lost), pa.scalar(None, values.type), values))
    return table


def test_a_fifth_of_one_network_is_missing(pipeline, live):
    line = TimeLine("the lost network: a fifth of tw's identities and influence")
    report = gated(pipeline.forged("lost", 40, lost_network), live)
    line.verdict(report)
    assert {"nulls", "coverage"} <= set(held(report))
    coverage = report.finding("coverage").reason
    assert "of the profiles have an identity on tw (before: 8" in coverage
    assert "network tw has" in coverage


# Slow drift.

STEADY, NIGHTS, STEP = 5, 30, 0.005


def drifted(nights: int) -> Callable[[pa.Table], pa.Table]:
    """The mean, about 20, has grown by 0.5 % a night; who is at the floor of 10 stays there."""
    growth = ((1 + STEP) ** nights - 1) * 2
    return lambda table: with_scores(table, scores(table) + (scores(table) - 10) * growth)


@pytest.mark.heavy
def test_slow_drift(tmp_path):
    line = TimeLine(f"slow drift: the mean grows by {STEP:.1%} a night, for {NIGHTS} nights")
    pipeline = Pipeline(tmp_path, 20_000, "core")
    live: Night | None = None
    history: list[Figures] = []
    for night in range(-STEADY, NIGHTS + 1):
        made = pipeline.forged(f"night{night}", 10 + night, drifted(max(night, 0)))
        report = gated(made, live, history)
        if report.held:
            break
        live = made
        history.append(report.new)
    line.say(f"night {night}: the mean is {report.new.mean:.2f}, it was {history[STEADY].mean:.2f} when it began")
    line.verdict(report)
    assert held(report) == ["drift"]
    assert 5 <= night <= 8
    assert "the mean score is" in report.finding("drift").reason


@pytest.mark.heavy
def test_only_the_baseline_sees_a_slow_drift(tmp_path):
    """Compared with nothing but the night before, 30 nights of it would pass."""
    pipeline = Pipeline(tmp_path, 20_000, "core")
    nights = [pipeline.forged(f"night{night}", 10 + night, drifted(night)) for night in (0, 1, 2, 29, 30)]
    for before, after in ((0, 1), (1, 2), (3, 4)):
        assert held(gated(nights[after], nights[before])) == []
    assert {"centre", "drift"} <= set(held(gated(nights[4], nights[0], [gated(nights[0], None).new])))
