"""What writes: build, publish, and the synthetic input to try them on."""

from __future__ import annotations

import glob
import time
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kserve.cli import options, output
from kserve.errors import UnknownVersion
from kserve.settings import load
from kserve.snapshots.catalog import Catalog

if TYPE_CHECKING:
    from kserve.snapshots.build import Candidate, Options

Input = Annotated[
    str, typer.Argument(metavar="INPUT", help="A Parquet or CSV file, a folder of parts, or a glob in quotes.")
]
Column = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="OUR=THEIRS", help="The input's name of one of our columns; may be repeated."),
]
Topics = Annotated[
    Path | None, typer.Option("--topics", metavar="FILE", help="Topics that there are: topicId, topicSlug, ... as CSV.")
]
TopicEdges = Annotated[
    Path | None,
    typer.Option("--topic-edges", metavar="FILE", help="Edges between them: parentTopicSlug, childTopicSlug as CSV."),
]
ScoredAt = Annotated[
    str | None,
    typer.Option(
        "--scored-at",
        metavar="TIME",
        help="When the scores were made, such as 2026-11-21T04:00:00Z.",
        show_default="what the input's manifest says, else now",
    ),
]
MaxRejects = Annotated[int | None, options.setting("max_rejects")]
RejectsFile = Annotated[
    Path | None,
    typer.Option("--rejects", metavar="FILE", help="Where to list refused rows.", show_default="below DATA/rejects"),
]


def build(
    source: Input,
    column: Column = None,
    topics: Topics = None,
    topic_edges: TopicEdges = None,
    scored_at: ScoredAt = None,
    max_rejects: MaxRejects = None,
    rejects: RejectsFile = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Build a sealed candidate from the output of a scoring pipeline.

    Use it to look at a snapshot before anyone is served from it: a candidate is whole, checked and on disk, but not
    announced. Rows that cannot be taken fail the build, unless --max-rejects allows them.

    Example:

      $ kserve build day1 --topics day1/topics.csv --topic-edges day1/topic_edges.csv
    """
    settings = load(data=data, max_rejects=max_rejects)
    told = _build_options(column, topics, topic_edges, scored_at, settings.max_rejects, rejects)
    start = time.monotonic()
    candidate = build_candidate(Catalog(settings.data), source, told)
    seconds = round(time.monotonic() - start, 3)
    if as_json:
        output.emit(_candidate_document(candidate) | {"seconds": seconds})
        return
    output.card(candidate_rows(candidate.manifest, seconds))
    output.say(f"publish it with: kserve publish {candidate.version} --data {settings.data}")


def build_candidate(catalog: Catalog, source: str | Path, told: Options) -> Candidate:
    """Build with progress bars, and with its warnings on standard error."""
    from kserve.snapshots.build import build as run

    with output.bars(rows="reading rows", bytes="writing bytes") as report:
        candidate = run(catalog, source, told, report)
    for warning in candidate.warnings:
        output.warn(f"warning: {warning}")
    return candidate


def _build_options(
    column: list[str] | None,
    topics: Path | None,
    topic_edges: Path | None,
    scored_at: str | None,
    max_rejects: int,
    rejects: Path | None,
) -> Options:
    from kserve.snapshots.build import Options

    return Options(
        rename=dict(map(_renaming, column or [])),
        topics=topics,
        topic_edges=topic_edges,
        scored_at=None if scored_at is None else _aware(scored_at),
        max_rejects=max_rejects,
        rejects=rejects,
    )


def _renaming(text: str) -> tuple[str, str]:
    ours, _, theirs = text.partition("=")
    if not ours or not theirs:
        raise typer.BadParameter(f"{text!r} is not OUR=THEIRS, such as score=SCORE_COL", param_hint="--column")
    return ours, theirs


def _aware(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise typer.BadParameter(
            f"{text!r} is no time with a time zone, such as 2026-11-21T04:00:00Z", param_hint="--scored-at"
        )
    return moment


def _candidate_document(candidate: Candidate) -> dict[str, Any]:
    return {"version": candidate.version, "manifest": candidate.manifest, "warnings": list(candidate.warnings)}


def candidate_rows(manifest: dict[str, Any], seconds: float) -> list[tuple[str, str]]:
    """The result of a build in words."""
    rows = manifest["rows"]
    rejected = ", ".join(f"{count:,} {reason}" for reason, count in rows["rejected"].items()) or "none"
    profiles = manifest["profiles"]
    a_profile = manifest["file_bytes"] / profiles
    return [
        ("version", manifest["version"]),
        ("profiles", f"{profiles:,}: {manifest['scored']:,} scored, {manifest['unscored']:,} unscored"),
        ("rows", f"{rows['read']:,} read, {rows['opted_out']:,} opted out"),
        ("rejected", rejected),
        ("size", f"{output.size(manifest['file_bytes'])}, {a_profile:.1f} bytes a profile"),
        ("seconds", f"{seconds:.1f}"),
    ]


def publish(
    what: Annotated[
        str,
        typer.Argument(
            metavar="VERSION|INPUT",
            autocompletion=options.complete_version,
            help="A candidate, a published version, or an input to build first.",
        ),
    ],
    column: Column = None,
    topics: Topics = None,
    topic_edges: TopicEdges = None,
    scored_at: ScoredAt = None,
    max_rejects: MaxRejects = None,
    rejects: RejectsFile = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Re-read a version, verify every byte of it, and announce it to all readers.

    The nightly command: it builds first when it is given an input. A version that was announced before is announced
    again. Whatever fails, readers keep the version that they have.

    Example:

      $ kserve publish day1 --topics day1/topics.csv --topic-edges day1/topic_edges.csv
    """
    settings = load(data=data, max_rejects=max_rejects)
    catalog = Catalog(settings.data)
    start = time.monotonic()
    is_version = _is_version(catalog, what)
    if is_version and (column or topics or topic_edges or scored_at or rejects or max_rejects is not None):
        raise typer.BadParameter(f"{what} is built already: --column and the like are for an INPUT")
    steps = Steps(quiet=as_json)
    if is_version:
        version = what
        steps.done("build", f"{version}, built {catalog.manifest(version)['built_at']}")
    else:
        told = _build_options(column, topics, topic_edges, scored_at, settings.max_rejects, rejects)
        version = _build_step(catalog, what, told, steps)
    previous = catalog.live()
    publish_steps(catalog, version, steps)
    if as_json:
        document = {"version": version, "previous": previous, "built": not is_version}
        seconds = round(time.monotonic() - start, 3)
        output.emit(document | {"manifest": catalog.manifest(version), "seconds": seconds})


def _is_version(catalog: Catalog, what: str) -> bool:
    """Whether it names a version, and not an input. Raises UnknownVersion when it is neither."""
    try:
        catalog.folder(what)
    except UnknownVersion:
        if Path(what).exists() or glob.glob(what, recursive=True):
            return False
        raise UnknownVersion(f"{what} is neither a version in {catalog.data} nor an input that exists") from None
    return True


class Steps:
    """The numbered steps of a publication, each told when it is done."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._number = 0
        self._start = time.monotonic()

    def done(self, name: str, result: str) -> None:
        """Tell of one step, with the seconds since the one before."""
        self._number += 1
        now = time.monotonic()
        if not self._quiet:
            output.say(f"{self._number}  {name:<8}  {result} ({now - self._start:.1f} s)")
        self._start = now


def _build_step(catalog: Catalog, source: str, told: Options, steps: Steps) -> str:
    candidate = build_candidate(catalog, source, told)
    manifest = candidate.manifest
    rejected = sum(manifest["rows"]["rejected"].values())
    rows = f"{manifest['profiles']:,} profiles from {manifest['rows']['read']:,} rows, {rejected:,} rejected"
    steps.done("build", f"{candidate.version}: {rows}")
    return candidate.version


def publish_steps(catalog: Catalog, version: str, steps: Steps) -> None:
    """What follows the build."""
    manifest = catalog.manifest(version)
    results = {
        "verify": f"{manifest['file_bytes']:,} bytes re-read as a reader will, every checksum right",
        "rename": f"it lies in {catalog.snapshots / version}",
        "announce": f"{catalog.data} now serves {version}: {manifest['profiles']:,} profiles",
    }
    with output.bars(verify="verifying bytes") as report:
        catalog.publish(version, partial(report, "verify"), lambda step: steps.done(step, results[step]))


def synth(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that is empty or not there yet.")],
    profiles: Annotated[int, typer.Option("--profiles", metavar="N", help="Rows to make.")] = 1_000_000,
    day: Annotated[int, typer.Option("--day", metavar="D", help="Day of the scores; day 0 is 1 January 2026.")] = 1,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Another seed, another population.")] = 1,
    columns: Annotated[
        Literal["core", "all"],
        typer.Option("--columns", help="Only ids, scores, changes, locations and opt-outs, or details too."),
    ] = "all",
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Make the output of a scoring pipeline that never ran.

    For trying things out and for load tests without real people's data: scores spread like published ones, with topics,
    cities, identities, unscored profiles and opt-outs. The next day is the same population, a little moved. The same
    seed, day and number give the same profiles. OUT stands alone: --data plays no part here.

    Example:

      $ kserve synth day1 --profiles 2000 --day 1
    """
    from kserve.synth import Plan, scored_at, write

    plan = Plan(profiles, day, seed, columns)
    start = time.monotonic()
    with output.bars(profiles="making profiles") as report:
        files = write(out, plan, partial(report, "profiles"))
    seconds = round(time.monotonic() - start, 3)
    count = sum(file.stat().st_size for file in files)
    if as_json:
        about = {"profiles": profiles, "day": day, "seed": seed, "columns": columns, "bytes": count, "seconds": seconds}
        output.emit({"out": str(out), "files": list(map(str, files)), "scored_at": scored_at(day).isoformat()} | about)
        return
    when = output.moment(scored_at(day))
    output.say(f"{out}: {profiles:,} profiles of {when}, {output.size(count)}, {seconds:.1f} s")
    taxonomy = f"--topics {out}/topics.csv --topic-edges {out}/topic_edges.csv"
    output.say(f"publish them with: kserve publish {out} {taxonomy}")
