"""Looks for bytes that the compiled path and aiohttp answer differently, or that break the compiled path's memory.

For `make fuzz`, which runs it under libFuzzer on extensions that report their coverage and are watched by ASan. The
input: one byte for how the client behaves, and what it sends, where the byte 0xFE ends one read and begins another.
Usage: fuzz_wire.py FOLDER [options of libFuzzer]; what is found stays in FOLDER/corpus for the next time.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

import atheris
from serving.corpus import CORPUS, LAST, score
from serving.smuggling import EVERY
from serving.support import FIRST_DAY, publish, rows

with atheris.instrument_imports(include=["kserve.serving.framing", "kserve.serving.protocol"]):
    from serving.twins import WHO, Everyone, everyone

CUT = b"\xfe"
ENDS = ("", "half", "wait", "half")
RENEWED = 20_000
"""Inputs after which the servers start anew, with new limits."""

WORDS = [
    *(
        "\\x0d\\x0a",
        "\\x0d\\x0a\\x0d\\x0a",
        "\\xfe",
        "\\x00",
        "GET /v3/scores/",
        "POST /v3/scores/batch",
        " HTTP/1.1\\x0d\\x0a",
    ),
    *(
        "Connection: close",
        "Connection: keep-alive",
        "Content-Length: ",
        "Transfer-Encoding: chunked",
        "Upgrade: ",
        "Expect: ",
    ),
    *(
        "Content-Type: application/json",
        "Content-Type: application/octet-stream",
        "Accept: */*",
        "0\\x0d\\x0a\\x0d\\x0a",
    ),
    *(
        "If-None-Match: ",
        "X-Request-Id: ",
        "X-Api-Key: ",
        "Authorization: Bearer ",
        "?key=",
        "Host: x\\x0d\\x0a",
        "HEAD ",
    ),
]


def read(data: bytes) -> tuple[list[bytes], str, bool, str]:
    """(reads, how the client ends, whether it is slow to read, who it is)."""
    how = data[0] if data else 0
    reads = [part for part in data[1:].split(CUT) if part]
    return reads, ENDS[how & 3], bool(how & 4), WHO[(how >> 3) % len(WHO)]


def seeds() -> list[bytes]:
    """One for each request that is known, in turn for every kind of client."""
    known = [*CORPUS.values(), *EVERY.values()]
    behind = CUT + score("7") + LAST
    return [bytes([i % 256]) + score("42") + data + behind for i, data in enumerate(known) if len(data) < 1000]


class Target:
    """What libFuzzer calls with each input."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        publish(folder / "first" / "data", rows(0.0), FIRST_DAY)
        self._open = contextlib.ExitStack()
        self._servers: Everyone | None = None
        self._n = 0

    def __call__(self, data: bytes) -> None:
        if self._servers is None or self._n % RENEWED == 0:
            self._open.close()
            again = self._folder / str(self._n)
            self._servers = self._open.enter_context(everyone(self._folder / "first" / "data", again))
        self._n += 1
        self._servers.same(*read(data))


def main() -> None:
    """Fuzz, until libFuzzer's options say that it is enough."""
    folder = Path(sys.argv[1])
    corpus, words = folder / "corpus", folder / "words"
    corpus.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(seeds()):
        (corpus / f"seed-{i:04}").write_bytes(seed)
    words.write_text("".join(f'"{word}"\n' for word in WORDS))
    with tempfile.TemporaryDirectory() as temporary:
        atheris.Setup(
            [sys.argv[0], str(corpus), f"-dict={words}", f"-artifact_prefix={folder}/", "-max_len=2048", *sys.argv[2:]],
            Target(Path(temporary)),
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
