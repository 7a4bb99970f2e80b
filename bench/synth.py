"""Synthetic profiles with the core columns, made and written as Parquet on one core."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa

from bench._harness import Report, Run, Stopwatch, in_child, interleave
from kserve import synth

ROWS = 3_000_000
ROUNDS = 5
BAR = 1.0


def measure(run: Run) -> Report:
    """Rows a second."""
    report = Report("synth", "kserve synth, core columns, on one core")
    rows = min(run.profiles, ROWS)
    out = run.cache / "synth"
    seconds = interleave(
        {"kserve": lambda: in_child("synth:write_once", out=str(out), rows=rows)["seconds"]}, run.rounds_or(ROUNDS)
    )
    rates = [rows / 1e6 / value for value in seconds["kserve"]]
    report.add("kserve", "M rows/s", rates, more=True)
    report.bar("synth, core columns", rates, "at least", BAR, "M rows/s")
    report.notes.append(f"{rows:,} rows, the process bound to one core")
    return report


def write_once(out: str, rows: int) -> dict[str, Any]:
    """Seconds for one folder of parts, on the first core that this process may use."""
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    pa.set_cpu_count(1)
    shutil.rmtree(out, ignore_errors=True)
    synth.write(Path(out).with_name("synth-first"), synth.Plan(1, columns="core"))
    shutil.rmtree(Path(out).with_name("synth-first"))
    with Stopwatch() as watch:
        synth.write(Path(out), synth.Plan(rows, columns="core"))
    shutil.rmtree(out)
    return {"seconds": watch.seconds}
