"""`kserve limits`: what keys have spent."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli.support import done, run

from kserve._buckets import Buckets
from kserve._limits import ADDRESS, ALONE, LIMITED, Limits
from kserve.serving.keys import Keys
from kserve.serving.samples import limits_file
from kserve.settings import TIERS, Failures
from kserve.snapshots import shared


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shared, "MEMORY", tmp_path)
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def limits(data: Path) -> Limits:
    return Limits(limits_file(data))


def test_a_key_that_spends_is_shown_with_what_is_left(data: Path, limits: Limits) -> None:
    key, text = Keys(data).create("Example Airways", ["score:read"], tier="developer")
    for _ in range(3):
        limits.take(key.id, TIERS["developer"], 40)
    assert limits.take(key.id, TIERS["developer"], 40).outcome == LIMITED
    shown = done("limits", "show", text, "--json").json()
    assert shown["name"] == key.id
    assert shown["limit"] == {"rate": 10, "period": 1, "burst": 100, "quota": 20_000}
    assert (shown["admitted"], shown["refused"], shown["left_today"]) == (80, 80, 19_920)
    assert 20 <= shown["remaining"] < 100
    assert 0 < shown["full_in_seconds"] <= 8
    assert (shown["mode"], shown["hosts"], shown["failed_open"]) == ("memory", 1, 0)
    printed = done("limits", "show", key.id).out
    assert "10 tokens each second, 100 at once, 20,000 a day" in printed
    assert "19,920, all of them in" in printed
    assert text not in printed


def test_a_key_that_has_not_asked_has_spent_nothing(data: Path) -> None:
    key, _ = Keys(data).create("Example Airways", ["score:read"], tier="site")
    assert done("limits", "show", key.id, "--json").json()["remaining"] is None
    assert "no server of this user has run" in done("limits", "show", key.id).out
    Limits(limits_file(data))
    shown = done("limits", "show", key.id, "--json").json()
    assert (shown["remaining"], shown["left_today"], shown["admitted"]) == (TIERS["site"].burst, None, 0)
    assert f"{TIERS['site'].burst:,}, all of them\n" in done("limits", "show", key.id).out


def test_a_tier_that_is_gone_is_said_to_be(data: Path, limits: Limits) -> None:
    key, _ = Keys(data).create("Example Airways", ["score:read"], tier="gone")
    assert done("limits", "show", key.id, "--json").json()["limit"] is None
    assert "no such tier" in done("limits", "show", key.id).out


def test_an_unknown_key_is_told(data: Path) -> None:
    assert run("limits", "show", "nobody").code == 4


def test_those_who_ask_most_come_first(data: Path, limits: Limits) -> None:
    assert "nobody has asked" in done("limits", "top", "--seconds", 0).out
    little, _ = Keys(data).create("Little", ["score:read"], tier="partner")
    much, _ = Keys(data).create("Much", ["score:read"], tier="partner")
    limits.take(little.id, TIERS["partner"], 5)
    assert done("limits", "top", "--seconds", 0).out.endswith(", 1 bucket\n")
    limits.take(much.id, TIERS["partner"], 1500)
    limits.take(much.id, TIERS["partner"], 1500)
    limits.take("deletedkey01", TIERS["partner"], 2)
    limits.take("192.0.2.7", Failures(), 1, kind=ADDRESS)
    Buckets(limits).set_mode(ALONE, 3)
    shown = done("limits", "top", "--seconds", 0, "--json").json()
    rows = [(row["name"], row["kind"], row["admitted"], row["refused"], row["partner"]) for row in shown["names"]]
    assert rows == [
        (much.id, "key", 1500, 1500, "Much"),
        (little.id, "key", 5, 0, "Little"),
        ("deletedkey01", "key", 2, 0, None),
        ("192.0.2.7", "address", 1, 0, None),
    ]
    assert (shown["mode"], shown["hosts"], shown["buckets"]) == ("alone", 3, 4)
    printed = done("limits", "top", "--seconds", 0, "--count", 2).out.splitlines()
    assert [line.split()[0] for line in printed[1:3]] == [much.id, little.id]
    assert "1/3, as Redis cannot be asked" in printed[-1]
    assert done("limits", "top", "--seconds", 0.01, "--json").json()["names"] == []
