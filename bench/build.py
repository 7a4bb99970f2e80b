"""From Parquet, core columns, to a sealed and synced candidate; against reading alone and loading other stores.

Every contender works in a process of its own, on input that is in the page cache. kserve and pyarrow begin with the
Parquet files; the other stores with sorted arrays in memory, from which keys and values are made 200,000 at a time.
What they take without that is shown too.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from bench._data import CORE, DAY, Data, Records, warm_input
from bench._harness import Report, Run, Stopwatch, in_child, interleave, ratios
from bench._peers import load_lmdb, load_rocksdb
from kserve import synth

ROUNDS, ROUNDS_LARGE = 5, 3
LARGE = 20_000_000
"""More profiles than that, and the other stores are loaded in the first round only."""

GIB = 1 << 30
ROWS_BAR, READ_BAR, MEMORY_BAR = 4.0, 4, 1.0
LOADS = {"lmdb": ("lmdb", 2), "rocksdb": ("rocksdict", 5)}
"""Module and bar by peer."""

SAMPLE_SECONDS = 0.005


def measure(run: Run) -> Report:
    """Rows a second, and memory."""
    report = Report("build", "from Parquet to a sealed, synced candidate, core columns")
    trials = Trials(Data(run))
    contenders = {"kserve": partial(trials.run, "build_once")}
    with report.optional("pyarrow"):
        run.require("pyarrow")
        contenders["pyarrow, reading only"] = partial(trials.run, "read_once")
    for name, (module, _) in LOADS.items():
        with report.optional(name):
            run.require(name, module=module)
            contenders[name] = partial(trials.run, f"load_{name}_once")
    large = run.profiles > LARGE
    rounds = run.rounds_or(ROUNDS_LARGE if large else ROUNDS)
    seconds = interleave(contenders, rounds, warm_up=False, only_first=tuple(LOADS) if large else ())
    _report_builds(report, trials.results["build_once"], seconds)
    rows = trials.results["build_once"][0]["rows"]
    for name in LOADS:
        loads = trials.results.get(f"load_{name}_once", [])
        if loads:
            report.add(
                f"{name}, its own calls alone", "M rows/s", [rows / 1e6 / load["in_store"] for load in loads], more=True
            )
    size = trials.results["build_once"][0]["file_bytes"]
    disk = [size / 1e6 / trials.run("write_once", size=size) for _ in range(min(rounds, 3))]
    report.add("the disk, writing and syncing as many bytes", "MB/s", disk, more=True)
    return report


def _report_builds(report: Report, builds: list[dict[str, Any]], seconds: dict[str, list[float]]) -> None:
    rows, own = builds[0]["rows"], seconds["kserve"]
    for name, values in seconds.items():
        report.add(name, "M rows/s", [rows / 1e6 / value for value in values], more=True)
    report.bar("build, core columns", [rows / 1e6 / value for value in own], "at least", ROWS_BAR, "M rows/s")
    if reading := seconds.get("pyarrow, reading only"):
        report.bar("build / pyarrow only reading", ratios(own, reading), "at most", READ_BAR)
    for name, (_, bar) in LOADS.items():
        if name in seconds:
            report.bar(f"{name} load / build", ratios(seconds[name], own), "at least", bar)
    anonymous = [one["anonymous"] / GIB for one in builds]
    report.bar("build, memory beyond the file's pages", anonymous, "at most", MEMORY_BAR, "GiB")
    report.add("kserve, peak resident, the file's pages included", "GiB", [one["high_water"] / GIB for one in builds])
    report.add(
        "kserve, of this after the last row: laying out, checksums, sync", "s", [one["sealing"] for one in builds]
    )
    sizes = (
        f"a file of {builds[0]['file_bytes'] / 1e6:,.0f} MB from Parquet of {builds[0]['input_bytes'] / 1e6:,.0f} MB"
    )
    report.notes.append(f"{rows:,} rows, {sizes}")


class Trials:
    """Runs contenders, each in a fresh process and a fresh folder, and keeps what they report."""

    def __init__(self, data: Data) -> None:
        self._source, self._work = data.input(), data.folder / "building"
        self.results: dict[str, list[dict[str, Any]]] = {}

    def run(self, function: str, **arguments: Any) -> float:
        """Seconds."""
        shutil.rmtree(self._work, ignore_errors=True)
        os.sync()
        result = in_child(f"build:{function}", source=str(self._source), work=str(self._work), **arguments)
        shutil.rmtree(self._work, ignore_errors=True)
        self.results.setdefault(function, []).append(result)
        return float(result["seconds"])


def build_once(source: str, work: str) -> dict[str, Any]:
    """A candidate in ``work``: seconds, and the most memory in bytes."""
    from kserve.snapshots.build import Options, build
    from kserve.snapshots.catalog import Catalog

    input_bytes = warm_input(Path(source))
    last_row = time.perf_counter()

    def stage(name: str, done: int, total: int) -> None:
        nonlocal last_row
        if name == "rows":
            last_row = time.perf_counter()

    with Memory() as memory, Stopwatch() as watch:
        candidate = build(Catalog(work), source, Options(scored_at=synth.scored_at(DAY)), stage)
        end = time.perf_counter()
    return {
        "seconds": watch.seconds,
        "sealing": end - last_row,
        "rows": candidate.manifest["rows"]["read"],
        "file_bytes": candidate.manifest["file_bytes"],
        "input_bytes": input_bytes,
        "anonymous": memory.anonymous,
        "high_water": memory.high_water(),
    }


class Memory:
    """Watches how much memory of this process is not pages of files."""

    def __init__(self) -> None:
        self.anonymous = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self.anonymous = max(self.anonymous, status_bytes("RssAnon") + status_bytes("RssShmem"))

    def high_water(self) -> int:
        """The most that was resident, of whatever kind."""
        return status_bytes("VmHWM")

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def status_bytes(field: str) -> int:
    """A line of /proc/self/status that is in kB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def read_once(source: str, work: str) -> dict[str, Any]:
    """pyarrow decodes the same columns, batch by batch, and drops them."""
    warm_input(Path(source))
    rows = 0
    with Stopwatch() as watch:
        for part in sorted(Path(source).glob("*.parquet")):
            with pq.ParquetFile(part) as file:
                rows += sum(len(batch) for batch in file.iter_batches(columns=list(CORE)))
    return {"seconds": watch.seconds, "rows": rows}


def load_lmdb_once(source: str, work: str) -> dict[str, Any]:
    """LMDB, in append mode."""
    return load_lmdb(Path(work), Records.read(Path(source)).sorted())._asdict()


def load_rocksdb_once(source: str, work: str) -> dict[str, Any]:
    """RocksDB, through a sorted file."""
    return load_rocksdb(Path(work), Records.read(Path(source)).sorted())._asdict()


def write_once(source: str, work: str, size: int) -> dict[str, Any]:
    """Bytes of no meaning into one file, and its sync."""
    block = os.urandom(1 << 22)
    Path(work).mkdir()
    with Path(work, "bytes").open("wb", buffering=0) as file, Stopwatch() as watch:
        for start in range(0, size, len(block)):
            file.write(block[: size - start])
        os.fsync(file.fileno())
    return {"seconds": watch.seconds}
