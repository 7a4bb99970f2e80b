"""`kserve keys signing`: keys that sign, and that are trusted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kserve.cli.keys import signing_app
from kserve.errors import SettingError
from kserve.snapshots.signing import create


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with the keys one and two."""
    for name in ("one", "two"):
        create(tmp_path / "keys" / name)
    return tmp_path / "keys"


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    signing_app([*words, "--json"], standalone_mode=False)
    document: dict[str, object] = json.loads(capsys.readouterr().out)
    return document


def test_commands_create_show_and_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made = shown(capsys, "create", "keys/2026")
    assert (made["private"], made["public"]) == ("keys/2026", "keys/2026.pub")
    for name in ("keys/2026", "keys/2026.pub"):
        assert shown(capsys, "show", name)["key"] == made["key"]
    assert shown(capsys, "show", "keys/2026")["public"] == (tmp_path / "keys" / "2026.pub").read_text()
    assert shown(capsys, "list") == {"keys": []}
    monkeypatch.setenv("KSERVE_SIGNING_KEY", "keys/2026")
    monkeypatch.setenv("KSERVE_TRUSTED_KEYS", "keys")
    found = shown(capsys, "list")["keys"]
    assert found == [
        {"key": made["key"], "role": "signs", "file": "keys/2026"},
        {"key": made["key"], "role": "trusted", "file": "keys/2026.pub"},
    ]
    assert shown(capsys, "show")["key"] == made["key"]


def test_list_warns_of_a_signing_key_that_is_not_trusted(keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["list", "--signing-key", str(keys / "one"), "--trusted-keys", str(keys / "two.pub")]
    signing_app(words, standalone_mode=False)
    assert "is not trusted" in capsys.readouterr().err
    signing_app([*words[:-1], str(keys)], standalone_mode=False)
    assert capsys.readouterr().err == ""


def test_show_wants_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match="set signing_key"):
        signing_app(["show"], standalone_mode=False)
