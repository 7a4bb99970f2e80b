"""The compiled path is the same server: two servers, one with it and one without, and whatever a client may send.

What is compared is every byte of every answer, and whether the connection is still open; the date is masked, and ids of
requests that the server itself has given.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import re
import socket
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.http import HttpRequestParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from serving.corpus import BATCH, CORPUS, JSON, LAST, PLAIN, chunked, score
from serving.support import (
    DAY,
    FIRST_DAY,
    Pair,
    Server,
    Wire,
    masked,
    publish,
    read_all,
    request,
    rows,
    same,
    serving,
    until_closed,
)
from waiting import PATIENCE, until

from kserve._plain import HARMLESS, UNDERSTOOD, classify
from kserve.serving import protocol
from kserve.serving.patterns import REQUEST_ID, pattern
from kserve.serving.site import respond


@example("20261121T044711Z-00004711")
@given(st.from_regex(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}", fullmatch=True))
def test_no_part_of_a_version_is_taken_for_a_number_of_the_example(version: str) -> None:
    body = f'{{"version":"{version}"}}'.encode()
    _, head, kept = pattern(respond(200, body, {"ETag": f'"{version}"'}, REQUEST_ID, version))
    assert f'ETag: "{version}"\r\nKserve-Version: {version}\r\n'.encode() in head
    assert kept == body


@pytest.mark.parametrize("name", CORPUS)
def test_one_request(pair: Pair, name: str) -> None:
    found = same(pair, CORPUS[name] + LAST)
    assert found.startswith(b"HTTP/")


@pytest.mark.parametrize("name", CORPUS)
def test_what_is_plain(name: str) -> None:
    data = CORPUS[name]
    kinds = [kind for _, _, kind in classify(data)]
    batch = name in ("batch", "bad batch")  # plain by their heads; see test_wire_batches.py
    assert kinds == (
        ["head" if data.startswith(b"HEAD") else "get"] if name in PLAIN else ["post" if batch else "other"]
    )
    for end in range(len(data)):
        assert [kind for _, _, kind in classify(data[:end])] in ([], ["other"])


@pytest.mark.parametrize("name", PLAIN)
def test_twice_on_one_connection(pair: Pair, name: str) -> None:
    assert same(pair, PLAIN[name], PLAIN[name], LAST).count(b"HTTP/1.1 ") == 3


def answers_of_splits(server: Server, data: bytes) -> list[bytes]:
    """What is answered when the data comes in two reads, for every place that it can be cut at."""
    wires = [server.connect() for _ in range(1, len(data))]
    found = []
    with contextlib.ExitStack() as stack:
        for cut, wire in enumerate(wires, 1):
            stack.enter_context(wire)
            wire.send(data[:cut])
        time.sleep(0.02)
        for cut, wire in enumerate(wires, 1):
            with contextlib.suppress(ConnectionError):
                wire.send(data[cut:])
        for wire in wires:
            found.append(masked(server, read_all(wire)))
    return found


SHORT = [name for name, data in CORPUS.items() if len(data) < 300]
if os.environ.get("SPLITS") != "all":  # test_smuggling.py cuts them all, without sockets
    SHORT = SHORT[::4]


@pytest.mark.heavy
@pytest.mark.parametrize("name", SHORT)
def test_split_at_every_byte(pair: Pair, name: str) -> None:
    data = CORPUS[name] + LAST
    assert answers_of_splits(pair.compiled, data) == answers_of_splits(pair.plain, data)


def test_byte_by_byte(pair: Pair) -> None:
    data = CORPUS["score"] + CORPUS["batch"] + CORPUS["any tag"] + LAST
    found = until_closed(pair.compiled, *(data[i : i + 1] for i in range(len(data))), pause=0.0002)
    assert found == until_closed(pair.plain, data)


@pytest.mark.parametrize("seed", range(30))
def test_pipelines_and_other_reads(pair: Pair, seed: int) -> None:
    """Many requests in one go, in a few reads that have nothing to do with where requests begin."""
    luck = random.Random(seed)
    names = luck.choices(list(PLAIN), k=20) + luck.choices(SHORT, k=seed % 5)
    luck.shuffle(names)
    data = b"".join(CORPUS[name] for name in names) + LAST
    cuts = sorted(luck.sample(range(1, len(data)), luck.choice((0, 1, 3))))
    same(pair, *(data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)))


def connection_of(server: Server, wire: Wire) -> Any:
    """The server's side of it."""
    mine = wire.socket.getsockname()
    server_side = server.runner.server
    assert server_side is not None
    return next(c for c in server_side.connections if c.transport.get_extra_info("peername") == mine)


def connections(server: Server) -> int:
    assert server.runner.server is not None
    return len(server.runner.server.connections)


def is_ours(server: Server, wire: Wire) -> bool:
    """Whether the last answer came from the compiled path."""
    return bool(connection_of(server, wire)._wire.ours)


BACK = {
    "batch": CORPUS["batch"],
    "batch in two reads": (CORPUS["batch"][:-9], CORPUS["batch"][-9:]),
    "batch in three reads": (CORPUS["batch"][:40], CORPUS["batch"][40:-9], CORPUS["batch"][-9:]),
    "two batches": CORPUS["batch"] * 2,
    "two batches, cut in the second head": (CORPUS["batch"] + CORPUS["batch"][:50], CORPUS["batch"][50:]),
    "a plain request in two reads": (score("42")[:30], score("42")[30:]),
    "another route": request("GET", "/v3/profiles/42"),
    "an empty body": score("42", "Content-Length: 0"),
    "a get with a body": CORPUS["get with a body"],
    "a refused one": score("042"),
    "plain, batch, plain": score("42") + CORPUS["batch"] + score("7"),
}
FOR_GOOD = {
    "chunks": CORPUS["chunked batch"],
    "a blank line": CORPUS["blank line before"],
    "an upgrade": CORPUS["upgrade"],
}


@pytest.mark.parametrize(("asked", "back"), [(name, True) for name in BACK] + [(name, False) for name in FOR_GOOD])
def test_it_comes_back_after_aiohttp(pair: Pair, asked: str, back: bool) -> None:
    parts = (BACK | FOR_GOOD)[asked]
    parts = (parts,) if isinstance(parts, bytes) else parts
    with pair.compiled.connect() as wire:
        for _ in range(3):
            for part in parts:
                wire.send(part)
                time.sleep(0.01)
            for _ in range(b"".join(parts).count(b" HTTP/1.1\r\n")):
                wire.answer()
            wire.send(score("42", "X-Request-Id: here"))
            assert wire.answer().headers["x-request-id"] == "here"
            assert is_ours(pair.compiled, wire) == back
    same(pair, *parts, score("42"), LAST)


def test_nothing_is_answered_before_its_turn(pair: Pair) -> None:
    """A batch is being read; what is plain behind it waits for it."""
    head = request("POST", "/v3/scores/batch", JSON, f"Content-Length: {len(BATCH)}")
    found = same(pair, head + BATCH[:5], BATCH[5:] + score("7") + score("0"), LAST)
    assert re.findall(rb'"(?:scores|id)":\S{4}', found)[0].startswith(b'"scores"')


def test_a_half_closed_client_is_answered(pair: Pair) -> None:
    with pair.compiled.connect() as wire:
        wire.send(CORPUS["score"] * 100)
        wire.socket.shutdown(socket.SHUT_WR)
        assert read_all(wire).count(b"HTTP/1.1 200 OK") == 100


@contextlib.contextmanager
def slow_client(server: Server) -> Iterator[Wire]:
    """A connection whose kernel takes little at once."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.connect(("127.0.0.1", server.port))
        wire = Wire.__new__(Wire)
        wire.socket, wire._left = client, b""
        client.settimeout(20)
        yield wire


def unread(connection: Any) -> int:
    """Bytes that the kernel has for the server."""
    found = fcntl.ioctl(connection.transport.get_extra_info("socket").fileno(), termios.FIONREAD, bytes(4))
    return int.from_bytes(found, sys.byteorder)


def test_a_slow_reader_gets_everything_in_order(pair: Pair) -> None:
    """Some of it from aiohttp. Whole requests come in each read, until the server reads no more."""
    asked = [score("x" if i == 28_000 else "42", f"X-Request-Id: {i}") for i in range(30_000)]
    found, at = bytearray(), 0
    with slow_client(pair.compiled) as wire:
        wire.send(asked[0])
        assert wire.answer().headers["x-request-id"] == "0"
        connection = connection_of(pair.compiled, wire)
        while connection.transport.is_reading():
            wire.send(b"".join(asked[at + 1 : at + 101]))
            at += 100
            until(lambda: not connection.transport.is_reading() or not unread(connection))
        assert connection._wire.held
        assert connection.busy
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        rest = threading.Thread(target=wire.socket.sendall, args=(b"".join(asked[at + 1 :]),))
        rest.start()
        while f"X-Request-Id: {len(asked) - 1}\r".encode() not in found[-1000:]:
            found += wire.socket.recv(1 << 20)
        rest.join()
    assert at < 28_000
    assert re.findall(rb"X-Request-Id: (\d+)\r", bytes(found)) == [b"%d" % i for i in range(1, len(asked))]


@pytest.mark.parametrize(("size", "bad"), [(100, b""), (20_000, b""), (100, b"no http\r\n\r\n")])
def test_who_does_not_read_is_cut(published: Path, size: int, bad: bytes) -> None:
    """By the compiled path, by aiohttp, and when the server has ended the connection itself but for what is unsent."""
    whole = score("42")
    with serving(published, send_timeout=0.4) as server, slow_client(server) as wire:
        wire.send(whole)
        assert wire.answer().status == 200
        wire.socket.setblocking(False)
        at, deadline = 0, time.monotonic() + PATIENCE
        while connections(server) and time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                start = at % len(whole)
                at += wire.socket.send((whole * size)[start:])
                if bad and at > 5_000_000:
                    wire.socket.send(bad)
            time.sleep(0.001)
        assert not connections(server)


@pytest.mark.heavy
def test_a_busy_connection_is_not_idle(published: Path) -> None:
    """The keep-alive time-out counts from the last answer, whoever gave it; nor do headers time out in between."""
    limit = 2.0
    with serving(published, header_timeout=0.4, keepalive_timeout=limit) as server, server.connect() as wire:
        for turn in range(5):
            time.sleep(0.3 * limit if turn else 0)
            wire.get("/v3/scores/42")
            assert wire.answer().status == 200
        assert wire.seconds_until_closed() > 0.5 * limit


def test_every_answer_is_of_one_version(tmp_path: Path) -> None:
    first = publish(tmp_path / "data", rows(0.0), FIRST_DAY)
    with serving(tmp_path / "data") as server, server.connect() as wire:
        wire.get("/v3/scores/42")
        assert wire.answer().json()["version"] == first
        second = publish(tmp_path / "data", rows(1.0), FIRST_DAY + DAY)
        deadline = time.monotonic() + PATIENCE
        seen = [first]
        while seen[-1] != second and time.monotonic() < deadline:
            wire.send(score("42") * 50)
            for answer in [wire.answer() for _ in range(50)]:
                version = answer.headers["kserve-version"]
                assert answer.json()["version"] == version
                assert answer.headers["etag"].startswith(f'"{version}-')
                assert answer.json()["score"] == (62.31 if version == first else 63.31)
                seen += [version] if version != seen[-1] else []
        assert seen == [first, second]


def test_it_counts_what_aiohttp_would_count(published: Path) -> None:
    served = []
    asked = [*PLAIN.values(), CORPUS["batch"], CORPUS["no digits"]]
    for compiled in (True, False):
        with serving(published, compiled=compiled) as server:
            until_closed(server, *asked, LAST)
            server.site.seat.flush()
            (seat,) = [seat for seat in server.site.roster.seats() if seat.place == server.site.seat.place]
            served.append((seat.served, seat.ids))
    assert served[0] == served[1]
    assert served[0][0].requests > 10


def test_turned_off_or_draining_it_answers_nothing(
    pair: Pair, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "LAST_REQUEST_SECONDS", PATIENCE)  # for a client that is slow
    with pair.plain.connect() as wire:
        wire.get("/v3/scores/42")
        assert wire.answer().status == 200
        assert not is_ours(pair.plain, wire)
    server = Server(published, drain_timeout=PATIENCE)
    with server.connect() as wire:
        wire.get("/v3/scores/42")
        assert wire.answer().status == 200
        assert is_ours(server, wire)
        ending = asyncio.run_coroutine_threadsafe(server.runner.cleanup(), server.loop)
        until(lambda: server.site.draining)
        wire.get("/v3/scores/42")
        assert wire.answer().headers["connection"] == "close"
        ending.result(PATIENCE)
    server.close()


BROKEN = {
    "chunks": chunked(BATCH)[:-5] + b"zz\r\n",
    "chunks at once": request("POST", "/v3/scores/batch", JSON, "Transfer-Encoding: chunked") + b"zz\r\n",
    "chunks nobody reads": score("42", "Transfer-Encoding: chunked") + b"zz\r\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_body_that_breaks_off(pair: Pair, name: str) -> None:
    """Is answered at once, however it is cut."""
    data = BROKEN[name]
    found = {same(pair, data[:cut], data[cut:]) for cut in (0, 30, data.index(b"zz"), len(data) - 2)}
    assert len(found) == 1
    assert b"malformed-request" in found.pop()  # were it waited for, it would be called slow


NAMES = sorted(HARMLESS | UNDERSTOOD.keys())
NUMBERS = st.sampled_from(
    ["0", "7", "42", "999", "007", "18446744073709551615", "18446744073709551616", "4x2", "", "-1"]
)
ODD = st.sampled_from(["", "?", "?key=", "?key=a_1", "?x", "#", "/", "%20", " ", "\t", "\xff", ";"])
VALUES = st.one_of(
    st.sampled_from(
        ["x", "", " ", "keep-alive", "close", "*", '"x", W/"y"', "Bearer", "Basic eA==", "0", "3", "a\tb", "é"]
    ),
    st.text(st.characters(max_codepoint=255), max_size=12),
)
FIELDS = st.tuples(
    st.one_of(st.sampled_from(NAMES), st.sampled_from(["Content-Length", "Expect", "TE", "X-Other", "Host", "Ho st"])),
    st.sampled_from([":", ": ", ":  ", " :", ""]),
    VALUES,
    st.sampled_from(["\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r", "\r\n "]),
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request, or nearly one."""
    method = draw(st.sampled_from(["GET", "GET", "GET", "HEAD", "POST", "get", "GETT", ""]))
    path = draw(st.sampled_from(["/v3/scores/"] * 6 + ["/v3/profiles/", "v3/scores/", "//v3/scores/", "*"]))
    target = path + draw(NUMBERS) + (draw(ODD) if draw(st.integers(0, 3)) == 0 else "")
    version = draw(st.sampled_from([" HTTP/1.1"] * 6 + [" HTTP/1.0", " HTTP/2", "", "  HTTP/1.1", " http/1.1"]))
    end = draw(st.sampled_from(["\r\n"] * 8 + ["\n", "\r"]))
    fields = draw(st.lists(FIELDS, max_size=4))
    host = "Host: x\r\n" if draw(st.integers(0, 9)) else ""
    lines = host + "".join(name + colon + value + stop for name, colon, value, stop in fields)
    return f"{method} {target}{version}{end}{lines}\r\n".encode("latin-1")


class Reads:
    """What aiohttp's parser wants to tell when a body comes."""

    def pause_reading(self) -> None:
        raise AssertionError

    resume_reading = pause_reading


@given(requests(), st.binary(max_size=30))
@settings(max_examples=400, deadline=None)
def test_what_is_plain_is_one_request_to_aiohttp_too(data: bytes, more: bytes) -> None:
    for start, end, kind in classify(data + more):
        assert (data + more)[start:end]
        if kind == "other":
            continue
        whole = (data + more)[start:end]
        parser = HttpRequestParser(Reads(), None, 2**16, max_line_size=8190, max_field_size=8190, max_headers=128)
        ((message, payload),), upgraded, tail = parser.feed_data(whole)
        assert message.method == kind.upper()
        assert message.path == whole.split(b" ")[1].decode()
        assert message.version == (1, 1)
        assert not any((message.should_close, message.upgrade, message.chunked, upgraded, tail))
        assert payload.is_eof()
        assert not parser.feed_data(b"")[0]


@given(st.lists(requests(), min_size=1, max_size=4), st.data())
@settings(max_examples=80, deadline=None)
def test_whatever_is_asked(pair: Pair, asked: list[bytes], data: st.DataObject) -> None:
    """Ends with requests enough to fill a body that one of them may have announced, and to end the connection."""
    sent = b"".join(asked) + LAST * 2
    cut = data.draw(st.integers(0, len(sent)))
    same(pair, *(part for part in (sent[:cut], sent[cut:]) if part))


@given(st.binary(max_size=60))
def test_no_bytes_are_too_much(data: bytes) -> None:
    found = classify(data)
    assert [start for start, _, _ in found] == [0, *(end for _, end, _ in found)][: len(found)]
    assert not data or found[-1][1] == len(data)


@pytest.mark.parametrize(
    "wanted",
    ["{}", "W/{}", '"x", {}', '"x",W/{} , "y"', "{},", ",{}", "w/{}", "W/ {}", "{}x", "x{}", "{}{}", "* ", "**"],
)
def test_tags(pair: Pair, wanted: str) -> None:
    etag = pair.compiled.get("/v3/scores/42").headers["etag"]
    same(pair, score("42", "If-None-Match: " + wanted.replace("{}", etag)), LAST)
