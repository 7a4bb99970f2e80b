"""Two versions side by side."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from kserve.cli import drawing, options, output
from kserve.cli.output import clean
from kserve.errors import StorageError
from kserve.settings import load
from kserve.snapshots import shapes
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.words import percent

if TYPE_CHECKING:
    from kserve.snapshots.measures import Cluster, Comparison, Groups, Moves, Portrait

FIVE, TEN = 500, 1000
"""Hundredths of a point."""

QUANTILES = {"p1": 0.01, "median": 0.5, "p99": 0.99}


class Shift(NamedTuple):
    """How the profiles of a region or topic moved. ``mean`` in points; shares of those scored in both."""

    name: str
    old: int
    new: int
    mean: float
    over5: float
    over10: float


def diff(
    old: Annotated[
        str,
        typer.Argument(metavar="OLD", autocompletion=options.complete_version, help="A version to compare with."),
    ],
    new: Annotated[
        str,
        typer.Argument(metavar="NEW", autocompletion=options.complete_version, help="A published one or a candidate."),
    ],
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with plots, which needs no network.")
    ] = None,
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, max=100, help="Rows of each table.")] = 10,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Show what differs between two versions: who came and went, who moved, and where.

    Use it on a held candidate and the live version, and to explain a night to others. Regions and topics are listed by
    how far their profiles moved on average; parts of the profiles where something happened far more often than
    elsewhere come first.

    Example:

      $ kserve diff 20260102T040000Z-a39da277 20260103T040000Z-f7bc0b5b
    """
    from kserve.snapshots.compare import compare

    settings = load(data=data)
    catalog = Catalog(settings.data)
    with (
        options.opened(catalog, old) as before,
        options.opened(catalog, new) as after,
        output.bars(compare="comparing profiles") as report,
    ):
        found = compare(before, after, lambda *done: report("compare", *done))
    least = min(settings.gates.group_profiles, max(1, found.both // 100))
    if html is not None:
        _write_page(html, found)
    if as_json:
        output.emit(_document(found, top, least) | {"html": None if html is None else str(html)})
        return
    _print(found, top, least)
    if html is not None:
        output.say(f"\nthe same with plots: {html}")


def _write_page(file: Path, found: Comparison) -> None:
    from kserve.notices.pages import diff_html

    try:
        file.write_text(diff_html(found), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{file}: cannot be written: {error.strerror}") from None


def _moved(found: Comparison, more_than: int) -> int:
    """Profiles that moved more hundredths than this, up or down."""
    middle = len(found.moves) // 2
    return int(found.moves[: middle - more_than].sum() + found.moves[middle + more_than + 1 :].sum())


def shifts(moves: Moves, old: Groups, new: Groups, least: int) -> list[Shift]:
    """Of the groups with ``least`` profiles or more that are scored in both, the widest mean move first."""
    before = dict(zip(old.names, old.profiles.tolist(), strict=True))
    after = dict(zip(new.names, new.profiles.tolist(), strict=True))
    rows = [
        Shift(name, before.get(name, 0), after.get(name, 0), total / both, over5 / both, over10 / both)
        for name, both, over5, over10, total in zip(
            moves.names,
            moves.both.tolist(),
            moves.over5.tolist(),
            moves.over10.tolist(),
            moves.sums.tolist(),
            strict=True,
        )
        if both >= least
    ]
    return sorted(rows, key=lambda row: -abs(row.mean))


def _figures(portrait: Portrait) -> dict[str, Any]:
    scores = {"mean": shapes.mean(portrait.histogram)}
    scores |= {name: shapes.quantile(portrait.histogram, share) for name, share in QUANTILES.items()}
    return {
        "version": portrait.version,
        "scored_at": portrait.scored_at.isoformat(),
        "profiles": portrait.profiles,
        "unscored": portrait.unscored,
        **scores,
        "histogram": shapes.by_points(portrait.histogram).tolist(),
    }


def _counts(found: Comparison) -> dict[str, int]:
    return {
        "both": found.both,
        "added": found.added,
        "removed": found.removed,
        "changed": found.changed,
        "became_scored": found.became_scored,
        "became_unscored": found.became_unscored,
        "moved_over_5": _moved(found, FIVE),
        "moved_over_10": _moved(found, TEN),
    }


def _document(found: Comparison, top: int, least: int) -> dict[str, Any]:
    movers = [{"id": str(one.profile_id), "old": one.old, "new": one.new} for one in found.movers[:top]]
    return {
        "old": _figures(found.old),
        "new": _figures(found.new),
        **_counts(found),
        "clusters": [_cluster_document(one) for one in found.clusters[:top]],
        "regions": [one._asdict() for one in shifts(found.regions, found.old.regions, found.new.regions, least)[:top]],
        "topics": [one._asdict() for one in shifts(found.topics, found.old.topics, found.new.topics, least)[:top]],
        "movers": movers,
    }


def _cluster_document(one: Cluster) -> dict[str, Any]:
    known = ("event", "dimension", "where", "cases", "profiles", "expected", "log10_p")
    return {name: getattr(one, name) for name in known}


def _print(found: Comparison, top: int, least: int) -> None:
    _print_figures(found)
    output.say()
    _print_counts(found)
    output.say()
    histograms = [
        (name, shapes.by_points(one.histogram).tolist()) for name, one in (("old", found.old), ("new", found.new))
    ]
    for line in drawing.distributions(histograms, output.width(), output.ramp()):
        output.say(line)
    _print_clusters(found, top)
    _print_shifts("region", shifts(found.regions, found.old.regions, found.new.regions, least)[:top])
    _print_shifts("topic", shifts(found.topics, found.old.topics, found.new.topics, least)[:top])
    _print_movers(found, top)


def _print_figures(found: Comparison) -> None:
    old, new = _figures(found.old), _figures(found.new)
    rows = [
        ("version", old["version"], new["version"], ""),
        ("scored at", *(output.moment(datetime.fromisoformat(one["scored_at"])) for one in (old, new)), ""),
        ("profiles", *_whole(old["profiles"], new["profiles"])),
        ("unscored", *_whole(old["unscored"], new["unscored"])),
        *((name, *_points(old[name], new[name])) for name in ("mean", *QUANTILES)),
    ]
    output.table(("", "old", "new", "difference"), rows, right=("difference",))


def _whole(old: int, new: int) -> tuple[str, str, str]:
    return f"{old:,}", f"{new:,}", f"{new - old:+,}"


def _points(old: float | None, new: float | None) -> tuple[str, str, str]:
    return output.points(old), output.points(new), "" if old is None or new is None else f"{new - old:+.2f}"


def _print_counts(found: Comparison) -> None:
    scored = int(found.moves.sum()) or 1
    labels = {"became_scored": "newly scored", "became_unscored": "newly unscored"}
    labels |= {"moved_over_5": "moved over 5 points", "moved_over_10": "moved over 10 points"}
    counts = _counts(found)
    shares = {
        name: f" ({percent(counts[name] / scored)} of those scored in both)" for name in labels if "moved" in name
    }
    output.card((labels.get(name, name), f"{count:,}{shares.get(name, '')}") for name, count in counts.items())


def _print_clusters(found: Comparison, top: int) -> None:
    if found.clusters:
        output.say("\nwhere something happened far more often than elsewhere:\n")
        columns = ("what", "where", "profiles", "of about", "expected", "by chance")
        rows = [
            (one.event, f"{one.dimension} {clean(one.where)}", f"{one.cases:,}", f"{one.profiles:,.0f}", *_odds(one))
            for one in found.clusters[:top]
        ]
        output.table(columns, rows, right=columns[2:])


def _odds(one: Cluster) -> tuple[str, str]:
    return f"{one.expected:,.1f}", f"1 in 10^{-one.log10_p:.0f}"


def _print_shifts(kind: str, rows: list[Shift]) -> None:
    if rows:
        output.say(f"\nmean move by {kind}, of those scored in both:\n")
        columns = (kind, "profiles old", "new", "mean move", "over 5", "over 10")
        texts = [
            (
                clean(one.name),
                f"{one.old:,}",
                f"{one.new:,}",
                f"{one.mean:+.2f}",
                percent(one.over5),
                percent(one.over10),
            )
            for one in rows
        ]
        output.table(columns, texts, right=columns[1:])


def _print_movers(found: Comparison, top: int) -> None:
    if found.movers:
        output.say("\nbiggest movers:\n")
        rows = [
            (str(one.profile_id), f"{one.old:.2f}", f"{one.new:.2f}", f"{one.new - one.old:+.2f}")
            for one in found.movers[:top]
        ]
        output.table(("profile", "old", "new", "move"), rows, right=("old", "new", "move"))
