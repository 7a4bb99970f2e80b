"""A counter in a shared file that wakes whoever waits for it, in any process."""

from os import PathLike
from typing import final

SIZE: int

@final
class Doorbell:
    """Readers need read permission only. Raises OSError when there is no such file."""

    def __init__(self, path: str | PathLike[str], writable: bool = False) -> None: ...
    def count(self) -> int:
        """How often it was rung, modulo 2**32."""
    def wait(self, seen: int, seconds: float) -> None:
        """Return when the count is not ``seen`` any more, when woken, or after that time; check why."""
    def wake(self) -> None:
        """Wake all who wait, in all processes, without ringing."""
    def ring(self) -> None:
        """Count and wake. Only on a writable doorbell."""
