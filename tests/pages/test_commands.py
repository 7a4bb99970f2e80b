"""keys and status-page: the commands."""

from __future__ import annotations

import json
import signal
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cli.support import done, ended, run, started

from kserve.serving.keys import Keys


def create(data: Path, *options: str) -> dict[str, str]:
    return dict(done("keys", "create", "--partner", "maria", "--data", data, "--json", *options).json())


def test_a_key_from_beginning_to_end(tmp_path: Path) -> None:
    made = create(tmp_path, "--scopes", "console", "--scopes", "score:read,batch")
    assert made["scopes"] == ["score:read", "batch", "console"]
    key = Keys(tmp_path).check(made["key"], "console")
    assert key is not None
    (listed,) = done("keys", "list", "--data", tmp_path, "--json").json()["keys"]
    shown = done("keys", "show", made["id"], "--data", tmp_path, "--json").json()
    assert listed == shown == {name: value for name, value in made.items() if name != "key"}
    revoked = done("keys", "revoke", made["id"], "--data", tmp_path, "--json").json()
    assert revoked["state"] == "revoked"
    assert Keys(tmp_path).check(made["key"], "console") is None


def test_a_key_with_a_tier_is_rotated(tmp_path: Path) -> None:
    made = create(tmp_path, "--scopes", "score:read", "--tier", "site")
    assert (made["tier"], made["old_until"]) == ("site", None)
    rotated = done("keys", "rotate", made["id"], "--overlap", "2h", "--data", tmp_path, "--json").json()
    assert (rotated["id"], rotated["tier"], rotated["state"]) == (made["id"], "site", "live")
    assert datetime.fromisoformat(rotated["old_until"]) - datetime.now(UTC) > timedelta(minutes=119)
    for text in (made["key"], rotated["key"]):
        assert Keys(tmp_path).check(text, "score:read") is not None
    assert "live, two secrets" in done("keys", "list", "--data", tmp_path).out
    out = done("keys", "show", made["id"], "--data", tmp_path).out
    assert "until " in out.partition("old secret")[2]
    error = run("keys", "rotate", made["id"], "--data", tmp_path, "--json").error()
    assert (error["slug"], "two secrets" in error["message"]) == ("bad-input", True)
    out = done("keys", "rotate", made["id"], "--overlap", "0h", "--data", tmp_path).out
    assert "it is not shown again" in out
    assert Keys(tmp_path).check(rotated["key"], "score:read") is None


def test_as_people_see_it(tmp_path: Path) -> None:
    assert "there are no keys" in done("keys", "list", "--data", tmp_path).out
    out = done("keys", "create", "--partner", "maria", "--scopes", "console", "--data", tmp_path).out
    assert "it is not shown again" in out
    secret = out.partition("ks_live_")[2].split()[0]
    listed = done("keys", "list", "--data", tmp_path).out
    assert "maria" in listed
    assert secret not in listed


@pytest.mark.parametrize(
    "text",
    ["90d", "12h", "1w", (datetime.now(UTC) + timedelta(days=3)).isoformat()],
    ids=["days", "hours", "weeks", "a time"],
)
def test_expiry(tmp_path: Path, text: str) -> None:
    made = create(tmp_path, "--scopes", "console", "--expires", text)
    assert datetime.fromisoformat(made["expires_at"]) > datetime.now(UTC) + timedelta(hours=11)
    assert made["state"] == "live"


@pytest.mark.parametrize("text", ["tomorrow", "2026-01-01", "-1d", "1d2"])
def test_expiry_that_is_none(tmp_path: Path, text: str) -> None:
    command = ("keys", "create", "--partner", "x", "--scopes", "console", "--expires", text)
    assert run(*command, "--data", tmp_path, "--json").error()["exit_code"] == 2


def test_errors(tmp_path: Path) -> None:
    command = ("keys", "create", "--partner", "x", "--data", tmp_path, "--json")
    for wrong in (("--scopes", "root"), ("--scopes", ""), ("--scopes", "batch", "--partner", "")):
        error = run(*command, *wrong).error()
        assert (error["slug"], error["exit_code"]) == ("usage", 2)
    error = run(*command, "--scopes", "batch", "--tier", "gold").error()
    assert (error["slug"], "developer, partner, site" in error["message"]) == ("usage", True)
    for text in ("soon", "2099-01-01T00:00:00Z", "-1h", "h", "8s", ""):
        error = run("keys", "rotate", "nobody", "--overlap", text, "--data", tmp_path, "--json").error()
        assert (error["exit_code"], f"{text!r} is no duration, such as" in error["message"]) == (2, True)
    for act in ("show", "revoke", "rotate"):
        error = run("keys", act, "nobody", "--data", tmp_path, "--json").error()
        assert (error["slug"], error["exit_code"]) == ("unknown-key", 4)


def test_a_key_that_is_not_live_is_not_rotated(tmp_path: Path) -> None:
    made = create(tmp_path, "--scopes", "console")["id"]
    rotate = ("keys", "rotate", made, "--data", tmp_path, "--json")
    done(*rotate)
    assert run(*rotate).error()["exit_code"] == 5
    done("keys", "revoke", made, "--data", tmp_path)
    error = run(*rotate).error()
    assert (error["slug"], error["exit_code"], error["remedy"]) == (
        "bad-input",
        5,
        "make a new one with `kserve keys create`",
    )


def test_a_fault_in_the_settings_keeps_no_key_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "elsewhere"
    key = create(data, "--scopes", "console")["id"]
    file = tmp_path / "faulty.toml"
    monkeypatch.setenv("KSERVE_CONFIG", str(file))
    file.write_text(f'data = "{data}"\n[tiers.partner]\nrate = -3\n')
    for where in ((), ("--data", data)):
        assert [one["id"] for one in done("keys", "list", *where, "--json").json()["keys"]] == [key]
        assert done("keys", "show", key, *where, "--json").json()["state"] == "live"
    error = run("keys", "create", "--partner", "x", "--scopes", "console", "--json").error()
    assert (error["slug"], error["exit_code"]) == ("setting", 8)
    file.write_text("no TOML")
    assert run("keys", "list", "--json").error()["slug"] == "setting"
    assert done("keys", "revoke", key, "--data", data, "--json").json()["state"] == "revoked"


def test_keys_are_copied(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    key = create(here, "--scopes", "console")["id"]
    assert done("keys", "copy", there, "--data", here).out == f"1 key copied to {there}\n"
    assert done("keys", "copy", there, "--data", here, "--json").json() == {"copied": 1, "to": str(there)}
    assert done("keys", "show", key, "--data", there, "--json").json()["state"] == "live"


def test_status_page_alone(tmp_path: Path) -> None:
    with started("status-page", "--port", 0, "--json", "--data", tmp_path) as popen:
        assert popen.stdout is not None
        address = json.loads(popen.stdout.readline())["address"]
        with urllib.request.urlopen(f"{address}/status.json", timeout=20) as answer:
            document = json.load(answer)
        result = ended(popen, signal.SIGTERM)
    assert document["unknown"] == ["No scores are published yet."]
    assert document["snapshot"] is None
    assert (result.code, result.out) == (0, "")
