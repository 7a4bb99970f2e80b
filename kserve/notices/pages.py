"""Pages: templates, one style sheet that is part of each page, and headers that let a browser load nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from kserve.notices import figures
from kserve.snapshots.measures import Comparison
from kserve.snapshots.report import Report
from kserve.snapshots.words import number, percent


@cache
def environment() -> Environment:
    """The templates of this package. What is put into them is escaped; what they do not get is an error."""
    made = Environment(
        loader=PackageLoader("kserve.notices"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    made.filters |= {
        "moment": moment,
        "day": lambda time: f"{time.astimezone(UTC):%-d %B %Y}",
        "iso": lambda time: time.astimezone(UTC).isoformat(timespec="seconds"),
        "whole": lambda count: "unknown" if count is None else f"{count:,}",
        "percent": percent,
        "number": number,
        "sentence": lambda text: text[:1].upper() + text[1:],
    }
    made.globals["style"] = Markup(style())
    return made


@cache
def style() -> str:
    """The style sheet of every page."""
    loader = PackageLoader("kserve.notices")
    source, _, _ = loader.get_source(Environment(), "style.css")
    return source


@cache
def headers() -> Mapping[str, str]:
    """Of every page: nothing but its own style sheet is loaded, nothing is guessed, and no other site may frame it."""
    digest = base64.b64encode(hashlib.sha256(style().encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; form-action 'self'; base-uri 'none'"
    return {
        "Content-Security-Policy": f"{policy}; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "same-origin",  # with no-referrer, browsers send no Origin with our own forms
        "Cross-Origin-Opener-Policy": "same-origin",
    }


def render(template: str, **values: Any) -> str:
    """A page."""
    return environment().get_template(template).render(values)


def diff_html(comparison: Comparison, report: Report | None = None) -> str:
    """Two versions side by side as one self-contained file; with what the gates say of the new one, if known."""
    return render("diff_file.html", diff=figures.of(comparison), report=report, movers=comparison.movers)


def moment(time: datetime) -> str:
    """A time in UTC to the minute."""
    return f"{time.astimezone(UTC):%-d %b %Y, %H:%M} UTC"


def age(span: timedelta) -> str:
    """How long ago, in words."""
    minutes = max(int(span.total_seconds() // 60), 0)
    if minutes < 60:
        return _counted(minutes, "minute")
    if minutes < 48 * 60:
        return _counted(minutes // 60, "hour")
    return _counted(minutes // (24 * 60), "day")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
