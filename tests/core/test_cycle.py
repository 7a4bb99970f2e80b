"""The publish cycle end to end, and what may come between its steps."""

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import snapshots

import kserve
from kserve._roster import READY, REFUSED, Roster
from kserve.errors import Busy, Held, Pinned
from kserve.settings import Settings
from kserve.snapshots.build import Options
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.cycle import STEPS, Request, publish
from kserve.snapshots.orders import Orders
from kserve.snapshots.report import Acceptance, load

HOUR = timedelta(hours=1)
PROFILES = 1500


class Told:
    """Remembers what it was told, and may act on it."""

    def __init__(self, at=None, do=None):
        self.steps, self.reports, self.warnings = [], [], []
        self.at, self.do = at, do

    def progress(self, stage, done, total):
        assert 0 <= done <= total

    def step(self, name, result):
        self.steps.append(name)
        if name == self.at:
            self.do()

    def report(self, report):
        self.reports.append(report)

    def warn(self, text):
        self.warnings.append(text)


def score(profile_id, shift=0.0):
    return round(20 + profile_id * 7919 % 5000 / 100 + shift, 2)


def rows(shift=0.0):
    return [{"profile_id": i, "score": score(i, shift), "location": f"US/City {i % 7}"} for i in range(PROFILES)]


def source(folder, name, shift=0.0):
    return snapshots.write_parquet(folder / f"{name}.parquet", rows(shift))


def settings_of(data, **changes):
    return Settings(data=data, require_manifest=False, by="me", **changes)


def run(data, path, hours_ago, told=None, settings=None, **asked):
    scored_at = (datetime.now(UTC) - hours_ago * HOUR).replace(microsecond=0)
    request = Request(source=path, options=Options(scored_at=scored_at), **asked)
    return publish(Catalog(data), settings or settings_of(data), request, told or Told())


def acts(data):
    return [entry.act for entry in Catalog(data).log.entries()]


@pytest.fixture
def first(tmp_path):
    """A data directory with a first version, published and good."""
    return run(tmp_path / "data", source(tmp_path, "first"), 10, first=True)


@pytest.fixture
def data(tmp_path, first):
    return tmp_path / "data"


def test_a_cycle_does_its_steps_in_order_and_logs_them(tmp_path, data, first):
    told = Told()
    outcome = run(data, source(tmp_path, "second", 0.1), 5, told, why="nightly")
    assert told.steps == list(STEPS)
    assert (outcome.announced, outcome.previous, outcome.judged) == (True, first.version, "good")
    assert Catalog(data).announced() == outcome.version
    assert acts(data)[-5:] == ["build", "check", "stage", "announce", "good"]
    assert Catalog(data).log.entries()[-2].why == "nightly"
    assert load(data, outcome.version) == told.reports[0]
    assert Catalog(data).staged() is None


def test_the_first_publish_must_be_called_so(tmp_path):
    with pytest.raises(Held) as caught:
        run(tmp_path / "data", source(tmp_path, "first"), 10)
    assert caught.value.exit_code == 3
    assert "movement" in caught.value.gates
    assert Catalog(tmp_path / "data").announced() is None


def test_a_dry_run_stages_nothing(tmp_path, data, first):
    told = Told()
    outcome = run(data, source(tmp_path, "second", 0.1), 5, told, dry_run=True)
    assert (outcome.announced, told.steps) == (False, ["build", "re-read", "check"])
    assert Catalog(data).announced() == first.version
    assert os.listdir(data / "candidates") == [outcome.version]


def test_held_and_then_accepted_by_name(tmp_path, data, first):
    path = source(tmp_path, "second", 4.0)
    with pytest.raises(Held) as caught:
        run(data, path, 5)
    assert caught.value.gates
    assert (Catalog(data).announced(), acts(data)[-1]) == (first.version, "check")
    until = datetime.now(UTC) + HOUR
    given = [Acceptance(gate, "announced on the blog", "release engineer", until) for gate in caught.value.gates]
    (candidate,) = os.listdir(data / "candidates")
    request = Request(version=candidate, accept=given)
    outcome = publish(Catalog(data), settings_of(data), request, Told())
    assert Catalog(data).announced() == outcome.version
    (announced,) = (
        entry for entry in Catalog(data).log.entries() if entry.version == candidate and entry.act == "announce"
    )
    assert set(announced.seen["accepted"]) == set(caught.value.gates)
    assert acts(data).count("accept") == len(given)


def test_an_acceptance_holds_for_its_version_until_it_runs_out(tmp_path, data):
    path = source(tmp_path, "second", 4.0)
    with pytest.raises(Held) as caught:
        run(data, path, 5)
    (candidate,) = os.listdir(data / "candidates")
    orders = Orders(Catalog(data), settings_of(data))
    for gate in caught.value.gates:
        orders.accept(candidate, gate, why="so", by="me", until=datetime.now(UTC) - HOUR)
    with pytest.raises(Held):
        publish(Catalog(data), settings_of(data), Request(version=candidate), Told())
    for gate in caught.value.gates:
        orders.accept(candidate, gate, why="so", by="me", until=datetime.now(UTC) + HOUR)
    assert publish(Catalog(data), settings_of(data), Request(version=candidate), Told()).announced


def test_the_same_again_changes_nothing(tmp_path, data, first):
    before = acts(data)
    told = Told()
    request = Request(version=first.version)
    outcome = publish(Catalog(data), settings_of(data), request, told)
    assert (outcome.version, outcome.judged) == (first.version, "good")
    assert acts(data) == before


def test_two_publishers(tmp_path, data, first):
    def another():
        with pytest.raises(Busy, match="another process is publishing"):
            run(data, source(tmp_path, "third", 0.2), 4)

    told = Told("check", another)
    assert run(data, source(tmp_path, "second", 0.1), 5, told).announced


def test_a_rollback_during_a_publish_stays(tmp_path, data, first):
    second = run(data, source(tmp_path, "second", 0.1), 5)
    told = Told("stage", lambda: Orders(Catalog(data), settings_of(data)).rollback(why="bad", by="human"))
    with pytest.raises(Pinned, match=rf"{first.version} is pinned since .* by human: bad"):
        run(data, source(tmp_path, "third", 0.2), 4, told)
    assert Catalog(data).announced() == first.version
    assert second.version not in Orders(Catalog(data), settings_of(data)).state().good


def test_a_nightly_run_after_a_rollback_waits_for_a_human(tmp_path, data, first):
    run(data, source(tmp_path, "second", 0.1), 5)
    orders = Orders(Catalog(data), settings_of(data))
    orders.rollback(why="bad")
    told = Told()
    with pytest.raises(Pinned):
        run(data, source(tmp_path, "third", 0.2), 4, told)
    assert told.steps == ["build", "re-read", "check"]
    assert Catalog(data).announced() == first.version
    (waiting,) = os.listdir(data / "candidates")
    orders.unpin(why="looked at it")
    assert publish(Catalog(data), settings_of(data), Request(version=waiting), Told()).announced


def test_content_that_was_rolled_back_does_not_return_under_another_name(tmp_path, data, first):
    bad = run(data, source(tmp_path, "second", 0.1), 5)
    orders = Orders(Catalog(data), settings_of(data))
    orders.rollback(why="bad")
    orders.unpin(why="again, please")
    again = snapshots.write_parquet(tmp_path / "again.parquet", reversed(rows(0.1)))
    with pytest.raises(Held) as caught:
        run(data, again, 3)
    assert caught.value.gates == ("quarantine",)
    (candidate,) = os.listdir(data / "candidates")
    assert candidate != bad.version
    (digest,) = orders.state().quarantined
    orders.release(digest, why="it was not the data")
    assert publish(Catalog(data), settings_of(data), Request(version=candidate), Told()).announced


def test_a_pinned_host_keeps_its_version(tmp_path, data, first):
    Orders(Catalog(data), settings_of(data)).pin(why="a promotion runs")
    with pytest.raises(Pinned, match="a promotion runs"):
        run(data, source(tmp_path, "second", 0.1), 5)
    assert Catalog(data).announced() == first.version


def test_an_altered_log_stops_a_publish(tmp_path, data, first):
    log = data / "log.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"by":"me"', b'"by":"it"', 1))
    with pytest.raises(kserve.SnapshotError, match="does not follow"):
        run(data, source(tmp_path, "second", 0.1), 5)
    assert Catalog(data).announced() == first.version


def test_a_full_disk(tmp_path, data, first):
    """The builder allocates before it fills; the limit on the size of files stands in for the end of the disk."""
    path = source(tmp_path, "second", 0.1)
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000)); "
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "from kserve.cli import main; main(sys.argv[1:])"
    )
    environment = os.environ | {"KSERVE_REQUIRE_MANIFEST": "false"}
    command = [sys.executable, "-c", script, "publish", str(path), "--data", str(data), "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert ended.returncode == 9, ended
    assert Catalog(data).announced() == first.version
    assert run(data, path, 4).announced


CHILD = """
import os, signal, sys
from datetime import datetime, timedelta, UTC
from test_cycle import Told, run
from pathlib import Path
data, path, step = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
run(data, path, 5, Told(step, lambda: os.kill(os.getpid(), signal.SIGKILL)))
"""


@pytest.mark.parametrize("step", STEPS)
def test_a_publisher_that_dies_after_a_step(tmp_path, data, first, step):
    path = source(tmp_path, "second", 0.1)
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    child = subprocess.run([sys.executable, "-c", CHILD, data, path, step], env=environment, timeout=60)
    assert child.returncode == -signal.SIGKILL
    live = Catalog(data).announced()
    assert (live == first.version) == (step not in ("announce", "watch"))
    Catalog(data).reread(live)
    scored_at = (Catalog(data).versions()[0].scored_at + HOUR).isoformat()
    again = Request(source=path, options=Options(scored_at=datetime.fromisoformat(scored_at)))
    assert publish(Catalog(data), settings_of(data), again, Told()).announced
    assert os.listdir(data / "work") == []


def test_a_process_that_has_died_is_not_waited_for(tmp_path, data, first):
    script = "import sys, time, kserve; store = kserve.open(sys.argv[1]); print('open', flush=True); time.sleep(60)"
    reader = subprocess.Popen([sys.executable, "-c", script, data], stdout=subprocess.PIPE)
    assert reader.stdout is not None
    reader.stdout.readline()
    killer = threading.Timer(0.5, reader.kill)
    reader.send_signal(signal.SIGSTOP)
    killer.start()
    assert run(data, source(tmp_path, "second", 0.1), 5).announced
    reader.wait()
    reader.stdout.close()


def test_a_process_that_does_not_answer_keeps_the_old_version_in_force(tmp_path, data, first):
    script = "import sys, time, kserve; store = kserve.open(sys.argv[1]); print('open', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script, data], stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        reader.send_signal(signal.SIGSTOP)
        with pytest.raises(Busy, match=f"in process {reader.pid}"):
            run(data, source(tmp_path, "second", 0.1), 5, settings=settings_of(data, stage_timeout=0.5))
        reader.kill()
    assert (Catalog(data).announced(), Catalog(data).staged()) == (first.version, None)


READER = "import sys, time, kserve; store = kserve.open(sys.argv[1]); print('open', flush=True); time.sleep(60)"


@pytest.fixture
def stopped(data):
    """A process that reads from the data directory, and does nothing any more."""
    with subprocess.Popen([sys.executable, "-c", READER, data], stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        reader.send_signal(signal.SIGSTOP)
        yield reader
        reader.kill()


@pytest.mark.parametrize("act", ["rollback", "pin"])
def test_an_act_while_processes_are_waited_for_ends_the_cycle(tmp_path, data, first, stopped, act):
    made = snapshots.candidate(data, rows(0.1), scored_at=datetime.now(UTC) - 5 * HOUR)
    second = snapshots.announce(data, made.version)

    def interfere():
        while Catalog(data).staged() is None:
            time.sleep(0.02)
        getattr(Orders(Catalog(data), settings_of(data)), act)(why="bad", by="human")

    human = threading.Thread(target=interfere)
    human.start()
    with pytest.raises(Pinned, match="by human: bad"):
        run(data, source(tmp_path, "third", 0.2), 4, settings=settings_of(data, stage_timeout=20))
    human.join()
    assert Catalog(data).announced() == (first.version if act == "rollback" else second.version)
    assert Catalog(data).staged() is None


def test_what_is_not_announced_is_not_kept_staged(tmp_path, data, first):
    told = Told("stage", lambda: Orders(Catalog(data), settings_of(data)).pin(why="a promotion runs"))
    with pytest.raises(Pinned):
        run(data, source(tmp_path, "second", 0.1), 5, told)
    assert Catalog(data).staged() is None


def test_a_lost_manifest_of_the_version_in_force_does_not_keep_good_ones_out(tmp_path, data, first):
    (data / "snapshots" / first.version / "manifest.json").unlink()
    told = Told()
    path = source(tmp_path, "second", 0.1)
    with pytest.raises(Held, match="no live version to compare with"):
        run(data, path, 5, told)
    assert f"{first.version} cannot be compared with" in told.warnings[0]
    assert run(data, path, 5, first=True).announced


def test_the_same_again_while_a_human_is_waited_for_is_not_called_good(tmp_path, data, first):
    orders = Orders(Catalog(data), settings_of(data))
    orders.freeze("it answers badly, and there is no other")
    told = Told()
    assert publish(Catalog(data), settings_of(data), Request(version=first.version), told).judged == "unjudged"
    orders.unpin(why="looked at it")
    assert publish(Catalog(data), settings_of(data), Request(version=first.version), told).judged == "good"


@pytest.mark.parametrize("lost", ["report", "report and version"])
def test_figures_of_good_versions_are_not_forgotten_with_their_reports(tmp_path, data, first, lost):
    """They are measured again; of what is gone as well, people are told."""
    run(data, source(tmp_path, "second", 0.1), 6)
    (data / "checks" / f"{first.version}.json").unlink()
    if lost == "report and version":
        (data / "snapshots" / first.version).rename(tmp_path / "gone")
    told = Told()
    run(data, source(tmp_path, "third", 0.2), 4, told)
    baseline = told.reports[0].finding("drift").reason
    assert ("2 good versions" in baseline) == (lost == "report"), baseline
    assert any("is not in the baseline" in text for text in told.warnings) == (lost != "report")


def test_a_damaged_version_in_force_is_repaired_by_the_same_input(tmp_path):
    data, path = tmp_path / "data", source(tmp_path, "first")
    options = Options(scored_at=(datetime.now(UTC) - 5 * HOUR).replace(microsecond=0))
    request = Request(source=path, options=options, first=True)
    version = publish(Catalog(data), settings_of(data), request, Told()).version
    file = data / "snapshots" / version / "snapshot.kss"
    file.chmod(0o600)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    told = Told()
    assert publish(Catalog(data), settings_of(data), request, told).version == version
    Catalog(data).open().verify()
    assert "was damaged, and is repaired" in told.warnings[0]
    assert os.listdir(data / "candidates") == []


def test_without_the_version_in_force_the_last_good_one_is_the_measure(tmp_path, data, first):
    second = run(data, source(tmp_path, "second", 0.1), 5)
    (data / "snapshots" / second.version / "manifest.json").unlink()
    told = Told()
    outcome = run(data, source(tmp_path, "third", 0.2), 4, told, first=True)
    assert outcome.report.against == first.version
    assert f"{second.version} cannot be compared with" in told.warnings[-1]


def test_who_publishes_what_is_in_force_hears_what_became_of_it(tmp_path, data, first):
    """Another version was about to be announced, and its publisher died; this one has no verdict yet."""
    orders = Orders(Catalog(data), settings_of(data))
    second = snapshots.announce(data, snapshots.candidate(data, rows(0.1), scored_at=datetime.now(UTC)).version)
    seen = {"previous": second.version}
    orders.catalog.log.append("announce", by="me", version=first.version, seen=seen)
    told = Told()
    assert publish(Catalog(data), settings_of(data), Request(version=second.version), told).judged == "good"
    assert orders.state().good == (first.version, second.version)


def test_what_a_process_refused_before_is_not_believed_again(tmp_path, data, first):
    """It clears its seat at its next look only; then it finds the version as good as it is now."""
    made = snapshots.candidate(data, rows(0.1), scored_at=datetime.now(UTC) - 5 * HOUR)
    catalog, seat = Catalog(data), Roster(Catalog(data).roster).take("reader")
    seat.serve(first.version)
    seat.stage(made.version, REFUSED, "its file was cut")

    def look():
        time.sleep(0.5)
        assert catalog.staged() is None
        seat.stage(None)
        while catalog.staged() is None:
            time.sleep(0.02)
        seat.stage(made.version, READY)

    follower = threading.Thread(target=look)
    told = Told("check", follower.start)
    outcome = publish(catalog, settings_of(data, stage_timeout=20), Request(version=made.version), told)
    follower.join()
    seat.leave()
    assert outcome.announced
    assert [entry.seen for entry in catalog.log.entries() if entry.act == "stage"][-1] == {"processes": 1}


def test_who_never_takes_back_what_it_refused_is_late(tmp_path, data, first):
    made = snapshots.candidate(data, rows(0.1), scored_at=datetime.now(UTC) - 5 * HOUR)
    seat = Roster(Catalog(data).roster).take("reader")
    seat.stage(made.version, REFUSED, "its file was cut")
    with pytest.raises(Busy, match=r"is not ready after 0\.2 s in process"):
        publish(Catalog(data), settings_of(data, stage_timeout=0.2), Request(version=made.version), Told())
    seat.leave()
