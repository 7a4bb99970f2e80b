"""Webhooks: endpoints of partners, and what became of every message."""

from __future__ import annotations

import asyncio
import signal
import time
from datetime import timedelta
from typing import Annotated, Any

import msgspec
import typer

from kserve.cli import options, output
from kserve.cli.incidents import opened
from kserve.errors import Busy
from kserve.notices import deliveries as post
from kserve.notices import webhooks as book
from kserve.notices.deliveries import Delivery
from kserve.notices.events import TYPES
from kserve.notices.store import Store
from kserve.notices.webhooks import Endpoint
from kserve.settings import Settings, load
from kserve.snapshots.log import author

webhooks_app = typer.Typer(
    help="Tell partners' servers of snapshots and incidents, signed as Standard Webhooks has it.", no_args_is_help=True
)

TEST_SECONDS = 25.0

Id = Annotated[str, typer.Argument(metavar="ENDPOINT", help="The endpoint, as `kserve webhooks list` shows it.")]
Of = Annotated[str | None, typer.Option("--endpoint", metavar="ENDPOINT", help="Only those to this endpoint.")]


@webhooks_app.command()
def add(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where the partner takes events: an https address.")],
    event: Annotated[
        list[str] | None,
        typer.Option(
            "--event", metavar="TYPE", help="A type of event that is wanted; may be repeated.", show_default="all"
        ),
    ] = None,
    private: Annotated[bool | None, options.setting("webhook_private", "--webhook-private")] = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Add an endpoint, and print the secret that its events are signed with.

    The secret is shown this once: hand it to the partner on a safe way. Private, loopback and other special addresses
    are refused, now and at every connection, unless the setting webhook_private allows them.

    Example:

      $ kserve webhooks add https://partner.example/hook --event snapshot.announced
    """
    allowed = load(data=data, webhook_private=private).webhook_private
    _, store = opened(data)
    with store:
        found, secret = book.add_endpoint(store, url, event or TYPES, private=allowed)
    if as_json:
        output.emit({"endpoint": msgspec.to_builtins(found), "secret": secret})
        return
    output.card([("endpoint", found.id), ("url", found.url), ("events", ", ".join(found.types)), ("secret", secret)])
    output.say(f"try it with: kserve webhooks test {found.id}")


@webhooks_app.command("list")
def list_(data: options.Data = None, as_json: options.Json = False) -> None:
    """List endpoints, the oldest first.

    Shows where events go (of a URL's query only the names: a secret may be in it), which ones, and whether an endpoint
    is enabled: one that answers 410, or takes nothing for five days, is disabled, with an internal incident that says
    so.

    Example:

      $ kserve webhooks list
    """
    _, store = opened(data)
    with store:
        found = book.endpoints(store)
        waiting, late = post.backlog(store)
    if as_json:
        documents = [msgspec.to_builtins(one) | {"url": one.shown} for one in found]
        output.emit({"endpoints": documents, "waiting": waiting, "seconds_late": round(late, 3)})
        return
    if not found:
        output.say("no endpoints: add one with `kserve webhooks add URL`")
        return
    output.table(("endpoint", "state", "url", "events"), [_endpoint_row(one) for one in found])
    output.say(f"{waiting} messages wait")


@webhooks_app.command("test")
def send_test(id: Id, data: options.Data = None, as_json: options.Json = False) -> None:
    """Send a message of type webhook.test to an endpoint, and say what it answered.

    Use it after an endpoint was added and after its secret was rotated. It goes the way of all messages; a server that
    delivers sends it, else this command does.

    Example:

      $ kserve webhooks test wh_...
    """
    settings, store = opened(data)
    with store:
        event = post.send_test(store, id)
        try:
            asyncio.run(_once(settings, event))
        except Busy:
            _wait(store, event)
        (found,) = post.deliveries(store, event=event)
    if as_json:
        output.emit(msgspec.to_builtins(found))
    else:
        output.say(_said(found))
    if found.state != "delivered":
        raise typer.Exit(1)


@webhooks_app.command()
def rotate(
    id: Id,
    overlap: Annotated[
        float, typer.Option("--overlap", metavar="HOURS", help="Hours for which the old secret signs too.")
    ] = book.OVERLAP.total_seconds() / 3600,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Give an endpoint a new secret, and print it.

    The secret is shown this once. Messages are signed with the old one too until the overlap is over, so that the
    partner can change it without missing anything; with --overlap 0 the old one ends at once.

    Example:

      $ kserve webhooks rotate wh_... --overlap 48
    """
    _, store = opened(data)
    with store:
        secret = book.rotate_secret(store, id, timedelta(hours=overlap))
    if as_json:
        output.emit({"endpoint": id, "secret": secret, "overlap_hours": overlap})
    else:
        output.card([("endpoint", id), ("secret", secret), ("old one signs for", f"{overlap:g} hours")])


@webhooks_app.command()
def remove(id: Id, data: options.Data = None, as_json: options.Json = False) -> None:
    """Remove an endpoint, and forget its secrets.

    Nothing more is sent there, not even what was due already. What was sent stays in the list of deliveries. To stop
    for a while, use `kserve webhooks disable`.

    Example:

      $ kserve webhooks remove wh_...
    """
    settings, store = opened(data)
    with store:
        book.remove_endpoint(store, id, by=author(settings))
    _print_done(id, "removed", as_json)


@webhooks_app.command()
def disable(
    id: Id,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for the list of endpoints.")],
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Send nothing to an endpoint until it is enabled again.

    Use it when a partner asks for a pause. What it misses is kept as skipped, and can be sent later with `kserve
    webhooks retry`.

    Example:

      $ kserve webhooks disable wh_... --reason "they move to another data centre"
    """
    settings, store = opened(data)
    with store:
        book.disable_endpoint(store, id, reason, by=author(settings))
    _print_done(id, "disabled", as_json)


@webhooks_app.command()
def enable(id: Id, data: options.Data = None, as_json: options.Json = False) -> None:
    """Send to an endpoint again.

    It gets what happens from now on. What it has missed is sent by `kserve webhooks retry --endpoint`; an incident that
    was opened because it failed is resolved.

    Example:

      $ kserve webhooks enable wh_...
    """
    settings, store = opened(data)
    with store:
        book.enable_endpoint(store, id, by=author(settings))
    _print_done(id, "enabled", as_json)


@webhooks_app.command()
def deliveries(
    endpoint: Of = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only those that were tried and have not arrived.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="As many, the latest.")] = 100,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """List messages, the latest first, and what became of them.

    A message that is pending is sent at the time in the last column; one that failed or was skipped can be sent again
    with `kserve webhooks retry`.

    Example:

      $ kserve webhooks deliveries --failed
    """
    _, store = opened(data)
    with store:
        found = post.deliveries(store, to=endpoint, failed=failed, most=limit)
    if as_json:
        output.emit({"deliveries": [msgspec.to_builtins(one) for one in found]})
    elif found:
        columns = ("message", "type", "endpoint", "state", "attempts", "last answer", "arrived or due")
        output.table(columns, map(_delivery_row, found), right=("attempts",))
    else:
        output.say("no messages")


@webhooks_app.command()
def retry(
    message: Annotated[
        str | None, typer.Argument(metavar="[MESSAGE]", help="One message, even if it has arrived.")
    ] = None,
    endpoint: Of = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Make messages due again: one, or all that failed or were skipped.

    They keep their ids and bodies, so that a partner who has one already sees that it is the same. The server that
    delivers sends them, or `kserve webhooks deliver`.

    Example:

      $ kserve webhooks retry --endpoint wh_...
    """
    if message is None and endpoint is None:
        raise typer.BadParameter("name a message, or an endpoint with --endpoint", param_hint="MESSAGE")
    _, store = opened(data)
    with store:
        count = post.retry(store, event=message, to=endpoint)
    if as_json:
        output.emit({"due": count})
    else:
        output.say(f"{count} messages are due")


@webhooks_app.command()
def deliver(
    once: Annotated[bool, typer.Option("--once", help="Send what is due now, and end.")] = False,
    private: Annotated[bool | None, options.setting("webhook_private", "--webhook-private")] = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Send what is due to partners, as a server does beside serving.

    Use it where no server runs. Only one process of a host delivers: while a server does, this ends with exit code 10.
    Without --once it runs until SIGTERM or Ctrl-C.

    Example:

      $ kserve webhooks deliver --once
    """
    settings = load(data=data, webhook_private=private)
    states = asyncio.run(_once(settings) if once else _forever(settings))
    if as_json:
        output.emit({"attempts": states})
    else:
        output.say(", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "nothing was due")


async def _once(settings: Settings, event: str | None = None) -> dict[str, int]:
    from kserve.notices.deliverer import at_work  # and with it aiohttp, which other commands do not need

    async with at_work(settings) as deliverer:
        await deliverer.once(event)
        return dict(deliverer.states)


async def _forever(settings: Settings) -> dict[str, int]:
    from kserve.notices.deliverer import at_work

    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with at_work(settings) as deliverer:
        await deliverer.run(stop)
        return dict(deliverer.states)


def _wait(store: Store, event: str) -> None:
    """Until the server that delivers has tried it."""
    until = time.monotonic() + TEST_SECONDS
    while time.monotonic() < until:
        (found,) = post.deliveries(store, event=event)
        if found.last is not None and found.last.seconds is not None:
            return
        time.sleep(0.1)


def _endpoint_row(one: Endpoint) -> tuple[str, ...]:
    state = one.state if one.reason is None else f"{one.state}: {one.reason}"
    return one.id, output.clean(state), output.clean(one.shown), "all" if one.types == TYPES else ", ".join(one.types)


def _delivery_row(one: Delivery) -> tuple[str, ...]:
    when = "-" if one.state == "skipped" else output.moment(one.finished_at or one.due_at)
    return one.event, one.type, one.endpoint, one.state, str(one.attempts), _answer(one), when


def _answer(one: Delivery) -> str:
    last = one.last
    if last is None:
        return "-"
    if last.seconds is None:
        return "under way"
    return output.clean(last.error or f"{last.status} in {last.seconds:.2f} s")


def _said(one: Delivery) -> str:
    return f"{one.event} to {one.endpoint}: {one.state}, {_answer(one)}"


def _print_done(id: str, what: str, as_json: bool) -> None:
    document: dict[str, Any] = {"endpoint": id, "state": what}
    if as_json:
        output.emit(document)
    else:
        output.say(f"{id} is {what}")
