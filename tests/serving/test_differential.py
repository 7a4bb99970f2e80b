"""The compiled path is the same server for whatever anybody may send: requests that are changed a little, in pipelines
of any length, in any reads, to clients that read and clients that do not, with keys and without.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lengths import FULL
from serving.corpus import CORPUS, LAST, PLAIN, score
from serving.smuggling import CHUNKED, EVERY, LENGTHS
from serving.twins import WHO, Everyone, everyone


@pytest.fixture(scope="module")
def servers(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Everyone]:
    with everyone(published, tmp_path_factory.mktemp("twins")) as found:
        yield found


WHOLE = st.sampled_from([*PLAIN.values()] * 6 + [*CORPUS.values()] * 2 + [*EVERY.values()])
BASES = st.sampled_from([score("42"), *PLAIN.values(), *CORPUS.values(), *LENGTHS.values(), *CHUNKED.values()])
PIECES = st.sampled_from(
    [
        *(
            b"\r\n",
            b"\n",
            b"\r",
            b"\r\n\r\n",
            b" ",
            b"\t",
            b":",
            b",",
            b"\0",
            b"\x0b",
            b"\x7f",
            b"\x85",
            b"\xff",
            b"/",
            b"?",
            b"#",
        ),
        *(
            b"HTTP/1.0",
            b"HTTP/1.1",
            b"GET",
            b"POST",
            b"HEAD",
            b"CONNECT",
            b"0",
            b"42",
            b"18446744073709551616",
            b"%32",
            b"?key=",
        ),
        *(b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"Connection: upgrade\r\n", b"Upgrade: x\r\n"),
        *(
            b"Content-Length: 5\r\n",
            b"Content-Length: 0\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Expect: 100-continue\r\n",
        ),
        *(b"Host: y\r\n", b"Accept: */*\r\n", b"If-None-Match: *\r\n", b"X-Request-Id: a\r\n", b"X-Api-Key: a\r\n"),
        *(b"Content-Type: application/json\r\n", b"Content-Type: application/octet-stream\r\n", b"0\r\n\r\n"),
    ]
)


@st.composite
def changed(draw: st.DrawFn) -> bytes:
    """A request in which up to four places are not as they were."""
    data = draw(BASES)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(len(data), 400)))
        length = draw(st.sampled_from([0, 0, 1, 1, 2, 5, 20]))
        new = draw(st.one_of(PIECES, st.binary(max_size=2), st.just(b"")))
        data = data[:at] + new + data[at + length :]
    return data


Conversation = tuple[list[bytes], str, bool]
"""(reads, how the client ends, whether it reads nothing until then)."""


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    requests = draw(st.lists(st.one_of(WHOLE, changed()), min_size=1, max_size=draw(st.sampled_from([2, 4, 40]))))
    data = b"".join(requests) + draw(st.sampled_from([b"", score("7"), LAST, LAST * 3]))
    places = draw(st.lists(st.integers(0, len(data)), max_size=4))
    cuts = [0, *sorted(places), len(data)]
    reads = [data[start:end] for start, end in itertools.pairwise(cuts) if start < end]
    return reads, draw(st.sampled_from(["", "half", "wait"])), draw(st.sampled_from([False, False, False, True]))


ANYBODY = st.sampled_from([*WHO, "open", "open", "fast"])
FREELY = settings(deadline=None, suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow])


@given(conversations(), ANYBODY)
@settings(FREELY, max_examples=150)
def test_any_conversation(servers: Everyone, conversation: Conversation, who: str) -> None:
    servers.same(*conversation, who)


@pytest.mark.heavy
@pytest.mark.drill
@given(conversations(), ANYBODY)
@settings(FREELY, max_examples=1000 if FULL else 200)
def test_very_many_conversations(servers: Everyone, conversation: Conversation, who: str) -> None:
    servers.same(*conversation, who)
