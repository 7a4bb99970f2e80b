"""What the gates found, who accepted what, and the figures to draw; kept as ``checks/VERSION.json``."""

from __future__ import annotations

import logging
import os
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from kserve.snapshots import shapes
from kserve.snapshots.durable import replace_file, storage
from kserve.snapshots.measures import Groups, Portrait

log = logging.getLogger("kserve.gates")

Verdict = Literal["pass", "warn", "hold"]

CHECKS = "checks"
"""Folder of the reports in a data directory."""

TOP_GROUPS = 10
"""The biggest regions and topics that a report tells of."""


class Acceptance(msgspec.Struct, frozen=True):
    """Someone lets a version pass a gate that holds it, until an aware moment."""

    gate: str
    reason: str
    by: str
    until: datetime


class Finding(msgspec.Struct, frozen=True):
    """What one gate found.

    ``figure`` and ``threshold`` are for people; ``value`` is the figure as a number, where it is one. ``reason`` is one
    sentence. A hold of an ``integrity`` gate can never be accepted.
    """

    gate: str
    verdict: Verdict
    figure: str
    value: float | None
    threshold: str
    reason: str
    integrity: bool = False
    accepted: Acceptance | None = None

    @property
    def holds(self) -> bool:
        """Whether it holds and nobody has accepted that."""
        return self.verdict == "hold" and self.accepted is None


class Group(msgspec.Struct, frozen=True):
    """A region or topic; ``mean`` in points, of those who have a score, None when nobody has."""

    name: str
    profiles: int
    mean: float | None


class Figures(msgspec.Struct, frozen=True):
    """What is drawn of a version, and what the gates remember of it. Scores are in points, None without any score."""

    version: str
    scored_at: datetime
    profiles: int
    unscored: int
    histogram: tuple[int, ...]
    """By whole points: element p counts scores of p.00 to p.99, for p from 0 to 100."""
    mean: float | None
    p1: float | None
    p50: float | None
    p99: float | None
    file_bytes: int
    regions: tuple[Group, ...]
    """The biggest; a country and its parts are all counted."""
    topics: tuple[Group, ...]

    @classmethod
    def of(cls, portrait: Portrait) -> Figures:
        p1, p50, p99 = (shapes.quantile(portrait.histogram, share) for share in (0.01, 0.5, 0.99))
        return cls(
            version=portrait.version,
            scored_at=portrait.scored_at,
            profiles=portrait.profiles,
            unscored=portrait.unscored,
            histogram=tuple(shapes.by_points(portrait.histogram).tolist()),
            mean=shapes.mean(portrait.histogram),
            p1=p1,
            p50=p50,
            p99=p99,
            file_bytes=portrait.file_bytes,
            regions=_biggest(portrait.regions),
            topics=_biggest(portrait.topics),
        )


def _biggest(groups: Groups) -> tuple[Group, ...]:
    order = np.argsort(groups.profiles.astype(np.int64), kind="stable")[::-1][:TOP_GROUPS].tolist()
    scored = groups.histogram.sum(axis=1)
    means = [float(groups.sums[i] / scored[i]) if scored[i] else None for i in order]
    return tuple(Group(groups.names[i], int(groups.profiles[i]), mean) for i, mean in zip(order, means, strict=True))


class Report(msgspec.Struct, frozen=True):
    """The verdicts of all gates on one version."""

    version: str
    against: str | None
    """The version it was compared with: the one that was live."""
    at: datetime
    first: bool
    """It was declared the first publish, and is: there was nothing to compare with."""
    model: str | None
    """The model change that was declared."""
    digest: str
    """Of the content, whatever the version is called."""
    findings: tuple[Finding, ...]
    new: Figures
    old: Figures | None

    @property
    def held(self) -> tuple[Finding, ...]:
        """The findings that keep this version from being announced."""
        return tuple(finding for finding in self.findings if finding.holds)

    def finding(self, gate: str) -> Finding:
        """What the gate of that name found. Raises KeyError."""
        return {finding.gate: finding for finding in self.findings}[gate]

    def to_json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self)) + b"\n"

    @classmethod
    def from_json(cls, text: bytes) -> Report:
        """Raises msgspec.DecodeError, or its ValidationError, for anything else than a report."""
        return msgspec.json.decode(text, type=cls)


def save(data: str | os.PathLike[str], report: Report) -> None:
    """Keep it as the last report on its version. Raises StorageError."""
    folder = Path(data) / CHECKS
    with storage(f"writing the report on {report.version}"):
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / f"{report.version}.json", report.to_json())


def load(data: str | os.PathLike[str], version: str) -> Report | None:
    """The last report on a version; None when there is none, or it is damaged. Raises OSError when it is not read."""
    file = Path(data) / CHECKS / f"{Path(version).name}.json"
    try:
        return Report.from_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        log.error("%s is no report that can be read: %s", file, error)
        return None
