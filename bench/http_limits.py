"""What limits cost: GET /v3/scores/{id} with limits in memory, bought from a Redis, and with that Redis gone.

One worker each, the same key tier; the processes that buy from Redis share the worker's core.
"""

from __future__ import annotations

import json
import time
from contextlib import ExitStack

from bench import _servers
from bench._data import Data
from bench._harness import Report, Run, interleave, ratios, say
from bench._load import Shares, Wrk
from bench._servers import Kserve

ROUNDS = 7
SECONDS, TOY_SECONDS = 4, 1
PATHS = 100_000
MEMORY, REDIS, GONE = "limits in memory", "limits through Redis", "that Redis stopped"
BARS = {REDIS: 0.97, GONE: 1.0}
MODES = {MEMORY: "memory", REDIS: "leased", GONE: "alone"}
SETTLE = 20.0  # seconds in which a server must find out about its Redis


def measure(run: Run) -> Report:
    """Requests a second."""
    data = Data(run)
    report = Report("http_limits", "GET /v3/scores/{id}, one worker, by where limits are kept")
    catalog, records = data.catalog(), data.records()
    ids = records.random_ids(min(PATHS, 10 * run.profiles), seed=19).tolist()
    shares, seconds = Shares(), TOY_SECONDS if run.toy else SECONDS
    with ExitStack() as stack:
        server, target = stack.enter_context(_servers.redis(run))
        stopped, gone = stack.enter_context(_servers.redis(run))
        urls = {MEMORY: None, REDIS: target.port, GONE: gone.port}
        contenders, servers = {}, {}
        for name, port in urls.items():
            # the only host of a fleet buys nothing
            settings = {} if port is None else {"redis": f"redis://127.0.0.1:{port}/0", "hosts": 2}
            kserve = stack.enter_context(_servers.kserve(catalog.data, **settings))
            wrk = stack.enter_context(Wrk([kserve.request(f"/v3/scores/{i}") for i in ids]))
            servers[name] = kserve
            contenders[name] = shares.measured(name, lambda kserve=kserve, wrk=wrk: wrk(kserve.target, seconds))  # type: ignore[misc]
        stopped.close()
        for name, kserve in servers.items():
            _settle(kserve, MODES[name])
        say("asking")
        rates = interleave(contenders, run.rounds_or(ROUNDS), warm_up=not run.toy)
        for name, kserve in servers.items():
            _settle(kserve, MODES[name])
        report.notes.append(f"Redis was sent {server.client().info('stats')['total_commands_processed']:,} commands")
    for name, values in rates.items():
        report.add(name, "requests/s", values, more=True)
    for name, limit in BARS.items():
        report.bar(f"{name} / {MEMORY}", ratios(rates[name], rates[MEMORY]), "at least", limit)
    shares.tell(report)
    return report


def _settle(kserve: Kserve, mode: str) -> None:
    """Wait until its limits are kept as they should be. Raises RuntimeError when they are not."""
    deadline = time.monotonic() + SETTLE
    while (found := json.loads(kserve.ask("/readyz"))["limits"]["mode"]) != mode:
        if time.monotonic() > deadline:
            raise RuntimeError(f"limits are {found}, not {mode}")
        time.sleep(0.05)
