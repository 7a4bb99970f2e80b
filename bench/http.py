"""GET /v3/scores/{id}: one worker, single and in pipelines of 16, with servers that do less, and with Redis GET.

A key is checked, its limit charged, and the profile looked up among all. All are asked by wrk with the same bytes, on
64 connections; the constant answers are kserve's own, byte for byte (nginx writes a head of its own).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

from bench import _servers
from bench._data import Data
from bench._harness import Report, Run, interleave, ratios, say
from bench._load import Rate, RedisBenchmark, Shares, Wrk
from bench._servers import Target

ROUNDS = 5
SECONDS, TOY_SECONDS = 4, 1
PATHS = 200_000
DEPTH = 16
BARE, NGINX, SLOW, REDIS = "a bare uvloop protocol", "nginx, return 200", "kserve, compiled off", "Redis GET"
BARS = {BARE: 1.0, NGINX: 0.9, SLOW: 3.5, REDIS: 1.4}
PIPELINED = {name: f"{name}, pipelines of {DEPTH}" for name in ("kserve", REDIS)}
PIPELINE_BAR = 1.2


def measure(run: Run) -> Report:
    """Requests a second."""
    report = Report("http", "GET /v3/scores/{id}, one worker: key, limit and look-up")
    with ExitStack() as stack:
        shares = Shares()
        contenders = _contenders(run, stack, report)
        timed = {name: shares.measured(name, contender) for name, contender in contenders.items()}
        say("asking")
        rates = interleave(timed, run.rounds_or(ROUNDS), warm_up=not run.toy)
    _tell(report, rates)
    shares.tell(report)
    return report


def _contenders(run: Run, stack: ExitStack, report: Report) -> dict[str, Callable[[], Rate]]:
    data = Data(run)
    source, records = data.catalog().data, data.records()
    seconds = TOY_SECONDS if run.toy else SECONDS
    paths = [f"/v3/scores/{i}" for i in records.random_ids(PATHS if not run.toy else DEPTH, seed=13)]
    fast = stack.enter_context(_servers.kserve(source))
    slow = stack.enter_context(_servers.kserve(source, compiled=False))
    requests = [fast.request(path) for path in paths]
    single = stack.enter_context(Wrk(requests))
    deep = stack.enter_context(Wrk([b"".join(requests[at : at + DEPTH]) for at in range(0, len(paths), DEPTH)]))
    other = stack.enter_context(Wrk([slow.request(path) for path in paths]))
    contenders = {
        "kserve": lambda: single(fast.target, seconds),
        PIPELINED["kserve"]: lambda: deep(fast.target, seconds),
        SLOW: lambda: other(slow.target, seconds),
    }
    for name, target in _constants(run, stack, report, fast.answer(paths[0])):
        contenders[name] = lambda target=target: single(target, seconds)
    with report.optional("redis"):
        server, target = stack.enter_context(_servers.redis(run))
        _servers.load_numbered(server, records)
        for name, depth in ((REDIS, 1), (PIPELINED[REDIS], DEPTH)):
            get = RedisBenchmark(["GET", "__rand_int__"], depth, keyspace=len(records))
            contenders[name] = lambda get=get: get(target, seconds)
    return contenders


def _constants(run: Run, stack: ExitStack, report: Report, answer: bytes) -> Iterator[tuple[str, Target]]:
    """Servers that always give this answer."""
    body = answer.partition(b"\r\n\r\n")[2].decode()
    report.notes.append(f"{len(answer)} bytes of answer, {len(body)} of them body, as {body}")
    yield BARE, stack.enter_context(_servers.bare(answer))
    with report.optional("nginx"):
        run.require("nginx", command="nginx")
        yield NGINX, stack.enter_context(_servers.nginx(f"location / {{ return 200 '{body}'; }}"))


def _tell(report: Report, rates: dict[str, list[float]]) -> None:
    for name, values in rates.items():
        report.add(name, "requests/s", values, more=True)
    for name, limit in BARS.items():
        if name in rates:
            report.bar(f"kserve / {name}", ratios(rates["kserve"], rates[name]), "at least", limit)
    if PIPELINED[REDIS] in rates:
        deep = ratios(rates[PIPELINED["kserve"]], rates[PIPELINED[REDIS]])
        report.bar(f"kserve / Redis GET, both in pipelines of {DEPTH}", deep, "at least", PIPELINE_BAR)
