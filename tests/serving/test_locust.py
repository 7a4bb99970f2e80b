"""The Locust scenarios run: against a real server, for some seconds."""

from __future__ import annotations

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from serving.processes import servers
from serving.support import CROWD

from kserve.serving.keys import Keys

SCENARIOS = Path(__file__).resolve().parents[2] / "locustfiles"

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(importlib.util.find_spec("locust") is None, reason="Locust is not installed (extra bench)"),
    pytest.mark.skipif(not SCENARIOS.is_dir(), reason="the scenarios are not part of what is installed"),
]


def run(port: int, scenario: str, folder: Path, *flags: str, **variables: str) -> dict[str, dict[str, str]]:
    """Locust's statistics by name of request. Locust is a process of its own: importing it patches the process."""
    command = [sys.executable, "-m", "locust", "-f", str(SCENARIOS / scenario), "--host", f"http://127.0.0.1:{port}"]
    command += ["--headless", "--only-summary", "--csv", str(folder / "out"), "--exit-code-on-error", "0", *flags]
    ended = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    with (folder / "out_stats.csv").open(newline="") as lines:
        return {row["Name"]: row for row in csv.DictReader(lines)}


@pytest.fixture
def ids(tmp_path: Path) -> str:
    """A file of ids that are there."""
    file = tmp_path / "ids.txt"
    file.write_text("\n".join(map(str, CROWD)))
    return str(file)


def test_steady_reads(published: Path, tmp_path: Path, ids: str) -> None:
    keys = [Keys(published).create("load test", ["score:read"], tier="site")[1] for _ in range(3)]
    with servers(published, 1, workers="1", open="false") as (server,):
        given = {"KSERVE_KEYS": ",".join(keys), "KSERVE_IDS": ids, "KSERVE_RATE": "5"}
        found = run(server.port, "scores.py", tmp_path, "-u", "20", "-r", "20", "-t", "5s", **given)
    assert int(found["/v3/scores/[id]"]["Request Count"]) > 100
    assert int(found["Aggregated"]["Failure Count"]) == 0


def test_a_launch(published: Path, tmp_path: Path, ids: str) -> None:
    given = {"KSERVE_IDS": ids, "KSERVE_ORDINARY": "2", "KSERVE_SPEED": "60"}
    with servers(published, 1, workers="1", open="true") as (server,):
        found = run(server.port, "launch_surge.py", tmp_path, **given)
    assert int(found["/v3/scores/[id]"]["Request Count"]) > 50
    assert int(found["/v3/profiles/[id]"]["Request Count"]) > 5
