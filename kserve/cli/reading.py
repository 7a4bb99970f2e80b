"""What there is to read: the history, one version, profiles."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from kserve.cli import options, output
from kserve.cli.output import clean, moment, points, whole
from kserve.cli.status import print_acts
from kserve.errors import NothingPublished, UnknownProfile
from kserve.records import NETWORKS
from kserve.serving import models
from kserve.settings import load
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.orders import Orders
from kserve.snapshots.state import State

if TYPE_CHECKING:
    from kserve._core import Snapshot
    from kserve.records import Profile
    from kserve.snapshots.catalog import Version


History = Annotated[bool, typer.Option("--log", help="Print all acts: who did what, when and why.")]
Verify = Annotated[
    bool, typer.Option("--verify", help="Check that nobody altered the log: each line's chain to the last.")
]


def history(
    log: History = False, verify: Verify = False, data: options.Data = None, as_json: options.Json = False
) -> None:
    """List all versions, the latest scores first.

    Look here for what is announced, what went before it, and which candidates wait to be published. "Retired" versions
    were announced before, "published" ones never were; publish announces any of them again. "Good" ones were watched
    without a breach: a rollback goes back to the last of them.

    Example:

      $ kserve history
    """
    settings = load(data=data)
    catalog = Catalog(settings.data)
    document: dict[str, Any] = {"verified": catalog.log.verify()} if verify else {}
    if log:
        acts = catalog.log.entries()
        document["acts"] = [msgspec.to_builtins(act) for act in acts]
        if not as_json:
            print_acts(acts)
    else:
        state = Orders(catalog, settings).state()
        versions = catalog.versions()
        document |= {"announced": catalog.announced(), "frozen": state.frozen}
        document["versions"] = [_version_document(version, state) for version in versions]
        if not as_json:
            _print_history(catalog, versions, state)
    if as_json:
        output.emit(document)
    elif verify:
        output.say(f"{document['verified']:,} acts, each line follows from the one before")


def _version_document(version: Version, state: State) -> dict[str, Any]:
    times = {name: value.isoformat() for name, value in asdict(version).items() if hasattr(value, "isoformat")}
    document = asdict(version) | times
    return {"version": document.pop("name")} | document | _marks(version.name, state)


def _marks(name: str, state: State) -> dict[str, bool]:
    return {
        "good": name in state.good,
        "pinned": state.pin is not None and state.pin.version == name,
        "quarantined": any(one.version == name for one in state.quarantined.values()),
    }


def _print_history(catalog: Catalog, versions: list[Version], state: State) -> None:
    if not versions:
        output.say(f"nothing is built yet in {catalog.data}: try `kserve build INPUT`")
        return
    rows = [
        (
            f"{version.name} {'*' if version.state == 'announced' else ''}",
            version.state,
            ", ".join(mark for mark, true in _marks(version.name, state).items() if true),
            moment(version.scored_at),
            whole(version.profiles),
            output.size(version.file_bytes),
            moment(version.announced_at),
        )
        for version in versions
    ]
    announced = [number for number, version in enumerate(versions) if version.state == "announced"]
    columns = ("version", "state", "marks", "scored at", "profiles", "size", "announced at")
    output.table(columns, rows, right=("profiles", "size"), bold=announced)
    if announced:
        output.say("* announced: this one is served")


def show(
    version: Annotated[
        str | None,
        typer.Argument(
            autocompletion=options.complete_version,
            help="A published version or a candidate.",
            show_default="the announced one",
        ),
    ] = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Show what a version is made of: counts, origin, and where its bytes go.

    Use it before publishing a candidate, and to find out which input a served version came from.

    Example:

      $ kserve show
    """
    catalog = options.catalog(data)
    name = version or _announced(catalog)
    manifest = catalog.manifest(name)
    state = next(known.state for known in catalog.versions() if known.name == name)
    if as_json:
        output.emit({"version": name, "state": state, "manifest": manifest})
    else:
        output.card([("version", name), ("state", state), *_manifest_rows(manifest)])
        output.say()
        _print_sections(manifest)


def _announced(catalog: Catalog) -> str:
    name = catalog.announced()
    if name is None:
        raise NothingPublished(f"nothing is announced in {catalog.data}: `kserve history` lists what is built")
    return name


def _manifest_rows(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    rows = manifest["rows"]
    rejected = ", ".join(f"{count:,} {reason}" for reason, count in rows["rejected"].items()) or "none"
    sources = manifest["changes_from"].items()
    changes = ", ".join(f"{period} from {source}" if source else f"{period} unknown" for period, source in sources)
    parts = [f"{clean(part['name'])} ({output.size(part['bytes'])}, {part['sha256']})" for part in manifest["parts"]]
    return [
        ("parent", manifest["parent"] or "none"),
        ("scored at", f"{manifest['scored_at']} (from the {manifest['scored_at_from']})"),
        ("built at", f"{manifest['built_at']} by {manifest['tool']}"),
        ("profiles", f"{manifest['profiles']:,}: {manifest['scored']:,} scored, {manifest['unscored']:,} unscored"),
        ("rows", f"{rows['read']:,} read, {rows['taken']:,} taken, {rows['opted_out']:,} opted out"),
        ("rejected", rejected),
        ("topics", whole(manifest["topics"])),
        ("locations", whole(manifest["locations"])),
        ("changes", changes),
        ("format", f"{manifest['schema']['format']}"),
        ("columns", ", ".join(manifest["schema"]["columns"])),
        *(("input", part) for part in parts),
        *(("warning", clean(warning)) for warning in manifest["warnings"]),
    ]


def _print_sections(manifest: dict[str, Any]) -> None:
    profiles = manifest["profiles"]
    lengths = {name: section["length"] for name, section in manifest["sections"].items()}
    lengths["header and padding"] = manifest["file_bytes"] - sum(lengths.values())
    lengths["whole file"] = manifest["file_bytes"]
    rows = [(name, f"{length:,}", f"{length / profiles:.1f}") for name, length in lengths.items()]
    output.table(
        ("section", "bytes", "bytes a profile"), rows, right=("bytes", "bytes a profile"), bold=[len(rows) - 1]
    )


def get(
    who: Annotated[
        list[str],
        typer.Argument(metavar="ID|NETWORK:NAME...", help="Profile ids, or identities such as tw:name or fb:10002."),
    ],
    version: options.OfVersion = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Show all that a snapshot knows of one or more profiles.

    For questions about single profiles. What is not known is said to be "unknown", and a profile without a score is
    "unscored". Who is not there, or has opted out, is reported, with exit code 4, after those who are.

    Example:

      $ kserve get 4619167914336515441 tw:maple_1dg0q4kr
    """
    for text in who:
        if options.profile_id(text) is None and options.identity(text) is None:
            networks = ", ".join(NETWORKS)
            raise typer.BadParameter(f"{text!r} is neither a profile id (below 2^64) nor NETWORK:NAME, of {networks}")
    snapshot = options.catalog(data).open(version)
    found, missing = _look_up(snapshot, who)
    if as_json:
        output.emit(_get_document(snapshot, found, missing))
    else:
        _print_profiles(found)
    for error in missing:
        output.warn(str(error))
    if missing:
        raise typer.Exit(UnknownProfile.exit_code)


def _look_up(snapshot: Snapshot, who: list[str]) -> tuple[list[Profile], list[UnknownProfile]]:
    found, missing = [], []
    for text in who:
        asked = options.identity(text)
        profile_id = snapshot.find(*asked) if asked else options.profile_id(text)
        try:
            if profile_id is None:
                raise UnknownProfile(text, snapshot.version)
            found.append(snapshot.get(profile_id))
        except UnknownProfile as error:
            missing.append(error)
    return found, missing


def _get_document(snapshot: Snapshot, found: list[Profile], missing: list[UnknownProfile]) -> dict[str, Any]:
    document: dict[str, Any] = {
        "version": snapshot.version,
        "profiles": [msgspec.to_builtins(models.Profile.of(one)) for one in found],
    }
    if missing:
        document["unknown"] = [str(error.profile_id) for error in missing]
        document["error"] = output.error_document(missing[0])
    return document


def _print_profiles(found: list[Profile]) -> None:
    for number, profile in enumerate(found):
        if number:
            output.say()
        output.card(_profile_rows(profile))


def _profile_rows(profile: Profile) -> list[tuple[str, str]]:
    changes = ", ".join(f"{name} {_change(change)}" for name, change in profile.changes._asdict().items())
    topics = ", ".join(f"{clean(topic.slug)} ({points(topic.score)})" for topic in profile.topics)
    identities = [(network, _identity_text(*who)) for network, who in profile.identities.items()]
    return [
        ("profile", str(profile.id)),
        ("score", points(profile.score, "unscored")),
        ("changes", changes),
        ("network score", points(profile.network_score)),
        ("amplification", points(profile.amplification)),
        ("true reach", whole(profile.true_reach)),
        ("topics", topics or "none known"),
        ("location", _text(profile.location)),
        ("nick", _text(profile.nick)),
        *identities,
        ("influencers", _influence(profile.influencers, profile.influencer_count)),
        ("influencees", _influence(profile.influencees, profile.influencee_count)),
        ("version", profile.version),
    ]


def _change(value: float | None) -> str:
    return "unknown" if value is None else f"{value:+.2f}"


def _text(value: str | None) -> str:
    return "unknown" if value is None else clean(value)


def _identity_text(network_id: str | None, name: str | None) -> str:
    known = [("id", network_id), ("name", name)]
    return ", ".join(f"{what} {clean(value)}" for what, value in known if value is not None)


def _influence(ids: tuple[int, ...], count: int | None) -> str:
    return f"{whole(count)} in all{': ' if ids else ''}{', '.join(map(str, ids))}"
