"""How a server takes new settings and new code: its arbiter executes itself anew, in the same process.

The process id, the children and the listening sockets stay; the new image starts workers of its own, and ends those
that it found once they take requests. Whether it would start at all is tried beforehand, in a process beside it.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import NoReturn

import msgspec

from kserve._places import FLOCK
from kserve._tally import Tallies
from kserve.errors import Busy, SettingError
from kserve.serving.samples import arbiters_file, tally_file

ENVIRONMENT = "_KSERVE_HANDOVER"
"""Where an image of the arbiter finds what the one before leaves to it."""

START_SECONDS = 60.0
"""Within which a server has tried whether it can start, and has started."""

LOOK_SECONDS, LOOKS = 0.1, 5
"""How often it is looked whether it has; and how often it is still as before until that is how it stays."""


class Handover(msgspec.Struct):
    """What one image leaves to the next: descriptors of its sockets, and its children.

    ``trial``: there is nothing to take over; only find out whether a server could start.
    """

    trial: bool = False
    public: int = -1
    admin: int = -1
    children: list[int] = []

    def sockets(self) -> tuple[socket.socket, socket.socket] | None:
        """The public one and that of the office; None when there are none to take over."""
        if self.public < 0:
            return None
        for descriptor in (self.public, self.admin):
            os.set_inheritable(descriptor, False)
        return socket.socket(fileno=self.public), socket.socket(fileno=self.admin)


def received() -> Handover | None:
    """What was left to this process; None when it was started by somebody else."""
    text = os.environ.pop(ENVIRONMENT, None)
    return None if text is None else msgspec.json.decode(text, type=Handover)


def begin_trial() -> int:
    """Start a process that ends with 0 if a server could start now, as this one was started; its id."""
    environment = {**os.environ, ENVIRONMENT: msgspec.json.encode(Handover(trial=True)).decode()}
    nothing = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1)]
    return os.posix_spawn(sys.executable, _command(), environment, file_actions=nothing)


def execute(handover: Handover) -> NoReturn:
    """Become the next image. Signals wait until it lets them in with :func:`listen`. Raises OSError."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    for descriptor in (handover.public, handover.admin):
        os.set_inheritable(descriptor, True)
    environment = {**os.environ, ENVIRONMENT: msgspec.json.encode(handover).decode()}
    try:
        os.execve(sys.executable, _command(), environment)
    except OSError:
        for descriptor in (handover.public, handover.admin):
            os.set_inheritable(descriptor, False)
        listen()
        raise


def listen() -> None:
    """Let signals in: there are handlers for them now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())


def _command() -> list[str]:
    return [sys.executable, *sys.orig_argv[1:]]


def be_found(data: Path) -> int:
    """Let :func:`arbiters` find this process for as long as it lives and does not close what is returned.

    Each locks the byte of its number in a file without any content; the kernel knows who does. Raises OSError.
    """
    descriptor = os.open(arbiters_file(data), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, os.getpid())
    return descriptor


def arbiters(data: Path) -> list[int]:
    """The servers of this data directory that this user runs on this host. Raises OSError."""
    found: list[int] = []
    start = 0
    with open(arbiters_file(data), "a+b") as file:
        while True:
            asked = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, 0, 0)
            kind, _, start, _, process = FLOCK.unpack(fcntl.fcntl(file, fcntl.F_GETLK, asked))
            if kind == fcntl.F_UNLCK:
                return found
            found.append(process)
            start += 1


def alone(data: Path) -> list[int]:
    """Processes of this user that are worker and office in one, so that they have no arbiter. Raises OSError."""
    _, living = Tallies(tally_file(data)).read()
    workers, offices = ({one.pid for one in living if one.role == role} for role in ("worker", "office"))
    return sorted(workers & offices)


class Reload:
    """A reload of one server, begun: its children are replaced, or it says in its log why not."""

    def __init__(self, data: Path, pid: int) -> None:
        self.pid = pid
        self._data = data
        self._before = self.children()
        os.kill(pid, signal.SIGHUP)

    def children(self) -> set[int]:
        """Of the arbiter; none when it is gone."""
        try:
            return {int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()}
        except FileNotFoundError:
            return set()

    def wait(self, drain_seconds: float) -> None:
        """Until the children before are gone. Raises SettingError when it was refused, Busy when it takes too long."""
        until = time.monotonic() + START_SECONDS + drain_seconds
        tried, same = False, 0
        while now := self.children() & self._before:
            tried = tried or bool(self.children() - self._before)
            same = same + 1 if tried and self._is_as_before() else 0
            if same >= LOOKS:
                raise SettingError(f"server {self.pid} could not start now, and goes on as it was: its log says why")
            if time.monotonic() > until:
                raise Busy(f"server {self.pid} still has {len(now)} of its children from before")
            time.sleep(LOOK_SECONDS)
        if not self.children():
            raise SettingError(f"server {self.pid} has ended: its log says why")

    def _is_as_before(self) -> bool:
        """Between two images of an arbiter it is not to be found."""
        return self.children() == self._before and self.pid in arbiters(self._data)
