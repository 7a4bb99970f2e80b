"""kill -9 at any moment of a publish cycle: what is in sight stays whole, and the next cycle works."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli.support import DAY_TWO, TAXONOMY, done, started

import kserve
from kserve.snapshots.catalog import Catalog

pytestmark = pytest.mark.heavy

RANDOM_MOMENTS = 15
MOST_CALLS = 200
KILLED = -9

KILL_AT = """
import os, signal, sys
left = int(sys.argv[1])
def counted(call):
    def run(*arguments, **options):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return run
for name in ("open", "write", "fsync", "fchmod", "mkdir", "rename", "replace", "unlink", "rmdir", "close"):
    setattr(os, name, counted(getattr(os, name)))
from kserve.cli import main
main(sys.argv[2:])
"""


@pytest.fixture
def day_one(inputs: Path) -> str:
    """The announced version that every killed publication must leave in force."""
    version: str = done("publish", "day1", *TAXONOMY, "--first", "--json").json()["version"]
    shutil.copytree("data", "fresh")
    return version


def check(day_one: str) -> None:
    """Whatever is in sight is whole; readers have one of the two versions; and the next publication works."""
    history = done("history", "--json").json()
    assert history["announced"] == day_one or history["announced"].startswith(f"{DAY_TWO:%Y%m%dT%H%M%SZ}")
    done("history", "--verify")
    for version in history["versions"]:
        kserve.Snapshot(Catalog("data").folder(version["version"]) / "snapshot.kss").verify()
    assert all(path.suffix != ".kss" for path in Path("data").glob("*"))
    second = done("publish", "day2", *TAXONOMY, "--json").json()["version"]
    history = done("history", "--json").json()
    assert history["announced"] == second
    assert {version["version"]: version["state"] for version in history["versions"]} == {
        day_one: "retired",
        second: "announced",
    }
    assert list(Path("data/work").iterdir()) == []
    assert list(Path("data/candidates").iterdir()) == []
    assert not Path("data/STAGED").exists()
    acts = done("history", "--log", "--verify", "--json").json()["acts"]
    assert (acts[-1]["act"], acts[-1]["version"]) == ("good", second)


def afresh() -> None:
    shutil.rmtree("data")
    shutil.copytree("fresh", "data")


@pytest.mark.timeout(600)
def test_killed_at_random_moments(day_one: str) -> None:
    start = time.monotonic()
    with started("publish", "day2", *TAXONOMY) as popen:
        assert popen.wait() == 0
    seconds = time.monotonic() - start
    killed = 0
    for moment in sorted(random.Random(20111021).uniform(0.3, 1.05) for _ in range(RANDOM_MOMENTS)):
        afresh()
        with started("publish", "day2", *TAXONOMY) as popen:
            time.sleep(moment * seconds)
            popen.kill()
            killed += popen.wait() == KILLED
        check(day_one)
    assert killed >= RANDOM_MOMENTS // 3


@pytest.mark.timeout(1200)
def test_killed_before_each_system_call(day_one: str) -> None:
    """Those that Python makes; the calls of the compiled writer all lie between two of them."""
    command = [sys.executable, "-c", KILL_AT]
    calls = 1
    while True:
        afresh()
        ended = subprocess.run([*command, str(calls), "publish", "day2", *TAXONOMY], capture_output=True, check=False)
        if ended.returncode == 0:
            break
        assert ended.returncode == KILLED, ended.stderr
        check(day_one)
        calls += 1
        assert calls < MOST_CALLS
    assert calls > 20
    assert os.listdir("data/work") == []
