"""Keys: made once, kept as an HMAC, and refused in one way only."""

from __future__ import annotations

import stat
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve.errors import SettingError, StorageError, UnknownKey
from kserve.serving.keys import PREFIX, SCOPES, Keys


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


def test_a_key_is_what_was_asked_for(keys: Keys) -> None:
    key, text = keys.create("maria", ["console", "score:read"], timedelta(days=1))
    assert text.startswith(f"{PREFIX}{key.id}_")
    assert (key.partner, key.scopes, key.state) == ("maria", ("score:read", "console"), "live")
    assert key == keys.check(text, "console") == keys.check(text, "score:read") == keys.show(key.id) == keys.listed()[0]
    assert keys.check(text, "admin") is None
    assert keys.exist("console")
    assert not keys.exist("admin")


def test_nothing_of_the_secret_is_on_disk(keys: Keys, tmp_path: Path) -> None:
    _, text = keys.create("maria", ["console"])
    secret = text.rpartition("_")[2]
    for file in tmp_path.iterdir():
        content = file.read_bytes()
        assert secret.encode() not in content
        assert secret[:16].encode() not in content
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_revoked_and_expired_keys_are_refused(keys: Keys) -> None:
    key, text = keys.create("maria", ["console"])
    revoked = keys.revoke(key.id)
    assert revoked.state == "revoked"
    assert keys.revoke(key.id) == revoked
    expired, gone = keys.create("maria", ["console"], timedelta(seconds=-1))
    assert keys.show(expired.id).state == "expired"
    assert keys.check(text, "console") is keys.check(gone, "console") is None
    assert keys.live(key.id, "console") is keys.live(expired.id, "console") is keys.live("-", "console") is None
    assert not keys.exist("console")


def test_every_other_text_is_refused(keys: Keys) -> None:
    _, text = keys.create("maria", ["console"])
    _, other = keys.create("joe", ["console"])
    swapped = other[: len(PREFIX) + 13] + text[len(PREFIX) + 13 :]
    flipped = [f"{text[:i]}{'a' if text[i] != 'a' else 'b'}{text[i + 1 :]}" for i in range(len(text))]
    for wrong in [
        "",
        text[:-1],
        f"{text}x",
        f" {text}",
        f"{text}\n",
        text.lower(),
        swapped,
        "ks_live_\ud800",
        *flipped,
    ]:
        assert keys.check(wrong, "console") is None


@given(st.text())
def test_no_text_makes_it_fail(text: str) -> None:
    assert Keys(Path("/nonexistent")).check(text, "console") is None


@pytest.mark.parametrize("partner", ["", " maria", "a\nb", "x" * 65])
def test_names_that_are_none(keys: Keys, partner: str) -> None:
    with pytest.raises(SettingError, match="is no name"):
        keys.create(partner, ["console"])


def test_scopes_that_there_are_not(keys: Keys) -> None:
    with pytest.raises(SettingError, match="no scope 'root'; there are score:read"):
        keys.create("maria", ["console", "root"])
    with pytest.raises(SettingError, match="needs a scope"):
        keys.create("maria", [])
    assert keys.create("maria", list(SCOPES))[0].scopes == tuple(SCOPES)


@pytest.mark.parametrize("key_id", ["x", "", "\ud800", "x" * 12])
def test_ids_that_there_are_not(keys: Keys, key_id: str) -> None:
    for act in (keys.show, keys.revoke):
        with pytest.raises(UnknownKey):
            act(key_id)


def test_a_pepper_that_others_can_read_is_refused(keys: Keys, tmp_path: Path) -> None:
    _, text = keys.create("maria", ["console"])
    (tmp_path / "pepper").chmod(0o640)
    for act in (lambda: keys.check(text, "console"), lambda: keys.create("joe", ["console"])):
        with pytest.raises(SettingError, match="can be read by others"):
            act()


def test_a_pepper_that_is_gone_is_not_made_anew(keys: Keys, tmp_path: Path) -> None:
    _, text = keys.create("maria", ["console"])
    (tmp_path / "pepper").rename(tmp_path / "kept")
    assert keys.check(text, "console") is None
    with pytest.raises(SettingError, match="is gone"):
        keys.create("joe", ["console"])
    (tmp_path / "kept").rename(tmp_path / "pepper")
    assert keys.check(text, "console") is not None


def test_a_damaged_pepper_or_database_is_an_error(keys: Keys, tmp_path: Path) -> None:
    _, text = keys.create("maria", ["console"])
    (tmp_path / "pepper").write_bytes(b"short")
    with pytest.raises(SettingError, match="damaged"):
        keys.check(text, "console")
    (tmp_path / "keys.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(StorageError, match=r"keys\.db"):
        keys.listed()


def test_many_at_once_make_one_pepper(tmp_path: Path) -> None:
    made: list[str] = []
    threads = [
        threading.Thread(target=lambda: made.append(Keys(tmp_path).create("joe", ["batch"])[1])) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Keys(tmp_path).listed()) == len(made) == 8
    assert all(Keys(tmp_path).check(text, "batch") for text in made)
    assert {path.name for path in tmp_path.iterdir()} == {"keys.db", "pepper"}
