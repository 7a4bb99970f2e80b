"""Batches on the compiled path: the same answers as without it, byte for byte, from two servers of the same data."""

from __future__ import annotations

import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving.corpus import LAST, score
from serving.support import CROWD, LARGEST, Answer, Pair, paired, request, same, serving, until_closed

from kserve._batch import RECORD
from kserve._plain import classify
from kserve.serving.keys import Keys
from kserve.settings import Tier

PATH = "/v3/scores/batch"
JSON, BINARY = "Content-Type: application/json", "Content-Type: application/octet-stream"
TEXT = b'{"ids":["42","7","999","0"]}'
IDS = np.array([42, 7, 999, 0, LARGEST], dtype="<u8").tobytes()
FIVE_HUNDRED = b'{"ids":[' + b",".join(b'"%d"' % i for i in [*CROWD, *range(100)]) + b"]}"


def post(body: bytes, *lines: str) -> bytes:
    return request("POST", PATH, *lines, body=body)


PLAIN = {
    "json": post(TEXT, JSON),
    "records": post(IDS, BINARY),
    "accept anything": post(TEXT, "Accept: */*", JSON),
    "accept last": post(TEXT, JSON, "Accept: */*"),
    "accept some and anything": post(TEXT, JSON, "Accept: application/json, text/plain, */*"),
    "accept json": post(TEXT, JSON, "Accept: application/json"),
    "accept records": post(IDS, "Accept: application/octet-stream", BINARY),
    "own id": post(TEXT, JSON, "X-Request-Id: mine"),
    "a tag": post(TEXT, JSON, "If-None-Match: *"),
    "as browsers do": post(
        TEXT, "User-Agent: x", "Accept-Encoding: gzip", "Origin: http://x", JSON, "Connection: keep-alive"
    ),
    "no ids": post(b'{"ids":[]}', JSON),
    "white space": post(b' {"ids" : [ "42" ,\r\n"7" ]}\n', JSON),
    "many": post(FIVE_HUNDRED, JSON),
    "no records": request("POST", PATH, BINARY, "Content-Length: 0"),
}
OTHER = {
    "records asked for json": post(TEXT, JSON, "Accept: application/octet-stream"),
    "json asked for records": post(IDS, BINARY, "Accept: application/json"),
    "accept nothing of ours": post(TEXT, JSON, "Accept: text/html"),
    "charset": post(TEXT, "Content-Type: application/json; charset=utf-8"),
    "other type": post(TEXT, "Content-Type: text/plain"),
    "no type": post(TEXT),
    "no length": request("POST", PATH, JSON),
    "two types": post(TEXT, JSON, BINARY),
    "chunked": request("POST", PATH, JSON, "Transfer-Encoding: chunked") + b"1c\r\n" + TEXT + b"\r\n0\r\n\r\n",
    "expects": post(TEXT, JSON, "Expect: 100-continue"),
    "coded": post(TEXT, JSON, "Content-Encoding: gzip"),
    "leading zero": request("POST", PATH, JSON, "Content-Length: 028") + TEXT,
    "sign": request("POST", PATH, JSON, "Content-Length: +28") + TEXT,
    "two lengths": post(TEXT, JSON, "Content-Length: 28"),
    "query": request("POST", f"{PATH}?x", JSON, body=TEXT),
    "key in the query": request("POST", f"{PATH}?key=x", JSON, body=TEXT),
    "get with a type": score("42", JSON),
    "get with a length": score("42", "Content-Length: 0"),
    "HTTP/1.0": post(TEXT, JSON).replace(b"HTTP/1.1", b"HTTP/1.0"),
}
PASSED = {
    "escapes": post(b'{"ids":["\\u0034\\u0032"]}', JSON),
    "no id": post(b'{"ids":["042"]}', JSON),
    "no json": post(b'{"ids":["42"]', JSON),
    "more members": post(b'{"ids":["42"],"x":1}', JSON),
    "cut short": post(IDS[:-1], BINARY),
    "too many": post(bytes(8 * 1001), BINARY),
    "too many as json": post(b'{"ids":[' + b",".join([b'"1"'] * 1001) + b"]}", JSON),
    "empty": request("POST", PATH, JSON, "Content-Length: 0"),
}
"""Plain by their heads, and yet for aiohttp."""

EVERY = PLAIN | OTHER | PASSED


@pytest.mark.parametrize("name", EVERY)
def test_one_batch(pair: Pair, name: str) -> None:
    found = same(pair, EVERY[name], LAST * 2)
    assert found.startswith(b"HTTP/1.1 200 OK") == (name in PLAIN) or name in OTHER or name in PASSED


@pytest.mark.parametrize("name", EVERY)
def test_what_is_plain(name: str) -> None:
    data = EVERY[name]
    kinds = [kind for _, _, kind in classify(data)]
    assert kinds == (["other"] if name in OTHER else ["post"])
    for end in range(0, len(data), 1 + len(data) // 400):
        assert [kind for _, _, kind in classify(data[:end])] in ([], ["other"])


@pytest.mark.parametrize("name", ["json", "records"])
def test_the_compiled_path_answers_it(pair: Pair, name: str) -> None:
    with pair.compiled.connect() as wire:
        for _ in range(3):
            wire.send(PLAIN[name])
            assert wire.answer().status == 200
        mine = wire.socket.getsockname()
        server = pair.compiled.runner.server
        assert server is not None
        (found,) = [c for c in server.connections if c.transport.get_extra_info("peername") == mine]
        assert found._request_count == 0


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["json", "records", "accept last", "no records", "cut short", "escapes"])
def test_split_at_every_byte(pair: Pair, name: str) -> None:
    data = EVERY[name]
    whole = until_closed(pair.plain, data + LAST)
    for cut in range(1, len(data)):
        assert until_closed(pair.compiled, data[:cut], data[cut:] + LAST, pause=0.001) == whole


@settings(max_examples=60, deadline=None)
@given(names=st.lists(st.sampled_from([*PLAIN, "no id", "score", "unknown"]), min_size=1, max_size=40), data=st.data())
def test_pipelines(pair: Pair, names: list[str], data: st.DataObject) -> None:
    asked = EVERY | {"score": score("42"), "unknown": score("999")}
    sent = b"".join(asked[name] for name in names) + LAST
    cut = data.draw(st.integers(1, len(sent) - 1))
    same(pair, sent[:cut], sent[cut:])


HEADERS = st.sampled_from(
    [
        *(JSON, BINARY, "Accept: */*", "Accept: application/json", "Accept: */*;q=0", "Accept: x*/*y", "accept: *"),
        *(
            "content-TYPE: application/json",
            "Content-Type: Application/JSON",
            "Content-Type: application/json ",
            "Content-Type:",
        ),
        *(
            "X-Request-Id: a b",
            "X-Request-Id: ok",
            "Connection: close",
            "Connection: Keep-Alive",
            "X-Odd: 1",
            "Host: y",
        ),
        *("Content-Length: 8", "Content-Length: 0", "Transfer-Encoding: identity"),
    ]
)
BODIES = st.sampled_from([b"", TEXT, IDS, TEXT[:-1], b"{}", b'{"ids":["7"]}  ', bytes(8)]) | st.binary(max_size=20)


@settings(max_examples=150, deadline=None)
@given(lines=st.lists(HEADERS, max_size=4), body=BODIES, more=st.binary(max_size=5))
def test_whatever_is_asked(pair: Pair, lines: list[str], body: bytes, more: bytes) -> None:
    same(pair, request("POST", PATH, *lines, body=body) + more + LAST * 3)


def test_a_slow_reader_gets_everything_in_order(pair: Pair) -> None:
    """More than its kernel takes, and more behind it."""
    asked = [post(FIVE_HUNDRED, JSON, f"X-Request-Id: {i}") for i in range(200)]
    found = bytearray()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", pair.compiled.port))
        client.settimeout(20)
        sending = threading.Thread(target=client.sendall, args=(b"".join([*asked, LAST]),))
        sending.start()
        time.sleep(0.2)
        while data := client.recv(1 << 16):
            found += data
        sending.join()
    assert re.findall(rb"X-Request-Id: (\d+)\r", bytes(found)) == [b"%d" % i for i in range(len(asked))]
    assert found.count(b'"id":') == len(asked) * 500 + 1


def test_it_counts_what_aiohttp_would_count(published: Path) -> None:
    served = []
    for compiled in (True, False):
        with serving(published, compiled=compiled) as server:
            until_closed(server, *EVERY.values(), LAST * 3)
            for name in PLAIN:
                until_closed(server, PLAIN[name], LAST)
            server.site.seat.flush()
            (seat,) = [seat for seat in server.site.roster.seats() if seat.place == server.site.seat.place]
            served.append((seat.served, seat.ids))
    assert served[0] == served[1]


def test_records_are_of_the_version_that_is_named(pair: Pair) -> None:
    with pair.compiled.connect() as wire:
        wire.send(PLAIN["records"])
        answer = wire.answer()
    assert answer.headers["kserve-version"] == pair.compiled.store.version
    assert np.frombuffer(answer.body, RECORD)["status"].tolist() == [2, 1, 0, 2, 2]


TEXT_OF = {n: b'{"ids":[' + b",".join([b'"42"'] * n) + b"]}" for n in range(12)}
TIER = Tier(rate=1, period=86_400, burst=10, quota=1000)


@pytest.fixture
def limited(published: Path, tmp_path: Path) -> Iterator[tuple[Pair, Keys]]:
    """Servers that ask for keys, whose limits are hardly refilled."""
    data = tmp_path / "data"
    shutil.copytree(published, data)
    common = {"open": False, "tiers": {"small": TIER}}
    with paired(data, **common) as pair:
        yield pair, Keys(data)


def counted(answer: Answer) -> tuple[int, list[str], bytes, list[str]]:
    """What a client is told, without what tells the time."""
    fields = [value for name, value in answer.headers.items() if "ratelimit" in name and "reset" not in name]
    told = [re.sub(r"t=\d+", "t=", field) for field in fields]
    body = re.sub(rb'"instance":"[^"]*"|in \d+ s', b"", answer.body)
    return answer.status, list(answer.headers), body, told


def test_it_charges_what_aiohttp_would_charge(limited: tuple[Pair, Keys]) -> None:
    pair, keys = limited
    sizes = (3, 0, 4, 11, 3, 2, 1)
    found = []
    for server in pair:
        key = keys.create("joe", ["batch", "score:read"], tier="small")[1]
        server.site.keys.refresh()
        mine = f"X-Api-Key: {key}"
        with server.connect() as wire:
            wire.send(score("42", mine))  # from now on the key is known
            asked = [counted(wire.answer())]
            for size in sizes:
                for line, ids in ((JSON, TEXT_OF[size]), (BINARY, bytes(8 * size))):
                    wire.send(post(ids, line, mine) if ids else request("POST", PATH, line, mine, "Content-Length: 0"))
                    asked.append(counted(wire.answer()))
        found.append(asked)
    assert found[0] == found[1]
    assert {status for status, *_ in found[0]} == {200, 422, 429}


@pytest.mark.parametrize("scopes", [["score:read"], ["batch"], []])
def test_it_asks_for_the_scope(limited: tuple[Pair, Keys], scopes: list[str]) -> None:
    pair, keys = limited
    found = []
    for server in pair:
        key = keys.create("joe", scopes or ["console"], tier="small")[1]
        server.site.keys.refresh()
        answers = [server.post(PATH, {"ids": ["42"]}, X_Api_Key=key) for _ in range(3)]
        found.append([counted(answer) for answer in [*answers, server.post(PATH, {"ids": ["42"]})]])
    assert found[0] == found[1]
    assert [status for status, *_ in found[0]] == [200 if "batch" in scopes else 403] * 3 + [401]
