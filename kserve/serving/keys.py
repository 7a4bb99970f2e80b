"""Keys: who may do what. A key is ``ks_live_<id>_<secret and checksum>``; only an HMAC of its secret is kept.

The HMAC is keyed with a pepper, a file beside the database: a copy of the database alone helps nobody to a key.
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
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from kserve.errors import SettingError, StorageError, UnknownKey
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

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_FORM = re.compile(rf"{PREFIX}([0-9A-Za-z]{{{ID_LENGTH}}})_([0-9A-Za-z]{{{SECRET_LENGTH + CHECK_LENGTH}}})")
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
_COLUMNS = "id, partner, scopes, created_at, expires_at, revoked_at"


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key: all but its secret. Times are aware UTC."""

    id: str
    partner: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    @property
    def state(self) -> str:
        """``live``, ``expired`` or ``revoked``."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= datetime.now(UTC) else "live"

    def may(self, scope: str) -> bool:
        """Whether it is live and has this scope."""
        return scope in self.scopes and self.state == "live"


class Keys:
    """The keys of a data directory. Any number of threads and processes; all methods read the file anew.

    All raise StorageError when the database cannot be used, and SettingError when the pepper is not safe.
    """

    def __init__(self, data: Path) -> None:
        self._database = data / "keys.db"
        self._pepper = data / "pepper"

    def create(self, partner: str, scopes: Collection[str], expires_in: timedelta | None = None) -> tuple[Key, str]:
        """A new key, and its text: this is the only time that it can be had. Raises SettingError."""
        _check(partner, scopes)
        now = datetime.now(UTC)
        expires_at = None if expires_in is None else now + expires_in
        key = Key(_random(ID_LENGTH), partner, tuple(name for name in SCOPES if name in scopes), now, expires_at, None)
        secret = _random(SECRET_LENGTH)
        with self._writing() as connection:
            digest = self._digest(self._make_pepper(), key.id, secret)
            values = (key.id, digest, partner, " ".join(key.scopes), _iso(now), _iso(expires_at), None)
            connection.execute("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        text = f"{PREFIX}{key.id}_{secret}"
        return key, text + _checksum(text)

    def listed(self) -> list[Key]:
        """All keys, revoked ones too, the oldest first."""
        return [_key(row) for row in self._rows(f"SELECT {_COLUMNS} FROM keys ORDER BY created_at, id")]

    def show(self, key_id: str) -> Key:
        """One key by its id. Raises UnknownKey."""
        rows = self._rows(f"SELECT {_COLUMNS} FROM keys WHERE id = ?", key_id) if key_id.isascii() else []
        if not rows:
            raise UnknownKey(f"there is no key {key_id[:ID_LENGTH]}: `kserve keys list` shows those that there are")
        return _key(rows[0])

    def revoke(self, key_id: str) -> Key:
        """End a key for ever; one that was revoked before stays as it is. Raises UnknownKey."""
        self.show(key_id)
        with self._writing() as connection:
            sql = "UPDATE keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL"
            connection.execute(sql, (_iso(datetime.now(UTC)), key_id))
        return self.show(key_id)

    def exist(self, scope: str) -> bool:
        """Whether there is a live key with this scope."""
        return any(key.may(scope) for key in self.listed())

    def check(self, text: str, scope: str) -> Key | None:
        """The key of this text if it is live and has the scope. None, and the time it takes, tell nothing of why."""
        match = _FORM.fullmatch(text)
        key_id, rest = match.groups() if match is not None else ("-", text)
        secret = rest[:SECRET_LENGTH]
        rows = self._rows(f"SELECT digest, {_COLUMNS} FROM keys WHERE id = ?", key_id)
        expected, *columns = rows[0] if rows else (bytes(32),)
        right = hmac.compare_digest(expected, self._digest(self.pepper(), key_id, secret))
        if not (right and rows and hmac.compare_digest(_checksum(text[:-CHECK_LENGTH]), text[-CHECK_LENGTH:])):
            return None
        key = _key(tuple(columns))
        return key if key.may(scope) else None

    def live(self, key_id: str, scope: str) -> Key | None:
        """The key of that id if it is live and has the scope, for a session that was begun with it."""
        with suppress(UnknownKey):
            key = self.show(key_id)
            return key if key.may(scope) else None
        return None

    def pepper(self) -> bytes:
        """The secret beside the database; without one, a random one: nothing was made with it. Raises SettingError."""
        try:
            with storage(f"reading {self._pepper}"), self._pepper.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                pepper = file.read(_PEPPER_BYTES + 1)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return secrets.token_bytes(_PEPPER_BYTES)
            raise
        if mode & 0o077:
            raise SettingError(f"{self._pepper} can be read by others (mode {mode:o}): chmod 600 it, and make new keys")
        if len(pepper) != _PEPPER_BYTES:
            raise SettingError(f"{self._pepper} is damaged: restore it, or remove it and {self._database.name}")
        return pepper

    def _make_pepper(self) -> bytes:
        """The pepper, made if there is none; whole or not there, and only ever one."""
        if not self._pepper.exists():
            if self.listed():
                raise SettingError(
                    f"{self._pepper} is gone, so no key is valid: restore it, or remove {self._database}"
                )
            fresh = self._pepper.with_name(f".pepper.{os.getpid()}-{secrets.token_hex(4)}")
            with storage(f"writing {self._pepper}"):
                try:
                    write_file(fresh, secrets.token_bytes(_PEPPER_BYTES), 0o600)
                    with suppress(FileExistsError):  # another process made it meanwhile
                        os.link(fresh, self._pepper)
                finally:
                    fresh.unlink(missing_ok=True)
                sync_directory(self._pepper.parent)
        return self.pepper()

    @staticmethod
    def _digest(pepper: bytes, key_id: str, secret: str) -> bytes:
        return hmac.digest(pepper, f"{key_id}_{secret}".encode("utf-8", "surrogatepass"), hashlib.sha256)

    def _rows(self, sql: str, *values: str) -> list[tuple[Any, ...]]:
        if not self._database.exists():
            return []
        with self._failing(), closing(self._open()) as connection:
            if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'keys'").fetchone():
                return []  # the first key is in the making
            return connection.execute(sql, values).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with storage(f"preparing {self._database.parent}"):
            self._database.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                os.mknod(self._database, 0o600)  # not opened: closing it would end SQLite's locks of this process
        with self._failing(), closing(self._open()) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(_TABLE)
            yield connection

    def _open(self) -> sqlite3.Connection:
        uri = f"{self._database.absolute().as_uri()}?mode=rw"  # reads only, where the file may not be written
        connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS)
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageError(f"{self._database}: {error}; restore it, or remove it and make new keys") from None


def _check(partner: str, scopes: Collection[str]) -> None:
    if not _NAME.fullmatch(partner):
        raise SettingError(f"partner {partner!r} is no name: 1 to 64 characters, no control characters")
    unknown = [name for name in scopes if name not in SCOPES]
    if unknown or not scopes:
        wrong = f"there is no scope {unknown[0]!r}" if unknown else "a key needs a scope"
        raise SettingError(f"{wrong}; there are {', '.join(SCOPES)}")


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _checksum(text: str) -> str:
    """CRC-32 of the text in six characters, so that a key that was cut or mistyped is known as such."""
    value = zlib.crc32(text.encode("utf-8", "surrogatepass"))
    return "".join(_ALPHABET[value // 62**place % 62] for place in reversed(range(CHECK_LENGTH)))


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat(timespec="microseconds")


def _key(row: tuple[Any, ...]) -> Key:
    key_id, partner, scopes, *times = (None if value is None else str(value) for value in row)
    created, expires, revoked = (None if time is None else datetime.fromisoformat(time) for time in times)
    assert key_id is not None
    assert partner is not None
    assert scopes is not None
    assert created is not None
    return Key(key_id, partner, tuple(scopes.split()), created, expires, revoked)
