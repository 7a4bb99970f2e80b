"""What the scenarios share: keys, ids, refusals, and waiting times that make arrivals open, as far as Locust can."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

from locust import FastHttpUser

KEYS: Iterator[str] = cycle(os.environ.get("KSERVE_KEYS", "").replace(",", " ").split() or [""])
"""One for each user in turn; KSERVE_KEYS has them, comma-separated. None: the server runs with --open."""

REFUSED = (429, 503)


def _ids() -> list[str]:
    """Profile ids, one a line in the file that KSERVE_IDS names; else the first hundred thousand numbers."""
    file = os.environ.get("KSERVE_IDS")
    return Path(file).read_text().split() if file else [str(number) for number in range(100_000)]


IDS = _ids()


class Arrivals:
    """A Poisson schedule of one user: the next arrival does not wait for the last answer.

    Locust runs a user's tasks one after the other, so a user that is behind its schedule does not wait at all until it
    has caught up, and :meth:`late` says how far behind it is: that is added to what Locust reports. Many users with a
    low rate each come close to open arrivals; few with a high rate do not.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._next = time.perf_counter()

    def wait(self) -> float:
        """Seconds until the next arrival; 0 when it is overdue."""
        self._next += random.expovariate(self.rate)
        return max(self._next - time.perf_counter(), 0.0)

    def late(self) -> float:
        """Seconds since the arrival that is served now was intended."""
        return max(time.perf_counter() - self._next, 0.0)


class ApiUser(FastHttpUser):
    """A client of the API with a key of its own."""

    abstract = True
    rate = 1.0
    """Arrivals a second."""
    retries = 0
    connection_timeout = network_timeout = 10.0

    def on_start(self) -> None:
        key = next(KEYS)
        self.headers = {"X-Api-Key": key} if key else {}
        self.arrivals = Arrivals(self.rate)

    def wait_time(self) -> float:
        """Locust asks it after each task."""
        return self.arrivals.wait()

    def get(self, path: str, name: str) -> Any:
        """One GET, and what becomes of it: from its intended time, with retries of their own names."""
        late_ms = 1000 * self.arrivals.late()
        for attempt in range(self.retries + 1):
            label = name if attempt == 0 else f"{name} (retry {attempt})"
            with self.client.get(path, name=label, headers=self.headers, catch_response=True) as response:
                response.request_meta["response_time"] += late_ms
                if response.status_code == 404:
                    response.success()  # an id that nobody has is an answer too
                elif response.status_code in REFUSED:
                    response.failure(f"turned away: {response.status_code}")
            if response.status_code not in REFUSED or attempt == self.retries:
                return response
            time.sleep(self.patience(response, attempt))
            late_ms = 0.0
        return None

    def patience(self, response: Any, attempt: int) -> float:
        """Seconds before a retry: what the answer asks for."""
        return float(response.headers.get("Retry-After", 1))
