"""Metrics: each is documented and told; the dashboard and the alerts name none that there is not; logs tell nothing."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from serving.processes import KSERVE, Served, servers
from waiting import until

from kserve._limits import Limits
from kserve._roster import PREPARING, Roster
from kserve._tally import ROUTES, UPPERS, Counter, Gauge, Tally, Time
from kserve.serving.metrics import Processes
from kserve.serving.readings import WINDOW_SECONDS, Histograms, Window, increase, usage
from kserve.serving.samples import Watcher, sample, tally_file
from kserve.serving.tallied import BOUNDS, COUNTERS, OF_HOST, OF_PROCESS
from kserve.settings import Settings
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.shared import shared_folder

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
NAME = re.compile(r"\bkserve_[a-z_]+\b")
OF_ANOTHER = {"up"}
"""Metrics of the rules that Prometheus makes itself."""


class Row(NamedTuple):
    kind: str
    text: str


def documented() -> dict[str, Row]:
    """The tables of docs/metrics.md."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(kserve_\w+)` \| (\w+) \| (.*) \|$", page, re.MULTILINE)
    assert len({name for name, _, _ in rows}) == len(rows)
    return {name: Row(kind, text) for name, kind, text in rows}


def name_of(family: Metric) -> str:
    """As it is documented and queried."""
    return f"{family.name}_total" if family.type == "counter" else family.name


def scrape(data: Path) -> str:
    """What a scrape has."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Processes(Catalog(data), Settings(data=data)))
    return generate_latest(registry).decode()


def told(data: Path) -> dict[str, Metric]:
    """What a scrape has, by name."""
    return {name_of(family): family for family in text_string_to_metric_families(scrape(data))}


def value(family: Metric, suffix: str = "", **labels: str) -> float:
    """The sum of the samples with these labels."""
    return sum(
        one.value
        for one in family.samples
        if one.name.endswith(suffix) and "_created" not in one.name and labels.items() <= one.labels.items()
    )


@pytest.fixture
def data(published: Path, tmp_path: Path) -> Iterator[Path]:
    """A data directory of its own, with one day announced, for which nothing was counted yet."""
    found = shutil.copytree(published, tmp_path / "data", symlinks=True, ignore=shutil.ignore_patterns("ROSTER"))
    shutil.rmtree(shared_folder(found))
    yield found
    shutil.rmtree(shared_folder(found))


@pytest.fixture
def tally(data: Path) -> Iterator[Tally]:
    """A process that has counted something of everything."""
    seat = Roster(Catalog(data).roster).take("server")
    seat.serve("20261121T040000Z-0000000a")
    seat.stage("20261122T040000Z-0000000b", PREPARING)
    seat.resident(0.5)
    Limits(tally_file(data).with_name("limits"))
    found = Tally(tally_file(data), "worker", ["developer", "partner"])
    for number in range(len(ROUTES)):
        found.count(number, 200, number % 4 - 2, number % 2, 20_000)
    for counter in Counter:
        found.add(counter, 1)
    for gauge in Gauge:
        found.set(gauge, 1.0)
    for time in Time:
        found.time(time, 1_000)
    found.limited(0, 1)
    yield found
    found.leave()
    seat.leave()


def test_every_counter_and_gauge_is_a_metric() -> None:
    assert set(COUNTERS) == set(Counter)
    assert set(OF_PROCESS) | set(OF_HOST) == set(Gauge)
    assert set(OF_PROCESS) & set(OF_HOST) == set()


def test_every_metric_is_documented_and_told(data: Path, tally: Tally) -> None:
    rows, found = documented(), told(data)
    assert rows.keys() == found.keys()
    for name, family in found.items():
        assert family.type == rows[name].kind
        assert family.samples, name
        labels = {label for one in family.samples for label in one.labels} - {"le"}
        assert labels <= set(re.findall(r"`(\w+)`", rows[name].text)), name


def test_every_metric_is_there_before_anything_happened(tmp_path: Path) -> None:
    assert told(tmp_path).keys() == documented().keys()


def test_names_and_texts_of_the_tables_agree(data: Path) -> None:
    names = {family.name: family for family in told(data).values()}
    for named in (*COUNTERS.values(), *OF_PROCESS.values(), *OF_HOST.values()):
        assert names[named.name].documentation == named.help


def test_histograms_are_what_was_counted(data: Path) -> None:
    durations = np.random.default_rng(1).lognormal(12, 2, 5_000).astype(int)
    tally = Tally(tally_file(data), "worker", ["partner"])
    for nanoseconds in durations.tolist():
        tally.count(0, 200, 0, 0, nanoseconds)
    found = told(data)
    for name, labels in (("", {"route": "score"}), ("tier_", {"tier": "partner"})):
        family = found[f"kserve_{name}request_duration_seconds"]
        for bound in BOUNDS:
            less = value(family, "_bucket", le=str(bound), **labels)
            assert (durations <= bound * 0.99e9).sum() <= less <= (durations <= bound * 1.01e9).sum()
        assert value(family, "_count", **labels) == value(family, "_bucket", le="+Inf", **labels) == len(durations)
        assert value(family, "_sum", **labels) == pytest.approx(durations.sum() / 1e9)
        lately = found[f"kserve_{name}request_duration_lately_seconds"]
        for quantile in (0.5, 0.99, 0.999):
            expected = np.quantile(durations, quantile, method="inverted_cdf") / 1e9
            assert value(lately, percentile=f"{100 * quantile:g}", **labels) == pytest.approx(expected, rel=0.01)
    tally.leave()


def test_quantiles_of_late_forget_what_is_over() -> None:
    window = Window()

    def one(count: int) -> Histograms:
        buckets = np.zeros((len(ROUTES), len(UPPERS)), np.uint64)
        buckets[0, 100] = count
        return Histograms(buckets, {"partner": buckets[0]})

    seen = [int(window.of_late(15.0 * turn, one(10 * turn)).by_route.sum()) for turn in range(12)]
    kept = int(WINDOW_SECONDS / 15)
    assert seen == [0, *(10 * min(turn, kept) for turn in range(1, 12))]


def test_a_counter_that_started_anew() -> None:
    now, past = np.array([5, 9], np.uint64), np.array([7, 4], np.uint64)
    assert increase(now, past).tolist() == [5, 5]


def test_a_sample_is_what_happened_between_two_readings(data: Path, tally: Tally) -> None:
    watcher = Watcher(data)
    before = watcher.read()
    for status, times in ((200, 40), (304, 3), (429, 2), (500, 1), (503, 4)):
        for _ in range(times):
            tally.count(0, status, 1, 0, 50_000)
    tally.limited(1, 1)
    tally.shed(5)
    tally.add(Counter.UNAUTHORIZED_REFUSED, 2)
    late = Tally(tally_file(data), "worker", ["partner"])  # it starts in between
    late.count(1, 200, 0, 1, 1_000_000)
    for _ in range(99):
        late.time(Time.DELAY_OF_LOOP, 200_000)
    late.time(Time.DELAY_OF_LOOP, 30_000_000)
    after = watcher.read()
    found = sample(before._replace(at=0.0), after._replace(at=2.0))
    rates = found.rates
    assert (rates.answered, rates.succeeded, rates.unchanged) == (25.5, 20.5, 1.5)
    assert (rates.refused, rates.failed) == (1.0, 2.0)
    assert (rates.limited, rates.shed, rates.unauthorized, rates.compiled) == (0.5, 0.5, 1.0, 25.0)
    assert rates.latency is not None
    assert rates.latency.p50 == pytest.approx(50e-6, rel=0.01)
    assert rates.latency.p999 == pytest.approx(1e-3, rel=0.01)
    assert found.loop_delay is not None
    assert found.loop_delay.p99 == pytest.approx(200e-6, rel=0.01)
    assert found.loop_delay.p999 == pytest.approx(30e-3, rel=0.01)
    assert {part.name: part.answered for part in found.routes} == {"score": 25.0, "batch": 0.5}
    assert {part.name: (part.answered, part.limited) for part in found.tiers} == {"partner": (25.5, 0.5)}
    assert [(one.rates.answered, one.connections) for one in found.workers] == [(25.0, 1), (0.5, None)]
    assert found.workers[0].version == "20261121T040000Z-0000000a"
    assert found.limits.mode == "memory"
    late.leave()


def test_what_the_kernel_says() -> None:
    found = usage(os.getpid())
    assert found is not None
    assert found.memory_bytes > 10_000_000
    assert found.cpu_seconds > 0
    assert 3 < found.descriptors < found.descriptors_limit
    assert usage(2**22 + 1) is None


def expressions() -> Iterator[tuple[str, str]]:
    """All that the dashboard and the alerts ask for."""
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    yield "variable", dashboard["templating"]["list"][1]["definition"]
    for annotation in dashboard["annotations"]["list"]:
        yield "annotation", annotation["expr"]
    for file in ("alerts.yml", "alerts-test.yml"):
        for line in (DEPLOY / file).read_text().splitlines():
            yield file, line


def sample_names(families: dict[str, Metric]) -> set[str]:
    """Names that a query may use."""
    suffixes = {"histogram": ("_bucket", "_sum", "_count")}
    return {name + suffix for name, family in families.items() for suffix in suffixes.get(family.type, ("",))}


def test_dashboard_and_alerts_use_what_there_is_and_show_it_all(tmp_path: Path) -> None:
    known = sample_names(told(tmp_path))
    used = {(where, name) for where, text in expressions() for name in NAME.findall(text)}
    assert {(where, name) for where, name in used if name not in known} == set()
    shown = {re.sub("_(bucket|sum|count)$", "", name) for where, name in used if not where.endswith(".yml")}
    assert told(tmp_path).keys() - shown == set()


def test_every_alert_is_documented_and_tested() -> None:
    alerts = re.findall(r"- alert: (\w+)", (DEPLOY / "alerts.yml").read_text())
    page = (ROOT / "docs" / "metrics.md").read_text()
    severities = re.findall(r"severity: (\w+)", (DEPLOY / "alerts.yml").read_text())
    listed = re.findall(r"^\| `(Kserve\w+)` \| (\w+) \|", page, re.MULTILINE)
    assert sorted(listed) == sorted(zip(alerts, severities, strict=True))
    assert set(re.findall(r"name: (\w+)", (DEPLOY / "alerts-test.yml").read_text())) == set(alerts)


@pytest.mark.heavy
@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_accepts_the_rules_and_their_tests() -> None:
    for words in (("check", "rules", "alerts.yml"), ("test", "rules", "alerts-test.yml")):
        done = subprocess.run(["promtool", *words], cwd=DEPLOY, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_accepts_a_scrape(data: Path, tally: Tally) -> None:
    tally.count(0, 200, 0, 0, 50_000)
    text = scrape(data)
    assert 'percentile="99.9"' in text
    done = subprocess.run(["promtool", "check", "metrics"], input=text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_accepts_what_the_dashboard_asks(tmp_path: Path) -> None:
    asked = [text for where, text in expressions() if not where.endswith(".yml") and where != "variable"]
    rules = [
        {"record": f"asked:{number}", "expr": text.replace("$__rate_interval", "5m").replace("$instance", ".*")}
        for number, text in enumerate(asked)
    ]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def scraped(server: Served) -> dict[str, Metric]:
    return {name_of(family): family for family in text_string_to_metric_families(server.get("/metrics"))}


@pytest.mark.heavy
@pytest.mark.parametrize("compiled", ["true", "false"])
def test_a_host_counts_what_its_workers_answered_and_forgets_nothing(data: Path, compiled: str) -> None:
    """Two workers, one of them killed. The scrape is accepted by promtool, where there is one."""
    path = "compiled" if compiled == "true" else "aiohttp"
    with servers(data, 1, workers="2", compiled=compiled) as (server,):
        for i in (42, 7, 42, 999_999):
            server.get(f"/v3/scores/{i}")
        until(lambda: value(scraped(server)["kserve_workers_alive"]) == 2)
        until(lambda: value(scraped(server)["kserve_request_duration_seconds"], "_count", route="score") == 4)
        first = scraped(server)
        assert value(first["kserve_requests_total"], route="score", status="200", path=path) == 3
        assert value(first["kserve_requests_total"], route="score", status="404", path=path) == 1
        assert value(first["kserve_request_duration_seconds"], "_count", route="score") == 4
        assert value(first["kserve_tier_request_duration_seconds"], "_count", tier="open") >= 4
        assert {one.labels["role"] for one in first["kserve_process_start_timestamp_seconds"].samples} >= {"worker"}
        assert value(first["kserve_workers_alive"]) == value(first["kserve_workers_wanted"]) == 2
        os.kill(server.workers[0], signal.SIGKILL)
        until(lambda: value(scraped(server)["kserve_workers_died_total"]) == 1)
        until(lambda: len(server.workers) == 2)
        for _ in range(6):
            server.get("/v3/scores/42")
        until(lambda: value(scraped(server)["kserve_request_duration_seconds"], "_count", route="score") == 10)
        second = scraped(server)
        assert value(second["kserve_requests_total"], route="score", status="200", path=path) == 9
        if shutil.which("promtool"):
            text = server.get("/metrics")
            done = subprocess.run(["promtool", "check", "metrics"], input=text, text=True, capture_output=True)
            assert done.returncode == 0, done.stderr


LOGS = """
import logging
from kserve.serving import logs
from kserve.serving.site import log

logs.configure()
try:
    raise ValueError("cannot read /v3/scores/42?key={key}&x=1")
except ValueError as error:
    log.error("request failed", exc_info=error, url="/v3/scores/42?x=1&key={other}")
logging.getLogger("aiohttp.server").error("Error handling %r", "Authorization: Bearer {key}")
"""


def test_whatever_is_logged_has_no_key() -> None:
    key, other = "ks_live_abcdefghijkl_" + "S" * 38, "somethingelse"
    script = [sys.executable, "-c", LOGS.format(key=key, other=other)]
    lines = subprocess.run(script, check=True, capture_output=True, text=True).stderr.splitlines()
    assert [json.loads(line)["level"] for line in lines] == ["error", "error"]
    for line in lines:
        assert "SSS" not in line
        assert other not in line
        assert "ks_live_abcdefghijkl_***" in line or "key=***" in line
    assert "&x=1" in lines[0]


@pytest.mark.heavy
def test_logs_of_a_busy_server_have_no_key_and_no_score(data: Path) -> None:
    """Good keys and bad ones, in each of the three places; answers, refusals, and a worker that dies of it all."""
    create = [*KSERVE, "keys", "create", "--scopes", "score:read", "--partner", "us", "--json", "--data", str(data)]
    good = json.loads(subprocess.run(create, check=True, capture_output=True, text=True).stdout)["key"]
    bad = f"{good[:-3]}xyz"
    with servers(data, 1, open="false") as (server,):
        statuses = set()
        for path in ("/v3/scores/42", "/v3/profiles/42", "/v3/scores/x", "/v3/nothing"):
            for key in (good, bad, "ks_live_short"):
                for header, text in (("Authorization", f"Bearer {key}"), ("X-Api-Key", key)):
                    statuses.add(ask(server, path, {header: text}))
                statuses.add(ask(server, f"{path}?key={key}", {}))
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall(f"GET /v3/scores/42?key={good} HTTP/9.9\r\n: {good}\r\n\r\n".encode())
            raw.recv(1 << 16)
        os.kill(server.worker, signal.SIGABRT)
        until(lambda: value(scraped(server)["kserve_workers_died_total"]) == 1)
    assert {200, 400, 401, 404} <= statuses
    assert "listening" in server.final_log
    for told_nobody in (good, bad, good.rpartition("_")[2], bad[-20:], "ks_live_short", "62.31"):
        assert told_nobody not in server.final_log


def ask(server: Served, path: str, headers: dict[str, str]) -> int:
    """The status of an answer."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)) as connection:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status
