"""GET /v3/scores/{id} with one worker, beside a plain aiohttp handler. For orientation: it has no bar yet.

wrk on 64 connections, on the last core; the server on the first. The plain handler always gives the same answer.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from bench._data import Data
from bench._harness import Child, Report, Run, Skip, interleave, plain_environment, ratios

ROUNDS = 5
CONNECTIONS = 64
SECONDS, TOY_SECONDS = 4, 1
PATHS = 100_000
SCRIPT = """
local paths = {}
for line in io.lines("PATHS") do paths[#paths + 1] = line end
local at = 0
request = function()
  at = at % #paths + 1
  return wrk.format("GET", paths[at])
end
"""


def measure(run: Run) -> Report:
    """Requests a second."""
    run.require("aiohttp", module="aiohttp", command="wrk")
    data = Data(run)
    report = Report("http", "GET /v3/scores/{id}, one worker (for orientation)")
    catalog = data.catalog()
    ids = data.records().random_ids(PATHS, seed=13).tolist()
    with tempfile.TemporaryDirectory(prefix="kserve-bench-") as folder:
        script, paths = Path(folder, "paths.lua"), Path(folder, "paths")
        paths.write_text("\n".join(f"/v3/scores/{i}" for i in ids) + "\n")
        script.write_text(SCRIPT.replace("PATHS", str(paths)))
        ports = free_port(), free_port()
        with Child("http:serve_kserve", data=str(catalog.data), port=ports[0]):
            body = _answer(f"http://127.0.0.1:{ports[0]}/v3/scores/{ids[0]}")
            with Child("http:serve_plain", body=body, port=ports[1]):
                _answer(f"http://127.0.0.1:{ports[1]}/")
                seconds = TOY_SECONDS if run.toy else SECONDS
                contenders = {
                    "kserve": lambda: requests_a_second(ports[0], script, seconds),
                    "a plain aiohttp handler": lambda: requests_a_second(ports[1], script, seconds),
                }
                rates = interleave(contenders, run.rounds_or(ROUNDS))
    for name, values in rates.items():
        report.add(name, "requests/s", values, more=True)
    share = ratios(rates["kserve"], rates["a plain aiohttp handler"])
    report.add("kserve / plain handler", "x", share, more=True)
    report.notes.append(f"{CONNECTIONS} connections, {len(body)} bytes of body, as {body}")
    return report


def _answer(url: str) -> str:
    """The body, as soon as the server answers."""
    deadline = time.monotonic() + 30
    while True:
        try:
            with urlopen(url, timeout=5) as response:
                return str(response.read().decode())
        except (URLError, ConnectionError):
            if time.monotonic() > deadline:
                raise Skip(f"no answer from {url}") from None
            time.sleep(0.05)


def requests_a_second(port: int, script: Path, seconds: int) -> float:
    """What wrk counts. Raises RuntimeError when an answer was not 200."""
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(script), f"http://127.0.0.1:{port}"]
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        command = ["taskset", "-c", str(cores[-1]), *command]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=plain_environment()).stdout
    if "Non-2xx" in output or "Socket errors" in output:
        raise RuntimeError(output)
    found = re.search(r"Requests/sec:\s+([\d.]+)", output)
    assert found is not None, output
    return float(found[1])


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def serve_kserve(data: str, port: int) -> None:
    """In a process of its own: kserve's server."""
    from kserve.serving import app
    from kserve.settings import load

    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    app.run(load(data=Path(data), host="127.0.0.1", port=port))


def serve_plain(body: str, port: int) -> None:
    """In a process of its own: one handler on uvloop that always answers the same."""
    import uvloop
    from aiohttp import web

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body.encode(), content_type="application/json")

    async def serve() -> None:
        application = web.Application()
        application.router.add_get("/{path:.*}", answer)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await asyncio.Event().wait()

    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    uvloop.run(serve())
