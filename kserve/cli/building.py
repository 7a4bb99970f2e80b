"""What comes before a publication: build, the manifest of an input, and synthetic input to try things on."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kserve.cli import inputs, options, output
from kserve.settings import load
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.words import count

if TYPE_CHECKING:
    from kserve.snapshots.build import Candidate

Input = Annotated[
    str, typer.Argument(metavar="INPUT", help="A Parquet or CSV file, a folder of parts, or a glob in quotes.")
]

ScoredNow = Annotated[
    str | None,
    typer.Option(
        "--scored-at",
        metavar="TIME",
        help="When the scores were made, such as 2026-11-21T04:00:00Z.",
        show_default="now",
    ),
]


@inputs.flags_of(inputs.Told, "told")
def build(source: Input, told: inputs.Told, data: options.Data = None, as_json: options.Json = False) -> None:
    """Build a sealed candidate from the output of a scoring pipeline.

    Use it to look at a snapshot before anyone is served from it: a candidate is whole, checked and on disk, but not
    announced. Rows that cannot be taken fail the build, unless --max-rejects allows them.

    Example:

      $ kserve build day1 --topics day1/topics.csv --topic-edges day1/topic_edges.csv
    """
    from kserve.snapshots.build import build as run

    settings = load(data=data, max_rejects=told.max_rejects)
    start = time.monotonic()
    with output.bars(rows="reading rows", bytes="writing bytes") as report:
        candidate = run(Catalog(settings.data), source, told.options(settings), report)
    for warning in candidate.warnings:
        output.warn(f"warning: {warning}")
    seconds = round(time.monotonic() - start, 3)
    if as_json:
        output.emit(_candidate_document(candidate) | {"seconds": seconds})
        return
    output.card(_candidate_rows(candidate.manifest, seconds))
    output.say(f"what the gates say of it: kserve check {candidate.version} --data {settings.data}")
    output.say(f"publish it with: kserve publish {candidate.version} --data {settings.data}")


def _candidate_document(candidate: Candidate) -> dict[str, Any]:
    return {"version": candidate.version, "manifest": candidate.manifest, "warnings": list(candidate.warnings)}


def _candidate_rows(manifest: dict[str, Any], seconds: float) -> list[tuple[str, str]]:
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


def _moment(scored_at: str | None) -> datetime:
    """In UTC and whole seconds, as the name of a version has it."""
    moment = datetime.now(UTC) if scored_at is None else options.aware(scored_at, "--scored-at")
    return moment.astimezone(UTC).replace(microsecond=0)


def manifest(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="A file, or a folder of parts.")],
    scored_at: ScoredNow = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a manifest that is there.")] = False,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Write the manifest of an input that is complete, for a pipeline that writes none.

    A pipeline writes it last, when all parts are there; by hand, whoever runs this says so. Without one, the gate
    "complete" holds what is built from the input. It lists rows, bytes and SHA-256 of each part: _manifest.json in a
    folder, FILE.manifest.json beside a file. --data plays no part here.

    Example:

      $ kserve manifest day1 --scored-at 2026-11-21T04:00:00Z --force
    """
    from kserve.snapshots.completeness import write_manifest

    file = write_manifest(source, _moment(scored_at), force=force)
    found = json.loads(file.read_bytes())
    if as_json:
        output.emit({"file": str(file), "manifest": found})
    else:
        rows, parts = count(found["rows"], "row"), count(len(found["parts"]), "part")
        output.say(f"{file}: {rows} in {parts}, scored at {found['scored_at']}")


def synth(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that is empty or not there yet.")],
    profiles: Annotated[int, typer.Option("--profiles", metavar="N", help="Rows to make.")] = 1_000_000,
    day: Annotated[int, typer.Option("--day", metavar="D", help="Day in the life of the population.")] = 1,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Another seed, another population.")] = 1,
    columns: Annotated[
        Literal["core", "all"],
        typer.Option("--columns", help="Only ids, scores, changes, locations and opt-outs, or details too."),
    ] = "all",
    scored_at: ScoredNow = None,
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
    from kserve.synth import Plan, write

    plan = Plan(profiles, day, seed, columns)
    when = _moment(scored_at)
    start = time.monotonic()
    with output.bars(profiles="making profiles") as report:
        files = write(out, plan, partial(report, "profiles"), when)
    seconds = round(time.monotonic() - start, 3)
    length = sum(file.stat().st_size for file in files)
    if as_json:
        about = {
            "profiles": profiles,
            "day": day,
            "seed": seed,
            "columns": columns,
            "bytes": length,
            "seconds": seconds,
        }
        output.emit({"out": str(out), "files": list(map(str, files)), "scored_at": when.isoformat()} | about)
        return
    output.say(f"{out}: {profiles:,} profiles of {output.moment(when)}, {output.size(length)}, {seconds:.1f} s")
    taxonomy = f"--topics {out}/topics.csv --topic-edges {out}/topic_edges.csv"
    output.say(f"publish them with: kserve publish {out} {taxonomy}")
