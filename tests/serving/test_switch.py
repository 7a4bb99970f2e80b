"""A new announcement under load: served at the bell, no failed answer, and none that mixes two versions."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from serving.support import CROWD, DAY, FIRST_DAY, Server, Wire, publish, request, rows, scores, serving
from waiting import PATIENCE, until

from kserve.snapshots import watch

BATCH = '{"ids":[' + ",".join(f'"{i}"' for i in CROWD) + "]}"
SWITCHES = 6


class Reader(threading.Thread):
    """Asks for scores and batches until it is told to stop; keeps every (version, score by id) it was told."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self.server = server
        self.stop = threading.Event()
        self.told: list[tuple[str, dict[int, float | None]]] = []
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            with self.server.connect() as wire:
                while not self.stop.is_set():
                    self.ask(wire)
        except Exception as error:
            self.failure = error

    def ask(self, wire: Wire) -> None:
        batch = request("POST", "/v3/scores/batch", "Content-Type: application/json", body=BATCH.encode())
        wire.send(batch + request("GET", "/v3/scores/42"))
        many, one = wire.answer(), wire.answer()
        assert (many.status, one.status) == (200, 200)
        assert many.headers["kserve-version"] == many.json()["version"]
        assert one.headers["kserve-version"] == one.json()["version"]
        assert one.headers["etag"].startswith(f'"{one.json()["version"]}-')
        self.told.append((many.json()["version"], {int(i["id"]): i["score"] for i in many.json()["scores"]}))
        self.told.append((one.json()["version"], {42: one.json()["score"]}))


@pytest.mark.heavy
def test_switch_under_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`bench switch` measures how soon: here nobody would look by himself within the hour."""
    monkeypatch.setattr(watch, "IDLE_SECONDS", 3600.0)
    data = tmp_path / "data"
    held = {publish(data, rows(0.0), FIRST_DAY): scores(rows(0.0))}
    with serving(data) as server:
        readers = [Reader(server) for _ in range(3)]
        for reader in readers:
            reader.start()
        for day in range(1, SWITCHES + 1):
            version = publish(data, rows(day / 4), FIRST_DAY + day * DAY)
            until(lambda version=version: server.get("/v3/scores/42").headers["kserve-version"] == version)
            held[version] = scores(rows(day / 4))
        for reader in readers:
            reader.stop.set()
        for reader in readers:
            reader.join(PATIENCE)
            check(reader, held)


def check(reader: Reader, held: dict[str, dict[int, float | None]]) -> None:
    assert reader.failure is None, reader.failure
    assert len(reader.told) > 2 * SWITCHES
    order = list(held)
    seen = [order.index(version) for version, _ in reader.told]
    assert seen == sorted(seen), "a reader saw an older version after a newer one"
    for version, answers in reader.told:
        assert answers == {i: held[version][i] for i in answers}
