"""What is going on in a data directory now."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from kserve.cli import options, output
from kserve.cli.output import clean, moment
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.orders import Orders
from kserve.snapshots.state import State

if TYPE_CHECKING:
    from kserve._roster import SeatView
    from kserve.snapshots.log import Entry

LAST_ACTS = 5


def status(data: options.Data = None, as_json: options.Json = False) -> None:
    """Show what is in force, which process serves what, and the last acts.

    The first thing to look at when something seems wrong. A process with another version than the live one, a pin, and
    a frozen sentinel are all seen here. It works without a server, and while somebody publishes.

    Example:

      $ kserve status
    """
    settings = options.existing(data)
    catalog = Catalog(settings.data)
    state = Orders(catalog, settings).state()
    seats = processes(catalog)
    acts = catalog.log.entries()[-LAST_ACTS:]
    if as_json:
        output.emit(_document(catalog, state, seats, acts))
        return
    output.card(_rows(catalog, state))
    output.say()
    _print_processes(seats, catalog.live())
    if acts:
        output.say()
        print_acts(acts)


def processes(catalog: Catalog) -> list[SeatView]:
    """Those of this host that read from here."""
    from kserve._roster import Roster

    return Roster(catalog.roster).seats() if catalog.roster.exists() else []


def _document(catalog: Catalog, state: State, seats: list[SeatView], acts: list[Entry]) -> dict[str, Any]:
    return {
        "announced": catalog.live(),
        "good": state.good[-1] if state.good else None,
        "judged": state.unjudged is None,
        "staged": catalog.staged(),
        "pin": None if state.pin is None else msgspec.to_builtins(state.pin),
        "frozen": state.frozen,
        "quarantined": [one.version for one in state.quarantined.values()],
        "processes": [_process_document(seat) for seat in seats],
        "acts": [msgspec.to_builtins(act) for act in acts],
    }


def _process_document(seat: SeatView) -> dict[str, Any]:
    return {
        "pid": seat.pid,
        "role": seat.role,
        "address": seat.address or None,
        "since": _time(seat.since).isoformat(),
        "version": seat.version,
        "switched": _time(seat.switched).isoformat() if seat.switched else None,
        "staged": seat.staged,
        "staged_state": seat.staged_state or None,
        "refused": seat.refused or None,
        "resident": seat.resident,
        "served": seat.served._asdict(),
    }


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _rows(catalog: Catalog, state: State) -> list[tuple[str, str]]:
    live = catalog.live()
    judged = "" if state.unjudged is None else ", not judged yet"
    pinned = "no"
    if state.pin is not None:
        pinned = f"{state.pin.version}, since {moment(state.pin.at)} by {state.pin.by}: {clean(state.pin.why)}"
    return [
        ("announced", f"{live}{judged}" if live else "nothing"),
        ("last good", state.good[-1] if state.good else "none"),
        ("staged", catalog.staged() or "nothing"),
        ("pinned", pinned),
        ("sentinel", "frozen until `kserve unpin`: a human must look" if state.frozen else "not frozen"),
        ("quarantine", ", ".join(one.version for one in state.quarantined.values()) or "empty"),
    ]


def _print_processes(seats: list[SeatView], live: str | None) -> None:
    if not seats:
        output.say("no process reads from here")
        return
    columns = ("process", "role", "address", "version", "in memory", "staged", "answers")
    rows = [
        (
            f"{seat.pid}",
            seat.role,
            seat.address or "-",
            f"{seat.version or 'none'}{'' if seat.version == live else ' !'}",
            "unknown" if seat.resident is None else f"{seat.resident:.1%}",
            f"{seat.staged} {seat.staged_state}" if seat.staged else "-",
            f"{seat.served.answers:,}",
        )
        for seat in seats
    ]
    output.table(columns, rows, right=("in memory", "answers"))
    if any(seat.version != live for seat in seats):
        output.say("! not the announced version: its log says why")
    for seat in seats:
        if seat.refused:
            output.say(f"process {seat.pid} refuses {seat.staged}: {clean(seat.refused)}")


def print_acts(acts: list[Entry]) -> None:
    """Acts of the log as a table."""
    rows = [
        (str(act.n), moment(act.at), act.act, act.version or "-", clean(act.by), clean(act.why or _seen(act)))
        for act in acts
    ]
    output.table(("act", "at", "what", "version", "by", "why"), rows)


def _seen(act: Entry) -> str:
    """What an act without a reason was decided on, in a word."""
    match act.act:
        case "check":
            held = act.seen.get("held") or []
            return f"held by {', '.join(held)}" if held else "no gate holds"
        case "breach":
            return ", ".join(act.seen.get("figures", {}))
        case "announce":
            return f"after {act.seen['previous']}" if act.seen.get("previous") else "the first"
        case _:
            return ""
