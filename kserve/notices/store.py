"""The database of notices, ``DATA/notices.db``: SQLite, used by the processes and threads of one host.

Writers wait for each other, readers for nobody. What a transaction has committed is on disk.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kserve.errors import Busy, KserveError, StorageError
from kserve.settings import Settings

log = logging.getLogger("kserve.notices")

Clock = Callable[[], datetime]

VERSION = 1
BUSY_SECONDS = 5.0
"""How long a writer waits for another one before it raises Busy."""

SCHEMA = """
CREATE TABLE facts (
  name TEXT PRIMARY KEY,
  value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE acts (
  digest TEXT PRIMARY KEY,
  n INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE incidents (
  id TEXT PRIMARY KEY,
  title TEXT NOT NULL,
  visibility TEXT NOT NULL CHECK (visibility IN ('public', 'internal')),
  origin TEXT,
  impact TEXT NOT NULL,
  status TEXT NOT NULL,
  components TEXT NOT NULL,
  versions TEXT NOT NULL,
  opened_at TEXT NOT NULL,
  updated_at TEXT NOT NULL,
  resolved_at TEXT
) STRICT;
CREATE UNIQUE INDEX one_open_incident_of_an_origin ON incidents (origin) WHERE resolved_at IS NULL;
CREATE INDEX incidents_in_time ON incidents (opened_at);

CREATE TABLE updates (
  incident TEXT NOT NULL REFERENCES incidents (id),
  n INTEGER NOT NULL,
  at TEXT NOT NULL,
  by TEXT NOT NULL,
  status TEXT NOT NULL,
  impact TEXT NOT NULL,
  text TEXT NOT NULL,
  PRIMARY KEY (incident, n)
) STRICT, WITHOUT ROWID;

CREATE TABLE events (
  id TEXT PRIMARY KEY,
  type TEXT NOT NULL,
  at TEXT NOT NULL,
  body TEXT NOT NULL
) STRICT;

CREATE TABLE endpoints (
  id TEXT PRIMARY KEY,
  url TEXT NOT NULL,
  types TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('enabled', 'disabled', 'removed')),
  reason TEXT,
  created_at TEXT NOT NULL,
  failing_since TEXT
) STRICT;

CREATE TABLE secrets (
  endpoint TEXT NOT NULL REFERENCES endpoints (id),
  secret TEXT NOT NULL,
  created_at TEXT NOT NULL,
  expires_at TEXT,
  PRIMARY KEY (endpoint, secret)
) STRICT, WITHOUT ROWID;

CREATE TABLE deliveries (
  event TEXT NOT NULL REFERENCES events (id),
  endpoint TEXT NOT NULL REFERENCES endpoints (id),
  state TEXT NOT NULL CHECK (state IN ('pending', 'delivered', 'failed', 'skipped')),
  attempts INTEGER NOT NULL DEFAULT 0,
  tries INTEGER NOT NULL DEFAULT 0,
  due_at TEXT NOT NULL,
  finished_at TEXT,
  PRIMARY KEY (event, endpoint)
) STRICT, WITHOUT ROWID;
CREATE INDEX deliveries_due ON deliveries (endpoint, due_at) WHERE state = 'pending';

CREATE TABLE attempts (
  event TEXT NOT NULL,
  endpoint TEXT NOT NULL,
  n INTEGER NOT NULL,
  at TEXT NOT NULL,
  seconds REAL,
  status INTEGER,
  error TEXT,
  answer TEXT,
  PRIMARY KEY (event, endpoint, n),
  FOREIGN KEY (event, endpoint) REFERENCES deliveries (event, endpoint)
) STRICT, WITHOUT ROWID;
"""
"""Times are ISO 8601 in UTC with microseconds, so that they sort as text; lists are JSON."""


def now() -> datetime:
    """The time, aware, in UTC."""
    return datetime.now(UTC)


def stamp(moment: datetime) -> str:
    """A time as the database has it."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


class Store:
    """One connection to the database; threads that share a Store take turns.

    A process that was forked must open its own. ``public_url`` is the address of the site in events, ``clock`` the
    time, ``patience`` the seconds to wait for others. Raises StorageError when the file cannot be used, Busy when
    another process keeps it locked.
    """

    def __init__(
        self,
        data: str | os.PathLike[str],
        *,
        public_url: str | None = None,
        clock: Clock = now,
        patience: float = BUSY_SECONDS,
    ) -> None:
        self.path = Path(data) / "notices.db"
        self.public_url = None if public_url is None else public_url.rstrip("/")
        self.clock = clock
        self._lock = threading.RLock()
        self._depth = 0
        with _failures(f"opening {self.path}"):
            self._connection = self._open(patience)

    @classmethod
    def of(cls, settings: Settings, patience: float = BUSY_SECONDS) -> Store:
        """The store of the data directory in force."""
        return cls(settings.data, public_url=settings.public_url, patience=patience)

    def close(self) -> None:
        """Close the connection; the Store cannot be used afterwards."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """What a query finds, all of it. Raises StorageError, Busy."""
        with self._lock, _failures(f"reading {self.path}"):
            return self._connection.execute(query, values).fetchall()

    def row(self, query: str, *values: Any) -> sqlite3.Row | None:
        """The first row that a query finds, or None."""
        return next(iter(self.rows(query, *values)), None)

    def run(self, statement: str, *values: Any) -> int:
        """Execute a statement, in a transaction of its own unless one is open; returns the number of rows changed."""
        with self.writing(), _failures(f"writing {self.path}"):
            return self._connection.execute(statement, values).rowcount

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction that sees the newest state and excludes other writers. It may have others inside it.

        It is undone, with what is inside it, when an exception leaves it. Raises StorageError, Busy.
        """
        with self._lock:
            outermost = self._depth == 0
            self._do("BEGIN IMMEDIATE" if outermost else f"SAVEPOINT inner{self._depth}")
            self._depth += 1
            try:
                yield
            except BaseException:
                self._depth -= 1
                with contextlib.suppress(sqlite3.Error):  # SQLite has undone it already when the disk failed
                    self._undo()
                raise
            self._depth -= 1
            try:
                self._do("COMMIT" if outermost else f"RELEASE inner{self._depth}")
            except KserveError:
                with contextlib.suppress(sqlite3.Error):
                    self._undo()
                raise

    def _do(self, statement: str) -> None:
        with _failures(f"writing {self.path}"):
            self._connection.execute(statement)

    def _undo(self) -> None:
        if self._depth == 0:
            self._connection.execute("ROLLBACK")
        else:
            self._connection.execute(f"ROLLBACK TO inner{self._depth}")
            self._connection.execute(f"RELEASE inner{self._depth}")

    def fact(self, name: str) -> str | None:
        """A single value that is kept under a name."""
        found = self.row("SELECT value FROM facts WHERE name = ?", name)
        return None if found is None else str(found["value"])

    def keep(self, name: str, value: str | None) -> None:
        """Keep a value under a name; None forgets it."""
        if value is None:
            self.run("DELETE FROM facts WHERE name = ?", name)
        else:
            self.run("INSERT OR REPLACE INTO facts VALUES (?, ?)", name, value)

    def _open(self, patience: float) -> sqlite3.Connection:
        if not self.path.parent.is_dir():
            raise StorageError(f"there is no directory {self.path.parent}: name the data directory with --data")
        with contextlib.suppress(FileExistsError):  # not opened: closing it would end the locks of all our connections
            os.mknod(self.path, 0o600)  # it will hold secrets
        connection = sqlite3.connect(self.path, timeout=patience, isolation_level=None, check_same_thread=False)
        try:
            connection.row_factory = sqlite3.Row
            _retried(lambda: connection.execute("PRAGMA journal_mode = WAL"), patience)
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            self._make_tables(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _make_tables(self, connection: sqlite3.Connection) -> None:
        if _version(connection) == VERSION:
            return
        connection.execute("BEGIN IMMEDIATE")
        found = _version(connection)
        if found > VERSION:
            raise StorageError(
                f"{self.path} was made by a newer kserve: its schema is {found}, this one knows {VERSION}"
            )
        if found == 0:
            for statement in SCHEMA.split(";\n"):
                connection.execute(statement)
            connection.execute("INSERT INTO facts VALUES ('since', ?)", (stamp(self.clock()),))
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _retried(step: Callable[[], object], patience: float) -> None:
    """SQLite does not wait for a lock when the journal's mode changes, as its own time-out says it would."""
    until = time.monotonic() + patience
    while True:
        try:
            step()
            return
        except sqlite3.OperationalError as error:
            if _reason(error) != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
        time.sleep(0.01)


@contextmanager
def _failures(doing: str) -> Iterator[None]:
    """Turn the errors of SQLite and of the file system into ours."""
    try:
        yield
    except sqlite3.Error as error:
        if _reason(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise Busy(f"{doing}: another process keeps it locked; try again") from error
        raise StorageError(f"{doing}: {error}") from error
    except OSError as error:
        raise StorageError(f"{doing}: {error.strerror or error}") from error


def _reason(error: sqlite3.Error) -> int:
    """The primary code of an error, without what extends it."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
