"""From a pipeline's output to a sealed candidate: ingest types and counts rows, the writer fills and seals the file."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import kserve
from kserve._core import Snapshot
from kserve._writer import Writer, differences
from kserve.errors import InputError, SnapshotError
from kserve.snapshots.catalog import MANIFEST, PERIODS, SNAPSHOT, Catalog
from kserve.snapshots.columns import U64, Columns, Dictionaries, Fault, Reason
from kserve.snapshots.durable import storage, write_file
from kserve.snapshots.ingest import Source
from kserve.snapshots.rejects import Rejects
from kserve.snapshots.taxonomy import Taxonomy

Report = Callable[[str, int, int], None]
"""Called with the stage ("rows" or "bytes"), how much of it is done, and how much there is."""

EXAMPLES = 3

OPTED_OUT = "opted_out.u64"
"""Beside a snapshot: the ids of rows that said so, uint64, little-endian, sorted."""

_UNKNOWN_WHO = [reason for reason in Reason if reason <= Reason.duplicate_id or reason == Reason.bad_opt_out]
"""Rows rejected for these do not say who has opted out; all others do, whatever else is wrong with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a build may be told. ``scored_at`` must be aware; by default it is the input manifest's, else now."""

    rename: Mapping[str, str] = field(default_factory=dict)
    topics: Path | None = None
    topic_edges: Path | None = None
    scored_at: datetime | None = None
    max_rejects: int = 0
    rejects: Path | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sealed candidate, its manifest, and what its builder wants people to know."""

    version: str
    manifest: dict[str, Any]
    warnings: tuple[str, ...]


def build(
    catalog: Catalog, source: str | Path, options: Options | None = None, report: Report | None = None
) -> Candidate:
    """Build a candidate in the data directory. Until it is whole and on disk, nothing of it is in sight.

    Raises InputError, StorageError, SettingError for options that do not fit together.
    """
    options = options or Options()
    report = report or (lambda stage, done, total: None)
    taxonomy = Taxonomy.load(options.topics, options.topic_edges) if options.topics else None
    if options.topic_edges and not options.topics:
        raise InputError("edges without topics", file=options.topic_edges, remedy="give --topics FILE too")
    reader = Source(source, rename=options.rename)
    with catalog.working_folder() as work:
        return _Build(catalog, reader, taxonomy, options, report, work / "candidate").run()


class _Build:
    """The stages of one build, in order."""

    def __init__(
        self,
        catalog: Catalog,
        source: Source,
        taxonomy: Taxonomy | None,
        options: Options,
        report: Report,
        folder: Path,
    ) -> None:
        self.catalog = catalog
        self.source = source
        self.taxonomy = taxonomy
        self.options = options
        self.report = report
        self.folder = folder
        self.scored_at, self.scored_at_from = _scored_at(options, source)
        self.earlier, self.unusable = catalog.earlier(self.scored_at)
        self.words = Dictionaries(taxonomy)
        self.rows: Counter[str] = Counter()
        self.opted_out: list[U64] = []
        self.opted_out_rows = 0
        self.duplicates: list[int] = []

    def run(self) -> Candidate:
        self.folder.mkdir()
        with Rejects(self._rejects_file()) as rejects:
            version = self._write(rejects)
        snapshot = Snapshot(self.folder / SNAPSHOT)
        erased = self._check_opt_outs(snapshot)
        write_file(self.folder / OPTED_OUT, erased.astype("<u8").tobytes(), mode=0o444)
        manifest = self._manifest(snapshot, rejects, erased)
        write_file(self.folder / MANIFEST, json.dumps(manifest, indent=2).encode() + b"\n", mode=0o444)
        self.catalog.adopt(self.folder, version)
        return Candidate(version, manifest, self._warnings())

    def _rejects_file(self) -> Path:
        if self.options.rejects is not None:
            return self.options.rejects
        with storage("preparing the rejects file"):
            folder = self.catalog.data / "rejects"
            folder.mkdir(exist_ok=True)
            return folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.csv"

    def _write(self, rejects: Rejects) -> str:
        writer = Writer(self.folder / SNAPSHOT, self.source.rows_at_most, self._columns())
        with closing(writer), ThreadPoolExecutor(1) as background:
            for batch in self.source.batches(self.words):
                self._add(writer, batch, rejects)
            self._check(rejects)
            if writer.profiles == 0:
                raise InputError(
                    "no row is left to serve: all were rejected or have opted out", file=self.source.parts[0].path
                )
            self.digests = background.submit(lambda: [part.digest() for part in self.source.parts])
            version, disputed = writer.finish(
                self.scored_at,
                self.words.topic_table,
                self.words.location_table,
                self.options.max_rejects + EXAMPLES,
                lambda *done: self.report("bytes", *done),
            )
            self.digests.result()
        self._refuse_disputed(disputed, rejects)
        return str(version)

    def _columns(self) -> set[str]:
        return set(self.source.columns) | {f"{period}_change" for period in self.earlier}

    def _add(self, writer: Writer, batch: Columns, rejects: Rejects) -> None:
        for period, snapshot in self.earlier.items():
            if f"{period}_change" not in self.source.columns:
                setattr(batch, period, differences(batch.scores, snapshot.hundredths(batch.ids)))
        codes = writer.add(batch, int(Reason.duplicate_id))
        rejects.add(batch, codes)
        self.duplicates += batch.ids[codes != 0][: EXAMPLES - len(self.duplicates)].tolist()
        if batch.opted_out is not None:
            erased = (batch.opted_out != 0) & ~np.isin(batch.reject, _UNKNOWN_WHO)
            self.opted_out.append(batch.ids[erased])
            self.opted_out_rows += int(np.count_nonzero(erased & (batch.reject == 0)))
        self.rows[batch.part] += len(batch)
        self.report("rows", self.rows.total(), max(self.rows.total(), self.source.rows_at_most))

    def _check(self, rejects: Rejects) -> None:
        also = self._places(self.duplicates) if self.duplicates and rejects.total > self.options.max_rejects else ""
        rejects.check(self.options.max_rejects, also=also)

    def _places(self, ids: Iterable[int]) -> str:
        """Where each of these profile ids stands, all rows."""
        found = self.source.locate(list(ids))
        return "; ".join(
            f"profile {profile_id} is in {' and '.join(f'{part} row {row}' for part, row in places)}"
            for profile_id, places in found.items()
        )

    def _refuse_disputed(self, disputed: list[tuple[str, str, int, int]], rejects: Rejects) -> None:
        """Identities that two profiles claim are rejects; when they are allowed, neither profile is found by them."""
        if not disputed:
            return
        places = self.source.locate({profile_id for dispute in disputed for profile_id in dispute[2:]})
        for column, text, first, second in disputed:
            part, row = places[second][0]
            other = " row ".join(map(str, places[first][0]))
            value = f"{text} (also of profile {first}, {other})"
            rejects.extend([Fault(part, row, column, Reason.duplicate_identity, value, second)])
        rejects.check(self.options.max_rejects)

    def _check_opt_outs(self, snapshot: Snapshot) -> U64:
        """Who has opted out, sorted. If they stand in another row too, they must not be served, whatever is allowed."""
        ids = np.concatenate(self.opted_out) if self.opted_out else np.empty(0, np.uint64)
        unique, counts = np.unique(ids, return_counts=True)
        bad = np.concatenate([unique[snapshot.hundredths(unique) != 0], unique[counts > 1]])[:EXAMPLES]
        if len(bad):
            raise InputError(
                f"profiles that have opted out stand in more than one row: {self._places(bad.tolist())}",
                field="opted_out",
                remedy="an opt-out holds for the person: write one row a profile",
            )
        return unique

    def _manifest(self, snapshot: Snapshot, rejects: Rejects, erased: U64) -> dict[str, Any]:
        return {
            "version": snapshot.version,
            "parent": self.catalog.live(),
            "scored_at": self.scored_at.isoformat(),
            "scored_at_from": self.scored_at_from,
            "built_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "tool": f"kserve {kserve.__version__}",
            "rows": {
                "read": self.rows.total(),
                "taken": snapshot.profiles,
                "opted_out": self.opted_out_rows,
                "rejected": {reason.name: count for reason, count in rejects.counts.items()},
            },
            "profiles": snapshot.profiles,
            "scored": snapshot.scored,
            "unscored": snapshot.profiles - snapshot.scored,
            "topics": len(self.words.topic_table),
            "locations": len(self.words.location_table),
            "changes_from": {period: self._change_source(period) for period in PERIODS},
            "file_bytes": snapshot.nbytes,
            "schema": {"format": snapshot.format, "columns": list(snapshot.columns)},
            "sections": {
                name: section | {"checksum": f"{section['checksum']:016x}"}
                for name, section in snapshot.sections().items()
            },
            "opted_out": {
                "count": len(erased),
                "sha256": hashlib.sha256(erased.astype("<u8").tobytes()).hexdigest(),
            },
            "input": self.source.manifest,
            "parts": [
                {"name": part.name, "rows": self.rows[part.name], "bytes": part.bytes, "sha256": digest}
                for part, digest in zip(self.source.parts, self.digests.result(), strict=True)
            ],
            "warnings": list(self._warnings()),
        }

    def _change_source(self, period: str) -> str | None:
        """Where a change comes from: "input", the version that was compared with, or None."""
        if f"{period}_change" in self.source.columns:
            return "input"
        return self.earlier[period].version if period in self.earlier else None

    def _warnings(self) -> tuple[str, ...]:
        unknown = self.source.unknown_columns
        faults = self.taxonomy.faults if self.taxonomy is not None else ()
        notes = list(self.unusable)
        notes += [f"columns that kserve does not know, left out: {', '.join(unknown)}"] if unknown else []
        if self.scored_at_from == "clock":
            notes.append("the input does not say when it was scored: the time of this build stands in for it")
        return (*notes, *faults)


def opted_out_ids(folder: Path) -> U64 | None:
    """Who had opted out in the input of a version: uint64[n], sorted; None for one that was built before this was kept.

    Raises SnapshotError when the file is not as it was built.
    """
    file = folder / OPTED_OUT
    try:
        content = file.read_bytes()
        told = json.loads((folder / MANIFEST).read_bytes()).get("opted_out")
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise SnapshotError(file, "opt-outs", str(error)) from None
    if told is None or hashlib.sha256(content).hexdigest() != told["sha256"]:
        raise SnapshotError(file, "opt-outs", "the list is not the one that was built")
    return np.frombuffer(content, "<u8").astype(np.uint64)


def _scored_at(options: Options, source: Source) -> tuple[datetime, str]:
    """When the scores were made, in whole seconds, and who says so."""
    if options.scored_at is not None:
        moment = options.scored_at.astimezone(UTC).replace(microsecond=0)
        if moment.year < 1970:
            raise InputError(f"scored_at {moment.isoformat()} is before 1970", remedy="give --scored-at as it was")
        return moment, "option"
    if source.manifest is not None and "scored_at" in source.manifest:
        return _parsed_time(source.manifest["scored_at"], source).replace(microsecond=0), "manifest"
    return datetime.now(UTC).replace(microsecond=0), "clock"


def _parsed_time(text: Any, source: Source) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        moment = None
    if moment is None or moment.tzinfo is None or moment.year < 1970:
        raise InputError(
            f"scored_at {text!r} is no time with a time zone",
            file=source.parts[0].path.parent,
            remedy='write it as "2026-11-21T04:00:00Z" in the manifest, or give --scored-at',
        )
    return moment.astimezone(UTC)
