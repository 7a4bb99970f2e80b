"""Plots: well-formed, within their frame, and with words; also of nothing at all."""

from __future__ import annotations

from datetime import UTC, date, datetime
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve.notices import figures, plots
from kserve.notices.pages import diff_html
from kserve.snapshots.measures import POINTS, Cluster, Comparison, Groups, Mover, Moves, Portrait

NASTY = "<script>\"&'é"
COUNTS = st.lists(st.integers(0, 10**9), min_size=POINTS, max_size=POINTS)
SPARSE = st.dictionaries(st.integers(0, 19_800), st.integers(1, 10**9), max_size=6)


def coordinates(element: ElementTree.Element) -> list[tuple[float, float]]:
    """Corners of everything that is drawn."""
    found = []
    for polygon in element.iter("polygon"):
        found += [tuple(map(float, pair.split(","))) for pair in (polygon.get("points") or "").split()]
    for rect in element.iter("rect"):
        x, y, width, height = (float(rect.get(name) or "nan") for name in ("x", "y", "width", "height"))
        found += [(x, y), (x + width, y + height)]
    return [(x, y) for x, y in found]


def within(svg: str, width: float, height: float) -> None:
    for x, y in coordinates(ElementTree.fromstring(svg)):
        assert -0.1 <= x <= width + 0.1
        assert -0.1 <= y <= height + 0.1


@given(old=st.none() | COUNTS, new=COUNTS)
def test_distributions(old: list[int] | None, new: list[int]) -> None:
    before = None if old is None else np.array(old, np.uint64)
    plot = plots.distribution(before, np.array(new, np.uint64), NASTY)
    within(plot.svg, plots.WIDTH, plots.HEIGHT)
    assert ElementTree.fromstring(plot.svg).get("aria-label") == NASTY
    assert 0 < plot.svg.count('class="grid"') <= 6
    assert plot.grid.endswith("% of the scored profiles")


@given(SPARSE)
def test_moves(sparse: dict[int, int]) -> None:
    counts = np.zeros(19_801, np.uint32)
    for place, count in sparse.items():
        counts[place] = count
    plot = plots.moves(counts, NASTY)
    within(plot.svg, plots.WIDTH, plots.HEIGHT)
    rounded = {round((place - 9900) / 100) for place in sparse if (place - 9900) % 100 != 50}
    assert plot.svg.count("<rect") >= min(len(rounded), 1)
    assert plot.ticks[1] == "0"
    assert int(plot.ticks[2]) >= 5


@given(st.floats(-99, 99), st.floats(0.01, 99))
def test_shifts(value: float, largest: float) -> None:
    within(plots.shift(value, largest), 100, 12)


def test_days_are_told_one_by_one() -> None:
    found = [plots.Day(date(2026, 11, 1), "major_outage", NASTY), plots.Day(date(2026, 11, 2), "unknown", "?")]
    drawn = ElementTree.fromstring(plots.days(found, NASTY))
    assert drawn.get("aria-label") == NASTY
    assert [title.text for title in drawn.iter("title")] == [f"1 Nov 2026: {NASTY}", "2 Nov 2026: ?"]
    assert ElementTree.fromstring(plots.days([], "nothing")).get("viewBox") == "0 0 1 32"


def portrait(version: str, scored: int) -> Portrait:
    histogram = np.zeros(10_001, np.uint64)
    histogram[4200] = scored
    nobody = Groups((), np.zeros(0, np.uint64), np.zeros((0, POINTS), np.uint64), np.zeros(0))
    return Portrait(
        version, datetime(2026, 11, 21, 4, tzinfo=UTC), 100, 7, 7 - scored, histogram, {}, {}, *[nobody] * 3, "d"
    )


def comparison(scored: int) -> Comparison:
    moves = np.zeros(19_801, np.uint32)
    moves[9900] = scored
    groups = Moves(
        (NASTY, "small"),
        np.array([1000, 1]),
        np.array([500, 0]),
        np.array([0, 0]),
        np.array([-2500.0, 99.0]),
    )
    cluster = Cluster("moved", "region", NASTY, 12, 34.5, 0.012, -30.0)
    old, new = portrait("old", scored), portrait("new", scored)
    return Comparison(
        old,
        new,
        7,
        0,
        0,
        0,
        0,
        0,
        {},
        moves,
        groups,
        groups,
        groups,
        groups,
        (cluster,),
        (Mover(2**64 - 1, 1.0, 99.5),),
    )


@pytest.mark.parametrize("scored", [0, 7])
def test_a_comparison_as_a_page(scored: int) -> None:
    shown = figures.of(comparison(scored))
    assert [group.title for group in shown.groups] == ["Regions", "Topics", "Networks", "Id ranges"]
    (shift,) = shown.groups[0].shifts
    assert (shift.name, shift.both, shift.mean, shift.over5) == (NASTY, "1,000", "-2.50", "50 %")
    assert shown.groups[0].more == 1
    text = diff_html(comparison(scored))
    assert "<script" not in text
    assert str(2**64 - 1) in text
    assert "+98.50" in text
    assert text.count("unknown") >= (8 if scored == 0 else 0)
