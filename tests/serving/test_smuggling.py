"""No request is another one to the compiled path than to aiohttp's: what smugglers send, in whatever reads it comes.

Each case stands between plain requests for scores, so that whatever one of the paths took for a request, or for the
body of one, and the other did not, shows in the answers.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from serving.corpus import CORPUS, LAST, score
from serving.smuggling import EVERY, PERMUTATIONS, SMUGGLING
from serving.support import Server, paired
from serving.twins import COMMON, WHO, Everyone, Twin, Twins, everyone, masked, with_key

BEFORE = score("42", "X-Request-Id: before")
BEHIND = score("7", "X-Request-Id: behind")
CASES = EVERY | {f"corpus: {name}": data for name, data in CORPUS.items()}
SHORT = [name for name, data in CASES.items() if len(data) < 500]
STRIDE = 1 if os.environ.get("SPLITS") == "all" else 23
"""Bytes between the places that a case is cut at; which ones depends on the case."""


@pytest.fixture(scope="module")
def servers(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Everyone]:
    with everyone(published, tmp_path_factory.mktemp("twins")) as found:
        yield found


@pytest.fixture(scope="module")
def both(servers: Everyone) -> Twins:
    return servers.unlocked


@pytest.mark.parametrize("name", SMUGGLING)
def test_between_two_scores(both: Twins, name: str) -> None:
    """All in one read; in one for each; and cut in the middle. Then the client waits for the server to give up."""
    data = SMUGGLING[name]
    both.same([BEFORE + data + BEHIND + LAST], "wait")
    both.same([BEFORE, data, BEHIND, LAST], "wait")
    both.same([BEFORE + data[: len(data) // 2], data[len(data) // 2 :] + BEHIND], "half")


def test_no_request_is_our_fault(both: Twins) -> None:
    for data in SMUGGLING.values():
        assert b"HTTP/1.1 500 " not in both.heard(both.compiled, [data + BEHIND]).data


RIGHTFUL = {
    "length: 0.cl",
    "length: a batch that is a score",
    "chunks: a request in chunks of a get",
    *(f"coding: {name}" for name in ("chunked last", "chunked alone in a list", "capitals", "mixed", "with a tab")),
    "coding: with blanks",
    "te.te: connection names the coding",
    "line: connect and a request",
    "body: an upgrade with chunks",
    "body: two kinds of end",
    *(f"{byte} for the end of a line, te.cl" for byte in ("09", "20", "22", "2c", "3b", "80", "85", "a0", "ff")),
}
"""Where what stands behind the first request is one by anybody's reading: that has no body, or chunks that end there,
or what looks like a coding is in the value of another header."""


def test_what_is_hidden_is_not_answered(both: Twins) -> None:
    found = set()
    for name, data in EVERY.items():
        if b"\r\nX-Request-Id: hidden\r\n" in both.same([BEFORE + data + BEHIND], "half").data:
            found.add(name)
    assert found == RIGHTFUL


@pytest.mark.parametrize("who", WHO[1:])
def test_with_keys(servers: Everyone, who: str) -> None:
    """Who may ask anything; who soon has no tokens left; who may not ask for single scores; who has no key."""
    for name, data in SMUGGLING.items():
        servers.same([BEFORE + data + BEHIND], "wait" if name.startswith("body") else "half", False, who)


def cuts(name: str) -> range:
    """Where this case is cut, here and in the scores around it."""
    length = len(BEFORE + CASES[name] + BEHIND)
    return range(1 + sum(name.encode()) % STRIDE, length, STRIDE)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", sorted({name.split(":")[0] for name in SHORT if ":" in name}))
def test_cut_in_two(both: Twins, kind: str) -> None:
    """At every byte with SPLITS=all."""
    for name in SHORT:
        if name.startswith(f"{kind}:"):
            data = BEFORE + CASES[name] + BEHIND
            for cut in cuts(name):
                both.same([data[:cut], data[cut:]])


@pytest.mark.heavy
def test_permutations_cut_in_two(both: Twins) -> None:
    """At every byte with SPLITS=all."""
    for name in list(PERMUTATIONS)[:: 1 if STRIDE == 1 else 3]:
        data = PERMUTATIONS[name] + BEHIND
        for cut in cuts(name):
            both.same([data[:cut], data[cut:]])


@pytest.mark.heavy
def test_byte_by_byte(both: Twins) -> None:
    for name in SHORT:
        if name not in PERMUTATIONS:
            data = BEFORE + CASES[name] + BEHIND
            both.same([data[i : i + 1] for i in range(len(data))], "half")


@pytest.mark.heavy
def test_cut_in_two_with_a_key(servers: Everyone) -> None:
    for name in SHORT[::3]:
        data = with_key(BEFORE + CASES[name] + BEHIND, servers.locked.keys["fast"])
        for cut in cuts(name)[::3]:
            servers.locked.same([data[:cut], data[cut:]])


def test_the_compiled_path_is_there(both: Twins) -> None:
    """Else two servers that are the same would be compared."""
    both.same([BEFORE])

    def compiled(twin: Twin) -> bool:
        transport = twin.connect()
        both.loop.run_until_complete(twin.hear_on(transport, BEFORE))
        return bool(transport.protocol._wire.ours)

    assert compiled(both.compiled)
    assert not compiled(both.plain)


@contextlib.contextmanager
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def from_sockets(server: Server, asked: list[bytes]) -> list[bytes]:
    """What each of these is answered, on connections that are open all at once, until the server ends them."""
    found = []
    with contextlib.ExitStack() as stack:
        clients = []
        for data in asked:
            client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
            clients.append(client)
            with contextlib.suppress(ConnectionError):
                client.sendall(data)
        for client in clients:
            got = bytearray()
            with contextlib.suppress(ConnectionError):
                while data := client.recv(1 << 18):
                    got += data
            found.append(masked(bytes(got), server.site.prefix.encode()))
    return found


@pytest.mark.heavy
def test_over_sockets(published: Path) -> None:
    """With uvloop's transports, and time that passes."""
    asked = [BEFORE + data + BEHIND + LAST for data in SMUGGLING.values()]
    common = {
        "header_timeout": 2.0,
        "body_timeout": 2.0,
        "keepalive_timeout": 4.0,
        "failures": COMMON["failures"],  # the two share a table of them
    }
    with many_descriptors(), paired(published, **common) as pair, ThreadPoolExecutor() as threads:
        ours, theirs = threads.map(lambda server: from_sockets(server, asked), pair)
    assert dict(zip(SMUGGLING, ours, strict=True)) == dict(zip(SMUGGLING, theirs, strict=True))
