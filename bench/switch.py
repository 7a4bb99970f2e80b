"""Another version: opening it, the swap itself, from announcement to served, and look-ups meanwhile.

Two versions of the same profiles are announced in turn, every 0.3 seconds, by a publisher in another process than the
reader. The reader times look-ups while this goes on and, in turn with it, while nothing is announced. Announcing is the
last step of publishing; the building and verifying before it are not part of this.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import kserve
from bench._data import Data
from bench._harness import Child, Report, Run, Stopwatch, ratios, say
from kserve import Snapshot, Store
from kserve.settings import load
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.orders import Orders

ROUNDS = 5
TOY_PHASE = 1.2
PHASE = 3.0  # seconds, one quiet and one with announcements a round
PERIOD = 0.3  # seconds between announcements
MARGIN = 0.2  # seconds at either end of a phase that belong to neither
GROUP = 64  # calls in one measurement of the second kind
POOL = 1 << 20
SWAPS = 100_000
OPENINGS = 20
Announced = tuple[float, float, str]
OPEN_BAR, SWAP_BAR, TAIL_BAR, SERVED_BAR = 50, 1, 1.2, 100


def measure(run: Run) -> Report:
    """Milliseconds, and the tail of look-ups."""
    data = Data(run)
    report = Report("switch", "opening a version, switching to it, and look-ups meanwhile")
    catalog = data.catalog()
    versions = [version.name for version in catalog.versions()]
    if len(versions) < 2:
        versions.append(data.publish(catalog, days_later=2))
    files = [catalog.folder(version) / "snapshot.kss" for version in versions[:2]]
    snapshot = _measure_opening(report, files)
    ids = Path(data.folder, "switch-ids.npy")
    np.save(ids, data.records().random_ids(POOL, seed=11))
    for warm in (True, False):
        _measure_switching(run, report, catalog, versions[:2], ids, warm)
    report.notes.append(
        f"{snapshot.profiles:,} profiles, files of {snapshot.nbytes / 1e6:,.0f} MB, all in the page cache"
    )
    return report


def _measure_opening(report: Report, files: list[Path]) -> Snapshot:
    first, second = Snapshot(files[0]), Snapshot(files[1])
    first.warm()
    second.warm()
    stages: dict[str, list[float]] = {"open": [], "warm": [], "first rule": [], "unmap": []}
    for turn in range(OPENINGS):
        watches = {name: Stopwatch() for name in stages}
        with watches["open"]:
            snapshot = Snapshot(files[turn % 2])
        with watches["warm"]:
            snapshot.warm()
        with watches["first rule"]:
            snapshot.locations()
        with watches["unmap"]:
            del snapshot
        for name, watch in watches.items():
            stages[name].append(watch.seconds * 1000)
    for name, meaning in (
        ("open", "open, structure checked"), ("warm", "map all pages (warm), afterwards"),
        ("first rule", "decode topics and locations, on first use"), ("unmap", "unmap"),
    ):  # fmt: skip
        report.add(meaning, "ms", stages[name])
    report.bar("open without full verification", stages["open"], "at most", OPEN_BAR, "ms")
    store = Store(first)
    times = np.empty(SWAPS)
    for turn in range(SWAPS):
        start = time.perf_counter_ns()
        store.swap(second if turn % 2 else first)
        times[turn] = time.perf_counter_ns() - start
    report.add("the swap", "µs", [float(np.median(times)) / 1e3])
    report.add("the swap, 99.9th percentile", "µs", [float(np.quantile(times, 0.999)) / 1e3])
    report.bar(
        "the swap itself, slowest of all but 0.1 %", [float(np.quantile(times, 0.999)) / 1e6], "at most", SWAP_BAR, "ms"
    )
    return first


def _measure_switching(run: Run, report: Report, catalog: Catalog, versions: list[str], ids: Path, warm: bool) -> None:
    name = f"warm {'on' if warm else 'off'}"
    say(f"switching, with {name}")
    announced, seen = _switch(run, catalog, versions, "watch", warm=warm)
    delays = _delays(announced, seen)
    report.notes.append(f"{name}: {len(delays)} of {len(announced)} announcements were followed")
    report.add(f"{name}: announcing itself, with its syncs", "ms", [(after - at) * 1e3 for at, after, _ in announced])
    report.add(f"{name}: from announcing to served in another process", "ms", [delay * 1e3 for delay in delays])
    report.bar(f"{name}: from announcing to served", [delay * 1e3 for delay in delays], "at most", SERVED_BAR, "ms")
    announced, phases = _switch(run, catalog, versions, "read", warm=warm, ids=str(ids))
    quiet, busy = phases[0::2], phases[1::2]
    for key, meaning in (("call", "one call"), ("group", f"{GROUP} calls")):
        report.add(f"{name}: p99.9 of {meaning}, quiet", "µs", [phase[key] / 1e3 for phase in quiet])
        report.add(f"{name}: p99.9 of {meaning}, switching", "µs", [phase[key] / 1e3 for phase in busy])
        tails = ratios([phase[key] for phase in busy], [phase[key] for phase in quiet])
        report.bar(f"{name}: p99.9 of {meaning}, switching / quiet", tails, "at most", TAIL_BAR)
    for kind, some in (("quiet", quiet), ("switching", busy)):
        report.add(f"{name}: longest call, {kind}", "ms", [phase["longest"] / 1e6 for phase in some])
    report.notes.append(f"{name}: {busy[0]['calls']:,} calls a phase, {len(announced)} announcements")


def _switch(
    run: Run, catalog: Catalog, versions: list[str], function: str, **arguments: Any
) -> tuple[list[Announced], Any]:
    """What the publisher did, and what a function below, alone in its process, found meanwhile."""
    rounds, phase = run.rounds_or(ROUNDS), TOY_PHASE if run.toy else PHASE
    with tempfile.TemporaryDirectory(prefix="kserve-bench-") as meeting:
        common = {"data": str(catalog.data), "meeting": meeting, "phases": 2 * rounds, "phase": phase}
        with Child(f"switch:{function}", **common, **arguments) as child:
            announced = _announce(catalog, versions, _gather(meeting, child), rounds, phase)
            return announced, child.result()


def _gather(meeting: str, child: Child) -> float:
    """Wait until it is ready, and tell it when to begin."""
    while not Path(meeting, "ready").exists():
        if child.process.poll() is not None:
            raise RuntimeError(f"{child.function} ended early, see above")
        time.sleep(0.01)
    began = time.monotonic() + 0.2
    Path(meeting, "draft").write_text(repr(began))
    Path(meeting, "draft").rename(Path(meeting, "began"))
    return began


def _meet(meeting: str) -> float:
    """In a child: say that it is ready; when to begin."""
    Path(meeting, "ready").touch()
    while not Path(meeting, "began").exists():
        time.sleep(0.01)
    return float(Path(meeting, "began").read_text())


def _announce(catalog: Catalog, versions: list[str], began: float, rounds: int, phase: float) -> list[Announced]:
    """Announce in turn during every second phase; when each began and ended, and which version."""
    announced: list[Announced] = []
    orders = Orders(catalog, load())
    current = catalog.announced()
    for turn in range(rounds):
        start = began + (2 * turn + 1) * phase
        at = start + MARGIN
        while at < start + phase - MARGIN - PERIOD:
            current = versions[1] if current == versions[0] else versions[0]
            time.sleep(max(at - time.monotonic(), 0))
            before = time.monotonic()
            orders.announce(current, against=catalog.live())
            announced.append((before, time.monotonic(), current))
            at += PERIOD
    return announced


def _delays(announced: list[Announced], seen: list[tuple[float, str]]) -> list[float]:
    """Seconds from each announcement until the other process had that version."""
    delays = []
    for at, _, version in announced:
        later = [moment for moment, other in seen if other == version and at <= moment < at + 2 * PERIOD]
        delays += [later[0] - at] if later else []
    if not delays:
        raise AssertionError("no announcement was followed")
    return delays


def watch(data: str, warm: bool, meeting: str, phases: int, phase: float) -> list[tuple[float, str]]:
    """In a process of its own: when the store had another version, to a fifth of a millisecond, and which."""
    seen = []
    with kserve.open(data, settings=load(warm=warm)) as store:
        until = _meet(meeting) + phases * phase
        version = store.version
        while time.monotonic() < until:
            if store.version != version:
                version = store.version
                seen.append((time.monotonic(), version))
            time.sleep(0.0002)
    return seen


def read(data: str, ids: str, warm: bool, meeting: str, phases: int, phase: float) -> list[dict[str, float]]:
    """In a process of its own: the tails of look-ups, phase by phase."""
    pool = np.load(ids).tolist()
    measured = []
    with kserve.open(data, settings=load(warm=warm)) as store:
        for i in pool:
            store.score(i)
        began = _meet(meeting)
        for turn in range(phases):
            time.sleep(max(began + turn * phase + MARGIN - time.monotonic(), 0))
            measured.append(_read_phase(store, pool, began + (turn + 1) * phase - MARGIN))
    return measured


def _read_phase(store: Store, pool: list[int], until: float) -> dict[str, Any]:
    """Nanoseconds: 99.9th percentile of one call and of GROUP calls, in turn, and the longest call."""
    calls: list[int] = []
    groups: list[int] = []
    score, clock, at = store.score, time.perf_counter_ns, 0
    while time.monotonic() < until:
        for i in pool[at : at + GROUP]:
            start = clock()
            score(i)
            calls.append(clock() - start)
        start = clock()
        for i in pool[at + GROUP : at + 2 * GROUP]:
            score(i)
        groups.append(clock() - start)
        at = (at + 2 * GROUP) % (len(pool) - 2 * GROUP)
    return {
        "call": float(np.quantile(calls, 0.999)),
        "group": float(np.quantile(groups, 0.999)),
        "longest": float(max(calls)),
        "calls": len(calls),
    }
