"""demo: the whole way, and again, and what it refuses."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cli.support import TAXONOMY, done, ended, process, run, started, tree

import kserve
from kserve.serving.keys import Keys
from kserve.snapshots import gates
from kserve.snapshots.catalog import Catalog

pytestmark = pytest.mark.heavy

SMALL = ("--profiles", 2000)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A data directory of a demo, and its document."""
    data = tmp_path_factory.mktemp("demo") / "data"
    result = process("demo", *SMALL, "--data", data, "--json", "--port", 1)
    assert result.code == 0, result
    return data, result.json()


def test_two_days_are_published(shown: tuple[Path, Any]) -> None:
    data, document = shown
    assert [version.name for version in Catalog(data).versions()] == document["versions"][::-1]
    assert [version.state for version in Catalog(data).versions()] == ["announced", "retired"]
    assert document["address"] is None


def test_answers_show_every_kind(shown: tuple[Path, Any]) -> None:
    answers = [sample["answer"] for sample in shown[1]["curl"]]
    assert all(answer["version"] == shown[1]["versions"][1] for answer in answers)
    scored, unscored, identity, batch, eligibility, _ = answers
    assert scored["score"] > 1
    assert scored["changes"]["day"] is not None
    assert (unscored["score"], unscored["reason"]) == (None, "unscored")
    assert (identity["network"], identity["matched"], identity["id"]) == ("tw", "name", scored["id"])
    assert [item["status"] for item in batch["scores"]] == ["ok", "unscored"]
    assert [item["eligible"] for item in eligibility["results"]] == [True, False]
    assert eligibility["count"] >= 1
    assert all("http://127.0.0.1:1/v3/" in sample["command"] for sample in shown[1]["curl"])


def test_the_key_is_kept_and_used_again(shown: tuple[Path, Any]) -> None:
    data, document = shown
    file = data / "demo-key"
    assert (file.read_text(), file.stat().st_mode & 0o777) == (f"{document['key']}\n", 0o600)
    assert all(f'-H "Authorization: Bearer {document["key"]}"' in sample["command"] for sample in document["curl"])
    (key,) = Keys(data).listed()
    assert (key.state, key.tier, key.scopes) == ("live", "partner", ("score:read", "batch"))


def test_python_lines_are_true(shown: tuple[Path, Any]) -> None:
    known: dict[str, Any] = {}
    opening, *rest = shown[1]["python"][1:]
    exec(f"import kserve\n{opening['code']}", known)
    with known["store"]:
        for line in rest:
            assert repr(eval(line["code"], known)) == line["result"]
    assert len(rest) == 6


def test_serves_what_it_shows_until_it_is_told_to_end(shown: tuple[Path, Any]) -> None:
    data, document = shown
    before = tree(data)
    with started("demo", *SMALL, "--data", data, "--serve", "--port", 0, "--json") as popen:
        assert popen.stdout is not None
        served = json.loads(popen.stdout.readline())
        assert served["versions"] == document["versions"]
        for sample in served["curl"]:
            assert served["address"] in sample["command"]
            assert _typed(sample["command"]) == sample["answer"]
        result = ended(popen, signal.SIGTERM)
    assert (result.code, result.out) == (0, "")
    assert tree(data) | {"SENTINEL"} == before | {"SENTINEL"}  # which is made when the sentinel first looks


def test_it_cannot_be_reloaded_and_says_so(shown: tuple[Path, Any]) -> None:
    data, _ = shown
    with started("demo", *SMALL, "--data", data, "--serve", "--port", 0, "--json") as popen:
        assert popen.stdout is not None
        popen.stdout.readline()
        error = run("reload", "--data", data, "--json").error()
        ended(popen, signal.SIGTERM)
    assert (error["slug"], error["exit_code"]) == ("setting", 8)
    assert error["message"] == (
        f"process {popen.pid} serves {data} alone, as `kserve demo --serve` does, and cannot be reloaded: end it, and"
        f" start `kserve serve --data {data}`"
    )
    assert "no server of" in run("reload", "--data", data, "--json").error()["message"]


def test_the_office_is_where_it_was_asked_for(shown: tuple[Path, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = ("--data", shown[0], "--serve", "--port", 0, "--admin-port", port, "--json")
    with started("demo", *SMALL, *arguments) as popen:
        assert popen.stdout is not None
        popen.stdout.readline()
        address = f"http://127.0.0.1:{port}/status"
        with urllib.request.urlopen(f"{address}.json", timeout=20) as answer:
            assert json.loads(answer.read())["page"]["url"] == address
        ended(popen, signal.SIGTERM)


def _typed(command: str) -> Any:
    """What a curl line answers; without curl, what the same request answers."""
    words = shlex.split(command)
    if shutil.which("curl"):
        plain = {
            name: value for name, value in os.environ.items() if name != "LD_PRELOAD"
        }  # curl is not ours to sanitize
        return json.loads(subprocess.run(words, capture_output=True, check=True, timeout=60, env=plain).stdout)
    headers = dict(words[place + 1].split(": ") for place, word in enumerate(words) if word == "-H")
    body = words[words.index("-d") + 1].encode() if "-d" in words else None
    with urllib.request.urlopen(urllib.request.Request(words[2], body, headers), timeout=60) as answer:
        return json.loads(answer.read())


def test_text_has_the_lines_and_their_answers(shown: tuple[Path, Any]) -> None:
    data, document = shown
    result = process("demo", *SMALL, "--data", data)
    assert result.code == 0
    lines = result.out.splitlines()
    assert [line.split()[1] for line in lines[:4]] == ["profiles", "snapshot"] * 2
    assert [line.split()[-4] for line in lines[:4]] == ["there", "published"] * 2
    for sample in document["curl"]:
        command = sample["command"].replace("127.0.0.1:1/", "127.0.0.1:8080/")
        assert json.loads(lines[lines.index(f"$ {command}") + 1]) == sample["answer"]
    for line in document["python"]:
        assert f">>> {line['code']}" in lines
    assert lines[-1].endswith(f"kserve serve --data {data}")


def test_what_is_missing_is_made_again(shown: tuple[Path, Any], tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(shown[0], data)
    versions = shown[1]["versions"]
    shutil.rmtree(next(data.glob("demo-input/*/day-1")))
    (part,) = data.glob("demo-input/*/day-2/_manifest.json")
    part.write_text("{")
    shutil.rmtree(data / "snapshots" / versions[1])
    (data / "CURRENT").unlink()
    assert process("demo", *SMALL, "--data", data, "--json").json()["versions"] == versions
    assert Catalog(data).announced() == versions[1]


def test_another_demo_in_the_same_data_is_refused(shown: tuple[Path, Any]) -> None:
    before = tree(shown[0])
    error = process("demo", "--profiles", 500, "--seed", 2, "--data", shown[0], "--json").error()
    assert (error["slug"], "--data" in error["message"]) == ("setting", True)
    assert tree(shown[0]) == before


def test_real_snapshots_are_left_alone(inputs: Path) -> None:
    done("publish", "day1", *TAXONOMY, "--first")
    before = tree(Path("data"))
    error = run("demo", *SMALL, "--json").error()
    assert (error["slug"], "--data" in error["message"]) == ("setting", True)
    assert tree(Path("data")) == before


def test_the_cycle_is_the_real_one(shown: tuple[Path, Any]) -> None:
    first, second = shown[1]["versions"]
    log = Catalog(shown[0]).log.entries()
    cycle = ("build", "check", "stage", "announce", "good")
    assert [(act.act, act.version) for act in log] == [(act, version) for version in (first, second) for act in cycle]
    report = gates.load(shown[0], second)
    assert report is not None
    assert (report.against, report.held, report.first) == (first, (), False)
    now = datetime.now(UTC)
    made = [version.scored_at for version in Catalog(shown[0]).versions()]
    assert now - timedelta(days=1) < made[0] <= now
    assert made[0] - made[1] == timedelta(days=1)


@pytest.mark.parametrize("flag", ["--port", "--admin-port"])
def test_address_that_is_taken_is_found_out_first(tmp_path: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = ("--port", 0, "--admin-port", 0, flag, port)
        error = run("demo", "--serve", *ports, "--data", tmp_path / "data", "--json").error()
    assert error["slug"] == "setting"
    assert str(port) in error["message"]
    assert error["message"].endswith(f"choose another with {flag}")
    assert not (tmp_path / "data").exists()


def test_few_profiles_are_enough(tmp_path: Path) -> None:
    """No unscored one among them: it is left out of the samples."""
    document = process("demo", "--profiles", 3, "--data", tmp_path, "--json").json()
    with kserve.open(tmp_path) as store:
        unscored = store.snapshot().profiles - store.snapshot().scored
    assert len(document["python"][2:]) == 6 - (unscored == 0) - ("find" not in str(document["python"]))
