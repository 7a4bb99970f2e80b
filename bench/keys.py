"""What a request's key costs: one that is known, in compiled code and from Python, and one that is checked by its HMAC.

Known keys come in random order, and have expiry dates. The HMACs are those of a database that was made by the same code
as any other.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from bench._harness import Report, Run, Stopwatch, interleave
from kserve._keyring import Keyring
from kserve.serving.keys import Keys
from kserve.settings import TIERS

KNOWN = 10_000
MADE = 100
CALLS = 200_000
CHECKS = 5_000
ROUNDS = 15
BAR_NS = 200


def measure(run: Run) -> Report:
    """Nanoseconds a key."""
    report = Report("keys", "a request's key")
    numbers = random.Random(1)
    texts = [f"ks_live_{number:012d}_{numbers.randbytes(19).hex()}" for number in range(KNOWN)]
    one, many = _ring(texts[:1]), _ring(texts)
    order = numbers.choices(texts, k=CALLS)
    with tempfile.TemporaryDirectory(prefix="kserve-bench-") as folder:
        keys = Keys(Path(folder))
        right = [keys.create("bench", ["score:read"])[1] for _ in range(MADE)]
        book = keys.book()
    known = f"known, of {KNOWN:,} keys"
    contenders = {
        "known, of 1 key": _packed(one, texts[:1] * CALLS),
        known: _packed(many, order),
        "not known": _packed(many, [f"{text[:-1]}-" for text in order]),
        "known, from Python": _each(many.get, order),
        "checked by its HMAC": _each(book.match, numbers.choices(right, k=CHECKS)),
        "refused by its HMAC": _each(book.match, order[:CHECKS]),
    }
    seconds = interleave(contenders, run.rounds_or(ROUNDS))
    report.add_seconds(seconds, "ns")
    report.bar(
        f"a known key, compiled, of {KNOWN:,}", [value * 1e9 for value in seconds[known]], "at most", BAR_NS, "ns"
    )
    return report


def _ring(texts: Iterable[str]) -> Keyring:
    ring, soon = Keyring(), int(time.time()) + 86_400
    for text in texts:
        ring.add(text, None, key_id=text[8:20], scopes=1, tier=0, limit=TIERS["partner"], expires=soon)
    return ring


def _packed(ring: Keyring, texts: list[str]) -> Callable[[], float]:
    """What measures look-ups in compiled code: seconds a key."""
    packed = "".join(texts).encode()

    def timed() -> float:
        with Stopwatch() as watch:
            ring.known(packed)
        return watch.seconds / len(texts)

    return timed


def _each(function: Callable[[str], object], texts: list[str]) -> Callable[[], float]:
    """What measures calls: seconds a key."""

    def timed() -> float:
        with Stopwatch() as watch:
            for text in texts:
                function(text)
        return watch.seconds / len(texts)

    return timed
