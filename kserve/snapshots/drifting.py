"""The figures of a candidate against those of many good versions together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from kserve.snapshots import shapes, words
from kserve.snapshots.judging import Case, Judgement, Measure, judge, plain
from kserve.snapshots.report import Figures


def judged(case: Case) -> Judgement:
    """Against the last good versions; there is none yet after a first publish, and after a change of the model."""
    known = list(case.history)[-case.limits.drift_versions :]
    if not known:
        return plain([], "no baseline", "a baseline", "no good version is known yet: the baseline begins with this one")
    new = Figures.of(case.new)
    since = f"of {words.count(len(known), 'good version')}"
    return judge(*_centre(case, new, known, since), *_shares(case, new, known, since))


def _centre(case: Case, new: Figures, known: Sequence[Figures], since: str) -> Iterator[Measure]:
    pooled = np.sum([figures.histogram for figures in known], axis=0)
    means = [(figures.mean, figures.profiles - figures.unscored) for figures in known if figures.mean is not None]
    limits = case.limits
    if new.mean is not None and means:
        baseline = sum(mean * scored for mean, scored in means) / sum(scored for _, scored in means)
        change = new.mean / baseline - 1
        reason = f"the mean score is {words.points(new.mean)}; that {since} is {words.points(baseline)}"
        threshold = f"± {words.percent(limits.drift_mean)}"
        yield Measure(abs(change), limits.drift_mean, words.percent(change, sign=True), threshold, reason)
    found = shapes.psi(pooled, np.array(new.histogram))
    figure, limit = f"PSI {found.value:.4f}", limits.drift_psi
    reason = f"between the distribution of the scores and that {since} is {figure}"
    yield Measure(found.value, limit + found.chance, figure, words.number(limit), reason)


def _shares(case: Case, new: Figures, known: Sequence[Figures], since: str) -> Iterator[Measure]:
    """Profiles that vanish, scores that go missing and scores that pile up, a little every night."""
    limits = case.limits
    profiles = sum(figures.profiles for figures in known)
    fewer = 1 - new.profiles * len(known) / profiles
    reason = f"{words.count(new.profiles, 'profile')}; the mean {since} is {words.count(round(profiles / len(known)))}"
    limit = limits.drift_rows
    yield Measure(fewer, limit, words.percent(-fewer, sign=True), f"-{words.percent(limit)}", reason)
    before, after = sum(figures.unscored for figures in known) / profiles, new.unscored / new.profiles
    yield _growth("unscored", before, after, case.share(limits.drift_unscored), since)
    piles = np.array(new.histogram) / new.profiles
    pooled = np.sum([figures.histogram for figures in known], axis=0) / profiles
    top = int((piles - pooled).argmax())
    limit = case.share(limits.drift_mass)
    yield _growth(f"at {top} to {top + 1} points", float(pooled[top]), float(piles[top]), limit, since)


def _growth(what: str, before: float, after: float, limit: float, since: str) -> Measure:
    reason = f"{words.percent(after)} of the profiles are {what}; the share {since} is {words.percent(before)}"
    return Measure(after - before, limit, words.more_percent(after - before), words.more_percent(limit), reason)
