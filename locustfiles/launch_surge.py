"""A give-away goes live: within a minute thirty times the ordinary number of users, who try again when turned away.

The curve is data, in launch_surge.csv (seconds, times the ordinary number of users), or in the file that KSERVE_SURGE
names. KSERVE_ORDINARY is the ordinary number (20), KSERVE_SPEED makes time go faster (1).

locust -f locustfiles/launch_surge.py --host http://127.0.0.1:8080 --headless
"""

from __future__ import annotations

import csv
import os
import random
from bisect import bisect_right
from itertools import pairwise
from pathlib import Path
from typing import Any

from _kserve import IDS, ApiUser
from locust import LoadTestShape, task

CURVE = Path(os.environ.get("KSERVE_SURGE", Path(__file__).with_suffix(".csv")))
ORDINARY = float(os.environ.get("KSERVE_ORDINARY", "20"))
SPEED = float(os.environ.get("KSERVE_SPEED", "1"))


def read_curve(file: Path) -> list[tuple[float, float]]:
    """(seconds, times) in order. Raises ValueError naming the file for a curve that does not begin at 0 and rise."""
    with file.open(newline="", encoding="utf-8") as lines:
        points = [(float(row["seconds"]), float(row["times"])) for row in csv.DictReader(lines)]
    if len(points) < 2 or points[0][0] != 0 or any(a[0] >= b[0] for a, b in pairwise(points)):
        raise ValueError(f"{file}: needs two points at least, the first at 0 seconds, each later than the one before")
    return points


def times_at(points: list[tuple[float, float]], seconds: float) -> float | None:
    """How many times the ordinary, on straight lines between the points; None after the last."""
    place = bisect_right([point[0] for point in points], seconds)
    if place == len(points):
        return None
    (start, low), (end, high) = points[place - 1], points[place]
    return low + (high - low) * (seconds - start) / (end - start)


class Surge(LoadTestShape):
    """Follows the curve."""

    def __init__(self) -> None:
        super().__init__()
        self.points = read_curve(CURVE)

    def tick(self) -> tuple[int, float] | None:
        """Users now, and how many may start in a second."""
        times = times_at(self.points, self.get_run_time() * SPEED)
        if times is None:
            return None
        users = max(round(ORDINARY * times), 1)
        return users, max(ORDINARY * 2 * SPEED, 10)


class Fan(ApiUser):
    """Looks its score up, is impatient, and comes back three times at ever longer intervals."""

    rate = 1.0
    retries = 3

    @task(4)
    def score(self) -> None:
        """GET /v3/scores/{id}."""
        self.get(f"/v3/scores/{random.choice(IDS)}", "/v3/scores/[id]")

    @task(1)
    def profile(self) -> None:
        """GET /v3/profiles/{id}."""
        self.get(f"/v3/profiles/{random.choice(IDS)}", "/v3/profiles/[id]")

    def patience(self, response: Any, attempt: int) -> float:
        """Half of them do as Retry-After says, the others press the button again."""
        if random.random() < 0.5:
            return super().patience(response, attempt)
        return 0.2 * 2**attempt * random.uniform(0.5, 1.5)
