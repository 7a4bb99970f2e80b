"""How long some tests last: what `make test` does in short, `make drill` and `make faults` do in full."""

from __future__ import annotations

import os

FULL = os.environ.get("DRILLS") == "all"
"""`make drill`: the tests with the mark ``drill``."""

EVERY_FAULT = os.environ.get("FAULTS") == "all"
"""`make faults`."""
