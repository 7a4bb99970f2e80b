"""Who is served and who is turned away under overload: one look at a table for each request."""

from typing import final

__all__ = ["CLASS_NAMES", "Shedder", "now_us"]

CLASS_NAMES: tuple[str, ...]
"""In the order in which they are kept: the last is turned away first."""

def now_us() -> int:
    """Microseconds of CLOCK_MONOTONIC, the clock of every method here."""

@final
class Shedder:
    """The controller of one event loop, and what it has decided.

    All work that is asked for has a place on one line: by class, then, within a class, by an hourly hash of the caller,
    in 256 buckets. What lies below a level is served, what lies above is not; of the one bucket at the level, some
    requests are. The level is where the *share* of the work that was asked for in the last second lies below it.

    The share comes from delays of the loop. When each one for ``interval`` seconds was above ``target`` (CoDel), it
    shrinks until the delay is down to one and a half targets, by up to half in a fifth of the interval, the further
    above the faster, but not below half of what would keep the loop busy; below that delay it grows, by up to 2 %. A
    delay beyond four targets also lowers what is served for as long as it lasts. While this thread computes for less
    than a fifth of the time, a delay is others' doing, and nobody is turned away for it.

    Not for threads: one loop asks and tells.
    """

    def __init__(self, target: float = 0.005, interval: float = 0.1, retry_after: int = 2) -> None: ...
    def admits(self, klass: int, caller: int) -> bool:
        """Whether a request is to be served; it is counted either way.

        ``klass``: its place in CLASS_NAMES. ``caller``: 64 bits that stay the same for a caller.
        """
    def peeks(self, klass: int, caller: int) -> bool:
        """Whether a request is worth the way to who asks :meth:`admits`; only a refusal is counted."""
    def refuses(self, klass: int, caller: int) -> None:
        """Count one that is turned away whatever its class, because it has waited for too long already."""
    def retry_after(self) -> int:
        """Whole seconds for a Retry-After: another number each time, from the setting to twice that."""
    def expect(self, due_us: int) -> None:
        """The loop should come round at this time; until it has, :meth:`admits` looks at the clock now and then."""
    def measured(self, delay_us: int, now_us: int, computed_us: int = -1) -> None:
        """So long does a request wait for the loop now; nothing is expected any more.

        ``computed_us``: processor time of this thread so far; without it, the system is asked.
        """
    def renew(self, hour: int) -> None:
        """Another hour, another order of the callers within a class: of all hosts and workers the same."""
    @property
    def share(self) -> float:
        """Of the work asked for, how much is served now; 1.0: all."""
    @property
    def delay(self) -> float:
        """Seconds; the last one measured."""
    @property
    def kept(self) -> tuple[float, ...]:
        """By class, the share of callers that are served now."""
    @property
    def served(self) -> tuple[int, ...]:
        """Requests admitted so far, by class."""
    @property
    def turned_away(self) -> tuple[int, ...]:
        """Requests not admitted so far, by class."""
