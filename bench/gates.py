"""compare(old, new): what the gates ask of two versions, with the same figures from DuckDB's join beside it.

kserve opens two sealed files; DuckDB has id, score and location of the same profiles loaded in tables of its own. It is
asked for less: counts, scores and moves, all of them by value and by location. kserve also counts the nulls of the
changes, makes both digests, finds the biggest movers, and looks for clusters.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench._data import DAY, SEED, UNSCORED, Data, Records, builder
from bench._harness import Report, Run, fastest, interleave, ratios, say
from bench.count import Reader, timed
from kserve import Snapshot, synth
from kserve.snapshots.build import Options, build
from kserve.snapshots.catalog import SNAPSHOT, Catalog
from kserve.snapshots.compare import compare
from kserve.snapshots.measures import Comparison, Groups

ROUNDS = 5
SECONDS_BAR, SECONDS_AT = 15, 75_000_000
DUCKDB_BAR = 5


def measure(run: Run) -> Report:
    """Seconds a comparison."""
    report = Report("gates", "compare(): all figures of two versions, day 1 and day 2")
    data = Data(run)
    source = _next_input(data)
    old, new = data.snapshot(), _next_snapshot(data, source)
    contenders: dict[str, Callable[[], float]] = {"kserve": lambda: timed(lambda: compare(old, new))}
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        readers = [Reader(snapshot, run, threads) for snapshot in (old, new)]
        contenders["reading both files"] = lambda: timed(lambda: [reader.read() for reader in readers])
        with report.optional("duckdb"):
            run.require("duckdb", module="duckdb")
            duckdb = Duckdb(data, source)
            way = duckdb.fastest_way()
            report.notes.append(f"DuckDB is asked by {way}")
            check(compare(old, new), duckdb)
            contenders["duckdb"] = lambda: timed(lambda: duckdb.figures(way))
        seconds = interleave(contenders, run.rounds_or(ROUNDS))
    report.add_seconds(seconds, "s")
    report.add("kserve, pairs", "M/s", [old.profiles / 1e6 / value for value in seconds["kserve"]], more=True)
    limit = SECONDS_BAR * run.profiles / SECONDS_AT
    report.bar("compare: 15 s for two versions of 75 M, in proportion", seconds["kserve"], "at most", limit, "s")
    if "duckdb" in seconds:
        report.bar("compare: DuckDB / kserve", ratios(seconds["duckdb"], seconds["kserve"]), "at least", DUCKDB_BAR)
    report.notes.append(f"{os.cpu_count()} threads each; the files have {(old.nbytes + new.nbytes) / 1e9:,.1f} GB")
    return report


def _next_input(data: Data) -> Path:
    """The same population a day later; its day 1 is what the other benchmarks read."""
    folder = data.folder / "core-next-input"
    if not folder.exists():
        say(f"making {data.profiles:,} synthetic profiles of the next day")
        synth.write(folder, synth.Plan(data.profiles, day=DAY + 1, seed=SEED, columns="core"))
    return folder


def _next_snapshot(data: Data, source: Path) -> Snapshot:
    """The next day's snapshot, built if it is not there or not of this kserve; all of it in memory."""
    catalog = Catalog(data.folder / "core-next")
    stamp = catalog.data / "BUILT-BY"
    built = stamp.read_text().split() if stamp.exists() else [""]
    if built[0] != builder():
        say(f"building the next day's snapshot of {data.profiles:,} profiles")
        options = Options(scored_at=synth.scored_at(DAY) + timedelta(days=1))
        built = [builder(), build(catalog, source, options).version]
        stamp.write_text(" ".join(built))
    snapshot = Snapshot(catalog.folder(built[1]) / SNAPSHOT)
    snapshot.warm()
    return snapshot


class Duckdb:
    """Both versions in tables in memory, locations as numbers that mean the same in both."""

    def __init__(self, data: Data, source: Path) -> None:
        import duckdb

        self._connection = duckdb.connect(config={"threads": os.cpu_count() or 1})
        self.paths: dict[str, int] = {}
        self._load("old", data.records())
        say("reading the next day's records for the peers")
        self._load("new", Records.read(source))

    def _load(self, name: str, records: Records) -> None:
        import pyarrow as pa

        numbers = [self.paths.setdefault(path, len(self.paths) + 1) for path in records.paths]
        locations = np.array([0, *numbers], dtype=np.uint16)[records.locations]
        arrays = {
            "id": pa.array(records.ids),
            "score": pa.array(records.scores, mask=records.scores == UNSCORED),
            "location": pa.array(locations, mask=locations == 0),
        }
        self._connection.register("arrow", pa.table(arrays))
        self._connection.execute(f"CREATE TABLE {name} AS SELECT * FROM arrow")
        self._connection.unregister("arrow")

    def _rows(self, query: str) -> Any:
        """Arrays by column, as DuckDB hands them over fastest."""
        return self._connection.execute(query).fetchnumpy()

    def fastest_way(self) -> str:
        """Of several ways to ask about moves, the one that DuckDB answers fastest."""
        return fastest({way: partial(self._moves, way) for way in WAYS}, tries=2)

    def figures(self, way: str) -> dict[str, Any]:
        """All that is asked."""
        return {
            "moves": self._moves(way),
            "scores": [self._rows(f"SELECT score, count(*) AS n FROM {name} GROUP BY score") for name in TABLES],
            "places": [self._rows(PLACES.format(name)) for name in TABLES],
        }

    def _moves(self, way: str) -> list[Any]:
        """By move and by location, of the profiles that are in both."""
        prepare, from_where = WAYS[way]
        if prepare:
            self._connection.execute(prepare)
        if from_where is None:
            return [self._rows(SETS)]
        return [self._rows(query.format(from_where)) for query in (BY_MOVE, BY_PLACE)]


TABLES = ("old", "new")
PLACES = """
    SELECT location, score // 100 AS points, count(*) AS n, sum(score) AS total FROM {} GROUP BY location, points"""
PAIRS = """
    SELECT o.location AS location, o.score AS before, n.score AS after, n.score::INTEGER - o.score::INTEGER AS move
    FROM old o JOIN new n USING (id)"""
FIGURES = """
    count(*) AS both, count(move) AS scored, sum(move) AS total,
    count(*) FILTER (abs(move) > 500) AS over5, count(*) FILTER (abs(move) > 1000) AS over10,
    count(*) FILTER (before IS NOT NULL AND after IS NULL) AS became_unscored,
    count(*) FILTER (before IS NULL AND after IS NOT NULL) AS became_scored"""
BY_MOVE = "SELECT move, count(*) AS both FROM {} GROUP BY move"
BY_PLACE = f"SELECT location, {FIGURES} FROM {{}} GROUP BY location"
SETS = f"""
    SELECT grouping(location) AS by_move, location, move, {FIGURES} FROM ({PAIRS})
    GROUP BY GROUPING SETS ((location), (move))"""
WAYS = {
    "two joins": ("", f"({PAIRS})"),
    "one join into a temporary table": (f"CREATE OR REPLACE TEMP TABLE pairs AS {PAIRS}", "pairs"),
    "one join with grouping sets": ("", None),
}
"""What to do first, and from where to read then; None for grouping sets."""


def check(found: Comparison, duckdb: Duckdb) -> None:
    """Both say the same, whichever way DuckDB is asked."""
    for way in WAYS:
        figures = duckdb.figures(way)
        by_move, by_place = _split(figures["moves"])
        moves = {move - 9900: count for move, count in enumerate(found.moves.tolist()) if count}
        assert {move: count for move, count in by_move.items() if move is not None} == moves, way
        assert found.both == sum(by_move.values()), way
        for place, column in (("both", "scored"), ("over5", "over5"), ("over10", "over10")):
            _check_places(found.regions.names, getattr(found.regions, place), by_place[column], duckdb, way)
        assert sum(by_place["became_unscored"].values()) == found.became_unscored, way
        assert sum(by_place["became_scored"].values()) == found.became_scored, way
        for portrait, scores, places in zip((found.old, found.new), figures["scores"], figures["places"], strict=True):
            histogram = {score: n for score, n in _by_key(scores, "score", "n").items() if score is not None}
            assert histogram == {score: n for score, n in enumerate(portrait.histogram.tolist()) if n}
            _check_groups(portrait.regions, places, duckdb)


def _check_groups(regions: Groups, places: Any, duckdb: Duckdb) -> None:
    profiles: Counter[int | None] = Counter()
    for location, n in zip(_values(places["location"]), _values(places["n"]), strict=True):
        profiles[location] += n
    _check_places(regions.names, regions.profiles, profiles, duckdb, "profiles by location")


def _check_places(names: Iterable[str], counts: Any, by_place: Any, duckdb: Duckdb, what: str) -> None:
    """Counts by region against counts by location."""
    totals: Counter[str] = Counter()
    for path, number in duckdb.paths.items():
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            totals["/".join(parts[:depth])] += by_place.get(number, 0)
    assert {name: n for name, n in zip(names, counts.tolist(), strict=True) if n} == +totals, what


def _split(moves: list[Any]) -> tuple[dict[Any, int], dict[str, dict[Any, int]]]:
    """By move, and by column and location, from two results or from one with grouping sets."""
    if len(moves) == 1:
        by_move = moves[0]["by_move"] == 1
        moves = [{name: values[chosen] for name, values in moves[0].items()} for chosen in (by_move, ~by_move)]
    columns = ("scored", "over5", "over10", "became_unscored", "became_scored")
    return _by_key(moves[0], "move", "both"), {name: _by_key(moves[1], "location", name) for name in columns}


def _by_key(rows: Any, key: str, value: str) -> dict[Any, int]:
    return dict(zip(_values(rows[key]), _values(rows[value]), strict=True))


def _values(column: Any) -> list[Any]:
    """Numbers; None for nulls."""
    return list(np.ma.asarray(column).tolist())
