"""Ed25519 signatures: of the files of a version, and of the orders that announce versions or roll back to them.

Readers that trust keys verify both before they map a file. `docs/signing.md` tells what that keeps out, and what not.
`cryptography` is loaded when a key is: a process without keys does not pay for it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

import msgspec

from kserve.errors import SettingError, SnapshotError
from kserve.snapshots.durable import storage, sync_directory, write_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE = "signature.json"
Name = Literal["snapshot.kss", "manifest.json", "opted_out.u64"]
SIGNED: tuple[Name, ...] = get_args(Name)
"""The files of a version that somebody reads. The last may be absent, but then it must be absent."""

OPTIONAL = {"opted_out.u64"}
PUBLIC = ".pub"

_MANIFEST = b"kserve manifest 1\n"
_ORDER = b"kserve order 1\n"
"""What is signed begins with what it is, so that the signature of one thing is never that of another."""

_LONGEST = 1 << 16
"""Bytes of a key, a signature or an order; more is not read."""

_TIME = slice(0, 16)
"""The time in the name of a version; in this form, earlier is less."""

_VersionName = Annotated[str, msgspec.Meta(pattern=r"^\d{8}T\d{6}Z-[0-9a-f]{8}\Z")]
_T = TypeVar("_T")
_S = TypeVar("_S", "Seal", "Order")


class Signature(msgspec.Struct, frozen=True):
    """By which key (the first 16 hex digits of the SHA-256 of its raw public half), and the signature in base64."""

    key: str
    value: str


class Signer:
    """Signs with one private key."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.key_id = key_id(private.public_key())

    @classmethod
    def load(cls, path: Path) -> Signer:
        """Raises SettingError, also for a key that others than its owner can read."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        content, mode = _read_key(path)
        if mode & 0o077:
            raise SettingError(f"signing key {path}: others can read it (mode {mode:04o}): `chmod 600 {path}`")
        try:
            private = load_pem_private_key(content, None)
        except (ValueError, TypeError):  # TypeError: it has a passphrase
            private = None
        if not isinstance(private, Ed25519PrivateKey):
            raise SettingError(
                f"signing key {path}: no Ed25519 private key in PEM without a passphrase: "
                "`kserve keys signing create` makes one"
            )
        return cls(private)

    def sign(self, payload: bytes) -> Signature:
        """Of bytes that begin with what they are."""
        return Signature(self.key_id, base64.b64encode(self._private.sign(payload)).decode())

    def public_pem(self) -> bytes:
        """The public half, for those who shall trust it."""
        return _public_pem(self._private.public_key())


class Trust:
    """The public keys whose signatures count: more than one while keys are rotated."""

    def __init__(self, keys: Mapping[str, Ed25519PublicKey]) -> None:
        self._keys = dict(keys)
        self.key_ids = tuple(sorted(self._keys))

    @classmethod
    def load(cls, path: Path) -> Trust:
        """From a public key file, or from every ``*.pub`` of a folder. Raises SettingError, also when there is none."""
        keys = map(_load_public, trusted_files(path))
        return cls({key_id(key): key for key in keys})

    def verify(self, payload: bytes, signature: Signature, what: Path) -> None:
        """Raises SnapshotError, check "signature", naming the key, unless a trusted key signed just this."""
        from cryptography.exceptions import InvalidSignature

        key = self._keys.get(signature.key)
        if key is None:
            known = ", ".join(self.key_ids)
            raise SnapshotError(what, "signature", f"key {signature.key!r} is not trusted here; trusted: {known}")
        try:
            key.verify(base64.b64decode(signature.value, validate=True), payload)
        except (InvalidSignature, binascii.Error, ValueError):
            raise SnapshotError(what, "signature", f"key {signature.key} did not sign this") from None


def trusted_files(path: Path) -> list[Path]:
    """The files of public keys that a setting names. Raises SettingError for a folder without any."""
    files = sorted(path.glob(f"*{PUBLIC}")) if path.is_dir() else [path]
    if not files:
        raise SettingError(f"trusted keys {path}: there is no *{PUBLIC} in this folder; nothing could be served")
    return files


def create(path: Path) -> Signer:
    """A new key: the private half in ``path`` (mode 0600), the public one beside it in ``path.pub``.

    Raises SettingError when either is there already, StorageError.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    secret = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = path.with_name(path.name + PUBLIC)
    with storage(f"writing the key {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_new(path, secret, 0o600)
        try:
            _write_new(public, _public_pem(private.public_key()), 0o644)
            sync_directory(path.parent)
        except BaseException:
            path.unlink()
            raise
    return Signer(private)


def _write_new(path: Path, content: bytes, mode: int) -> None:
    try:
        write_file(path, content, mode)
    except FileExistsError:
        raise SettingError(f"{path} exists, and a key is never overwritten: choose another name") from None
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def key_id(public: Ed25519PublicKey) -> str:
    """The first 16 hex digits of the SHA-256 of the raw public key."""
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()[:16]


def _public_pem(public: Ed25519PublicKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _load_public(path: Path) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content, _ = _read_key(path)
    try:
        public = load_pem_public_key(content)
    except ValueError:
        public = None
    if not isinstance(public, Ed25519PublicKey):
        raise SettingError(f"trusted key {path}: no Ed25519 public key in PEM: give the file that ends in {PUBLIC}")
    return public


def _read_key(path: Path) -> tuple[bytes, int]:
    """Content and permissions of a key file."""
    try:
        with path.open("rb") as file:
            return file.read(_LONGEST), os.fstat(file.fileno()).st_mode & 0o7777
    except OSError as error:
        raise SettingError(f"key {path}: {error.strerror}") from None


class SignedFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file of a version must be."""

    bytes: int
    sha256: str


class Seal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of signature.json."""

    version: _VersionName
    files: dict[Name, SignedFile]
    key: str = ""
    value: str = ""


def sign_version(folder: Path, signer: Signer) -> Seal:
    """Write the signature of a version into its folder, in place of an earlier one. Raises OSError."""
    names = [name for name in SIGNED if name not in OPTIONAL or (folder / name).exists()]
    seal = Seal(folder.name, {name: _look_at(folder / name) for name in names})
    seal = _with(seal, signer.sign(_payload(_MANIFEST, seal)))
    fresh = folder / f".{SIGNATURE}"
    fresh.unlink(missing_ok=True)  # of a publisher that was killed
    write_file(fresh, msgspec.json.encode(seal) + b"\n", mode=0o444)
    os.replace(fresh, folder / SIGNATURE)
    sync_directory(folder)
    return seal


def check_version(folder: Path, trust: Trust) -> Seal:
    """Everything that is read of a version is what a trusted key signed, and nothing else is there.

    Raises SnapshotError, check "signature"; OSError when a file cannot be read. Nothing is mapped.
    """
    file = folder / SIGNATURE
    seal = _decode(_read_signature(file), Seal, file, "signature")
    trust.verify(_payload(_MANIFEST, seal), Signature(seal.key, seal.value), file)
    if seal.version != folder.name:
        raise SnapshotError(file, "signature", f"it is that of {seal.version}, in the place of {folder.name}")
    for name in SIGNED:
        _check_file(folder / name, seal.files.get(name))
    return seal


def _read_signature(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(_LONGEST)
    except FileNotFoundError:
        raise SnapshotError(
            file, "signature", "it is missing, and only signed versions are trusted: publish with a signing key"
        ) from None


def _check_file(file: Path, expected: SignedFile | None) -> None:
    if expected is None:
        if file.name not in OPTIONAL or os.path.lexists(file):
            raise SnapshotError(file, "signature", "the signature does not name this file")
        return
    try:
        found = _look_at(file)
    except FileNotFoundError:
        raise SnapshotError(file, "signature", "this file was signed, and is missing") from None
    if found != expected:
        detail = f"{found.bytes} bytes with SHA-256 {found.sha256}, {expected.bytes} with {expected.sha256} were signed"
        raise SnapshotError(file, "signature", f"it was changed: {detail}")


def _look_at(file: Path) -> SignedFile:
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        return SignedFile(os.fstat(opened.fileno()).st_size, digest)


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """To announce a version, or to roll back to one; numbers rise with every order of a data directory."""

    act: Literal["announce", "rollback"]
    version: _VersionName
    previous: _VersionName | None
    number: Annotated[int, msgspec.Meta(ge=1)]
    at: Annotated[datetime, msgspec.Meta(tz=True)]
    key: str | None = None
    value: str | None = None


def sign_order(order: Order, signer: Signer) -> Order:
    """The same order, signed."""
    return _with(order, signer.sign(_payload(_ORDER, order)))


def check_order(order: Order, trust: Trust, what: Path) -> None:
    """Raises SnapshotError, check "signature", unless a trusted key signed this order. ``what`` is where it stood."""
    if order.key is None or order.value is None:
        raise SnapshotError(what, "signature", f"nobody signed the order to {order.act} {order.version}")
    trust.verify(_payload(_ORDER, order), Signature(order.key, order.value), what)


def admit(order: Order, version: str, highest: Order | None, what: str | Path = "CURRENT") -> None:
    """Whether a signed order puts ``version`` in force for who admitted ``highest`` before; pure.

    Raises SnapshotError, check "order", for an order of another version, for one that is older than what was admitted,
    and for an announcement that goes back in time: only a rollback may. The first order that is met is admitted.
    """
    if order.version != version:
        raise SnapshotError(what, "order", f"it orders {order.version}, and names {version}")
    if highest is None or order == highest:
        return
    if order.number <= highest.number:
        raise SnapshotError(
            what, "order", f"number {order.number} is not after {highest.number}, which was obeyed: it is an old one"
        )
    if order.act == "announce" and version[_TIME] < highest.version[_TIME]:
        raise SnapshotError(what, "order", f"{version} is older than {highest.version}: only a rollback may go back")


def encode_order(order: Order) -> bytes:
    """An order as one line of JSON, without its end."""
    return msgspec.json.encode(order)


def decode_order(line: bytes, what: str | Path) -> Order:
    """The order of a line. Raises SnapshotError, check "order"."""
    return _decode(line, Order, what, "order")


def _decode(content: bytes, kind: type[_T], what: str | Path, check: str) -> _T:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, ValueError) as error:
        raise SnapshotError(what, check, f"it cannot be read: {error}") from None


def _payload(kind: bytes, signed: Seal | Order) -> bytes:
    """The one spelling of what is signed: sorted, without spaces, without the signature itself."""
    content: dict[str, Any] = msgspec.to_builtins(signed)
    bare = {name: value for name, value in content.items() if name not in ("key", "value")}
    return kind + msgspec.json.encode(bare, order="deterministic")


def _with(signed: _S, signature: Signature) -> _S:
    return msgspec.structs.replace(signed, key=signature.key, value=signature.value)
