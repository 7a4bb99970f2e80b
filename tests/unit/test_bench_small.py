"""Every benchmark runs, on so few profiles that the figures mean nothing: whether it still works is what is tested."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CHILD = ROOT / "bench" / "_child.py"
PROFILES = 3000
BENCHMARKS = sorted(file.stem for file in (ROOT / "bench").glob("[a-z]*.py"))
HTTP = [name for name in BENCHMARKS if name.startswith("http")]
NEEDS = {
    "lookup_many": ("cc",),
    "count": ("cc",),
    "gates": ("cc",),
    "leases": ("redis-server",),
    "overload": ("wrk", "cc"),
}
MODULES = {"overload": ("hdrh", "matplotlib"), "http_switch": ("hdrh",)}
PEERS = {
    "dict": None,
    "searchsorted": None,
    "numpy": None,
    "pyarrow": None,
    "lmdb": "lmdb",
    "rocksdb": "rocksdict",
    "duckdb": "duckdb",
}
"""Modules by peer, of those that run in this process."""

Bench = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.skipif(not CHILD.exists(), reason="bench/ is not beside these tests")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Runs one benchmark with these peers, with data that the others of this module use too."""
    cache = tmp_path_factory.mktemp("bench")

    def run(name: str, *peers: str) -> dict[str, Any]:
        arguments = {"name": name, "profiles": PROFILES, "cache": str(cache), "rounds": 1, "peers": list(peers)}
        return call("__main__:run_one", cache / f"{name}.json", arguments)

    return run


def call(function: str, out: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """What a function of bench returns in a process of its own."""
    command = [sys.executable, "-P", CHILD, f"bench.{function}", out]
    done = subprocess.run(command, input=json.dumps(arguments), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def require(*commands: str) -> None:
    for command in commands:
        if shutil.which(command) is None:
            pytest.skip(f"{command} is not installed")


def test_all_benchmarks_are_listed() -> None:
    script = "import sys; sys.path.append('.'); import bench.__main__ as m; print(*sorted(m.NAMES))"
    listed = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert listed.split() == BENCHMARKS


@pytest.mark.heavy
@pytest.mark.parametrize("name", sorted(set(BENCHMARKS) - set(HTTP)))
def test_benchmark_runs(name: str, bench: Bench) -> None:
    require(*NEEDS.get(name, ()))
    for module in MODULES.get(name, ()):
        pytest.importorskip(module)
    installed = [peer for peer, module in PEERS.items() if module is None or importlib.util.find_spec(module)]
    report = bench(name, *installed)
    assert report["series"]
    assert all(entry["values"] for entry in report["series"] + report["bars"])
    assert not set(installed) & set(report["skipped"])


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["lookup_many", "size"])
def test_benchmark_runs_with_redis(name: str, bench: Bench) -> None:
    require("redis-server", *NEEDS.get(name, ()))
    assert not bench(name, "redis")["skipped"].get("redis")


@pytest.mark.heavy
@pytest.mark.parametrize("name", HTTP)
def test_benchmark_of_http_runs(name: str, bench: Bench) -> None:
    require("wrk", "redis-server", "redis-benchmark", "cc")
    for module in MODULES.get(name, ()):
        pytest.importorskip(module)
    report = bench(name, "redis", "nginx", "fastapi")
    assert report["bars"] or name == "http_peers"
    assert all(entry["values"] for entry in report["series"] + report["bars"])
    assert "redis" not in report["skipped"]


@pytest.mark.heavy
@pytest.mark.parametrize("peer", ["lmdb", "rocksdb"])
def test_peers_that_are_not_wanted_are_skipped_with_a_reason(peer: str, bench: Bench) -> None:
    require("cc")
    assert bench("lookup_many", "dict")["skipped"][peer] == "not among --peers"


@pytest.mark.heavy
def test_command_stores_and_prints_what_it_found(tmp_path: Path) -> None:
    environment = os.environ | {"KSERVE_BENCH_DATA": str(tmp_path), "PROFILES": str(PROFILES)}
    command = [sys.executable, "-P", "-c", COMMAND]
    done = subprocess.run([*command, "synth", "--rounds", "1"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "synth, core columns" in done.stdout
    table = subprocess.run([*command, "--markdown"], env=environment, capture_output=True, text=True, check=True).stdout
    assert "`python -m bench synth`" in table
    assert f"{PROFILES:,} profiles" in table


COMMAND = f"""
import runpy, sys
child = runpy.run_path({str(CHILD)!r})
child["load_package"]()
from bench.__main__ import main
sys.exit(main())
"""
