"""Incidents by hand."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from kserve.cli import options, output
from kserve.notices import incidents as book
from kserve.notices.desk import Desk
from kserve.notices.incidents import Incident, Report
from kserve.notices.store import Store
from kserve.settings import Settings, load
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.log import author

incident_app = typer.Typer(
    help="Open, update, resolve and list incidents: what the status page and partners are told.", no_args_is_help=True
)

LISTED = timedelta(days=90)

Id = Annotated[str, typer.Argument(metavar="ID", help="The incident, as `kserve incident list` shows it.")]
Impact = Annotated[
    str | None, typer.Option("--impact", metavar="IMPACT", help="How bad it is: none, minor, major or critical.")
]
Text = Annotated[str, typer.Option("--text", metavar="TEXT", help="What to say. Readers of the status page see it.")]
By = Annotated[
    str | None, typer.Option("--by", metavar="NAME", help="Who says so, for the record.", show_default="you@this host")
]
Components = Annotated[
    list[str] | None,
    typer.Option(
        "--component", metavar="NAME", help="What is affected: scores, publishing or webhooks; may be repeated."
    ),
]
Versions = Annotated[
    list[str] | None,
    typer.Option("--version", metavar="VERSION", help="A version that is affected; may be repeated."),
]


def opened(data: Path | None, by: str | None = None) -> tuple[Settings, Store]:
    """The settings in force, and the store, with everything told of that was done so far."""
    settings = load(data=data, by=by)
    store = Store.of(settings)
    Desk(store, Catalog(settings.data)).catch_up()
    return settings, store


@incident_app.command("open")
def open_(
    title: Annotated[str, typer.Argument(metavar="TITLE", help="What is wrong, in a line.")],
    text: Text,
    component: Annotated[
        list[str] | None,
        typer.Option(
            "--component",
            metavar="NAME",
            help="What is affected: scores, publishing or webhooks; needed, and may be repeated.",
        ),
    ] = None,
    impact: Impact = "minor",
    public: Annotated[
        bool, typer.Option("--public/--internal", help="Tell everyone, or only release engineers.")
    ] = True,
    version: Versions = None,
    by: By = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Open an incident.

    Use it when something is wrong that kserve cannot see by itself. A public incident is on the status page at once,
    and partners get the event incident.opened; an internal one is shown to release engineers only.

    Example:

      $ kserve incident open "Scores are late" --component publishing --text "The pipeline has not finished."
    """
    settings, store = opened(data, by)
    report = Report(
        title=title,
        text=text,
        components=tuple(component or ()),
        impact=impact or "minor",
        visibility="public" if public else "internal",
        versions=tuple(version or ()),
    )
    with store:
        _print(book.open_incident(store, report, by=author(settings)), as_json)


@incident_app.command()
def update(
    id: Id,
    text: Text,
    status: Annotated[
        str | None,
        typer.Option("--status", metavar="STATUS", help="What it is now: investigating, identified or monitoring."),
    ] = None,
    impact: Impact = None,
    component: Components = None,
    version: Versions = None,
    by: By = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Say something new about an incident.

    Use it whenever there is news, and at the latest when people begin to ask. What is not given stays as it was;
    components and versions are added to those that are affected already.

    Example:

      $ kserve incident update inc_... --status identified --text "A disk of the pipeline is full."
    """
    settings, store = opened(data, by)
    with store:
        found = book.update_incident(
            store,
            id,
            text,
            by=author(settings),
            status=status,
            impact=impact,
            components=component or (),
            versions=version or (),
        )
        _print(found, as_json)


@incident_app.command()
def resolve(id: Id, text: Text, by: By = None, data: options.Data = None, as_json: options.Json = False) -> None:
    """End an incident.

    Use it when everything works again. A resolved incident takes no more updates: if the same thing comes back, open a
    new one.

    Example:

      $ kserve incident resolve inc_... --text "The pipeline has caught up."
    """
    settings, store = opened(data, by)
    with store:
        _print(book.resolve_incident(store, id, text, by=author(settings)), as_json)


@incident_app.command("list")
def list_(
    everything: Annotated[bool, typer.Option("--all", help="Resolved ones too, however old.")] = False,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """List incidents, the latest first.

    Shows those that are open and those of the last 90 days, public and internal. Times are in UTC. Look at one of them
    with `kserve incident show`.

    Example:

      $ kserve incident list
    """
    _, store = opened(data)
    with store:
        found = book.incidents(store, since=None if everything else store.clock() - LISTED)
    if as_json:
        output.emit({"incidents": [document(one) for one in found]})
        return
    rows = [
        (one.id, output.moment(one.opened_at), one.status, one.impact, one.visibility, output.clean(one.title))
        for one in found
    ]
    if rows:
        output.table(("incident", "opened", "status", "impact", "for", "title"), rows)
    else:
        output.say("no incidents")


@incident_app.command()
def show(id: Id, data: options.Data = None, as_json: options.Json = False) -> None:
    """Show an incident with all that was said about it.

    Shows its status, what it affects, since when and until when, and every update with its author, the oldest first.
    Authors are not shown on the status page.

    Example:

      $ kserve incident show inc_...
    """
    _, store = opened(data)
    with store:
        _print(book.incident(store, id), as_json)


def document(found: Incident) -> dict[str, Any]:
    """An incident as JSON."""
    made: dict[str, Any] = msgspec.to_builtins(found)
    return made


def _print(found: Incident, as_json: bool) -> None:
    if as_json:
        output.emit(document(found))
        return
    rows = [
        ("incident", found.id),
        ("title", output.clean(found.title)),
        ("status", f"{found.status}, {found.impact}, {found.visibility}"),
        ("affects", ", ".join([*found.components, *found.versions])),
        ("opened", output.moment(found.opened_at)),
        ("resolved", output.moment(found.resolved_at)),
    ]
    output.card(rows)
    for said in found.updates:
        output.say()
        output.say(f"{output.moment(said.at)}  {said.status}, {said.impact}, by {output.clean(said.by)}")
        for line in said.text.splitlines():
            output.say(f"  {output.clean(line)}")
