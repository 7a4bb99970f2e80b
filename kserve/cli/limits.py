"""What keys have spent of their limits, on this host."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kserve.cli import options, output
from kserve.cli.output import clean
from kserve.serving.keys import PREFIX, Key, Keys
from kserve.settings import Settings, Tier, load

if TYPE_CHECKING:
    from kserve._buckets import Bucket

limits_app = typer.Typer(help="See what keys have spent of their limits.", no_args_is_help=True)

_MICROSECONDS = 1_000_000
_MODES = {
    "memory": "this host, which has no Redis",
    "leased": "tokens bought from Redis, among {hosts} hosts",
    "alone": "a share, 1/{hosts}, as Redis cannot be asked",
}


@limits_app.command("show")
def show(
    key: Annotated[str, typer.Argument(metavar="KEY", help="A key's id, the part after ks_live_, or the key itself.")],
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Show a key's limits, and what it has spent of them on this host.

    Use it when a partner says that requests are refused: it tells whether the rate or the day's quota is spent, when
    either is whole again, and how many tokens were refused. Looking costs the key nothing.

    Example:

      $ kserve limits show 4fT0QmZx81Lb
    """
    host = _Host(load(data=data))
    document = host.key(Keys(host.settings.data).show(key.removeprefix(PREFIX).split("_")[0])) | host.figures()
    if as_json:
        output.emit(document)
    else:
        output.card(_rows(document))


@limits_app.command("top")
def top(
    count: Annotated[int, typer.Option("--count", min=1, metavar="N", help="How many.")] = 20,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0, max=60, help="How long to look; 0: at what was counted until now.")
    ] = 1.0,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Show who spends most on this host, and who is refused most.

    Look here when requests are refused, or when a host is busier than it should be: every key that spends, and every
    address whose authentications fail. Figures are tokens; a single read costs one, a batch as many as it has ids.

    Example:

      $ kserve limits top --count 5 --seconds 0
    """
    host = _Host(options.existing(data))
    documents = host.busiest(seconds)[:count]
    if as_json:
        output.emit({"seconds": seconds, "names": documents} | host.figures())
        return
    if documents:
        columns = ("name", "kind", "tier", "admitted", "refused", "remaining", "left today", "partner")
        output.table(columns, map(_cells, documents), right=columns[3:7])
    else:
        output.say("nobody has asked")
    output.say(f"tokens, {f'in {seconds:g} s' if seconds else 'until now'}; limited by {_limiter(host.figures())}")


class _Host:
    """What the servers of this host share; nothing, when none of this user has run since the host was started."""

    def __init__(self, settings: Settings) -> None:
        from kserve._buckets import Buckets
        from kserve._limits import Limits
        from kserve.serving.samples import limits_file

        path = limits_file(settings.data)
        self.settings = settings
        self.table = Limits(path) if path.exists() else None
        self.buckets = None if self.table is None else Buckets(self.table)

    def figures(self) -> dict[str, Any]:
        """Of the host."""
        state = None if self.buckets is None else self.buckets.state()
        if state is None:
            return {"mode": None, "hosts": None, "buckets": 0, "failed_open": 0}
        from kserve.serving.samples import MODES

        mode = MODES[state.mode]
        return {"mode": mode, "hosts": state.hosts, "buckets": state.used, "failed_open": state.failed_open}

    def key(self, key: Key) -> dict[str, Any]:
        """All that there is to say of a key; one that has no bucket has spent nothing."""
        tier = self.settings.tiers.get(key.tier)
        limit = None if tier is None else tier.model_dump(include={"rate", "period", "burst", "quota"})
        bucket = None if self.buckets is None else self.buckets.show(key.id)
        return {"name": key.id, "kind": "key", "partner": key.partner, "tier": key.tier, "limit": limit} | {
            **self._left(key.id, tier),
            "leased": 0 if bucket is None else bucket.leased,
            "admitted": 0 if bucket is None else bucket.admitted,
            "refused": 0 if bucket is None else bucket.refused,
        }

    def _left(self, name: str, tier: Tier | None) -> dict[str, Any]:
        names = ("remaining", "full_in_seconds", "left_today", "day_ends_in_seconds")
        if tier is None or self.table is None:
            return dict.fromkeys(names)
        found = self.table.take(name, tier, 0)
        day = (None, None) if tier.quota is None else (found.left_today, found.midnight_us / _MICROSECONDS)
        return dict(zip(names, (found.remaining, found.reset_us / _MICROSECONDS, *day), strict=True))

    def busiest(self, seconds: float) -> list[dict[str, Any]]:
        """Who was admitted or refused most in so many seconds from now, or until now; tokens."""
        if self.buckets is None:
            return []
        keys = {key.id: key for key in Keys(self.settings.data).listed()}
        before = {(one.kind, one.name): one for one in self.buckets.all()} if seconds else {}
        time.sleep(seconds)
        spent = [_since(before.get((one.kind, one.name)), one) for one in self.buckets.all()]
        spent.sort(key=lambda one: (-one.admitted - one.refused, one.name))
        return [self._spender(one, keys) for one in spent if one.admitted or one.refused]

    def _spender(self, spent: Bucket, keys: dict[str, Key]) -> dict[str, Any]:
        from kserve._limits import ADDRESS

        counts = {"admitted": spent.admitted, "refused": spent.refused}
        if spent.kind != ADDRESS and spent.name in keys:
            return self.key(keys[spent.name]) | counts
        kind = "address" if spent.kind == ADDRESS else "key"
        unknown = dict.fromkeys(("partner", "tier", "limit"))
        return {"name": spent.name, "kind": kind} | unknown | self._left("", None) | {"leased": spent.leased} | counts


def _since(before: Bucket | None, now: Bucket) -> Bucket:
    """What was counted meanwhile; all of it if the bucket was another's before."""
    if before is None or before.admitted > now.admitted or before.refused > now.refused:
        return now
    return now._replace(admitted=now.admitted - before.admitted, refused=now.refused - before.refused)


def _rows(document: dict[str, Any]) -> list[tuple[str, str]]:
    left = {
        "remaining": _again(document["remaining"], document["full_in_seconds"]),
        "left today": _again(document["left_today"], document["day_ends_in_seconds"]),
    }
    return [
        ("key", document["name"]),
        ("partner", clean(document["partner"])),
        ("tier", document["tier"]),
        ("limit", _limit(document["limit"])),
        *((name, text) for name, text in left.items() if text is not None),
        ("admitted", f"{document['admitted']:,}"),
        ("refused", f"{document['refused']:,}"),
        ("limited by", _limiter(document)),
    ]


def _limit(limit: dict[str, Any] | None) -> str:
    if limit is None:
        return "unknown: the settings have no such tier"
    each = "second" if limit["period"] == 1 else f"{limit['period']:,} seconds"
    quota = "" if limit["quota"] is None else f", {limit['quota']:,} a day"
    return f"{limit['rate']:,} tokens each {each}, {limit['burst']:,} at once{quota}"


def _again(tokens: int | None, seconds: float | None) -> str | None:
    if tokens is None or seconds is None:
        return None
    span = (
        f"{seconds:.1f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.0f} h"
    )
    return f"{tokens:,}, all of them in {span}" if seconds else f"{tokens:,}, all of them"


def _limiter(document: dict[str, Any]) -> str:
    if document["mode"] is None:
        return "nothing: no server of this user has run on this host"
    failed = document["failed_open"]
    full = f"; the table was full {failed:,} times, and admitted all" if failed else ""
    used = document["buckets"]
    return f"{_MODES[document['mode']].format(**document)}, {used:,} {'bucket' if used == 1 else 'buckets'}{full}"


def _cells(document: dict[str, Any]) -> tuple[str, ...]:
    figures = (document[name] for name in ("admitted", "refused", "remaining", "left_today"))
    shown = ("-" if figure is None else f"{figure:,}" for figure in figures)
    return document["name"], document["kind"], document["tier"] or "-", *shown, clean(document["partner"] or "-")
