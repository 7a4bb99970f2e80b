"""The log of a data directory: who did what, when, why, and what was seen. Append-only, each line chained to the last.

A line is a JSON object; its ``prev`` is the SHA-256 of the line before. A line that a killed process left half-written
is skipped by readers; the chain goes on from the last whole line.
"""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import os
import socket
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from kserve.errors import SnapshotError
from kserve.settings import Settings
from kserve.snapshots.durable import release, storage, sync_directory

ACTS = (
    "build",
    "check",
    "accept",
    "stage",
    "announce",
    "good",
    "breach",
    "rollback",
    "freeze",
    "pin",
    "unpin",
    "quarantine",
    "release",
    "prune",
)
"""Every act that is logged."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One act. ``at`` is aware UTC; ``seen`` is what the act was decided on, as plain JSON."""

    n: int
    at: datetime
    by: str
    act: str
    version: str | None = None
    why: str | None = None
    seen: dict[str, Any] = {}
    prev: str = ""


_decode = msgspec.json.Decoder(Entry).decode
_encode = msgspec.json.Encoder().encode


def author(settings: Settings) -> str:
    """Who acts: the setting ``by``, else the user of this process and the host."""
    if settings.by:
        return settings.by
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a process without a name, as in many containers
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


class Log:
    """The log in one file. Any number of threads and processes may append and read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: list[Entry] = []
        self._inode = 0
        self._offset = 0
        self._reading = threading.Lock()

    def entries(self, after: int = 0) -> list[Entry]:
        """All acts with a number above ``after``, the oldest first. Reads only what is new since the last call."""
        try:
            with self._reading, self.path.open("rb") as file:
                self._read(file.fileno())
                last = _entry(os.pread(file.fileno(), 1 << 20, self._offset))
                known = self._known if last is None else [*self._known, last]
        except FileNotFoundError:
            return []
        return known if after == 0 else [entry for entry in known if entry.n > after]

    def _read(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if status.st_ino != self._inode or status.st_size < self._offset:
            self._inode, self._offset, self._known = status.st_ino, 0, []
        fresh = os.pread(descriptor, status.st_size - self._offset, self._offset)
        whole = fresh[: fresh.rfind(b"\n") + 1]
        found = [_entry(line) for line in whole.splitlines()]
        self._known = self._known + [entry for entry in found if entry is not None]
        self._offset += len(whole)

    def append(
        self,
        act: str,
        *,
        by: str,
        version: str | None = None,
        why: str | None = None,
        seen: dict[str, Any] | None = None,
    ) -> Entry:
        """Add an act; it is on disk when this returns. Raises StorageError."""
        assert act in ACTS, act
        with storage(f"writing {self.path}"):
            fresh = not self.path.exists()
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
                last, line = _last(content)
                entry = Entry(
                    n=1 if last is None else last.n + 1,
                    at=datetime.now(UTC),
                    by=by,
                    act=act,
                    version=version,
                    why=why,
                    seen=seen or {},
                    prev=_digest(line) if line else "",
                )
                _write(descriptor, _encode(entry) + b"\n", torn=bool(content) and not content.endswith(b"\n"))
            finally:
                release(descriptor)
            if fresh:
                sync_directory(self.path.parent)
        return entry

    def verify(self) -> int:
        """The number of acts, if every line follows from the one before. Raises SnapshotError naming the line.

        A line that is no entry is what a killed process left behind: the next one does not follow from it.
        """
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return 0
        expected, count = "", 0
        for number, line in enumerate(lines, 1):
            entry = _entry(line)
            if entry is None:
                continue
            if entry.prev != expected or entry.n != count + 1:
                raise SnapshotError(self.path, "log", f"line {number} does not follow from the one before")
            expected, count = _digest(line), count + 1
        return count


def line_digest(entry: Entry) -> str:
    """SHA-256 of an act's line, in hexadecimal: the act's own identity."""
    return _digest(_encode(entry))


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _entry(line: bytes) -> Entry | None:
    try:
        return _decode(line)
    except msgspec.DecodeError:
        return None


def _last(content: bytes) -> tuple[Entry | None, bytes]:
    """The last whole entry and its line."""
    for line in reversed(content.splitlines()):
        entry = _entry(line)
        if entry is not None:
            return entry, line
    return None, b""


def _write(descriptor: int, line: bytes, torn: bool) -> None:
    """All of it or an error; what a failed write left is cut off, or told from an entry by its missing end."""
    before = os.fstat(descriptor).st_size
    line = b"\n" + line if torn else line
    try:
        if os.write(descriptor, line) != len(line):
            raise OSError("short write")
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, before)
        raise
