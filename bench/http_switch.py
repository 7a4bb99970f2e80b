"""Switching to another version under load: the tail of GET /v3/scores/{id} with announcements, and without.

Open arrivals at a fraction of what one worker can do, timed from the intended moment; two versions of the same profiles
are announced in turn, once a second, in every second phase. The server has one core for all its threads.
"""

from __future__ import annotations

import threading
from pathlib import Path

from bench import _servers
from bench._data import Data
from bench._harness import Report, Run, interleave, ratios, say
from bench._open_load import Counts, Phase, Plan, Stream, offer
from bench._servers import Kserve
from kserve.settings import load
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.orders import Orders

ROUNDS = 7
SECONDS, TOY_SECONDS = 6.0, 2.2
ARRIVALS, TOY_ARRIVALS = 10_000, 500  # a second
CONNECTIONS = 64
PATHS = 50_000
PERIOD = 1.0  # seconds between announcements
TAIL_BAR = 1.2
QUIET, SWITCHING = "quiet", "switching"


def measure(run: Run) -> Report:
    """Milliseconds."""
    data = Data(run)
    report = Report("http_switch", "GET /v3/scores/{id} while versions are announced, one worker")
    catalog = data.catalog()
    if len(catalog.versions()) < 2:
        data.publish(catalog, days_later=2)
    ids = data.records().random_ids(min(PATHS, 10 * run.profiles), seed=23).tolist()
    found: dict[str, list[Counts]] = {QUIET: [], SWITCHING: []}
    announced = 0
    with _servers.kserve(catalog.data) as kserve:
        say("asking")

        def switching() -> float:
            nonlocal announced
            with Announcer(kserve.data) as announcer:
                tail = _tail(run, kserve, ids, found[SWITCHING])
            announced += announcer.times
            return tail

        contenders = {QUIET: lambda: _tail(run, kserve, ids, found[QUIET]), SWITCHING: switching}
        tails = interleave(contenders, run.rounds_or(ROUNDS), warm_up=not run.toy)
    _tell(report, tails, found, announced)
    return report


def _tail(run: Run, kserve: Kserve, ids: list[int], found: list[Counts]) -> float:
    """p99.9 of one phase, in milliseconds."""
    seconds, rate = (TOY_SECONDS, TOY_ARRIVALS) if run.toy else (SECONDS, ARRIVALS)
    stream = Stream("site", [kserve.request(f"/v3/scores/{i}") for i in ids], CONNECTIONS)
    plan = Plan(kserve.target.port, [stream], [Phase("load", seconds, rate)])
    found.append(offer(plan, run.cache).total(0))
    return found[-1].served_ms(99.9)


class Announcer(threading.Thread):
    """Announces the versions of a data directory in turn, as long as the block lasts."""

    def __init__(self, data: Path) -> None:
        super().__init__()
        self.times = 0
        self._catalog = Catalog(data)
        self._ended = threading.Event()

    def run(self) -> None:
        versions = [version.name for version in self._catalog.versions()]
        orders = Orders(self._catalog, load(data=self._catalog.data))
        while not self._ended.wait(PERIOD):
            current = self._catalog.announced()
            orders.announce(next(name for name in versions if name != current), against=self._catalog.live())
            self.times += 1

    def __enter__(self) -> Announcer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()


def _tell(report: Report, tails: dict[str, list[float]], found: dict[str, list[Counts]], announced: int) -> None:
    for name, values in tails.items():
        measured = found[name][-len(values) :]
        report.add(f"p99.9, {name}", "ms", values)
        report.add(f"median, {name}", "ms", [counts.served_ms(50) for counts in measured])
        report.add(f"longest, {name}", "ms", [counts.served_ms(100) for counts in measured])
    report.bar("p99.9, switching / quiet", ratios(tails[SWITCHING], tails[QUIET]), "at most", TAIL_BAR)
    failed = [counts.outcomes["failed"] for counts in found[SWITCHING]]
    report.bar("requests that failed while switching", failed, "at most", 0, "requests")
    asked, missed = (sum(getattr(counts, what) for counts in found[SWITCHING]) for what in ("sent", "missed"))
    report.notes.append(f"{asked:,} requests while {announced} announcements were made; {CONNECTIONS} connections")
    report.notes.append(f"{missed:,} more could not be sent, because no connection was free in time")
