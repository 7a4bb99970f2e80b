"""What is measured on: synthetic profiles and the snapshots of them, kept in the cache folder for the next run."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

import kserve._core
import kserve._mapping
import kserve._rules
import kserve._writer
from bench._harness import Run, say
from kserve import Snapshot, synth
from kserve.settings import Settings
from kserve.snapshots.build import Options, build
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.orders import Orders
from kserve.synth import details, taxonomy
from kserve.synth.population import Population

U64 = npt.NDArray[np.uint64]
Kind = Literal["core", "topics", "five"]

DAY, SEED = 1, 1
PERIODS = ("day_change", "week_change", "month_change")
CORE = ("profile_id", "score", *PERIODS, "location", "opted_out")
UNSCORED, UNKNOWN_CHANGE = 0xFFFF, -32768
FIVE = 5
ROW_GROUP = 1 << 17


class Data:
    """The inputs and snapshots of one number of profiles.

    Kinds of input: ``core``, the columns of that name from kserve.synth; ``topics``, these and the topics that
    kserve.synth gives each profile; ``five``, the core columns and exactly five topics with scores for each.
    """

    def __init__(self, run: Run, profiles: int | None = None) -> None:
        self.profiles = profiles or run.profiles
        self.folder = run.cache / f"{self.profiles:012}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def input(self, kind: Kind = "core") -> Path:
        """The folder of Parquet parts of a kind, made if it is not there."""
        folder = self.folder / f"{kind}-input"
        if not folder.exists():
            say(f"making {self.profiles:,} synthetic profiles ({kind})")
            if kind == "core":
                synth.write(folder, synth.Plan(self.profiles, day=DAY, seed=SEED, columns="core"))
            else:
                _add_topics(self.input(), folder, self.profiles, kind)
        return folder

    def catalog(self, kind: Kind = "core") -> Catalog:
        """The data directory with the published snapshot of a kind, built if it is not there or not of this kserve."""
        catalog = Catalog(self.folder / kind)
        stamp = catalog.data / "BUILT-BY"
        if not stamp.exists() or stamp.read_text() != builder():
            shutil.rmtree(catalog.data, ignore_errors=True)
            self.publish(catalog, kind)
            stamp.write_text(builder())
        return catalog

    def publish(self, catalog: Catalog, kind: Kind = "core", days_later: int = 0) -> str:
        """Build and publish a version; the same profiles as of some days later are another version."""
        source = self.input(kind)
        say(f"building a snapshot of {self.profiles:,} profiles ({kind})")
        scored_at = synth.scored_at(DAY) + timedelta(days=days_later)
        candidate = build(catalog, source, _options(source, scored_at))
        catalog.place(candidate.version)
        Orders(catalog, Settings()).announce(candidate.version, against=catalog.live())
        return candidate.version

    def snapshot(self, kind: Kind = "core") -> Snapshot:
        """The published snapshot of a kind, all of it in memory."""
        snapshot = self.catalog(kind).open()
        snapshot.warm()
        return snapshot

    def records(self, kind: Kind = "core") -> Records:
        """The same profiles as numbers, read from the input without kserve."""
        say("reading the records for the peers")
        return Records.read(self.input(kind))


def builder() -> str:
    """A digest of the code that writes and reads snapshots: what other code has built is not measured."""
    modules = (kserve._core, kserve._mapping, kserve._rules, kserve._writer)
    return hashlib.sha256(b"".join(Path(str(module.__file__)).read_bytes() for module in modules)).hexdigest()


def _options(source: Path, scored_at: Any) -> Options:
    return Options(topics=source / "topics.csv", topic_edges=source / "topic_edges.csv", scored_at=scored_at)


def warm_input(folder: Path) -> int:
    """Read all parts once, so that they are in the page cache; how many bytes they have."""
    total = 0
    for file in sorted(folder.glob("*.parquet")):
        with file.open("rb") as opened:
            while chunk := opened.read(1 << 22):
                total += len(chunk)
    return total


def _add_topics(core: Path, out: Path, profiles: int, kind: Kind) -> None:
    """The parts of ``core`` with a column of topics; they are in the order of the population's slots."""
    draft = out.with_suffix(".partial")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    shutil.copy(core / "topics.csv", draft)
    shutil.copy(core / "topic_edges.csv", draft)
    first = 0
    for part in sorted(core.glob("*.parquet")):
        table = pq.read_table(part)
        topics = _five_topics(first, len(table)) if kind == "five" else _synth_topics(profiles, first, len(table))
        pq.write_table(table.append_column("topics", topics), draft / part.name, row_group_size=ROW_GROUP)
        first += len(table)
    draft.rename(out)


def _synth_topics(profiles: int, first: int, n: int) -> Any:
    """The topics of the profiles in these slots, as ``kserve synth`` with all columns has them."""
    cohort = Population(SEED, profiles, DAY).cohort(np.arange(first, first + n, dtype=np.uint64))
    offsets, (topic, score) = details.topics(cohort, taxonomy.popularity().choice)
    return _lists(offsets, topic, score)


def _five_topics(first: int, n: int) -> Any:
    """Five different topics for each profile."""
    slugs = len(taxonomy.popularity().slugs)
    start = np.random.default_rng(first).integers(0, slugs, n)
    topic = (start[:, None] + np.arange(FIVE) * (slugs // FIVE)) % slugs
    score = 100 + (topic * 37) % 9900
    return _lists(np.arange(0, FIVE * n + 1, FIVE), topic.ravel(), score.ravel())


def _lists(offsets: Any, topic: Any, hundredths: Any) -> Any:
    slugs = pa.array(taxonomy.popularity().slugs).take(pa.array(topic))
    elements = pa.StructArray.from_arrays([slugs, pa.array(hundredths / 100.0)], names=["topic", "score"])
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), elements)


@dataclass(frozen=True)
class Records:
    """n profiles that have not opted out, in the order of the input.

    ids: uint64[n]. scores: uint16[n], hundredths or UNSCORED. changes: int16[n, 3], hundredths or UNKNOWN_CHANGE.
    locations: uint32[n], 1 + index in ``paths``, 0 unknown. topics: None, or (int64[n + 1], uint16[total]): offsets and
    indexes in the list of slugs.
    """

    ids: U64
    scores: npt.NDArray[np.uint16]
    changes: npt.NDArray[np.int16]
    locations: npt.NDArray[np.uint32]
    paths: list[str]
    topics: tuple[npt.NDArray[np.int64], npt.NDArray[np.uint16]] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def read(cls, folder: Path) -> Records:
        """All parts of a folder."""
        numbers: dict[str, int] = {}
        parts = [_record_part(file, numbers) for file in sorted(folder.glob("*.parquet"))]
        topics = None
        if "topics" in parts[0]:
            lengths = np.concatenate([part["lengths"] for part in parts])
            topics = np.concatenate([[0], np.cumsum(lengths)]), np.concatenate([part["topics"] for part in parts])
        columns = {
            name: np.concatenate([part[name] for part in parts]) for name in ("ids", "scores", "changes", "locations")
        }
        return cls(**columns, paths=list(numbers), topics=topics)

    def sorted(self) -> Records:
        """By id, without topics."""
        return self[np.argsort(self.ids)]

    def __getitem__(self, rows: slice | npt.NDArray[np.int64]) -> Records:
        """Some rows, without topics."""
        return Records(self.ids[rows], self.scores[rows], self.changes[rows], self.locations[rows], self.paths)

    def packed(self) -> npt.NDArray[np.void]:
        """What a key-value store keeps of each: score, changes and location in 12 bytes."""
        rows = np.empty(len(self), dtype=[("score", "<u2"), ("changes", "<i2", 3), ("location", "<u4")])
        rows["score"], rows["changes"], rows["location"] = self.scores, self.changes, self.locations
        return rows.view("V12")

    def random_ids(self, n: int, seed: int) -> U64:
        """Ids of n profiles, drawn evenly."""
        return self.ids[np.random.default_rng(seed).integers(0, len(self), n)]

    def absent_ids(self, n: int) -> U64:
        """Ids that no profile has."""
        candidates = np.random.default_rng(3).integers(1, 1 << 63, 2 * n + 64, dtype=np.uint64)
        return candidates[~np.isin(candidates, self.ids)][:n]


def _record_part(file: Path, numbers: dict[str, int]) -> dict[str, Any]:
    """The columns of one part as arrays; ``numbers``: location path to number, grows."""
    names = pq.read_schema(file).names
    table = pq.read_table(file, columns=[name for name in names if name != "topics"], read_dictionary=["location"])
    stays = ~table["opted_out"].to_numpy(zero_copy_only=False)
    part = {
        "ids": table["profile_id"].to_numpy()[stays],
        "scores": _hundredths(table["score"], UNSCORED).astype(np.uint16)[stays],
        "changes": np.stack([_hundredths(table[name], UNKNOWN_CHANGE) for name in PERIODS], axis=1).astype(np.int16)[
            stays
        ],
        "locations": np.concatenate([_locations(chunk, numbers) for chunk in table["location"].chunks])[stays],
    }
    return part | (_topics_of(file, stays) if "topics" in names else {})


def _hundredths(column: Any, missing: int) -> npt.NDArray[np.float64]:
    values = column.to_numpy()
    return np.where(np.isnan(values), missing, np.rint(values * 100))


def _locations(chunk: Any, numbers: dict[str, int]) -> Any:
    """uint32[n]."""
    own = [numbers.setdefault(path, len(numbers) + 1) for path in chunk.dictionary.to_pylist()]
    table = np.array([0, *own], dtype=np.uint32)
    return table[chunk.indices.fill_null(-1).to_numpy() + 1]


def _topics_of(file: Path, stays: npt.NDArray[np.bool_]) -> dict[str, Any]:
    place = {slug: index for index, slug in enumerate(taxonomy.popularity().slugs)}
    lists = pq.read_table(file, columns=["topics"])["topics"].combine_chunks()
    slugs = lists.flatten().field("topic").dictionary_encode()
    codes = np.array([place[slug] for slug in slugs.dictionary.to_pylist()], dtype=np.uint16)
    lengths = np.diff(lists.offsets.to_numpy())
    return {"lengths": lengths[stays], "topics": codes[slugs.indices.to_numpy()][np.repeat(stays, lengths)]}


def chunks(records: Records, order: str, size: int = 200_000) -> Iterator[list[tuple[bytes, bytes]]]:
    """Records, which are sorted, as (key, value) for stores of bytes; ``order``: byte order of the keys, < or >."""
    values = records.packed()
    for start in range(0, len(records), size):
        stop = min(start + size, len(records))
        yield list(zip(keys(records.ids[start:stop], order), values[start:stop].tolist(), strict=True))


def keys(ids: U64, order: str) -> list[bytes]:
    """Ids as 8 bytes each."""
    content = ids.astype(f"{order}u8").tobytes()
    return [content[at : at + 8] for at in range(0, len(content), 8)]
