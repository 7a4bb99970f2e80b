"""Steady reads: single scores with keys, and a profile now and then. The rate of all users together stays the same.

locust -f locustfiles/scores.py --host http://127.0.0.1:8080 --headless -u 500 -r 100 -t 60s
"""

from __future__ import annotations

import os
import random

from _kserve import IDS, ApiUser
from locust import task


class Reader(ApiUser):
    """Reads KSERVE_RATE times a second (2)."""

    rate = float(os.environ.get("KSERVE_RATE", "2"))

    @task(19)
    def score(self) -> None:
        """GET /v3/scores/{id}."""
        self.get(f"/v3/scores/{random.choice(IDS)}", "/v3/scores/[id]")

    @task(1)
    def profile(self) -> None:
        """GET /v3/profiles/{id}."""
        self.get(f"/v3/profiles/{random.choice(IDS)}", "/v3/profiles/[id]")
