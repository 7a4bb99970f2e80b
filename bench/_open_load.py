"""Open arrivals: a schedule that nothing holds up, from a generator in C (``_open_load.c``) that says what it cost."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench._harness import Skip, plain_environment
from bench._servers import core

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ["-O3", "-march=native", "-Wall", "-Wextra"]
LONGEST_US = 60_000_000


def histogram() -> Any:
    """An empty HdrHistogram of microseconds; imported here, so that benchmarks can be listed without it."""
    from hdrh.histogram import HdrHistogram

    return HdrHistogram(1, LONGEST_US, 3)


OUTCOMES = ("good", "late", "shed", "limited", "failed")


@dataclass(frozen=True)
class Stream:
    """Requests of one kind. Request i and connection j belong to the callers i and j modulo ``callers``.

    ``weight``: the share of all arrivals that are of this kind, relative to the others'.
    """

    label: str
    requests: Sequence[bytes]
    connections: int
    callers: int = 1
    weight: float = 1.0


@dataclass(frozen=True)
class Phase:
    """For so many seconds, so many arrivals a second."""

    label: str
    seconds: float
    rate: float


@dataclass(frozen=True)
class Plan:
    """What to offer to a server on this host. ``pipeline``: requests that may be under way on one connection.

    ``retry``: what those do that were turned away or failed: nothing, come back when Retry-After says, or after 0.2,
    0.4, 0.8 s with jitter, until the ``attempts`` are used up. ``good_seconds``: an answer that takes longer is late.
    """

    port: int
    streams: Sequence[Stream]
    phases: Sequence[Phase]
    arrivals: Literal["poisson", "constant"] = "poisson"
    pipeline: int = 1
    retry: Literal["never", "obey", "impatient"] = "never"
    attempts: int = 3
    good_seconds: float = 0.05
    moment_seconds: float = 0.1
    seed: int = 1

    def lines(self, folder: Path) -> str:
        """The plan as the generator reads it; the requests are written to files."""
        lines = [
            f"port {self.port}",
            f"seed {self.seed + 1}",
            f"arrivals {self.arrivals}",
            f"pipeline {self.pipeline}",
            f"good_us {round(self.good_seconds * 1e6)}",
            f"moment_us {round(self.moment_seconds * 1e6)}",
            f"retry {self.retry} {self.attempts}",
        ]
        for number, stream in enumerate(self.streams):
            file = folder / str(number)
            file.write_bytes(b"".join(struct.pack("=I", len(text)) + text for text in stream.requests))
            lines.append(f"stream {stream.label} {stream.weight} {stream.connections} {stream.callers} {file}")
        lines += [f"phase {phase.label} {phase.seconds} {phase.rate}" for phase in self.phases]
        return "\n".join(lines) + "\n"


@dataclass
class Counts:
    """What became of one stream in one phase, or of several together. Retries are sent or missed, too."""

    seconds: float
    offered: int = 0
    retried: int = 0
    sent: int = 0
    missed: int = 0
    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    served: Any = field(default_factory=histogram)
    """Microseconds from the intended time to the end of an answer that was wanted."""
    turned_away: Any = field(default_factory=histogram)

    def add(self, found: dict[str, Any]) -> None:
        """Count one more stream, as the generator reports it."""
        for name in ("offered", "retried", "sent", "missed"):
            setattr(self, name, getattr(self, name) + found[name])
        for name in OUTCOMES:
            self.outcomes[name] += found[name]
        for latencies, pairs in ((self.served, found["served_us"]), (self.turned_away, found["turned_away_us"])):
            for value, count in pairs:
                latencies.record_value(max(value, 1), count)

    @property
    def goodput(self) -> float:
        """Answers a second that were wanted and in time."""
        return self.outcomes["good"] / self.seconds

    def served_ms(self, percentile: float) -> float:
        """Latency of what was served, in milliseconds; 0 when nothing was."""
        return float(self.served.get_value_at_percentile(percentile)) / 1000


@dataclass
class Result:
    """What the generator found. ``cpu``: of a core, by phase. ``moments``: rows of offered, sent, missed, OUTCOMES."""

    labels: list[str]
    phases: list[dict[str, Counts]]
    cpu: list[float]
    moments: list[list[int]]
    reconnects: int

    def total(self, phase: int) -> Counts:
        """All streams of a phase."""
        streams = self.phases[phase]
        whole = Counts(next(iter(streams.values())).seconds)
        for counts in streams.values():
            for name in ("offered", "retried", "sent", "missed"):
                setattr(whole, name, getattr(whole, name) + getattr(counts, name))
            for name in OUTCOMES:
                whole.outcomes[name] += counts.outcomes[name]
            whole.served.add(counts.served)
            whole.turned_away.add(counts.turned_away)
        return whole


def offer(plan: Plan, cache: Path) -> Result:
    """Carry a plan out, on the last core. Raises Skip without a C compiler, RuntimeError when it fails."""
    command = [*core(-1), str(_compiled(cache))]
    with tempfile.TemporaryDirectory(prefix="kserve-bench-") as folder:
        ended = subprocess.run(
            command, input=plan.lines(Path(folder)), capture_output=True, text=True, env=plain_environment()
        )
    if ended.returncode:
        raise RuntimeError(f"the load generator failed: {ended.stderr}")
    return _result(json.loads(ended.stdout))


def _result(found: dict[str, Any]) -> Result:
    phases = []
    for phase in found["phases"]:
        streams = {}
        for stream in phase["streams"]:
            streams[stream["label"]] = Counts(phase["seconds"])
            streams[stream["label"]].add(stream)
        phases.append(streams)
    labels = [phase["label"] for phase in found["phases"]]
    return Result(labels, phases, [phase["cpu"] for phase in found["phases"]], found["moments"], found["reconnects"])


def _compiled(cache: Path) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Skip("there is no C compiler")
    digest = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:12]
    program = cache / f"open-load-{digest}"
    if not program.exists():
        cache.mkdir(parents=True, exist_ok=True)
        fresh = program.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler, *FLAGS, "-o", fresh, SOURCE, "-lm"], check=True, env=plain_environment())
        fresh.rename(program)
    return program
