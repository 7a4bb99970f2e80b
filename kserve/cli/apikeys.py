"""API keys: who may use the API and the console."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from kserve.cli import options, output
from kserve.cli.keys import keys_app as keys_app
from kserve.cli.output import clean, moment
from kserve.errors import ArgumentError
from kserve.serving.keys import DEFAULT_TIER, SCOPES, Key, Keys
from kserve.settings import directory, load

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
    tier: Annotated[
        str, typer.Option("--tier", metavar="TIER", help="Its limits: a tier of the settings.")
    ] = DEFAULT_TIER,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Make an API key, and show it this one time.

    Only an HMAC of it is kept, so it cannot be shown again: hand it over, or make another one. Readers of scores need
    `score:read`, and `batch` to read many in one request; `console` lets a release engineer sign in to /console.

    Example:

      $ kserve keys create --scopes score:read,batch --partner "Example Airways" --tier partner
    """
    wanted = [scope for text in scopes for scope in re.split(r"[,\s]+", text) if scope]
    span = None if expires is None else options.later(expires, "--expires") - datetime.now(UTC)
    settings = load(data=data)
    if tier not in settings.tiers:
        raise ArgumentError(f"there is no tier {tier!r}; there are {', '.join(sorted(settings.tiers))}")
    _tell_once(*Keys(settings.data).create(partner, wanted, span, tier), as_json)


@keys_app.command("list")
def list_keys(data: options.Data = None, as_json: options.Json = False) -> None:
    """List all API keys, the oldest first.

    Look here for keys of people who have left, and for scopes that nobody needs any more. Revoked and expired keys stay
    in the list, so that the log's "key ID" can always be traced to somebody.

    Example:

      $ kserve keys list
    """
    found = Keys(options.present(directory(data))).listed()
    if as_json:
        output.emit({"keys": [_document(key) for key in found]})
    elif found:
        rows = [
            (key.id, clean(key.partner), key.tier, _state(key), " ".join(key.scopes), moment(key.created_at))
            for key in found
        ]
        output.table(("id", "partner", "tier", "state", "scopes", "created"), rows)
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
    _tell(Keys(directory(data)).show(key_id), as_json)


@keys_app.command("revoke")
def revoke(key_id: KeyId, data: options.Data = None, as_json: options.Json = False) -> None:
    """End an API key for ever.

    Use it at once when a key may have been seen by others. Every server refuses it within 5 seconds, both secrets of
    one that is being rotated; sessions of the console that were begun with it end with the next request. Revoking a key
    twice changes nothing.

    Example:

      $ kserve keys revoke 4fT0QmZx81Lb
    """
    _tell(Keys(directory(data)).revoke(key_id), as_json)


@keys_app.command("rotate")
def rotate(
    key_id: KeyId,
    overlap: Annotated[
        str,
        typer.Option("--overlap", metavar="DURATION", help="How long the old secret still works: 30m, 24h, 7d, 0h."),
    ] = "24h",
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Give an API key a new secret, while the old one still works for a time.

    Its id, tier and scopes stay, and both secrets share one limit: put the new text where the old one is used before
    the overlap is over. A key that has two secrets is not given a third, unless --overlap 0h ends both of them.

    Example:

      $ kserve keys rotate 4fT0QmZx81Lb --overlap 7d
    """
    _tell_once(*Keys(directory(data)).rotate(key_id, _span(overlap)), as_json)


@keys_app.command("copy")
def copy(
    to: Annotated[Path, typer.Argument(metavar="DEST", help="Another data directory, or a folder to send to hosts.")],
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Copy all API keys into another data directory, and the pepper that they were made with if it has none.

    Use it after each change of keys to bring them to the other hosts of a fleet; a server of DEST follows within 5
    seconds. Make, rotate and revoke keys in one place only: a copy that would undo what was done in DEST is refused.

    Example:

      $ kserve keys copy /srv/kserve-keys
    """
    copied = Keys(directory(data)).copy_to(to)
    if as_json:
        output.emit({"copied": copied, "to": str(to)})
    else:
        output.say(f"{copied:,} key{'s' if copied != 1 else ''} copied to {to}")


def _span(text: str) -> timedelta:
    span = options.duration(text)
    if span is None:
        raise typer.BadParameter(f"{text!r} is no duration, such as 30m, 24h, 7d or 0h", param_hint="--overlap")
    return span


def _tell_once(key: Key, text: str, as_json: bool) -> None:
    if as_json:
        output.emit(_document(key) | {"key": text})
        return
    output.card([*_rows(key), ("key", text)])
    output.say("it is not shown again")


def _tell(key: Key, as_json: bool) -> None:
    if as_json:
        output.emit(_document(key))
    else:
        output.card(_rows(key))


def _state(key: Key) -> str:
    return "live, two secrets" if key.rotating else key.state


def _rows(key: Key) -> list[tuple[str, str]]:
    return [
        ("id", key.id),
        ("partner", clean(key.partner)),
        ("tier", key.tier),
        ("state", _state(key)),
        ("scopes", " ".join(key.scopes)),
        ("created", moment(key.created_at)),
        ("expires", "never" if key.expires_at is None else moment(key.expires_at)),
        ("revoked", "no" if key.revoked_at is None else moment(key.revoked_at)),
        ("old secret", "none" if key.old_until is None or not key.rotating else f"until {moment(key.old_until)}"),
    ]


def _document(key: Key) -> dict[str, Any]:
    def time(value: datetime | None) -> str | None:
        return None if value is None else value.isoformat()

    return {
        "id": key.id,
        "partner": key.partner,
        "tier": key.tier,
        "state": key.state,
        "scopes": list(key.scopes),
        "created_at": time(key.created_at),
        "expires_at": time(key.expires_at),
        "revoked_at": time(key.revoked_at),
        "old_until": time(key.old_until),
    }
