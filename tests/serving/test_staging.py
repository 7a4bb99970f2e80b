"""Staging: every process of a host opens and warms a version before it is announced, and all switch at once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import snapshots
from serving.processes import Load, orders, seats, servers
from waiting import until

import kserve
from kserve._roster import READY, REFUSED
from kserve.settings import Settings
from kserve.snapshots.catalog import SNAPSHOT, Catalog
from kserve.snapshots.signing import create

PROFILES = 500
DAY = timedelta(days=1)


def rows(shift: float) -> list[dict[str, object]]:
    return [{"profile_id": i, "score": 10.0 + shift} for i in range(PROFILES)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    version = snapshots.publish(folder, rows(0)).version
    orders(folder).judge_good(version)
    return folder


def placed(data: Path, shift: float) -> str:
    """A version that lies among the published, and is not announced."""
    version = snapshots.candidate(data, rows(shift), scored_at=snapshots.NOON + shift * DAY).version
    Catalog(data).place(version)
    return version


def maps(pid: int, version: str) -> bool:
    return version in Path(f"/proc/{pid}/maps").read_text()


READS = """
import sys, time, kserve
with kserve.open(sys.argv[1]) as store:
    print("ready", flush=True)
    before = store.version
    while store.version == before:
        time.sleep(0.001)
    print(store.score(1), flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def reader(data: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that reads without serving."""
    command = [sys.executable, "-c", READS, str(data)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


@pytest.mark.heavy
def test_all_stage_then_all_switch(data: Path, reader: subprocess.Popen[str]) -> None:
    catalog = Catalog(data)
    before = catalog.announced()
    version = placed(data, 1)
    with servers(data, 2) as found, Load(found, lambda turn: turn % PROFILES) as load:
        assert [seat.role for seat in seats(data)] == ["reader", "server", "server"]
        catalog.stage(version)
        until(lambda: all(seat.staged == version and seat.staged_state == READY for seat in seats(data)))
        assert {seat.version for seat in seats(data)} == {before}
        assert all(maps(seat.pid, version) for seat in seats(data))
        ready = found[0].get("/readyz")
        assert ready["version"] == before
        assert [process["staged"] for process in ready["processes"]] == [{"version": version, "state": "ready"}] * 3
        orders(data).announce(version, against=before)
        until(lambda: {seat.version for seat in seats(data)} == {version})
        assert reader.stdout is not None
        assert reader.stdout.readline() == "11.0\n"
        until(lambda: all(seat.staged is None for seat in seats(data)))
    assert {(told, score) for _, told, score in load.told} == {(before, 10.0), (version, 11.0)}


@pytest.mark.heavy
def test_what_is_not_staged_any_more_is_let_go_of(data: Path) -> None:
    catalog = Catalog(data)
    first, second = placed(data, 1), placed(data, 2)
    with servers(data, 1) as (server,):
        catalog.stage(first)
        until(lambda: seats(data)[0].ready(first))
        catalog.stage(second)
        until(lambda: seats(data)[0].ready(second))
        assert not seats(data)[0].ready(first)
        until(lambda: not maps(server.worker, first))
        catalog.unstage()
        until(lambda: seats(data)[0].staged is None and not maps(server.worker, second))


@pytest.mark.heavy
def test_the_version_before_is_at_hand_while_the_new_one_is_watched(data: Path) -> None:
    before = Catalog(data).announced() or ""
    version = placed(data, 1)
    with servers(data, 1, watch__seconds="2", sentinel="false") as (server,):
        orders(data).announce(version, against=before)
        until(lambda: seats(data)[0].version == version)
        assert maps(server.worker, before)
        (Catalog(data).snapshots / before / SNAPSHOT).rename(data / "gone")
        (data / "CURRENT").write_text(before + "\n")
        Catalog(data).doorbell().wake()
        until(lambda: seats(data)[0].version == before)
        assert server.get("/v3/scores/1")["score"] == 10.0
        until(lambda: not maps(server.worker, version))


def test_a_refused_version_says_why_and_is_tried_again(data: Path) -> None:
    catalog = Catalog(data)
    version = placed(data, 1)
    path = catalog.snapshots / version / SNAPSHOT
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[:-1])
    with kserve.open(data):
        catalog.stage(version)
        until(lambda: seats(data)[0].staged_state == REFUSED)
        (seat,) = seats(data)
        assert "not a usable snapshot" in seat.refused
        assert not seat.ready(version)
        path.unlink()
        path.write_bytes(whole)
        catalog.stage(version)
        until(lambda: seats(data)[0].ready(version))
        assert seats(data)[0].refused == ""


def test_a_process_that_starts_late_stages_too(data: Path) -> None:
    version = placed(data, 1)
    Catalog(data).stage(version)
    with kserve.open(data), kserve.open(data):
        until(lambda: [seat.staged_state for seat in seats(data)] == [READY, READY])


def test_an_announcement_does_not_wait_for_what_is_staged(data: Path) -> None:
    """A rollback while the next version is made ready."""
    before = Catalog(data).announced()
    staged, wanted = placed(data, 1), placed(data, 2)
    with kserve.open(data) as store:
        Catalog(data).stage(staged)
        orders(data).announce(wanted, against=before)
        until(lambda: store.version == wanted)


def test_a_signed_version_is_served_and_an_unsigned_one_refused(tmp_path: Path) -> None:
    """Servers that trust a key, and publishers with and without it."""
    data, key = tmp_path / "data", tmp_path / "release.pem"
    create(key)
    snapshots.announce(data, snapshots.candidate(data, rows(0)).version, signing_key=key)
    trusting = Settings(data=data, trusted_keys=key.with_name("release.pem.pub"))
    with kserve.open(data, settings=trusting) as store:
        signed = snapshots.candidate(data, rows(1), scored_at=snapshots.NOON + DAY).version
        snapshots.announce(data, signed, signing_key=key)
        until(lambda: store.version == signed)
        unsigned = placed(data, 2)
        Catalog(data).stage(unsigned)
        until(lambda: seats(data)[0].staged_state == REFUSED)
        assert "signed" in seats(data)[0].refused
        snapshots.announce(data, unsigned)
        until(lambda: unsigned in (data / "CURRENT").read_text())
        assert store.version == signed


def test_an_old_order_is_refused_even_after_a_restart(tmp_path: Path) -> None:
    data, key = tmp_path / "data", tmp_path / "release.pem"
    create(key)
    trusting = Settings(data=data, trusted_keys=key.with_name("release.pem.pub"))
    snapshots.announce(data, snapshots.candidate(data, rows(0)).version, signing_key=key)
    old = (data / "CURRENT").read_bytes()
    newer = snapshots.candidate(data, rows(1), scored_at=snapshots.NOON + DAY).version
    with kserve.open(data, settings=trusting) as store:
        snapshots.announce(data, newer, signing_key=key)
        until(lambda: store.version == newer)
        (data / "CURRENT").write_bytes(old)
        Catalog(data).doorbell().wake()
        with pytest.raises(AssertionError, match="in vain"):
            until(lambda: store.version != newer, seconds=1.5)
    with pytest.raises(kserve.SnapshotError, match="old one"):
        kserve.open(data, settings=trusting)


@pytest.mark.heavy
def test_readyz_without_a_roster(data: Path) -> None:
    with servers(data, 1) as (server,):
        (data / "ROSTER").unlink()
        assert server.get("/readyz")["processes"] == []


@pytest.mark.heavy
def test_metrics_say_which_process_serves_what(data: Path) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    version = placed(data, 1)
    with servers(data, 2) as found:
        for i in (1, 2, 10**9):
            found[0].get(f"/v3/scores/{i}")
        Catalog(data).stage(version)
        until(lambda: all(seat.ready(version) and seat.resident is not None for seat in seats(data)))
        until(lambda: sum(seat.served.answers for seat in seats(data)) == 3)
        text = found[1].get("/metrics")
        pids = {str(server.worker) for server in found}
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    by_name = {sample.name: [s for s in samples if s.name == sample.name] for sample in samples}
    assert {s.labels["pid"] for s in by_name["kserve_process_version_info"]} == pids
    assert {s.labels["version"] for s in by_name["kserve_process_version_info"]} == {Catalog(data).announced()}
    assert all(0 < s.value <= 1 for s in by_name["kserve_process_resident_ratio"])
    answers = {s.labels["kind"]: s.value for s in by_name["kserve_served_answers_total"]}
    assert answers == {"scored": 2, "unscored": 0, "unknown": 1}
    assert [(s.labels, s.value) for s in by_name["kserve_staged"]] == [({"version": version, "state": "ready"}, 2)]
    assert (by_name["kserve_pinned"][0].value, by_name["kserve_frozen"][0].value) == (0, 0)
    assert by_name["kserve_snapshot_age_seconds"][0].value > 0


NIGHTLY = ("--accept", "fresh=made for a test", "--by", "tests")


def publish(data: Path, version: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """`kserve publish` of a candidate."""
    environment = dict(os.environ) | {f"KSERVE_{name.upper()}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "kserve", "publish", version, "--data", str(data), "--json", *NIGHTLY]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment | {"KSERVE_REQUIRE_MANIFEST": "false"}
    )


def mixed(shift: float) -> list[dict[str, object]]:
    return [{"profile_id": i, "score": 10.0 + i % 70 + shift} for i in range(PROFILES)]


@pytest.mark.heavy
def test_the_publish_cycle_stages_everywhere_and_waits_for_the_verdict(tmp_path: Path) -> None:
    data = tmp_path / "data"
    before = snapshots.publish(data, mixed(0)).version
    orders(data).judge_good(before)
    version = snapshots.candidate(data, mixed(0.01), scored_at=snapshots.NOON + DAY).version
    with servers(data, 2, watch__seconds="1"):
        done = publish(data, version, watch__seconds="1")
        assert done.returncode == 0, done.stderr
        assert {seat.version for seat in seats(data)} == {version}
    entries = {entry.act: entry for entry in Catalog(data).log.entries()}
    assert entries["stage"].seen == {"processes": 2}
    assert (entries["good"].version, entries["good"].by.partition("@")[0]) == (version, "sentinel")


@pytest.mark.heavy
def test_publish_stops_at_a_process_that_refuses(tmp_path: Path) -> None:
    """One of the servers trusts a key that the publisher does not have."""
    data, key = tmp_path / "data", tmp_path / "release.pem"
    create(key)
    before = snapshots.announce(data, snapshots.candidate(data, mixed(0)).version, signing_key=key).version
    orders(data).judge_good(before)
    version = snapshots.candidate(data, mixed(0.01), scored_at=snapshots.NOON + DAY).version
    with servers(data, 1), servers(data, 1, trusted_keys=str(key.with_name("release.pem.pub"))):
        done = publish(data, version)
        assert done.returncode == 6, done.stderr
        assert "refuses it" in done.stderr
        assert (Catalog(data).announced(), Catalog(data).staged()) == (before, None)
        assert {seat.version for seat in seats(data)} == {before}
