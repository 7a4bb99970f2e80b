"""The publish cycle: build, re-read, check, stage, announce, watch. Stopped at any point, it can be run again.

Until `announce` the version in force stays; after it the new one is in force, whether this process lives or not.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from kserve._core import Snapshot
from kserve._roster import REFUSED, Roster, SeatView
from kserve.errors import Busy, Held, RolledBack, SnapshotError, UnknownVersion
from kserve.settings import Settings
from kserve.snapshots.build import Candidate, Options, build, opted_out_ids
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.check import check
from kserve.snapshots.columns import U64
from kserve.snapshots.compare import portrait
from kserve.snapshots.durable import storage
from kserve.snapshots.log import Entry
from kserve.snapshots.orders import Orders
from kserve.snapshots.report import Acceptance, Figures, Report, load, save
from kserve.snapshots.signing import Signer
from kserve.snapshots.state import State

STEPS = ("build", "re-read", "check", "stage", "announce", "watch")
"""Of a cycle, in order; they are numbered from 1."""

POLL_SECONDS = 0.05

JUDGED_LATE = 10.0
"""Seconds beyond the watch until a publisher stops waiting for the verdict: no server is there to give it."""


class Told(Protocol):
    """Who is told how a cycle goes. Nothing of it may fail: a publish does not end because nobody reads along."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """Of a long step: "rows", "bytes" (of the build), "verify", "compare", "watch" (seconds)."""

    def step(self, name: str, result: str) -> None:
        """A step of STEPS is done."""

    def report(self, report: Report) -> None:
        """What the gates say; before the cycle goes on or stops."""

    def warn(self, text: str) -> None:
        """What people should know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to publish: an input to build from, or a version that there is."""

    source: str | Path | None = None
    version: str | None = None
    options: Options = field(default_factory=Options)
    by: str | None = None
    why: str | None = None
    first: bool = False
    model: str | None = None
    accept: Sequence[Acceptance] = ()
    dry_run: bool = False
    watch: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a cycle ended. ``judged``: "good", "unjudged" (nobody waited for the verdict), or None: not announced."""

    version: str
    previous: str | None
    report: Report | None
    announced: bool
    judged: str | None


def publish(catalog: Catalog, settings: Settings, request: Request, told: Told) -> Outcome:
    """Run a cycle. One at a time in a data directory.

    Raises Held, Pinned, RolledBack, Busy, InputError, UnknownVersion, SnapshotError, StorageError, SettingError.
    """
    with storage(f"publishing in {catalog.data}"), catalog.publishing():
        return _Cycle(catalog, settings, request, told).run()


class _Cycle:
    """The steps of one cycle, in order."""

    def __init__(self, catalog: Catalog, settings: Settings, request: Request, told: Told) -> None:
        self.catalog = catalog
        self.settings = settings
        self.request = request
        self.told = told
        self.orders = Orders(catalog, settings)
        self.signer = None if settings.signing_key is None else Signer.load(settings.signing_key)

    def run(self) -> Outcome:
        self.catalog.log.verify()
        self.orders.settle()
        version = self._build()
        live = self.catalog.live()
        if version == live:
            return self._again(version)
        report = self._check(version, live)
        if self.request.dry_run:
            return Outcome(version, live, report, announced=False, judged=None)
        self._refuse(version, report)
        try:
            self._stage(version)
            self._announce(version, live, report)
        except BaseException:
            self.catalog.unstage()
            raise
        return Outcome(version, live, report, announced=True, judged=self._watch(version, live))

    def _build(self) -> str:
        if self.request.version is not None:
            return self.request.version
        assert self.request.source is not None
        candidate = build(self.catalog, self.request.source, self.request.options, self.told.progress)
        for warning in candidate.warnings:
            self.told.warn(warning)
        self.orders.note("build", candidate.version, _built(candidate), self.request.by)
        rejected = sum(candidate.manifest["rows"]["rejected"].values())
        self.told.step(
            "build",
            f"{candidate.version}: {candidate.manifest['profiles']:,} profiles from"
            f" {candidate.manifest['rows']['read']:,} rows, {rejected:,} rejected",
        )
        return candidate.version

    def _again(self, version: str) -> Outcome:
        """It is in force already, perhaps of a cycle that was killed: only what comes after is left to do."""
        self.catalog.unstage()
        if self.catalog.folder(version).parent == self.catalog.candidates:
            self._repair(version)
        self.told.step("announce", f"{version} is in force already")
        state = self.orders.state()
        if state.frozen:
            self.told.step("watch", "a human is waited for: `kserve unpin` ends that")
            judged = "unjudged"
        else:
            judged = self._watch(version, None) if state.unjudged is not None else "good"
        return Outcome(version, version, None, announced=True, judged=judged)

    def _repair(self, version: str) -> None:
        """The build made the version in force anew, because its file is damaged."""
        self.catalog.reread(version)
        self.catalog.place(version, self.signer)
        self.told.warn(f"{version} was damaged, and is repaired: restart the processes that have the damaged file open")

    def _check(self, version: str, live: str | None) -> Report:
        with self.catalog.reread(version, lambda *done: self.told.progress("verify", *done)) as snapshot:
            self.told.step("re-read", f"{snapshot.nbytes:,} bytes as a reader will, every checksum right")
            report = checked(self.catalog, self.settings, snapshot, live, self.request, self.told, self.orders.state())
        save(self.catalog.data, report)
        self.orders.note("check", version, _seen(report), self.request.by)
        self.told.report(report)
        holds = ", ".join(finding.gate for finding in report.held)
        self.told.step("check", f"held by {holds}" if holds else "no gate holds it")
        return report

    def _refuse(self, version: str, report: Report) -> None:
        if report.held:
            by_reason: dict[str, list[str]] = {}
            for finding in report.held:
                by_reason.setdefault(finding.reason, []).append(finding.gate)
            told = "; ".join(f"{', '.join(gates)}: {reason}" for reason, gates in by_reason.items())
            raise Held(f"{version} is held: {told}", tuple(finding.gate for finding in report.held))
        for finding in report.findings:
            if finding.accepted is not None and finding.accepted in self.request.accept:
                given = finding.accepted
                self.orders.accept(version, given.gate, why=given.reason, by=given.by, until=given.until)
        self.orders.refuse_pinned(version)

    def _stage(self, version: str) -> None:
        self.catalog.place(version, self.signer)
        waited = 0
        if self.settings.stage:
            until = time.monotonic() + self.settings.stage_timeout
            self._wait_until_forgotten(version, until)
            self.catalog.stage(version)
            waited = self._wait_until_staged(version, until)
        self.orders.note("stage", version, {"processes": waited}, self.request.by)
        ready = f", open and warm in {_processes(waited)}" if waited else ""
        self.told.step("stage", f"it lies in {self.catalog.snapshots / version}{ready}")

    def _wait_until_forgotten(self, version: str, until: float) -> None:
        """Until no process says any more that it refused the version when it was staged before. Raises Busy."""
        while stale := [seat for seat in self._seats() if _refuses(seat, version)]:
            self.catalog.unstage()
            self._refuse_late(version, stale, until)
            time.sleep(POLL_SECONDS)

    def _wait_until_staged(self, version: str, until: float) -> int:
        """The number of processes that are ready.

        Raises SnapshotError when one refuses, Busy when one is late, Pinned and Held when an act came between.
        """
        while True:
            seats = self._seats()
            late = [seat for seat in seats if not seat.ready(version)]
            for seat in late:
                if _refuses(seat, version):
                    raise SnapshotError(
                        self.catalog.snapshots / version, "staging", f"process {seat.pid} refuses it; its log says why"
                    )
            if not late:
                return len(seats)
            self.orders.refuse_pinned(version)
            if self.catalog.staged() != version:
                raise Held(f"another version came in force while {version} was staged: publish it again")
            self._refuse_late(version, late, until)
            time.sleep(POLL_SECONDS)

    def _refuse_late(self, version: str, late: list[SeatView], until: float) -> None:
        if time.monotonic() > until:
            pids = ", ".join(str(seat.pid) for seat in late)
            raise Busy(f"{version} is not ready after {self.settings.stage_timeout:g} s in process {pids}")

    def _seats(self) -> list[SeatView]:
        return Roster(self.catalog.roster).seats() if self.catalog.roster.exists() else []

    def _announce(self, version: str, live: str | None, report: Report) -> None:
        accepted = [finding.gate for finding in report.findings if finding.accepted is not None]
        seen: dict[str, Any] = {"digest": report.digest, "accepted": accepted}
        if report.model is not None:
            seen["model"] = report.model
        self.orders.announce(version, against=live, by=self.request.by, why=self.request.why, seen=seen)
        self.told.step("announce", f"{self.catalog.data} now serves {version}")

    def _watch(self, version: str, previous: str | None) -> str:
        """Wait for the verdict of the servers; when there are none, what was re-read is all that can be known.

        Raises RolledBack.
        """
        if not any(seat.role == "server" for seat in self._seats()):
            if self.orders.judge_good(version, {"servers": 0}, self.request.by):
                self.told.step("watch", "no server is up: nothing to watch")
                return "good"
            self.told.step("watch", "no server is up, and it has answered badly: the next one that starts judges it")
            return "unjudged"
        if not self.request.watch:
            return "unjudged"
        return self._verdict(version)

    def _verdict(self, version: str) -> str:
        began, seconds = time.monotonic(), self.settings.watch.seconds
        while (passed := time.monotonic() - began) < seconds + JUDGED_LATE:
            self.told.progress("watch", min(int(passed), int(seconds)), int(seconds))
            live = self.catalog.live()
            state = self.orders.state()
            if version != live or version != state.current:
                raise RolledBack(f"{version} was rolled back: {self._why_rolled_back()}")
            if state.frozen:
                raise RolledBack(f"{version} answers badly, and there is no good version to go back to: please act")
            if state.unjudged is None:
                self.told.step("watch", f"{version} is served and good")
                return "good"
            time.sleep(POLL_SECONDS)
        self.told.step("watch", "no server has given a verdict; the next one that starts will")
        return "unjudged"

    def _why_rolled_back(self) -> str:
        orders = [entry for entry in self.catalog.log.entries() if entry.act in ("announce", "rollback")]
        last = orders[-1]
        return f"{last.version} is back in force, by {last.by}: {last.why or 'no reason was given'}"


def _refuses(seat: SeatView, version: str) -> bool:
    return seat.staged == version and seat.staged_state == REFUSED


def checked(
    catalog: Catalog,
    settings: Settings,
    snapshot: Snapshot,
    live: str | None,
    request: Request,
    told: Told,
    state: State,
) -> Report:
    """What the gates say of a version that was re-read. Changes nothing."""
    known = dict.fromkeys(name for name in (live, *reversed(state.good)) if name and name != snapshot.version)
    against, against_manifest = _compared_with(catalog, known, told)
    history = [_figures(catalog, name, told) for name in state.baseline[-settings.gates.drift_versions :]]
    given = [_acceptance(entry) for entry in state.accepted.get(snapshot.version, ())]
    return check(
        snapshot,
        catalog.manifest(snapshot.version),
        live=against,
        live_manifest=against_manifest,
        history=[figures for figures in history if figures is not None],
        settings=settings,
        first=request.first,
        model=request.model,
        acceptances=[*given, *request.accept],
        quarantined={*state.quarantined, *(bad.version for bad in state.quarantined.values())},
        opted_out=opted_out_ids(catalog.folder(snapshot.version)),
        once_opted_out=None if against is None else _once_opted_out(catalog, against.version, told),
        progress=lambda *done: told.progress("compare", *done),
    )


def _acceptance(entry: Entry) -> Acceptance:
    until = datetime.fromisoformat(entry.seen["until"])
    return Acceptance(gate=entry.seen["gate"], reason=entry.why or "", by=entry.by, until=until)


def _compared_with(
    catalog: Catalog, versions: Iterable[str], told: Told
) -> tuple[Snapshot, dict[str, Any]] | tuple[None, None]:
    """The first version that can be read: that in force, else the last good one; None when there is none."""
    for version in versions:
        try:
            return catalog.open(version), catalog.manifest(version)
        except (SnapshotError, UnknownVersion) as error:
            told.warn(f"{version} cannot be compared with: {error}")
    return None, None


def _figures(catalog: Catalog, version: str, told: Told) -> Figures | None:
    """Of a good version: those of its report, or measured again; None when it is gone too."""
    report = load(catalog.data, version)
    if report is not None:
        return report.new
    try:
        with catalog.open(version) as snapshot:
            return Figures.of(portrait(snapshot))
    except (SnapshotError, UnknownVersion) as error:
        told.warn(f"{version} is not in the baseline: its report is lost, and {error}")
        return None


def _once_opted_out(catalog: Catalog, live: str, told: Told) -> U64 | None:
    try:
        return opted_out_ids(catalog.folder(live))
    except SnapshotError as error:
        told.warn(f"who had opted out before cannot be compared with: {error}")
        return None


def _built(candidate: Candidate) -> dict[str, Any]:
    return {"profiles": candidate.manifest["profiles"], "rows": candidate.manifest["rows"]}


def _seen(report: Report) -> dict[str, Any]:
    return {
        "against": report.against,
        "model": report.model,
        "gates": {finding.gate: finding.verdict for finding in report.findings},
        "held": [finding.gate for finding in report.held],
        "figures": {finding.gate: finding.figure for finding in report.findings if finding.verdict != "pass"},
    }


def _processes(count: int) -> str:
    return f"{count} process{'es' if count != 1 else ''}"
