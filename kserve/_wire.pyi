"""The compiled path: bytes of plain requests in, bytes of answers out, with nothing in between."""

from collections.abc import Callable, Iterator
from typing import Protocol, final

from kserve._core import Store
from kserve._roster import Seat

__all__ = ["GAPS", "OUTCOMES", "Numbers", "Wire", "WireSite"]

GAPS: str
"""Letters of the gaps of a pattern, each written after a ``~``: the id, points, changes, row, request id, length of the
body, date."""

OUTCOMES: tuple[str, ...]
"""What the compiled path can answer."""

@final
class Numbers(Iterator[int]):
    """Numbers of requests, from 1 on, for Python and compiled code alike. One thread at a time."""

    def __next__(self) -> int: ...

@final
class WireSite:
    """What the connections of one event loop share: where answers come from, and where they are counted.

    ``patterns(version)`` gives (status, head, body) with gaps for each of ``OUTCOMES``; it is asked once a version.
    A request that has no id of its own gets ``prefix``, a dash and the next of ``numbers``. Without a store, or not
    ``on``, everything is handed over.
    """

    on: bool
    """Set it to False, and from then on every request is handed over."""

    def __init__(
        self,
        store: Store | None,
        seat: Seat | None,
        patterns: Callable[[str], list[tuple[int, bytes, bytes]]] | None,
        prefix: str,
        numbers: Numbers,
        on: bool,
    ) -> None: ...

class _Connection(Protocol):
    """What a Wire asks of its connection."""

    def receive(self, data: bytes) -> None:
        """Take what the compiled path does not answer."""
    def may_leave(self) -> bool:
        """Whether nothing that came before is unanswered, unsent, or unfinished."""
    def finish(self, rest: bytes) -> bool:
        """Send this, of which the socket takes no more now; False: :meth:`Wire.go_on` is called when it is sent."""
    def stop_clock(self) -> None:
        """The first request is answered."""

@final
class Wire:
    """One connection's reads. Answers plain requests at once, in order; hands the rest to ``connection.receive``.

    It only answers while the one before it has nothing left to say: when ``connection.may_leave()``.
    """

    held: bool
    """Whether an answer waits for the client to read."""

    def __init__(self, site: WireSite, connection: _Connection) -> None: ...
    def attach(self, descriptor: int) -> None:
        """Answer on this connected socket, whose owner has nothing to send. Without it everything is handed over."""
    def release(self) -> None:
        """The connection is lost."""
    def data_received(self, data: bytes) -> None:
        """Take what was read. In order; an empty read is for the connection."""
    def go_on(self) -> None:
        """All is sent: answer what has come since."""
    @property
    def answered_at(self) -> float:
        """Seconds of the monotonic clock at the last answer; 0 before the first."""
