"""Threads that go on until a test has seen enough."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Self

from waiting import PATIENCE


class Threads:
    """Run as long as a ``with`` lasts. Each of ``works`` is to look at ``stopping`` now and then."""

    def __init__(self, works: Iterable[Callable[[], None]]) -> None:
        self.stopping = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in works]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.join()

    def join(self) -> None:
        """Wait until each of them has ended, by itself or because it was told to."""
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
