"""Reports as people read them: on a terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bench._harness import Bar, Report

BEGIN = "<!-- figures: printed by `python -m bench --markdown` -->"
END = "<!-- end of figures -->"


def number(value: float) -> str:
    """Three digits, more only before the point."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def spread(values: list[float]) -> str:
    return f"{number(min(values))} .. {number(max(values))}"


def quantity(value: float, unit: str) -> str:
    return f"{number(value)}{'' if unit == 'x' else ' '}{unit}"


def header(environment: Mapping[str, Any], profiles: int) -> str:
    """Two lines on where and with what the figures were measured."""
    machine = (
        f"{profiles:,} profiles; {environment['cpu']}, {environment['cores']} cores, {environment['memory_gib']} GiB, "
        f"Linux {environment['kernel']}, Python {environment['python']}"
    )
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    return f"{machine}\n{versions}"


def text(report: Report) -> str:
    """A report for a terminal."""
    lines = [f"\n{report.name}: {report.title} ({report.measured})"]
    width = max((len(entry.name) for entry in report.series), default=0)
    for entry in report.series:
        figures = f"{quantity(entry.median, entry.unit):>16}   {spread(entry.values):<26} n={len(entry.values)}"
        lines.append(f"  {entry.name:<{width}} {figures}")
    lines += [f"  {_verdict(bar)}" for bar in report.bars]
    lines += [f"  skipped {peer}: {reason}" for peer, reason in report.skipped.items()]
    lines += [f"  note: {note}" for note in report.notes]
    return "\n".join(lines)


def _verdict(bar: Bar) -> str:
    measured = f"{quantity(bar.median, bar.unit)} ({spread(bar.values)})"
    asked = f"{bar.direction} {quantity(bar.limit, bar.unit)}"
    return f"{'met   ' if bar.met else 'MISSED'} {bar.claim}: {measured}, bar: {asked}"


def markdown(runs: Iterable[Mapping[str, Any]]) -> str:
    """All stored runs, between markers that say where they come from."""
    lines = [BEGIN]
    for stored in runs:
        lines += ["", f"#### {stored['profiles']:,} profiles", ""]
        lines += [f"{line}  " for line in header(stored["environment"], stored["profiles"]).splitlines()]
        lines += ["", "Measured (load and compiled code may differ from benchmark to benchmark):", ""]
        lines += [f"- {name}: {Report.from_dict(entry).measured}" for name, entry in stored["reports"].items()]
        lines += _bars_table(stored["reports"]) + _series_table(stored["reports"])
    return "\n".join([*lines, "", END])


def _bars_table(reports: Mapping[str, Any]) -> list[str]:
    lines = ["", "| claim | median | min .. max | bar | met | command |", "|---|---|---|---|---|---|"]
    for name, document in reports.items():
        for bar in Report.from_dict(document).bars:
            asked = f"{bar.direction} {quantity(bar.limit, bar.unit)}"
            met = "yes" if bar.met else "**no**"
            figures = f"{quantity(bar.median, bar.unit)} | {spread(bar.values)}"
            lines.append(f"| {bar.claim} | {figures} | {asked} | {met} | `python -m bench {name}` |")
    return lines


def _series_table(reports: Mapping[str, Any]) -> list[str]:
    lines = ["", "| benchmark | measured | median | min .. max | rounds |", "|---|---|---|---|---|"]
    for name, document in reports.items():
        report = Report.from_dict(document)
        for entry in report.series:
            figures = f"{quantity(entry.median, entry.unit)} | {spread(entry.values)} | {len(entry.values)}"
            lines.append(f"| {name} | {entry.name} | {figures} |")
        lines += [f"| {name} | {peer} | skipped: {reason} | | |" for peer, reason in report.skipped.items()]
    return lines
