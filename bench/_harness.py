"""What all benchmarks share: rounds that interleave contenders, ratios by round, reports, processes of their own."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

CHILD = Path(__file__).with_name("_child.py")
LIBRARIES = (
    "kserve-scores",
    "numpy",
    "pyarrow",
    "lmdb",
    "rocksdict",
    "redis",
    "hiredis",
    "duckdb",
    "aiohttp",
    "uvloop",
    "limits",
    "throttled-py",
)
TOY = 100_000  # profiles
UNITS = {"ns": 1e9, "µs": 1e6, "ms": 1e3, "s": 1.0}


class Skip(Exception):
    """A peer or a benchmark that cannot be run here; the message says why."""


@dataclass(frozen=True)
class Run:
    """What a benchmark is told. ``cache``: folder for what may be used again."""

    profiles: int
    cache: Path
    rounds: int | None = None
    peers: tuple[str, ...] | None = None

    @property
    def toy(self) -> bool:
        """Whether figures mean nothing anyway, and only that all works is wanted."""
        return self.profiles < TOY

    def rounds_or(self, default: int) -> int:
        """How many rounds: as the command line says, else this many."""
        return self.rounds or default

    def require(
        self, peer: str, most: int | None = None, module: str | None = None, command: str | None = None
    ) -> None:
        """Raises Skip when a peer is not wanted, not installed, or made for less than these profiles.

        ``most``: profiles, unless the command line names the peer.
        """
        if self.peers is not None and peer not in self.peers:
            raise Skip("not among --peers")
        if module is not None and importlib.util.find_spec(module) is None:
            raise Skip(f"the module {module} is not installed")
        if command is not None and shutil.which(command) is None:
            raise Skip(f"{command} is not installed")
        if self.peers is None and most is not None and self.profiles > most:
            raise Skip(f"more than {most:,} profiles take it too long or too much memory; --peers {peer} runs it")


@dataclass
class Series:
    """A figure, measured once a round: ``values`` in ``unit``. ``more``: more is better."""

    name: str
    unit: str
    values: list[float]
    more: bool = False

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass
class Bar:
    """What is claimed: the median of ``values``, ratios unless ``unit`` says, is ``direction`` the ``limit``."""

    claim: str
    values: list[float]
    direction: Literal["at least", "at most"]
    limit: float
    unit: str = "x"

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def met(self) -> bool:
        return self.median >= self.limit if self.direction == "at least" else self.median <= self.limit


@dataclass
class Report:
    """What one benchmark found. ``skipped``: why, by peer. ``measured``: when, at what load, which compiled code."""

    name: str
    title: str
    series: list[Series] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    measured: str = "not recorded"

    @contextmanager
    def optional(self, peer: str) -> Iterator[None]:
        """What is done inside may be skipped, and the report says why."""
        try:
            yield
        except Skip as reason:
            self.skipped[peer] = str(reason)

    def add(self, name: str, unit: str, values: Sequence[float], more: bool = False) -> Series:
        """Values that are in ``unit`` already."""
        self.series.append(Series(name, unit, [float(value) for value in values], more))
        return self.series[-1]

    def add_seconds(self, seconds: Mapping[str, Sequence[float]], unit: str) -> None:
        """Times of contenders, shown in ``unit``."""
        for name, values in seconds.items():
            self.add(name, unit, [value * UNITS[unit] for value in values])

    def bar(
        self,
        claim: str,
        values: Sequence[float],
        direction: Literal["at least", "at most"],
        limit: float,
        unit: str = "x",
    ) -> None:
        """Values by round; see :class:`Bar`."""
        self.bars.append(Bar(claim, [float(value) for value in values], direction, limit, unit))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Report:
        series = [Series(**entry) for entry in document["series"]]
        bars = [Bar(**entry) for entry in document["bars"]]
        return cls(**{**document, "series": series, "bars": bars})


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Round by round; what a contender did in only some rounds counts in those."""
    return [a / b for a, b in zip(above, below, strict=False)]


def say(what: str) -> None:
    """Progress, for who waits."""
    print(f"  … {what}", file=sys.stderr, flush=True)


def interleave(
    contenders: Mapping[str, Callable[[], float]],
    rounds: int,
    warm_up: bool = True,
    only_first: Sequence[str] = (),
) -> dict[str, list[float]]:
    """What each contender returns, by round. Each round begins with another one; a round to warm up is not counted.

    A contender times itself, so that it may prepare its input beforehand; no garbage is collected meanwhile.
    ``only_first``: contenders that take part in the first round alone.
    """
    names = list(contenders)
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(0 if warm_up else 1, rounds + 1):
        taking_part = [name for name in names if turn <= 1 or name not in only_first]
        first = turn % len(taking_part)
        for name in taking_part[first:] + taking_part[:first]:
            gc.collect()
            gc.disable()
            try:
                value = contenders[name]()
            finally:
                gc.enable()
            if turn:
                found[name].append(value)
    return found


class Stopwatch:
    """Seconds that were spent inside ``with watch:`` blocks."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = 0.0

    def __enter__(self) -> Stopwatch:
        self._since = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._since


def fastest(variants: Mapping[str, Callable[[], object]], tries: int = 3) -> str:
    """The name of the variant whose best try is fastest."""
    times: dict[str, float] = {}
    for _ in range(tries):
        for name, variant in variants.items():
            with Stopwatch() as watch:
                variant()
            times[name] = min(watch.seconds, times.get(name, watch.seconds))
    return min(times, key=times.__getitem__)


def plain_environment() -> dict[str, str]:
    """For programs that are not ours: without the sanitizer that a test may have loaded into this process."""
    return {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "ASAN_OPTIONS")}


class Child:
    """A function of this package, ``module:function``, running in a process of its own; ended with the block."""

    def __init__(self, function: str, **arguments: Any) -> None:
        self.function = function
        self._folder = tempfile.TemporaryDirectory(prefix="kserve-bench-")
        self._out = Path(self._folder.name, "result.json")
        command = [sys.executable, "-P", str(CHILD), f"bench.{function}", str(self._out)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE)
        assert self.process.stdin is not None
        with self.process.stdin as pipe:
            pipe.write(json.dumps(arguments).encode())

    def result(self) -> Any:
        """What it returned. Raises RuntimeError if it failed."""
        if self.process.wait() != 0:
            raise RuntimeError(f"bench.{self.function} failed in its process, see above")
        return json.loads(self._out.read_text(encoding="utf-8"))

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait()
        self._folder.cleanup()


def in_child(function: str, **arguments: Any) -> Any:
    """What ``module:function`` returns, from a process of its own."""
    with Child(function, **arguments) as child:
        return child.result()


def environment() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory = Path("/proc/meminfo").read_text().split()[1]
    return {
        "cpu": cpu[0].split(": ")[1] if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory) / (1 << 20), 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: version for name in LIBRARIES if (version := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
