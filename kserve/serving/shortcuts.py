"""Where most requests go can be looked up: their path differs from that of a route in nothing but its last part."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from aiohttp import hdrs, web
from aiohttp.web_urldispatcher import UrlMappingMatchInfo

Search = Callable[[Any], Awaitable[web.StreamResponse]]

_LAST_VARIES = re.compile(r"((?:/\w+)*)/\(\?P<(\w+)>\[\^\{\}/\]\+\)").fullmatch
"""Of the router's own patterns: those of words, and behind them a name for whatever stands between slashes."""


class Shortcuts:
    """What an application's router finds, found in one look-up.

    It is taken from the router itself, which is asked whenever there is any doubt: ``search`` answers then. For
    applications without middlewares, signals or parts; their handlers get no ``request.app``.
    """

    def __init__(self, app: web.Application, search: Search) -> None:
        self._search = search
        self._paths = {resource.canonical for resource in app.router.resources()}
        self._routes = {(route.method, start): (route, name) for start, name, route in _routes(app)}

    def answer(self, request: Any) -> Awaitable[web.StreamResponse]:
        """What the handler of this request answers."""
        path = request.rel_url.raw_path
        start, _, last = path.rpartition("/")
        found = self._routes.get((request.method, start))
        if found is None or path in self._paths or not _is_plain(last) or hdrs.EXPECT in request.headers:
            return self._search(request)
        route, name = found
        request._match_info = UrlMappingMatchInfo({name: last}, route)
        answer: Awaitable[web.StreamResponse] = route.handler(request)
        return answer


def _is_plain(text: str) -> bool:
    """Whether it stands for itself, however it is read."""
    return text.isascii() and text.isalnum()


def _routes(app: web.Application) -> Iterator[tuple[str, str, web.AbstractRoute]]:
    """Of what varies in its last part only: the path before it, the name of the part, and the route."""
    for resource in app.router.resources():
        pattern = resource.get_info().get("pattern")
        varies = None if pattern is None else _LAST_VARIES(pattern.pattern)
        if varies is not None:
            yield from ((varies[1], varies[2], route) for route in resource)
