"""Every system call of a build and a publish, failed once, failed for ever, and the process killed at it."""

import errno
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import snapshots

import kserve
from kserve.snapshots.catalog import Catalog

pytestmark = pytest.mark.heavy

HERE = Path(__file__).parent
CALLS = ("mkdir", "fallocate", "write", "pwrite", "fsync", "fchmod", "rename")
ACTIONS = {
    "ENOSPC once": ("", str(errno.ENOSPC)),
    "EIO for ever": ("+", str(errno.EIO)),
    "killed": ("", "kill"),
}


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    library = tmp_path_factory.mktemp("shim") / "faults.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-w", "-o", library, HERE / "faults.c", "-ldl"], check=True)
    return library


def rows(score):
    return [
        {
            "profile_id": i,
            "score": score,
            "tw_name": f"n{i}",
            "topics": [{"topic": "t", "score": 2.0}],
            "location": "US",
        }
        for i in range(50)
    ]


def run(data, source, shim, fault, mark):
    environment = dict(os.environ)
    preloaded = [str(shim), environment.get("LD_PRELOAD", "")]
    environment |= {
        "LD_PRELOAD": " ".join(filter(None, preloaded)),
        "KSERVE_FAULT": fault,
        "KSERVE_FAULT_DIR": str(data),
        "KSERVE_FAULT_MARK": str(mark),
    }
    command = [sys.executable, str(HERE / "publisher.py"), str(data), str(source)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def check(data, old, done):
    """One whole version is in force, the old or the new one; nothing half-made is in sight; the next publish works."""
    catalog = Catalog(data)
    live = catalog.announced()
    assert live is not None
    for version in catalog.versions():
        catalog.open(version.name).verify() if version.state != "candidate" else catalog.folder(version.name)
    with kserve.open(data) as store:
        assert store.score(1) == (10.0 if live == old else 20.0)
    if done.returncode == 0:
        assert live != old
    again = snapshots.publish(data, rows(30.0), scored_at=snapshots.NOON + timedelta(days=3))
    assert again.score(1) == 30.0
    assert not list((data / "work").iterdir())


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.timeout(600)
def test_no_failing_call_leaves_anything_half_made(tmp_path, shim, call, action):
    forever, effect = ACTIONS[action]
    struck = 0
    for n in range(1, 100):
        data, mark = tmp_path / str(n), tmp_path / f"{n}.mark"
        old = snapshots.publish(data, rows(10.0)).version
        source = snapshots.write_parquet(tmp_path / "input.parquet", rows(20.0))
        done = run(data, source, shim, f"{call}:{n}{forever}:{effect}", mark)
        if not mark.exists():
            assert done.returncode == 0, done.stdout + done.stderr
            break
        struck += 1
        if effect == "kill":
            assert done.returncode == -9
        elif done.returncode:
            assert done.returncode == kserve.StorageError.exit_code, done.stdout + done.stderr
            assert done.stdout.startswith("StorageError: ")
        check(data, old, done)
    assert struck, f"a publish makes no {call}"


def test_a_full_disk_is_one_clear_line(tmp_path, shim):
    data = tmp_path / "data"
    snapshots.publish(data, rows(10.0))
    source = snapshots.write_parquet(tmp_path / "input.parquet", rows(20.0))
    done = run(data, source, shim, f"fallocate:1:{errno.ENOSPC}", tmp_path / "mark")
    assert done.returncode == 9
    assert "No space left on device" in done.stdout
    assert "free some space" in done.stdout
