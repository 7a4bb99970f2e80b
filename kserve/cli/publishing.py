"""The nightly command, and its gates alone: publish and check."""

from __future__ import annotations

import glob
import shlex
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from kserve.cli import drawing, inputs, options, output
from kserve.errors import Held, KserveError, Pinned, RolledBack, UnknownVersion
from kserve.settings import Settings, load
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.log import author

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kserve.snapshots.cycle import Outcome, Request
    from kserve.snapshots.report import Acceptance, Finding, Report

First = Annotated[
    bool, typer.Option("--first", help="Nothing was ever published here: there is no version to compare with.")
]
Declare = Annotated[
    str | None,
    typer.Option(
        "--declare",
        metavar="model=NAME",
        autocompletion=options.complete_model,
        help="The scoring model was changed on purpose: take the thresholds registered for that.",
    ),
]
Accept = Annotated[
    list[str] | None,
    typer.Option(
        "--accept",
        metavar="GATE=REASON",
        autocompletion=options.complete_gate,
        help="Announce although this gate holds; may be repeated.",
    ),
]
Until = Annotated[
    str,
    typer.Option("--until", metavar="TIME|DURATION", help="How long that is accepted: a time, or 90m, 24h, 3d."),
]

LABELS = {
    "rows": "reading rows",
    "bytes": "writing bytes",
    "verify": "verifying bytes",
    "compare": "comparing profiles",
    "watch": "watching what is served",
}
"""Of the progress bars, by stage."""


@inputs.flags_of(inputs.Told, "told")
def publish(
    what: Annotated[
        str,
        typer.Argument(
            metavar="INPUT|VERSION",
            autocompletion=options.complete_version,
            help="An input to build from, a candidate, or a published version.",
        ),
    ],
    told: inputs.Told,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Stop after the gates: nothing is announced.")] = False,
    first: First = False,
    accept: Accept = None,
    until: Until = "24h",
    declare: Declare = None,
    reason: Annotated[
        str | None, typer.Option("--reason", metavar="TEXT", help="Why it is published, for the log.")
    ] = None,
    by: options.By = None,
    watch: Annotated[
        bool, typer.Option("--watch/--no-watch", help="Wait until the servers' answers are judged.")
    ] = True,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Publish in one cycle: build, re-read, check, stage, announce, watch.

    The nightly command. A gate that holds ends it with exit code 3, and the version in force stays. Whatever else
    fails, or is killed, at any step: the old version is in force, or the new one, and the same command goes on.

    Example:

      $ kserve publish day1 --topics day1/topics.csv --topic-edges day1/topic_edges.csv --first
    """
    from kserve.snapshots.check import limits_of, refuse_bad
    from kserve.snapshots.cycle import Request

    settings = load(data=data, by=by, max_rejects=told.max_rejects)
    catalog = Catalog(settings.data)
    is_version = _is_version(catalog, what)
    if is_version and told.given:
        raise typer.BadParameter(f"{what} is built already: --column and the like are for an INPUT")
    model, accepted = _model(declare), _acceptances(accept or [], author(settings), until)
    limits_of(settings, model)  # all that can be refused now is, and not only after a build
    for one in accepted:
        refuse_bad(one)
    request = Request(
        source=None if is_version else what,
        version=what if is_version else None,
        options=told.options(settings),
        by=author(settings),
        why=reason,
        first=first,
        model=model,
        accept=accepted,
        dry_run=dry_run,
        watch=watch,
    )
    _Publication(catalog, settings, request, as_json).run()


def _is_version(catalog: Catalog, what: str) -> bool:
    """Whether it names a version, and not an input. Raises UnknownVersion when it is neither."""
    try:
        catalog.folder(what)
    except UnknownVersion:
        if Path(what).exists() or glob.glob(what, recursive=True):
            return False
        raise UnknownVersion(f"{what} is neither a version in {catalog.data} nor an input that exists") from None
    return True


def _model(declared: str | None) -> str | None:
    if declared is None:
        return None
    kind, _, name = declared.partition("=")
    if kind != "model" or not name:
        raise typer.BadParameter(f"{declared!r} is not model=NAME, such as model=2011-10", param_hint="--declare")
    return name


def _acceptances(given: list[str], by: str, until: str) -> list[Acceptance]:
    from kserve.snapshots.report import Acceptance

    found = []
    for text in given:
        gate, _, reason = text.partition("=")
        if not gate or not reason.strip():
            raise typer.BadParameter(
                f"{text!r} is not GATE=REASON, such as movement='change announced on 19 October'", param_hint="--accept"
            )
        found.append(Acceptance(gate, reason.strip(), by, options.later(until, "--until")))
    return found


class Narrator:
    """Tells how a cycle goes, and keeps what it told; ``quiet``: only the latter.

    Nothing of it fails: whether anybody reads along changes nothing of what is published.
    """

    def __init__(self, quiet: bool) -> None:
        self.steps: list[dict[str, Any]] = []
        self.seen: Report | None = None
        self._quiet = quiet
        self._start = time.monotonic()
        self._bars = ExitStack()
        self._report: output.Report | None = None

    def __enter__(self) -> Narrator:
        return self

    def __exit__(self, *ending: object) -> None:
        self._end_bars()

    def _end_bars(self) -> None:
        with output.aside():
            self._bars.close()
        self._report = None

    def progress(self, stage: str, done: int, total: int) -> None:
        """A bar, until the step is done: lines and bars do not share a terminal well."""
        with output.aside():
            if self._report is None:
                self._report = self._bars.enter_context(output.bars(**LABELS))
            self._report(stage, done, total)

    def line(self, text: str) -> None:
        """Whatever else there is to say."""
        self._end_bars()
        if not self._quiet:
            with output.aside():
                output.say(text)

    def step(self, name: str, result: str) -> None:
        """One line, with the seconds since the one before."""
        from kserve.snapshots.cycle import STEPS

        self._end_bars()
        now = time.monotonic()
        number, seconds = STEPS.index(name) + 1, now - self._start
        self._start = now
        self.steps.append({"number": number, "name": name, "result": result, "seconds": round(seconds, 3)})
        self.line(f"{number}  {name:<8}  {result} ({seconds:.1f} s)")

    def report(self, report: Report) -> None:
        """The table of the gates and the drawing."""
        self._end_bars()
        self.seen = report
        if not self._quiet:
            with output.aside():
                print_report(report)

    def warn(self, text: str) -> None:
        """A line on standard error."""
        self._end_bars()
        output.warn(f"warning: {text}")


class _Publication:
    """One run of the command."""

    def __init__(self, catalog: Catalog, settings: Settings, request: Request, as_json: bool) -> None:
        self.catalog = catalog
        self.settings = settings
        self.request = request
        self.as_json = as_json
        self.start = time.monotonic()
        self.previous = catalog.live()

    def run(self) -> None:
        with Narrator(self.as_json) as told:
            told.line(self._plan())
            if self.request.version is not None:
                built_at = self.catalog.manifest(self.request.version).get("built_at", "at an unknown time")
                told.step("build", f"{self.request.version}, built {built_at}")
            try:
                outcome = self._cycle(told)
            except KserveError as error:
                self._fail(told, error)
            else:
                self._succeed(told, outcome)

    def _plan(self) -> str:
        what = self.request.version or self.request.source
        against = f"against {self.previous}, which is live" if self.previous else "as the first version"
        act = "check" if self.request.dry_run else "publish"
        return f"{act} {what} in {self.catalog.data}, {against}, by {self.request.by}"

    def _cycle(self, told: Narrator) -> Outcome:
        from kserve.snapshots import cycle

        outcome = cycle.publish(self.catalog, self.settings, self.request, told)
        if outcome.report is not None and self.request.dry_run:
            refuse(outcome.report)
        return outcome

    def _succeed(self, told: Narrator, outcome: Outcome) -> None:
        if self.as_json:
            ended = outcome.judged or "dry-run"
            output.emit(self._document(told, outcome.version, ended if outcome.announced else "dry-run"))
        elif not outcome.announced:
            told.line(f"nothing was announced; publish it with: {self._again(outcome.version)}")

    def _fail(self, told: Narrator, error: KserveError) -> None:
        """Tell what would help. In JSON, the error stands beside all that was told until then."""
        version = self.request.version if told.seen is None else told.seen.version
        helpful = self._helpful(error, version, told.seen)
        if not self.as_json:
            for line in ("what you can do:", *(f"  {line}" for line in helpful)) if helpful else ():
                told.line(line)
            if told.seen is not None:
                refuse(told.seen)  # the table has told why: the error need not
            raise error
        document = self._document(told, version, error.slug) | {"try": helpful}
        output.emit(document | {"error": output.error_document(error)})
        output.warn(str(error))
        raise typer.Exit(error.exit_code)

    def _document(self, told: Narrator, version: str | None, outcome: str) -> dict[str, Any]:
        return {
            "version": version,
            "previous": self.previous,
            "by": self.request.by,
            "built": self.request.version is None and version is not None,
            "outcome": outcome,
            "steps": told.steps,
            "report": None if told.seen is None else msgspec.to_builtins(told.seen),
            "manifest": None if version is None else self._manifest(version),
            "seconds": round(time.monotonic() - self.start, 3),
        }

    def _manifest(self, version: str) -> dict[str, Any] | None:
        try:
            return self.catalog.manifest(version)
        except KserveError:  # perhaps that is what failed; the error says so
            return None

    def _helpful(self, error: KserveError, version: str | None, report: Report | None) -> list[str]:
        """Command lines for what to do now."""
        if isinstance(error, Pinned):
            return [self._line("unpin", "--reason", "WHY")]
        if isinstance(error, RolledBack):
            return [self._line("history", "--log"), self._line("status")]
        if not isinstance(error, Held) or version is None or report is None:
            return []
        if report.against is None and not report.first:
            return [self._again(version, first=True)]
        lines = [] if report.against is None else [self._line("diff", report.against, version)]
        lines.append(self._line("check", version, *_first(self.request.first), *_declared(self.request)))
        if not any(finding.integrity for finding in report.held):
            lines.append(self._again(version, report.held))
        return lines

    def _again(self, version: str, held: Iterable[Finding] = (), *, first: bool = False) -> str:
        accepted = [word for finding in held for word in ("--accept", f"{finding.gate}=WHY")]
        accepted += ["--by", self.request.by or ""] if accepted else []
        words = [*_first(first or self.request.first), *_declared(self.request), *accepted]
        return self._line("publish", version, *words)

    def _line(self, *words: str) -> str:
        return shlex.join(["kserve", *words, "--data", str(self.catalog.data)])


def _first(first: bool) -> list[str]:
    return ["--first"] if first else []


def _declared(request: Request) -> list[str]:
    return [] if request.model is None else ["--declare", f"model={request.model}"]


def refuse(report: Report) -> None:
    """Raise Held when a gate holds."""
    gates = tuple(finding.gate for finding in report.held)
    if gates:
        raise Held(f"{report.version} is held by {', '.join(gates)}", gates)


def check(
    candidate: Annotated[
        str,
        typer.Argument(
            metavar="VERSION", autocompletion=options.complete_version, help="A candidate or a published version."
        ),
    ],
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="VERSION",
            autocompletion=options.complete_version,
            help="Compare with this published version.",
            show_default="the live one",
        ),
    ] = None,
    first: First = False,
    declare: Declare = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Ask the gates about a version, and announce nothing.

    Use it on a candidate before the night, and to look again at one that was held. It re-reads every byte, compares
    with what is live, and keeps the report in DATA/checks. Exit code 3: a gate holds it.

    Example:

      $ kserve check 20260103T040000Z-ff7e510a
    """
    from kserve.snapshots import cycle, report
    from kserve.snapshots.orders import Orders

    settings = load(data=data)
    catalog = Catalog(settings.data)
    request = cycle.Request(version=candidate, first=first, model=_model(declare), dry_run=True)
    live = against or catalog.live()
    if against is not None:
        catalog.open(against)  # what was asked for must be there: without it, there would only be no history
    with (
        Narrator(quiet=True) as told,
        catalog.reread(candidate, lambda *done: told.progress("verify", *done)) as opened,
    ):
        found = cycle.checked(catalog, settings, opened, live, request, told, Orders(catalog, settings).state())
    report.save(catalog.data, found)
    if as_json:
        _emit_check(found)
    else:
        against_what = f"compared with {found.against}" if found.against else "compared with nothing"
        output.say(f"{candidate}, {against_what}")
        print_report(found)
        refuse(found)


def _emit_check(found: Report) -> None:
    document = {"version": found.version, "held": [finding.gate for finding in found.held]}
    document["report"] = msgspec.to_builtins(found)
    try:
        refuse(found)
    except Held as error:
        output.emit(document | {"error": output.error_document(error)})
        output.warn(str(error))
        raise typer.Exit(error.exit_code) from None
    output.emit(document)


def print_report(report: Report) -> None:
    """The gates as a table, and how the scores are spread, before and now."""
    whys = ["", *map(_why, report.findings)]
    rows = [
        (found.gate, _verdict(found), found.figure, found.threshold, "the same" if why and why == before else why)
        for found, before, why in zip(report.findings, whys, whys[1:], strict=False)
    ]
    held = [number for number, finding in enumerate(report.findings) if finding.holds]
    output.say()
    output.table(("gate", "verdict", "figure", "threshold", "why"), rows, bold=held)
    versions = [] if report.old is None else [("old", report.old.histogram)]
    versions.append(("new", report.new.histogram))
    output.say()
    for line in drawing.distributions(versions, output.width(), output.ramp()):
        output.say(line)
    output.say()


def _verdict(finding: Finding) -> str:
    return finding.verdict if finding.accepted is None else "accepted"


def _why(finding: Finding) -> str:
    """Of a warning or a hold; and who accepted that, and why."""
    if finding.verdict == "pass":
        return ""
    reason = output.clean(finding.reason)
    if finding.accepted is None:
        return reason
    given = finding.accepted
    return f"by {given.by} until {output.moment(given.until)}: {output.clean(given.reason)}; {reason}"
