"""count(rule) over all profiles: score, topic and location together.

The rate counts only what any reader of these columns has to touch: the whole score column, the 64-byte lines of the
location column in which some profile has such a score, and for the profiles that remain the lines with their topic
counts, starts and entries. It is held against a C loop that adds all words of the same mapping, with as many threads.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import _kernels
from bench._data import UNSCORED, Data, Records
from bench._harness import Report, Run, Stopwatch, fastest, interleave, ratios
from kserve import Rule, Snapshot
from kserve.synth import taxonomy

RULES = {
    "broad": Rule(
        min_score=12, any_topics=("technology", "science", "business", "entertainment"), locations=("US", "GB", "IN")
    ),
    "usual": Rule(min_score=35, any_topics=("entertainment",), locations=("US",)),
    "narrow": Rule(min_score=60, any_topics=("jazz",), locations=("US/New York",)),
}
ROUNDS = 15
LINE = 64
RATE_BAR, DUCKDB_BAR = 0.6, 3
SECTIONS = ("scores", "locations", "topic_counts", "topic_starts", "topic_ids")
Bools = npt.NDArray[np.bool_]


def measure(run: Run) -> Report:
    """Milliseconds a count, and GB/s."""
    data = Data(run)
    report = Report("count", "count(rule) with score, topic and location")
    records, snapshot = data.records("topics"), data.snapshot("topics")
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        reader = Reader(snapshot, run, threads)
        duckdb = None
        with report.optional("duckdb"):
            run.require("duckdb", module="duckdb")
            duckdb = Duckdb(records)
        for name, rule in RULES.items():
            _measure_rule(run, report, name, Question(rule, records, snapshot), reader, duckdb)
    total = sum(snapshot.sections()[section]["length"] for section in SECTIONS)
    report.notes.append(f"{os.cpu_count()} threads each; all of these columns are {total / 1e6:,.0f} MB")
    return report


def _measure_rule(
    run: Run, report: Report, name: str, question: Question, reader: Reader, duckdb: Duckdb | None
) -> None:
    snapshot, rule = question.snapshot, question.rule
    touched = question.touched()
    contenders: dict[str, Callable[[], float]] = {
        f"{name}: kserve": lambda: timed(lambda: snapshot.count(rule)),
        f"{name}: reading": lambda: timed(reader.read),
    }
    answers = {"kserve": snapshot.count(rule)}
    with report.optional("numpy"):
        run.require("numpy")
        answers["numpy"] = question.count_numpy()
        contenders[f"{name}: numpy"] = lambda: timed(question.count_numpy)
    if duckdb is not None:
        way, query = duckdb.fastest_query(question)
        answers["duckdb"] = duckdb.count(query)
        contenders[f"{name}: duckdb"] = lambda: timed(lambda: duckdb.count(query))
        report.notes.append(f"{name}: DuckDB looks at topics by {way}")
    assert len(set(answers.values())) == 1, f"they count differently: {answers}"
    seconds = interleave(contenders, run.rounds_or(ROUNDS))
    own, reading = seconds[f"{name}: kserve"], seconds.pop(f"{name}: reading")
    report.add_seconds(seconds, "ms")
    rates = [sum(touched.values()) / 1e9 / value for value in own]
    sequential = [snapshot.nbytes / 1e9 / value for value in reading]
    report.add(f"{name}: kserve's rate", "GB/s", rates, more=True)
    report.add(f"{name}: reading in sequence", "GB/s", sequential, more=True)
    report.bar(f"count, {name}: rate / reading in sequence", ratios(rates, sequential), "at least", RATE_BAR)
    if duckdb is not None:
        report.bar(f"count, {name}: DuckDB / kserve", ratios(seconds[f"{name}: duckdb"], own), "at least", DUCKDB_BAR)
    columns = ", ".join(f"{kind} {size / 1e6:,.1f}" for kind, size in touched.items())
    report.notes.append(
        f"{name}: {rule.to_dict()}: {answers['kserve']:,} of {len(question.records):,}; MB touched: {columns}"
    )


def timed(function: Callable[[], object]) -> float:
    """Seconds."""
    with Stopwatch() as watch:
        function()
    return watch.seconds


class Reader:
    """Reads a whole mapping with as many threads as count() has."""

    def __init__(self, snapshot: Snapshot, run: Run, threads: ThreadPoolExecutor) -> None:
        self._kernels = _kernels.load(run.cache)
        self._threads = threads
        address, parts = _kernels.address_of(snapshot), os.cpu_count() or 1
        edges = [snapshot.nbytes * i // parts // LINE * LINE for i in range(parts + 1)]
        self._parts = [(address + start, (stop - start) // 8) for start, stop in pairwise(edges)]

    def read(self) -> list[int]:
        """The sums of the words, by part."""
        return list(
            self._threads.map(lambda part: self._kernels.read_through(ctypes.c_void_p(part[0]), part[1]), self._parts)
        )


class Question:
    """One rule, in the numbers of the records and of the file."""

    def __init__(self, rule: Rule, records: Records, snapshot: Snapshot) -> None:
        self.rule, self.records, self.snapshot = rule, records, snapshot
        self.lowest = round((rule.min_score or 0) * 100)
        self.places = np.array([0, *(_inside(path, rule.locations) for path in records.paths)], dtype=bool)
        slugs = taxonomy.popularity().slugs
        covered = below(rule.any_topics)
        self.topics = np.array([slug in covered for slug in slugs], dtype=bool)

    def count_numpy(self) -> int:
        """The answer from the records, column by column."""
        scores, locations = self.records.scores, self.records.locations
        assert self.records.topics is not None
        offsets, topics = self.records.topics
        rows = np.flatnonzero((scores >= self.lowest) & (scores != UNSCORED))
        rows = rows[self.places[locations[rows]]]
        starts, lengths = offsets[rows], offsets[rows + 1] - offsets[rows]
        owners = np.repeat(np.arange(len(rows)), lengths)
        entries = np.arange(len(owners)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + starts[owners]
        owners = owners[self.topics[topics[entries]]]
        return int(np.count_nonzero(np.diff(owners, prepend=-1)))

    def touched(self) -> dict[str, int]:
        """Bytes by section, in whole lines, that any reader of the file has to touch."""
        scores = self._section("scores", np.uint16)
        passed = (scores >= self.lowest) & (scores != UNSCORED)
        allowed = np.array([0, *(_inside(path, self.rule.locations) for path in self.snapshot.locations())], dtype=bool)
        location_lines = passed.reshape(-1, LINE // 4).any(axis=1)
        slots = np.flatnonzero(passed)
        slots = slots[allowed[self._section("locations", np.uint32)[slots]]]
        lines, within = slots // 4, slots % 4
        counts = self._section("topic_counts", np.uint8).reshape(-1, 4)[lines].astype(np.int64)
        before = np.where(np.arange(4) < within[:, None], counts, 0).sum(axis=1)
        start = self._section("topic_starts", np.uint64)[lines].astype(np.int64) + before
        count = counts[np.arange(len(slots)), within]
        first, last = start[count > 0] * 2 // LINE, ((start + count) * 2 - 1)[count > 0] // LINE
        return {
            "scores": self.snapshot.sections()["scores"]["length"],
            "locations": LINE * int(np.count_nonzero(location_lines)),
            "topic_counts": LINE * len(np.unique(slots // LINE)),
            "topic_starts": LINE * len(np.unique(lines * 8 // LINE)),
            "topic_ids": LINE * len(np.unique(np.concatenate([first, last]))),
        }

    def _section(self, name: str, dtype: Any) -> Any:
        section = self.snapshot.sections()[name]
        shape = section["length"] // np.dtype(dtype).itemsize
        return np.memmap(self.snapshot.path, dtype, "r", section["offset"], (shape,))


def _inside(path: str, prefixes: tuple[str, ...]) -> bool:
    return any(path == prefix or path.startswith(prefix + "/") for prefix in prefixes)


def below(slugs: tuple[str, ...]) -> set[str]:
    """Topics and all below them in the synthetic taxonomy."""
    covered = set(slugs)
    while more := {t.slug for t in taxonomy.topics() if covered & set(t.parents)} - covered:
        covered |= more
    return covered


class Duckdb:
    """The same columns in an in-memory table. Locations are numbered by path, so that a prefix is a range."""

    def __init__(self, records: Records) -> None:
        import duckdb
        import pyarrow as pa

        assert records.topics is not None
        offsets, topics = records.topics
        order = sorted(range(len(records.paths)), key=records.paths.__getitem__)
        self._number = {records.paths[index]: number for number, index in enumerate(order, 1)}
        renumbered = np.array([0, *(self._number[path] for path in records.paths)], dtype=np.uint16)
        lists = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(topics))
        arrays = {
            "score": pa.array(records.scores, mask=records.scores == UNSCORED),
            "location": pa.array(renumbered[records.locations]),
            "topics": lists,
        }
        self._connection = duckdb.connect(config={"threads": os.cpu_count() or 1})
        self._connection.register("arrow", pa.table(arrays))
        self._connection.execute("CREATE TABLE profiles AS SELECT * FROM arrow")
        self._connection.execute(
            "CREATE TABLE topic_rows AS SELECT rowid AS profile, unnest(topics) AS topic FROM profiles"
        )
        self._connection.unregister("arrow")

    def count(self, query: str) -> int:
        """The answer."""
        return int(self._connection.execute(query).fetchall()[0][0])

    def fastest_query(self, question: Question) -> tuple[str, str]:
        """Of several ways to ask about topics, the one that DuckDB answers fastest; and the query."""
        ranges = " OR ".join(
            f"location BETWEEN {low} AND {high}" for low, high in self._ranges(question.rule.locations)
        )
        plain = f"score >= {question.lowest} AND ({ranges})"
        topics = ", ".join(map(str, np.flatnonzero(question.topics)))
        ways = {
            "list_has_any": f"list_has_any(topics, [{topics}]::USMALLINT[])",
            "list_filter": f"len(list_filter(topics, lambda x: x IN ({topics}))) > 0",
            "a table of profile and topic": f"rowid IN (SELECT profile FROM topic_rows WHERE topic IN ({topics}))",
        }
        queries = {name: f"SELECT count(*) FROM profiles WHERE {plain} AND {way}" for name, way in ways.items()}
        best = fastest({name: partial(self.count, query) for name, query in queries.items()})
        return best, queries[best]

    def _ranges(self, prefixes: tuple[str, ...]) -> list[tuple[int, int]]:
        """First and last number of each run of locations below the prefixes."""
        numbers = sorted(number for path, number in self._number.items() if _inside(path, prefixes))
        cuts = [0, *(i for i in range(1, len(numbers)) if numbers[i] != numbers[i - 1] + 1), len(numbers)]
        return [(numbers[a], numbers[b - 1]) for a, b in pairwise(cuts) if a < b]
