"""Keys: made once, kept as an HMAC, and refused in one way only."""

from __future__ import annotations

import hmac
import sqlite3
import stat
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve.errors import ArgumentError, InputError, SettingError, StorageError, UnknownKey
from kserve.serving.keys import DEFAULT_TIER, PREFIX, SCOPES, Keys, Watched

HOUR = timedelta(hours=1)


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
    with pytest.raises(ArgumentError, match="is no name"):
        keys.create(partner, ["console"])


def test_scopes_that_there_are_not(keys: Keys) -> None:
    with pytest.raises(ArgumentError, match="no scope 'root'; there are score:read"):
        keys.create("maria", ["console", "root"])
    with pytest.raises(ArgumentError, match="needs a scope"):
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
    key, text = keys.create("maria", ["console"])
    (tmp_path / "pepper").rename(tmp_path / "kept")
    assert keys.check(text, "console") is None
    for act in (keys.book, lambda: keys.rotate(key.id, HOUR)):
        with pytest.raises(SettingError, match="is gone"):
            act()
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


def downgrade(data: Path) -> None:
    """The database as it was before there were tiers."""
    with closing(sqlite3.connect(data / "keys.db")) as connection, connection:
        for column in ("tier", "old_digest", "old_until"):
            connection.execute(f"ALTER TABLE keys DROP COLUMN {column}")


def test_a_database_without_tiers_is_read_and_brought_up_to_date(keys: Keys, tmp_path: Path) -> None:
    key, text = keys.create("maria", ["console"], tier="site")
    downgrade(tmp_path)
    (old,) = keys.listed()
    assert (old.id, old.tier, old.old_until) == (key.id, DEFAULT_TIER, None)
    assert keys.check(text, "console") == old == next(iter(keys.book()))
    other, _ = keys.create("joe", ["batch"], tier="site")
    assert [found.tier for found in keys.listed()] == [DEFAULT_TIER, "site"]
    assert keys.listed() == [old, other]
    assert keys.check(text, "console") == old


def test_both_secrets_are_valid_until_the_overlap_ends(keys: Keys, tmp_path: Path) -> None:
    key, old = keys.create("maria", ["console"], tier="site")
    rotated, new = keys.rotate(key.id, HOUR)
    assert old != new
    assert (rotated.id, rotated.tier, rotated.scopes, rotated.rotating) == (key.id, "site", key.scopes, True)
    assert keys.check(old, "console") == keys.check(new, "console") == rotated
    matches = [keys.book().match(text) for text in (old, new)]
    assert [match and match.ends for match in matches] == [rotated.old_until, None]
    with closing(sqlite3.connect(tmp_path / "keys.db")) as connection, connection:
        connection.execute("UPDATE keys SET old_until = ?", ((datetime.now(UTC)).isoformat(),))
    assert keys.check(old, "console") is None
    assert keys.check(new, "console") is not None
    assert not keys.show(key.id).rotating


def test_a_key_has_two_secrets_at_most(keys: Keys) -> None:
    key, first = keys.create("maria", ["console"])
    _, second = keys.rotate(key.id, HOUR)
    with pytest.raises(InputError, match="two secrets until"):
        keys.rotate(key.id, HOUR)
    _, third = keys.rotate(key.id, timedelta(0))
    assert [keys.check(text, "console") is None for text in (first, second, third)] == [True, True, False]


def test_revoking_ends_both_secrets(keys: Keys) -> None:
    key, old = keys.create("maria", ["console"])
    _, new = keys.rotate(key.id, HOUR)
    keys.revoke(key.id)
    assert keys.check(old, "console") is keys.check(new, "console") is None
    with pytest.raises(InputError, match="is revoked"):
        keys.rotate(key.id, HOUR)
    with pytest.raises(UnknownKey):
        keys.rotate("x" * 12, HOUR)


def test_an_expired_key_is_not_kept_alive_by_its_rotation(keys: Keys) -> None:
    key, old = keys.create("maria", ["console"], timedelta(hours=1))
    rotated, new = keys.rotate(key.id, timedelta(days=1))
    book = keys.book()
    for text in (old, new):
        match = book.match(text)
        assert match is not None
        assert match.ends == key.expires_at == rotated.expires_at


@pytest.fixture
def copy(tmp_path: Path) -> Keys:
    """Keys of another directory, which is not made yet."""
    return Keys(tmp_path / "copies" / "data")


def test_a_copy_has_all_keys_and_what_they_were_made_with(keys: Keys, copy: Keys) -> None:
    _, one = keys.create("maria", ["console"], HOUR, tier="site")
    key, old = keys.create("joe", ["batch"])
    _, new = keys.rotate(key.id, HOUR)
    for _ in range(2):
        assert keys.copy_to(copy.database.parent) == 2
        assert copy.listed() == keys.listed()
        assert {file.name: stat.S_IMODE(file.stat().st_mode) for file in copy.database.parent.iterdir()} == {
            "keys.db": 0o600,
            "pepper": 0o600,
        }
        assert copy.check(one, "console") is not None
        assert copy.check(old, "batch") == copy.check(new, "batch") == keys.show(key.id)
    keys.revoke(key.id)
    keys.copy_to(copy.database.parent)
    assert copy.check(new, "batch") is None


def test_nothing_is_copied_when_there_is_nothing(keys: Keys, copy: Keys) -> None:
    with pytest.raises(InputError, match="has no keys"):
        keys.copy_to(copy.database.parent)
    assert not copy.database.parent.exists()


@pytest.mark.parametrize("act", ["made", "revoked", "rotated"])
def test_a_copy_undoes_nothing_that_was_done_there(keys: Keys, copy: Keys, act: str) -> None:
    key, _ = keys.create("maria", ["console"])
    keys.copy_to(copy.database.parent)
    if act == "made":
        copy.create("joe", ["console"])
    elif act == "revoked":
        copy.revoke(key.id)
    else:
        copy.rotate(key.id, timedelta(0))
    kept = copy.listed()
    with pytest.raises(InputError, match=f"was {act} there"):
        keys.copy_to(copy.database.parent)
    assert copy.listed() == kept


def test_a_copy_does_not_mix_peppers(keys: Keys, copy: Keys) -> None:
    keys.create("maria", ["console"])
    copy.database.parent.mkdir(parents=True)
    copy.pepper_file.write_bytes(bytes(32))
    copy.pepper_file.chmod(0o600)
    with pytest.raises(InputError, match="is another than"):
        keys.copy_to(copy.database.parent)
    assert copy.listed() == []
    assert copy.pepper_file.read_bytes() == bytes(32)


def wrong_texts(keys: Keys) -> list[str]:
    """One of every kind that is refused."""
    _, text = keys.create("maria", ["console"])
    revoked, gone = keys.create("maria", ["console"])
    keys.revoke(revoked.id)
    _, over = keys.create("maria", ["console"], timedelta(seconds=-1))
    unknown = f"{PREFIX}{'x' * 12}{text[len(PREFIX) + 12 :]}"
    wrong = f"{text[:-10]}{'a' if text[-10] != 'a' else 'b'}{text[-9:]}"
    return [gone, over, unknown, wrong, f"{text[:-1]}#", text[:-1], "", "ks_live_\ud800", "x" * 10_000]


def test_every_refusal_costs_the_same(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """One HMAC of the same length, two comparisons with it and one of the checksum, and no file is looked at."""
    texts, book = wrong_texts(keys), keys.book()
    acts: list[tuple[Any, ...]] = []

    def digest(key: bytes, message: bytes, kind: Any) -> bytes:
        acts.append(("digest", len(key), len(message)))
        return bytes(range(32))

    def compare(one: Any, other: Any) -> bool:
        acts.append(("compare", len(one), len(other)))
        return True

    monkeypatch.setattr(hmac, "digest", digest)
    monkeypatch.setattr(hmac, "compare_digest", compare)
    monkeypatch.setattr(Keys, "connect", None)
    done = []
    for text in texts:
        acts.clear()
        book.match(text)
        done.append(tuple(acts))
    assert set(done) == {(("digest", 32, 45), *[("compare", 32, 32)] * 2, ("compare", 6, 6))}


def test_a_book_takes_what_has_not_changed_from_the_one_before(keys: Keys, tmp_path: Path) -> None:
    one, _ = keys.create("maria", ["console"])
    two, _ = keys.create("joe", ["console"])
    first = keys.book()
    assert (len(first), keys.book(first).changed_since(first)) == (2, set())
    keys.revoke(one.id)
    three, _ = keys.create("eve", ["batch"])
    second = keys.book(first)
    assert second.changed_since(first) == {one.id, three.id}
    assert second.records[two.id] is first.records[two.id]
    (tmp_path / "pepper").write_bytes(bytes(32))
    assert keys.book(second).changed_since(second) is None


def test_what_is_watched_differs_when_something_has_changed(keys: Keys, tmp_path: Path) -> None:
    watched = Watched(keys)
    states = [watched.state()]
    assert states[0] == watched.state()

    def changed() -> bool:
        states.append(watched.state())
        return states[-1] not in states[:-1] and states[-1] == watched.state()

    key, _ = keys.create("maria", ["console"])
    assert changed()
    keys.rotate(key.id, HOUR)
    assert changed()
    keys.revoke(key.id)
    assert changed()
    (tmp_path / "pepper").write_bytes(bytes(32))
    assert changed()
    copy = tmp_path / "copy"
    copy.write_bytes((tmp_path / "keys.db").read_bytes())
    copy.rename(tmp_path / "keys.db")
    assert changed()
    (tmp_path / "keys.db").unlink()
    with pytest.raises(StorageError, match="is gone"):
        watched.state()
    keys.create("maria", ["console"])
    assert changed()
    watched.close()
