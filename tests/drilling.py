"""What the drills share: nights of a scoring pipeline, gone wrong in a chosen way, and a time line of what followed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kserve import Snapshot, synth
from kserve.settings import Settings
from kserve.snapshots.build import Options, build, opted_out_ids
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.check import check
from kserve.snapshots.completeness import write_manifest
from kserve.snapshots.report import Figures, Report

Alter = Callable[[pa.Table], pa.Table]
MANIFEST = "_manifest.json"


@dataclass(frozen=True)
class Night:
    """A candidate of one night."""

    snapshot: Snapshot
    manifest: dict[str, Any]
    opted_out: np.ndarray

    @property
    def scored_at(self) -> datetime:
        return datetime.fromisoformat(self.manifest["scored_at"])


class Pipeline:
    """Makes nights of the same population; ``columns`` as in synth.Plan."""

    def __init__(self, root: Path, profiles: int, columns: str = "all") -> None:
        self.root = root
        self.profiles = profiles
        self.columns = columns
        self.catalog = Catalog(root / "data")

    def output(self, name: str, day: int, alter: Alter | None = None) -> Path:
        """The folder that the pipeline leaves behind: when it went wrong, without the manifest that comes last."""
        folder = self.root / name
        when = datetime.now(UTC).replace(microsecond=0) - timedelta(days=40 - day)
        synth.write(folder, synth.Plan(self.profiles, day, columns=self.columns), when=when)
        if alter is not None:
            (folder / MANIFEST).rename(self.root / f"{name}-{MANIFEST}")
            for file in folder.glob("part-*.parquet"):
                pq.write_table(alter(pq.read_table(file)), file)
        return folder

    def forge(self, folder: Path) -> None:
        """Write a manifest that fits what is there, as if it were complete."""
        told = json.loads((self.root / f"{folder.name}-{MANIFEST}").read_text())
        write_manifest(folder, datetime.fromisoformat(told["scored_at"]))

    def night(self, folder: Path, scored_at: datetime | None = None) -> Night:
        told = Options(topics=folder / "topics.csv", topic_edges=folder / "topic_edges.csv", scored_at=scored_at)
        made = build(self.catalog, folder, told)
        lies = self.catalog.folder(made.version)
        ids = opted_out_ids(lies)
        assert ids is not None
        return Night(Snapshot(lies / "snapshot.kss"), made.manifest, ids)

    def forged(self, name: str, day: int, alter: Alter) -> Night:
        """A night that went wrong and claims to be complete."""
        folder = self.output(name, day, alter)
        self.forge(folder)
        return self.night(folder)


def gated(
    night: Night, live: Night | None, history: Sequence[Figures] = (), model: str | None = None, **settings: Any
) -> Report:
    """What the gates say, an hour after the scores were made."""
    return check(
        night.snapshot,
        night.manifest,
        live=None if live is None else live.snapshot,
        live_manifest=None if live is None else live.manifest,
        history=history,
        settings=Settings(**settings),
        first=live is None,
        model=model,
        now=night.scored_at + timedelta(hours=1),
        opted_out=night.opted_out,
        once_opted_out=None if live is None else live.opted_out,
    )


def held(report: Report) -> list[str]:
    return [finding.gate for finding in report.held]


class TimeLine:
    """Prints what happened when; `make drill` shows it."""

    def __init__(self, title: str) -> None:
        self._start = time.monotonic()
        print(f"\n{title}")

    def say(self, text: str) -> float:
        """A line; the seconds since the beginning."""
        seconds = time.monotonic() - self._start
        print(f"  {seconds:6.2f} s  {text}", flush=True)
        return seconds

    def verdict(self, report: Report) -> None:
        self.say(f"held by {', '.join(held(report))}" if report.held else "no gate holds it")
        for finding in report.held:
            print(f"            {finding.gate}: {finding.reason}")


# What goes wrong.


def column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    """The table with another column in the place of one."""
    return table.set_column(table.column_names.index(name), name, values)


def scores(table: pa.Table) -> np.ndarray:
    """float64[n] points, NaN for unscored."""
    return table["score"].to_numpy()


def with_scores(table: pa.Table, points: np.ndarray) -> pa.Table:
    rounded = np.round(np.clip(points, 1, 100), 2)
    return column(table, "score", pa.array(rounded, mask=np.isnan(points)))
