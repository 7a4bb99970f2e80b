"""The compiled path: bytes of plain requests in, bytes of answers out, with nothing in between."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, final

from kserve._core import Store
from kserve._keyring import Keyring
from kserve._limits import Limits
from kserve._roster import Seat
from kserve._shed import Shedder
from kserve._tally import Tally

__all__ = ["GAPS", "OUTCOMES", "Numbers", "Wire", "WireSite"]

GAPS: str
"""Letters of the gaps of a pattern, each written after a ``~``: the id, points, changes, row, request id, length of the
body, date, fields that tell of a limit, seconds to wait, what Cache-Control begins with for the holder of a key."""

OUTCOMES: tuple[str, ...]
"""What the compiled path can answer."""

@final
class Numbers(Iterator[int]):
    """Numbers of requests, from 1 on, for Python and compiled code alike. One thread at a time."""

    def __next__(self) -> int: ...

class _Settings(Protocol):
    @property
    def open(self) -> bool: ...
    @property
    def compiled(self) -> bool: ...

class _Keys(Protocol):
    keyring: Keyring

class _Shedding(Protocol):
    shedder: Shedder
    stale: set[Any]
    def pause(self, connection: Any) -> None: ...

class _Site(Protocol):
    """Where answers come from, who may have them, and where they are counted."""

    @property
    def settings(self) -> _Settings: ...
    @property
    def keys(self) -> _Keys: ...
    @property
    def shedding(self) -> _Shedding: ...
    prefix: str
    numbers: Numbers
    store: Store
    seat: Seat
    limits: Limits
    tally: Tally

@final
class WireSite:
    """What the connections of one event loop share.

    ``patterns(version)`` gives (status, head, body) with gaps for each of ``OUTCOMES``; it is asked once a version.
    A request that has no id of its own gets the site's prefix, a dash and the next of its numbers. Without a site, or
    not ``on``, everything is handed over.
    """

    on: bool
    """Set it to False, and from then on every request is handed over."""

    def __init__(
        self, site: _Site | None, patterns: Callable[[str], list[tuple[int, bytes, bytes]]] | None
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
    ours: bool
    """Whether the next read is for the compiled path first."""

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
