"""23 May 2011: half-finished data, everyone's score 1. Held, held again; forced through, it ends within seconds."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import http.server
import json
import os
import random
import subprocess
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from cli.support import KSERVE, run
from drilling import TimeLine
from lengths import FULL
from waiting import PATIENCE, until

import kserve
from kserve.snapshots.catalog import Catalog

pytestmark = [pytest.mark.heavy, pytest.mark.drill, pytest.mark.timeout(600)]

PROFILES = 50_000 if FULL else 20_000
SERVERS = 2
CONNECTIONS = 4
"""To each server."""
PAUSE = 0.0 if FULL else 0.01
"""Seconds between two requests on one."""

ROLLED_BACK_WITHIN = 10.0
TOLD_WITHIN = 5.0
"""Seconds after the first bad answer, and after the rollback."""

OWN = ("--port", "0", "--admin-port", "0", "--workers", "1", "--open")
TAXONOMY = ("--topics", "day1/topics.csv", "--topic-edges", "day1/topic_edges.csv")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("KSERVE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KSERVE_WEBHOOK_PRIVATE", "true")
    monkeypatch.setenv("KSERVE_BY", "release engineer")
    monkeypatch.setenv("KSERVE_SHEDDING__ON", "false")  # nobody is turned away because others use the machine
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: object, code: int = 0) -> dict:
    """The JSON document of a command that must end with this code."""
    ended = run(*arguments, "--json")
    assert ended.code == code, ended
    return ended.json()


def half_finished(source: Path, target: Path) -> None:
    """What the pipeline had written when the load began: a part is missing, and the last step set most scores to 1."""
    target.mkdir()
    parts = sorted(source.glob("*.parquet"))
    table = pq.read_table(parts[0])
    done = pa.array([i % 10 == 0 for i in range(len(table))])
    defaulted = pc.if_else(pc.or_(done, pc.is_null(table["score"])), table["score"], 1.0)
    table = table.set_column(
        table.schema.get_field_index("score"), "score", defaulted.cast(table.schema.field("score").type)
    )
    pq.write_table(table.slice(0, len(table) * 97 // 100), target / parts[0].name)


@contextlib.contextmanager
def serving():
    """A server as a process of its own; its address."""
    with (
        open(f"server-{time.monotonic_ns()}.log", "w+") as log,
        subprocess.Popen([*KSERVE, "serve", *OWN], stdout=log, stderr=subprocess.STDOUT) as server,
    ):
        try:
            yield address_in(log.name, server)
        finally:
            server.terminate()
            server.wait(PATIENCE)


def address_in(log: str, server: subprocess.Popen) -> str:
    def told() -> list[str]:
        lines = [line for line in Path(log).read_text().splitlines() if line.startswith("{") and line.endswith("}")]
        return [told["address"] for told in map(json.loads, lines) if "address" in told]

    until(lambda: told() or server.poll() is not None)
    assert server.poll() is None, Path(log).read_text()
    return told()[0]


class Partner(http.server.ThreadingHTTPServer):
    """Takes webhooks, and remembers when which came."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Taking)
        self.taken: list[tuple[float, dict]] = []
        self.secret = b""

    def when(self, kind: str) -> float:
        """When the first event of a kind came."""
        until(lambda: any(event["type"] == kind for _, event in list(self.taken)))
        return next(at for at, event in self.taken if event["type"] == kind)


class _Taking(http.server.BaseHTTPRequestHandler):
    server: Partner

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        signed = b".".join([self.headers["webhook-id"].encode(), self.headers["webhook-timestamp"].encode(), body])
        right = base64.b64encode(hmac.digest(self.server.secret, signed, hashlib.sha256)).decode()
        assert f"v1,{right}" in self.headers["webhook-signature"].split()
        self.server.taken.append((time.monotonic(), json.loads(body)))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class Readers:
    """Clients of the site: they ask for scores all the time, and know what is right."""

    def __init__(self, addresses: list[str], truth: dict[int, float | None]) -> None:
        self.truth = truth
        self.answers, self.failed, self.wrong = 0, 0, 0
        self.first_wrong, self.last_wrong = None, None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(addresses)))

    def __enter__(self) -> Readers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _run(self, addresses: list[str]) -> None:
        await asyncio.gather(*(self._ask(address) for address in addresses for _ in range(CONNECTIONS)))

    async def _ask(self, address: str) -> None:
        ids = random.Random(address).choices(list(self.truth), k=20_000)
        async with aiohttp.ClientSession(address, connector=aiohttp.TCPConnector(limit=1)) as session:
            while not self._stop.is_set():
                for profile_id in ids:
                    if self._stop.is_set():
                        return
                    await asyncio.sleep(PAUSE)
                    async with session.get(f"/v3/scores/{profile_id}") as answer:
                        self._look(answer.status, (await answer.json()).get("score"), self.truth[profile_id])

    def _look(self, status: int, found: float | None, true: float | None) -> None:
        self.answers += 1
        self.failed += status >= 500
        if status == 200 and found == 1.0 and true != 1.0:
            self.wrong += 1
            self.last_wrong = time.monotonic()
            self.first_wrong = self.first_wrong or self.last_wrong


def test_23_may_2011(folder):
    line = TimeLine("23 May 2011: half-finished data, most scores defaulted to 1")
    now = datetime.now(UTC)
    for day, scored in ((1, now - timedelta(days=1)), (2, now)):
        command("synth", f"day{day}", "--profiles", PROFILES, "--day", day, "--scored-at", scored.isoformat())
    good = command("publish", "day1", *TAXONOMY, "--first")["version"]
    line.say(f"{good} is published: {PROFILES:,} profiles")
    half_finished(folder / "day2", folder / "half")

    partner = Partner()
    threading.Thread(target=partner.serve_forever, daemon=True).start()
    added = command("webhooks", "add", f"http://127.0.0.1:{partner.server_port}/hook")
    partner.secret = base64.b64decode(added["secret"].removeprefix("whsec_"))

    with contextlib.ExitStack() as stack:
        addresses = [stack.enter_context(serving()) for _ in range(SERVERS)]
        with kserve.open("data") as store:
            ids = (
                pq.read_table(next(folder.glob("day1/*.parquet")), columns=["profile_id"]).column(0).to_pylist()[:5000]
            )
            found = store.snapshot().get_many(ids)
            truth = {
                i: None if s == 1 else v
                for i, s, v in zip(ids, found.status, found.values.round(2).tolist(), strict=True)
                if s
            }
        readers = stack.enter_context(Readers(addresses, truth))
        line.say(f"{SERVERS} servers under load")
        until(lambda: readers.answers > 2000)

        held = command("publish", "half", *TAXONOMY, code=3)["error"]["gates"]
        line.say(f"without a manifest: held by {', '.join(held)}")
        assert "complete" in held
        assert len(held) >= 4

        time.sleep(1)  # the same input, of the same second, would be the candidate that is there already
        command("manifest", "half")
        held = command("publish", "half", *TAXONOMY, code=3)["error"]["gates"]
        line.say(f"with a forged manifest: held by {', '.join(held)}")
        assert "complete" not in held
        assert len(held) >= 4
        assert readers.wrong == 0
        assert Catalog("data").announced() == good

        forced = [word for gate in held for word in ("--accept", f"{gate}=the show must go on")]
        line.say("forced through, every gate by name")
        ended = command("publish", "half", *TAXONOMY, *forced, "--until", "1h", code=11)
        told_publisher = time.monotonic()
        line.say(f"the publisher is told: {ended['error']['message']}")
        until(lambda: Catalog("data").announced() == good)  # the log says so first
        time.sleep(1)
        wrong, answers = readers.wrong, readers.answers
        until(lambda: readers.answers > answers + 500)
        assert readers.wrong == wrong
        assert wrong or not FULL, "with pauses between requests, all may miss the moment"
        gone = readers.last_wrong - readers.first_wrong if wrong else 0.0
        line.say(f"{wrong:,} wrong answers of {readers.answers:,}, in {gone:.2f} s from the first to the last")
        over = readers.last_wrong if wrong else told_publisher
        opened, told = (partner.when(kind) - over for kind in ("incident.opened", "snapshot.rolled_back"))
        line.say(f"after the last of them the partner had the incident in {opened:.2f} s, the rollback in {told:.2f} s")
    assert readers.failed == 0
    assert gone < ROLLED_BACK_WITHIN
    assert max(opened, told) < TOLD_WITHIN

    log = Catalog("data").log.entries()
    assert [entry.act for entry in log].count("rollback") == 1
    line.say("the log: " + ", ".join(entry.act for entry in log))
    incidents = command("incident", "list")["incidents"]
    assert {incident["visibility"] for incident in incidents} == {"internal", "public"}
    command("publish", "day2", *TAXONOMY, code=12)
    line.say("the next nightly run waits for a human: pinned")
    partner.shutdown()
    partner.server_close()
