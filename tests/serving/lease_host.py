"""A host of a fleet as a process: a table of limits, its buyer, and callers that never rest. See test_leases.py."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
import time

from kserve._limits import ADMITTED, Limits, interval
from kserve._tally import Tally
from kserve.serving.books import Terms
from kserve.serving.leases import Buyer, prepare
from kserve.settings import Settings, Tier


class Prices:
    """One limit for everybody."""

    def __init__(self, tier: Tier) -> None:
        self._terms = Terms(interval(tier), tier.burst, tier.quota or 0)

    def get(self, key_id: str) -> Terms:
        return self._terms

    def refresh(self) -> None:
        return


def main(redis: str, name: str, pace: int, tier: Tier) -> None:
    """Says "ready", is told from when to when to ask, and prints each admission: when, how long it took, its cost."""
    settings = Settings(redis=redis, hosts=3)
    limits = Limits(None)
    prepare(settings, limits)
    buyer = Buyer(settings, limits, name.encode(), Prices(tier), Tally(None, "office"))
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(buyer.run(stop),))
    thread.start()
    while buyer.state.mode != "leased":
        time.sleep(0.01)
    print("ready", flush=True)
    start, end = json.loads(sys.stdin.readline())
    time.sleep(max(0.0, start - time.monotonic()))
    admitted: list[tuple[float, float, int]] = []
    while (before := time.monotonic()) < end:
        for _ in range(max(1, pace // 1000)):
            cost = random.randint(1, 3)
            before = time.monotonic()
            if limits.take("hot", tier, cost).outcome == ADMITTED:
                admitted.append((before, time.monotonic() - before, cost))
        time.sleep(0.001 * max(1, 1000 // pace))
    print(json.dumps({"mode": buyer.state.mode, "admitted": admitted}))  # the last line, after what was logged
    loop.call_soon_threadsafe(stop.set)
    thread.join()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Tier.model_validate_json(sys.argv[4]))
