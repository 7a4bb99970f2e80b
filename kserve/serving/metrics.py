"""The metrics of a host: what its servers have answered from which version, what is in force, and what they count."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kserve._roster import Roster, Seat, SeatView, Served
from kserve.errors import KserveError
from kserve.serving.pages import PageHandler, reply
from kserve.serving.site import Front
from kserve.serving.tallied import Tallied
from kserve.settings import Settings
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.orders import Orders

SHOWN_SECONDS = 0.1
"""How often a process shows what it has counted."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
KINDS = ("scored", "unscored", "unknown")


class Shower(threading.Thread):
    """Copies the counts of a seat to where others see them: in a thread, because the copy may wait for the disk."""

    def __init__(self, seat: Seat) -> None:
        super().__init__(name="kserve-counts", daemon=True)
        self._seat = seat
        self._stopped = threading.Event()

    def run(self) -> None:
        """Until :meth:`stop`."""
        while not self._stopped.wait(SHOWN_SECONDS):
            self._seat.flush()

    def stop(self) -> None:
        """Show the last counts, and end."""
        self._stopped.set()
        self.join(timeout=1)
        self._seat.flush()


class Processes(Collector):
    """The roster, the log, the manifests and the counters of one data directory as metrics."""

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self._catalog = catalog
        self._orders = Orders(catalog, settings)
        self._roster = Roster(catalog.roster)
        self._tallied = Tallied(settings.data)
        self._one_at_a_time = threading.Lock()

    def collect(self) -> list[Metric]:
        """All that docs/metrics.md lists."""
        with self._one_at_a_time:
            seats = self._roster.seats()
            of_versions = [_info(seats), _resident(seats), _staged(seats), *_served(seats), *self._in_force()]
            return [*of_versions, *self._tallied.collect()]

    def _in_force(self) -> Iterator[Metric]:
        state = self._orders.state()
        yield _gauge("kserve_pinned", "Whether a version is pinned.", float(state.pin is not None))
        yield _gauge("kserve_frozen", "Whether the sentinel waits for a human.", float(state.frozen))
        orders = [entry.at for entry in self._catalog.log.entries() if entry.act in ("announce", "rollback")]
        ordered = orders[-1].timestamp() if orders else None
        yield _gauge("kserve_announced_timestamp_seconds", "When a version was last ordered.", ordered)
        yield _gauge("kserve_snapshot_age_seconds", "Time since the announced version was scored.", self._age())

    def _age(self) -> float | None:
        try:
            with self._catalog.open() as snapshot:
                return time.time() - snapshot.scored_at / 1e6
        except (KserveError, OSError):
            return None  # no age is better than a wrong one


def _gauge(name: str, help_text: str, value: float | None) -> Metric:
    return GaugeMetricFamily(name, help_text, value=value)


def _info(seats: list[SeatView]) -> Metric:
    family = GaugeMetricFamily(
        "kserve_process_version_info", "The version that a process serves.", labels=("pid", "role", "version")
    )
    for seat in seats:
        family.add_metric((str(seat.pid), seat.role, seat.version or ""), 1.0)
    return family


def _resident(seats: list[SeatView]) -> Metric:
    family = GaugeMetricFamily(
        "kserve_process_resident_ratio", "Share of the served file that is in memory.", labels=("pid",)
    )
    for seat in seats:
        if seat.resident is not None:
            family.add_metric((str(seat.pid),), seat.resident)
    return family


def _staged(seats: list[SeatView]) -> Metric:
    family = GaugeMetricFamily(
        "kserve_staged", "Processes by what they say of a staged version.", labels=("version", "state")
    )
    staged = [(seat.staged, seat.staged_state) for seat in seats if seat.staged is not None]
    for version, state in dict.fromkeys(staged):
        family.add_metric((version, state), staged.count((version, state)))
    return family


def _served(seats: list[SeatView]) -> Iterator[Metric]:
    totals: dict[str, Served] = {}
    for seat in seats:
        for version, served in ((seat.version, seat.served), (seat.previous, seat.previous_served)):
            if version is not None and seat.role == "server":
                totals[version] = add(totals.get(version), served)
    answers = _counter("answers", "Profile ids that were answered for.", "kind")
    lowest = _counter("lowest", "Of the scored answers, those with a score of exactly 1.00.")
    asked = _counter("eligibility", "Profiles whose eligibility was answered.", "kind")
    requests = _counter("requests", "Requests that did not fail by our fault.")
    errors = _counter("errors", "Requests that failed by our fault.")
    for version, served in totals.items():
        for kind in KINDS:
            answers.add_metric((version, kind), getattr(served, kind))
        lowest.add_metric((version,), served.lowest)
        asked.add_metric((version, "eligible"), served.eligible)
        asked.add_metric((version, "not_eligible"), served.asked - served.eligible)
        requests.add_metric((version,), served.requests)
        errors.add_metric((version,), served.errors)
    yield from (answers, lowest, asked, requests, errors)


def _counter(what: str, help_text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"kserve_served_{what}", help_text, labels=("version", *labels))


def add(one: Served | None, other: Served) -> Served:
    """The counts of both."""
    return other if one is None else Served(*map(sum, zip(one, other, strict=True)))


def page(front: Front) -> PageHandler:
    """GET /metrics in Prometheus' text form; rendered in a thread."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Processes(Catalog(front.settings.data), front.settings))
    thread = ThreadPoolExecutor(1, thread_name_prefix="kserve-metrics")

    async def metrics(request: web.Request) -> web.Response:
        text = await asyncio.get_running_loop().run_in_executor(thread, generate_latest, registry)
        return reply(front, request, 200, text, {"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"})

    return metrics
