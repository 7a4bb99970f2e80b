"""Acts of a release engineer on what is in force, or may come in force. Each goes to the log with who and why."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from kserve.cli import options, output
from kserve.cli.status import processes
from kserve.errors import NothingPublished, UnknownVersion
from kserve.settings import load
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.log import author
from kserve.snapshots.orders import Orders
from kserve.snapshots.state import Quarantined, State

quarantine_app = typer.Typer(help="Content that must not come back, under whatever name.", no_args_is_help=True)

Version = Annotated[
    str | None,
    typer.Argument(autocompletion=options.complete_version, help="A published version.", show_default="the last good"),
]
Live = Annotated[
    str | None,
    typer.Argument(
        autocompletion=options.complete_version, help="The version that you mean.", show_default="the live one"
    ),
]


def rollback(
    reason: options.Reason,
    version: Version = None,
    quarantine: Annotated[
        bool, typer.Option("--quarantine/--no-quarantine", help="Keep the content that was in force out for good.")
    ] = True,
    by: options.By = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Put a good version back in force at once, pin it, and put the bad one in quarantine.

    Use it when what is served is wrong. By default the last version that was watched without a breach comes back. Every
    reader follows within moments. The pin keeps tonight's run from undoing it: unpin when the cause is found.

    Example:

      $ kserve rollback --reason "scores of New York are wrong, see the incident"
    """
    catalog, orders, who = _acting(data, by)
    live = catalog.live()
    if live is None and not orders.state().good:
        raise NothingPublished(f"nothing is announced in {catalog.data}: there is nothing to roll back")
    restored = orders.rollback(version, why=reason, by=who, quarantine=quarantine)
    kept_out = next((one.digest for one in orders.state().quarantined.values() if one.version == live), None)
    if as_json:
        output.emit({"version": restored, "from": live, "pinned": True, "quarantined": kept_out, "by": who})
        return
    gone = f"; {live} is {'in quarantine' if kept_out else 'retired'}" if live else ""
    output.say(f"{restored} is in force again, and pinned{gone}")
    output.say(f"when the cause is found: kserve unpin --reason WHY --data {catalog.data}")


def _acting(data: options.Data, by: str | None) -> tuple[Catalog, Orders, str]:
    settings = load(data=data, by=by)
    catalog = Catalog(settings.data)
    return catalog, Orders(catalog, settings), author(settings)


def _digest(catalog: Catalog, state: State, version: str) -> str:
    """Of the content: as the gates noted it, or else looked at now, which takes a pass over the file."""
    known = state.digests.get(version)
    if known is not None:
        return known
    from kserve.snapshots.compare import portrait

    with options.opened(catalog, version) as snapshot:
        return portrait(snapshot).digest


def pin(
    reason: options.Reason,
    version: Live = None,
    by: options.By = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Keep the live version in force, whatever is published.

    Use it before a day on which nothing may change, or while something is looked into. A publish then ends with exit
    code 12 after its gates. Name the VERSION to be sure that it is still the one that you looked at.

    Example:

      $ kserve pin --reason "the campaign ends on Friday"
    """
    catalog, orders, who = _acting(data, by)
    live = catalog.live()
    if version is not None and version != live:
        catalog.folder(version)
        raise typer.BadParameter(f"{version} is not in force, {live} is: `kserve rollback {version}` puts it there")
    pinned = orders.pin(why=reason, by=who)
    if as_json:
        output.emit({"pinned": pinned, "by": who, "reason": reason})
    else:
        output.say(f"{pinned} stays in force until `kserve unpin --reason WHY --data {catalog.data}`")


def unpin(
    reason: options.Reason, by: options.By = None, data: options.Data = None, as_json: options.Json = False
) -> None:
    """Let what is published next be announced again, and the sentinel act again.

    Use it when the cause of a rollback is found, or the day of a pin is over. It changes nothing of what is in force:
    the next publish does. After it, the sentinel watches again too, if it was frozen.

    Example:

      $ kserve unpin --reason "the pipeline is corrected"
    """
    catalog, orders, who = _acting(data, by)
    frozen = orders.state().frozen
    unpinned = orders.unpin(why=reason, by=who)
    if as_json:
        output.emit({"unpinned": unpinned, "was_frozen": frozen, "by": who, "reason": reason})
    elif unpinned is None:
        output.say(f"nothing is pinned in {catalog.data}")
    else:
        output.say(f"{unpinned} is not pinned any more; it stays in force until the next publish")


def prune(
    keep: Annotated[
        int, typer.Option("--keep", metavar="N", min=1, help="Published versions to keep, the latest scores first.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be deleted.")] = False,
    by: options.By = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Delete old versions, and candidates that are older than the live one.

    Run it when the disk fills up, or every night after the publish. The live version, the pinned, the staged, the last
    two good ones, and whatever a process of this host still reads are never deleted. Changes over 30 days need 31
    nights.

    Example:

      $ kserve prune --keep 31 --dry-run
    """
    catalog, orders, who = _acting(data, by)
    served = {name for seat in processes(catalog) for name in (seat.version, seat.staged) if name}
    gone, size = orders.prune(keep, served=served, by=who, dry_run=dry_run)
    if as_json:
        output.emit({"deleted": gone, "bytes": size, "dry_run": dry_run, "by": who})
        return
    for name in gone:
        output.say(name)
    would = "would be" if dry_run else "are"
    output.say(f"{len(gone)} version{'s' if len(gone) != 1 else ''}, {output.size(size)}, {would} deleted")


@quarantine_app.command("list")
def list_quarantined(data: options.Data = None, as_json: options.Json = False) -> None:
    """List what is in quarantine, since when, by whom and why.

    Look here when a publish is refused as quarantined content. The digest is of ids, scores, locations and topics, so
    the same bad scores are recognised under another name and on another day.

    Example:

      $ kserve quarantine list
    """
    settings = load(data=data)
    found = Orders(Catalog(settings.data), settings).state().quarantined.values()
    if as_json:
        output.emit({"quarantined": [_quarantine_document(one) for one in found]})
    elif not found:
        output.say(f"nothing is in quarantine in {settings.data}")
    else:
        rows = [(one.digest[:16], one.version, output.moment(one.at), one.by, output.clean(one.why)) for one in found]
        output.table(("digest", "version", "since", "by", "why"), rows)


def _quarantine_document(one: Quarantined) -> dict[str, Any]:
    return {"digest": one.digest, "version": one.version, "by": one.by, "reason": one.why, "at": one.at.isoformat()}


@quarantine_app.command("add")
def add_quarantined(
    version: Annotated[
        str, typer.Argument(autocompletion=options.complete_version, help="A candidate or a published version.")
    ],
    reason: options.Reason,
    by: options.By = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Keep the content of a version out, under whatever name.

    For a version that must never be announced, although no gate held it. The one in force cannot be quarantined: roll
    back, which does it too.

    Example:

      $ kserve quarantine add 20260103T040000Z-ff7e510a --reason "built from the test system"
    """
    catalog, orders, who = _acting(data, by)
    catalog.folder(version)
    digest = _digest(catalog, orders.state(), version)
    orders.quarantine(version, digest, why=reason, by=who)
    if as_json:
        output.emit({"version": version, "digest": digest, "by": who, "reason": reason})
    else:
        output.say(f"{version} is in quarantine: its content, {digest[:16]}, is not announced under any name")


@quarantine_app.command("release")
def release_quarantined(
    what: Annotated[str, typer.Argument(metavar="DIGEST|VERSION", help="As `kserve quarantine list` shows them.")],
    reason: options.Reason,
    by: options.By = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Let quarantined content be published again.

    For when it turns out that the scores were right after all. It announces nothing: publish the version, through all
    gates, afterwards.

    Example:

      $ kserve quarantine release 20260103T040000Z-ff7e510a --reason "it was the dashboard that was wrong"
    """
    _, orders, who = _acting(data, by)
    found = orders.release(_named(orders.state(), what), why=reason, by=who)
    if as_json:
        output.emit({"version": found.version, "digest": found.digest, "by": who, "reason": reason})
    else:
        output.say(f"{found.version} may be published again")


def _named(state: State, what: str) -> str:
    """The digest that was meant: by a version, or by its beginning."""
    for digest, found in state.quarantined.items():
        if what == found.version or (len(what) >= 8 and digest.startswith(what)):
            return digest
    raise UnknownVersion(f"{what} is not in quarantine: `kserve quarantine list` shows what is")
