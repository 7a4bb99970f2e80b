"""Waiting for what other threads and processes do, however slow the machine is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

PATIENCE = 60.0
"""Seconds after which nothing will come any more; a fifth of what a test may take."""


def until(condition: Callable[[], object], seconds: float = PATIENCE) -> float:
    """Wait for it; how long it took. Raises AssertionError when it does not come about."""
    start = time.monotonic()
    while True:
        waited = time.monotonic() - start
        if condition():
            return waited
        assert waited < seconds, "waited in vain"
        time.sleep(0.005)


async def comes(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """The same for what the event loop itself has to do."""
    start = time.monotonic()
    while True:
        waited = time.monotonic() - start
        if condition():
            return
        assert waited < seconds, "waited in vain"
        await asyncio.sleep(0.005)
