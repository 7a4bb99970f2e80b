"""All gates on one candidate, against the live version and the good ones before it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from pydantic import ValidationError

from kserve._core import Snapshot
from kserve.errors import ArgumentError, SettingError
from kserve.settings import Gates, Settings
from kserve.snapshots.compare import compare, portrait
from kserve.snapshots.gates import GATES, Gate
from kserve.snapshots.judging import Case, Ids, Judgement
from kserve.snapshots.measures import Comparison
from kserve.snapshots.report import Acceptance, Figures, Finding, Report

Progress = Callable[[int, int], None]

NO_HISTORY = "there is no live version to compare with: no history is not a pass; a first publish is declared (--first)"
FIRST = "first publish: there is nothing to compare with"


def check(
    candidate: Snapshot,
    manifest: Mapping[str, Any],
    *,
    live: Snapshot | None,
    live_manifest: Mapping[str, Any] | None = None,
    history: Sequence[Figures] = (),
    settings: Settings,
    first: bool = False,
    model: str | None = None,
    acceptances: Sequence[Acceptance] = (),
    quarantined: Collection[str] = (),
    now: datetime | None = None,
    opted_out: Ids | None = None,
    once_opted_out: Ids | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compare a candidate, whose checksums the caller has verified, and judge it.

    Args:
        manifest: the candidate's.
        live, live_manifest: the version in force; None: there is none to compare with.
        history: figures of the good versions since the last change of the model, the oldest first.
        first: nothing to compare with is no reason to hold; it changes nothing when there is a live version.
        model: the declared change of the model, a name of ``settings.models``.
        acceptances: those in force for this version; one that has run out accepts nothing.
        quarantined: digests of content that must not return, and names of versions.
        now: aware; by default the time it is.
        opted_out: uint64[n], who has opted out in the candidate's input; None: not known, which holds.
        once_opted_out: uint64[n], the same of the live version.
        progress: called as ``progress(done, total)`` while the versions are compared.

    Raises SettingError: for an unknown model, gate or field, an acceptance of a gate of integrity, or without reason or
    author, bad golden profiles.
    """
    now = now or datetime.now(UTC)
    limits = limits_of(settings, model)
    accepted = _in_force(acceptances, now)
    compared = None if live is None else compare(live, candidate, progress, least=limits.cluster)
    case = Case(
        candidate=candidate,
        manifest=manifest,
        live=live,
        live_manifest=live_manifest or {},
        new=portrait(candidate, progress) if compared is None else compared.new,
        comparison=compared,
        history=history,
        settings=settings,
        limits=limits,
        now=now,
        quarantined=quarantined,
        opted_out=opted_out,
        once_opted_out=np.empty(0, np.uint64) if once_opted_out is None else once_opted_out,
    )
    return _report(case, first, model, accepted)


def _report(case: Case, first: bool, model: str | None, accepted: Mapping[str, Acceptance]) -> Report:
    first = first and case.comparison is None
    compared = case.comparison
    return Report(
        version=case.new.version,
        against=None if compared is None else compared.old.version,
        at=case.now,
        first=first,
        model=model,
        digest=case.new.digest,
        findings=tuple(_finding(gate, _judged(gate, case, compared, first), accepted) for gate in GATES),
        new=Figures.of(case.new),
        old=None if compared is None else Figures.of(compared.old),
    )


def _judged(gate: Gate, case: Case, compared: Comparison | None, first: bool) -> Judgement:
    if gate.against is None:
        assert gate.alone is not None
        return gate.alone(case)
    if compared is not None:
        return gate.against(case, compared)
    alone = None if gate.alone is None else gate.alone(case)
    if alone is not None and alone.verdict == "hold":
        return alone
    if not first:
        return Judgement("hold", "no history", None, "a live version", NO_HISTORY)
    return alone or Judgement("pass", "no history", None, "a live version", FIRST)


def _finding(gate: Gate, judged: Judgement, accepted: Mapping[str, Acceptance]) -> Finding:
    holds = judged.verdict == "hold"
    return Finding(gate.name, *judged, integrity=gate.integrity, accepted=accepted.get(gate.name) if holds else None)


def limits_of(settings: Settings, model: str | None) -> Gates:
    """The thresholds in force: the settings', with those of a declared model instead. Raises SettingError."""
    if model is None:
        return settings.gates
    known = settings.models
    if model not in known:
        raise ArgumentError(f"there is no model {model!r}; registered are: {', '.join(known) or 'none'}")
    fields = settings.gates.model_dump()
    for name in known[model]:
        if name not in fields:
            raise SettingError(f"models.{model}: there is no threshold {name!r}; there are: {', '.join(fields)}")
    try:
        return Gates(**fields | known[model])
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingError(f"models.{model}.{first['loc'][0]}: {first['msg']}, got {first['input']!r}") from None


def _in_force(acceptances: Sequence[Acceptance], now: datetime) -> dict[str, Acceptance]:
    """By gate, those that have not run out; of several the one that holds longest. Raises ArgumentError."""
    for given in acceptances:
        refuse_bad(given)
    valid = [given for given in acceptances if given.until > now]
    return {given.gate: given for given in sorted(valid, key=lambda given: given.until)}


def refuse_bad(given: Acceptance) -> None:
    """Raises ArgumentError for an acceptance that cannot be given."""
    gates = {gate.name: gate for gate in GATES}
    if given.gate not in gates:
        raise ArgumentError(f"there is no gate {given.gate!r}; there are: {', '.join(gates)}")
    if gates[given.gate].integrity:
        never = ", ".join(name for name, gate in gates.items() if gate.integrity)
        raise ArgumentError(f"{given.gate} cannot be accepted: a hold of {never} is never let through")
    if not given.reason.strip() or not given.by.strip():
        raise ArgumentError(f"the acceptance of {given.gate} needs a reason and an author")
    if given.until.tzinfo is None:
        text = given.until.isoformat()
        raise ArgumentError(f"the expiry of the acceptance of {given.gate} needs a time zone: {text}")
