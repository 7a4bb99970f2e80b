"""Failures of our own: what a server answers when its snapshot is damaged or gone. Never a traceback or a number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving.support import FIRST_DAY, Server, publish, rows, serving


@pytest.fixture
def damaged(tmp_path: Path) -> Iterator[Server]:
    """A server of its own data, to be damaged."""
    publish(tmp_path / "data", rows(0.0), FIRST_DAY)
    with serving(tmp_path / "data") as found:
        yield found


def overwrite(server: Server, section: str, byte: bytes) -> None:
    """Fill a section of the mapped file, which nobody ever does, with one byte."""
    snapshot = server.store.snapshot()
    place = snapshot.sections()[section]
    path = Path(snapshot.path)
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(place["offset"])
        file.write(byte * place["length"])


def test_not_ready_when_the_known_answers_do_not_fit(damaged: Server) -> None:
    assert damaged.get("/readyz").status == 200
    overwrite(damaged, "known", b"\0")
    answer = damaged.get("/readyz")
    assert (answer.status, answer.kind) == (503, "not-ready")
    assert "known-answer" in answer.json()["detail"]
    assert damaged.get("/healthz").status == 200


def test_lost_lines_are_unknown_profiles_and_not_ready(damaged: Server) -> None:
    overwrite(damaged, "lines", b"\0")
    assert damaged.get("/v3/scores/42").status == 404
    assert damaged.get("/readyz").status == 503


def test_damaged_details(damaged: Server) -> None:
    overwrite(damaged, "detail_starts", b"\x7f")
    answer = damaged.get("/v3/profiles/42")
    assert (answer.status, answer.kind) == (503, "bad-snapshot")
    assert str(damaged.settings.data) not in answer.body.decode()
    assert damaged.get("/v3/scores/42").json()["score"] == 62.31


def test_no_snapshot_at_all(damaged: Server) -> None:
    damaged.store.close()
    answer = damaged.get("/v3/scores/42", X_Request_Id="mine")
    assert (answer.status, answer.kind) == (500, "internal")
    assert "kserve-version" not in answer.headers
    assert set(answer.json()) == {"type", "title", "status", "detail", "instance"}
    assert answer.json()["instance"] == "mine"
    assert damaged.get("/nowhere").status == 404
