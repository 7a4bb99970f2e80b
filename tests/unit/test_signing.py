"""Signatures of versions and orders: what was not signed just so is refused, whatever was done to it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from kserve.errors import SettingError, SnapshotError, StorageError
from kserve.snapshots import durable
from kserve.snapshots.signing import (
    SIGNATURE,
    SIGNED,
    Order,
    Signature,
    Signer,
    Trust,
    admit,
    check_order,
    check_version,
    create,
    decode_order,
    encode_order,
    sign_order,
    sign_version,
)

VERSION = "20261121T040000Z-9f2c41ab"
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
ANYWHERE = Path("CURRENT")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the keys one, two and three."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("one", "two", "three"):
        create(folder / name)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A version, as far as signatures are concerned."""
    folder = tmp_path / VERSION
    folder.mkdir()
    (folder / "snapshot.kss").write_bytes(bytes(range(96)))
    (folder / "manifest.json").write_text('{"profiles": 2}\n')
    (folder / "opted_out.u64").write_bytes(bytes(24))
    return folder


@pytest.fixture
def signer(keys: Path) -> Signer:
    return Signer.load(keys / "one")


@pytest.fixture
def trust(keys: Path) -> Trust:
    return Trust.load(keys / "one.pub")


def refused(check: str, act: Callable[[], object]) -> str:
    """What a check said when it refused."""
    with pytest.raises(SnapshotError) as caught:
        act()
    assert caught.value.check == check
    return str(caught.value)


# Keys.


def test_a_key_is_two_files_of_which_one_is_secret(tmp_path: Path) -> None:
    signer = create(tmp_path / "new" / "night")
    private, public = tmp_path / "new" / "night", tmp_path / "new" / "night.pub"
    assert [oct(file.stat().st_mode & 0o7777) for file in (private, public)] == ["0o600", "0o644"]
    assert private.read_text().startswith("-----BEGIN PRIVATE KEY-----")
    assert public.read_text().startswith("-----BEGIN PUBLIC KEY-----")
    assert signer.key_id == Signer.load(private).key_id
    assert Trust.load(public).key_ids == (signer.key_id,)
    assert len(signer.key_id) == 16
    assert signer.public_pem() == public.read_bytes()


def test_a_key_has_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        create(tmp_path / "key")
    finally:
        os.umask(before)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("there", ["key", "key.pub"])
def test_a_key_is_never_overwritten(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("precious")
    with pytest.raises(SettingError, match=f"{there} exists"):
        create(tmp_path / "key")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {there: "precious"}


@pytest.mark.parametrize("successes", range(3))
def test_a_disk_that_fails_leaves_no_part_of_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, successes: int
) -> None:
    calls = itertools.count()
    sync = os.fsync

    def fail(descriptor: int) -> None:
        if next(calls) == successes:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(durable.os, "fsync", fail)
    with pytest.raises(StorageError, match="No space left"):
        create(tmp_path / "key")
    assert [path.name for path in tmp_path.iterdir()] == (["key.pub"] if successes == 2 else [])


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o610])
def test_a_key_that_others_can_reach_is_refused_with_the_remedy(keys: Path, tmp_path: Path, mode: int) -> None:
    key = Path(shutil.copy(keys / "one", tmp_path / "key"))
    key.chmod(mode)
    with pytest.raises(SettingError, match=rf"mode {mode:04o}.*chmod 600 {key}"):
        Signer.load(key)
    key.chmod(0o400)
    assert Signer.load(key).key_id == Signer.load(keys / "one").key_id


def pem(private: ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey, phrase: bytes = b"") -> bytes:
    encryption = BestAvailableEncryption(phrase) if phrase else NoEncryption()
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def public_pem(public: rsa.RSAPublicKey) -> bytes:
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def test_what_is_no_key_of_ours_is_refused(tmp_path: Path) -> None:
    alien = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    mine = ed25519.Ed25519PrivateKey.generate()
    file = tmp_path / "key"
    file.touch(mode=0o600)
    for content in (b"", b"garbage", pem(alien), pem(mine, b"phrase"), public_pem(alien.public_key())):
        file.write_bytes(content)
        with pytest.raises(SettingError, match="no Ed25519 private key"):
            Signer.load(file)
    for content in (b"", b"garbage", public_pem(alien.public_key()), pem(mine)):
        file.write_bytes(content)
        with pytest.raises(SettingError, match="no Ed25519 public key"):
            Trust.load(file)


def test_a_key_that_is_not_there_is_named(tmp_path: Path) -> None:
    for load in (Signer.load, Trust.load):
        with pytest.raises(SettingError, match="nowhere: No such file"):
            load(tmp_path / "nowhere")
    with pytest.raises(SettingError, match=r"there is no \*\.pub"):
        Trust.load(tmp_path)


def test_trust_in_a_folder_is_trust_in_its_public_keys(keys: Path) -> None:
    every = [Signer.load(keys / name) for name in ("one", "two", "three")]
    assert Trust.load(keys).key_ids == tuple(sorted(signer.key_id for signer in every))


@given(payload=st.binary(max_size=100), other=st.binary(max_size=100))
def test_a_signature_is_of_one_payload(keys: Path, payload: bytes, other: bytes) -> None:
    signer, trust = Signer.load(keys / "one"), Trust.load(keys)
    signature = signer.sign(payload)
    trust.verify(payload, signature, ANYWHERE)
    if other != payload:
        assert "did not sign this" in refused("signature", lambda: trust.verify(other, signature, ANYWHERE))


@pytest.mark.parametrize("value", ["", "!", "AAAA", "ä"])
def test_a_signature_that_is_none_is_refused(signer: Signer, trust: Trust, value: str) -> None:
    signature = Signature(signer.key_id, value)
    refused("signature", lambda: trust.verify(b"payload", signature, ANYWHERE))


# Versions.


def test_a_signed_version_is_trusted(folder: Path, signer: Signer, trust: Trust) -> None:
    seal = sign_version(folder, signer)
    assert check_version(folder, trust) == seal
    assert set(seal.files) == set(SIGNED)
    assert (folder / SIGNATURE).stat().st_mode & 0o777 == 0o444
    assert {path.name for path in folder.iterdir()} == {*SIGNED, SIGNATURE}


def test_an_old_version_without_opt_outs_can_be_signed(folder: Path, signer: Signer, trust: Trust) -> None:
    (folder / "opted_out.u64").unlink()
    sign_version(folder, signer)
    assert set(check_version(folder, trust).files) == {"snapshot.kss", "manifest.json"}
    (folder / "opted_out.u64").write_bytes(bytes(8))
    assert "does not name this file" in refused("signature", lambda: check_version(folder, trust))


def test_signing_again_replaces_the_signature(folder: Path, keys: Path) -> None:
    for name in ("one", "two"):
        (folder / f".{SIGNATURE}").write_text("of a publisher that was killed")
        sign_version(folder, Signer.load(keys / name))
        check_version(folder, Trust.load(keys / f"{name}.pub"))
        assert not (folder / f".{SIGNATURE}").exists()


def test_a_version_without_a_signature_is_refused(folder: Path, trust: Trust) -> None:
    assert "it is missing" in refused("signature", lambda: check_version(folder, trust))


@pytest.mark.parametrize("name", SIGNED)
def test_every_changed_bit_of_every_file_is_seen(folder: Path, signer: Signer, trust: Trust, name: str) -> None:
    sign_version(folder, signer)
    content = (folder / name).read_bytes()
    for position in range(8 * len(content)):
        changed = bytearray(content)
        changed[position // 8] ^= 1 << position % 8
        (folder / name).write_bytes(changed)
        assert "was changed" in refused("signature", lambda: check_version(folder, trust))


@pytest.mark.parametrize("name", SIGNED)
def test_a_file_of_another_length_is_seen(folder: Path, signer: Signer, trust: Trust, name: str) -> None:
    sign_version(folder, signer)
    content = (folder / name).read_bytes()
    for changed in (b"", content[:-1], content[1:], content + b"\0"):
        (folder / name).write_bytes(changed)
        assert "was changed" in refused("signature", lambda: check_version(folder, trust))
    (folder / name).unlink()
    assert "is missing" in refused("signature", lambda: check_version(folder, trust))


def test_every_changed_bit_of_the_signature_is_seen(folder: Path, signer: Signer, trust: Trust) -> None:
    """But those that mean the same: white space at the end, and the bits of base64 that stand for nothing."""
    seal = sign_version(folder, signer)
    content = (folder / SIGNATURE).read_bytes()
    (folder / SIGNATURE).chmod(0o600)
    without_meaning = 0
    for position in range(8 * len(content)):
        changed = bytearray(content)
        changed[position // 8] ^= 1 << position % 8
        (folder / SIGNATURE).write_bytes(changed)
        with contextlib.suppress(SnapshotError):
            found = check_version(folder, trust)
            assert (found.version, found.files) == (seal.version, seal.files)
            without_meaning += 1
    assert without_meaning < 10


def test_a_truncated_signature_is_seen(folder: Path, signer: Signer, trust: Trust) -> None:
    sign_version(folder, signer)
    content = (folder / SIGNATURE).read_bytes().rstrip()
    (folder / SIGNATURE).chmod(0o600)
    for length in range(len(content)):
        (folder / SIGNATURE).write_bytes(content[:length])
        refused("signature", lambda: check_version(folder, trust))


def test_the_signature_of_another_version_is_refused(folder: Path, signer: Signer, trust: Trust) -> None:
    sign_version(folder, signer)
    other = folder.with_name("20261122T040000Z-9f2c41ab")
    folder.rename(other)
    assert f"that of {VERSION}" in refused("signature", lambda: check_version(other, trust))


def test_a_signature_cannot_name_a_file_elsewhere(folder: Path, signer: Signer, trust: Trust) -> None:
    sign_version(folder, signer)
    seal = json.loads((folder / SIGNATURE).read_bytes())
    seal["files"]["../CURRENT"] = seal["files"].pop("opted_out.u64")
    (folder / SIGNATURE).chmod(0o600)
    (folder / SIGNATURE).write_text(json.dumps(seal))
    assert "cannot be read" in refused("signature", lambda: check_version(folder, trust))


def test_while_keys_are_rotated_both_are_trusted(folder: Path, keys: Path, tmp_path: Path) -> None:
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    shutil.copy(keys / "one.pub", trusted)
    sign_version(folder, Signer.load(keys / "one"))
    check_version(folder, Trust.load(trusted))
    shutil.copy(keys / "two.pub", trusted)
    check_version(folder, Trust.load(trusted))
    (trusted / "one.pub").unlink()
    said = refused("signature", lambda: check_version(folder, Trust.load(trusted)))
    assert Signer.load(keys / "one").key_id in said
    assert "is not trusted here" in said
    sign_version(folder, Signer.load(keys / "two"))
    check_version(folder, Trust.load(trusted))


def test_a_key_that_claims_another_id_is_refused(folder: Path, keys: Path, trust: Trust) -> None:
    seal = msgspec.structs.replace(sign_version(folder, Signer.load(keys / "two")), key=trust.key_ids[0])
    (folder / SIGNATURE).chmod(0o600)
    (folder / SIGNATURE).write_bytes(msgspec.json.encode(seal))
    assert "did not sign this" in refused("signature", lambda: check_version(folder, trust))


# Orders.


def order(number: int = 1, version: str = VERSION, **changes: object) -> Order:
    return msgspec.structs.replace(Order("announce", version, None, number, NOON), **changes)


def test_an_order_is_one_line_and_survives_it(signer: Signer, trust: Trust) -> None:
    signed = sign_order(order(previous="20261120T040000Z-00000000"), signer)
    line = encode_order(signed)
    assert b"\n" not in line
    assert decode_order(line, ANYWHERE) == signed
    check_order(decode_order(line, ANYWHERE), trust, ANYWHERE)


def test_an_order_that_nobody_signed_is_refused(trust: Trust) -> None:
    assert "nobody signed" in refused("signature", lambda: check_order(order(), trust, ANYWHERE))


@pytest.mark.parametrize(
    "change",
    [
        {"act": "rollback"},
        {"version": "20261122T040000Z-9f2c41ab"},
        {"previous": VERSION},
        {"number": 2},
        {"at": NOON + timedelta(seconds=1)},
        {"key": "0" * 16},
        {"value": "AAAA"},
    ],
)
def test_every_field_of_an_order_is_signed(signer: Signer, trust: Trust, change: dict[str, object]) -> None:
    changed = msgspec.structs.replace(sign_order(order(), signer), **change)
    refused("signature", lambda: check_order(changed, trust, ANYWHERE))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"act":"announce","version":"x","previous":null,"number":1,"at":"2026-11-21T12:00:00Z"}',
        b'{"act":"erase","version":"%s","previous":null,"number":1,"at":"2026-11-21T12:00:00Z"}' % VERSION.encode(),
        b'{"act":"announce","version":"%s","previous":null,"number":0,"at":"2026-11-21T12:00:00Z"}' % VERSION.encode(),
        b'{"act":"announce","version":"%s","previous":null,"number":1,"at":"2026-11-21T12:00:00"}' % VERSION.encode(),
    ],
)
def test_a_line_that_is_no_order_is_refused(line: bytes) -> None:
    refused("order", lambda: decode_order(line, ANYWHERE))


def test_the_signature_of_a_version_is_not_that_of_an_order(folder: Path, signer: Signer, trust: Trust) -> None:
    seal = sign_version(folder, signer)
    swapped = order(key=seal.key, value=seal.value)
    refused("signature", lambda: check_order(swapped, trust, ANYWHERE))


EARLIER, LATER = "20261120T040000Z-00000000", "20261122T040000Z-00000000"
REBUILT = "20261121T040000Z-ffffffff"


@pytest.mark.parametrize(
    ("act", "version", "number", "admitted"),
    [
        ("announce", LATER, 6, True),
        ("announce", VERSION, 6, True),
        ("announce", REBUILT, 6, True),
        ("announce", EARLIER, 6, False),
        ("rollback", EARLIER, 6, True),
        ("announce", LATER, 5, False),
        ("announce", LATER, 4, False),
        ("rollback", EARLIER, 5, False),
        ("rollback", EARLIER, 4, False),
    ],
)
def test_an_old_version_needs_a_new_rollback(act: str, version: str, number: int, admitted: bool) -> None:
    highest = order(5)
    fresh = order(number, version, act=act, previous=VERSION)
    admit(highest, VERSION, highest)
    admit(fresh, version, None)
    if admitted:
        admit(fresh, version, highest)
    else:
        refused("order", lambda: admit(fresh, version, highest))


def test_an_order_is_for_the_version_that_it_stands_beside() -> None:
    assert "it orders" in refused("order", lambda: admit(order(), LATER, None))


class Readers(RuleBasedStateMachine):
    """A publisher, a reader who sees some of its orders, and somebody who writes what he likes where they are read."""

    @initialize()
    def begin(self) -> None:
        self.publisher, self.stranger = (Signer(ed25519.Ed25519PrivateKey.generate()) for _ in range(2))
        self.retired: set[str] = set()
        self.issued: list[Order] = []
        self.nights = 0
        self.highest: Order | None = None
        self.announce(seen=True)

    def trust(self) -> Trust:
        return Trust({self.publisher.key_id: self.publisher._private.public_key()})

    def read(self, order: Order, version: str) -> bool:
        """What a reader does with CURRENT; whether it obeys."""
        try:
            found = decode_order(encode_order(order), ANYWHERE)
            check_order(found, self.trust(), ANYWHERE)
            admit(found, version, self.highest)
        except SnapshotError:
            return False
        self.highest = found
        return True

    def issue(self, act: str, version: str, seen: bool) -> None:
        previous = self.issued[-1].version if self.issued else None
        number = self.issued[-1].number + 2 if self.issued else 1
        bare = msgspec.structs.replace(order(number, version), act=act, previous=previous)
        self.issued.append(sign_order(bare, self.publisher))
        if seen:
            assert self.read(self.issued[-1], version)

    @rule(seen=st.booleans())
    def announce(self, seen: bool) -> None:
        self.nights += 1
        self.issue("announce", f"{NOON + timedelta(days=self.nights):%Y%m%dT%H%M%SZ}-{self.nights:08x}", seen)

    @rule(data=st.data(), seen=st.booleans())
    def roll_back(self, data: st.DataObject, seen: bool) -> None:
        self.issue("rollback", data.draw(st.sampled_from(self.issued)).version, seen)

    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        old = data.draw(st.sampled_from(self.issued))
        newer = self.highest is None or old.number >= self.highest.number
        assert self.read(old, old.version) <= (newer and old.key not in self.retired)

    @rule(data=st.data())
    def swap_version(self, data: st.DataObject) -> None:
        one, other = (data.draw(st.sampled_from(self.issued)) for _ in range(2))
        if one.version != other.version:
            assert not self.read(one, other.version)

    @rule(data=st.data())
    def forge(self, data: st.DataObject) -> None:
        wanted = msgspec.structs.replace(data.draw(st.sampled_from(self.issued)), number=10**9)
        assert not self.read(wanted, wanted.version)
        assert not self.read(sign_order(wanted, self.stranger), wanted.version)
        claimed = msgspec.structs.replace(sign_order(wanted, self.stranger), key=self.publisher.key_id)
        assert not self.read(claimed, wanted.version)

    @precondition(lambda self: len(self.retired) < 3)
    @rule()
    def rotate(self) -> None:
        self.retired.add(self.publisher.key_id)
        self.publisher = Signer(ed25519.Ed25519PrivateKey.generate())
        self.announce(seen=True)

    @rule()
    def catch_up(self) -> None:
        latest = self.issued[-1]
        assert self.read(latest, latest.version)
        assert self.highest == latest


TestReaders = Readers.TestCase
