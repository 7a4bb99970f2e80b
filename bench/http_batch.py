"""Batches of 1,000 ids: JSON and records, one worker, with Redis MGET of the same ids; by wrk, and from Python.

Each is asked twice: for the same ids over and over, all that redis-benchmark can do with a list, and for ids drawn from
all profiles each time. From Python one client asks on one connection, other ids each time: http.client, with msgspec or
NumPy for the answers, and redis-py with hiredis, whose keys are made beforehand and whose values stay bytes.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench import _servers
from bench._data import U64, UNSCORED, Data, Records
from bench._harness import Report, Run, in_child, interleave, ratios, say
from bench._load import Rate, RedisBenchmark, Shares, Wrk
from bench._peers import RedisServer
from bench._servers import KEYS, Kserve, Target, bind, number_key
from kserve._batch import RECORD, UNSCORED_SCORE
from kserve.serving import models

ROUNDS = 5
SECONDS, TOY_SECONDS = 4, 1
FROM_PYTHON = 0.25  # of these seconds
IDS = 1000
BATCHES = 400
JSON, BINARY = "application/json", "application/octet-stream"
FORMS = {"JSON": JSON, "records": BINARY}
BARS = {"JSON": 2.0, "records": 5.0}
REDIS = "Redis MGET"

Contenders = dict[str, Callable[[], float]]


def measure(run: Run) -> Report:
    """Million scores a second."""
    data = Data(run)
    report = Report("http_batch", f"POST /v3/scores/batch of {IDS:,} ids, one worker")
    catalog, records = data.catalog(), data.records()
    places = np.random.default_rng(17).integers(0, len(records), (BATCHES, IDS))
    seconds = TOY_SECONDS if run.toy else SECONDS
    shares = Shares()
    with ExitStack() as stack:
        kserve = stack.enter_context(_servers.kserve(catalog.data, keys=KEYS))
        contenders = _ours(stack, shares, kserve, records.ids[places], seconds)
        with report.optional("redis"):
            server, target = stack.enter_context(_servers.redis(run))
            _servers.load_numbered(server, records)
            _compare(kserve, server, records, places[0])
            contenders |= _theirs(shares, target, server, places, len(records), seconds)
        contenders |= _from_python(kserve, records.ids[places], seconds, data.folder)
        say("asking")
        rates = interleave(contenders, run.rounds_or(ROUNDS), warm_up=not run.toy)
    _tell(report, rates)
    shares.tell(report)
    return report


def body(ids: Sequence[int] | U64, kind: str) -> bytes:
    """The body of a request."""
    return (
        np.asarray(ids, dtype="<u8").tobytes()
        if kind == BINARY
        else json.dumps({"ids": [str(i) for i in ids]}).encode()
    )


def _ours(stack: ExitStack, shares: Shares, kserve: Kserve, batches: Any, seconds: int) -> Contenders:
    contenders: Contenders = {}
    for name, kind in FORMS.items():
        made = {"the same ids": [body(batches[0], kind)] * KEYS, "any ids": [body(ids, kind) for ids in batches]}
        for which, bodies in made.items():
            wrk = stack.enter_context(Wrk([kserve.batch(sent, kind, key) for key, sent in enumerate(bodies)]))
            contenders |= _timed(shares, f"{name}, {which}", lambda wrk=wrk: wrk(kserve.target, seconds))
    return contenders


def _theirs(
    shares: Shares, target: Target, server: RedisServer, places: Any, profiles: int, seconds: int
) -> Contenders:
    same = RedisBenchmark(["MGET", *(number_key(place) for place in places[0])])
    drawn = RedisBenchmark(["MGET", *["__rand_int__"] * IDS], keyspace=profiles)
    keys = [[number_key(place) for place in batch] for batch in places.tolist()]
    contenders = _timed(shares, f"{REDIS}, the same ids", lambda: same(target, seconds))
    contenders |= _timed(shares, f"{REDIS}, any ids", lambda: drawn(target, seconds))
    return contenders | {
        f"{REDIS}, from Python": lambda: _child("ask_redis", path=server.path, keys=keys, seconds=seconds * FROM_PYTHON)
    }


def _timed(shares: Shares, name: str, measure: Callable[[], Rate]) -> Contenders:
    rate = shares.measured(name, measure)
    return {name: lambda: rate() * IDS / 1e6}


def _from_python(kserve: Kserve, batches: Any, seconds: int, folder: Path) -> Contenders:
    file = folder / "batches.npy"
    np.save(file, batches)
    common = {"port": kserve.target.port, "keys": kserve.keys, "file": str(file), "seconds": seconds * FROM_PYTHON}
    return {
        f"{name}, from Python": lambda name=name: _child("ask_kserve", form=name, **common)  # type: ignore[misc]
        for name in FORMS
    }


def _child(function: str, **arguments: Any) -> float:
    return float(in_child(f"http_batch:{function}", **arguments))


def ask_kserve(port: int, keys: list[str], file: str, seconds: float, form: str) -> float:
    """In a process of its own: million scores a second, ids in and numbers out."""
    bind(-1)
    batches = np.load(file)
    texts = [[str(i) for i in batch] for batch in batches.tolist()]
    read = msgspec.json.Decoder(models.Batch).decode
    connection = http.client.HTTPConnection("127.0.0.1", port)
    headers = {"Content-Type": FORMS[form]}

    def ask(turn: int) -> None:
        at = turn % len(batches)
        headers["X-Api-Key"] = keys[turn % len(keys)]
        sent = batches[at].tobytes() if form == "records" else msgspec.json.encode({"ids": texts[at]})
        connection.request("POST", "/v3/scores/batch", sent, headers)
        answer = connection.getresponse().read()
        scores = np.frombuffer(answer, RECORD) if form == "records" else read(answer).scores
        assert len(scores) == len(batches[at])

    return _rate(ask, seconds)


def ask_redis(path: str, keys: list[list[str]], seconds: float) -> float:
    """In a process of its own: million values a second."""
    import redis

    bind(-1)
    client = redis.Redis(unix_socket_path=path)
    encoded = [[key.encode() for key in batch] for batch in keys]
    return _rate(lambda turn: client.mget(encoded[turn % len(encoded)]), seconds)


def _rate(ask: Callable[[int], object], seconds: float) -> float:
    start, turn = time.perf_counter(), 0
    while (now := time.perf_counter()) - start < seconds:
        ask(turn)
        turn += 1
    return turn * IDS / (now - start) / 1e6


def _compare(kserve: Kserve, server: RedisServer, records: Records, places: Any) -> None:
    """All must say the same before anything is timed."""
    ids = records.ids[places]
    found = np.frombuffer(kserve.ask("/v3/scores/batch", body(ids, BINARY), BINARY), RECORD)
    expected = np.where(found["score"] == UNSCORED_SCORE, UNSCORED, found["score"])
    items = json.loads(kserve.ask("/v3/scores/batch", body(ids, JSON)))["scores"]
    texts = [UNSCORED if item["score"] is None else round(item["score"] * 100) for item in items]
    with server.client() as client:
        values = client.mget([number_key(place) for place in places])
    assert expected.tolist() == texts == [int.from_bytes(value[:2], "little") for value in values]


def _tell(report: Report, rates: dict[str, list[float]]) -> None:
    for name, values in rates.items():
        report.add(name, "M scores/s", values, more=True)
    for which in ("the same ids", "any ids", "from Python"):
        redis = rates.get(f"{REDIS}, {which}", [])
        for form, limit in BARS.items() if redis else ():
            share = ratios(rates[f"{form}, {which}"], redis)
            report.bar(f"{form} / {REDIS}, {which}", share, "at least", limit)
