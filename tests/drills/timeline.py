"""What happened in a drill, line by line, with the seconds since it began."""

from __future__ import annotations

import time


class Timeline:
    """Prints as it goes; `make drill` shows it."""

    def __init__(self, title: str) -> None:
        self._start = time.monotonic()
        print(f"\n{title}")

    def tell(self, text: str) -> float:
        """A line; the seconds since the beginning."""
        seconds = time.monotonic() - self._start
        print(f"  {seconds:8.2f} s  {text}", flush=True)
        return seconds
