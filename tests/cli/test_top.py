"""`kserve top`: one sample as text and as JSON, and on a terminal until q."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli.support import KSERVE, done

from kserve._roster import Roster
from kserve._tally import Gauge, Tally, Time
from kserve.cli.drawing import ASCII
from kserve.cli.top import drawn, span
from kserve.serving.samples import tally_file
from kserve.snapshots.catalog import Catalog

VERSION = "20261121T040000Z-0000000a"


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Path]:
    """A data directory that somebody serves who answers all the time."""
    seat = Roster(Catalog(tmp_path).roster).take("server")
    seat.serve(VERSION)
    tally = Tally(tally_file(tmp_path), "worker", ["partner"])
    tally.set(Gauge.CONNECTIONS_OPEN, 64)
    tally.set(Gauge.WORKERS_WANTED, 2)
    stopped = threading.Event()

    def answer() -> None:
        while not stopped.wait(0.001):
            tally.count(0, 200, 0, 0, 250_000)
            tally.limited(0, 1)
            tally.time(Time.DELAY_OF_LOOP, 30_000_000)

    thread = threading.Thread(target=answer)
    thread.start()
    yield tmp_path
    stopped.set()
    thread.join()
    tally.leave()
    seat.leave()


def test_one_sample(busy: Path) -> None:
    shown = done("top", "--once", "--interval", 0.2, "--data", busy).out
    assert "1 of 2 workers" in shown
    assert "100% compiled" in shown
    assert re.search(r"^before that they waited for their event loop: p50 [\d.]+ ms, p99 30 ms", shown, re.MULTILINE)
    row = next(line for line in shown.splitlines() if line.startswith(str(os.getpid())))
    assert row.split()[1:3] == ["worker", VERSION]
    assert re.search(r"\b(249|25[0-2]) µs\b", row)
    assert re.search(r"^score +[\d,]+ ", shown, re.MULTILINE)
    assert re.search(r"^partner +[\d,]+ ", shown, re.MULTILINE)


def test_one_sample_as_json(busy: Path) -> None:
    found = done("top", "--json", "--interval", 0.2, "--data", busy).json()
    assert found["rates"]["answered"] == found["rates"]["succeeded"] == found["rates"]["compiled"] > 10
    assert found["rates"]["latency"]["p999"] == pytest.approx(250e-6, rel=0.01)
    assert found["loop_delay"]["p99"] == pytest.approx(30e-3, rel=0.01)
    (worker,) = found["workers"]
    assert (worker["pid"], worker["version"], worker["connections"]) == (os.getpid(), VERSION, 64)
    assert (worker["in_progress"], worker["loop_delay"], worker["kept"]) == (None, None, None)
    assert [part["name"] for part in found["routes"]] == ["score"]
    (tier,) = found["tiers"]
    assert tier["limited"] == pytest.approx(tier["answered"], rel=0.2)
    assert (found["workers_wanted"], found["announced"]) == (2, None)
    assert found["limits"] == {"mode": None, "hosts": None, "buckets": None, "leased_tokens": None, "redis_up": None}


def test_nobody_serves(tmp_path: Path) -> None:
    shown = done("top", "--once", "--interval", 0.1, "--data", tmp_path).out
    assert shown == "no process of this host serves from here\n"
    found = done("top", "--json", "--interval", 0.1, "--data", tmp_path).json()
    assert (found["workers"], found["rates"]["answered"], found["rates"]["latency"]) == ([], 0, None)
    assert found["loop_delay"] is None
    assert not list(tmp_path.iterdir())


@pytest.mark.heavy
def test_on_a_terminal_it_goes_on_until_q(busy: Path) -> None:
    ours, theirs = pty.openpty()
    environment = dict(os.environ) | {"TERM": "xterm", "COLUMNS": "180", "LINES": "40"}
    command = [*KSERVE, "top", "--interval", "0.1", "--data", str(busy)]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        while shown.count(b"1 of 2 workers") < 3:
            shown += os.read(ours, 1 << 16)
        os.write(ours, b"q")
        with contextlib.suppress(OSError):  # the end of a terminal
            while True:
                shown += os.read(ours, 1 << 16)
        assert process.wait(60) == 0
    os.close(ours)
    assert VERSION.encode() in shown
    assert b"\x1b[?1049h" in shown  # a screen of its own,
    assert b"\x1b[?1049l" in shown  # and back


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 µs"), (5.1e-6, "5.1 µs"), (999.4e-6, "999 µs"), (0.001, "1 ms"), (1.25, "1.25 s")]
)
def test_times_have_three_digits(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_past_rates_are_drawn() -> None:
    assert drawn([0.0, 1.0, 2.0, 3.0], ASCII) == " .:|"
    assert drawn([0.0], ASCII) == " "
    assert drawn([], ASCII) == ""
