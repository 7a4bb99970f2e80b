"""The versions in a data directory: which there are, which one is announced, and the steps from candidate to announced.

candidates/VERSION/     snapshot.kss and manifest.json of a sealed candidate
snapshots/VERSION/      the same of a published version: the folder is moved, its files never change
CURRENT                 the name of the announced version
DOORBELL                rung after CURRENT was replaced
announcements.jsonl     what was announced, and when
work/                   files in the making
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import msgspec

from kserve._core import Snapshot
from kserve._doorbell import Doorbell
from kserve.errors import NothingPublished, SnapshotError, UnknownVersion
from kserve.snapshots.durable import lock, replace_file, storage, sync_directory, working_folder

log = logging.getLogger("kserve.catalog")

State = Literal["candidate", "published", "announced", "retired"]
Progress = Callable[[int, int], None]
Done = Callable[[str], None]

STEPS = ("verify", "rename", "announce")
"""Of a publish, in order."""

SNAPSHOT = "snapshot.kss"
MANIFEST = "manifest.json"
PERIODS = {"day": 1, "week": 7, "month": 30}
"""Days between a snapshot and the one that its changes are measured against."""

TOLERANCE = timedelta(hours=12)
"""How far a snapshot may lie from exactly 1, 7 or 30 days before, to be compared with."""

_VERSION = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class Version:
    """One line of the history. Times are aware UTC; ``announced_at`` is the last time, None if it never was."""

    name: str
    state: State
    scored_at: datetime
    profiles: int
    scored: int
    file_bytes: int
    built_at: datetime
    announced_at: datetime | None


class Announcement(msgspec.Struct, frozen=True):
    """A line of announcements.jsonl."""

    version: str
    at: datetime
    previous: str | None


class Catalog:
    """The data directory of a host. Methods that write raise StorageError, and Busy while another publisher works."""

    def __init__(self, data: str | os.PathLike[str]) -> None:
        self.data = Path(data)
        self.candidates = self.data / "candidates"
        self.snapshots = self.data / "snapshots"
        self._current = self.data / "CURRENT"
        self._bell = self.data / "DOORBELL"
        self._log = self.data / "announcements.jsonl"

    def announced(self) -> str | None:
        """The version in force, or None when nothing was announced yet. Raises SnapshotError for a damaged CURRENT."""
        try:
            with self._current.open("rb") as file:
                name = file.read(64).decode("ascii", "replace").strip()
        except FileNotFoundError:
            return None
        if not _VERSION.fullmatch(name):
            raise SnapshotError(self._current, "announcement", f"{name!r} is no version")
        return name

    def live(self) -> str | None:
        """The version in force, None too when CURRENT is damaged: that must not keep anyone from publishing."""
        try:
            return self.announced()
        except SnapshotError as error:
            log.error("%s; the next publish replaces it", error)
            return None

    def doorbell(self) -> Doorbell | None:
        """To wait for announcements; None as long as nobody has published here."""
        try:
            return Doorbell(self._bell)
        except OSError:
            return None

    def open(self, version: str | None = None) -> Snapshot:
        """A published version, by default the announced one. Raises NothingPublished, UnknownVersion, SnapshotError."""
        name = version or self.announced()
        if name is None:
            raise NothingPublished(
                f"nothing is published in {self.data}: run `kserve publish INPUT --data {self.data}`"
            )
        return self._open(self.snapshots / name)

    def folder(self, version: str) -> Path:
        """Where a version lies, as a candidate or published. Raises UnknownVersion."""
        if _VERSION.fullmatch(version):
            for parent in (self.candidates, self.snapshots):
                if (parent / version).is_dir():
                    return parent / version
        raise UnknownVersion(f"no version {version} in {self.data}: `kserve history` lists those that there are")

    def fingerprint(self, version: str) -> tuple[int, ...]:
        """What changes when the file of a published version is put in place again; () when there is none."""
        try:
            status = (self.snapshots / version / SNAPSHOT).stat()
        except OSError:
            return ()
        return status.st_ino, status.st_mtime_ns, status.st_size

    def manifest(self, version: str) -> dict[str, Any]:
        """What the builder wrote about a version."""
        file = self.folder(version) / MANIFEST
        try:
            manifest: dict[str, Any] = json.loads(file.read_bytes())
        except (OSError, ValueError) as error:
            raise SnapshotError(file, "manifest", str(error)) from None
        return manifest

    def versions(self) -> list[Version]:
        """All versions, the latest scores first."""
        announcements = {entry.version: entry.at for entry in self._announcements()}
        live = self.live()
        found = []
        for parent in (self.candidates, self.snapshots):
            for name in sorted(os.listdir(parent) if parent.is_dir() else []):
                try:
                    if _VERSION.fullmatch(name):
                        found.append(self._version(name, parent == self.candidates, live, announcements.get(name)))
                except (SnapshotError, UnknownVersion, LookupError, TypeError, ValueError) as error:
                    log.error("%s is left out: its manifest cannot be used: %r", parent / name, error)
        return sorted(found, key=lambda version: (version.scored_at, version.built_at), reverse=True)

    def _version(self, name: str, candidate: bool, live: str | None, announced_at: datetime | None) -> Version:
        manifest = self.manifest(name)
        state: State = "candidate" if candidate else "announced" if name == live else "published"
        return Version(
            name=name,
            state="retired" if state == "published" and announced_at else state,
            scored_at=datetime.fromisoformat(manifest["scored_at"]),
            profiles=manifest["profiles"],
            scored=manifest["scored"],
            file_bytes=manifest["file_bytes"],
            built_at=datetime.fromisoformat(manifest["built_at"]),
            announced_at=announced_at,
        )

    def _announcements(self) -> Iterator[Announcement]:
        try:
            lines = self._log.read_bytes().splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            try:
                entry = msgspec.json.decode(line, type=Announcement)
            except msgspec.DecodeError:
                continue  # of a publisher that was killed while it wrote
            yield entry

    def earlier(self, scored_at: datetime) -> tuple[dict[str, Snapshot], list[str]]:
        """By period ("day", "week", "month"), the published snapshot to measure changes against, where there is one.

        And in words, those that there are but that cannot be used.
        """
        published = [version for version in self.versions() if version.state != "candidate"]
        found, unusable = {}, []
        for period, days in PERIODS.items():
            wanted = scored_at - timedelta(days=days)
            near = [version for version in published if abs(version.scored_at - wanted) <= TOLERANCE]
            for version in sorted(near, key=lambda version: abs(version.scored_at - wanted))[:1]:
                try:
                    found[period] = self.open(version.name)
                except (SnapshotError, UnknownVersion, OSError) as error:
                    unusable.append(f"{period} changes are not known: {error}")
        return found, unusable

    @contextmanager
    def working_folder(self) -> Iterator[Path]:
        """A folder on the same file system for a build; gone at the end, and after a crash at the next build."""
        with storage(f"preparing {self.data}"):
            for folder in (self.data, self.candidates, self.snapshots):
                folder.mkdir(parents=True, exist_ok=True)
        with storage(f"building in {self.data}"), working_folder(self.data / "work") as folder:
            yield folder

    def adopt(self, folder: Path, version: str) -> None:
        """Turn a finished folder into the candidate of that name; the same candidate built before stays."""
        target = self.candidates / version
        for there in (target, self.snapshots / version):
            if there.exists() and self._is_whole(there):
                return
            if there == target and there.exists():
                os.rename(there, folder.with_name(f"damaged-{version}"))
        sync_directory(folder)
        os.rename(folder, target)
        sync_directory(self.candidates)

    def _is_whole(self, folder: Path) -> bool:
        try:
            self._open(folder).verify()
        except (SnapshotError, UnknownVersion) as error:
            log.error("%s is built anew: %s", folder, error)
            return False
        return True

    def publish(self, version: str, progress: Progress | None = None, done: Done | None = None) -> Snapshot:
        """Re-read a candidate as a reader will, verify all of it, move it among the published, and announce it.

        A version that is published already is re-read and announced again. Returns it, opened where readers find it.
        ``progress(done_bytes, total_bytes)`` while it is verified; ``done(step)`` after each of STEPS.
        Raises UnknownVersion, SnapshotError, StorageError, Busy.
        """
        done = done or (lambda step: None)
        self.folder(version)
        with storage(f"publishing {version}"), lock(self.data / "LOCK", "publishing"):
            folder = self.folder(version)
            snapshot = self._open(folder)
            snapshot.verify(progress)
            self._check_manifest(snapshot, folder)
            done("verify")
            # The gates stand here: they compare what was just re-read with the announced version.
            if folder.parent == self.candidates:
                if (self.snapshots / version).exists():  # and is damaged, or its input would not have been built again
                    os.rename(self.snapshots / version, self.data / "work" / f"damaged-{version}")
                os.rename(folder, self.snapshots / version)
                sync_directory(self.snapshots)
                sync_directory(self.candidates)
            done("rename")
            self._announce(version)
            done("announce")
        return self.open(version)

    def _open(self, folder: Path) -> Snapshot:
        try:
            snapshot = Snapshot(folder / SNAPSHOT)
        except FileNotFoundError:
            raise UnknownVersion(f"no snapshot {folder.name} in {folder.parent}") from None
        if snapshot.version != folder.name:
            raise SnapshotError(
                folder / SNAPSHOT, "version", f"it is {snapshot.version}, in the place of {folder.name}"
            )
        return snapshot

    def _check_manifest(self, snapshot: Snapshot, folder: Path) -> None:
        manifest = self.manifest(snapshot.version)
        expected = {"version": snapshot.version, "file_bytes": snapshot.nbytes, "profiles": snapshot.profiles}
        for name, value in expected.items():
            if manifest.get(name) != value:
                raise SnapshotError(
                    folder / MANIFEST, "manifest", f"{name} is {manifest.get(name)}, the file says {value}"
                )

    def _announce(self, version: str) -> None:
        """The log first: an entry without effect is harmless, an announcement without an entry would be a lie."""
        bell = Doorbell(self._bell, writable=True)
        self._append(msgspec.json.encode(Announcement(version, datetime.now(UTC), self.live())) + b"\n")
        replace_file(self._current, version.encode() + b"\n")
        bell.ring()

    def _append(self, line: bytes) -> None:
        if self._log.exists() and not self._log.read_bytes().endswith(b"\n"):
            line = b"\n" + line
        descriptor = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            if os.write(descriptor, line) != len(line):
                raise OSError(f"{self._log}: short write")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
