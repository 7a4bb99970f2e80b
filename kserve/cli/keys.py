"""Keys: those that sign what is published, and that readers trust."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kserve.cli import options, output
from kserve.errors import SettingError
from kserve.settings import load
from kserve.snapshots.signing import PUBLIC, Signer, Trust, create, trusted_files

keys_app = typer.Typer(help="Make, list and revoke keys.", no_args_is_help=True)
signing_app = typer.Typer(help="Keys that sign versions and orders, and that readers trust.", no_args_is_help=True)
keys_app.add_typer(signing_app, name="signing")

SigningKey = Annotated[Path | None, options.setting("signing_key")]
TrustedKeys = Annotated[Path | None, options.setting("trusted_keys")]


@signing_app.command("create")
def create_signing(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help=f"Where the private key goes; the public one goes to FILE{PUBLIC}")
    ],
    as_json: options.Json = False,
) -> None:
    """Make a key that signs versions and orders.

    Keep the private file where only the publisher can read it, outside of the data directory, and give it to
    `kserve publish` as signing_key. Give the public file, or a folder of such files, to readers as trusted_keys.

    Example:

      $ kserve keys signing create keys/2026
    """
    signer = create(path)
    public = path.with_name(path.name + PUBLIC)
    if as_json:
        output.emit({"key": signer.key_id, "private": str(path), "public": str(public)})
        return
    output.card([("key", signer.key_id), ("private", f"{path} (secret)"), ("public", f"{public}")])


@signing_app.command("list")
def list_signing(
    signing_key: SigningKey = None, trusted_keys: TrustedKeys = None, as_json: options.Json = False
) -> None:
    """List the keys in force: the one that signs, and those that are trusted.

    Look here before and after a rotation: what signs must be among what is trusted, or readers keep the version that
    they have.

    Example:

      $ kserve keys signing list
    """
    settings = load(signing_key=signing_key, trusted_keys=trusted_keys)
    rows = []
    if settings.signing_key is not None:
        rows.append((Signer.load(settings.signing_key).key_id, "signs", str(settings.signing_key)))
    files = [] if settings.trusted_keys is None else trusted_files(settings.trusted_keys)
    rows += [(Trust.load(file).key_ids[0], "trusted", str(file)) for file in files]
    if as_json:
        output.emit({"keys": [{"key": key, "role": role, "file": file} for key, role, file in rows]})
    elif rows:
        output.table(("key", "role", "file"), rows)
    else:
        output.say("nothing is signed or verified: neither signing_key nor trusted_keys is set")
    if settings.signing_key is not None and files and rows[0][0] not in {row[0] for row in rows[1:]}:
        output.warn(f"warning: {rows[0][0]} signs and is not trusted: readers with these keys refuse its versions")


@signing_app.command("show")
def show_signing(
    path: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="A private or a public key.", show_default="signing_key")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Show the id and the public half of a key.

    Use it to find out which file a key id in an error or in signature.json means, and to hand a public key to readers.

    Example:

      $ kserve keys signing show keys/2026.pub
    """
    file = path or load().signing_key
    if file is None:
        raise SettingError("which key? give its file, or set signing_key")
    if file.name.endswith(PUBLIC):
        key, public = Trust.load(file).key_ids[0], file.read_text()
    else:
        signer = Signer.load(file)
        key, public = signer.key_id, signer.public_pem().decode()
    if as_json:
        output.emit({"key": key, "file": str(file), "public": public})
        return
    output.card([("key", key), ("file", str(file))])
    output.say(public.rstrip())
