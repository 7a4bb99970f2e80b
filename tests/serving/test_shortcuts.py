"""What is done in place of aiohttp, to find a handler and to send what it answers, is what aiohttp would do."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from http import HTTPMethod, HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from serving.twins import Loop, Transport

from kserve.serving.protocol import Runner
from kserve.serving.routes import table
from kserve.serving.site import Front, Whole
from kserve.settings import Settings

PARTS = ["v3", "scores", "batch", "profiles", "topics", "identities", "tw", "healthz", "42", "a-b", "%34%32", "a%2Fb"]
PARTS += ["%7B", "{", "%C3%A9", ".", "..", "", "*", "~A", "BATCH"]


def app_of(response: Any) -> web.Application:
    """The routes of the server, whose answers say who got what; status and body are those of the query."""
    app = web.Application()
    paths = [route.path for route in table()]
    for path in [*dict.fromkeys(paths), "/{path:.*}"]:

        async def answer(request: web.Request, path: str = path) -> Any:
            found = ascii(sorted(request.match_info.items()))
            headers = {"Content-Type": "text/plain", "X-Path": path, "X-Found": found, "Server": "s"}
            body = request.query.get("body", "").encode() or None
            return response(status=int(request.query.get("status", 200)), body=body, headers=headers)

        resource = app.router.add_resource(path)
        for route in table():
            if route.path == path:
                resource.add_route(route.method, answer)

        async def other(request: web.Request, path: str = path) -> Any:
            return response(status=404, body=path.encode(), headers={"Content-Type": "text/plain", "Server": "s"})

        resource.add_route("*", other)
    return app


class Both:
    """The same application on our connections, and on aiohttp's own."""

    def __init__(self, folder: Path) -> None:
        self.loop = Loop()
        front = Front(Settings(data=folder, port=0))
        self.runners = [Runner(app_of(Whole), front), web.AppRunner(app_of(web.Response), access_log=None)]
        for runner in self.runners:
            self.loop.run_until_complete(runner.setup())

    def answers(self, request: bytes) -> list[tuple[bytes, bool]]:
        """Of each: what was sent, and whether the connection is still open."""
        return [self.loop.run_until_complete(self._answer(runner, request)) for runner in self.runners]

    async def _answer(self, runner: web.AppRunner, request: bytes) -> tuple[bytes, bool]:
        server: Any = runner.server
        protocol = server()
        transport = Transport(self.loop, protocol)
        protocol.connection_made(transport)
        await self.loop.settle()
        transport.send(request)
        await self.loop.settle()
        transport.take()
        found = re.sub(rb"Date: [^\r]{29}", b"Date: now", bytes(transport.got)), transport.open
        transport.discard()
        await self.loop.settle()
        return found

    def close(self) -> None:
        for runner in self.runners:
            self.loop.run_until_complete(runner.cleanup())
        self.loop.close()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    with contextlib.closing(Both(tmp_path_factory.mktemp("both"))) as found:
        yield found


targets = st.builds("/".join, st.lists(st.sampled_from(PARTS) | st.text("0123456789", min_size=1), max_size=5))
queries = st.sampled_from(["", "?body=some", "?status=304", "?status=303", "?status=503&body=x"])
methods = st.sampled_from([method.value for method in HTTPMethod if method != HTTPMethod.CONNECT])
lines = st.sampled_from(["", "Connection: close\r\n", "Connection: keep-alive\r\n"])


@given(method=methods | st.just("GET"), target=targets, query=queries, version=st.sampled_from("01"), line=lines)
def test_the_same_handler_is_found_and_the_same_bytes_are_sent(both, method, target, query, version, line):
    request = f"{method} /{target}{query} HTTP/1.{version}\r\nHost: x\r\n{line}\r\n".encode()
    ours, theirs = both.answers(request)
    assert ours == theirs
    assert ours[0].startswith(f"HTTP/1.{version} ".encode())


@pytest.mark.parametrize("path", ["/v3/scores/42", "/v3/profiles/42", "/v3/topics/food"])
def test_what_has_a_shortcut_gets_there(both, path):
    found = both.answers(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())[0][0]
    assert found.startswith(f"HTTP/1.1 {HTTPStatus.OK} OK\r\n".encode())
    assert path.rpartition("/")[0].encode() + b"/{" in found
