"""The taxonomy of topics, a directed acyclic graph: from the two CSV files that Klout published, or plainer ones."""

from __future__ import annotations

import csv
import graphlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from kserve._columns import MAX_TEXT
from kserve.errors import InputError
from kserve.snapshots.columns import MAX_TOPIC_NUMBER
from kserve.vocabulary import TopicRow

ROOT = "_ROOT_"
"""In edges: the parent of topics that have none."""
MISSPELT = {"parrentTopicSlug": "parentTopicSlug"}
"""Headers as Klout's files have them, to what they mean."""

Row = dict[str, str]


class _End(NamedTuple):
    """The topic at one end of an edge, as the edge has it."""

    topic_id: int | None
    slug: str

    def __str__(self) -> str:
        return self.slug if self.topic_id is None else f"{self.slug} (id {self.topic_id})"


@dataclass(frozen=True, slots=True)
class Taxonomy:
    """Topics in the order of their file, each with the indexes of its parents.

    ``faults``: what was wrong with the files and could be set right, in sentences that name the file.
    """

    rows: tuple[TopicRow, ...]
    faults: tuple[str, ...] = ()

    @classmethod
    def load(cls, topics: str | Path, edges: str | Path | None = None) -> Self:
        """Read the files; without edges no topic is below another.

        topics: CSV with the columns topicSlug and, if there, topicId (unsigned 64-bit) and topicDisplayName. edges: CSV
        with parentTopicSlug and childTopicSlug and, if there, parentTopicId and childTopicId. An edge belongs to the
        topics that have its slugs; its ids count where no topic has the slug. Other columns are left alone.

        Raises InputError naming file, row, field: a missing file or column, broken UTF-8, an id that is none, more than
        65,534 topics, or a cycle, which it prints.
        """
        loader = _Loader(Path(topics))
        loader.read_topics()
        if edges is not None:
            loader.read_edges(Path(edges))
        return cls(tuple(loader.rows), tuple(loader.faults))

    def table(self) -> list[TopicRow]:
        """Rows for a snapshot's topic table: topic id or None, slug, name, indexes of the parents. Free to change."""
        return [(topic_id, slug, name, list(parents)) for topic_id, slug, name, parents in self.rows]


class _Loader:
    def __init__(self, topics: Path) -> None:
        self._file = topics
        self.rows: list[TopicRow] = []
        self.faults: list[str] = []
        self._by_slug: dict[str, int] = {}
        self._by_id: dict[int | None, int] = {}
        self._ends: dict[_End, int | None] = {}

    def read_topics(self) -> None:
        """Fill ``rows``."""
        for number, row in _read(self._file, ("topicSlug",), self.faults):
            slug = row.get("topicSlug", "")
            topic_id = _parse_id(self._file, number, row, "topicId")
            if self._is_new(number, slug, topic_id):
                self._by_slug[slug] = len(self.rows)
                self.rows.append((topic_id, slug, row.get("topicDisplayName") or slug, []))
        if not self.rows:
            raise InputError("no topics", file=self._file, remedy="write them, or build without --topics")

    def _is_new(self, number: int, slug: str, topic_id: int | None) -> bool:
        where = f"{self._file}, row {number}"
        if not slug or slug == ROOT or len(slug.encode()) > MAX_TEXT:
            self.faults.append(f"{where}: {slug[:40]!r} cannot be a topic's slug: left out")
            return False
        if slug in self._by_slug:
            self.faults.append(f"{where}: topic {slug!r} is there already: left out")
            return False
        if len(self.rows) == MAX_TOPIC_NUMBER:
            raise InputError(f"more than {MAX_TOPIC_NUMBER} topics", file=self._file, remedy="split the taxonomy")
        if topic_id is not None:
            first = self._by_id.setdefault(topic_id, len(self.rows))
            if first != len(self.rows):
                self.faults.append(f"{where}: {slug!r} has the id of {self.rows[first][1]!r}, {topic_id}: both kept")
        return True

    def read_edges(self, file: Path) -> None:
        """Fill the parents of ``rows``."""
        dropped: Counter[_End] = Counter()
        repeated = 0
        for number, row in _read(file, ("parentTopicSlug", "childTopicSlug"), self.faults):
            ends = [_end(file, number, row, side) for side in ("parent", "child")]
            if ends[0].slug == ends[1].slug == ROOT:
                self.faults.append(f"{file}, row {number}: an edge from {ROOT} to itself: ignored")
                continue
            found = [self._find(file, end) for end in ends if end.slug != ROOT]
            dropped.update(end for end in ends if end.slug != ROOT and self._ends[end] is None)
            if len(found) == 2 and found[0] is not None and found[1] is not None:
                repeated += self._is_repeated(parent=found[0], child=found[1])
        for end, edges in dropped.items():
            self.faults.append(f"{file}: {self._file} has no topic {end}: {edges} edges dropped")
        if repeated:
            self.faults.append(f"{file}: {repeated} edges are there more than once: taken once")
        self._refuse_cycles(file)

    def _is_repeated(self, parent: int, child: int) -> bool:
        parents = self.rows[child][3]
        if parent in parents:
            return True
        parents.append(parent)
        return False

    def _find(self, file: Path, end: _End) -> int | None:
        """Index of the topic at an end of an edge; a disagreement of the files is reported once."""
        if end not in self._ends:
            index = self._by_slug.get(end.slug)
            if index is None and end.topic_id in self._by_id:
                index = self._by_id[end.topic_id]
                self.faults.append(f"{file}: {end} is {self.rows[index][1]} in {self._file}: matched by id")
            elif index is not None and end.topic_id not in (None, self.rows[index][0]):
                self.faults.append(f"{file}: {end} has id {self.rows[index][0]} in {self._file}: matched by slug")
            self._ends[end] = index
        return self._ends[end]

    def _refuse_cycles(self, file: Path) -> None:
        try:
            graphlib.TopologicalSorter({index: row[3] for index, row in enumerate(self.rows)}).prepare()
        except graphlib.CycleError as error:
            path = " -> ".join(self.rows[index][1] for index in error.args[1])
            raise InputError(f"a cycle of topics: {path}", file=file, remedy="remove one of these edges") from None


def _read(file: Path, required: tuple[str, ...], faults: list[str]) -> Iterator[tuple[int, Row]]:
    """Rows of a CSV file with their numbers, the first after the header being 1; headers are put right."""
    with _reading(file), file.open(encoding="utf-8-sig", newline="") as opened:
        lines = csv.DictReader(opened, restval="", strict=True)
        names = list(lines.fieldnames or ())
        for name in MISSPELT.keys() & set(names):
            faults.append(f"{file}: the header {name} is misspelt: taken for {MISSPELT[name]}")
        lines.fieldnames = [MISSPELT.get(name, name) for name in names]
        for name in required:
            if name not in lines.fieldnames:
                has = ", ".join(names) or "none"
                raise InputError(f"there is no such column; there are: {has}", file=file, field=name, remedy="write it")
        yield from enumerate(lines, 1)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8: {error.reason}", file=file, remedy="convert it to UTF-8") from error
    except csv.Error as error:
        raise InputError(f"not CSV: {error}", file=file, remedy="write it again") from error
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=file, remedy="name a CSV file") from error


def _end(file: Path, number: int, row: Row, side: str) -> _End:
    return _End(_parse_id(file, number, row, f"{side}TopicId"), row[f"{side}TopicSlug"])


def _parse_id(file: Path, number: int, row: Row, column: str) -> int | None:
    text = row.get(column, "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and int(text) < 1 << 64):
        remedy = "topic ids are whole numbers below 2^64, or empty"
        raise InputError(f"{text[:40]!r} is no topic id", file=file, row=number, field=column, remedy=remedy)
    return int(text)
