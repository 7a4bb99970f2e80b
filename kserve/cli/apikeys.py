"""API keys: who may use the API and the console."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from kserve.cli import options, output
from kserve.cli.keys import keys_app as keys_app
from kserve.cli.output import clean, moment
from kserve.serving.keys import SCOPES, Key, Keys
from kserve.settings import load

KeyId = Annotated[str, typer.Argument(metavar="ID", help="The key's id, the part after ks_live_.")]


@keys_app.command("create")
def create(
    partner: Annotated[
        str, typer.Option("--partner", metavar="NAME", help="Whose key it is; acts are logged with it.")
    ],
    scopes: Annotated[
        list[str], typer.Option("--scopes", metavar="SCOPE", help=f"What for: {', '.join(SCOPES)}; may be repeated.")
    ],
    expires: Annotated[
        str | None,
        typer.Option(
            "--expires", metavar="TIME|DURATION", help="When it ends: a time, or 12h, 90d, 52w.", show_default="never"
        ),
    ] = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Make an API key, and show it this one time.

    Only an HMAC of it is kept, so it cannot be shown again: hand it over, or make another one. The scope `console` lets
    a release engineer sign in to /console.

    Example:

      $ kserve keys create --scopes console --partner maria
    """
    wanted = [scope for text in scopes for scope in re.split(r"[,\s]+", text) if scope]
    span = None if expires is None else options.later(expires, "--expires") - datetime.now(UTC)
    key, text = Keys(load(data=data).data).create(partner, wanted, span)
    if as_json:
        output.emit(_document(key) | {"key": text})
        return
    output.card([*_rows(key), ("key", text)])
    output.say("it is not shown again")


@keys_app.command("list")
def list_keys(data: options.Data = None, as_json: options.Json = False) -> None:
    """List all API keys, the oldest first.

    Look here for keys of people who have left, and for scopes that nobody needs any more. Revoked and expired keys stay
    in the list, so that the log's "key ID" can always be traced to somebody.

    Example:

      $ kserve keys list
    """
    found = Keys(load(data=data).data).listed()
    if as_json:
        output.emit({"keys": [_document(key) for key in found]})
    elif found:
        rows = [(key.id, clean(key.partner), key.state, " ".join(key.scopes), moment(key.created_at)) for key in found]
        output.table(("id", "partner", "state", "scopes", "created"), rows)
    else:
        output.say("there are no keys: `kserve keys create` makes one")


@keys_app.command("show")
def show(key_id: KeyId, data: options.Data = None, as_json: options.Json = False) -> None:
    """Show what is known of an API key.

    Use it to find out whose key it is that a log names, and whether it is still live. The secret itself is not kept,
    so it cannot be shown.

    Example:

      $ kserve keys show 4fT0QmZx81Lb
    """
    _tell(Keys(load(data=data).data).show(key_id), as_json)


@keys_app.command("revoke")
def revoke(key_id: KeyId, data: options.Data = None, as_json: options.Json = False) -> None:
    """End an API key for ever.

    Use it at once when a key may have been seen by others. Sessions of the console that were begun with it end with the
    next request. Revoking a key twice changes nothing.

    Example:

      $ kserve keys revoke 4fT0QmZx81Lb
    """
    _tell(Keys(load(data=data).data).revoke(key_id), as_json)


def _tell(key: Key, as_json: bool) -> None:
    if as_json:
        output.emit(_document(key))
    else:
        output.card(_rows(key))


def _rows(key: Key) -> list[tuple[str, str]]:
    return [
        ("id", key.id),
        ("partner", clean(key.partner)),
        ("state", key.state),
        ("scopes", " ".join(key.scopes)),
        ("created", moment(key.created_at)),
        ("expires", "never" if key.expires_at is None else moment(key.expires_at)),
        ("revoked", "no" if key.revoked_at is None else moment(key.revoked_at)),
    ]


def _document(key: Key) -> dict[str, Any]:
    def time(value: datetime | None) -> str | None:
        return None if value is None else value.isoformat()

    return {
        "id": key.id,
        "partner": key.partner,
        "state": key.state,
        "scopes": list(key.scopes),
        "created_at": time(key.created_at),
        "expires_at": time(key.expires_at),
        "revoked_at": time(key.revoked_at),
    }
