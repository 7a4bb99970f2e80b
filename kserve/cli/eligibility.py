"""Who meets a rule."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kserve.cli import options, output
from kserve.errors import InputError, RuleError
from kserve.rule import Rule

if TYPE_CHECKING:
    from kserve._core import Snapshot


def _points(flag: str, text: str) -> Any:
    return typer.Option(flag, metavar="POINTS", help=text)


def _several(flag: str, metavar: str, text: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=f"{text}; may be repeated.")


Ids = Annotated[list[str] | None, typer.Argument(metavar="ID...", help="Profiles to decide on.")]
IdsFile = Annotated[
    str | None, typer.Option("--ids", metavar="FILE", help="The same from a file, one id a line; - is standard input.")
]
Count = Annotated[bool, typer.Option("--count", help="Count all profiles that are eligible.")]
Select = Annotated[
    int | None, typer.Option("--select", metavar="N", min=1, help="List the N eligible profiles that score best.")
]
RuleSource = Annotated[
    str | None, typer.Option("--rule", metavar="FILE|JSON", help="A rule as JSON, or a file of it; flags add to it.")
]
MinScore = Annotated[float | None, _points("--min-score", "Score at least.")]
MaxScore = Annotated[float | None, _points("--max-score", "Score at most.")]
AnyTopic = Annotated[list[str] | None, _several("--any-topic", "SLUG", "One of these topics, or one below it")]
AllTopic = Annotated[list[str] | None, _several("--all-topic", "SLUG", "Each of these topics, or one below it")]
MinTopicScore = Annotated[float | None, _points("--min-topic-score", "Score in these topics at least.")]
Location = Annotated[
    list[str] | None, _several("--location", "PATH", "In one of these, such as US/New York, or below it")
]
NotLocation = Annotated[
    list[str] | None, _several("--not-location", "PATH", "In none of these nor below, and not unknown")
]
MinDayChange = Annotated[float | None, _points("--min-day-change", "Change within a day at least.")]
MinWeekChange = Annotated[float | None, _points("--min-week-change", "Change within a week at least.")]
MinMonthChange = Annotated[float | None, _points("--min-month-change", "Change within a month at least.")]
MinNetworkScore = Annotated[float | None, _points("--min-network-score", "Network score at least.")]
MinAmplification = Annotated[float | None, _points("--min-amplification", "Amplification at least.")]
MinTrueReach = Annotated[int | None, typer.Option("--min-true-reach", metavar="PEOPLE", help="True reach at least.")]


def eligible(
    ids: Ids = None,
    ids_file: IdsFile = None,
    count: Count = False,
    select: Select = None,
    rule: RuleSource = None,
    min_score: MinScore = None,
    max_score: MaxScore = None,
    any_topics: AnyTopic = None,
    all_topics: AllTopic = None,
    min_topic_score: MinTopicScore = None,
    locations: Location = None,
    not_locations: NotLocation = None,
    min_day_change: MinDayChange = None,
    min_week_change: MinWeekChange = None,
    min_month_change: MinMonthChange = None,
    min_network_score: MinNetworkScore = None,
    min_amplification: MinAmplification = None,
    min_true_reach: MinTrueReach = None,
    version: options.OfVersion = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Decide who meets a rule, and say why not.

    Use it before a campaign, to see whom a threshold lets in: how many (--count), the best of them (--select), or which
    of the profiles that you name, with the criteria that the others fail. All criteria must hold. What is not known of
    a profile never satisfies one, and who is not in the snapshot fails as "unknown".

    Example:

      $ kserve eligible --min-score 40 --location US --count --select 5
    """
    flags = {name: value for name, value in locals().items() if name in Rule.__dataclass_fields__}
    if ids is None and ids_file is None and select is None and not count:
        raise typer.BadParameter("nothing to decide on: give IDs, --ids FILE, --count or --select N")
    wanted = _rule(rule, flags)
    people = [_argument(text) for text in ids or []] + list(_listed(ids_file))
    snapshot = options.catalog(data).open(version)
    document: dict[str, Any] = {"version": snapshot.version, "rule": wanted.to_dict()}
    if count:
        document["count"] = snapshot.count(wanted)
    if select is not None:
        document["selected"] = _selected(snapshot, wanted, select)
    if ids is not None or ids_file is not None:
        document["results"] = [_verdict(snapshot, wanted, profile_id) for profile_id in people]
    if as_json:
        output.emit(document)
    else:
        _print(document, snapshot.profiles)


def _rule(source: str | None, flags: dict[str, Any]) -> Rule:
    given = {name: value for name, value in flags.items() if value is not None}
    if source is None and not given:
        raise typer.BadParameter("no criterion: give at least one, or --rule '{}' for all profiles")
    written = {} if source is None else _written_rule(source)
    return Rule.of(written | given)


def _written_rule(source: str) -> dict[str, Any]:
    try:
        text = source if source.lstrip().startswith("{") else Path(source).read_text("utf-8")
        rule = json.loads(text)
    except OSError as error:
        raise RuleError(f"{source}: cannot be read: {error.strerror}; name a file of JSON, or write the JSON") from None
    except ValueError as error:
        raise RuleError(f"{source}: not JSON: {error}") from None
    if not isinstance(rule, dict):
        raise RuleError(f"{source}: a rule is an object of criteria, not {type(rule).__name__}")
    return rule


def _argument(text: str) -> int:
    profile_id = options.profile_id(text)
    if profile_id is None:
        raise typer.BadParameter(f"{text!r} is not a profile id: digits, below 2^64", param_hint="ID")
    return profile_id


def _listed(file: str | None) -> Iterator[int]:
    if file is None:
        return
    try:
        lines = (sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()).splitlines()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=file) from None
    for number, line in enumerate(lines, 1):
        text = line.decode("utf-8", "backslashreplace").strip()
        profile_id = options.profile_id(text)
        if profile_id is not None:
            yield profile_id
        elif text:
            raise InputError(f"{text!r} is not a profile id", file=file, row=number, remedy="write one id a line")


def _selected(snapshot: Snapshot, rule: Rule, limit: int) -> list[dict[str, Any]]:
    best = snapshot.select(rule, limit)
    scores = snapshot.get_many(best)
    rows = zip(best.tolist(), scores.values.tolist(), scores.scored.tolist(), strict=True)
    return [{"id": str(profile_id), "score": score if scored else None} for profile_id, score, scored in rows]


def _verdict(snapshot: Snapshot, rule: Rule, profile_id: int) -> dict[str, Any]:
    failed = snapshot.explain(rule, profile_id)
    return {"id": str(profile_id), "eligible": not failed, "failed": list(failed)}


def _print(document: dict[str, Any], profiles: int) -> None:
    criteria = "; ".join(f"{name} {_shown(value)}" for name, value in document["rule"].items())
    output.card([("version", document["version"]), ("rule", criteria or "all profiles")])
    if "count" in document:
        output.say(f"{document['count']:,} of {profiles:,} profiles are eligible")
    for one in document.get("selected", ()):
        output.say(f"{one['id']:>20}  {output.points(one['score'], 'unscored')}")
    for one in document.get("results", ()):
        verdict = "eligible" if one["eligible"] else f"not eligible: {', '.join(one['failed'])}"
        output.say(f"{one['id']:>20}  {verdict}")


def _shown(value: float | int | tuple[str, ...]) -> str:
    return output.clean(" or ".join(value)) if isinstance(value, tuple) else f"{value:g}"
