"""Options and arguments that several commands share, and what their words stand for."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from kserve._core import Snapshot
from kserve.errors import KserveError, StorageError
from kserve.records import NETWORKS
from kserve.settings import Settings, load
from kserve.snapshots.catalog import SNAPSHOT, Catalog

LONGEST_SPAN = 5
"""Characters of a duration, such as 9999d."""

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_PROFILE_ID = re.compile(r"0|[1-9][0-9]{0,19}")


def complete_version(ctx: typer.Context, incomplete: str) -> list[str]:
    """Versions that begin like this, for the shell."""
    try:
        versions = catalog(ctx.params.get("data")).versions()
    except (KserveError, OSError):
        return []
    return [version.name for version in versions if version.name.startswith(incomplete)]


def complete_gate(incomplete: str) -> list[str]:
    """Gates that may be accepted, for the shell."""
    from kserve.snapshots.gates import GATES

    return [f"{gate.name}=" for gate in GATES if not gate.integrity and gate.name.startswith(incomplete)]


def complete_model(incomplete: str) -> list[str]:
    """Model changes that may be declared, for the shell."""
    try:
        names = [f"model={name}" for name in load().models]
    except KserveError:
        return []
    return [name for name in names if name.startswith(incomplete)]


def setting(name: str, *declarations: str, without: str | bool = False) -> Any:
    """The flag of a setting, with the help and the default that the setting has; ``without``: what None means."""
    field = Settings.model_fields[name]
    default = field.default
    known = ("on" if default else "off") if isinstance(default, bool) else str(default)
    shown = without if default is None else known
    text = field.description or ""
    flags = declarations or (f"--{name.replace('_', '-')}",)
    return typer.Option(*flags, help=f"{text[:1].upper()}{text[1:]}.", show_default=shown)


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, and nothing else.")]
Data = Annotated[
    Path | None,
    typer.Option("--data", envvar="KSERVE_DATA", help="Directory of the snapshots.", show_default="data"),
]
OfVersion = Annotated[
    str | None,
    typer.Option(
        "--version",
        metavar="VERSION",
        autocompletion=complete_version,
        help="Read this published version.",
        show_default="the announced one",
    ),
]
By = Annotated[str | None, setting("by", without="user@host")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for the log and for those who read it.")]
Host = Annotated[str | None, setting("host")]
Port = Annotated[int | None, setting("port")]


def catalog(data: Path | None) -> Catalog:
    """The versions of the data directory in force."""
    return Catalog(load(data=data).data)


def existing(data: Path | None) -> Settings:
    """The settings in force. Raises StorageError when there is no data directory: another one was meant."""
    settings = load(data=data)
    present(settings.data)
    return settings


def present(data: Path) -> Path:
    """The data directory. Raises StorageError when there is none."""
    if not data.is_dir():
        raise StorageError(f"there is no directory {data}: name the data directory with --data")
    return data


def aware(text: str, flag: str) -> datetime:
    """A time with a time zone."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise typer.BadParameter(f"{text!r} is no time with a time zone, such as 2026-11-21T04:00:00Z", param_hint=flag)
    return moment


def duration(text: str) -> timedelta | None:
    """A whole number of minutes, hours, days or weeks, such as 24h; None for any other text."""
    if text[:-1].isdecimal() and text[-1] in _UNITS and len(text) <= LONGEST_SPAN:
        return timedelta(**{_UNITS[text[-1]]: int(text[:-1])})
    return None


def later(text: str, flag: str) -> datetime:
    """A time in the future, or so long from now."""
    now, span = datetime.now(UTC), duration(text)
    if span is not None:
        return now + span
    moment = aware(text, flag)
    if moment <= now:
        raise typer.BadParameter(f"{text} is over", param_hint=flag)
    return moment


def profile_id(text: str) -> int | None:
    """The profile id that the digits stand for, as in the HTTP API; None for anything else."""
    return int(text) if _PROFILE_ID.fullmatch(text) and int(text) < 2**64 else None


def identity(text: str) -> tuple[str, str] | None:
    """Network and id or name of ``network:key``; None for anything else, such as bytes that are no text."""
    network, _, key = text.partition(":")
    try:
        key.encode()
    except UnicodeEncodeError:
        return None
    return (network, key) if network in NETWORKS and key else None


def opened(catalog: Catalog, version: str) -> Snapshot:
    """A candidate or a published version. Raises UnknownVersion, SnapshotError."""
    return Snapshot(catalog.folder(version) / SNAPSHOT)
