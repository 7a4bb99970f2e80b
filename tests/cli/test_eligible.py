"""eligible: the same verdicts as the core, from flags, files and standard input."""

from __future__ import annotations

import io
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
from cli.support import done, run

import kserve
from kserve.cli import app
from kserve.rule import Rule

FLAGS = ("--min-score", "30", "--location", "US", "--location", "IN")
RULE = {"min_score": 30.0, "locations": ["US", "IN"]}


@pytest.fixture
def store(published: Path) -> Any:
    with kserve.open("data") as opened:
        yield opened


def test_count_and_select(store: kserve.Store) -> None:
    document = done("eligible", *FLAGS, "--count", "--select", 5, "--json").json()
    assert document.keys() == {"version", "rule", "count", "selected"}
    assert document["rule"] == RULE
    assert document["count"] == store.count(RULE) > 5
    ids = [int(one["id"]) for one in document["selected"]]
    assert ids == store.select(RULE, 5).tolist()
    assert [one["score"] for one in document["selected"]] == [store.score(profile_id) for profile_id in ids]
    text = done("eligible", *FLAGS, "--count", "--select", 5).out
    assert f"{document['count']:,} of {store.snapshot().profiles:,} profiles are eligible" in text
    assert [line.split()[0] for line in text.splitlines()[-5:]] == [one["id"] for one in document["selected"]]


def test_unscored_profiles_are_selected_last_and_without_a_number(store: kserve.Store) -> None:
    profiles = store.snapshot().profiles
    assert done("eligible", "--rule", "{}", "--select", profiles, "--json").json()["selected"][-1]["score"] is None
    assert done("eligible", "--rule", "{}", "--select", profiles).out.splitlines()[-1].endswith("unscored")


def test_verdicts_name_what_failed(store: kserve.Store) -> None:
    good, bad = str(store.select(RULE, 1)[0]), str(store.select({}, store.snapshot().profiles)[-1])
    document = done("eligible", *FLAGS, good, bad, "5", "--json").json()
    assert document["results"] == [
        {"id": good, "eligible": True, "failed": []},
        {"id": bad, "eligible": False, "failed": list(store.explain(RULE, int(bad)))},
        {"id": "5", "eligible": False, "failed": ["unknown"]},
    ]
    lines = done("eligible", *FLAGS, good, bad, "5").out.splitlines()
    assert lines[1] == "rule     min_score 30; locations US or IN"
    assert [line.split()[0] for line in lines[2:]] == [good, bad, "5"]
    assert [line.split("  ")[-1] for line in lines[2:]][::2] == ["eligible", "not eligible: unknown"]


def test_ids_from_a_file_and_from_standard_input(
    store: kserve.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [str(profile_id) for profile_id in store.select({}, 300)]
    (tmp_path / "ids").write_text("\n".join(ids) + "\n\n")
    results = done("eligible", *FLAGS, "--ids", tmp_path / "ids", "--json").json()["results"]
    assert [one["id"] for one in results] == ids
    assert [one["eligible"] for one in results] == [store.eligible(RULE, int(profile_id)) for profile_id in ids]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\r\n".join(ids).encode())))
    assert done("eligible", *FLAGS, "--ids", "-", "--json").json()["results"] == results
    (tmp_path / "none").write_text("")
    assert done("eligible", *FLAGS, "--ids", tmp_path / "none", "--json").json()["results"] == []


def test_ids_that_are_none(published: Path, tmp_path: Path) -> None:
    (tmp_path / "ids").write_bytes(b"1\n\n2 \n\xff\n")
    error = run("eligible", *FLAGS, "--ids", tmp_path / "ids", "--json").error()
    assert (error["slug"], error["row"]) == ("bad-input", 4)
    assert run("eligible", *FLAGS, "--ids", tmp_path / "nothing", "--json").error()["slug"] == "bad-input"
    assert run("eligible", *FLAGS, "1.5", "--json").error()["slug"] == "usage"


def test_rule_from_a_file_with_flags_on_top(store: kserve.Store, tmp_path: Path) -> None:
    (tmp_path / "rule.json").write_text(json.dumps({"min_score": 10, "locations": ["DE"]}))
    document = done("eligible", "--rule", tmp_path / "rule.json", *FLAGS, "--count", "--json").json()
    assert document["rule"] == RULE
    document = done("eligible", "--rule", ' {"min_score": 10}', "--max-score", 20, "--count", "--json").json()
    assert document["rule"] == {"min_score": 10, "max_score": 20.0}


@pytest.mark.parametrize(
    "rule",
    [
        ("--rule", "{"),
        ("--rule", "[1]"),
        ("--rule", "no-such-file"),
        ("--rule", '{"shoe_size": 42}'),
        ("--rule", '{"min_score": "high"}'),
        ("--min-score", "101"),
        ("--min-score", "50", "--max-score", "40"),
        ("--any-topic", "no-such-topic"),
        ("--min-topic-score", "5"),
        ("--location", "/"),
    ],
)
def test_rules_that_make_no_sense(published: Path, rule: tuple[str, ...]) -> None:
    error = run("eligible", *rule, "--count", "--json").error()
    assert (error["slug"], error["exit_code"]) == ("bad-rule", 5)


@pytest.mark.parametrize("arguments", [FLAGS, ("--count",), ("--min-score", "high", "--count"), ("--select", "0")])
def test_half_a_question(published: Path, arguments: tuple[str, ...]) -> None:
    assert run("eligible", *arguments, "--json").error()["slug"] == "usage"


def test_every_criterion_has_a_flag() -> None:
    command = typer.main.get_command(app).commands["eligible"]  # type: ignore[attr-defined]  # it is a group
    assert {field.name for field in fields(Rule)} < {parameter.name for parameter in command.params}
