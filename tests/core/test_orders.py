"""Which version is in force: announcements, pins, rollbacks, quarantine; against a plain model, and across crashes."""

import os
import threading
from datetime import timedelta

import pytest
import snapshots
from hypothesis import settings as profile
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import kserve
from kserve.errors import Held, Pinned
from kserve.settings import Settings
from kserve.snapshots import signing
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.orders import Orders

DAY = timedelta(days=1)


def build(data, day):
    return snapshots.candidate(data, [{"profile_id": 1, "score": 10.0 + day}], scored_at=snapshots.NOON + day * DAY)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A data directory with four published versions, none of them announced."""
    data = tmp_path_factory.mktemp("orders")
    for day in range(4):
        Catalog(data).place(build(data, day).version)
    return data


@pytest.fixture
def data(built, tmp_path):
    os.symlink(built / "snapshots", tmp_path / "snapshots")
    (tmp_path / "candidates").mkdir()
    return tmp_path


def names(data):
    return sorted(os.listdir(data / "snapshots"))


def orders_of(data, **settings):
    return Orders(Catalog(data), Settings(data=data, by="me", **settings))


def announce(orders, version, good=True):
    orders.announce(version, against=orders.catalog.live(), seen={"digest": f"digest of {version}"})
    if good:
        orders.judge_good(version)


def log_announcement(orders, version, **seen):
    """As a publisher does that is killed before it has carried it out."""
    seen |= {"previous": orders.catalog.live(), "digest": f"digest of {version}"}
    orders.catalog.log.append("announce", by="me", version=version, seen=seen)


def test_back_to_the_last_good_version_and_not_to_the_one_before(data):
    a, b, c, _ = names(data)
    orders = orders_of(data)
    announce(orders, a)
    announce(orders, b, good=False)
    announce(orders, c, good=False)
    assert orders.rollback(why="scores of 1") == a
    state = orders.state()
    assert (orders.catalog.announced(), state.pin.version, state.good) == (a, a, (a,))
    assert [found.version for found in state.quarantined.values()] == [c]


def test_two_bad_pushes_in_a_row_end_at_the_same_good_version(data):
    a, b, c, d = names(data)
    orders = orders_of(data)
    announce(orders, a)
    for bad in (b, c):
        announce(orders, bad, good=False)
        assert orders.rollback(why="bad", frozen=True) == a
        with pytest.raises(Pinned, match=f"{a} is pinned since .* by me: bad"):
            announce(orders, d)
        orders.unpin(why="looked at it")
    assert len(orders.state().quarantined) == 2
    announce(orders, d)
    assert orders.state().good == (a, d)


def test_a_rollback_during_a_publish_wins(data):
    a, b, c, _ = names(data)
    orders = orders_of(data)
    announce(orders, a)
    announce(orders, b)
    live_when_checked = orders.catalog.live()
    orders.rollback(why="bad")
    orders.unpin(why="an eager human")
    with pytest.raises(Held, match=f"{a} came in force while {c} was checked against {b}"):
        orders.announce(c, against=live_when_checked)
    assert orders.catalog.announced() == a


def test_only_the_version_that_was_judged_is_taken_back(data):
    a, b, c, _ = names(data)
    orders = orders_of(data)
    announce(orders, a)
    announce(orders, c)
    with pytest.raises(Held, match=f"{b} is not in force any more: {c} is"):
        orders.rollback(why="bad", of=b)
    assert orders.rollback(why="bad", of=c) == a


def test_what_is_quarantined_is_no_target_until_it_is_released(data):
    a, b, _, _ = names(data)
    orders = orders_of(data)
    announce(orders, a)
    announce(orders, b)
    orders.rollback(why="bad")
    with pytest.raises(Held, match=f"{b} is in quarantine"):
        orders.rollback(b, why="back")
    (digest,) = orders.state().quarantined
    assert orders.release(digest, why="it was fine").version == b
    assert orders.rollback(b, why="back") == b
    with pytest.raises(kserve.UnknownVersion):
        orders.release(digest, why="again")


def test_there_must_be_a_good_version_to_go_back_to(data):
    a, b, _, _ = names(data)
    orders = orders_of(data)
    announce(orders, a, good=False)
    with pytest.raises(Held, match="no other good version"):
        orders.rollback(why="bad")
    announce(orders, b)
    with pytest.raises(Held, match="no other good version"):
        orders.rollback(why="bad")
    assert orders.rollback(a, why="a human knows better") == a
    with pytest.raises(Held, match="in force already"):
        orders.rollback(a, why="again")


def test_a_damaged_good_version_is_passed_over(built, tmp_path):
    data = tmp_path
    for day in range(3):
        Catalog(data).place(build(data, day).version)
    orders, (a, b, c) = orders_of(data), names(data)
    for version in (a, b, c):
        announce(orders, version)
    path = data / "snapshots" / b / "snapshot.kss"
    path.chmod(0o600)
    os.truncate(path, 5000)
    assert orders.rollback(why="bad") == a


def test_a_rollback_that_was_only_logged_is_carried_out(data):
    a, b, _, _ = names(data)
    orders = orders_of(data)
    announce(orders, a)
    announce(orders, b)
    orders.catalog.log.append("rollback", by="who died", version=a, seen={"from": b})
    assert orders.catalog.announced() == b
    assert orders_of(data).settle() == a
    assert orders.catalog.announced() == a
    assert orders.settle() is None


def test_an_announcement_that_was_only_logged_has_no_effect(data):
    a, b, _, _ = names(data)
    orders = orders_of(data)
    announce(orders, a)
    orders.catalog.log.append("announce", by="who died", version=b)
    assert orders.settle() is None
    assert orders.catalog.announced() == a
    orders.judge_good(b)
    assert orders.state().good == (a,)


def test_a_new_model_begins_a_new_baseline_and_its_rollback_ends_it(data):
    a, b, c, d = names(data)
    orders = orders_of(data)
    announce(orders, a)
    announce(orders, b)
    assert orders.state().baseline == (a, b)
    orders.announce(c, against=b, seen={"model": "2011-10"})
    assert orders.state().baseline == ()
    orders.judge_good(c)
    assert orders.state().baseline == (c,)
    announce(orders, d)
    assert orders.state().baseline == (c, d)
    orders.rollback(b, why="the new model was a mistake", quarantine=False)
    assert orders.state().good == (a, b, c)


def test_prune_keeps_what_may_be_needed(built, tmp_path):
    data = tmp_path
    for day in range(6):
        Catalog(data).place(build(data, day).version)
    old, new = (build(data, day).version for day in (-3, 9))
    orders, versions = orders_of(data), names(data)
    for version in versions:
        announce(orders, version, good=version == versions[1])
    would, size = orders.prune(2, served=[versions[0]], dry_run=True)
    assert set(would) == {versions[2], versions[3], old}
    assert (set(names(data)), size > 0) == (set(versions), True)
    assert orders.prune(2, served=[versions[0]]) == (would, size)
    assert set(names(data)) == set(versions) - {versions[2], versions[3]}
    assert os.listdir(data / "candidates") == [new]
    assert orders.prune(2, served=[versions[0]]) == ([], 0)
    assert orders.catalog.log.entries()[-1].seen == {"versions": would, "bytes": size}


def test_signed_orders_rise_and_carry_a_return_ticket(data, tmp_path):
    a, b, _, _ = names(data)
    signing.create(tmp_path / "key")
    trust = signing.Trust.load(tmp_path / "key.pub")
    publisher, sentinel = orders_of(data, signing_key=tmp_path / "key"), orders_of(data)
    announce(publisher, a)
    first = publisher.catalog.order()
    announce(publisher, b)
    second = publisher.catalog.order()
    assert sentinel.rollback(why="bad") == a
    ticket = publisher.catalog.order()
    for order in (first, second, ticket):
        signing.check_order(order, trust, data)
    signing.admit(second, b, first)
    signing.admit(ticket, a, second)
    assert (ticket.act, ticket.previous) == ("rollback", b)
    publisher.unpin(why="looked")
    publisher.release(f"digest of {b}", why="it was fine")
    announce(publisher, b)
    signing.admit(publisher.catalog.order(), b, ticket)


def test_content_in_quarantine_is_neither_announced_nor_gone_back_to_under_another_name(data):
    a, b, c, d = names(data)
    orders = orders_of(data)
    announce(orders, a)
    for version in (b, c):
        orders.announce(version, against=orders.catalog.live(), seen={"digest": "the same content"})
        orders.judge_good(version)
    assert orders.rollback(why="bad") == a
    assert orders.state().good == (a,)
    with pytest.raises(Held, match=f"{b} is in quarantine"):
        orders.rollback(b, why="back")
    orders.unpin(why="looked at it")
    with pytest.raises(Held, match=f"{d} is in quarantine"):
        orders.announce(d, against=a, seen={"digest": "the same content"})
    orders.quarantine(d, "digest of d", why="somebody looked at it while it was checked")
    with pytest.raises(Held, match=f"{d} is in quarantine"):
        orders.announce(d, against=a, seen={"digest": "digest of d"})
    assert orders.catalog.announced() == a


def test_a_version_that_is_not_there_any_more_is_not_announced(built, tmp_path):
    for day in range(2):
        Catalog(tmp_path).place(build(tmp_path, day).version)
    orders, (a, b) = orders_of(tmp_path), names(tmp_path)
    announce(orders, b)
    orders.prune(1)
    with pytest.raises(kserve.UnknownVersion):
        announce(orders, a)
    assert orders.catalog.announced() == b
    assert orders.state().current == b


def test_nothing_is_announced_while_a_human_is_waited_for(data):
    """There was no good version to go back to, so nothing is pinned."""
    a, b, _, _ = names(data)
    orders = orders_of(data)
    announce(orders, a, good=False)
    orders.freeze("answers badly, and there is no other")
    with pytest.raises(Pinned, match="answers badly, and there is no other"):
        announce(orders, b)
    assert orders.unpin(why="looked at it") == a
    announce(orders, b)
    assert orders.state().good == (b,)


def test_an_old_return_ticket_is_not_used(data, tmp_path):
    """Readers would not obey it: its number is lower than that of the order in force."""
    a, b, _, _ = names(data)
    signing.create(tmp_path / "key")
    publisher = orders_of(data, signing_key=tmp_path / "key")
    sentinel = orders_of(data, trusted_keys=tmp_path / "key.pub")
    announce(publisher, a)
    announce(publisher, b)
    old = (data / "RETURN").read_bytes()
    publisher.rollback(why="bad", quarantine=False)
    publisher.unpin(why="it was fine")
    announce(publisher, b)
    (data / "RETURN").write_bytes(old)
    with pytest.raises(Held, match="signing_key"):
        sentinel.rollback(why="bad")
    assert orders_of(data).catalog.announced() == b


def test_an_order_that_readers_would_not_obey_is_not_given(data, tmp_path):
    """Who starts while it is in force would serve nothing."""
    a, b, _, _ = names(data)
    signing.create(tmp_path / "key")
    orders = orders_of(data, signing_key=tmp_path / "key")
    announce(orders, b)
    with pytest.raises(Held, match="only a rollback may go back"):
        announce(orders, a)
    assert (orders.catalog.announced(), orders.state().current) == (b, b)
    assert orders.rollback(a, why="back") == a


def test_prune_keeps_the_version_in_force_when_current_is_damaged(built, tmp_path):
    for day in range(4):
        Catalog(tmp_path).place(build(tmp_path, day).version)
    orders, (a, b, c, d) = orders_of(tmp_path), names(tmp_path)
    for version in (b, c):
        announce(orders, version)
    announce(orders, a, good=False)
    (tmp_path / "CURRENT").write_bytes(b"damaged")
    assert orders.prune(1)[0] == []
    assert names(tmp_path) == [a, b, c, d]


def test_acts_of_many_at_once_are_one_after_the_other(data):
    a, b, c, d = names(data)
    orders = orders_of(data)
    announce(orders, a)
    won = []

    def try_to(version):
        mine = orders_of(data)
        try:
            mine.announce(version, against=a)
        except Held:
            return
        won.append(version)

    threads = [threading.Thread(target=try_to, args=(version,)) for version in (b, c, d) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert orders.catalog.announced() == won[0] == orders.state().current


VERSIONS = st.integers(0, 3)


class Model(RuleBasedStateMachine):
    """Random acts, each against plain variables."""

    data = None

    def __init__(self):
        super().__init__()
        for left in ("CURRENT", "log.jsonl"):
            (self.data / left).unlink(missing_ok=True)
        self.versions = names(self.data)
        self.live, self.pinned, self.frozen, self.unjudged = None, None, False, None
        self.good, self.quarantined = [], set()

    @property
    def orders(self):
        return orders_of(self.data)

    @rule(number=VERSIONS)
    def announce(self, number):
        version = self.versions[number]
        if self.pinned not in (None, version):
            with pytest.raises(Pinned):
                announce(self.orders, version, good=False)
            return
        if version in self.quarantined:
            with pytest.raises(Held):
                announce(self.orders, version, good=False)
            return
        announce(self.orders, version, good=False)
        self.live = self.unjudged = version

    @precondition(lambda self: self.live)
    @rule(number=VERSIONS)
    def announce_and_die(self, number):
        version = self.versions[number]
        if self.pinned in (None, version) and version not in {self.live, *self.quarantined}:
            log_announcement(self.orders, version)

    @precondition(lambda self: self.live)
    @rule(number=VERSIONS)
    def judge(self, number):
        version = self.versions[number]
        self.orders.judge_good(version)
        if self.unjudged == version:
            self.good = [name for name in self.good if name != version] + [version]
            self.unjudged = None

    @precondition(lambda self: self.live)
    @rule(frozen=st.booleans())
    def roll_back(self, frozen):
        others = [name for name in self.good if name != self.live]
        if not others:
            with pytest.raises(Held):
                self.orders.rollback(why="bad", frozen=frozen)
            return
        assert self.orders.rollback(why="bad", frozen=frozen) == others[-1]
        self.good = [name for name in self.good if name != self.live]
        self.quarantined.add(self.live)
        self.live = self.pinned = self.unjudged = others[-1]
        self.frozen = frozen

    @precondition(lambda self: self.live)
    @rule()
    def pin(self):
        assert self.orders.pin(why="so") == self.live
        self.pinned = self.live

    @rule()
    def unpin(self):
        assert (self.orders.unpin(why="so") is None) == (self.pinned is None)
        self.pinned, self.frozen = None, False

    @invariant()
    def agrees(self):
        state = self.orders.state()
        assert Catalog(self.data).announced() == self.live == state.current
        assert (state.pin.version if state.pin else None) == self.pinned
        assert (list(state.good), state.frozen) == (self.good, self.frozen)
        assert {found.version for found in state.quarantined.values()} == self.quarantined
        assert (state.unjudged.version if state.unjudged else None) == self.unjudged


def test_random_acts(data):
    Model.data = data
    case = Model.TestCase("runTest")
    case.settings = profile(max_examples=25, stateful_step_count=20, deadline=None)
    case.runTest()


def test_what_has_breached_is_not_judged_good(data):
    a, b, _, _ = names(data)
    orders = orders_of(data)
    announce(orders, a)
    announce(orders, b, good=False)
    orders.breach(b, {})
    orders.judge_good(b)
    assert orders.state().good == (a,)


def test_what_is_in_force_is_watched_until_another_really_is(data):
    """Whoever announces may die when it is logged, and before it is carried out; and so may the next one."""
    a, b, c, d = names(data)
    orders = orders_of(data)
    announce(orders, a)
    announce(orders, b, good=False)
    watched = orders.state().unjudged
    for never in (c, d):
        log_announcement(orders, never)
        state = orders.state()
        assert (state.current, state.unjudged) == (b, watched)
    assert orders.judge_good(b)
    state = orders.state()
    assert (state.current, state.unjudged, state.good) == (b, None, (a, b))
    assert not orders.judge_good(d)
    announce(orders, c, good=False)
    assert orders.state().unjudged.version == c


def test_the_baseline_is_not_that_of_a_model_that_was_never_in_force(data):
    a, b, c, _ = names(data)
    orders = orders_of(data)
    announce(orders, a)
    announce(orders, b)
    log_announcement(orders, c, model="2011-10")
    assert orders.state().baseline == (a, b)


def test_a_good_version_that_answers_badly_is_good_no_more(data):
    a, b, _, _ = names(data)
    orders = orders_of(data)
    announce(orders, a)
    announce(orders, b)
    assert orders.rollback(why="bad") == a
    orders.freeze("it answers badly too")
    assert orders.state().good == ()


def test_what_is_released_is_as_good_as_it_was(data):
    a, b, c, _ = names(data)
    orders = orders_of(data)
    announce(orders, a)
    announce(orders, b)
    orders.quarantine(a, f"digest of {a}", why="a suspicion")
    assert orders.state().good == (b,)
    orders.release(f"digest of {a}", why="it was unfounded")
    assert orders.state().good == (a, b)
    announce(orders, c)
    assert orders.rollback(why="bad") == b
