"""Clients that ask all the time, at a steady pace, and can tell what happened to each of their requests."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import Counter
from functools import partial
from typing import NamedTuple

from threads import Threads
from waiting import PATIENCE

REQUEST = b"GET /v3/scores/%d HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Broken(NamedTuple):
    """A request that was sent and not answered: when, and by the request ids, on a connection of which worker."""

    at: float
    worker: str


class Hammer(Threads):
    """``clients`` connections to one port, each with a request every ``pause`` seconds.

    A client whose answer says ``Connection: close`` connects anew; of every four, one does so after each request.
    ``lost``: requests that were sent and not answered; ``refused``: when a connection could not be made. ``join`` waits
    until each client was refused: the server is gone.
    """

    def __init__(self, port: int, clients: int = 8, pause: float = 0.005, ids: int = 400) -> None:
        self.statuses: Counter[int] = Counter()
        self.workers: Counter[str] = Counter()
        self.lost: list[Broken] = []
        self.refused: list[float] = []
        self.connected = 0
        self._port, self._pause, self._ids = port, pause, ids
        self._lock = threading.Lock()
        super().__init__(partial(self._run, number) for number in range(clients))

    @property
    def answered(self) -> int:
        return sum(self.statuses.values())

    def _run(self, number: int) -> None:
        shuffled = random.Random(number)
        while not self.stopping.is_set():
            try:
                connection = socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE)
            except OSError:
                with self._lock:
                    self.refused.append(time.monotonic())
                return
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    self.connected += 1
                self._ask(connection, shuffled, once=number % 4 == 3)

    def _ask(self, connection: socket.socket, shuffled: random.Random, once: bool) -> None:
        worker, closes = "", False
        while not (closes or self.stopping.is_set()):
            time.sleep(self._pause * shuffled.uniform(0.5, 1.5))
            try:
                connection.sendall(REQUEST % (1000 + shuffled.randrange(self._ids)))
                status, worker, closes = answer(connection)
            except OSError:
                with self._lock:
                    self.lost.append(Broken(time.monotonic(), worker))
                return
            with self._lock:
                self.statuses[status] += 1
                self.workers[worker] += 1
            closes = closes or once


def answer(connection: socket.socket) -> tuple[int, str, bool]:
    """Status, worker, and whether it is the last one on this connection. Raises OSError when it does not come whole."""
    found = b""
    while b"\r\n\r\n" not in found:
        found += _more(connection)
    head, _, body = found.partition(b"\r\n\r\n")
    first, *lines = head.decode().lower().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    while len(body) < int(headers.get("content-length", 0)):
        body += _more(connection)
    worker = headers.get("x-request-id", "").partition("-")[0]
    return int(first.split()[1]), worker, headers.get("connection") == "close"


def _more(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise ConnectionResetError("closed before the answer was whole")
    return data
