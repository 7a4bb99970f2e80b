"""Requests with keys, to real servers: what each key may, where it is told, and guessing by the hundred thousand."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import structlog
from lengths import FULL
from serving.processes import Served, servers
from serving.support import Server, request, serving
from waiting import until

from kserve._tally import Tallies
from kserve.serving.keys import Keys
from kserve.serving.samples import tally_file
from kserve.settings import Failures, Tier

SCORE = "/v3/scores/42"
BATCH = ("POST", "/v3/scores/batch", {"ids": ["42"]})
ELIGIBILITY = ("POST", "/v3/eligibility", {"rule": {"min_score": 1}, "ids": ["42"]})
NEED_NO_KEY = ("/healthz", "/readyz", "/openapi.json")
READS = (SCORE, "/v3/profiles/42", "/v3/identities/tw/JoeFernandez", "/v3/topics", "/v3/topics/food", "/v3/snapshot")

GUESSES = 100_000 if FULL else 30_000
DEPTH = 100
CONNECTIONS = 4


@pytest.fixture(scope="module")
def data(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores, and a directory to make keys in."""
    copy = tmp_path_factory.mktemp("keys") / "data"
    shutil.copytree(published, copy)
    return copy


@pytest.fixture(scope="module")
def keys(data: Path) -> Keys:
    return Keys(data)


@pytest.fixture(scope="module")
def reader(keys: Keys) -> str:
    return keys.create("maria", ["score:read"], tier="site")[1]


@pytest.fixture(scope="module")
def batcher(keys: Keys) -> str:
    return keys.create("joe", ["batch"], tier="site")[1]


@pytest.fixture(scope="module", params=[True, False], ids=["compiled", "aiohttp"])
def compiled(request: pytest.FixtureRequest) -> bool:
    """Every test is of both ways to answer."""
    return bool(request.param)


@pytest.fixture(scope="module")
def server(data: Path, reader: str, batcher: str, compiled: bool) -> Iterator[Server]:
    with serving(data, open=False, compiled=compiled, failures=Failures(rate=1, period=1, burst=1000)) as found:
        yield found


def test_a_key_in_each_place(server: Server, reader: str) -> None:
    for answer in (
        server.get(SCORE, Authorization=f"Bearer {reader}"),
        server.get(SCORE, X_Api_Key=reader),
        server.get(f"{SCORE}?key={reader}"),
    ):
        assert (answer.status, answer.json()["score"]) == (200, 62.31)
        assert answer.headers["cache-control"].startswith("private")
    answer = server.get(f"{SCORE}?key={reader}", X_Api_Key=f"{reader}x")
    assert (answer.status, answer.kind) == (401, "unauthorized")


def test_without_a_key(server: Server) -> None:
    for path in READS:
        answer = server.get(path)
        assert (answer.status, answer.kind) == (401, "unauthorized")
        assert answer.headers["www-authenticate"] == 'Bearer realm="kserve"'
        assert answer.headers["cache-control"] == "no-store"
    for path in NEED_NO_KEY:
        assert server.get(path).status == 200
        assert server.get(path, Authorization="Bearer wrong").status == 200


def test_each_route_has_its_scope(server: Server, reader: str, batcher: str) -> None:
    for path in READS:
        assert server.get(path, X_Api_Key=reader).status == 200
        assert server.get(path, X_Api_Key=batcher).kind == "forbidden"
    assert server.ask(*BATCH, X_Api_Key=batcher).status == 200
    assert server.ask(*ELIGIBILITY, X_Api_Key=reader).status == 200
    for call, key, scope in ((BATCH, reader, "batch"), (ELIGIBILITY, batcher, "score:read")):
        answer = server.ask(*call, X_Api_Key=key)
        assert (answer.status, answer.kind) == (403, "forbidden")
        assert f'scope="{scope}"' in answer.headers["www-authenticate"]


def test_what_is_wrong_comes_after_who_asks(server: Server, reader: str) -> None:
    """Somebody without a key learns nothing of what there is."""
    for path in ("/v3/scores/999999", "/v3/scores/x", "/v3/topics/none"):
        assert server.get(path).status == 401
        assert server.get(path, X_Api_Key=reader).status in (400, 404)


def test_what_was_fetched_with_a_key_is_not_had_without(server: Server, reader: str) -> None:
    etag = server.get(SCORE, X_Api_Key=reader).headers["etag"]
    assert server.get(SCORE, X_Api_Key=reader, If_None_Match=etag).status == 304
    assert server.get(SCORE, If_None_Match=etag).status == 401


def test_a_key_is_told_nowhere(
    server: Server, keys: Keys, reader: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither by answers nor by logs, whatever is wrong with the request it came with."""
    secret = reader.rpartition("_")[2]
    told = []
    with structlog.testing.capture_logs() as logs, caplog.at_level(logging.DEBUG):
        for path in (SCORE, "/v3/scores/x", "/v3/identities/tw/JoeFernandez", "/v3/topics", "/nothing", "/v3", "//"):
            for key in (reader, f"{reader}x"):
                told.append(server.get(f"{path}?by=x&limit=x&key={key}"))
                told.append(server.ask("DELETE", f"{path}?key={key}"))
        told.append(server.get("/v3/topics?limit=1", X_Api_Key=reader))
        told.append(server.get(f"/v3/topics?limit=1&key={reader}"))
        for raw in (
            f"GET {SCORE}?key={reader}\x01 HTTP/1.1\r\nHost: x\r\n\r\n",
            f"GET {SCORE}?key={reader} HTTP/9.9\r\nHost: x\r\n\r\n",
            f"GET {SCORE} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {reader}\x00\r\n\r\n",
            f"GET {SCORE} HTTP/1.1\r\nHost: x\r\nX-Api-Key {reader}\r\n\r\n",
            f"GET {SCORE}?key={reader} HTTP/1.1\r\nHost: x\r\nX: {'y' * 9000}\r\n\r\n",
            f"GET {SCORE}?key={reader}{'y' * 9000} HTTP/1.1\r\nHost: x\r\n\r\n",
            f"GE{reader} {SCORE} HTTP/1.1\r\nHost: x\r\n\r\n",
        ):
            with server.connect() as wire, suppress(EOFError, ConnectionError):
                wire.send(raw.encode("latin-1"))
                told.append(wire.answer())
    assert {answer.status for answer in told} >= {200, 400, 401, 404, 405, 431}
    for answer in told:
        assert secret not in str(answer.headers) + answer.body.decode()
        assert "key=" not in str(answer.headers) + answer.body.decode()
    assert secret not in json.dumps(logs, default=str) + caplog.text + "".join(capfd.readouterr())


def test_revoked_everywhere_within_five_seconds(data: Path, keys: Keys, compiled: bool) -> None:
    key, text = keys.create("eve", ["score:read"], tier="site")
    _, kept = keys.create("eve", ["score:read"], tier="site")
    served = {"open": False, "compiled": compiled}
    with serving(data, **served) as one, serving(data, **served) as other:
        for server in (one, other):
            assert server.get(SCORE, X_Api_Key=text).status == 200
        keys.revoke(key.id)
        for server in (one, other):
            assert until(lambda server=server: server.get(SCORE, X_Api_Key=text).status != 200) < 5
            assert server.get(SCORE, X_Api_Key=kept).status == 200
            assert server.get(SCORE, Authorization=f"Bearer {text}").kind == "unauthorized"


def test_a_key_that_was_revoked_in_a_copy_of_the_database_is_refused(data: Path, keys: Keys, compiled: bool) -> None:
    """As it reaches the other hosts of a fleet: a new file in the place of the old one, or `kserve keys copy`."""
    made = [keys.create("eve", ["score:read"], tier="site") for _ in range(3)]
    home, sent = Keys(data.with_name(f"home-{compiled}")), data.with_name(f"sent-{compiled}")
    assert keys.copy_to(home.database.parent) == home.copy_to(sent)
    with serving(data, open=False, compiled=compiled) as server:
        for (key, text), there in zip(made, (sent, data), strict=False):
            assert server.get(SCORE, X_Api_Key=text).status == 200
            home.revoke(key.id)
            home.copy_to(there)
            start = time.monotonic()
            if there == sent:
                os.replace(shutil.copy(sent / "keys.db", data / "keys.db.new"), data / "keys.db")
            while server.get(SCORE, X_Api_Key=text).status == 200:
                assert time.monotonic() < start + 5
            assert server.get(SCORE, X_Api_Key=text).kind == "unauthorized"
            assert server.get(SCORE, X_Api_Key=made[2][1]).status == 200


def test_open_servers_limit_whoever_gives_a_key(data: Path, keys: Keys, compiled: bool) -> None:
    _, text = keys.create("eve", ["score:read"], tier="developer")
    with serving(data, open=True, compiled=compiled) as server:
        assert "ratelimit" not in server.get(SCORE).headers
        assert "ratelimit" in server.get(SCORE, X_Api_Key=text).headers
        assert server.get(SCORE, X_Api_Key="wrong").status == 401


def test_what_a_key_was_answered_is_kept_for_its_holder(data: Path, keys: Keys, compiled: bool) -> None:
    _, text = keys.create("eve", ["score:read"], tier="site")
    with serving(data, open=True, compiled=compiled) as server:
        for path in READS:
            anybody, holder = server.get(path), server.get(path, X_Api_Key=text)
            assert anybody.headers["cache-control"] == "max-age=60"
            assert holder.headers["cache-control"] == "private, max-age=60"
            for key, expected in ({}, "max-age=60"), ({"X_Api_Key": text}, "private, max-age=60"):
                again = server.get(path, If_None_Match=anybody.headers["etag"], **key)
                assert (again.status, again.headers["cache-control"]) == (304, expected)


def test_who_is_limited_is_counted_by_tier(data: Path, keys: Keys, compiled: bool) -> None:
    tier = Tier(rate=1, period=86_400, burst=2)
    _, text = keys.create("ann", ["score:read"], tier=f"two-{compiled}".lower())
    with serving(data, open=False, compiled=compiled, tiers={f"two-{compiled}".lower(): tier}) as server:
        assert [server.get(SCORE, X_Api_Key=text).status for _ in range(5)] == [200, 200, 429, 429, 429]
        counts, _ = Tallies(tally_file(data)).read()
        assert counts.limited[f"two-{compiled}".lower()].tolist() == [3, 0, 0]


class Guesser(threading.Thread):
    """One connection that asks with one wrong key after another."""

    def __init__(self, port: int, number: int, guesses: int) -> None:
        super().__init__(daemon=True)
        self.statuses: Counter[bytes] = Counter()
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._number = number
        self._guesses = guesses

    def run(self) -> None:
        with self._socket:
            for start in range(0, self._guesses, DEPTH):
                texts = (f"ks_live_{self._number:06d}{start + i:06d}_{'g' * 38}" for i in range(DEPTH))
                self._socket.sendall(b"".join(request("GET", SCORE, f"X-Api-Key: {text}") for text in texts))
                self._take(DEPTH)

    def _take(self, answers: int) -> None:
        """Read so many problem documents, to the end of the last."""
        received = b""
        while received.count(b'"instance":') < answers or not received.endswith(b"}"):
            more = self._socket.recv(1 << 18)
            assert more, "the server closed the connection"
            received += more
        for status in (b"401", b"429"):
            self.statuses[status] += received.count(b"HTTP/1.1 " + status)


@pytest.mark.heavy
@pytest.mark.drill
def test_a_hundred_thousand_guesses(data: Path, keys: Keys) -> None:
    """They are turned away, and whoever has a key goes on being served, from the same address."""
    _, text = keys.create("eve", ["score:read"], tier="site")
    with servers(data, 1, open="false") as (served,):
        guessers = [Guesser(served.port, number, GUESSES // CONNECTIONS) for number in range(CONNECTIONS)]
        for guesser in guessers:
            guesser.start()
        waits = list(_served_meanwhile(served, text, guessers))
    statuses = sum((guesser.statuses for guesser in guessers), Counter())
    assert statuses[b"401"] + statuses[b"429"] == GUESSES
    assert statuses[b"401"] < 100
    assert len(waits) > 20
    assert sorted(waits)[len(waits) // 2] < 1.0


def _served_meanwhile(served: Served, text: str, guessers: list[Guesser]) -> Iterator[float]:
    """Seconds that each request with a key took, as long as anybody guesses."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection:
        while any(guesser.is_alive() for guesser in guessers):
            start = time.monotonic()
            connection.sendall(request("GET", SCORE, f"Authorization: Bearer {text}"))
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
            yield time.monotonic() - start
            time.sleep(0.005)
