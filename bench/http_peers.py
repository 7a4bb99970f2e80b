"""The same job by what else one could pick: nginx with lua and Redis, FastAPI with Redis.

All check a key, count it against a limit for each second, look a profile up and answer JSON. The others have a table of
keys in their own memory, and in Redis the answers ready as JSON, those alone that are asked for; limit and look-up are
one round trip (INCR, EXPIRE, GET) on a unix socket. Each runs one worker on the first core, with its Redis beside it:
none has more than kserve has.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from bench import _servers
from bench._data import Data
from bench._harness import Child, Report, Run, interleave, ratios, say
from bench._load import Shares, Wrk
from bench._peers import RedisServer
from bench._servers import Kserve, Target, free_port

ROUNDS = 5
SECONDS, TOY_SECONDS = 4, 1
PATHS = 50_000
LIMIT = 1_000_000  # a second
NGINX, FASTAPI = "nginx with lua and Redis", "FastAPI (uvicorn) with Redis"
MODULES = ("ndk_http_module", "ngx_http_lua_module")
MODULE_FOLDER = "/usr/lib/nginx/modules"

LUA = """
local keys = {KEYS}
local key = keys[ngx.var.http_x_api_key or ""]
if not key then return ngx.exit(401) end
local redis = ngx.socket.tcp()
redis:settimeout(1000)
if not redis:connect("unix:SOCKET") then return ngx.exit(503) end
local id, bucket = ngx.var.id, "limit:" .. key .. ":" .. ngx.time()
redis:send({"*2\\r\\n$4\\r\\nINCR\\r\\n$", #bucket, "\\r\\n", bucket,
            "\\r\\n*3\\r\\n$6\\r\\nEXPIRE\\r\\n$", #bucket, "\\r\\n", bucket, "\\r\\n$1\\r\\n2\\r\\n",
            "*2\\r\\n$3\\r\\nGET\\r\\n$", #id, "\\r\\n", id, "\\r\\n"})
local used = tonumber(string.sub(redis:receive("*l"), 2))
redis:receive("*l")
local length = tonumber(string.sub(redis:receive("*l"), 2))
local answer = length >= 0 and redis:receive(length)
if answer then redis:receive("*l") end
redis:setkeepalive(10000, 64)
if used > LIMIT then return ngx.exit(429) end
if not answer then return ngx.exit(404) end
ngx.header["Content-Length"] = #answer
ngx.print(answer)
"""


def measure(run: Run) -> Report:
    """Requests a second."""
    data = Data(run)
    report = Report("http_peers", "GET /v3/scores/{id}: key, limit and look-up, by what one could pick instead")
    catalog, records = data.catalog(), data.records()
    ids = records.random_ids(min(PATHS, 10 * run.profiles), seed=29).tolist()
    shares, seconds = Shares(), TOY_SECONDS if run.toy else SECONDS
    contenders: dict[str, Callable[[], float]] = {}
    with ExitStack() as stack:
        kserve = stack.enter_context(_servers.kserve(catalog.data))
        wrk = stack.enter_context(Wrk([kserve.request(f"/v3/scores/{i}") for i in ids]))

        def contend(name: str, target: Target) -> None:
            contenders[name] = shares.measured(name, lambda: wrk(target, seconds))

        contend("kserve", kserve.target)
        server, _ = stack.enter_context(_servers.redis(run))
        _servers.load_texts(server, _answers(kserve, ids))
        with report.optional("nginx"):
            contend(NGINX, stack.enter_context(_lua(run, server, kserve.keys[0])))
        with report.optional("fastapi"):
            contend(FASTAPI, stack.enter_context(_fastapi(run, server, kserve.keys[0])))
        say("asking")
        rates = interleave(contenders, run.rounds_or(ROUNDS), warm_up=not run.toy)
    for name, values in rates.items():
        report.add(name, "requests/s", values, more=True)
    for name in (NGINX, FASTAPI):
        if name in rates:
            report.add(f"kserve / {name}", "x", ratios(rates["kserve"], rates[name]), more=True)
    shares.tell(report)
    return report


def _answers(kserve: Kserve, ids: list[int]) -> Iterator[tuple[str, bytes]]:
    """What kserve says of each, as JSON."""
    wanted = sorted(set(ids))
    for start in range(0, len(wanted), 1000):
        body = json.dumps({"ids": [str(i) for i in wanted[start : start + 1000]]}).encode()
        found: dict[str, Any] = json.loads(kserve.ask("/v3/scores/batch", body))
        for item in found["scores"]:
            answer = {"id": item["id"], "score": item["score"], "changes": item["changes"], "version": found["version"]}
            yield item["id"], json.dumps(answer, separators=(",", ":")).encode()


@contextmanager
def _lua(run: Run, server: RedisServer, key: str) -> Iterator[Target]:
    run.require("nginx", command="nginx")
    code = LUA.replace("SOCKET", server.path).replace("KEYS", f'["{key}"] = "bench"').replace("LIMIT", str(LIMIT))
    location = f"location ~ ^/v3/scores/(?<id>[0-9]+)$ {{ content_by_lua_block {{ {code} }} }}"
    with _servers.nginx(location, modules=[f"{MODULE_FOLDER}/{module}.so" for module in MODULES]) as target:
        yield target


@contextmanager
def _fastapi(run: Run, server: RedisServer, key: str) -> Iterator[Target]:
    for module in ("fastapi", "uvicorn", "httptools"):
        run.require("fastapi", module=module)
    port = free_port()
    with Child("_fastapi:serve", path=server.path, key=key, limit=LIMIT, port=port) as child:
        yield Target(port, child.process).wait("FastAPI")
