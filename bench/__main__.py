"""``python -m bench [NAME ...]``: measure claims, each in a process of its own, and print what was found."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import _tables
from bench._data import builder
from bench._harness import Report, Run, Skip, environment, in_child, say

NAMES = (
    "lookup_many",
    "lookup_one",
    "count",
    "gates",
    "build",
    "size",
    "switch",
    "synth",
    "http",
    "http_batch",
    "http_limits",
    "http_switch",
    "http_peers",
    "keys",
    "leases",
    "limiter",
    "workers",
    "overload",
)
PEERS = (
    *("dict", "searchsorted", "lmdb", "rocksdb", "redis", "duckdb", "numpy", "pyarrow", "nginx", "fastapi"),
    *("limits", "throttled-py"),
)
CACHE = Path(__file__).resolve().parent.parent / "build" / "bench"
DEFAULT_PROFILES = 10_000_000


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code, which does not depend on whether bars are met."""
    options = _parser().parse_args(arguments)
    cache = Path(os.environ.get("KSERVE_BENCH_DATA", CACHE)).resolve()
    if options.list:
        for name in NAMES:
            print(f"{name:<12} {(importlib.import_module(f'bench.{name}').__doc__ or '').splitlines()[0]}")
        return 0
    if options.markdown:
        print(_tables.markdown(_stored(cache)))
        return 0
    unknown = set(options.names) - set(NAMES)
    if unknown:
        raise SystemExit(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    stored = _measure(options, cache)
    if options.json:
        Path(options.json).write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which (all): " + ", ".join(NAMES))
    profiles = int(os.environ.get("PROFILES") or DEFAULT_PROFILES)
    parser.add_argument("--profiles", type=int, default=profiles, help="how many (PROFILES, else 10000000)")
    parser.add_argument("--rounds", type=int, help="rounds of each benchmark; each has its own default")
    parser.add_argument(
        "--peers", help="comma-separated, or none; also runs those that are too slow for so many profiles"
    )
    parser.add_argument("--list", action="store_true", help="what there is")
    parser.add_argument("--json", metavar="OUT", help="write all values to a file")
    parser.add_argument(
        "--markdown", action="store_true", help="print the tables of all runs that are in the cache folder"
    )
    return parser


def _measure(options: argparse.Namespace, cache: Path) -> dict[str, Any]:
    """Runs benchmarks one by one; every result is stored at once, beside those of earlier runs."""
    stored: dict[str, Any] = {"profiles": options.profiles, "environment": environment(), "reports": {}}
    print(_tables.header(stored["environment"], options.profiles), flush=True)
    peers = None if options.peers is None else [peer for peer in options.peers.split(",") if peer != "none"]
    if peers and not set(peers) <= set(PEERS):
        raise SystemExit(f"--peers: there are {', '.join(PEERS)}, or none")
    for name in options.names or NAMES:
        say(name)
        result = in_child(
            "__main__:run_one",
            name=name,
            profiles=options.profiles,
            cache=str(cache),
            rounds=options.rounds,
            peers=peers,
        )
        if result is not None:
            stored["reports"][name] = result
            _store(cache, stored)
    return stored


def run_one(name: str, profiles: int, cache: str, rounds: int | None, peers: list[str] | None) -> dict[str, Any] | None:
    """One benchmark, in the process it has for itself; None if it cannot be run here."""
    run = Run(profiles, Path(cache), rounds, None if peers is None else tuple(peers))
    began = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, load {os.getloadavg()[0]:.2f}, code {builder()[:8]}"
    try:
        report: Report = importlib.import_module(f"bench.{name}").measure(run)
    except Skip as reason:
        print(f"\n{name}: skipped: {reason}", flush=True)
        return None
    report.measured = began
    print(_tables.text(report), flush=True)
    return report.to_dict()


def _store(cache: Path, fresh: dict[str, Any]) -> None:
    file = cache / "results" / f"{fresh['profiles']:012}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(file.read_text(encoding="utf-8"))["reports"] if file.exists() else {}
    reports = before | fresh["reports"]
    ordered = {name: reports[name] for name in NAMES if name in reports}
    file.write_text(json.dumps(fresh | {"reports": ordered}, indent=1) + "\n", encoding="utf-8")


def _stored(cache: Path) -> list[dict[str, Any]]:
    files = sorted((cache / "results").glob("*.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


if __name__ == "__main__":
    sys.exit(main())
