"""The versions in a data directory: which there are, where they lie, and which one is in force.

candidates/VERSION/     snapshot.kss and manifest.json of a sealed candidate
snapshots/VERSION/      the same of a published version: the folder is moved, its files never change
checks/VERSION.json     what the gates said last
CURRENT                 the name of the version in force; then the signed order that put it there, if orders are signed
STAGED                  the name of the version that every process shall open and warm before it is announced
DOORBELL                rung after CURRENT or STAGED was replaced
log.jsonl               who did what, when and why
LOCK, ACT               held while a cycle runs, and while CURRENT and the log are changed
work/                   files in the making
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from kserve._core import Snapshot
from kserve._doorbell import Doorbell
from kserve.errors import NothingPublished, SnapshotError, UnknownVersion
from kserve.snapshots.durable import lock, replace_file, storage, sync_directory, working_folder
from kserve.snapshots.log import Log
from kserve.snapshots.signing import SIGNATURE, Order, Signer, Trust, check_version, decode_order, sign_version

log = logging.getLogger("kserve.catalog")

State = Literal["candidate", "published", "announced", "retired"]
Progress = Callable[[int, int], None]

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


class Catalog:
    """The data directory of a host. Methods that write raise StorageError, and Busy while another publisher works."""

    def __init__(self, data: str | os.PathLike[str]) -> None:
        self.data = Path(data)
        self.candidates = self.data / "candidates"
        self.snapshots = self.data / "snapshots"
        self.log = Log(self.data / "log.jsonl")
        self.roster = self.data / "ROSTER"
        self._current = self.data / "CURRENT"
        self._staged = self.data / "STAGED"
        self._bell = self.data / "DOORBELL"

    def announced(self) -> str | None:
        """The version in force, or None when nothing was announced yet. Raises SnapshotError for a damaged CURRENT."""
        return self._named(self._current)[0]

    def order(self) -> Order | None:
        """The order that put the version in force there; None when it is unsigned. Raises SnapshotError."""
        _, rest = self._named(self._current)
        return decode_order(rest, self._current) if rest else None

    def staged(self) -> str | None:
        """The version to open and warm now, or None. Raises SnapshotError for a damaged file."""
        return self._named(self._staged)[0]

    def _named(self, file: Path) -> tuple[str | None, bytes]:
        """The version that the first line of a file names, and the line after it."""
        try:
            with file.open("rb") as opened:
                first, _, rest = opened.read(4096).partition(b"\n")
        except FileNotFoundError:
            return None, b""
        name = first[:64].decode("ascii", "replace").strip()
        if not _VERSION.fullmatch(name):
            raise SnapshotError(file, "announcement", f"{name!r} is no version")
        return name, rest.strip()

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
        """What the builder wrote about a version. Raises UnknownVersion, SnapshotError, OSError when it is not read."""
        file = self.folder(version) / MANIFEST
        try:
            manifest: dict[str, Any] = json.loads(file.read_bytes())
        except (FileNotFoundError, ValueError) as error:
            raise SnapshotError(file, "manifest", str(error)) from None
        return manifest

    def versions(self) -> list[Version]:
        """All versions, the latest scores first. One that is published, and was built anew, is told once."""
        orders = ("announce", "rollback")
        announcements = {entry.version: entry.at for entry in self.log.entries() if entry.act in orders}
        live = self.live()
        found = []
        published = _versions_in(self.snapshots)
        for name in sorted(published | _versions_in(self.candidates)):
            try:
                found.append(self._version(name, name not in published, live, announcements.get(name)))
            except (SnapshotError, UnknownVersion, LookupError, TypeError, ValueError) as error:
                log.error("%s is left out: its manifest cannot be used: %r", name, error)
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

    def earlier(self, scored_at: datetime) -> tuple[dict[str, Snapshot], list[str]]:
        """By period ("day", "week", "month"), the published snapshot to measure changes against, where there is one.

        And in words, those that there are but that cannot be used. Raises OSError when one cannot be read just now.
        """
        published = [version for version in self.versions() if version.state != "candidate"]
        found, unusable = {}, []
        for period, days in PERIODS.items():
            wanted = scored_at - timedelta(days=days)
            near = [version for version in published if abs(version.scored_at - wanted) <= TOLERANCE]
            for version in sorted(near, key=lambda version: abs(version.scored_at - wanted))[:1]:
                try:
                    found[period] = self.open(version.name)
                except (SnapshotError, UnknownVersion) as error:
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

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """One publisher at a time: for a whole cycle. The lock ends with the process. Raises Busy, StorageError."""
        with ExitStack() as held:
            with storage(f"preparing {self.data}"):
                self.data.mkdir(parents=True, exist_ok=True)
                held.enter_context(lock(self.data / "LOCK", "publishing"))
            yield

    def reread(self, version: str, progress: Progress | None = None) -> Snapshot:
        """A version opened as a reader will, every byte of it verified. ``progress(done_bytes, total_bytes)``.

        Raises UnknownVersion, SnapshotError.
        """
        folder = self.folder(version)
        snapshot = self._open(folder)
        snapshot.verify(progress)
        self._check_manifest(snapshot, folder)
        return snapshot

    def place(self, version: str, signer: Signer | None = None) -> None:
        """Sign a candidate and move it among the published; what is there already stays. Raises StorageError."""
        folder = self.folder(version)
        with storage(f"placing {version}"):
            if signer is not None and (folder.parent == self.candidates or not (folder / SIGNATURE).exists()):
                sign_version(folder, signer)
            if folder.parent == self.snapshots:
                return
            if (self.snapshots / version).exists():  # and is damaged, or its input would not have been built again
                (self.data / "work").mkdir(exist_ok=True)
                os.rename(self.snapshots / version, self.data / "work" / f"damaged-{version}")
            os.rename(folder, self.snapshots / version)
            sync_directory(self.snapshots)
            sync_directory(self.candidates)

    def stage(self, version: str) -> None:
        """Ask every process to open and warm a published version. Raises StorageError."""
        with storage(f"staging {version}"):
            bell = Doorbell(self._bell, writable=True)
            replace_file(self._staged, version.encode() + b"\n")
            bell.ring()

    def unstage(self) -> None:
        """Nothing is to be kept ready any more. Raises StorageError."""
        with storage("unstaging"):
            self._staged.unlink(missing_ok=True)

    def put_in_force(self, version: str, order: bytes = b"") -> None:
        """Replace CURRENT and ring. Only :mod:`kserve.snapshots.orders` calls this. Raises OSError."""
        bell = Doorbell(self._bell, writable=True)
        replace_file(self._current, b"%s\n%s\n" % (version.encode(), order) if order else version.encode() + b"\n")
        bell.ring()

    def check_signature(self, version: str, trust: Trust) -> None:
        """Refuse a published version that nobody trusted has signed, before it is mapped. Raises SnapshotError."""
        check_version(self.snapshots / version, trust)

    def discard(self, versions: Collection[str]) -> int:
        """Delete versions; readers that have one mapped keep it. Returns the bytes freed. Raises StorageError."""
        freed = 0
        with storage(f"deleting versions in {self.data}"):
            for left in (*self.candidates.glob("deleted-*"), *self.snapshots.glob("deleted-*")):  # of a killed process
                shutil.rmtree(left)
            for folder in [parent / name for name in versions for parent in (self.candidates, self.snapshots)]:
                if folder.is_dir():
                    freed += sum(file.stat().st_size for file in folder.iterdir())
                    gone = folder.with_name(f"deleted-{folder.name}")
                    os.rename(folder, gone)
                    sync_directory(folder.parent)
                    shutil.rmtree(gone)
        return freed

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


def _versions_in(parent: Path) -> set[str]:
    return {name for name in (os.listdir(parent) if parent.is_dir() else ()) if _VERSION.fullmatch(name)}
