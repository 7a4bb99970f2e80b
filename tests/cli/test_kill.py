"""kill -9 at any moment of a publish cycle: what is in sight stays whole, and the same command goes on.

At every one with `make faults`.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli.support import DAY_TWO, TAXONOMY, done, started
from lengths import EVERY_FAULT

import kserve
from kserve.snapshots.catalog import Catalog

pytestmark = pytest.mark.heavy

RANDOM_MOMENTS = 8 if EVERY_FAULT else 3
STRIDE = 1 if EVERY_FAULT else 5
"""Of the calls, the publication is killed before one in so many."""
MOST_CALLS = 200
KILLED = -9

KILL_AT = """
import os, signal, sys
import kserve.cli, kserve.snapshots.cycle, pyarrow.parquet, rich.table

CHANGING = ("write", "fsync", "fchmod", "mkdir", "rename", "replace", "unlink", "rmdir", "ftruncate")

def counted(call):
    def run(*arguments, **options):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return run

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        left = int(line)
        for name in CHANGING:
            setattr(os, name, counted(getattr(os, name)))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        kserve.cli.main(sys.argv[1:])
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Reads numbers of calls, one a line; runs the command in a fork that dies before this one; answers with its end."""


@pytest.fixture
def day_one(inputs: Path) -> str:
    """The announced version that every killed publication must leave in force."""
    version: str = done("publish", "day1", *TAXONOMY, "--first", "--json").json()["version"]
    shutil.copytree("data", "fresh")
    return version


def check(day_one: str) -> None:
    """Whatever is in sight is whole; readers have one of the two versions; and the next publication works."""
    catalog = Catalog("data")
    live = catalog.announced()
    assert live is not None
    assert live == day_one or live.startswith(f"{DAY_TWO:%Y%m%dT%H%M%SZ}")
    catalog.log.verify()
    for version in catalog.versions():
        kserve.Snapshot(catalog.folder(version.name) / "snapshot.kss").verify()
    assert all(path.suffix != ".kss" for path in Path("data").glob("*"))
    second = done("publish", "day2", *TAXONOMY, "--json").json()["version"]
    catalog = Catalog("data")
    assert catalog.announced() == second
    assert [(version.name, version.state) for version in catalog.versions()] == [
        (second, "announced"),
        (day_one, "retired"),
    ]
    assert list(Path("data/work").iterdir()) == []
    assert list(Path("data/candidates").iterdir()) == []
    assert catalog.staged() is None
    catalog.log.verify()
    assert "good" in {act.act for act in catalog.log.entries() if act.version == second}


def afresh() -> None:
    shutil.rmtree("data")
    shutil.copytree("fresh", "data")


@pytest.mark.timeout(600)
def test_killed_at_random_moments(day_one: str) -> None:
    start = time.monotonic()
    with started("publish", "day2", *TAXONOMY) as popen:
        assert popen.wait() == 0
    seconds, killed, luck = time.monotonic() - start, 0, random.Random(20111021)
    while killed < RANDOM_MOMENTS:
        afresh()
        start = time.monotonic()
        with started("publish", "day2", *TAXONOMY) as popen:
            with contextlib.suppress(subprocess.TimeoutExpired):
                popen.wait(luck.uniform(0.3, 1.05) * seconds)
                seconds = min(seconds, time.monotonic() - start)  # the machine has less to do than it had
            popen.kill()
            killed += popen.wait() == KILLED
        check(day_one)


@pytest.fixture
def killer() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", KILL_AT, "publish", "day2", *TAXONOMY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as popen:
        try:
            yield popen
        finally:
            popen.kill()


@pytest.mark.timeout(1200)
def test_killed_before_each_system_call(day_one: str, killer: subprocess.Popen[str]) -> None:
    """Those of Python that change something; the calls of the compiled writer all lie between two of them."""
    assert killer.stdin is not None
    assert killer.stdout is not None
    calls = 1
    while True:
        afresh()
        print(calls, file=killer.stdin, flush=True)
        ended = int(killer.stdout.readline())
        if ended == 0:
            break
        assert ended == KILLED
        check(day_one)
        calls += STRIDE
        assert calls < MOST_CALLS
    assert calls > 20
    assert os.listdir("data/work") == []
