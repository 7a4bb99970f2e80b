"""One tree of errors. Each class knows the HTTP status and the CLI exit code that it ends in.

The exit codes are part of the interface: scripts may rely on them, and ``docs/cli.md`` lists them.
"""

from __future__ import annotations

from pathlib import Path


class KserveError(Exception):
    """The root of everything that kserve raises on purpose."""

    slug = "internal"
    http_status = 500
    exit_code = 1


class SettingError(KserveError):
    """A setting has a value that cannot be used."""

    slug = "setting"
    exit_code = 8


class ArgumentError(SettingError):
    """A command was given what it cannot take."""

    slug = "usage"
    exit_code = 2


class InputError(KserveError):
    """What was given cannot be taken, or does not go with what there is. The text names file, row, field and remedy, as
    far as they are known."""

    slug = "bad-input"
    http_status = 422
    exit_code = 5

    def __init__(
        self,
        message: str,
        *,
        file: str | Path | None = None,
        row: int | None = None,
        field: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.file = None if file is None else str(file)
        self.row = row
        self.field = field
        self.remedy = remedy
        place = [str(file)] if file is not None else []
        place += [f"row {row}"] if row is not None else []
        place += [f"column {field}"] if field is not None else []
        text = f"{', '.join(place)}: {message}" if place else message
        super().__init__(f"{text} ({remedy})" if remedy else text)


class RuleError(KserveError, ValueError):
    """An eligibility rule makes no sense, or names a topic that the snapshot does not have."""

    slug = "bad-rule"
    http_status = 422
    exit_code = 5


class UnknownProfile(KserveError, KeyError):
    """No such profile in this snapshot; who has opted out is not in it either."""

    slug = "unknown-profile"
    http_status = 404
    exit_code = 4

    def __init__(self, profile_id: object, version: str) -> None:
        super().__init__(profile_id, version)
        self.profile_id = profile_id
        self.version = version

    def __str__(self) -> str:
        return f"no profile {self.profile_id} in snapshot {self.version}"


class UnknownVersion(KserveError, KeyError):
    """No snapshot or candidate of that name."""

    slug = "unknown-version"
    http_status = 404
    exit_code = 4

    def __str__(self) -> str:
        return str(self.args[0])


class UnknownKey(KserveError, KeyError):
    """No API key of that id."""

    slug = "unknown-key"
    http_status = 404
    exit_code = 4

    def __str__(self) -> str:
        return str(self.args[0])


class Held(KserveError):
    """A gate holds a candidate: it was not announced. ``gates`` names those that hold."""

    slug = "held"
    http_status = 409
    exit_code = 3

    def __init__(self, message: str, gates: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.gates = gates


class Pinned(KserveError):
    """A pin keeps another version in force; what was asked for was not announced."""

    slug = "pinned"
    http_status = 409
    exit_code = 12


class RolledBack(KserveError):
    """A version was announced, and rolled back because of what it answered."""

    slug = "rolled-back"
    http_status = 409
    exit_code = 11


class SnapshotError(KserveError):
    """A file is not a whole, sealed snapshot. ``check`` is the name of the check that failed."""

    slug = "bad-snapshot"
    http_status = 503
    exit_code = 6

    def __init__(self, path: str | Path, check: str, detail: str) -> None:
        super().__init__(f"{path}: not a usable snapshot: {check}: {detail}")
        self.path = str(path)
        self.check = check


class NothingPublished(KserveError):
    """The data directory has no announced snapshot yet."""

    slug = "nothing-published"
    http_status = 503
    exit_code = 7


class StorageError(KserveError):
    """The file system failed us: full, read-only, or an I/O error. Nothing half-made stays in sight."""

    slug = "storage"
    exit_code = 9


class Busy(KserveError):
    """Another process holds the lock that this act needs."""

    slug = "busy"
    http_status = 409
    exit_code = 10
