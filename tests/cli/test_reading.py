"""history, show and get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli.support import DAY_TWO, done, run
from serving.support import serving
from snapshots import publish

from kserve.snapshots.catalog import Catalog

UNKNOWN = "18446744073709551615"


def test_history_marks_the_announced_version(published: Path) -> None:
    lines = done("history").out.splitlines()
    announced = Catalog("data").announced()
    assert lines[0].split() == ["version", "state", "marks", "scored", "at", "profiles", "size", "announced", "at"]
    assert [line.split()[0] for line in lines if "*" in line] == [announced, "*"]
    assert [word for line in lines for word in ("candidate", "announced", "retired") if f"  {word}  " in line] == [
        "candidate",
        "announced",
        "retired",
    ]


def test_history_as_json(published: Path) -> None:
    document = done("history", "--json").json()
    assert document["announced"] == Catalog("data").announced()
    assert [version["state"] for version in document["versions"]] == ["candidate", "announced", "retired"]
    assert document["versions"][0].keys() == {
        *("version", "state", "scored_at", "profiles", "scored", "file_bytes", "built_at", "announced_at"),
        *("good", "pinned", "quarantined"),
    }
    assert document["versions"][0]["announced_at"] is None
    assert [version["good"] for version in document["versions"]] == [False, True, True]


def test_history_of_nothing(tmp_path: Path) -> None:
    document = done("history", "--data", tmp_path / "none", "--json").json()
    assert document == {"announced": None, "frozen": False, "versions": []}
    assert "kserve build" in done("history", "--data", tmp_path / "none").out


def test_show_by_default_the_announced_version(published: Path) -> None:
    announced = Catalog("data").announced()
    document = done("show", "--json").json()
    assert document == {
        "version": announced,
        "state": "announced",
        "manifest": Catalog("data").manifest(str(announced)),
    }
    text = done("show").out
    assert str(announced) in text
    for section, length in ((name, found["length"]) for name, found in document["manifest"]["sections"].items()):
        per_profile = length / document["manifest"]["profiles"]
        assert any(line.split() == [section, f"{length:,}", f"{per_profile:.1f}"] for line in text.splitlines())
    assert "header and padding" in text


def test_show_a_candidate(published: Path) -> None:
    candidate = done("history", "--json").json()["versions"][0]["version"]
    assert done("show", candidate, "--json").json()["state"] == "candidate"
    assert f"day unknown, week from {DAY_TWO:%Y%m%dT}" in done("show", candidate).out


def test_show_what_is_not_there(published: Path, tmp_path: Path) -> None:
    assert run("show", "20260102T040000Z-00000000", "--json").error()["slug"] == "unknown-version"
    assert run("show", "../../etc", "--json").error()["slug"] == "unknown-version"
    assert run("show", "--data", tmp_path, "--json").error()["slug"] == "nothing-published"


def best(*options: object) -> dict[str, Any]:
    """The document of the profile with the highest score."""
    found = done("eligible", "--rule", "{}", "--select", 1, "--json", *options).json()["selected"]
    profile: dict[str, Any] = done("get", found[0]["id"], "--json", *options).json()["profiles"][0]
    return profile


def test_get_by_id_and_by_identity(published: Path) -> None:
    profile = best()
    by_name = done("get", f"tw:{profile['identities']['tw']['name'].upper()}", "--json").json()
    by_id = done("get", f"tw:{profile['identities']['tw']['id']}", "--json").json()
    assert by_name == by_id == {"version": profile["version"], "profiles": [profile]}
    text = done("get", profile["id"], profile["id"]).out
    assert text.count(f"profile        {profile['id']}\n") == 2
    assert f"score          {profile['score']:.2f}\n" in text
    assert profile["location"] in text
    assert "week unknown" in text


def test_get_from_an_older_version(published: Path) -> None:
    older = done("history", "--json").json()["versions"][2]["version"]
    profile = best("--version", older)
    assert profile["version"] == older
    assert profile["changes"] == {"day": None, "week": None, "month": None}
    assert run("get", "1", "--version", "20260102T040000Z-00000000", "--json").error()["slug"] == "unknown-version"


def test_missing_is_never_a_number(tmp_path: Path) -> None:
    publish(tmp_path, [{"profile_id": 7, "score": None, "network_score": None, "location": None, "nick": "a\x1b[2Jb"}])
    text = done("get", "7", "--data", tmp_path).out
    assert "score          unscored\n" in text
    assert "changes        day unknown, week unknown, month unknown\n" in text
    assert "network score  unknown\n" in text
    assert "location       unknown\n" in text
    assert "influencers    unknown in all\n" in text
    assert "nick           a\\x1b[2Jb\n" in text
    (profile,) = done("get", "7", "--data", tmp_path, "--json").json()["profiles"]
    assert (profile["id"], profile["score"], profile["reason"]) == ("7", None, "unscored")


def test_get_reports_who_is_not_there_after_who_is(published: Path) -> None:
    profile = best()
    result = run("get", UNKNOWN, profile["id"], "tw:no such name", "--json")
    document = result.json()
    assert result.code == 4
    assert document["profiles"] == [profile]
    assert document["unknown"] == [UNKNOWN, "tw:no such name"]
    assert document["error"]["slug"] == "unknown-profile"
    assert document["error"]["profile_id"] == UNKNOWN
    assert len(result.err.splitlines()) == 2


@pytest.mark.parametrize("who", ["-1", "1.5", "018", "18446744073709551616", "abc", "xx:name", "tw:", "١٢"])
def test_get_refuses_what_is_no_profile(published: Path, who: str) -> None:
    assert run("get", "--json", "--", who).error()["slug"] == "usage"


def test_a_profile_is_the_same_over_http(published: Path) -> None:
    selected = done("eligible", "--rule", "{}", "--select", 2000, "--json").json()["selected"]
    ids = [selected[0]["id"], selected[len(selected) // 2]["id"], selected[-1]["id"]]
    with serving(published / "data") as server:
        answers = [server.get(f"/v3/profiles/{profile_id}").json() for profile_id in ids]
    assert done("get", *ids, "--json").json()["profiles"] == answers
