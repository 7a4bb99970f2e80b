"""What the processes of a host count, as metrics: sums over all there ever were, and what the living ones say."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

import kserve
from kserve._buckets import State
from kserve._tally import (
    AIOHTTP,
    CLASSES,
    MIDDLES,
    PATHS,
    ROUTES,
    STATUSES,
    WHYS,
    Counter,
    Counts,
    Gauge,
    Living,
    Tallies,
    Time,
)
from kserve.serving.readings import QUANTILES, Histograms, Window, histograms, quantiles, usage
from kserve.serving.samples import MODES, limits_state, of_host, tally_file

BOUNDS = (
    *(5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Seconds: upper bounds of the buckets that metrics have. The counts behind them are exact to 1 % of the bound."""

_REACHED = np.searchsorted(MIDDLES, BOUNDS, side="right") - 1
_ALWAYS = {"200", "429", "503", "5xx"}
"""Statuses that are there from the start, at 0, so that the first one is an increase."""


class Named(NamedTuple):
    """The metric that a counter or gauge is told as, its label, and the value that the label has."""

    name: str
    help: str
    label: str = ""
    value: str = ""


def _connections(what: str, help_text: str) -> Named:
    return Named(f"kserve_connections_{what}", help_text)


def _unauthorized(why: str) -> Named:
    return Named("kserve_unauthorized", "Requests without a good key.", "why", why)


def _tokens(what: str) -> Named:
    return Named("kserve_lease_tokens", "Tokens that were bought ahead from Redis, or given back.", "what", what)


def _kept(klass: str) -> Named:
    return Named("kserve_kept_ratio", "Share of callers that are not shed.", "class", klass)


COUNTERS = {
    Counter.CONNECTIONS_ACCEPTED: _connections("accepted", "Connections that were accepted."),
    Counter.CONNECTIONS_REFUSED: _connections("refused", "Connections that were closed at once: too many."),
    Counter.CONNECTIONS_TIMED_OUT: _connections("timed_out", "Connections cut because headers, body or reader hung."),
    Counter.HANDED_OVER: Named("kserve_handed_over", "Reads that the compiled path left to aiohttp."),
    Counter.MALFORMED: Named("kserve_malformed", "Connections that ended with bytes that are no HTTP request."),
    Counter.UNAUTHORIZED_MISSING: _unauthorized("missing"),
    Counter.UNAUTHORIZED_MALFORMED: _unauthorized("malformed"),
    Counter.UNAUTHORIZED_REFUSED: _unauthorized("refused"),
    Counter.FORBIDDEN: Named("kserve_forbidden", "Requests that their key's scopes do not allow."),
    Counter.TOO_MANY_FAILURES: Named("kserve_too_many_failures", "Requests of addresses that tried too many keys."),
    Counter.LEASES_BOUGHT: _tokens("bought"),
    Counter.LEASES_RETURNED: _tokens("returned"),
    Counter.REDIS_CALLS: Named("kserve_redis_calls", "Calls of Redis."),
    Counter.REDIS_ERRORS: Named("kserve_redis_errors", "Calls of Redis that failed or came too late."),
    Counter.LIMITS_SWITCHED: Named("kserve_limits_switched", "Changes of the mode of limits."),
    Counter.WORKERS_STARTED: Named("kserve_workers_started", "Workers that were started."),
    Counter.WORKERS_DIED: Named("kserve_workers_died", "Workers that ended although nobody told them to."),
    Counter.RELOADS: Named("kserve_reloads", "Rolling reloads."),
    Counter.KEYS_REFRESHED: Named("kserve_keys_refreshed", "Times that changed keys or tiers were taken over."),
}

OF_PROCESS = {
    Gauge.CONNECTIONS_OPEN: Named("kserve_connections_open", "Open connections."),
    Gauge.IN_PROGRESS: Named("kserve_requests_in_progress", "Requests that wait for something of ours."),
    Gauge.LOOP_DELAY: Named("kserve_loop_delay_latest_seconds", "What an event waits for the loop, lately."),
    Gauge.CONCURRENCY_LIMIT: Named("kserve_concurrency_limit", "How many requests may wait for something of ours."),
    Gauge.KEPT_SITE: _kept("site"),
    Gauge.KEPT_PARTNER: _kept("partner"),
    Gauge.KEPT_BATCH: _kept("batch"),
    Gauge.KEPT_ELIGIBILITY: _kept("eligibility"),
    Gauge.KEPT_CLAIM: _kept("claim"),
    Gauge.KEPT_OTHER: _kept("other"),
    Gauge.KEYS_KNOWN: Named("kserve_keys_known", "Keys that were seen and are known without a look into the store."),
    Gauge.KEYS_STALE: Named("kserve_keys_stale_seconds", "Time since keys could last be read; 0 when all is well."),
    Gauge.DRAINING: Named("kserve_draining", "Whether the process takes no new connections."),
}

OF_HOST = {
    Gauge.LEASED_TOKENS: Named("kserve_leased_tokens", "Tokens that were bought and are not spent."),
    Gauge.REDIS_UP: Named("kserve_redis_up", "Whether Redis answers."),
    Gauge.WORKERS_WANTED: Named("kserve_workers_wanted", "Workers that there should be."),
    Gauge.WORKERS_ALIVE: Named("kserve_workers_alive", "Workers that serve."),
}


class Tallied:
    """The metrics of what the processes that serve one data directory share."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._tallies = Tallies(tally_file(data))
        self._window = Window()

    def collect(self) -> Iterator[Metric]:
        """All that docs/metrics.md lists under counters of the host. Raises OSError."""
        total, living = self._tallies.read()
        late = self._window.of_late(time.monotonic(), histograms(total))
        yield _gauge("kserve_build_info", "1, with the version of kserve.", {"version": kserve.__version__}, 1.0)
        yield _requests(total)
        yield _limited(total)
        yield _shed(total)
        yield from _counters(total)
        yield from _durations(total)
        yield from _of_late(late)
        yield from _gauges(living)
        yield from _limits(limits_state(self._data))
        yield from _processes(living)


def _gauge(name: str, help_text: str, labels: dict[str, str], value: float) -> Metric:
    family = GaugeMetricFamily(name, help_text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _requests(total: Counts) -> Metric:
    family = CounterMetricFamily("kserve_requests", "Requests that were answered.", labels=("route", "status", "path"))
    for path, route, status in np.ndindex(total.requests.shape):
        count = int(total.requests[path, route, status])
        if status < len(STATUSES) and (count or (STATUSES[status] in _ALWAYS and path == AIOHTTP)):
            family.add_metric((ROUTES[route], STATUSES[status], PATHS[path]), count)
    return family


def _limited(total: Counts) -> Metric:
    family = CounterMetricFamily("kserve_limited", "Requests over the limit of their key.", labels=("tier", "why"))
    for tier, counts in total.limited.items():
        for why, count in zip(WHYS, counts, strict=True):
            family.add_metric((tier, why), int(count))
    return family


def _shed(total: Counts) -> Metric:
    family = CounterMetricFamily("kserve_shed", "Requests turned away under overload.", labels=("class",))
    for klass, count in zip(CLASSES, total.shed, strict=True):
        family.add_metric((klass,), int(count))
    return family


def _counters(total: Counts) -> Iterator[Metric]:
    families: dict[str, CounterMetricFamily] = {}
    for counter, named in COUNTERS.items():
        labels = (named.label,) if named.label else ()
        family = families.setdefault(named.name, CounterMetricFamily(named.name, named.help, labels=labels))
        family.add_metric((named.value,) if named.label else (), int(total.counters[counter]))
    yield from families.values()


def _durations(total: Counts) -> Iterator[Metric]:
    routes = HistogramMetricFamily("kserve_request_duration_seconds", "Time to answer, by route.", labels=("route",))
    for route, found in zip(ROUTES, total.by_route, strict=True):
        _add_histogram(routes, (route,), found)
    tiers = HistogramMetricFamily("kserve_tier_request_duration_seconds", "Time to answer, by tier.", labels=("tier",))
    for tier, found in total.by_tier.items():
        _add_histogram(tiers, (tier,), found)
    loop = HistogramMetricFamily("kserve_loop_delay_seconds", "What an event waited for the event loop.", labels=())
    _add_histogram(loop, (), total.times[Time.DELAY_OF_LOOP])
    redis = HistogramMetricFamily("kserve_redis_call_duration_seconds", "Time that calls of Redis took.", labels=())
    _add_histogram(redis, (), total.times[Time.REDIS_CALL])
    yield from (routes, tiers, loop, redis)


def _add_histogram(family: HistogramMetricFamily, labels: tuple[str, ...], found: Any) -> None:
    reached = np.cumsum(found["buckets"], dtype=np.uint64)
    buckets = [(str(bound), float(reached[last])) for bound, last in zip(BOUNDS, _REACHED, strict=True)]
    family.add_metric(labels, [*buckets, ("+Inf", float(reached[-1]))], int(found["sum"]) / 1e9)


def _of_late(late: Histograms) -> Iterator[Metric]:
    by_route = dict(zip(ROUTES, late.by_route, strict=True))
    for label, found in (("route", by_route), ("tier", late.by_tier)):
        prefix = "" if label == "route" else f"{label}_"
        family = GaugeMetricFamily(
            f"kserve_{prefix}request_duration_lately_seconds",
            f"Percentiles of the last minute, by {label}.",
            labels=(label, "percentile"),
        )
        for name, buckets in found.items():
            for quantile, seconds in zip(QUANTILES, quantiles(buckets) or (), strict=False):
                family.add_metric((name, f"{100 * quantile:g}"), seconds)
        yield family


def _gauges(living: list[Living]) -> Iterator[Metric]:
    families: dict[str, GaugeMetricFamily] = {}
    for gauge, named in OF_PROCESS.items():
        labels = ("pid", "role", named.label) if named.label else ("pid", "role")
        family = families.setdefault(named.name, GaugeMetricFamily(named.name, named.help, labels=labels))
        for one in living:
            if not np.isnan(one.gauges[gauge]):
                last = (named.value,) if named.label else ()
                family.add_metric((str(one.pid), one.role, *last), one.gauges[gauge])
    yield from families.values()
    for gauge, named in OF_HOST.items():
        yield GaugeMetricFamily(named.name, named.help, value=of_host(living, gauge))


def _limits(state: State | None) -> Iterator[Metric]:
    mode = GaugeMetricFamily("kserve_limits_mode", "1 for the mode that limits are in.", labels=("mode",))
    now, hosts, used, failed_open, evicted = state or (None,) * 5
    for number, name in MODES.items() if state is not None else ():
        mode.add_metric((name,), float(now == number))
    yield mode
    yield GaugeMetricFamily("kserve_limits_hosts", "Hosts that share the limits.", value=hosts)
    yield GaugeMetricFamily("kserve_limits_buckets", "Keys and addresses that have a bucket.", value=used)
    yield CounterMetricFamily("kserve_limits_evicted", "Full buckets that were given to another name.", value=evicted)
    yield CounterMetricFamily(
        "kserve_limits_failed_open", "Requests that were admitted because there was no bucket left.", value=failed_open
    )


def _processes(living: list[Living]) -> Iterator[Metric]:
    who = ("pid", "role")
    requests = CounterMetricFamily("kserve_process_requests", "Requests that a living process answered.", labels=who)
    started = GaugeMetricFamily("kserve_process_start_timestamp_seconds", "When a process started.", labels=who)
    cpu = CounterMetricFamily("kserve_process_cpu_seconds", "Processor time that a process used.", labels=who)
    memory = GaugeMetricFamily("kserve_process_resident_memory_bytes", "Memory, mapped scores included.", labels=who)
    open_files = GaugeMetricFamily("kserve_process_open_fds", "File descriptors that are open.", labels=who)
    allowed = GaugeMetricFamily("kserve_process_max_fds", "File descriptors that may be open.", labels=who)
    for one in living:
        labels = (str(one.pid), one.role)
        requests.add_metric(labels, int(one.counts.requests.sum()))
        started.add_metric(labels, one.since)
        used = usage(one.pid)
        if used is not None:
            cpu.add_metric(labels, used.cpu_seconds)
            memory.add_metric(labels, used.memory_bytes)
            open_files.add_metric(labels, used.descriptors)
            allowed.add_metric(labels, used.descriptors_limit)
    yield from (requests, started, cpu, memory, open_files, allowed)
