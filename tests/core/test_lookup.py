"""Look-ups of random tables against a dict."""

import math
import threading

import numpy as np
import pytest
import snapshots
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kserve
from kserve import Status

ids = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 50), st.integers(2**64 - 50, 2**64 - 1))
points = st.one_of(st.none(), st.integers(100, 10000).map(lambda n: n / 100))
changes = st.one_of(st.none(), st.integers(-9900, 9900).map(lambda n: n / 100))
rows = st.fixed_dictionaries(
    {
        "score": points,
        "day_change": changes,
        "week_change": changes,
        "month_change": changes,
        "opted_out": st.booleans(),
    }
)
tables = st.dictionaries(ids, rows, min_size=1, max_size=300)


def served(table):
    return {profile_id: row for profile_id, row in table.items() if not row["opted_out"]}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables, st.lists(ids, max_size=40))
def test_answers_what_a_dict_answers(tmp_path, table, others):
    expected = served(table)
    rows = [{"profile_id": profile_id, **row} for profile_id, row in table.items()]
    if not expected:
        with pytest.raises(kserve.InputError, match="no row is left"):
            snapshots.candidate(tmp_path, rows)
        return
    snapshot = snapshots.publish(tmp_path, rows)
    snapshot.verify()
    assert snapshot.profiles == len(expected)
    assert snapshot.scored == sum(row["score"] is not None for row in expected.values())
    for profile_id in [*table, *others]:
        check_one(snapshot, profile_id, expected.get(profile_id))
    check_many(snapshot, [*table, *others], expected)


def check_one(snapshot, profile_id, row):
    if row is None:
        for read in (snapshot.score, snapshot.core, snapshot.get):
            with pytest.raises(KeyError):
                read(profile_id)
        assert snapshot.explain({}, profile_id) == ("unknown",)
        return
    assert snapshot.score(profile_id) == row["score"]
    assert snapshot.core(profile_id)[1:] == tuple(
        row[n] for n in ("score", "day_change", "week_change", "month_change")
    )
    profile = snapshot.get(profile_id)
    assert (profile.id, profile.score) == (profile_id, row["score"])
    assert profile.changes == (row["day_change"], row["week_change"], row["month_change"])


def check_many(snapshot, wanted, expected):
    batch = snapshot.get_many(np.array(wanted, dtype=np.uint64), changes=True)
    assert batch.version == snapshot.version
    for i, profile_id in enumerate(wanted):
        row = expected.get(profile_id)
        if row is None:
            assert (batch.status[i], math.isnan(batch.values[i])) == (Status.UNKNOWN, True)
        elif row["score"] is None:
            assert (batch.status[i], math.isnan(batch.values[i])) == (Status.UNSCORED, True)
        else:
            assert (batch.status[i], batch.values[i]) == (Status.SCORED, row["score"])
        moved = [None if math.isnan(value) else value for value in batch.changes[i]]
        assert moved == ([row["day_change"], row["week_change"], row["month_change"]] if row else [None] * 3)
    assert (batch.found == (batch.status != 0)).all()
    assert (batch.scored == ~np.isnan(batch.values)).all()


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    rows = [{"profile_id": i * 7, "score": 1 + i % 9900 / 100} for i in range(5000)]
    return snapshots.publish(tmp_path_factory.mktemp("data"), rows)


def test_batches_of_every_size_around_the_group_of_prefetches(snapshot):
    for n in (0, 1, 63, 64, 65, 127, 128, 129, 1000):
        wanted = np.arange(n, dtype=np.uint64) * 7
        assert snapshot.get_many(wanted).values.tolist() == [snapshot.score(int(i)) for i in wanted]


@pytest.mark.parametrize("kind", [np.uint64, np.int64, np.uint32, np.int16])
def test_batches_take_any_integers(snapshot, kind):
    assert snapshot.get_many(np.array([7, 14], dtype=kind)).values.tolist() == [1.01, 1.02]
    assert snapshot.get_many([7, np.int64(14)]).values.tolist() == [1.01, 1.02]
    assert snapshot.get_many(np.arange(20, dtype=kind)[::7]).found.tolist() == [True] * 3


def test_a_batch_of_ids_that_are_none_is_an_error(snapshot):
    with pytest.raises(OverflowError, match="index 1 is -7"):
        snapshot.get_many(np.array([7, -7]))
    with pytest.raises(OverflowError):
        snapshot.get_many([7, -7])
    with pytest.raises(OverflowError):
        snapshot.get_many([2**64])
    for bad in (np.array([7.0]), np.array(["7"]), np.array([True]), np.array([[7]], dtype=np.uint64), [7.0], ["7"]):
        with pytest.raises(TypeError):
            snapshot.get_many(bad)


def test_absent_ids_are_absent_however_often_they_are_asked_for(tmp_path):
    """They walk runs of full lines that no present id has to walk; in a batch they must not use up others' turns."""
    snapshot = snapshots.publish(tmp_path, [{"profile_id": i * 3, "score": 50.0} for i in range(20_000)])
    for absent in range(1, 30_000, 17):
        wanted = np.full(300, absent if absent % 3 else absent + 1, np.uint64)
        wanted[299] = 3
        batch = snapshot.get_many(wanted)
        assert not batch.status[:299].any()
        assert batch.values[299] == 50.0


def test_no_integer_outside_64_bits_is_a_profile(snapshot):
    for wanted in (-1, 2**64, -(2**70), 2**64 + 7):
        with pytest.raises(kserve.UnknownProfile, match=str(wanted)):
            snapshot.score(wanted)
        assert snapshot.eligible({}, wanted) is False
    assert snapshot.score(np.uint64(7)) == 1.01


@pytest.mark.parametrize("wrong", [7.0, "7", None, b"7"])
def test_what_is_no_integer_is_a_type_error(snapshot, wrong):
    for read in (snapshot.score, snapshot.get, snapshot.core):
        with pytest.raises(TypeError):
            read(wrong)


def test_an_error_names_profile_and_version(snapshot):
    with pytest.raises(KeyError) as caught:
        snapshot.get(8)
    assert str(caught.value) == f"no profile 8 in snapshot {snapshot.version}"


def test_known_answers_are_what_look_ups_answer(snapshot):
    for _ in range(200):
        profile_id, score = snapshot.known_answer()
        assert snapshot.score(profile_id) == score


def test_threads_read_at_once(snapshot):
    wrong = []

    def read():
        wrong.extend(i for i in range(5000) if snapshot.score(i * 7) != round(1 + i % 9900 / 100, 2))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert snapshot.resident() == 1.0
