"""Goodput at 1 to 24 times what the server can do: open arrivals, with keys and classes, and what a refusal costs.

The generator (``_open_load.c``) has the last core, one worker the first. Capacity is what wrk gets from the same
requests on 64 connections. Each multiple is offered for some seconds after a rest at half of the capacity; the first
second, in which the server finds out, is told apart. Those who are turned away try three times more, soon. After the
last multiple come ten seconds at half of the capacity, and then all must be as it was before.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bench._data import Data
from bench._harness import Child, Report, Run, Skip, say
from bench._load import Wrk
from bench._open_load import Counts, Phase, Plan, Result, Stream, offer
from bench._servers import Kserve, Target, bind, free_port, kserve
from kserve.serving.keys import Keys

MULTIPLES = (1, 2, 4, 8, 24)
SECONDS, TOY_SECONDS = 6.0, 1.0
FINDS_OUT = 1.0
"""Seconds of each multiple that are told apart."""
REST, RECOVERY = 3.0, 10.0
CALLERS = 60
SITE_CALLERS = 12
SITE_SHARE = 0.25
"""Of arrivals, from the callers that are served longest."""
ITEMS = 1000
KNOWN_SECONDS = 3.0
"""Until a new key is known to a running server."""
GOODPUT, WORST_MS = 0.9, 50.0
TIERS = {
    "bench": {"rate": 1_000_000, "burst": 1_000_000, "priority": "partner"},
    "first": {"rate": 1_000_000, "burst": 1_000_000, "priority": "site"},
}


class Workload(NamedTuple):
    """What is asked for. ``connections``: of all callers. ``cost_rate``: requests a second to weigh one with."""

    name: str
    connections: int
    cost_rate: float
    request: Callable[[Kserve, list[str], int], bytes]


def _batch(server: Kserve, ids: list[str], number: int) -> bytes:
    start = number * 37 % max(len(ids) - ITEMS, 1)
    return server.batch(json.dumps({"ids": ids[start : start + ITEMS]}).encode(), "application/json", number)


WORKLOADS = (
    Workload("profiles", 2000, 5000, lambda s, ids, n: s.request(f"/v3/profiles/{ids[n]}", n % len(s.keys))),
    Workload("batches of 1,000", 600, 2000, _batch),
    Workload("scores", 4000, 40_000, lambda s, ids, n: s.request(f"/v3/scores/{ids[n]}", n % len(s.keys))),
)


def measure(run: Run) -> Report:
    """Goodput by multiple, and the CPU of a request that is served and of one that is turned away."""
    for module in ("hdrh", "matplotlib"):
        if importlib.util.find_spec(module) is None:
            raise Skip(f"the module {module} is not installed")
    data = Data(run)
    report = Report("overload", "Goodput under overload, one worker")
    source = data.catalog().data
    ids = [str(i) for i in data.records().random_ids(20_000, seed=29).tolist()]
    for workload in WORKLOADS[:1] if run.toy else WORKLOADS:
        say(f"overload: {workload.name}")
        capacity = _capacity(run, source, ids, workload)
        result = _surge(run, source, ids, workload, capacity)
        _tell(report, workload, capacity, result)
        _draw(run.cache / "results" / f"overload-{workload.name.split()[0]}.svg", workload, capacity, result)
        _costs(report, run, source, ids, workload)
    report.notes.append(f"plots: {run.cache / 'results'}/overload-*.svg")
    return report


def _requests(server: Kserve, ids: list[str], workload: Workload, callers: range) -> list[bytes]:
    """Of these callers in turn, so that request i is of caller i modulo their number."""
    count = max(len(callers) * 20, 200) // len(callers) * len(callers)
    few = server._replace(keys=[server.keys[caller] for caller in callers])
    return [workload.request(few, ids, number) for number in range(count)]


def _capacity(run: Run, source: Path, ids: list[str], workload: Workload) -> float:
    """Requests a second of 64 connections, when nobody is turned away."""
    with (
        _served(source, shedding__on=False) as server,
        Wrk(_requests(server, ids, workload, range(CALLERS))) as wrk,
    ):
        wrk(server.target, 1)
        return wrk(server.target, 1 if run.toy else 5).a_second


@contextmanager
def _served(source: Path, **settings: Any) -> Iterator[Kserve]:
    """A server whose first keys are of the tier that is served longest."""
    with kserve(source, keys=CALLERS - SITE_CALLERS, tiers=json.dumps(TIERS), **settings) as server:
        first = [
            Keys(server.data).create("first", ["score:read", "batch"], tier="first")[1] for _ in range(SITE_CALLERS)
        ]
        whole = server._replace(keys=[*first, *server.keys])
        time.sleep(KNOWN_SECONDS)
        for key in range(CALLERS):
            whole.ask("/v3/snapshot", key=key)
        yield whole


def _phases(run: Run, capacity: float) -> list[Phase]:
    seconds, rest, recovery = (TOY_SECONDS, 0.5, 1.0) if run.toy else (SECONDS, REST, RECOVERY)
    phases = [Phase("before", seconds, capacity / 2)]
    for times in MULTIPLES:
        phases += [Phase(f"rest-{times}", rest, capacity / 2), Phase(f"finds-out-{times}", FINDS_OUT, times * capacity)]
        phases += [Phase(str(times), seconds, times * capacity)]
    return [*phases, Phase("recovery", recovery, capacity / 2), Phase("after", seconds, capacity / 2)]


def _surge(run: Run, source: Path, ids: list[str], workload: Workload, capacity: float) -> Result:
    with _served(source, shedding__on=True) as server:
        site, partner = range(SITE_CALLERS), range(SITE_CALLERS, CALLERS)
        first = workload.connections * SITE_CALLERS // CALLERS
        rest = workload.connections - first
        streams = [
            Stream("site", _requests(server, ids, workload, site), first, len(site), SITE_SHARE),
            Stream("partner", _requests(server, ids, workload, partner), rest, len(partner), 1 - SITE_SHARE),
        ]
        return offer(Plan(server.target.port, streams, _phases(run, capacity), retry="impatient"), run.cache)


def _tell(report: Report, workload: Workload, capacity: float, result: Result) -> None:
    """Rows by multiple, and the bars."""
    found = {label: result.total(number) for number, label in enumerate(result.labels)}
    multiples = [found[str(times)] for times in MULTIPLES]
    peak = max(counts.goodput for counts in multiples)
    report.add(f"{workload.name}: capacity by wrk", "requests/s", [capacity], more=True)
    for label in ("before", *map(str, MULTIPLES), "after"):
        name = f"{workload.name}, {label if label in ('before', 'after') else f'{label}x'}"
        _tell_phase(report, name, found[label])
        _tell_streams(report, name, result.phases[result.labels.index(label)])
    for times in MULTIPLES:
        worst = found[f"finds-out-{times}"].served_ms(99)
        report.add(f"{workload.name}, {times}x: p99 of what is served in the first second", "ms", [worst])
    report.bar(
        f"{workload.name}: goodput / peak, the worst", [min(c.goodput for c in multiples) / peak], "at least", GOODPUT
    )
    worst = max(counts.served_ms(99) for counts in multiples)
    report.bar(f"{workload.name}: p99 of what is served, the worst", [worst], "at most", WORST_MS, "ms")
    again = found["after"].goodput / found["before"].goodput
    report.bar(f"{workload.name}: goodput after / before", [again], "at least", 0.99)
    busiest = max(result.cpu)
    report.notes.append(f"{workload.name}: the generator had {busiest:.0%} of its core at most")


def _tell_phase(report: Report, name: str, counts: Counts) -> None:
    offered = (counts.offered + counts.retried) / counts.seconds
    report.add(f"{name}: offered, with retries", "requests/s", [offered])
    report.add(f"{name}: missed (no connection of the caller was free)", "requests/s", [counts.missed / counts.seconds])
    report.add(f"{name}: turned away", "requests/s", [counts.outcomes["shed"] / counts.seconds])
    report.add(f"{name}: goodput", "requests/s", [counts.goodput], more=True)
    report.add(f"{name}: p50 of what is served", "ms", [counts.served_ms(50)])
    report.add(f"{name}: p99 of what is served", "ms", [counts.served_ms(99)])


def _tell_streams(report: Report, name: str, streams: dict[str, Counts]) -> None:
    for label, counts in streams.items():
        share = counts.outcomes["good"] / max(counts.offered + counts.retried, 1)
        report.add(f"{name}: of {label} keys, served in time", "share", [share], more=True)


def _draw(file: Path, workload: Workload, capacity: float, result: Result) -> None:
    """Goodput, refusals and p99 by multiple."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    multiples = [result.total(result.labels.index(str(times))) for times in MULTIPLES]
    figure, (rates, latencies) = pyplot.subplots(2, 1, sharex=True, figsize=(7, 6), layout="constrained")
    rates.plot(MULTIPLES, [counts.goodput for counts in multiples], "o-", label="goodput")
    rates.plot(
        MULTIPLES, [counts.outcomes["shed"] / counts.seconds for counts in multiples], "s--", label="turned away"
    )
    rates.axhline(capacity, color="grey", linewidth=0.8, label="wrk, 64 connections")
    rates.set(title=f"{workload.name}: open arrivals", ylabel="answers a second", ylim=(0, None), xscale="log")
    rates.legend()
    for percentile in (50, 99):
        points = [counts.served_ms(percentile) for counts in multiples]
        latencies.plot(MULTIPLES, points, "o-", label=f"p{percentile} of what is served")
    latencies.axhline(WORST_MS, color="grey", linewidth=0.8)
    latencies.set(xlabel="offered / capacity", ylabel="ms from the intended time", ylim=(0, None))
    latencies.set_xticks(MULTIPLES, [f"{times}x" for times in MULTIPLES])
    latencies.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    pyplot.close(figure)


def _costs(report: Report, run: Run, source: Path, ids: list[str], workload: Workload) -> None:
    """CPU of the server by request: served; turned away and answered; and what is left of that with pauses."""
    served = _cost(run, source, ids, workload, on=False)
    refused = _cost(run, source, ids, workload, on=True)
    report.add(f"{workload.name}: CPU of one that is served", "µs", [served * 1e6])
    report.add(f"{workload.name}: CPU of one that is answered 503", "µs", [refused * 1e6])
    report.bar(f"{workload.name}: CPU answered 503 / served", [refused / served], "at most", 0.1)


def _cost(run: Run, source: Path, ids: list[str], workload: Workload, on: bool) -> float:
    """Seconds of CPU by request at a rate that does not overload; ``on``: all are turned away, and no one is paused."""
    with _served(source, shedding__on=False) as served:
        port = free_port()
        with Child("overload:serve_refusing", data=str(served.data), port=port, on=on) as child:
            target = Target(port, child.process)
            target.wait("the refusing server", target.listens)
            requests = _requests(served, ids, workload, range(CALLERS))
            stream = Stream("all", requests, 240, CALLERS)
            seconds = 1.0 if run.toy else 4.0
            phases = [Phase("first", 2.0, workload.cost_rate), Phase("then", seconds, workload.cost_rate)]
            offer(Plan(port, [stream], phases[:1]), run.cache)
            before = target.cpu()
            counts = offer(Plan(port, [stream], phases[1:]), run.cache).total(0)
            return (target.cpu() - before) / max(counts.sent, 1)


def serve_refusing(data: str, port: int, on: bool) -> None:
    """In a process of its own: a server that turns (nearly) everyone away and pauses nobody, or serves everyone."""
    from kserve.serving import app, shedding
    from kserve.settings import load

    bind(0)
    shedding.MOST_PAUSED = 0
    given = {"on": on, "delay": 1e-6, "interval": 0.01}
    app.run(load(data=Path(data), host="127.0.0.1", port=port, admin_port=0, tiers=TIERS, shedding=given))
