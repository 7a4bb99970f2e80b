"""All gates on real candidates: no history, first publishes, acceptances, quarantine, opt-outs that came back."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from drilling import Night, Pipeline, held, scores, with_scores

from kserve import SettingError
from kserve.settings import Settings
from kserve.snapshots.check import NO_HISTORY, check
from kserve.snapshots.gates import GATES, Acceptance, Report, load, save

COMPARING = [gate.name for gate in GATES if gate.against is not None]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Pipeline:
    return Pipeline(tmp_path_factory.mktemp("pipeline"), 3000)


@pytest.fixture(scope="module")
def nights(pipeline) -> tuple[Night, Night]:
    one, two = (pipeline.night(pipeline.output(f"day{day}", day)) for day in (39, 40))
    return one, two


@pytest.fixture(scope="module")
def jumped(pipeline) -> Night:
    """One in fifty has thirty points more."""

    def alter(table):
        points = scores(table)
        return with_scores(table, np.where(table["profile_id"].to_numpy() % np.uint64(50) == 0, points + 30, points))

    return pipeline.forged("jumped", 40, alter)


def checked(night: Night, live: Night | None = None, **told: Any) -> Report:
    given = {
        "live": None if live is None else live.snapshot,
        "live_manifest": None if live is None else live.manifest,
        "settings": Settings(),
        "now": night.scored_at + timedelta(hours=1),
        "opted_out": night.opted_out,
    }
    return check(night.snapshot, night.manifest, **given | told)


def test_an_honest_night_passes_and_says_what_it_was_compared_with(nights):
    one, two = nights
    seen: list[tuple[int, int]] = []
    report = checked(two, one, progress=lambda *done: seen.append(done), once_opted_out=one.opted_out)
    assert held(report) == []
    assert [finding.gate for finding in report.findings] == [gate.name for gate in GATES]
    assert (report.version, report.against) == (two.snapshot.version, one.snapshot.version)
    assert (report.new.profiles, report.old.profiles) == (two.snapshot.profiles, one.snapshot.profiles)
    assert (report.first, report.model) == (False, None)
    assert all(finding.reason and finding.figure and finding.threshold for finding in report.findings)
    assert seen
    assert all(done <= total for done, total in seen)


def test_no_history_is_not_a_pass(nights):
    report = checked(nights[0])
    assert held(report) == COMPARING
    assert {report.finding(name).reason for name in COMPARING} == {NO_HISTORY}
    assert report.old is None


def test_a_first_publish_lets_through_what_has_nothing_to_compare_with_and_nothing_else(nights):
    one, _ = nights
    report = checked(one, first=True)
    assert (held(report), report.first) == ([], True)
    assert "first publish" in report.finding("rows").reason
    late = checked(one, first=True, now=one.scored_at + timedelta(days=3), opted_out=None)
    assert held(late) == ["fresh", "erased"]
    report = checked(one, first=True, settings=Settings(gates={"mass_first": 0.03}))
    assert held(report) == ["mass"]


def test_a_first_publish_is_not_first_where_something_is_live(nights, jumped):
    report = checked(jumped, nights[0], first=True)
    assert report.first is False
    assert "movement" in held(report)


def test_a_report_of_a_check_survives_being_kept(nights, tmp_path):
    for report in (checked(nights[0], first=True), checked(*reversed(nights))):
        save(tmp_path, report)
        assert load(tmp_path, report.version) == report


# Acceptances.


def accepted(night: Night, gate: str, hours: float = 24, **told: Any) -> Acceptance:
    until = night.scored_at + timedelta(hours=1 + hours)
    return Acceptance(gate, "announced on 19 October", "ann", until)


def test_a_hold_is_accepted_by_name_until_it_expires(nights, jumped):
    names = held(checked(jumped, nights[0]))
    assert "movement" in names
    given = [accepted(jumped, name) for name in names]
    report = checked(jumped, nights[0], acceptances=given)
    assert held(report) == []
    assert report.finding("movement").verdict == "hold"
    assert report.finding("movement").accepted == accepted(jumped, "movement")
    assert report.finding("fresh").accepted is None
    over = timedelta(hours=24)
    later = checked(jumped, nights[0], acceptances=given, now=jumped.scored_at + timedelta(hours=1) + over)
    assert held(later) == names
    others = [given for given in given if given.gate != "movement"]
    assert held(checked(jumped, nights[0], acceptances=others)) == ["movement"]


def test_an_acceptance_of_a_gate_that_passes_is_kept_from_the_report(nights):
    one, two = nights
    report = checked(two, one, acceptances=[accepted(two, "movement")])
    assert report.finding("movement").accepted is None


def test_of_two_acceptances_the_longer_one_counts(nights, jumped):
    both = [accepted(jumped, "movement", 5), accepted(jumped, "movement", -1), accepted(jumped, "movement", 3)]
    report = checked(jumped, nights[0], acceptances=both)
    assert report.finding("movement").accepted == both[0]


@pytest.mark.parametrize("gate", [gate.name for gate in GATES if gate.integrity])
def test_integrity_is_never_accepted(nights, gate):
    one, two = nights
    with pytest.raises(SettingError, match=f"{gate} cannot be accepted: .*complete, checksums"):
        checked(two, one, acceptances=[accepted(two, gate)])


# What comes back.


def test_content_that_was_rolled_back_does_not_return_under_another_name(pipeline, nights):
    one, two = nights
    bad = checked(two, one).digest
    again = pipeline.night(pipeline.root / "day40", scored_at=two.scored_at + timedelta(hours=2))
    assert again.snapshot.version != two.snapshot.version
    report = checked(again, one, quarantined={bad})
    assert held(report) == ["quarantine"]
    assert held(checked(again, one, quarantined={"another"})) == []


def test_an_input_that_lost_its_opt_outs_is_held(pipeline, nights):
    """All who had opted out are back, and no row says that they have."""
    one, _ = nights

    def forgetful(table):
        column = table.column_names.index("opted_out")
        return table.set_column(column, "opted_out", [np.zeros(len(table), bool)])

    night = pipeline.forged("forgetful", 40, forgetful)
    report = checked(night, one, once_opted_out=one.opted_out)
    assert "erased" in held(report)
    assert f"of {len(one.opted_out)} profiles that had opted out are back" in report.finding("erased").reason


def test_a_candidate_is_not_newer_than_itself(nights):
    assert held(checked(nights[0], nights[0])) == ["fresh"]


def test_an_unknown_model_is_refused_before_anything_is_compared(nights):
    with pytest.raises(SettingError, match="there is no model 'x'"):
        checked(nights[1], nights[0], model="x")


def test_a_declared_model_is_recorded(nights):
    assert checked(nights[1], nights[0], model="2011-10").model == "2011-10"
