"""The two nights before a demo: what is not there yet is made, built and published, through the real cycle."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from kserve.cli import output
from kserve.cli.publishing import Narrator
from kserve.errors import SettingError
from kserve.settings import Settings
from kserve.snapshots import cycle
from kserve.snapshots.build import Options
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.cycle import Request
from kserve.synth import Plan, write

BY = "kserve demo"
"""Who acts, in the log."""

DAYS = (1, 2)


class Nights:
    """Makes, builds and publishes what is not there yet."""

    def __init__(self, settings: Settings, profiles: int, seed: int, quiet: bool) -> None:
        self.settings = settings
        self.catalog = Catalog(settings.data)
        self.plans = [Plan(profiles, day, seed) for day in DAYS]
        self._name = f"demo of {profiles} profiles, seed {seed}"
        self._quiet = quiet
        self._lines = 0
        self._start = time.monotonic()
        self._last = _last_night(datetime.now(UTC))
        self._check_data()

    def _check_data(self) -> None:
        """Synthetic scores must not be announced where real ones are. Raises SettingError."""
        for act in self.catalog.log.entries():
            if act.act == "announce" and (act.by, act.why) != (BY, self._name):
                raise SettingError(
                    f"{self.catalog.data} has {act.version}, which this demo did not make: give it a --data of its own"
                )

    def published(self) -> list[str]:
        """The versions of both days; the last of them is announced."""
        versions = list(map(self._version, self.plans))
        if self.catalog.announced() != versions[-1]:  # somebody may have gone back to the first since
            self._cycle(Request(version=versions[-1]))
        return versions

    def _version(self, plan: Plan) -> str:
        folder = self._input(plan)
        version = self._published(folder)
        if version is not None:
            self._done("snapshot", f"{version} is published already")
            return version
        told = Options(
            topics=folder / "topics.csv", topic_edges=folder / "topic_edges.csv", scored_at=self._scored_at(plan)
        )
        return self._cycle(Request(source=folder, options=told))

    def _cycle(self, request: Request) -> str:
        request = replace(request, by=BY, why=self._name, first=self.catalog.live() is None, watch=False)
        with Narrator(quiet=True) as told:
            version = cycle.publish(self.catalog, self.settings, request, told).version
        self._done("snapshot", f"{version} is published: {self.catalog.manifest(version)['profiles']:,} profiles")
        return version

    def _done(self, what: str, result: str) -> None:
        """Tell of one step, with the seconds since the one before."""
        self._lines += 1
        now = time.monotonic()
        if not self._quiet:
            output.say(f"{self._lines}  {what:<8}  {result} ({now - self._start:.1f} s)")
        self._start = now

    def _scored_at(self, plan: Plan) -> datetime:
        return self._last - timedelta(days=DAYS[-1] - plan.day)

    def _input(self, plan: Plan) -> Path:
        folder = self.catalog.data / "demo-input" / f"{plan.profiles}-profiles-seed-{plan.seed}" / f"day-{plan.day}"
        if _made_by(folder, plan):
            self._done("profiles", f"{folder} is there already")
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        with output.bars(profiles=f"making profiles of day {plan.day}") as report:
            write(folder, plan, partial(report, "profiles"), self._scored_at(plan))
        self._done("profiles", f"{plan.profiles:,} of day {plan.day} in {folder}")
        return folder

    def _published(self, folder: Path) -> str | None:
        """The published version that was built from this input."""
        digests = [part["sha256"] for part in _manifest(folder)["parts"]]
        for version in self.catalog.versions():
            if version.state != "candidate":
                parts = self.catalog.manifest(version.name)["parts"]
                if [part["sha256"] for part in parts] == digests:
                    return version.name
        return None


def _last_night(now: datetime) -> datetime:
    """The last time that it was 04:00 UTC."""
    today = now.replace(hour=4, minute=0, second=0, microsecond=0)
    return today if today <= now else today - timedelta(days=1)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "_manifest.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _made_by(folder: Path, plan: Plan) -> bool:
    """Whether a whole input of this plan lies there; its manifest says from what it was made."""
    generator = _manifest(folder).get("generator", {})
    return bool(asdict(plan).items() <= generator.items())
