"""Where in a stream of requests aiohttp's parser is, as far as that can be proven from outside of it."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import hdrs
from aiohttp.http import RawRequestMessage

MAX_HEAD = 1 << 16
"""Bytes of a head that is not whole yet; with more, nothing is known any more."""

END_OF_HEAD = b"\r\n\r\n"


class Framing:
    """Follows what the parser is given, and says when it is between two requests.

    It goes by what the parser itself found: how many requests, and how long their bodies are. A head ends with its
    first empty line, a body when its Content-Length is there. What cannot be followed by that alone (chunked bodies,
    upgrades, blank lines before a request, lines that do not end as they should) ends the knowledge for good.
    """

    __slots__ = ("_body_left", "_head")

    def __init__(self) -> None:
        self._head: bytes | None = b""  # begun, and not whole yet; None: nothing is known any more
        self._body_left = 0

    @property
    def between(self) -> bool:
        """Whether the next byte begins a request."""
        return self._head == b"" and self._body_left == 0

    def first_end(self, data: bytes, start: int) -> int:
        """Where in ``data`` the head, or the body, ends that ``start`` is in or begins; its end when that is later."""
        if self._body_left:
            return min(start + self._body_left, len(data))
        if self._head:
            begun = self._head[1 - len(END_OF_HEAD) :]  # the end may have begun in the read before
            across = (begun + data[start : start + len(END_OF_HEAD) - 1]).find(END_OF_HEAD)
            if across >= 0:
                return start + across + len(END_OF_HEAD) - len(begun)
        end = data.find(END_OF_HEAD, start)
        return len(data) if end < 0 else end + len(END_OF_HEAD)

    def follow(self, data: bytes, found: Sequence[object]) -> None:
        """The parser was given ``data``, no more than up to :meth:`first_end`, and found these requests or errors."""
        if self._head is None:
            return
        length: int | None = 0
        head = self._head + data
        if self._body_left:
            length = None if found else self._body_left - len(data)
            head = b""
        elif found:
            length = _body_length(found[0]) if len(found) == 1 and _is_whole(head) else None
            head = b""
        if length is None or len(head) > MAX_HEAD:
            self._head = None
        else:
            self._head, self._body_left = head, length


def _is_whole(head: bytes) -> bool:
    """Whether it has a first line and an end, and no ends of lines but CRLF."""
    whole = head.endswith(END_OF_HEAD) and head[0] not in b"\r\n"
    return whole and len(head.splitlines()) == head.count(b"\r\n")


def _body_length(message: object) -> int | None:
    """Bytes of a request's body; None when its head alone does not say."""
    if not isinstance(message, RawRequestMessage) or message.method == hdrs.METH_CONNECT:
        return None
    if message.upgrade or message.chunked or hdrs.TRANSFER_ENCODING in message.headers:
        return None
    return int(message.headers.get(hdrs.CONTENT_LENGTH, 0))
