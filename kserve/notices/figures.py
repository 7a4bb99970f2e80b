"""What the pages show of versions: figures as text, side by side, and plots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from kserve.notices import plots
from kserve.notices.plots import Plot
from kserve.snapshots import words
from kserve.snapshots.measures import Cluster, Comparison, Moves
from kserve.snapshots.report import Figures, Report

MOST_GROUPS = 15
"""Rows of a table of groups: those whose mean moved most."""

LEAST_SCALE = 0.5
"""Points that a full bar stands for at least: what is nothing shall not look like much."""

LEAST_BOTH = 100
"""Profiles that a group needs in both versions for a mean that says anything."""


class Row(NamedTuple):
    """A figure of two versions; ``old`` is empty when there is only one."""

    label: str
    old: str
    new: str


class Shift(NamedTuple):
    """How a group moved, as text, and its mean as a bar."""

    name: str
    both: str
    mean: str
    over5: str
    over10: str
    bar: Markup


class Groups(NamedTuple):
    """A table of groups; ``more`` is how many are not in it."""

    title: str
    note: str
    shifts: tuple[Shift, ...]
    more: int


class Count(NamedTuple):
    """A number of profiles, and the share that it is."""

    label: str
    profiles: int
    share: str


@dataclass(frozen=True, slots=True)
class Diff:
    """A comparison as a page shows it."""

    old: str
    new: str
    counts: tuple[Count, ...]
    rows: tuple[Row, ...]
    distribution: Plot
    moves: Plot
    groups: tuple[Groups, ...]
    clusters: tuple[Cluster, ...]
    movers: int


def of(comparison: Comparison) -> Diff:
    """What there is to show of two versions."""
    old, new = Figures.of(comparison.old), Figures.of(comparison.new)
    return Diff(
        old=old.version,
        new=new.version,
        counts=_counts(comparison),
        rows=rows(old, new),
        distribution=distribution(old, new),
        moves=plots.moves(comparison.moves, _moves_in_words(comparison)),
        groups=tuple(group for group in _all_groups(comparison) if group.shifts),
        clusters=comparison.clusters,
        movers=len(comparison.movers),
    )


def of_report(report: Report) -> tuple[tuple[Row, ...], Plot]:
    """The figures and the distribution that a check has kept."""
    return rows(report.old, report.new), distribution(report.old, report.new)


def rows(old: Figures | None, new: Figures) -> tuple[Row, ...]:
    """Both versions' figures, or the only one's."""

    def row(label: str, text: Callable[[Figures], str]) -> Row:
        return Row(label, "" if old is None else text(old), text(new))

    return (
        row("profiles", lambda of: f"{of.profiles:,}"),
        row("unscored", lambda of: f"{of.unscored:,}"),
        row("mean", lambda of: _points(of.mean)),
        row("p1", lambda of: _points(of.p1)),
        row("p50", lambda of: _points(of.p50)),
        row("p99", lambda of: _points(of.p99)),
        row("bytes", lambda of: f"{of.file_bytes:,}"),
        row("scored at", lambda of: f"{of.scored_at:%-d %b %Y, %H:%M} UTC"),
    )


def distribution(old: Figures | None, new: Figures) -> Plot:
    """How the scores are spread."""
    histograms = [None if of is None else np.array(of.histogram, dtype=np.uint64) for of in (old, new)]
    before, after = histograms
    assert after is not None
    said = f"Distribution of scores by whole points. {new.version}: {_spread(new)}"
    return plots.distribution(before, after, said if old is None else f"{said}; {old.version}: {_spread(old)}")


def _spread(figures: Figures) -> str:
    return f"p1 {_points(figures.p1)}, median {_points(figures.p50)}, p99 {_points(figures.p99)}"


def _counts(comparison: Comparison) -> tuple[Count, ...]:
    old = comparison.old.profiles
    found = {
        "in both": comparison.both,
        "added": comparison.added,
        "removed": comparison.removed,
        "changed score": comparison.changed,
        "became unscored": comparison.became_unscored,
        "became scored": comparison.became_scored,
        "moved more than 5 points": _over(comparison, 500),
        "moved more than 10 points": _over(comparison, 1000),
    }
    return tuple(Count(label, count, words.percent(count / old) if old else "-") for label, count in found.items())


def _over(comparison: Comparison, hundredths: int) -> int:
    middle = len(comparison.moves) // 2
    return int(comparison.moves[: middle - hundredths].sum() + comparison.moves[middle + hundredths + 1 :].sum())


def _moves_in_words(comparison: Comparison) -> str:
    both = int(comparison.moves.sum())
    if not both:
        return "No profile is scored in both versions"
    far = words.percent(_over(comparison, 500) / both)
    return f"How far {both:,} profiles moved, in points: {far} moved more than 5 points"


def _all_groups(comparison: Comparison) -> list[Groups]:
    return [
        _groups("Regions", "", comparison.regions),
        _groups("Topics", "", comparison.topics),
        _groups("Networks", "", comparison.networks),
        _groups("Id ranges", "From a sample: the counts are of the sample.", comparison.id_ranges),
    ]


def _groups(title: str, note: str, moves: Moves) -> Groups:
    both = moves.both.astype(np.float64)
    means = np.divide(moves.sums, both, out=np.zeros(len(both)), where=both > 0)
    told = np.flatnonzero(both >= LEAST_BOTH)
    order = told[np.argsort(-np.abs(means[told]), kind="stable")][:MOST_GROUPS].tolist()
    largest = max((abs(float(means[i])) for i in order), default=0.0)
    scale = max(largest, LEAST_SCALE)
    shifts = tuple(
        Shift(
            moves.names[i],
            f"{int(both[i]):,}",
            words.points(float(means[i]), sign=True),
            words.percent(float(moves.over5[i] / both[i])),
            words.percent(float(moves.over10[i] / both[i])),
            plots.shift(float(means[i]), scale),
        )
        for i in order
    )
    return Groups(title, note, shifts, len(moves.names) - len(shifts))


def _points(value: float | None) -> str:
    return "unknown" if value is None else words.points(value)
