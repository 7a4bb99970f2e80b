"""Keys: who may do what. A key is ``ks_live_<id>_<secret and checksum>``; only an HMAC of its secret is kept.

The HMAC is keyed with a pepper, a file beside the database: a copy of the database alone helps nobody to a key.
While a key is rotated it has two secrets, under one id: one partner, one limit.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import sqlite3
import stat
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from kserve.errors import ArgumentError, InputError, SettingError, StorageError, UnknownKey
from kserve.snapshots.durable import storage, sync_directory, write_file

log = logging.getLogger("kserve.keys")

SCOPES = {
    "score:read": "read scores and profiles, one at a time",
    "batch": "read many scores in one request",
    "claim": "claim perks",
    "revoke": "revoke claims",
    "publish": "publish snapshots",
    "admin": "administer keys, limits and perks",
    "console": "sign in to the console: look at versions, pin and roll back",
}
"""What a key may be made for."""

PREFIX = "ks_live_"
ID_LENGTH, SECRET_LENGTH, CHECK_LENGTH = 12, 32, 6
"""Characters; the secret has 190 bits, the checksum only finds typing errors."""

DEFAULT_TIER = "partner"
"""Of keys that were made without one."""

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_FORM = re.compile(rf"{PREFIX}([0-9A-Za-z]{{{ID_LENGTH}}})_([0-9A-Za-z]{{{SECRET_LENGTH + CHECK_LENGTH}}})")
_NO_TEXT = ("-" * ID_LENGTH, "-" * (SECRET_LENGTH + CHECK_LENGTH))
"""In place of the parts of what is no key."""

_NAME = re.compile(r"[^\s\x00-\x1f\x7f](?:[^\x00-\x1f\x7f]{0,62}[^\s\x00-\x1f\x7f])?")
_BUSY_SECONDS = 5.0
_PEPPER_BYTES = 32

_TABLE = """
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY,
    digest BLOB NOT NULL,
    partner TEXT NOT NULL,
    scopes TEXT NOT NULL,
    created_at TEXT NOT NULL,
    expires_at TEXT,
    revoked_at TEXT
) STRICT
"""
_ADDED = {
    "tier": f"TEXT NOT NULL DEFAULT '{DEFAULT_TIER}'",
    "old_digest": "BLOB",
    "old_until": "TEXT",
}
"""Columns that databases made before there were tiers do not have."""

_COLUMNS = "id, digest, old_digest, partner, tier, scopes, created_at, expires_at, revoked_at, old_until"
_OLD_COLUMNS = f"id, digest, NULL, partner, '{DEFAULT_TIER}', scopes, created_at, expires_at, revoked_at, NULL"


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key: all but its secret. Times are aware UTC; ``old_until``: the end of its old secret."""

    id: str
    partner: str
    tier: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    old_until: datetime | None

    @property
    def state(self) -> str:
        """``live``, ``expired`` or ``revoked``."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= datetime.now(UTC) else "live"

    @property
    def rotating(self) -> bool:
        """Whether its old secret is still valid beside the new one."""
        return self.old_until is not None and self.old_until > datetime.now(UTC) and self.state == "live"

    def may(self, scope: str) -> bool:
        """Whether it is live and has this scope."""
        return scope in self.scopes and self.state == "live"


class Record(NamedTuple):
    """A key and the HMACs of its secrets; ``row`` is what the database had."""

    key: Key | None
    digest: bytes
    old_digest: bytes
    row: tuple[Any, ...]


class Match(NamedTuple):
    """A key that was given rightly, and when this secret of it ends (aware UTC; None: never)."""

    key: Key
    ends: datetime | None


_NOBODY = Record(None, bytes(32), bytes(32), ())


@dataclass(frozen=True, slots=True)
class Book:
    """All keys at one moment, by id: authenticates without any file. Never changes."""

    pepper: bytes
    records: Mapping[str, Record]

    def __iter__(self) -> Iterator[Key]:
        return (record.key for record in self.records.values() if record.key is not None)

    def __len__(self) -> int:
        return len(self.records)

    def changed_since(self, before: Book) -> set[str] | None:
        """Ids of keys that are new, gone, or other than in the book that this one was read after; None: all."""
        if self.pepper != before.pepper:
            return None
        same = {key_id for key_id, record in self.records.items() if before.records.get(key_id) is record}
        return (self.records.keys() | before.records.keys()) - same

    def match(self, text: str) -> Match | None:
        """The live key of this text. None, and the time it takes, tell nothing of why: it is always one such HMAC."""
        found = _FORM.fullmatch(text)
        key_id, rest = found.groups() if found is not None else _NO_TEXT
        record = self.records.get(key_id, _NOBODY)
        digest = _digest(self.pepper, key_id, rest[:SECRET_LENGTH])
        new = hmac.compare_digest(record.digest, digest)
        old = hmac.compare_digest(record.old_digest, digest)
        sound = hmac.compare_digest(_checksum(f"{PREFIX}{key_id}_{rest[:SECRET_LENGTH]}"), rest[SECRET_LENGTH:])
        key = record.key
        if key is None or not (sound and (new or (old and key.rotating)) and key.state == "live"):
            return None
        return Match(key, key.expires_at if new else min(filter(None, (key.expires_at, key.old_until))))


class Keys:
    """The keys of a data directory. Any number of threads and processes; all methods read the file anew.

    All raise StorageError when the database cannot be used, and SettingError when the pepper is not safe.
    """

    def __init__(self, data: Path) -> None:
        self.database = data / "keys.db"
        self.pepper_file = data / "pepper"

    def create(
        self,
        partner: str,
        scopes: Collection[str],
        expires_in: timedelta | None = None,
        tier: str = DEFAULT_TIER,
    ) -> tuple[Key, str]:
        """A new key, and its text: this is the only time that it can be had. Raises ArgumentError."""
        _check(partner, scopes)
        now = datetime.now(UTC)
        ends = None if expires_in is None else now + expires_in
        key = Key(_random(ID_LENGTH), partner, tier, tuple(s for s in SCOPES if s in scopes), now, ends, None, None)
        secret = _random(SECRET_LENGTH)
        with self._writing() as connection:
            digest = _digest(self._make_pepper(), key.id, secret)
            values = (key.id, digest, partner, tier, " ".join(key.scopes), _iso(now), _iso(ends))
            connection.execute(
                "INSERT INTO keys (id, digest, partner, tier, scopes, created_at, expires_at) VALUES (?,?,?,?,?,?,?)",
                values,
            )
        return key, _text(key.id, secret)

    def listed(self) -> list[Key]:
        """All keys, revoked ones too, the oldest first."""
        return [_key(row) for row in self._rows("ORDER BY created_at, id")]

    def show(self, key_id: str) -> Key:
        """One key by its id. Raises UnknownKey."""
        rows = self._rows("WHERE id = ?", key_id) if key_id.isascii() else []
        if not rows:
            raise UnknownKey(f"there is no key {key_id[:ID_LENGTH]}: `kserve keys list` shows those that there are")
        return _key(rows[0])

    def revoke(self, key_id: str) -> Key:
        """End a key for ever, both secrets of one that is rotated; one revoked before stays so. Raises UnknownKey."""
        self.show(key_id)
        with self._writing() as connection:
            sql = "UPDATE keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL"
            connection.execute(sql, (_iso(datetime.now(UTC)), key_id))
        return self.show(key_id)

    def rotate(self, key_id: str, overlap: timedelta) -> tuple[Key, str]:
        """A new secret for a key, and its text; the old one stays valid for ``overlap``.

        Raises UnknownKey, and InputError when the key is not live, or has two secrets and would get a third.
        """
        self.show(key_id)
        secret = _random(SECRET_LENGTH)
        with self._writing() as connection:
            row = connection.execute(f"SELECT {_COLUMNS} FROM keys WHERE id = ?", (key_id,)).fetchone()
            _check_rotation(_key(row), overlap)
            digest = _digest(self._existing_pepper(), key_id, secret)
            connection.execute(
                "UPDATE keys SET old_digest = digest, old_until = ?, digest = ? WHERE id = ?",
                (_iso(datetime.now(UTC) + overlap), digest, key_id),
            )
        return self.show(key_id), _text(key_id, secret)

    def copy_to(self, data: Path) -> int:
        """Make the keys of another directory these, in one transaction, and the pepper too if it has none; how many.

        Raises InputError when there are none, or when the other directory has what would be lost.
        """
        rows, other = self._rows(""), Keys(data)
        if not rows:
            raise InputError(f"{self.database} has no keys to copy", remedy="make one with `kserve keys create`")
        pepper = self._existing_pepper()
        with other._writing() as connection:
            there = connection.execute(f"SELECT {_COLUMNS} FROM keys").fetchall()
            _check_copy(other.database, there, {row[0]: row for row in rows})
            other._put_pepper(pepper)
            if other.pepper() != pepper:
                remedy = "remove it if no key was made with it"
                raise InputError(f"{other.pepper_file} is another than {self.pepper_file}", remedy=remedy)
            connection.execute("DELETE FROM keys")
            places = ",".join("?" * len(rows[0]))
            connection.executemany(f"INSERT INTO keys ({_COLUMNS}) VALUES ({places})", rows)
        return len(rows)

    def exist(self, scope: str) -> bool:
        """Whether there is a live key with this scope."""
        return any(key.may(scope) for key in self.listed())

    def check(self, text: str, scope: str) -> Key | None:
        """The key of this text if it is live and has the scope. None, and the time it takes, tell nothing of why."""
        found = _FORM.fullmatch(text)
        rows = self._rows("WHERE id = ?", found[1] if found is not None else _NO_TEXT[0])
        match = Book(self.pepper(), {row[0]: _record(row) for row in rows}).match(text)
        return match.key if match is not None and match.key.may(scope) else None

    def book(self, before: Book | None = None) -> Book:
        """All keys, to authenticate with. What has not changed since ``before`` is taken from it."""
        known = {} if before is None else before.records
        rows = self._rows("")
        records = {row[0]: known.get(row[0], _NOBODY) for row in rows}
        records |= {row[0]: _record(row) for row in rows if records[row[0]].row != row}
        return Book(self._existing_pepper() if rows else self.pepper(), records)

    def live(self, key_id: str, scope: str) -> Key | None:
        """The key of that id if it is live and has the scope, for a session that was begun with it."""
        with suppress(UnknownKey):
            key = self.show(key_id)
            return key if key.may(scope) else None
        return None

    def pepper(self) -> bytes:
        """The secret beside the database; without one, a random one: nothing was made with it. Raises SettingError."""
        try:
            with storage(f"reading {self.pepper_file}"), self.pepper_file.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                pepper = file.read(_PEPPER_BYTES + 1)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return secrets.token_bytes(_PEPPER_BYTES)
            raise
        if mode & 0o077:
            seen = f"{self.pepper_file} can be read by others (mode {mode:o})"
            raise SettingError(f"{seen}: chmod 600 it, and make new keys")
        if len(pepper) != _PEPPER_BYTES:
            raise SettingError(f"{self.pepper_file} is damaged: restore it, or remove it and {self.database.name}")
        return pepper

    def _make_pepper(self) -> bytes:
        """The pepper, made if there is none; whole or not there, and only ever one."""
        if not self.pepper_file.exists() and not self.listed():
            self._put_pepper(secrets.token_bytes(_PEPPER_BYTES))
        return self._existing_pepper()

    def _put_pepper(self, pepper: bytes) -> None:
        """Unless there is one."""
        fresh = self.pepper_file.with_name(f".pepper.{os.getpid()}-{secrets.token_hex(4)}")
        with storage(f"writing {self.pepper_file}"):
            try:
                write_file(fresh, pepper, 0o600)
                with suppress(FileExistsError):  # another process made it meanwhile
                    os.link(fresh, self.pepper_file)
            finally:
                fresh.unlink(missing_ok=True)
            sync_directory(self.pepper_file.parent)

    def _existing_pepper(self) -> bytes:
        """The pepper of the keys that there are. Raises SettingError when it is gone."""
        if not self.pepper_file.exists():
            raise SettingError(f"{self.pepper_file} is gone, so no key is valid: restore it, or remove {self.database}")
        return self.pepper()

    def _rows(self, which: str, *values: str) -> list[tuple[Any, ...]]:
        """Of all keys or some, what ``_COLUMNS`` says; a database that nobody may write is read as it is."""
        if not self.database.exists():
            return []
        with self._failing(), closing(self.connect()) as connection:
            connection.execute("BEGIN")  # the columns must be those of the rows
            columns = _columns_of(connection)
            if not columns:
                return []  # the first key is in the making
            wanted = _COLUMNS if _ADDED.keys() <= columns else _OLD_COLUMNS
            return connection.execute(f"SELECT {wanted} FROM keys {which}", values).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with storage(f"preparing {self.database.parent}"):
            self.database.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                os.mknod(self.database, 0o600)  # not opened: closing it would end SQLite's locks of this process
        with self._failing(), closing(self.connect()) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(_TABLE)
            for name in _ADDED.keys() - _columns_of(connection):
                connection.execute(f"ALTER TABLE keys ADD COLUMN {name} {_ADDED[name]}")
            yield connection

    def connect(self) -> sqlite3.Connection:
        """To the database, for any one thread at a time. Raises sqlite3.Error."""
        uri = f"{self.database.absolute().as_uri()}?mode=rw"  # reads only, where the file may not be written
        connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, check_same_thread=False)
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageError(f"{self.database}: {error}; restore it, or remove it and make new keys") from None


class Watched:
    """Tells when keys may have changed: what `state` returns is another then. One thread at a time."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, ...] | None = None
        self._opened = 0

    def state(self) -> tuple[Any, ...]:
        """Equal only if nothing has changed since. Raises StorageError when keys that there were cannot be read."""
        try:
            identity = _identity(self._keys.database)
            if identity is None and self._identity is not None:
                raise StorageError(f"{self._keys.database} is gone: restore it, or start again to do without its keys")
            if identity != self._identity or (identity is not None and self._connection is None):
                self._open(identity)
            return self._opened, self._version(), _content(self._keys.pepper_file)
        except (OSError, sqlite3.Error) as error:
            self.close()
            raise StorageError(f"{self._keys.database}: {error}") from None

    def close(self) -> None:
        """Close the database."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self, identity: tuple[int, ...] | None) -> None:
        self.close()
        self._opened += 1
        self._identity = identity
        if identity is not None:
            self._connection = self._keys.connect()

    def _version(self) -> int:
        """Of the database's content, as this connection counts."""
        if self._connection is None:
            return 0
        return int(self._connection.execute("PRAGMA data_version").fetchone()[0])


def _identity(path: Path) -> tuple[int, ...] | None:
    """Another when another file is put there; None without a file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _content(path: Path) -> tuple[int, ...] | None:
    """Another when a small file is written, replaced, or let be read by others; None without a file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode


def _check(partner: str, scopes: Collection[str]) -> None:
    if not _NAME.fullmatch(partner):
        raise ArgumentError(f"partner {partner!r} is no name: 1 to 64 characters, no control characters")
    unknown = [name for name in scopes if name not in SCOPES]
    if unknown or not scopes:
        wrong = f"there is no scope {unknown[0]!r}" if unknown else "a key needs a scope"
        raise ArgumentError(f"{wrong}; there are {', '.join(SCOPES)}")


def _check_rotation(key: Key, overlap: timedelta) -> None:
    if key.state != "live":
        raise InputError(f"key {key.id} is {key.state}", remedy="make a new one with `kserve keys create`")
    if key.rotating and overlap > timedelta(0):
        assert key.old_until is not None
        until = f"{key.old_until:%Y-%m-%d %H:%M} UTC"
        raise InputError(f"key {key.id} has two secrets until {until}", remedy="wait, or end both with --overlap 0h")


def _check_copy(database: Path, there: list[tuple[Any, ...]], here: Mapping[str, tuple[Any, ...]]) -> None:
    """Nothing that was done there alone may be undone: that is what a copy in the wrong direction would do."""
    for row in there:
        done = _done_alone(row, here.get(row[0]))
        if done is not None:
            remedy = "do that where all keys are made, and copy from there"
            raise InputError(f"{database}: key {row[0]} was {done} there, which a copy would undo", remedy=remedy)


def _done_alone(there: tuple[Any, ...], here: tuple[Any, ...] | None) -> str | None:
    """What was done to the key of one row that the other does not know, if one rotation can tell; None: nothing."""
    if here is None:
        return "made"
    if _key(there).revoked_at is not None and _key(here).revoked_at is None:
        return "revoked"
    _, digest, old_digest, *_ = there
    return "rotated" if here[1] == old_digest != digest else None


def _columns_of(connection: sqlite3.Connection) -> set[str]:
    return {row[1] for row in connection.execute("PRAGMA table_info(keys)")}


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _text(key_id: str, secret: str) -> str:
    text = f"{PREFIX}{key_id}_{secret}"
    return text + _checksum(text)


def _digest(pepper: bytes, key_id: str, secret: str) -> bytes:
    return hmac.digest(pepper, f"{key_id}_{secret}".encode("ascii"), hashlib.sha256)


def _checksum(text: str) -> str:
    """CRC-32 of the text in six characters, so that a key that was cut or mistyped is known as such."""
    value = zlib.crc32(text.encode("ascii"))
    return "".join(_ALPHABET[value // 62**place % 62] for place in reversed(range(CHECK_LENGTH)))


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat(timespec="microseconds")


def _record(row: tuple[Any, ...]) -> Record:
    """Of a row with ``_COLUMNS``."""
    return Record(_key(row), row[1], row[2] or bytes(32), row)


def _key(row: tuple[Any, ...]) -> Key:
    key_id, _, _, partner, tier, scopes, *times = row
    created, expires, revoked, old_until = (None if time is None else datetime.fromisoformat(time) for time in times)
    assert created is not None
    return Key(key_id, partner, tier, tuple(scopes.split()), created, expires, revoked, old_until)
